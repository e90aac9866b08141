//! What outlives the coordinator: the desired state, one record for each key.
//!
//! Records are JSON, so that a later release adds fields without a migration
//! of the store. What nodes report is not here, with one exception:
//! [`VmRecord::seen`] is kept for display while the node is away, and nothing
//! is ever decided on it.

use std::fmt;
use std::str::FromStr;

use godwit_shared::api::{Decision, Event, Marks, PlanView, TaskState};
pub use godwit_shared::api::{FencedBy, Resolution};
use godwit_shared::model::{
    DomainState, Epoch, LifecycleCommand, MigrationFailure, MigrationFigures, MigrationId,
    MigrationPhase, MigrationPolicy, MigrationProgress, Millis, NodeFacts, NodeId, PlanId, Problem,
    RunState, TaskId, UnixMillis, VmId, VmName, VmSpec,
};
use godwit_shared::wire::lease::Circle;
use serde::ser::{self, SerializeMap};
use serde::{Deserialize, Serialize, Serializer};

/// A member of the cluster, or one that was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeId,
    /// Which joining of that name: part of its certificate's name.
    pub incarnation: u32,
    /// Where its daemon listens: `host:port`.
    pub address: String,
    /// No new VMs are placed on it.
    pub cordoned: bool,
    /// It was removed; kept so that its certificate stays refused and the next
    /// joining of the name gets a higher incarnation.
    pub revoked: bool,
    /// When it joined.
    pub joined: UnixMillis,
    /// What it said of itself when it last connected; none before that.
    /// Labels and taints are those that hold: its own, and its operators' over them.
    pub facts: Option<NodeFacts>,
    /// Labels and taints that its operators gave it.
    #[serde(default)]
    pub marks: Marks,
    /// Labels and taints that it told itself.
    #[serde(default)]
    pub told: Marks,
    /// The store was restored, and the node has not said since what it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unheard: bool,
}

/// SHA-256 of a join token's secret.
#[derive(Debug, Clone, Copy, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretDigest(pub [u8; 32]);

impl PartialEq for SecretDigest {
    /// Looks at every byte, so that the time taken says nothing about where
    /// two digests differ.
    fn eq(&self, other: &Self) -> bool {
        let differing = self
            .0
            .iter()
            .zip(other.0)
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(differing) == 0
    }
}

/// A one-time right to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its public part.
    pub id: String,
    /// What its secret hashes to.
    pub digest: SecretDigest,
    /// When it was made.
    pub created: UnixMillis,
    /// When it ceases to be good.
    pub expires: UnixMillis,
    /// Who joined with it.
    pub used_by: Option<NodeId>,
}

/// One VM as the operator wants it, and who holds the right to run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its id, never used again.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// Its spec.
    pub spec: VmSpec,
    /// What is wanted of it.
    pub desired: RunState,
    /// The node that holds the right to run it, and its files and logs; none
    /// before it was first placed.
    pub owner: Option<NodeId>,
    /// The highest epoch that was given out for it or that a node reported.
    pub epoch: Epoch,
    /// The versioned machine type that its first run chose.
    pub machine: Option<String>,
    /// When it was created.
    pub created: UnixMillis,
    /// Its deletion was asked for and its node's word is awaited.
    pub deleting: bool,
    /// The last state seen, for display while the owner is away.
    pub seen: Option<Seen>,
    /// The last decision about its place.
    #[serde(default)]
    pub decision: Option<Decision>,
    /// Its node was lost, and it is to be started again.
    #[serde(default)]
    pub rescue: Option<Rescue>,
}

/// A protected VM that lost its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescue {
    /// The node.
    pub from: NodeId,
    /// Since when it is known to have stopped there.
    pub since: UnixMillis,
}

/// A node's lease: what has to be known to count it after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The node.
    pub node: NodeId,
    /// The longest length that may be under way.
    pub length: Millis,
    /// Its margin.
    pub margin: Millis,
    /// Who may vouch for the node.
    pub circle: Circle,
    /// Who could before, until the node has said that it goes by the new one;
    /// without members when that is not known.
    pub former: Option<Circle>,
    /// It is known to run no protected VM.
    pub fenced: Option<Fenced>,
}

