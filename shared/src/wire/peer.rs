//! Between the two nodes of a migration.
//!
//! The source opens a connection of its own for each migration; its first
//! stream is `StreamKind::Control` and carries these messages. Every message
//! names its migration: an answer to an older attempt is recognised as such.
//!
//! ```text
//!  source                                  target
//!    | Prepare ------------------------------> |  checks, reserves, starts QEMU
//!    | <------------------ Prepared / Blocked  |
//!    | memory streams =======================> |
//!    | <------------------------------ Loaded  |  all of the guest is there
//!    | journals the grant                      |
//!    | Grant --------------------------------> |  journals it, runs the CPUs
//!    | <--------------------------- Activated  |
//!    | ends its QEMU                           |
//!    | Retired ------------------------------> |
//! ```
//!
//! Before the grant either side may end it (`Cancel`, `Failed`, or just the
//! connection's end). After it only `Activated`, `HandBack` or a verdict does.

use serde::{Deserialize, Serialize};

use super::document::Document;
use super::uplink::Verdict;
use crate::model::spec::DiskFormat;
use crate::model::{Bytes, Epoch, MigrationId, MigrationPolicy, Problem, VmId};

/// From the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "messages live for one send")]
pub enum SourceMessage {
    /// Make ready to receive.
    Prepare(Prepare),
    /// It is off; nothing will be granted.
    Cancel {
        /// The migration.
        migration: MigrationId,
        /// Why.
        reason: Problem,
    },
    /// The right to run is yours at `epoch`.
    Grant {
        /// The migration.
        migration: MigrationId,
        /// The source's epoch plus one.
        epoch: Epoch,
        /// Whether the CPUs shall run (false when the guest was paused).
        run: bool,
        /// The rest of the memory follows while they run.
        postcopy: bool,
    },
    /// What became of my grant? Not taken until now means refused for good.
    Query {
        /// The migration.
        migration: MigrationId,
        /// The VM.
        vm: VmId,
        /// The epoch granted.
        epoch: Epoch,
    },
    /// The first message of a new connection for a post-copy whose old one was
    /// lost: make ready to receive the rest.
    Resume {
        /// The migration.
        migration: MigrationId,
    },
    /// What time is it there? Answered at once.
    AskTime {
        /// The migration.
        migration: MigrationId,
        /// The source's clock when this was sent, in microseconds.
        sent_us: u64,
    },
    /// The source's QEMU has ended; the migration is over.
    Retired {
        /// The migration.
        migration: MigrationId,
    },
    /// The source has taken the right back (`HandBack`) and runs the guest.
    TakenBack {
        /// The migration.
        migration: MigrationId,
        /// The epoch it runs at.
        epoch: Epoch,
    },
}

/// From the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetMessage {
    /// QEMU waits for the memory streams.
    Prepared {
        /// The migration.
        migration: MigrationId,
    },
    /// It cannot be received here: everything that stands against it. Also the
    /// answer to a dry run, with an empty list when nothing does.
    Blocked {
        /// The migration.
        migration: MigrationId,
        /// The blockers.
        blockers: Vec<Problem>,
    },
    /// Everything has arrived and was loaded; the CPUs stand still.
    Loaded {
        /// The migration.
        migration: MigrationId,
    },
    /// Receiving failed; what had been started is gone.
    Failed {
        /// The migration.
        migration: MigrationId,
        /// Why.
        reason: Problem,
    },
    /// Post-copy: the grant is journaled here; the device state may come.
    Taken {
        /// The migration.
        migration: MigrationId,
        /// The epoch granted.
        epoch: Epoch,
    },
    /// The CPUs run here.
    Activated {
        /// The migration.
        migration: MigrationId,
        /// The epoch they run at.
        epoch: Epoch,
        /// When they began to, by the target's clock, in microseconds (the time
        /// of QEMU's `RESUME`); none when nobody saw it.
        resumed_us: Option<u64>,
    },
    /// The answer to `AskTime`.
    Time {
        /// The migration.
        migration: MigrationId,
        /// What the source had sent.
        sent_us: u64,
        /// The target's clock, in microseconds.
        here_us: u64,
    },
    /// Post-copy: QEMU waits for the streams again.
    ResumeReady {
        /// The migration.
        migration: MigrationId,
    },
    /// Post-copy: all of the guest's memory is here; nothing depends on the
    /// source any more.
    Complete {
        /// The migration.
        migration: MigrationId,
    },
    /// The grant was taken and the CPUs could not be run: the right goes back.
    HandBack {
        /// The migration.
        migration: MigrationId,
        /// The epoch that the source may take: the grant's plus one.
        epoch: Epoch,
        /// Why.
        reason: Problem,
    },
    /// The answer to a query.
    Verdict {
        /// The migration.
        migration: MigrationId,
        /// The word.
        verdict: Verdict,
    },
}

/// Everything the target needs to know to receive a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// The migration.
    pub migration: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// [`crate::model::VmSpec`].
    pub spec: Document,
    /// The epoch at which the source runs it.
    pub epoch: Epoch,
    /// How it shall go.
    pub policy: MigrationPolicy,
    /// Only answer with the blockers.
    pub dry_run: bool,
    /// The versioned machine type that the source runs.
    pub machine: String,
    /// The accelerator in use on the source: `kvm` or `tcg`.
    pub accelerator: String,
    /// The CPU model in use on the source.
    pub cpu_model: String,
    /// The source's QEMU version.
    pub qemu_version: String,
    /// Disks whose contents have to come along.
    pub disks: Vec<DiskPlan>,
}

/// A disk that is mirrored to the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPlan {
    /// Its index in the spec.
    pub index: u16,
    /// What the guest sees of it.
    pub size: Bytes,
    /// What it takes on the source.
    pub allocated: Bytes,
    /// The backing image that the target has to have, and its format.
    pub backing: Option<(String, DiskFormat)>,
}

impl SourceMessage {
    /// The migration that the message is about.
    pub fn migration(&self) -> MigrationId {
        match self {
            Self::Prepare(prepare) => prepare.migration,
            Self::Cancel { migration, .. }
            | Self::Grant { migration, .. }
            | Self::Query { migration, .. }
            | Self::Resume { migration }
            | Self::AskTime { migration, .. }
            | Self::Retired { migration }
            | Self::TakenBack { migration, .. } => *migration,
        }
    }
}

impl TargetMessage {
    /// The migration that the message is about.
    pub fn migration(&self) -> MigrationId {
        match self {
            Self::Prepared { migration }
            | Self::Blocked { migration, .. }
            | Self::Loaded { migration }
            | Self::Failed { migration, .. }
            | Self::Taken { migration, .. }
            | Self::Activated { migration, .. }
            | Self::Time { migration, .. }
            | Self::ResumeReady { migration }
            | Self::Complete { migration }
            | Self::HandBack { migration, .. }
            | Self::Verdict { migration, .. } => *migration,
        }
    }
}
