//! What happens to the cluster: operators' wishes, nodes' words, timers.

use std::collections::BTreeMap;

use godwit_shared::api::{
    AbortRequest, CommandOptions, CreateVm, DrainRequest, MarkRequest, MigrateRequest,
    MigrationView, NodeView, PlanView, RebalanceRequest, TaskView,
};
use godwit_shared::model::{
    LifecycleCommand, MigrationId, MigrationTuning, Millis, NodeId, PlanId, Problem, TaskId,
    UnixMillis, VmId,
};
use godwit_shared::wire::uplink::{LogKind, NodeHello, NodeMessage};
use serde::{Deserialize, Serialize};

use crate::effect::Timer;
use crate::record::{Resolution, SecretDigest};

/// One session of a node: the daemon numbers them, each number is used once
/// for as long as this coordinator runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// Who waits for an [`crate::effect::Effect::Answer`]: numbered by the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ticket(pub u64);

/// What the two nodes of each move had against it, by VM, as they were asked
/// before a plan.
pub type Survey = BTreeMap<VmId, Surveyed>;

/// What was found out of one move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surveyed {
    /// The node that it was to go to.
    pub target: NodeId,
    /// What stands against it, or why its nodes could not say.
    pub found: Result<Vec<Problem>, Problem>,
}

/// Something that happened. Fresh ids come with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "inputs live for one step")]
pub enum Input {
    /// An operator wants a join token.
    CreateToken {
        /// A fresh public id.
        id: String,
        /// What its fresh secret hashes to.
        digest: SecretDigest,
        /// How long it shall be good for; an hour when absent, at most a week.
        valid: Option<Millis>,
    },
    /// A host wants to join. Check its CSR before: this uses the token up.
    Join {
        /// The token's id.
        token: String,
        /// What the offered secret hashes to.
        digest: SecretDigest,
        /// The name that the node wants.
        node: NodeId,
        /// Where peers will reach it: `host:port`.
        address: String,
    },
    /// A node connected and sent its hello. A refusal goes to the node as
    /// `Refused`, and the connection is closed.
    SessionOpened {
        /// Its name, from its certificate.
        node: NodeId,
        /// Its incarnation, from its certificate.
        incarnation: u32,
        /// The new session.
        session: SessionId,
        /// The hello.
        hello: NodeHello,
    },
    /// A node said something. Words of a session that is no longer the node's
    /// are ignored.
    Message {
        /// The node.
        node: NodeId,
        /// The session.
        session: SessionId,
        /// What it said; not a hello, and not a certificate's renewal, which
        /// is the daemon's own matter.
        message: NodeMessage,
    },
    /// A request got no reply in time; whether it was carried out is unknown.
    Unanswered {
        /// The request.
        request: u64,
    },
    /// A session ended.
    SessionClosed {
        /// The node.
        node: NodeId,
        /// The session.
        session: SessionId,
        /// Why, for operators.
        reason: String,
    },
    /// No new VMs on that node, or new ones again.
    Cordon {
        /// The node.
        node: NodeId,
        /// Cordon it, or take the cordon away.
        cordoned: bool,
    },
    /// Change the labels and taints that operators gave to a node.
    Mark {
        /// The node.
        node: NodeId,
        /// The changes.
        request: MarkRequest,
    },
    /// Count on a node to run nothing, of which nothing was heard since the
    /// store was restored.
    NodeAbsent {
        /// The node.
        node: NodeId,
    },
    /// Empty a node.
    Drain {
        /// The node.
        node: NodeId,
        /// A fresh id for the plan.
        plan: PlanId,
        /// What was asked for.
        request: DrainRequest,
        /// What the nodes said of the moves that it would take.
        survey: Survey,
    },
    /// Bring the VMs of a node's drain back.
    Return {
        /// The node.
        node: NodeId,
        /// A fresh id for the plan.
        plan: PlanId,
        /// What was asked for.
        request: DrainRequest,
    },
    /// Even the load out.
    Rebalance {
        /// A fresh id for the plan.
        plan: PlanId,
        /// What was asked for.
        request: RebalanceRequest,
    },
    /// Call a plan off.
    AbortPlan {
        /// The plan.
        plan: PlanId,
        /// How.
        request: AbortRequest,
    },
    /// Take a node out of the cluster for good.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// Define a VM.
    CreateVm {
        /// A fresh id for it.
        vm: VmId,
        /// A fresh id for the task.
        task: TaskId,
        /// What was asked for, its spec checked.
        request: CreateVm,
    },
    /// A lifecycle command, `Delete` included.
    Command {
        /// The VM.
        vm: VmId,
        /// A fresh id for the task.
        task: TaskId,
        /// What to do.
        command: LifecycleCommand,
        /// Its options.
        options: CommandOptions,
    },
    /// Move a VM.
    Migrate {
        /// The VM.
        vm: VmId,
        /// A fresh id for the migration.
        migration: MigrationId,
        /// A fresh id for the task.
        task: TaskId,
        /// Who waits for the answer of a dry run.
        ticket: Ticket,
        /// What was asked for.
        request: MigrateRequest,
    },
    /// Call a migration off.
    CancelMigration {
        /// The migration.
        migration: MigrationId,
    },
    /// Change a migration while it runs.
    TuneMigration {
        /// The migration.
        migration: MigrationId,
        /// Who waits for the source's word.
        ticket: Ticket,
        /// What to change.
        tuning: MigrationTuning,
    },
    /// End a source's doubt about its grant.
    ResolveMigration {
        /// The migration.
        migration: MigrationId,
        /// Who waits for the source's word.
        ticket: Ticket,
        /// The decision, and whose it is.
        resolution: Resolution,
    },
    /// Somebody began or ceased to watch a migration's progress. The daemon
    /// counts the watchers.
    WatchMigration {
        /// The migration.
        migration: MigrationId,
        /// Whether anybody watches.
        watch: bool,
    },
    /// Call a task off.
    CancelTask {
        /// The task.
        task: TaskId,
    },
    /// Read the end of a log of a VM.
    ReadLog {
        /// Who waits for it.
        ticket: Ticket,
        /// The VM.
        vm: VmId,
        /// Which log.
        kind: LogKind,
        /// At most so many lines.
        lines: u32,
    },
    /// A node's fence agent has ended.
    FenceEnded {
        /// The node.
        node: NodeId,
        /// Nothing when the node is known to be off.
        outcome: Result<(), Problem>,
    },
    /// A timer fired.
    Timer(Timer),
}

/// What a step has to say to whoever caused it, once its effects are durable.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(clippy::large_enum_variant, reason = "outputs live for one step")]
pub enum Output {
    /// It was done, and there is nothing to say.
    Done,
    /// The token was made.
    Token {
        /// When it ceases to be good.
        expires: UnixMillis,
    },
    /// The node is a member: sign its certificate for this incarnation.
    Joined {
        /// Which joining of that name.
        incarnation: u32,
    },
    /// The node after the change.
    Node(NodeView),
    /// The task that does it.
    Task(TaskView),
    /// The migration after the change.
    Migration(MigrationView),
    /// The plan: proposed, begun, or after a change.
    Plan(PlanView),
    /// The answer comes as [`crate::effect::Effect::Answer`].
    Waiting,
}
