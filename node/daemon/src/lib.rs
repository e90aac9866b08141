//! The node daemon: actors around QEMU, and what they speak to the rest of
//! the cluster.
//!
//! * [`app`]: puts the parts together.
//! * [`supervisor`] and [`domain`]: who runs the guests.
//! * [`migration`]: guests that leave and arrive.
//! * [`bus`]: the notice board between those who own state and the uplink.
//! * [`cli`], [`config`], [`logging`]: the command line, the settings, the log.
//! * [`host`], [`facts`], [`identity`]: the host's files, and what and who the
//!   node is; [`numa`], [`reach`]: its memory, and what it reaches.
//! * [`fault`]: where tests make a daemon wait.
//! * [`images`]: disks that are made for guests that arrive.
//! * [`join`]: how a host becomes a node.
//! * [`uplink`]: the session with the coordinator; [`acceptor`] and [`members`]:
//!   which peers are let in.

pub mod acceptor;
pub mod app;
pub mod bus;
pub mod cli;
pub mod config;
pub mod domain;
pub mod facts;
pub mod fault;
pub mod guard;
pub mod host;
pub mod identity;
pub mod images;
pub mod join;
pub mod journal;
pub mod lease;
pub mod logging;
pub mod members;
pub mod migration;
pub mod numa;
pub mod qemu;
pub mod reach;
pub mod supervisor;
pub mod uplink;

#[cfg(test)]
mod testing;