/// A node that is known to run no protected VM until it is granted a lease anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// Since when.
    pub at: UnixMillis,
    /// How it is known.
    pub by: FencedBy,
}

/// A state that was seen once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The state.
    pub state: DomainState,
    /// Since when.
    pub since: UnixMillis,
}

/// One attempt to move one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationRecord {
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
    /// The source's epoch when it was asked for.
    pub epoch: Epoch,
    /// How it shall go.
    pub policy: MigrationPolicy,
    /// The phase last reported.
    pub phase: MigrationPhase,
    /// Since when.
    pub since: UnixMillis,
    /// When it was asked for.
    pub created: UnixMillis,
    /// When it ended.
    pub ended: Option<UnixMillis>,
    /// The sample that came with the phase.
    pub progress: MigrationProgress,
    /// The guest's pause.
    pub blackout: Option<Millis>,
    /// What was foretold, and what was measured beside it.
    #[serde(default)]
    pub figures: MigrationFigures,
    /// Why it did not succeed; while it lasts, what its source raises an alarm about.
    pub failure: Option<MigrationFailure>,
    /// It waits for a place, and its source was not asked yet.
    #[serde(default)]
    pub waiting: bool,
    /// What it waits for, as last told.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// Placement chose the target, and may choose another as long as it waits.
    #[serde(default)]
    pub placed: bool,
    /// Why that target.
    #[serde(default)]
    pub decision: Option<Decision>,
    /// Its end was concluded without the word of its source, which may still come.
    #[serde(default)]
    pub assumed: bool,
    /// How an operator ended its source's doubt.
    #[serde(default)]
    pub resolution: Option<Resolution>,
    /// The task that waits for it.
    pub task: Option<TaskId>,
}

impl MigrationRecord {
    /// A move of `vm` that was asked for now, and of which nothing is known yet.
    pub fn queued(
        id: MigrationId,
        vm: &VmRecord,
        source: NodeId,
        target: NodeId,
        now: UnixMillis,
    ) -> Self {
        Self {
            id,
            vm: vm.id,
            name: vm.name.clone(),
            source,
            target,
            epoch: vm.epoch,
            policy: MigrationPolicy::default(),
            phase: MigrationPhase::Queued,
            since: now,
            created: now,
            ended: None,
            progress: MigrationProgress::default(),
            blackout: None,
            figures: MigrationFigures::default(),
            failure: None,
            waiting: false,
            waits_for: None,
            placed: false,
            decision: None,
            assumed: false,
            resolution: None,
            task: None,
        }
    }
}

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Defines a VM, and starts it if that was asked for.
    Create {
        /// Start it.
        start: bool,
    },
    /// Carries a lifecycle command out.
    Command(LifecycleCommand),
    /// Moves a VM.
    Migrate,
    /// Starts a VM again that lost its node.
    Failover,
}

impl TaskKind {
    /// The kind as operators see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create { .. } => "vm.create",
            Self::Migrate => "vm.migrate",
            Self::Failover => "vm.failover",
            Self::Command(command) => match command {
                LifecycleCommand::Start => "vm.start",
                LifecycleCommand::Shutdown => "vm.shutdown",
                LifecycleCommand::Reboot => "vm.reboot",
                LifecycleCommand::Reset => "vm.reset",
                LifecycleCommand::Stop => "vm.stop",
                LifecycleCommand::Pause => "vm.pause",
                LifecycleCommand::Resume => "vm.resume",
                LifecycleCommand::Delete => "vm.delete",
            },
        }
    }
}

/// One long action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Its id.
    pub id: TaskId,
    /// What it does.
    pub kind: TaskKind,
    /// How it stands.
    pub state: TaskState,
    /// The VM that it is about.
    pub vm: VmId,
    /// The VM's name.
    pub name: VmName,
    /// The node that it puts the VM on, or asks.
    pub node: Option<NodeId>,
    /// The migration that it drives.
    pub migration: Option<MigrationId>,
    /// For a start: the epoch of that run, once it was given out.
    pub epoch: Option<Epoch>,
    /// What came of it, once it has ended.
    pub message: String,
    /// Why it did not succeed.
    pub problem: Option<Problem>,
    /// When it was asked for.
    pub created: UnixMillis,
    /// When it ended.
    pub ended: Option<UnixMillis>,
}

