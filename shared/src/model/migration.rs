//! What is said of a migration: how it shall go, where it is, how it ended.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::Problem;
use super::units::{Bytes, BytesPerSec, Millis};

/// How a migration shall go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(default)]
pub struct MigrationPolicy {
    /// Multifd channels beside the main one; 0 sends all memory over the main channel.
    pub channels: u16,
    /// Most that it may send; none means as fast as the link goes.
    pub bandwidth: Option<BytesPerSec>,
    /// The pause that QEMU aims at (`downtime-limit`).
    pub downtime: Millis,
    /// Slow the guest down when its writes outrun the link (`auto-converge`).
    pub auto_converge: bool,
}

impl Default for MigrationPolicy {
    fn default() -> Self {
        Self {
            channels: 2,
            bandwidth: None,
            downtime: Millis(300),
            auto_converge: true,
        }
    }
}

/// Where a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MigrationPhase {
    /// Accepted, not begun.
    Queued,
    /// The target checks, reserves and starts its QEMU.
    Preparing,
    /// Memory is sent while the guest runs.
    Precopy,
    /// The guest is stopped and the rest is sent.
    Switchover,
    /// The right to run was granted; the target's word is awaited.
    Handoff,
    /// The grant's fate is unknown: the source asks, and runs nothing.
    InDoubt,
    /// Being undone; the guest stays on its source.
    Cancelling,
    /// The guest runs on the target.
    Completed,
    /// The guest runs on its source.
    Failed,
    /// An operator called it off; the guest runs on its source.
    Cancelled,
}

impl MigrationPhase {
    /// Whether nothing more will happen.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// The phase's name in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Preparing => "preparing",
            Self::Precopy => "precopy",
            Self::Switchover => "switchover",
            Self::Handoff => "handoff",
            Self::InDoubt => "in-doubt",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl std::fmt::Display for MigrationPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// How far it is: a sample of QMP `query-migrate`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub struct MigrationProgress {
    /// Guest memory in all.
    pub total: Bytes,
    /// Sent so far (`ram.transferred`); more than `total` when pages are sent again.
    pub transferred: Bytes,
    /// Still to send (`ram.remaining`).
    pub remaining: Bytes,
    /// Current rate.
    pub rate: BytesPerSec,
    /// How fast the guest dirties its memory.
    pub dirty_rate: BytesPerSec,
    /// Passes over the memory (`MIGRATION_PASS`).
    pub iteration: u32,
    /// What is left at the current rates; none while it does not converge.
    pub eta: Option<Millis>,
    /// How much the guest is slowed down by auto-converge, 0 to 99.
    pub throttle_percent: u8,
    /// Since the migration began.
    pub elapsed: Millis,
}

/// Why a migration did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct MigrationFailure {
    /// The phase in which it failed.
    pub phase: MigrationPhase,
    /// What went wrong.
    pub problem: Problem,
    /// From the moment the cause was noticed until the guest was confirmed
    /// running on its source.
    pub recovered_in: Option<Millis>,
}
