//! What the journals say of a migration.

use serde::{Deserialize, Serialize};

use godwit_shared::model::{Epoch, MigrationId, NodeId, UnixMillis, VmId};
use godwit_shared::wire::uplink::{Member, Verdict};

use super::source::Plan;

/// The part of a domain's record that a migration in hand owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoffRecord {
    /// The domain is being moved away.
    Outgoing(OutgoingRecord),
    /// The domain is being received.
    Incoming(IncomingRecord),
}

impl HandoffRecord {
    /// The migration that it is of.
    pub fn migration(&self) -> MigrationId {
        match self {
            Self::Outgoing(record) => record.migration,
            Self::Incoming(record) => record.migration,
        }
    }
}

/// On the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutgoingRecord {
    /// The migration.
    pub migration: MigrationId,
    /// Where to.
    pub target: Member,
    /// The epoch at which the source runs, or ran, the domain.
    pub epoch: Epoch,
    /// Whether the CPUs shall run afterwards, wherever that is.
    pub run: bool,
    /// On which terms.
    pub plan: Plan,
    /// Disk images here that go when the guest runs at the target with their copies.
    pub images: Vec<String>,
    /// How far it is.
    pub stage: OutgoingStage,
    /// When it began.
    pub started: UnixMillis,
}

/// How far a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutgoingStage {
    /// Nothing was granted: the source owns the domain.
    Sending,
    /// The right is granted at the next epoch. Its fate is the target's word.
    Granted,
    /// The same, for post-copy: QEMU's migration has not ended.
    GrantedEarly,
    /// The target's word was no; the source owns the domain again, two epochs on.
    TakenBack,
}

/// On the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingRecord {
    /// The migration.
    pub migration: MigrationId,
    /// Where from.
    pub source: NodeId,
    /// The epoch that a grant will carry: the source's plus one.
    pub epoch: Epoch,
    /// Disk images that were made for it, and go with it when it fails.
    pub images: Vec<String>,
    /// How far it is.
    pub stage: IncomingStage,
}

/// How far a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncomingStage {
    /// Promised to take a grant; none has come.
    Prepared,
    /// The grant was taken; the CPUs are about to run, if they shall.
    Granted {
        /// Whether they shall.
        run: bool,
        /// For post-copy: before the device state was sent.
        early: bool,
    },
    /// The CPUs run, or stand still because they shall.
    Running {
        /// All of the guest's memory is here.
        complete: bool,
    },
}

/// What a target remembers of a migration that it has no domain for any more,
/// so that a late question gets the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The migration.
    pub migration: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// The word given, or to be given.
    pub verdict: TombstoneVerdict,
    /// When it was written.
    pub at: UnixMillis,
}

/// [`Verdict`] as the journal spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TombstoneVerdict {
    /// Taken, and the guest ran.
    Granted,
    /// Not taken, and never will be.
    Refused,
    /// Nobody knows.
    Lost,
}

impl From<TombstoneVerdict> for Verdict {
    fn from(verdict: TombstoneVerdict) -> Self {
        match verdict {
            TombstoneVerdict::Granted => Self::Granted { running: true },
            TombstoneVerdict::Refused => Self::Refused,
            TombstoneVerdict::Lost => Self::Lost,
        }
    }
}