/// A plan that was begun: what was planned, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRecord {
    /// The plan, as operators see it.
    pub view: PlanView,
    /// It is being called off, and moves that run are cancelled.
    #[serde(default)]
    pub cancel_running: bool,
}

/// Where a record is kept. The text form sorts events by their number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// [`NodeRecord`].
    Node(NodeId),
    /// [`TokenRecord`].
    Token(String),
    /// [`VmRecord`].
    Vm(VmId),
    /// [`MigrationRecord`].
    Migration(MigrationId),
    /// [`TaskRecord`].
    Task(TaskId),
    /// [`PlanRecord`].
    Plan(PlanId),
    /// [`Event`].
    Event(u64),
    /// [`LeaseRecord`].
    Lease(NodeId),
}

impl Key {
    /// What the text of every key begins with.
    pub const PREFIX: &'static str = "cluster/";
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::PREFIX)?;
        match self {
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Token(id) => write!(f, "token/{id}"),
            Self::Vm(id) => write!(f, "vm/{id}"),
            Self::Migration(id) => write!(f, "migration/{id}"),
            Self::Task(id) => write!(f, "task/{id}"),
            Self::Plan(id) => write!(f, "plan/{id}"),
            Self::Event(seq) => write!(f, "event/{seq:020}"),
            Self::Lease(node) => write!(f, "lease/{node}"),
        }
    }
}

/// A text that is not a key of this release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the key of a record that this release knows")]
pub struct UnknownKey(pub String);

impl FromStr for Key {
    type Err = UnknownKey;

    fn from_str(text: &str) -> Result<Self, UnknownKey> {
        let unknown = || UnknownKey(text.to_owned());
        let (kind, id) = text
            .strip_prefix(Self::PREFIX)
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(unknown)?;
        match kind {
            "node" => id.parse().ok().map(Self::Node),
            "token" => Some(Self::Token(id.to_owned())),
            "vm" => id.parse().ok().map(Self::Vm),
            "migration" => id.parse().ok().map(Self::Migration),
            "task" => id.parse().ok().map(Self::Task),
            "plan" => id.parse().ok().map(Self::Plan),
            "event" => id.parse().ok().map(Self::Event),
            "lease" => id.parse().ok().map(Self::Lease),
            _ => None,
        }
        .ok_or_else(unknown)
    }
}

/// One change of the store. All the writes of a step are one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Put the record.
    Put {
        /// Where.
        key: Key,
        /// The record, as JSON.
        value: Vec<u8>,
    },
    /// Take the record away.
    Delete {
        /// Where.
        key: Key,
    },
}

impl Write {
    /// The key that the write is about.
    pub const fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// As it is recorded: `{"put": KEY, "value": RECORD}` or `{"delete": KEY}`.
impl Serialize for Write {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        match self {
            Self::Put { key, value } => {
                let record: serde_json::Value =
                    serde_json::from_slice(value).map_err(ser::Error::custom)?;
                map.serialize_entry("put", &key.to_string())?;
                map.serialize_entry("value", &record)?;
            }
            Self::Delete { key } => map.serialize_entry("delete", &key.to_string())?,
        }
        map.end()
    }
}

/// A record of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "lives for one read at start")]
pub(crate) enum Record {
    Node(NodeRecord),
    Token(TokenRecord),
    Vm(VmRecord),
    Migration(MigrationRecord),
    Task(TaskRecord),
    Plan(PlanRecord),
    Event(Event),
    Lease(LeaseRecord),
}

impl Record {
    pub(crate) fn read(key: &Key, value: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(match key {
            Key::Node(_) => Self::Node(serde_json::from_slice(value)?),
            Key::Token(_) => Self::Token(serde_json::from_slice(value)?),
            Key::Vm(_) => Self::Vm(serde_json::from_slice(value)?),
            Key::Migration(_) => Self::Migration(serde_json::from_slice(value)?),
            Key::Task(_) => Self::Task(serde_json::from_slice(value)?),
            Key::Plan(_) => Self::Plan(serde_json::from_slice(value)?),
            Key::Event(_) => Self::Event(serde_json::from_slice(value)?),
            Key::Lease(_) => Self::Lease(serde_json::from_slice(value)?),
        })
    }
}
