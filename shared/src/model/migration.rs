//! What is said of a migration: how it shall go, where it is, how it ended.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::{Problem, codes};
use super::units::{Bytes, BytesPerSec, Millis};

/// How a migration shall go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MigrationPolicy {
    /// Multifd channels beside the main one; 0 sends all memory over the main channel.
    pub channels: u16,
    /// Most that it may send; none means as fast as the link goes.
    pub bandwidth: Option<BytesPerSec>,
    /// The pause that QEMU aims at (`downtime-limit`).
    pub downtime: Millis,
    /// Slow the guest down when its writes outrun the link (`auto-converge`).
    pub auto_converge: bool,
    /// Whether, and when, the guest may run on the target before all of its
    /// memory is there.
    pub postcopy: Postcopy,
    /// How long the guest may take until it is switched over; none waits for ever.
    pub timeout: Option<Millis>,
    /// What to do then.
    pub timeout_action: TimeoutAction,
    /// How disks that are not shared get to the target.
    pub disks: DiskCopy,
    /// Leave the source's images of those disks where they are afterwards.
    pub keep_source_disks: bool,
    /// The place in the queue: higher goes first, 0 to 100.
    pub priority: u8,
}

impl Default for MigrationPolicy {
    fn default() -> Self {
        Self {
            channels: 2,
            bandwidth: None,
            downtime: Millis(300),
            auto_converge: true,
            postcopy: Postcopy::default(),
            timeout: None,
            timeout_action: TimeoutAction::default(),
            disks: DiskCopy::default(),
            keep_source_disks: false,
            priority: MigrationPolicy::NORMAL_PRIORITY,
        }
    }
}

impl MigrationPolicy {
    /// The priority of a move that nobody gave one.
    pub const NORMAL_PRIORITY: u8 = 50;
    /// The highest priority.
    pub const HIGHEST_PRIORITY: u8 = 100;

    /// Whether the parts of the policy go together.
    ///
    /// # Errors
    /// With the first that does not.
    pub fn check(&self) -> Result<(), Problem> {
        let wrong = |field: &str, text: String, remedy: &str| {
            Err(Problem::new(codes::BODY_INVALID, text)
                .field(format!("policy.{field}"))
                .remedy(remedy))
        };
        if self.priority > Self::HIGHEST_PRIORITY {
            let text = format!("the priority is {}", self.priority);
            return wrong("priority", text, "give one from 0 to 100");
        }
        if self.timeout_action != TimeoutAction::default() && self.timeout.is_none() {
            let text = "there is an action for a time limit, and no limit".to_owned();
            return wrong("timeout", text, "say how long the migration may take");
        }
        Ok(())
    }

    /// Whether QEMU has to be prepared for post-copy.
    pub fn allows_postcopy(&self) -> bool {
        self.postcopy != Postcopy::Never
            || (self.timeout.is_some() && self.timeout_action == TimeoutAction::Postcopy)
    }
}

/// When a guest may be switched to post-copy. There is no way back then: until
/// all of its memory has arrived, the guest depends on both hosts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Postcopy {
    /// Never.
    #[default]
    Never,
    /// When pre-copy does not converge, or when an operator says so.
    Fallback,
    /// After one pass over the memory.
    Always,
}

/// What is done with a guest that was not switched over in time.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum TimeoutAction {
    /// Call the migration off.
    #[default]
    Cancel,
    /// Stop the guest, so that the rest can be sent; it goes on at the target.
    Suspend,
    /// Switch to post-copy.
    Postcopy,
    /// Switch over at once, however long the pause will be.
    Force,
}

/// How disks that are not shared get to the target.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DiskCopy {
    /// All of each disk (`blockdev-mirror`, `sync: full`).
    #[default]
    Full,
    /// Only what differs from the backing image, which the target has already
    /// (`sync: top`).
    Top,
    /// As `full`, and the guest's writes go to both sides from the beginning
    /// (`copy-mode: write-blocking`): the mirror always converges.
    Synchronous,
}

/// What may be changed while a migration runs; absent fields stay as they are.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct MigrationTuning {
    /// Most that it may send from now on; 0 lifts the limit.
    pub bandwidth: Option<BytesPerSec>,
    /// The pause that QEMU aims at from now on.
    pub downtime: Option<Millis>,
    /// Switch to post-copy now.
    pub postcopy: bool,
}

