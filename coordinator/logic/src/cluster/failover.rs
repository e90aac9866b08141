//! Protected VMs that lost their nodes are started again.
//!
//! A VM is *to be rescued* (`VmRecord::rescue`) from when its node is fenced, or
//! says itself that it stopped the VM with its lease or was booted anew, until it
//! runs again. It waits for its delay, for a turn (the highest priority first, so
//! many at once), for the word of the heir of a migration that its source did not
//! see the end of, and for a node where it fits. The rest is a task like any
//! start ([`super::task`]): owner and epoch are persisted before the new node
//! hears of it.
//!
//! # Invariants
//! * Only a VM whose owner is fenced, or is connected and has no process of it, is
//!   started again.
//! * The epoch grows by [`LEAP`]: more than a migration and its return can have
//!   added where nobody saw it, so no copy that was left behind is ever ahead.

use godwit_shared::api::Decision;
use godwit_shared::model::{
    BootMillis, DomainReport, DomainState, Epoch, ExitReason, MigrationFailure, MigrationId,
    MigrationPhase, Millis, NodeId, Problem, RunState, TaskId, UnixMillis, VmId, codes,
};
use godwit_shared::wire::uplink::{NodeReply, NodeRequest, Verdict, VerdictQuery};

use serde::{Deserialize, Serialize};

use super::Cluster;
use super::live::Live;
use super::state::Purpose;
use super::task::End;
use super::turn::{About, Turn};
use crate::effect::{Effect, Timer};
use crate::record::{Key, Rescue, Seen, TaskKind, VmRecord};

/// By how much a fail-over raises the epoch.
pub(super) const LEAP: u64 = 16;
/// How soon what stands in the way is looked at again.
const AGAIN: Millis = Millis(2_000);
/// How soon a start that failed is tried again: twice as long each time.
const BACKOFF: Millis = Millis(4_000);
/// At most six doublings: some four minutes.
const DOUBLINGS: u32 = 6;

/// A VM that is to be started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waiting {
    /// When it may be tried.
    due: BootMillis,
    attempts: u32,
    /// What it waits for, as last told.
    pub(super) message: String,
}

impl Cluster {
    /// VMs on the node that its loss would concern, by the ledger: settle it first.
    pub(super) fn protected_on(&self, node: &NodeId) -> impl Iterator<Item = &VmRecord> {
        let owned = self.observed.ledger.owned(node);
        let vms = owned.filter_map(|vm| self.records.vms.get(&vm));
        vms.filter(|vm| vm.spec.protected() && vm.desired == RunState::Running)
    }

    /// Whether that node is known not to run that VM, though it cannot say so.
    pub(super) fn lost_there(&self, vm: VmId, node: &NodeId) -> bool {
        let record = self.records.vms.get(&vm);
        record.is_some_and(|record| record.spec.protected()) && self.is_fenced(node)
    }

    /// After a restart of the coordinator: those that were to be rescued still are.
    pub(super) fn begin_failover(&mut self) {
        let now = self.observed.leases.now;
        for record in self.records.vms.values() {
            if record.rescue.is_some() {
                let due = now.after(record.spec.restart_delay);
                let waiting = Waiting::new(due);
                self.observed.leases.waiting.insert(record.id, waiting);
            }
        }
    }

    /// The node was fenced: what ran there does not any more.
    pub(super) fn lose_protected(&mut self, turn: &mut Turn, node: &NodeId) {
        let lost: Vec<VmId> = self.protected_on(node).map(|vm| vm.id).collect();
        for vm in lost {
            self.forget_copy(vm, node);
            if let Some(task) = self.observed.busy.get(&vm).copied() {
                let problem = Problem::new(codes::LEASE_LOST, format!("{node} was lost"))
                    .remedy("the VM is started again by itself");
                self.end_task(turn, task, End::Failed(problem));
            }
            if let Some(record) = self.records.vms.get_mut(&vm) {
                record.seen = Some(Seen {
                    state: DomainState::Stopped,
                    since: turn.now,
                });
            }
            self.rescue(turn, vm, node);
        }
    }

    /// The right came to a node that was fenced meanwhile, or the VM's owner says
    /// what it has: a protected one that it lost with its lease or with its host is
    /// to be started again.
    pub(super) fn look_for_loss(&mut self, turn: &mut Turn, vm: VmId) {
        let Some(record) = self.records.vms.get(&vm) else {
            return;
        };
        let wanted = record.spec.protected() && record.desired == RunState::Running;
        let former = record.owner.clone().filter(|_| wanted);
        if let Some(owner) = former.filter(|owner| self.lost_there(vm, owner))
            && record.rescue.is_none()
        {
            return self.rescue(turn, vm, &owner);
        }
        let lost = |report: &DomainReport| {
            report.state == DomainState::Stopped
                && report.epoch >= record.epoch
                && matches!(
                    report.exit,
                    Some(ExitReason::LeaseLost | ExitReason::HostReboot)
                )
        };
        let owner = record.owner.clone().filter(|owner| self.is_up(owner));
        let Some(owner) = owner.filter(|_| wanted && record.rescue.is_none()) else {
            return;
        };
        if self.report(&owner, vm).is_some_and(lost) {
            self.rescue(turn, vm, &owner);
        }
    }

