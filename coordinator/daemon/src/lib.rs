//! The coordinator of a Godwit cluster: the daemon around
//! [`godwit_coordinator_logic`].
//!
//! * [`store`] keeps the records, [`cluster`] is the one writer of them.
//! * [`candidacy`] says which of several coordinators that is; the others are
//!   a [`follower`] each, with a [`replica`]; [`peers`] is what they share.
//! * [`backup`] takes their backups and restores them.
//! * [`record`] writes down what the cluster was given and decided.
//! * [`session`] is the side that nodes connect to, [`http`] the operators'.
//! * [`authority`] and [`credential`] say who may come in.
//! * [`app`] puts it together.

pub mod app;
pub mod authority;
pub mod backup;
pub mod candidacy;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod credential;
pub mod fence;
pub mod follower;
pub mod http;
pub mod logging;
pub mod peers;
pub mod record;
pub mod replica;
pub mod session;
pub mod state_dir;
pub mod store;
