//! The life of one domain: a state machine without I/O.
//!
//! [`Domain`] is fed [`Event`]s (requests, facts about QEMU's process and QMP
//! session, QMP events, timers) and answers with [`Effect`]s. The actor in the
//! daemon performs the effects, in order, and feeds their results back.
//!
//! ```text
//!  process:  None --Start--> Spawning --> Launched --greeting--> Ready
//!             ^                 |            |  ^                  |
//!             |<----- exit -----+------------+  +--- session lost -+
//!  guest:    Fresh --cont--> Running <--stop/cont--> Paused
//!                               |--> Panicked --reset, cont--> Running
//!                               |--> IoError --cont--> Running
//!                               |--> PoweredOff --quit--> exit
//!  role:     Free --BeginOutgoing--> Outgoing --Granted--> Outgoing, granted
//!             ^  <-----Stay------------'                     |--Stay--> Free
//!             |<----Activate---- Incoming <--Receive-- (none)  '--Retire--> gone
//! ```
//!
//! The reported [`DomainState`](godwit_shared::model::DomainState) follows from
//! these three.
//!
//! # Invariants (property-tested)
//! * `cont` is only asked for while the node owns the right to run the domain.
//! * What decides over that right is journaled before the effect that needs it:
//!   a [`Effect::Journal`] that fails drops the effects behind it.
//! * A domain without a process is `Stopped`, and the other way round.
//! * Every request that was accepted is answered once, whatever QEMU does.
//! * In a domain that a migration has in hand nothing is run or ended, unless
//!   the migration asks for it or the guest ends by itself.

mod command;
mod effect;
mod event;
mod machine;
mod migration;
mod process;
#[cfg(test)]
mod tests;

pub use command::{Verdict, decide};
pub use effect::{Action, AgentAction, Effect, Request, Timer};
pub use event::{Event, Happening};
pub use machine::{Domain, Role, Saved, View};

use godwit_shared::model::Problem;

/// A request that the state does not allow. It changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct Rejected(#[from] pub Problem);
