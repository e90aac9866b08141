//! Every decision of the coordinator, as pure code.
//!
//! * [`cluster::Cluster`] is the state of the cluster and the only place that
//!   changes it: an [`input::Input`] goes in, [`effect::Effect`]s come out.
//! * [`record`] is what outlives the coordinator, key by key.
//! * [`recording`] is what a daemon writes down of its steps, and their replay.
//! * [`restored`] is what a backup's records become when they are restored.
//! * [`placement`] decides where a VM goes, and says why.
//!
//! Nothing here does I/O, reads a clock or draws a random number: the time and
//! fresh ids come with the input. So the daemon, the tests and a simulation run
//! the very same decisions.

pub mod cluster;
pub mod effect;
pub mod input;
pub mod placement;
pub mod plan;
pub mod record;
pub mod recording;
pub mod restored;
