//! Migrations: the I/O around [`godwit_node_logic::handoff`].
//!
//! ```text
//!  MigrationManager ── one per node: requests, peers' connections, recovery
//!    ├─ Outgoing ───── one actor per migration that leaves: steps a `Source`
//!    │                  DomainActor <─QMP─┤  ├─ relay: QEMU's sockets → QUIC streams
//!    └─ Incoming ───── one actor per migration that comes: steps a `Target`
//!                       DomainActor <─QMP─┤  ├─ relay: QUIC streams → QEMU's socket
//! ```
//!
//! A migration has a QUIC connection of its own, from a UDP socket of its own:
//! its control messages and its memory share one fate, so that a path which is
//! cut is noticed by what depends on it, and several migrations share neither a
//! socket nor a congestion window (`docs/adr/0004`).
//!
//! Each actor feeds its state machine from one queue: peer messages, QMP events
//! of the domain, the connection's end, timers and the results of its own
//! effects come in the order in which they happened. Effects that take time run
//! beside the actor and put their result into that queue.

mod buffers;
mod calls;
mod carry;
mod disks;
mod incoming;
mod manager;
mod mirror;
mod outgoing;
mod packing;
mod peer;
mod progress;
mod qemu;
mod rehearsal;
mod relay;
mod tombstones;

pub use manager::{
    CancelMigration, IncomingConnection, MigrationContext, MigrationManager, QueryVerdict,
    ResolveMigration, StartMigration, TuneMigration, WatchMigration,
};
pub use tombstones::Tombstones;
#[cfg(test)]
pub(crate) use {calls::ended_before, qemu::make_sure_it_runs};
