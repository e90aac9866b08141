//! What the [`Supervisor`](super::Supervisor) can be told and asked.

use actix::{Addr, Message};
use bytes::Bytes;
use godwit_node_logic::handoff::{HandoffRecord, IncomingRecord, IncomingStage};
use godwit_shared::model::{
    DomainReport, Epoch, LifecycleCommand, MigrationId, NodeId, Problem, VmId, VmSpec,
};
use godwit_shared::wire::uplink::LogKind;
use tokio::sync::mpsc;

use crate::domain::DomainActor;
use crate::images::NewImage;

/// Make the domain known, or replace its spec while it is stopped. Idempotent.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<DomainReport, Problem>")]
pub struct Define {
    /// The VM.
    pub vm: VmId,
    /// Its spec.
    pub spec: VmSpec,
    /// The right to run that comes with it.
    pub epoch: Epoch,
    /// The pinned machine type, once one was chosen.
    pub machine: Option<String>,
}

/// A lifecycle command. Resolves when QEMU confirmed it; `Shutdown` and
/// `Reboot` when the guest was asked.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<DomainReport, Problem>")]
pub struct Command {
    /// The VM.
    pub vm: VmId,
    /// What to do.
    pub command: LifecycleCommand,
    /// For `Start`: the epoch of this run. For the others: what the sender
    /// believes; an older one than the node's is refused.
    pub epoch: Epoch,
}

/// Join a domain's serial console.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<Console, Problem>")]
pub struct AttachConsole {
    /// The VM.
    pub vm: VmId,
    /// Begin with so many bytes of what was written before.
    pub scrollback: u32,
}

/// One attachment to a serial console. It ends (`output` yields `None`) when
/// QEMU ends, or when its reader is too slow; the guest never waits for it.
/// Dropping it detaches.
#[derive(Debug)]
pub struct Console {
    /// What was written before, oldest byte first.
    pub backlog: Bytes,
    /// What is written from then on.
    pub output: mpsc::Receiver<Bytes>,
    /// What is typed. Bounded: it fills when the guest does not read.
    pub input: mpsc::Sender<Bytes>,
}

/// The end of a domain's log, in at most 256 KiB.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<String, Problem>")]
pub struct ReadLog {
    /// The VM.
    pub vm: VmId,
    /// Which log.
    pub kind: LogKind,
    /// At most so many lines.
    pub lines: u32,
}

/// The actor of a domain, for the migration manager.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Option<Addr<DomainActor>>")]
pub struct Lookup {
    /// The VM.
    pub vm: VmId,
}

/// What a target has to know to receive a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingRequest {
    /// The migration.
    pub migration: MigrationId,
    /// Where it comes from.
    pub source: NodeId,
    /// The VM.
    pub vm: VmId,
    /// Its spec.
    pub spec: VmSpec,
    /// The source's epoch.
    pub epoch: Epoch,
    /// The versioned machine type that the source runs.
    pub machine: String,
    /// The accelerator that the source uses: `kvm` or `tcg`.
    pub accelerator: String,
    /// The CPU model that the source uses.
    pub cpu_model: String,
    /// Disk images to make for it.
    pub images: Vec<NewImage>,
}

impl IncomingRequest {
    /// What the journal says of it while no grant has come.
    pub fn record(&self) -> IncomingRecord {
        IncomingRecord {
            migration: self.migration,
            source: self.source.clone(),
            epoch: self.epoch.next(),
            images: self.images.iter().map(|image| image.path.clone()).collect(),
            stage: IncomingStage::Prepared,
        }
    }
}

/// Reserve what the domain takes and start a QEMU that waits for its migration.
/// Resolves when QMP is ready.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Addr<DomainActor>, Problem>")]
pub struct StartIncoming(pub IncomingRequest);

/// What stands against receiving the domain here: capacity, emulator, files.
/// Empty when nothing does. Changes nothing.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Vec<Problem>")]
pub struct CheckIncoming(pub IncomingRequest);

/// Resolves when the domains that the last daemon left were taken over (or
/// found dead or silent), with the records of migrations among them. Reports
/// of all domains are on the bus by then.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Vec<(VmId, HandoffRecord)>")]
pub struct Restored;
