//! What the coordinator's REST interface answers and accepts, as JSON.
//!
//! The coordinator makes its OpenAPI document from these types, and the command
//! line reads its answers into them. Fields are only ever added.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET /api/v1/cluster` | | [`ClusterStatus`] |
//! | `GET /api/v1/nodes`, `/nodes/{node}` | | [`NodeView`] (list) |
//! | `GET /api/v1/cluster/backup` | | a file, see `godwit_shared::backup` |
//! | `POST /api/v1/nodes/{node}/absent` | [`AbsentRequest`] | [`NodeView`] |
//! | `POST /api/v1/nodes/{node}/cordon`, `uncordon` | | [`NodeView`] |
//! | `POST /api/v1/nodes/{node}/marks` | [`MarkRequest`] | [`NodeView`] |
//! | `DELETE /api/v1/nodes/{node}` | | 204 |
//! | `POST /api/v1/tokens` | [`TokenRequest`] | [`TokenView`] |
//! | `GET /api/v1/vms`, `/vms/{vm}` | | [`VmView`] (list) |
//! | `POST /api/v1/vms` | [`CreateVm`] | 202 [`TaskView`] |
//! | `POST /api/v1/vms/{vm}/{command}` | [`CommandOptions`] | 202 [`TaskView`] |
//! | `DELETE /api/v1/vms/{vm}` | | 202 [`TaskView`] |
//! | `POST /api/v1/vms/{vm}/migrate` | [`MigrateRequest`] | 202 [`TaskView`], or 200 [`DryRun`] |
//! | `POST /api/v1/place` | [`CreateVm`] | [`PlacementView`] |
//! | `POST /api/v1/placement/simulate` | [`SimulateRequest`] | [`SimulationView`] |
//! | `GET /api/v1/placement/profiles` | | [`ProfileView`] (list) |
//! | `GET /api/v1/vms/{vm}/logs?kind=serial\|qemu&lines=N` | | text |
//! | `GET /api/v1/vms/{vm}/console` | | WebSocket, binary frames |
//! | `GET /api/v1/migrations`, `/migrations/{id}` | | [`MigrationView`] (list) |
//! | `GET /api/v1/migrations/calibration` | | [`Calibrations`] |
//! | `POST /api/v1/migrations/{id}/cancel` | | [`MigrationView`] |
//! | `POST /api/v1/migrations/{id}/resolve` | [`ResolveRequest`] | [`MigrationView`] |
//! | `POST /api/v1/migrations/{id}/tune` | [`MigrationTuning`](crate::model::MigrationTuning) | [`MigrationView`] |
//! | `POST /api/v1/nodes/{node}/drain`, `return` | [`DrainRequest`] | 202 [`PlanView`], or 200 for a dry run |
//! | `POST /api/v1/rebalance` | [`RebalanceRequest`] | 202 [`PlanView`], or 200 when nothing is begun |
//! | `GET /api/v1/plans`, `/plans/{id}` | | [`PlanView`] (list) |
//! | `POST /api/v1/plans/{id}/abort` | [`AbortRequest`] | [`PlanView`] |
//! | `GET /api/v1/tasks`, `/tasks/{id}` | | [`TaskView`] (list) |
//! | `POST /api/v1/tasks/{id}/cancel` | | [`TaskView`] |
//! | `GET /api/v1/events?after=N` | | server-sent [`Event`]s |
//! | `GET /api/v1/schema/vm` | | JSON Schema |
//! | `GET /api/openapi.json` | | OpenAPI |
//!
//! A refusal is a [`Problem`] with an HTTP status that follows from its code.
//! `{vm}` is a name or an id. Lists are sorted by name, or by time of birth.

mod calibration;
mod decision;
mod marks;
mod placement;
mod plan;
mod profile;
mod protection;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{
    AgentState, Capacity, DomainState, DomainUsage, DoubtDecision, Epoch, ExitReason, Forecast,
    MigrationFailure, MigrationFigures, MigrationId, MigrationPhase, MigrationPolicy,
    MigrationProgress, Millis, NodeFacts, NodeId, Problem, RunState, TaskId, UnixMillis, Usage,
    VmId, VmName, VmSpec,
};

pub use calibration::{Agreement, Calibration, Calibrations, ForecastMet};
pub use decision::{Decision, DecisionReason};
pub use marks::{MarkRequest, Marks};
pub use placement::{
    AddedNode, Change, NodeVerdict, Placed, PlacementView, Room, ScorePart, SimulateRequest,
    SimulationView, Unplaced,
};
pub use plan::*;
pub use profile::ProfileView;
pub use protection::{FencedBy, LeaseState, LeaseView, ProtectionView};

