//! What nodes say of their domains, and what follows for owner, epoch and
//! desired state. The rules are in [the module's page](super).

use godwit_shared::model::{
    DomainReport, DomainState, Epoch, ExitReason, MigrationId, NodeId, RunState, VmId,
};

use super::Cluster;
use super::turn::{About, Turn};
use crate::record::{Key, Seen};

impl Cluster {
    pub(super) fn on_domain(&mut self, turn: &mut Turn, node: &NodeId, report: DomainReport) {
        let vm = report.vm;
        if report.state.has_process() {
            self.note_stray(turn, node, &report);
        }
        self.keep_report(node, report);
        self.take_reports_of(turn, vm);
        self.settle(turn, vm);
    }

    pub(super) fn on_domain_gone(&mut self, turn: &mut Turn, node: &NodeId, vm: VmId) {
        self.forget_copy(vm, node);
        self.settle(turn, vm);
    }

    /// Keeps a report that came with a reply, unless the node has said
    /// something newer since: the two take different ways through the node.
    pub(super) fn on_replied_report(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        report: DomainReport,
    ) {
        let known = self.report(node, report.vm);
        let newer = known.is_some_and(|known| {
            known.epoch > report.epoch
                || (known.epoch == report.epoch && known.since > report.since)
        });
        if !newer {
            let vm = report.vm;
            self.keep_report(node, report);
            self.take_reports_of(turn, vm);
        }
    }

    fn keep_report(&mut self, node: &NodeId, report: DomainReport) {
        let Some(state) = self.observed.nodes.get_mut(node) else {
            return;
        };
        let copies = self.observed.copies.entry(report.vm).or_default();
        copies.insert(node.clone());
        self.observed.ledger.doubt(report.vm);
        state.domains.insert(report.vm, report);
    }

    /// Draws from the reports what concerns the record: owner, epoch, machine,
    /// and the last state seen.
    pub(super) fn take_reports_of(&mut self, turn: &mut Turn, vm: VmId) {
        self.believe_highest(turn, vm);
        self.remember_state(turn, vm);
    }

    /// Rule 3: a node that owns the domain at a higher epoch, and has run its
    /// guest there, is believed: a target that has taken the right and not run
    /// the guest yet may still hand it back. At
    /// the record's own epoch it is believed where the record names nobody, or
    /// somebody who is there and says nothing of the kind.
    fn believe_highest(&mut self, turn: &mut Turn, vm: VmId) {
        let Some(record) = self.records.vms.get(&vm) else {
            return;
        };
        let highest = self
            .copies(vm)
            .filter(|(_, report)| guest_ran(report))
            .max_by_key(|(_, report)| report.epoch)
            .map(|(node, report)| (node.clone(), report.epoch));
        let Some((node, epoch)) = highest else { return };
        let denied = || {
            let denies = |owner| self.is_up(owner) && self.confirmed(vm).is_none();
            record.owner.as_ref().is_none_or(denies)
        };
        if epoch > record.epoch || (epoch == record.epoch && denied()) {
            self.pass_on(turn, vm, &node, epoch);
        }
    }

    /// The right to run is that node's at that epoch, or at the record's where
    /// that is higher.
    pub(super) fn pass_on(&mut self, turn: &mut Turn, vm: VmId, node: &NodeId, epoch: Epoch) {
        let Some(record) = self.records.vms.get_mut(&vm) else {
            return;
        };
        record.epoch = record.epoch.max(epoch);
        turn.touch(Key::Vm(vm));
        if record.owner.as_ref() == Some(node) {
            return;
        }
        record.owner = Some(node.clone());
        let moving = self.observed.moving.get(&vm);
        let moving = moving.and_then(|id| self.records.migrations.get(id));
        if let Some(decision) = moving.and_then(|m| m.decision.as_ref())
            && decision.node == *node
        {
            record.decision = Some(decision.clone());
        }
        let about = About::vm(&record.name, Some(node));
        let message = format!("{} is {node}'s at epoch {}", record.name, record.epoch);
        self.note(turn, "vm.owner", about, message);
    }

    /// Rule 5, second half: the record's owner is connected and has no process
    /// of the VM, and nothing is under way that could give it one; another
    /// connected node runs it as its own. That one is the only runner.
    ///
    /// Only a hello is a reason to look: it tells all that a node has, while
    /// a single report may be overtaken by a migration's end.
    pub(super) fn adopt_only_runner(&mut self, turn: &mut Turn, vm: VmId) {
        let observed = &self.observed;
        if observed.busy.contains_key(&vm) || observed.moving.contains_key(&vm) {
            return;
        }
        let Some(owner) = self.records.vms.get(&vm).and_then(|r| r.owner.clone()) else {
            return;
        };
        let idle = |report: &DomainReport| !report.state.has_process();
        if !self.is_up(&owner) || !self.report(&owner, vm).is_none_or(idle) {
            return;
        }
        if let Some(node) = self.only_runner(vm) {
            self.pass_on(turn, vm, &node, Epoch::default());
        }
    }

