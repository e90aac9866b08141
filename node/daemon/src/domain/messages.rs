//! What a [`DomainActor`](super::DomainActor) can be told and asked.
//!
//! The first group is for lifecycle and consoles, and comes from the
//! supervisor. The second is for migrations: the migration manager drives the
//! domain's QEMU through it, while the actor keeps everything else away.

use std::time::Duration;

use actix::Message;
use godwit_node_logic::handoff::HandoffRecord;
use godwit_node_logic::qmp;
use godwit_shared::model::{
    DomainReport, Epoch, ExitReason, LifecycleCommand, MigrationId, Problem, VmSpec,
};
use godwit_shared::wire::peer::DiskPlan;
use godwit_shared::wire::uplink::LogKind;
use serde_json::Value;
use tokio::sync::mpsc;

pub use crate::supervisor::messages::{Console, IncomingRequest};

/// A lifecycle command. Resolves when QEMU confirmed it; `Shutdown` and
/// `Reboot` when the guest was asked.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<DomainReport, Problem>")]
pub struct Lifecycle {
    /// What to do.
    pub command: LifecycleCommand,
    /// For `Start`: the epoch of this run. For the others: what the sender
    /// believes.
    pub epoch: Epoch,
}

/// Take this spec. Refused while QEMU runs with another one.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<DomainReport, Problem>")]
pub struct Redefine {
    /// The spec.
    pub spec: VmSpec,
    /// The right to run that comes with it.
    pub epoch: Epoch,
    /// The pinned machine type, once one was chosen.
    pub machine: Option<String>,
}

/// How does it stand?
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "DomainReport")]
pub struct Describe;

/// Join the serial console.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<Console, Problem>")]
pub struct Attach {
    /// Begin with so many bytes of what was written before.
    pub scrollback: u32,
}

/// The end of a log, in at most 256 KiB.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<String, Problem>")]
pub struct TailLog {
    /// Which.
    pub kind: LogKind,
    /// At most so many lines.
    pub lines: u32,
}

/// Resolves when the domain's QEMU, if it has one, was taken over after the
/// daemon's start, or was found dead or silent.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Option<HandoffRecord>")]
pub struct TakenOver;

// ---- For migrations ----

/// One QMP command, as it is. Waits for QEMU to be ready within its deadline.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Value, Problem>")]
pub struct Execute {
    /// The command's name.
    pub command: &'static str,
    /// Its arguments: an object, or null.
    pub arguments: Value,
    /// When to give up waiting; QEMU may still carry it out.
    pub deadline: Duration,
}

/// Be told of QEMU's events from now on: those that matter
/// ([`qmp::Event::matters`]), in order, none lost.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "mpsc::UnboundedReceiver<DomainSignal>")]
pub struct Subscribe;

/// What subscribers are told.
#[derive(Debug, Clone, PartialEq)]
pub enum DomainSignal {
    /// An event of QEMU.
    Qmp(qmp::Event),
    /// QEMU ended.
    Exited(ExitReason),
    /// The QMP session was lost while QEMU lives.
    QmpLost,
}

/// A migration takes the domain in hand as its source: lifecycle commands are
/// refused until [`EndOutgoing`]. Needs the state `Running` or `Paused`.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<OutgoingFacts, Problem>")]
pub struct BeginOutgoing {
    /// The migration.
    pub migration: MigrationId,
}

/// What a target has to know of the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingFacts {
    /// The spec.
    pub spec: VmSpec,
    /// The epoch at which it runs.
    pub epoch: Epoch,
    /// The versioned machine type.
    pub machine: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// The CPU model.
    pub cpu_model: String,
    /// QEMU's version.
    pub qemu_version: String,
    /// Whether the CPUs shall run afterwards: false when an operator paused it.
    pub run: bool,
    /// Disks that have to come along; the migration manager finds them.
    pub disks: Vec<DiskPlan>,
}

/// Puts the migration's record into the domain's journal before it resolves. A
/// removal leaves another migration's record alone.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<(), Problem>")]
pub struct RecordHandoff {
    /// The migration that the record is of.
    pub migration: MigrationId,
    /// The record; none removes it.
    pub record: Option<HandoffRecord>,
    /// Write it through to the disk, so that it outlives the host.
    pub durable: bool,
}

/// The right was granted away: reports say `InHandoff` from now on.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<(), Problem>")]
pub struct MarkInHandoff;

/// The migration lets go of the domain.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<(), Problem>")]
pub struct EndOutgoing(pub OutgoingEnd);

/// How a migration ends on its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutgoingEnd {
    /// The domain stays here, at this epoch.
    Stay {
        /// The epoch in force from now on.
        epoch: Epoch,
    },
    /// It runs on the target, at this epoch: QEMU is ended, and nothing of the
    /// domain remains here.
    Retire {
        /// The target's epoch.
        epoch: Epoch,
    },
}

/// On a target: the right to run is this node's, at `epoch`. Journals it, runs
/// the CPUs if they shall, and resolves when QEMU confirmed that they run.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<(), ActivateError>")]
pub struct Activate {
    /// The epoch.
    pub epoch: Epoch,
    /// Whether the CPUs shall run.
    pub run: bool,
}

/// Why an activation did not succeed, and what that means for the right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActivateError {
    /// QEMU's session is not back yet; ask again.
    NotYet(Problem),
    /// The CPUs certainly never ran here: the right can go back.
    NeverRan(Problem),
    /// They may have run: the domain is this node's.
    Unclear(Problem),
}

/// On a target: kill QEMU and remove everything of the domain. Resolves when
/// the process is gone; refused when the domain is not being received.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<(), Problem>")]
pub struct DiscardIncoming;

/// From the supervisor: become the receiving side of a migration. Resolves when
/// QEMU waits for the migration.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<(), Problem>")]
pub struct BecomeIncoming(pub IncomingRequest);