/// A request's header: a client that wants the leader's word, where there is a
/// leader, also for what another coordinator could answer.
pub const WANTS: &str = "godwit-wants";
/// An answer's header: `follower` when it is from a coordinator that does not
/// lead, whose nodes' states are not known to it.
pub const ANSWERED_BY: &str = "godwit-answered-by";

/// The cluster in a few numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ClusterStatus {
    /// The cluster's name.
    pub name: String,
    /// The coordinator's version.
    pub software: String,
    /// The CA's SHA-256 fingerprint, in hexadecimal.
    pub ca_fingerprint: String,
    /// When this coordinator was started.
    pub started: UnixMillis,
    /// Nodes by health.
    pub nodes: BTreeMap<String, u32>,
    /// VMs by state.
    pub vms: BTreeMap<String, u32>,
    /// Migrations in hand.
    pub migrations: u32,
    /// What the nodes that are up offer.
    pub capacity: Capacity,
    /// What VMs on them take.
    pub used: Usage,
    /// The newest event's number.
    pub last_event: u64,
    /// Nodes that did not connect since the store was restored from a backup.
    #[serde(default)]
    pub unheard: Vec<NodeId>,
}

/// An operator's word that a node, of which nothing was heard since the store
/// was restored, runs none of the cluster's VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AbsentRequest {
    /// The node's name, typed anew.
    pub confirm: String,
}

/// Whether a node can be counted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeHealth {
    /// Connected, and its reports are fresh.
    Up,
    /// Not connected.
    Down,
    /// Joined, never connected since.
    New,
}

impl NodeHealth {
    /// The word in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::New => "new",
        }
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct NodeView {
    /// Its name.
    pub name: NodeId,
    /// Whether it can be counted on.
    pub health: NodeHealth,
    /// Since when.
    pub since: UnixMillis,
    /// Why it is down, where that is known.
    pub reason: Option<String>,
    /// No new VMs are placed on it.
    pub cordoned: bool,
    /// Which joining of that name.
    pub incarnation: u32,
    /// When it joined.
    pub joined: UnixMillis,
    /// What it said of itself when it last connected.
    pub facts: Option<NodeFacts>,
    /// Labels and taints that its operators gave it.
    #[serde(default)]
    pub marks: Marks,
    /// Labels: those of its configuration, and its operators' over them.
    pub labels: BTreeMap<String, String>,
    /// What it offers.
    pub capacity: Capacity,
    /// What VMs on it take, reservations included.
    pub used: Usage,
    /// VMs on it.
    pub vms: u32,
    /// The lease under which it runs protected VMs.
    #[serde(default)]
    pub lease: Option<LeaseView>,
}

/// Asks for a join token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// How long it is good for; default one hour, at most a week.
    #[serde(default)]
    pub valid: Option<Millis>,
}

/// A one-time join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct TokenView {
    /// What `godwit-node join` takes. Shown this once.
    pub token: String,
    /// When it ceases to be good.
    pub expires: UnixMillis,
}

/// Defines a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// The VM. Unknown fields and wrong values are all reported at once.
    pub spec: VmSpec,
    /// Start it at once.
    #[serde(default)]
    pub start: bool,
    /// Put it on this node, if it fits there.
    #[serde(default)]
    pub node: Option<NodeId>,
}

/// Options of a lifecycle command; an empty body means the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandOptions {
    /// For `start`: put it on this node.
    #[serde(default)]
    pub node: Option<NodeId>,
}

/// One VM: what is wanted of it, and what is seen of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct VmView {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// What the operator wants.
    pub desired: RunState,
    /// What its node reports.
    pub state: DomainState,
    /// Since when.
    pub since: UnixMillis,
    /// The node that holds the right to run it.
    pub node: Option<NodeId>,
    /// Why it is there: the last decision of placement, as far as it still holds.
    #[serde(default)]
    pub decision: Option<Decision>,
    /// Whether that node is connected; when it is not, `state` is its last word.
    pub node_up: bool,
    /// The right to run.
    pub epoch: Epoch,
    /// Its spec.
    pub spec: VmSpec,
    /// The pinned machine type.
    pub machine: Option<String>,
    /// The accelerator in use.
    pub accelerator: Option<String>,
    /// The guest agent.
    pub agent: AgentState,
    /// QEMU's process id on the node.
    pub pid: Option<u32>,
    /// Why it last ended.
    pub exit: Option<ExitReason>,
    /// What last went wrong.
    pub problem: Option<Problem>,
    /// The migration in hand.
    pub migration: Option<MigrationId>,
    /// What its QEMU uses.
    pub usage: Option<DomainUsage>,
    /// When it was created.
    pub created: UnixMillis,
    /// What becomes of it when its node is lost; none when nothing does.
    #[serde(default)]
    pub protection: Option<ProtectionView>,
}

