//! The two halves of the state: records, and what is observed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use godwit_shared::api::{Event, NodeHealth};
use godwit_shared::model::{
    BootMillis, DomainReport, DomainState, LifecycleCommand, MigrationId, MigrationProgress,
    NodeId, PlanId, Problem, TaskId, UnixMillis, VmId, VmName,
};
use godwit_shared::wire::uplink::VerdictQuery;
use serde::{Deserialize, Serialize};

use super::Cluster;
use super::lease::Leases;
use super::ledger::Ledger;
use super::live::Live;
use super::roster::Roster;
use crate::input::{SessionId, Ticket};
use crate::record::{
    LeaseRecord, MigrationRecord, NodeRecord, PlanRecord, TaskRecord, TokenRecord, VmRecord,
};

/// What outlives the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Records {
    pub(super) nodes: BTreeMap<NodeId, NodeRecord>,
    pub(super) tokens: BTreeMap<String, TokenRecord>,
    pub(super) vms: BTreeMap<VmId, VmRecord>,
    pub(super) migrations: BTreeMap<MigrationId, MigrationRecord>,
    pub(super) tasks: BTreeMap<TaskId, TaskRecord>,
    pub(super) plans: BTreeMap<PlanId, PlanRecord>,
    pub(super) leases: BTreeMap<NodeId, LeaseRecord>,
    /// Without a gap; the oldest first.
    pub(super) events: VecDeque<Event>,
}

/// What lives in memory: the nodes' words, work under way, and indexes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Observed {
    /// Every node that is not revoked.
    pub(super) nodes: BTreeMap<NodeId, NodeState>,
    /// Which nodes report a domain of the VM, the owner or not.
    pub(super) copies: BTreeMap<VmId, BTreeSet<NodeId>>,
    /// VMs that two nodes execute, as was told in an event.
    pub(super) doubled: BTreeSet<VmId>,
    /// VMs by name.
    pub(super) names: BTreeMap<VmName, VmId>,
    /// The unfinished task of a VM.
    pub(super) busy: BTreeMap<VmId, TaskId>,
    /// The unfinished migration of a VM.
    pub(super) moving: BTreeMap<VmId, MigrationId>,
    /// What is known of each unfinished task beside its record.
    pub(super) work: BTreeMap<TaskId, Work>,
    /// What is known of each unfinished migration beside its record.
    pub(super) moves: BTreeMap<MigrationId, Move>,
    /// Migrations that wait for a place, and why; the reason is empty until it
    /// was looked for.
    pub(super) waiting: BTreeMap<MigrationId, String>,
    /// What the nodes know of the members.
    pub(super) roster: Roster,
    /// What the VMs take on which nodes.
    #[serde(skip)]
    pub(super) ledger: Ledger,
    /// The nodes, in an order that finds the best one for a VM soon.
    #[serde(skip)]
    pub(super) live: Live,
    /// Plans that have not ended.
    pub(super) plans: BTreeSet<PlanId>,
    /// When they are looked at again, if they are.
    pub(super) plans_at: Option<UnixMillis>,
    /// When the last step was.
    pub(super) now: UnixMillis,
    /// How long the nodes' leases last, and who waits to be started again.
    pub(super) leases: Leases,
    /// Requests without a reply.
    pub(super) requests: BTreeMap<u64, Pending>,
    /// The number of the last request.
    pub(super) last_request: u64,
    /// Ended tasks, the first to be forgotten in front.
    pub(super) ended_tasks: VecDeque<TaskId>,
    /// Ended migrations, likewise.
    pub(super) ended_migrations: VecDeque<MigrationId>,
}

/// One node as it is seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct NodeState {
    /// Its session; none while it is away.
    pub(super) session: Option<SessionId>,
    pub(super) health: NodeHealth,
    pub(super) since: UnixMillis,
    pub(super) reason: Option<String>,
    /// Its domains by its last word.
    pub(super) domains: BTreeMap<VmId, DomainReport>,
    /// What it was told in this session to end or to delete, and has not done.
    #[serde(with = "super::frozen::pairs")]
    pub(super) cleared: HashMap<(VmId, LifecycleCommand), Clearing>,
    /// Its domains without a record that this session's events have told of.
    pub(super) strays: BTreeSet<VmId>,
}

/// A leftover that a node was told to end or to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Clearing {
    /// How often it was told.
    pub(super) told: u32,
    /// When it may be told again; not at all while none.
    pub(super) again: Option<UnixMillis>,
}

/// An unfinished task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Work {
    pub(super) message: String,
    /// The request whose reply is awaited.
    pub(super) request: Option<u64>,
    /// The last step that the node has done, and in which session.
    pub(super) told: Option<(SessionId, Asked)>,
    /// Its command went out once, or may have before a restart.
    pub(super) sent: bool,
    /// What is waited for that may never come, and until when.
    pub(super) patience: Option<(Patience, UnixMillis)>,
}