    fn rescue(&mut self, turn: &mut Turn, vm: VmId, from: &NodeId) {
        let Some(record) = self.records.vms.get_mut(&vm) else {
            return;
        };
        record.rescue = Some(Rescue {
            from: from.clone(),
            since: turn.now,
        });
        let (about, name) = (About::vm(&record.name, Some(from)), record.name.clone());
        let due = self.observed.leases.now.after(record.spec.restart_delay);
        turn.touch(Key::Vm(vm));
        let waiting = Waiting::new(due);
        self.observed.leases.waiting.insert(vm, waiting);
        let message = format!("{name} was lost with {from}; it is started again");
        self.note(turn, "vm.lost", about, message);
    }

    /// Takes every step of a fail-over that can be taken now.
    pub(super) fn advance_failover(&mut self, turn: &mut Turn) {
        if self.observed.leases.waiting.is_empty() {
            return;
        }
        let now = self.observed.leases.now;
        for vm in self.rescue_order() {
            if self.rescued(turn, vm) || self.observed.busy.contains_key(&vm) {
                continue;
            }
            let waiting = self.observed.leases.waiting.get(&vm);
            if waiting.is_none_or(|waiting| now < waiting.due) {
                continue;
            }
            if self.restarts() >= self.settings.limits.protection.restarts {
                self.put_off(turn, vm, AGAIN, "waits for others to be started");
                continue;
            }
            self.restart(turn, vm);
        }
        self.arm_failover(turn);
    }

    /// The most urgent first.
    fn rescue_order(&self) -> Vec<VmId> {
        let ids = self.observed.leases.waiting.keys();
        let mut order: Vec<&VmRecord> = ids.filter_map(|vm| self.records.vms.get(vm)).collect();
        order.sort_by_key(|vm| (std::cmp::Reverse(vm.spec.priority), vm.created, vm.id));
        order.into_iter().map(|vm| vm.id).collect()
    }