/// Moves a VM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Where to; placement chooses when absent.
    #[serde(default)]
    pub target: Option<NodeId>,
    /// How.
    #[serde(default)]
    pub policy: MigrationPolicy,
    /// Only say what stands against it.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a dry run found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct DryRun {
    /// The target that was looked at.
    pub target: NodeId,
    /// What stands against it; empty when nothing does.
    pub blockers: Vec<Problem>,
    /// How it would go; none when it could not be sampled.
    #[serde(default)]
    pub forecast: Option<Forecast>,
}

/// One migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct MigrationView {
    /// Its id.
    pub id: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// The VM's name.
    pub name: VmName,
    /// From.
    pub source: NodeId,
    /// To.
    pub target: NodeId,
    /// Where it is.
    pub phase: MigrationPhase,
    /// Since when.
    pub since: UnixMillis,
    /// When it was asked for.
    pub created: UnixMillis,
    /// When it ended.
    pub ended: Option<UnixMillis>,
    /// The last sample.
    pub progress: MigrationProgress,
    /// The guest's pause: from its last instruction on the source to its first
    /// on the target.
    pub blackout: Option<Millis>,
    /// What was foretold, and what was measured beside it.
    #[serde(default)]
    pub figures: MigrationFigures,
    /// Whether it went as foretold, as far as it has come.
    #[serde(default)]
    pub met: ForecastMet,
    /// Why it did not succeed.
    pub failure: Option<MigrationFailure>,
    /// How it was to go.
    pub policy: MigrationPolicy,
    /// Where it stands in the queue, while it waits.
    #[serde(default)]
    pub queue: Option<QueueView>,
    /// How an operator ended its source's doubt.
    #[serde(default)]
    pub resolution: Option<Resolution>,
    /// The task that waits for it.
    pub task: Option<TaskId>,
}

/// Where a migration stands in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct QueueView {
    /// Its place, from 1.
    pub position: u32,
    /// What it waits for.
    pub reason: String,
    /// When it is likely to begin, from how long moves have taken so far.
    pub estimated_start: Option<UnixMillis>,
}

/// An operator's word on a grant whose fate is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Resolution {
    /// What was decided.
    pub decision: DoubtDecision,
    /// By whom.
    pub by: String,
    /// When.
    pub at: UnixMillis,
}

/// Ends the doubt of a migration's source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// What is decided.
    pub decision: DoubtDecision,
    /// The VM's name, typed anew: a wrong decision runs the guest twice, or ends it.
    pub confirm: String,
}

/// How a long action stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Under way.
    Running,
    /// Its cancelling was asked for.
    Cancelling,
    /// Done.
    Succeeded,
    /// Not done; see its problem.
    Failed,
    /// Called off.
    Cancelled,
}

impl TaskState {
    /// Whether nothing more will happen.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The word in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One long action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct TaskView {
    /// Its id.
    pub id: TaskId,
    /// What it does: `vm.create`, `vm.start`, `vm.migrate` and the like.
    pub kind: String,
    /// How it stands.
    pub state: TaskState,
    /// The VM that it is about.
    pub vm: Option<VmId>,
    /// The VM's name.
    pub name: Option<VmName>,
    /// The node that it is about.
    pub node: Option<NodeId>,
    /// The migration that it drives.
    pub migration: Option<MigrationId>,
    /// What it is doing, in a few words.
    pub message: String,
    /// How much is done, 0 to 100, where that is known.
    pub percent: Option<u8>,
    /// Why it did not succeed.
    pub problem: Option<Problem>,
    /// When it was asked for.
    pub created: UnixMillis,
    /// When it ended.
    pub ended: Option<UnixMillis>,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Event {
    /// Its number, growing without gaps; the `id:` of the server-sent event.
    pub seq: u64,
    /// When.
    pub at: UnixMillis,
    /// What: `vm.state`, `node.up`, `migration.phase`, `task.ended` and the like.
    pub kind: String,
    /// The VM that it is about.
    pub vm: Option<VmName>,
    /// The node that it is about.
    pub node: Option<NodeId>,
    /// The migration that it is about.
    pub migration: Option<MigrationId>,
    /// The task that it is about.
    pub task: Option<TaskId>,
    /// One sentence for people.
    pub message: String,
}

/// The local operator's way in: written by the coordinator on its first start
/// (mode 0600, TOML), found by `godwit` by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminCredential {
    /// Base URL of the API, for example `https://127.0.0.1:7443`.
    pub endpoint: String,
    /// The bearer token.
    pub token: String,
    /// The cluster CA, PEM.
    pub ca: String,
}
