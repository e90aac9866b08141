//! Plans: moves that belong together, computed and shown before they run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{
    BytesPerSec, MigrationId, Millis, NodeId, PlanId, Problem, UnixMillis, Usage, VmId, VmName,
};

/// What a plan is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PlanKind {
    /// Empties a node, which is cordoned first.
    Drain {
        /// The node.
        node: NodeId,
        /// Its VMs come back when it is uncordoned.
        and_return: bool,
    },
    /// Brings the VMs of a drain back.
    Return {
        /// The node.
        node: NodeId,
        /// The drain.
        drain: PlanId,
    },
    /// Evens the load out.
    Rebalance {
        /// It began by itself.
        continuous: bool,
    },
}

impl PlanKind {
    /// The word in listings.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Drain { .. } => "drain",
            Self::Return { .. } => "return",
            Self::Rebalance { .. } => "rebalance",
        }
    }

    /// The node that it is about.
    pub const fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Drain { node, .. } | Self::Return { node, .. } => Some(node),
            Self::Rebalance { .. } => None,
        }
    }
}

/// How a plan stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlanState {
    /// Computed, and not to be run.
    Proposed,
    /// Under way.
    Running,
    /// Being called off: moves that run are awaited.
    Aborting,
    /// Every step was done, or was no longer needed.
    Done,
    /// Some step was not done.
    Failed,
    /// Called off.
    Aborted,
}

impl PlanState {
    /// Whether nothing more will happen.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Running | Self::Aborting)
    }

    /// The word in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proposed => "proposed",
            Self::Running => "running",
            Self::Aborting => "aborting",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

/// How a step stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    #[default]
    Pending,
    /// Its migration is in the queue, or runs.
    Moving,
    /// The VM is where it was to go.
    Done,
    /// It was not needed any more.
    Skipped,
    /// It was not done.
    Failed,
    /// It was called off.
    Aborted,
}

impl StepState {
    /// Whether nothing more will happen.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Moving)
    }

    /// The word in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Moving => "moving",
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

/// One move of a plan, as it was planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct PlanStep {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// From.
    pub source: NodeId,
    /// To.
    pub target: NodeId,
    /// What it takes, at its target from the beginning of its move.
    pub takes: Usage,
    /// Steps whose room it needs: it begins when they have ended. By place, from 0.
    pub after: Vec<usize>,
    /// How long its memory takes.
    pub estimate: Millis,
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct StepProgress {
    /// How it stands.
    pub state: StepState,
    /// Its migration, once it has begun.
    pub migration: Option<MigrationId>,
    /// Where to, where that is no longer what was planned.
    pub target: Option<NodeId>,
    /// What it waits for, or what came of it.
    pub message: Option<String>,
    /// Why it was not done.
    pub problem: Option<Problem>,
}

/// A VM that a plan leaves where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Stays {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// Why.
    pub problem: Problem,
}

/// The spread of the load, in millionths; 0 when all nodes are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Imbalance {
    /// When the plan was made.
    pub before: u64,
    /// When all of it is done.
    pub after: u64,
}

/// How much a plan does at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PlanLimits {
    /// Moves at once; the limits of the cluster apply beside it.
    pub parallel: u32,
    /// Most that each move may send; none means as fast as the link goes.
    pub bandwidth: Option<BytesPerSec>,
}

impl PlanLimits {
    /// The most moves at once that may be asked for.
    pub const MOST: u32 = 1000;
}

impl Default for PlanLimits {
    fn default() -> Self {
        Self {
            parallel: 4,
            bandwidth: None,
        }
    }
}

/// One plan: what was planned, which never changes, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct PlanView {
    /// Its id.
    pub id: PlanId,
    /// What it is for.
    #[serde(flatten)]
    pub kind: PlanKind,
    /// How it stands.
    pub state: PlanState,
    /// When it was made.
    pub created: UnixMillis,
    /// When it ended.
    pub ended: Option<UnixMillis>,
    /// How much it does at once.
    pub limits: PlanLimits,
    /// How long it was expected to take.
    pub estimate: Millis,
    /// The rate of one move that the estimate rests on: measured on the last
    /// moves, or a guess where there were none.
    pub rate: BytesPerSec,
    /// The spread of the load; of a rebalance.
    pub imbalance: Option<Imbalance>,
    /// Running VMs that stay and should not: what blocks the plan.
    pub blockers: Vec<Stays>,
    /// VMs that stay because they do not run.
    pub stopped: Vec<Stays>,
    /// The moves.
    pub steps: Vec<PlanStep>,
    /// What became of them, one for each.
    pub progress: Vec<StepProgress>,
    /// How it stands, or what came of it, in a few words.
    pub message: String,
}

impl PlanView {
    /// Steps that have ended.
    pub fn ended_steps(&self) -> usize {
        let ended = self.progress.iter().filter(|step| step.state.is_final());
        ended.count()
    }
}

/// Empties a node, or brings its VMs back; an empty body means the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DrainRequest {
    /// Only show the plan.
    pub dry_run: bool,
    /// Begin although something blocks it, and move what can be moved.
    pub partial: bool,
    /// Of a drain: bring the VMs back when the node is uncordoned.
    pub and_return: bool,
    /// How much at once.
    pub limits: PlanLimits,
}

/// Evens the load out; an empty body means the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RebalanceRequest {
    /// Only show the plan.
    pub dry_run: bool,
    /// At most so many moves; those of the configuration when absent.
    pub max_moves: Option<u32>,
    /// How much at once.
    pub limits: PlanLimits,
}

/// Calls a plan off; an empty body means the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AbortRequest {
    /// Cancel the moves that run; else they end as they would have.
    pub cancel_running: bool,
}
