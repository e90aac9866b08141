//! A whole cluster in virtual time, from one seed.
//!
//! The coordinator's [`Cluster`](godwit_coordinator_logic::cluster::Cluster) and
//! the nodes' [`Domain`](godwit_node_logic::domain::Domain), `Source` and
//! `Target` are the production ones. What the daemons do with their effects, the
//! network, QEMU and the clock are modelled here, from one seed: the same seed
//! is the same run, to the last message. `docs/simulation.md` says what is asked
//! of every step.
//!
//! The model checker (`tests/model`) searches *every* order of few things; here
//! are many VMs, all parties and real times, in *some* orders.
#![allow(
    clippy::match_bool,
    reason = "what happens and what does not stand side by side, as in a table"
)]

pub mod agenda;
pub mod check;
pub mod coordinator;
pub mod link;
pub mod mutant;
pub mod node;
mod operator;
pub mod qemu;
mod record;
pub mod replay;
pub mod rng;
pub mod scene;
pub mod sim;
mod trouble;

pub use mutant::Mutant;
pub use record::Recorder;
pub use sim::{Report, Sim};

/// Runs a seed.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Report {
    Sim::new(seed, mutant, false).run()
}

/// The same, and its coordinator's recordings.
pub fn recorded(seed: u64) -> Report {
    Sim::new(seed, None, false).recorded().run()
}

/// The same, and tells every step.
pub fn trace(seed: u64, mutant: Option<Mutant>) -> Report {
    Sim::new(seed, mutant, true).run()
}