/// How an operator ends a source's doubt, having seen to it that no other node
/// runs the guest, or that one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DoubtDecision {
    /// The guest certainly does not run on the target: run it here.
    RunOnSource,
    /// It runs on the target, or shall not run: end it here.
    EndOnSource,
}

impl DoubtDecision {
    /// The decision in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RunOnSource => "it runs on its source",
            Self::EndOnSource => "it is ended on its source",
        }
    }
}

/// A span of time that an outcome is expected in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Span {
    /// At least.
    pub low: Millis,
    /// At most.
    pub high: Millis,
}

impl Span {
    /// Whether it came as expected.
    pub fn holds(&self, outcome: Millis) -> bool {
        self.fit(outcome) == Fit::Inside
    }

    /// Where the outcome lies.
    pub fn fit(&self, outcome: Millis) -> Fit {
        match outcome {
            outcome if outcome < self.low => Fit::Below,
            outcome if outcome > self.high => Fit::Above,
            _ => Fit::Inside,
        }
    }
}

/// Where an outcome lies, seen from the interval that it was expected in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// It is less than was expected.
    Below,
    /// As expected.
    Inside,
    /// It is more than was expected.
    Above,
}

impl Fit {
    /// The place in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Below => "outside, less",
            Self::Inside => "inside",
            Self::Above => "outside, more",
        }
    }
}

/// How a migration is expected to go: intervals that hold nine outcomes of ten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Forecast {
    /// From its beginning until the guest runs on the target.
    pub duration: Span,
    /// The guest's pause.
    pub blackout: Span,
    /// Whether the link takes more than the guest dirties.
    pub converges: bool,
    /// Memory that has to be sent once.
    pub memory: Bytes,
    /// How fast the guest dirtied its memory in the sample (`calc-dirty-rate`).
    pub dirty_rate: BytesPerSec,
    /// What the link took when it was measured.
    pub link_rate: BytesPerSec,
}

/// What was foretold of a migration, and what was measured of it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(default)]
pub struct MigrationFigures {
    /// How it was expected to go.
    pub forecast: Option<Forecast>,
    /// The pause by QEMU's own count (`downtime` of `query-migrate`).
    pub qemu_downtime: Option<Millis>,
    /// How far the two nodes' clocks may be apart after correction: the
    /// blackout is that exact, in microseconds.
    pub clock_error_us: Option<u64>,
    /// From its beginning until the guest ran on the target.
    pub duration: Option<Millis>,
    /// The guest ran on the target before all of its memory was there.
    pub postcopy: bool,
}

/// Where a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MigrationPhase {
    /// Accepted, not begun.
    Queued,
    /// The target checks, reserves and starts its QEMU.
    Preparing,
    /// Disks that are not shared are mirrored; the guest runs.
    Disks,
    /// Memory is sent while the guest runs.
    Precopy,
    /// The guest is stopped and the rest is sent.
    Switchover,
    /// The right to run was granted; the target's word is awaited.
    Handoff,
    /// The grant's fate is unknown: the source asks, and runs nothing.
    InDoubt,
    /// The guest runs on the target while the rest of its memory is sent.
    Postcopy,
    /// The same, but the connection is lost: the guest stands still where it
    /// needs memory, and the nodes connect again by themselves.
    PostcopyPaused,
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

    /// Whether QEMU sends the guest's memory.
    pub const fn sends_memory(self) -> bool {
        matches!(self, Self::Precopy | Self::Postcopy)
    }

    /// The phase's name in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Preparing => "preparing",
            Self::Disks => "disks",
            Self::Precopy => "precopy",
            Self::Switchover => "switchover",
            Self::Handoff => "handoff",
            Self::InDoubt => "in-doubt",
            Self::Postcopy => "postcopy",
            Self::PostcopyPaused => "postcopy-paused",
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
#[serde(default)]
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
    /// Of the disks that are mirrored, in all.
    pub disks_total: Bytes,
    /// Of them, mirrored so far.
    pub disks_done: Bytes,
    /// Pass after pass leaves as much to send as the one before.
    pub stalled: bool,
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