    /// The one node with a process of the VM, when it is connected and has the
    /// domain as its own outside of any migration.
    fn only_runner(&self, vm: VmId) -> Option<NodeId> {
        let copies = self.copies(vm);
        let mut runners = copies.filter(|(_, report)| report.state.has_process());
        let (node, report) = runners.next()?;
        let settled = report.migration.is_none()
            && !matches!(report.state, DomainState::Incoming | DomainState::InHandoff);
        let only = runners.next().is_none() && report.owner && settled && self.is_up(node);
        only.then(|| node.clone())
    }

    /// Keeps the owner's last state and its machine type, and makes news of a
    /// state that is new.
    fn remember_state(&mut self, turn: &mut Turn, vm: VmId) {
        let Some(report) = self.owner_report(vm).cloned() else {
            return;
        };
        let Some(record) = self.records.vms.get_mut(&vm) else {
            return;
        };
        if record.machine.is_none() && report.machine.is_some() {
            record.machine.clone_from(&report.machine);
            turn.touch(Key::Vm(vm));
        }
        let before = record.seen.map_or(DomainState::Stopped, |seen| seen.state);
        if before != report.state {
            record.seen = Some(Seen {
                state: report.state,
                since: report.since,
            });
            turn.touch(Key::Vm(vm));
            let about = About::vm(&record.name, record.owner.as_ref());
            let message = state_message(record.name.as_str(), record.owner.as_ref(), &report);
            self.note(turn, "vm.state", about, message);
        }
    }

    /// Whatever follows from the VM's records and reports now: the next step of
    /// its task, the end of its migration, leftovers, the desired state.
    pub(super) fn settle(&mut self, turn: &mut Turn, vm: VmId) {
        if let Some(id) = self.observed.moving.get(&vm).copied() {
            self.conclude(turn, id);
        }
        if let Some(task) = self.observed.busy.get(&vm).copied() {
            self.drive(turn, task);
        }
        self.take_reports_of(turn, vm);
        self.watch_runners(turn, vm);
        self.clear_leftovers(turn, vm);
        self.follow(turn, vm);
    }

    /// The desired state follows the domain when no task is on it.
    pub(super) fn follow(&mut self, turn: &mut Turn, vm: VmId) {
        if self.observed.busy.contains_key(&vm) {
            return;
        }
        self.look_for_loss(turn, vm);
        let Some(record) = self.records.vms.get(&vm) else {
            return;
        };
        // What is to be started again stays wanted, whatever a try came to.
        let settled = record.owner.as_ref().filter(|_| record.rescue.is_none());
        let Some(owner) = settled.filter(|owner| self.is_up(owner)) else {
            return;
        };
        let ran = record.seen.is_some_and(|seen| seen.state.has_process());
        let wanted = match self.report(owner, vm) {
            Some(report) => wanted_after(report),
            None => (!ran).then_some(RunState::Stopped),
        };
        if let Some(wanted) = wanted {
            self.want(turn, vm, wanted);
        }
    }

    pub(super) fn want(&mut self, turn: &mut Turn, vm: VmId, wanted: RunState) {
        if let Some(record) = self.records.vms.get_mut(&vm)
            && record.desired != wanted
        {
            record.desired = wanted;
            turn.touch(Key::Vm(vm));
        }
    }

    /// The migration that the VM is in, for refusals.
    pub(super) fn migration_of(&self, vm: VmId) -> Option<MigrationId> {
        self.observed.moving.get(&vm).copied()
    }
}

/// Whether the node holds the right to run the domain and its guest has run
/// there. A target that was granted the right reports it before its guest runs;
/// in a migration a QEMU that does not answer, or is being started, is no proof.
pub(super) fn guest_ran(report: &DomainReport) -> bool {
    let unproven = match report.state {
        DomainState::Incoming => true,
        DomainState::Starting | DomainState::Unresponsive => report.migration.is_some(),
        _ => false,
    };
    report.owner && !unproven
}

/// What a domain's state says of what is wanted; none when it says nothing.
fn wanted_after(report: &DomainReport) -> Option<RunState> {
    match (report.state, &report.exit) {
        (DomainState::Incoming | DomainState::InHandoff, _) => None,
        (DomainState::Stopped, exit) => match exit {
            Some(
                ExitReason::Crashed { .. }
                | ExitReason::HostReboot
                | ExitReason::Migrated
                | ExitReason::LeaseLost,
            ) => None,
            Some(
                ExitReason::GuestShutdown | ExitReason::Stopped | ExitReason::FailedToStart { .. },
            )
            | None => Some(RunState::Stopped),
        },
        _ => Some(RunState::Running),
    }
}

fn state_message(name: &str, owner: Option<&NodeId>, report: &DomainReport) -> String {
    let place = owner.map_or_else(String::new, |node| format!(" on {node}"));
    match (&report.exit, report.state) {
        (Some(exit), DomainState::Stopped) => format!("{name} is stopped{place}: {exit}"),
        (_, state) => format!("{name} is {state}{place}"),
    }
}
