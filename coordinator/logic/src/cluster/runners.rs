//! Copies of a VM where they do not belong: second runners, leftovers, and
//! domains that no record knows. The rules are in [the module's page](super).

use godwit_shared::model::{
    DomainReport, DomainState, Epoch, LifecycleCommand, Millis, NodeId, VmId,
};
use godwit_shared::wire::uplink::NodeRequest;

use super::Cluster;
use super::owner::guest_ran;
use super::state::{Clearing, Purpose};
use super::turn::{About, Turn};
use crate::effect::{Effect, Timer};

/// How long after its first refusal a stop is sent again; doubled each time.
const AGAIN: Millis = Millis(5_000);
/// At most so many times doubled: 5 min 20 s.
const DOUBLINGS: u32 = 6;

impl Cluster {
    /// Makes news of a VM that two nodes execute as their own, once.
    ///
    /// While a migration lasts the words of its two nodes may overtake each
    /// other; the last word of a node that is away says nothing of today.
    pub(super) fn watch_runners(&mut self, turn: &mut Turn, vm: VmId) {
        let moving = self.observed.moving.contains_key(&vm);
        let runners: Vec<&NodeId> = self
            .copies(vm)
            .filter(|(_, report)| report.owner && report.state.executes())
            .filter(|(node, report)| {
                let owner = self.records.vms.get(&vm).and_then(|vm| vm.owner.as_ref());
                self.is_up(node) && (owner == Some(*node) || report.migration.is_none())
            })
            .map(|(node, _)| node)
            .collect();
        if moving || runners.len() < 2 {
            self.observed.doubled.remove(&vm);
            return;
        }
        let names: Vec<&str> = runners.iter().map(|node| node.as_str()).collect();
        let message = format!(
            "{} runs on {} at once; its disks may be damaged",
            self.name_of(vm),
            names.join(" and ")
        );
        if self.records.vms.contains_key(&vm) && self.observed.doubled.insert(vm) {
            let about = self.about_vm(vm);
            self.note(turn, "vm.two_runners", about, message);
        }
    }

    /// Makes news of a domain that no record knows, once in a session.
    pub(super) fn note_stray(&mut self, turn: &mut Turn, node: &NodeId, report: &DomainReport) {
        if self.records.vms.contains_key(&report.vm) {
            return;
        }
        let Some(state) = self.observed.nodes.get_mut(node) else {
            return;
        };
        if state.strays.insert(report.vm) {
            let message = format!(
                "{node} has a VM that this cluster does not know: {} ({}), {}; it is left alone",
                report.name, report.vm, report.state
            );
            let about = About::vm(&report.name, Some(node));
            self.note(turn, "node.stray_domain", about, message);
        }
    }

    /// Rules 5 and 6: ends stale runners and deletes stopped copies once the
    /// owner has confirmed that the domain is its own. A stopped copy that is
    /// older than the owner's guest goes too when a start that was given out
    /// never came to the owner, whose guest ran: the record is then ahead of it.
    pub(super) fn clear_leftovers(&mut self, turn: &mut Turn, vm: VmId) {
        if self.observed.moving.contains_key(&vm) {
            return;
        }
        let (Some(record), Some(word)) = (self.records.vms.get(&vm), self.owner_has_it(vm)) else {
            return;
        };
        let (owner, epoch) = (record.owner.clone(), record.epoch);
        let confirmed = word.epoch >= epoch;
        let runs = word.state.executes() && guest_ran(word);
        let stale: Vec<(NodeId, LifecycleCommand, Epoch)> = self
            .copies(vm)
            .filter(|(node, report)| Some(*node) != owner.as_ref() && report.epoch <= epoch)
            .filter_map(|(node, report)| {
                let command = leftover(report, epoch)?;
                let outlived = runs && report.epoch < word.epoch;
                let stale = confirmed || (outlived && command == LifecycleCommand::Delete);
                stale.then(|| (node.clone(), command, report.epoch))
            })
            .collect();
        for (node, command, epoch) in stale {
            self.clear(turn, vm, &node, command, epoch);
        }
    }

    /// Sends one such command. A stop that is refused is sent again after a
    /// while, a deletion only in another session.
    fn clear(
        &mut self,
        turn: &mut Turn,
        vm: VmId,
        node: &NodeId,
        command: LifecycleCommand,
        epoch: Epoch,
    ) {
        let state = self.observed.nodes.get_mut(node);
        let Some(state) = state.filter(|state| state.session.is_some()) else {
            return;
        };
        let told = state.cleared.get(&(vm, command)).copied();
        if told.is_some_and(|told| told.again.is_none_or(|at| turn.now < at)) {
            return;
        }
        let clearing = Clearing {
            told: told.unwrap_or_default().told.saturating_add(1),
            again: None,
        };
        state.cleared.insert((vm, command), clearing);
        let purpose = Purpose::Clear { vm, command };
        let body = NodeRequest::Command { vm, command, epoch };
        let deadline = self.settings.limits.request;
        if self.ask(turn, node, purpose, body, deadline).is_some() {
            let name = self.name_of(vm);
            let message = match command {
                LifecycleCommand::Stop => {
                    format!("{node} runs {name} without the right to; it is told to stop it")
                }
                _ => format!("{node} has a leftover of {name}; it is told to delete it"),
            };
            let about = About {
                node: Some(node.clone()),
                ..self.about_vm(vm)
            };
            self.note(turn, "vm.leftover", about, message);
        }
    }

    /// A second runner that did not stop is told again after a while.
    pub(super) fn clear_later(
        &mut self,
        turn: &mut Turn,
        vm: VmId,
        node: &NodeId,
        command: LifecycleCommand,
    ) {
        let state = self.observed.nodes.get_mut(node);
        let known = state.and_then(|state| state.cleared.get_mut(&(vm, command)));
        let Some(known) = known.filter(|_| command == LifecycleCommand::Stop) else {
            return;
        };
        let doublings = known.told.saturating_sub(1).min(DOUBLINGS);
        let at = turn.now.after(Millis(AGAIN.0 << doublings));
        known.again = Some(at);
        turn.act(Effect::Arm {
            timer: Timer::Leftover(vm),
            at,
        });
    }
}

/// What is to be done with a copy that is not the owner's.
fn leftover(report: &DomainReport, epoch: Epoch) -> Option<LifecycleCommand> {
    match report.state {
        DomainState::Stopped => Some(LifecycleCommand::Delete),
        // A source in handoff or a target that receives minds its own end.
        DomainState::Incoming | DomainState::InHandoff => None,
        _ if report.owner && report.epoch < epoch => Some(LifecycleCommand::Stop),
        _ => None,
    }
}