    fn restarts(&self) -> u32 {
        let tasks = self.observed.work.keys();
        let kinds = tasks.filter_map(|id| self.records.tasks.get(id));
        let count = kinds.filter(|task| task.kind == TaskKind::Failover).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Whether nothing is left to do: it runs, or is not wanted to.
    fn rescued(&mut self, turn: &mut Turn, vm: VmId) -> bool {
        let record = self.records.vms.get(&vm);
        let Some(record) = record.filter(|record| record.rescue.is_some()) else {
            self.observed.leases.waiting.remove(&vm);
            return true;
        };
        let owner = record.owner.clone().filter(|owner| self.is_up(owner));
        let report = owner.as_ref().and_then(|owner| self.report(owner, vm));
        let runs = report.is_some_and(|report| report.state.executes());
        let unwanted = record.desired == RunState::Stopped;
        if !runs && !unwanted {
            return false;
        }
        let (about, name) = (About::vm(&record.name, owner.as_ref()), record.name.clone());
        self.observed.leases.waiting.remove(&vm);
        if let Some(record) = self.records.vms.get_mut(&vm) {
            record.rescue = None;
            turn.touch(Key::Vm(vm));
        }
        if let Some(node) = owner.filter(|_| runs) {
            let message = format!("{name} runs again, on {node}");
            self.note(turn, "vm.restarted", about, message);
        }
        true
    }

    fn restart(&mut self, turn: &mut Turn, vm: VmId) {
        if let Some(why) = self.hindrance(turn, vm) {
            return self.put_off(turn, vm, AGAIN, &why);
        }
        // Others were given places in this very step.
        self.settle_ledger(turn);
        let now = turn.now;
        match self.with_live(|cluster, live| cluster.refuge(live, vm, now)) {
            Err(problem) => self.put_off(turn, vm, AGAIN, &problem.message),
            Ok(decision) => {
                let node = decision.node.clone();
                self.remember(turn, vm, Some(decision));
                let attempts = self.observed.leases.waiting.get_mut(&vm).map(|waiting| {
                    waiting.attempts += 1;
                    waiting.attempts
                });
                let doubled = 1_u64 << attempts.unwrap_or(1).saturating_sub(1).min(DOUBLINGS);
                let message = format!("is started on {node}");
                self.put_off(turn, vm, Millis(BACKOFF.0 * doubled), &message);
                let epoch = self.records.vms.get(&vm).map_or(0, |record| record.epoch.0);
                let task = fresh_task(vm, epoch, attempts.unwrap_or(1));
                self.begin_task(turn, task, TaskKind::Failover, vm, Some(node));
                self.settle(turn, vm);
            }
        }
    }

    /// What has to come to pass before it may be started at all.
    fn hindrance(&mut self, turn: &mut Turn, vm: VmId) -> Option<String> {
        if let Some(node) = self.unheard().next() {
            return Some(format!(
                "waits for {node}, of which nothing was heard since the store was restored"
            ));
        }
        if let Some(migration) = self.migration_of(vm) {
            return self.heir(turn, migration);
        }
        let owner = self.records.vms.get(&vm)?.owner.clone()?;
        if self.is_fenced(&owner) {
            return None;
        }
        if !self.is_up(&owner) {
            return Some(format!("waits for the end of {owner}'s lease"));
        }
        let process = self.report(&owner, vm).filter(|r| r.state.has_process());
        process.map(|report| format!("is {} on {owner}", report.state))
    }

    /// The VM was on the move when its source was lost: its target says whether
    /// it was granted the right, and takes no grant any more when it was not.
    fn heir(&mut self, turn: &mut Turn, id: MigrationId) -> Option<String> {
        let record = self.records.migrations.get(&id)?;
        let (source, target) = (record.source.clone(), record.target.clone());
        if record.waiting {
            self.finish_migration(turn, id, MigrationPhase::Cancelled, None);
            return None;
        }
        if !self.is_fenced(&source) {
            return Some(format!("waits for its migration from {source}"));
        }
        if self.is_fenced(&target) {
            self.end_of_move(turn, id);
            return None;
        }
        let query = VerdictQuery {
            migration: id,
            vm: record.vm,
            target: target.clone(),
            epoch: record.epoch.next(),
        };
        let purpose = Purpose::Heir(id);
        let asked = |pending: &super::state::Pending| pending.purpose == purpose;
        if !self.observed.requests.values().any(asked) {
            let deadline = self.settings.limits.request;
            let body = NodeRequest::Verdict(query);
            self.ask(turn, &target, Purpose::Heir(id), body, deadline);
        }
        Some(format!(
            "waits for the word of {target}, where it was to go"
        ))
    }

    pub(super) fn on_heir_reply(
        &mut self,
        turn: &mut Turn,
        id: MigrationId,
        reply: Option<&NodeReply>,
    ) {
        // A grant that was taken shows in the target's reports.
        if let Some(NodeReply::Verdict(Verdict::Refused)) = reply {
            let vm = self.records.migrations.get(&id).map(|record| record.vm);
            self.end_of_move(turn, id);
            if let Some(waiting) = vm.and_then(|vm| self.observed.leases.waiting.get_mut(&vm)) {
                waiting.due = self.observed.leases.now;
            }
        }
    }

    fn end_of_move(&mut self, turn: &mut Turn, id: MigrationId) {
        let Some(record) = self.records.migrations.get(&id) else {
            return;
        };
        let message = format!("{} was lost before it was over", record.source);
        let failure = MigrationFailure {
            phase: record.phase,
            problem: Problem::new(codes::MIGRATION_FAILED, message)
                .remedy("the VM is started again by itself"),
            recovered_in: None,
        };
        self.finish_migration(turn, id, MigrationPhase::Failed, Some(failure));
    }

    /// Where it is to be started again: where it was, if it fits there and the
    /// node holds a lease.
    fn refuge(&self, live: &mut Live, vm: VmId, now: UnixMillis) -> Result<Decision, Problem> {
        let record = self.vm_record(vm)?;
        let bound = record.spec.disks.iter().any(|disk| !disk.shared);
        let owner = record.owner.as_ref().filter(|_| !bound);
        match owner.filter(|owner| !self.holds_lease(owner)) {
            Some(owner) => self.choose_beside(live, record, owner, now),
            None => self.choose(live, record, None, now),
        }
    }

    fn put_off(&mut self, turn: &mut Turn, vm: VmId, wait: Millis, message: &str) {
        let due = self.observed.leases.now.after(wait);
        let Some(waiting) = self.observed.leases.waiting.get_mut(&vm) else {
            return;
        };
        waiting.due = due;
        if waiting.message == message {
            return;
        }
        message.clone_into(&mut waiting.message);
        if let Some(record) = self.records.vms.get(&vm) {
            let about = About::vm(&record.name, None);
            let message = format!("{} {message}", record.name);
            self.note(turn, "vm.failover", about, message);
        }
    }

    fn arm_failover(&mut self, turn: &mut Turn) {
        let leases = &mut self.observed.leases;
        let next = leases.waiting.values().map(|waiting| waiting.due).min();
        let next = next.map(|next| next.max(leases.now.after(Millis(1))));
        if let Some(at) = next.filter(|_| next != leases.failover_armed) {
            turn.act(Effect::Arm {
                timer: Timer::Failover,
                at: turn.now.after(leases.now.until(at)),
            });
        }
        leases.failover_armed = next;
    }
}

impl Waiting {
    fn new(due: BootMillis) -> Self {
        Self {
            due,
            attempts: 0,
            message: String::new(),
        }
    }
}

/// An id of a task that no other has: of this VM, this epoch, this attempt.
fn fresh_task(vm: VmId, epoch: u64, attempt: u32) -> TaskId {
    let mark = (u128::from(epoch) << 32) | u128::from(attempt);
    TaskId::from_u128(vm.as_u128() ^ (mark << 16) ^ 0xF0)
}

/// The epoch of a start.
pub(super) fn epoch_of(kind: TaskKind, before: Epoch) -> Epoch {
    match kind {
        TaskKind::Failover => Epoch(before.0.saturating_add(LEAP)),
        _ => before.next(),
    }
}