/// What a task waits for with a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Patience {
    /// The return of a node.
    Absence,
    /// A QEMU that is starting.
    Start,
    /// A guest that was asked to power off.
    Shutdown,
}

/// An unfinished migration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Move {
    /// The last sample.
    pub(super) progress: MigrationProgress,
    /// What the source knows of it.
    pub(super) source: Knowledge,
    /// To be cancelled as soon as the source has accepted it.
    pub(super) cancel: bool,
    /// Somebody watches its progress.
    pub(super) watched: bool,
}

/// What the source of an unfinished migration knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum Knowledge {
    /// It accepted the migration, or reported it, or is away.
    #[default]
    Known,
    /// The request that asks for it is without a reply.
    Asked,
    /// Its last hello did not tell of it, or it never answered.
    Lost,
}

/// A request without a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) node: NodeId,
    pub(super) session: SessionId,
    pub(super) purpose: Purpose,
}

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// A step of a task.
    Task(TaskId, Asked),
    /// To begin a migration.
    Migrate(MigrationId),
    /// To call a migration off.
    Cancel(MigrationId),
    /// To find what stands against a migration.
    DryRun {
        ticket: Ticket,
        target: NodeId,
        /// What placement found.
        found: Vec<Problem>,
    },
    /// To change a migration, or to end its source's doubt.
    Steer {
        ticket: Ticket,
        migration: MigrationId,
        /// It ends the source's doubt.
        resolves: bool,
    },
    /// To read a log.
    Log(Ticket),
    /// To relay a verdict to the node that asks.
    Verdict { asker: NodeId, query: VerdictQuery },
    /// To end or delete what is left of a VM where it does not belong.
    Clear { vm: VmId, command: LifecycleCommand },
    /// A member of a lost node's circle shall vouch for it no more; asked then.
    Withhold { of: NodeId, at: BootMillis },
    /// What became of a grant of a VM whose source was lost.
    Heir(MigrationId),
    /// The reply makes no difference.
    Nothing,
}

/// Which step of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Asked {
    /// The former owner shall forget the domain.
    Release,
    /// The node shall know the domain.
    Define,
    /// The node shall start it.
    Start,
    /// The node shall carry the task's command out.
    Command,
    /// The owner shall forget the domain, for good.
    Remove,
}

impl NodeState {
    pub(super) fn new(health: NodeHealth, since: UnixMillis) -> Self {
        Self {
            session: None,
            health,
            since,
            reason: None,
            domains: BTreeMap::new(),
            cleared: HashMap::new(),
            strays: BTreeSet::new(),
        }
    }
}

/// Look-ups that every part needs.
impl Cluster {
    pub(super) fn vm_record(&self, vm: VmId) -> Result<&VmRecord, Problem> {
        self.records
            .vms
            .get(&vm)
            .ok_or_else(|| Problem::not_found("VM", vm))
    }

    /// A member; one that was removed is none.
    pub(super) fn member(&self, node: &NodeId) -> Result<&NodeRecord, Problem> {
        self.records
            .nodes
            .get(node)
            .filter(|record| !record.revoked)
            .ok_or_else(|| Problem::not_found("node", node))
    }

    /// The session of a node that is connected.
    pub(super) fn session(&self, node: &NodeId) -> Option<SessionId> {
        self.observed.nodes.get(node)?.session
    }

    pub(super) fn is_up(&self, node: &NodeId) -> bool {
        self.session(node).is_some()
    }

    /// The node's last word on a VM.
    pub(super) fn report(&self, node: &NodeId, vm: VmId) -> Option<&DomainReport> {
        self.observed.nodes.get(node)?.domains.get(&vm)
    }

    /// The last word of the VM's owner.
    pub(super) fn owner_report(&self, vm: VmId) -> Option<&DomainReport> {
        let owner = self.records.vms.get(&vm)?.owner.as_ref()?;
        self.report(owner, vm)
    }

    /// The owner's word, when the owner is connected and reports the domain as
    /// its own, with a guest that ran there.
    pub(super) fn owner_has_it(&self, vm: VmId) -> Option<&DomainReport> {
        let owner = self.records.vms.get(&vm)?.owner.as_ref();
        let report = self.report(owner.filter(|owner| self.is_up(owner))?, vm)?;
        (report.owner && report.state != DomainState::Incoming).then_some(report)
    }

    /// The same, at the record's epoch or a later one.
    pub(super) fn confirmed(&self, vm: VmId) -> Option<&DomainReport> {
        let epoch = self.records.vms.get(&vm)?.epoch;
        self.owner_has_it(vm).filter(|report| report.epoch >= epoch)
    }

    /// Nodes that report a domain of the VM.
    pub(super) fn copies(&self, vm: VmId) -> impl Iterator<Item = (&NodeId, &DomainReport)> {
        let nodes = self.observed.copies.get(&vm).into_iter().flatten();
        nodes.filter_map(move |node| Some((node, self.report(node, vm)?)))
    }
}
