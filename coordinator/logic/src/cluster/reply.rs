//! Answers of nodes, answers that never come, and patience that ends.
//!
//! A refusal is definite: it was not done. A request without an answer may have
//! been carried out: what became of it is read from the node's reports.

use std::collections::BTreeSet;

use godwit_shared::api::{DryRun, TaskState};
use godwit_shared::model::{LifecycleCommand, NodeId, Problem, RunState, TaskId, VmId, codes};
use godwit_shared::wire::uplink::NodeReply;

use super::Cluster;
use super::command::conflict;
use super::heard::unheard;
use super::member::LOST_NODE;
use super::state::{Asked, Knowledge, Patience, Pending, Purpose};
use super::task::End;
use super::turn::Turn;
use crate::effect::{Answer, Effect};
use crate::input::{Output, SessionId, Ticket};
use crate::record::{Key, TaskKind};

impl Cluster {
    pub(super) fn on_reply(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        request: u64,
        outcome: Result<NodeReply, Problem>,
    ) {
        let of_node = |pending: &Pending| pending.node == *node;
        if !self.observed.requests.get(&request).is_some_and(of_node) {
            return;
        }
        let Some(pending) = self.observed.requests.remove(&request) else {
            return;
        };
        if let Ok(NodeReply::Domain(report)) = &outcome {
            self.on_replied_report(turn, node, report.clone());
        }
        match pending.purpose {
            Purpose::Task(task, asked) => {
                let from = (node, pending.session);
                self.on_task_reply(turn, task, asked, from, outcome.err());
            }
            Purpose::Migrate(migration) => {
                self.on_migrate_reply(turn, migration, outcome.err());
            }
            Purpose::Cancel(migration) => self.on_cancel_reply(turn, migration, outcome.err()),
            Purpose::DryRun {
                ticket,
                target,
                found,
            } => answer(turn, ticket, dry_run(target, found, outcome)),
            Purpose::Log(ticket) => answer(turn, ticket, log(outcome)),
            Purpose::Steer {
                ticket,
                migration,
                resolves,
            } => self.on_steered(turn, migration, (ticket, resolves), outcome),
            Purpose::Verdict { asker, query } => {
                self.on_verdict_reply(turn, &asker, &query, outcome.ok().as_ref());
            }
            Purpose::Clear { vm, command } => {
                self.on_cleared(turn, vm, node, command, outcome.err().as_ref());
            }
            Purpose::Withhold { of, at } => self.on_withheld(&of, node, at, outcome.ok().as_ref()),
            Purpose::Heir(migration) => {
                self.on_heir_reply(turn, migration, outcome.ok().as_ref());
            }
            Purpose::Nothing => {}
        }
    }

    /// A copy that was deleted is gone, whatever the reply still says of it.
    fn on_cleared(
        &mut self,
        turn: &mut Turn,
        vm: VmId,
        node: &NodeId,
        command: LifecycleCommand,
        refused: Option<&Problem>,
    ) {
        let gone = refused.is_none_or(|problem| problem.code == codes::NOT_FOUND);
        if !gone {
            return self.clear_later(turn, vm, node, command);
        }
        if let Some(state) = self.observed.nodes.get_mut(node) {
            state.cleared.remove(&(vm, command));
        }
        if command == LifecycleCommand::Delete {
            self.forget_copy(vm, node);
        }
        self.settle(turn, vm);
    }

    fn on_task_reply(
        &mut self,
        turn: &mut Turn,
        id: TaskId,
        asked: Asked,
        (node, session): (&NodeId, SessionId),
        refused: Option<Problem>,
    ) {
        let Some(work) = self.observed.work.get_mut(&id) else {
            return;
        };
        work.request = None;
        let Some(task) = self.records.tasks.get(&id) else {
            return;
        };
        let (vm, kind) = (task.vm, task.kind);
        let deletes = matches!(asked, Asked::Release | Asked::Remove);
        match refused {
            None if deletes => self.forget_copy(vm, node),
            Some(problem) if deletes && problem.code == codes::NOT_FOUND => {
                self.forget_copy(vm, node);
            }
            None => {
                work.told = Some((session, asked));
                let waits = kind == TaskKind::Command(LifecycleCommand::Shutdown);
                if asked == Asked::Command && !waits {
                    self.end_task(turn, id, End::Done(done_message(kind, node)));
                }
            }
            Some(problem) => self.refuse_task(turn, id, asked, (node, session), problem),
        }
        self.settle(turn, vm);
    }

    /// The node refused a step of a task.
    fn refuse_task(
        &mut self,
        turn: &mut Turn,
        id: TaskId,
        asked: Asked,
        (node, session): (&NodeId, SessionId),
        problem: Problem,
    ) {
        let Some(task) = self.records.tasks.get(&id) else {
            return;
        };
        let (vm, epoch) = (task.vm, task.epoch);
        let report = self.report(node, vm);
        let runs =
            report.is_some_and(|report| report.state.has_process() && Some(report.epoch) >= epoch);
        // An earlier copy of the same start got through.
        if asked == Asked::Start && runs && problem.code == codes::STATE_CONFLICT {
            if let Some(work) = self.observed.work.get_mut(&id) {
                work.told = Some((session, asked));
            }
            return;
        }
        let absent = report.is_none();
        let idle = report.is_none_or(|report| !report.state.has_process());
        // What is to be started again stays wanted.
        let rescued = |record: &crate::record::VmRecord| record.rescue.is_some();
        let starting = matches!(asked, Asked::Define | Asked::Start)
            && !self.records.vms.get(&vm).is_some_and(rescued);
        self.end_task(turn, id, End::Failed(problem));
        if starting && idle {
            self.want(turn, vm, RunState::Stopped);
        }
        if asked == Asked::Define && absent {
            self.disown(turn, vm, node);
        }
    }

    /// The node has nothing of the VM, and never had: it is nobody's.
    fn disown(&mut self, turn: &mut Turn, vm: VmId, node: &NodeId) {
        if let Some(record) = self.records.vms.get_mut(&vm)
            && record.owner.as_ref() == Some(node)
        {
            record.owner = None;
            turn.touch(Key::Vm(vm));
        }
    }

    pub(super) fn on_unanswered(&mut self, turn: &mut Turn, request: u64) {
        let Some(pending) = self.observed.requests.remove(&request) else {
            return;
        };
        let late = Problem::new(
            codes::TIMEOUT,
            format!("{} did not answer in time", pending.node),
        )
        .remedy("look at the VM's state before you ask again; it may still be done");
        match pending.purpose {
            Purpose::Task(task, _) => {
                let vm = self.records.tasks.get(&task).map(|task| task.vm);
                self.end_task(turn, task, End::Failed(late));
                if let Some(vm) = vm {
                    self.settle(turn, vm);
                }
            }
            Purpose::Clear { vm, command } => {
                self.clear_later(turn, vm, &pending.node, command);
            }
            purpose => self.give_up(turn, purpose, &late),
        }
    }

    /// The node's session has ended: none of its requests will be answered.
    pub(super) fn drop_requests(&mut self, turn: &mut Turn, node: &NodeId) {
        let of_node = |pending: &Pending| pending.node == *node;
        let requests = &mut self.observed.requests;
        let numbers: Vec<u64> = requests
            .iter()
            .filter(|(_, pending)| of_node(pending))
            .map(|(number, _)| *number)
            .collect();
        let lost = Problem::new(
            codes::NODE_UNREACHABLE,
            format!("the connection to {node} was lost before it answered"),
        )
        .remedy("ask again when the node is up");
        for number in numbers {
            match self.observed.requests.remove(&number).map(|p| p.purpose) {
                Some(Purpose::Task(task, _)) => {
                    if let Some(work) = self.observed.work.get_mut(&task) {
                        work.request = None;
                    }
                }
                // The next hello tells whether the source knows it.
                Some(Purpose::Migrate(migration)) => {
                    if let Some(known) = self.observed.moves.get_mut(&migration) {
                        known.source = Knowledge::Known;
                    }
                }
                // It is sent again after the next hello.
                Some(Purpose::Cancel(_)) | None => {}
                Some(purpose) => self.give_up(turn, purpose, &lost),
            }
        }
    }

    /// No answer will come; whoever waits for one is told.
    fn give_up(&mut self, turn: &mut Turn, purpose: Purpose, problem: &Problem) {
        match purpose {
            Purpose::DryRun { ticket, .. }
            | Purpose::Steer { ticket, .. }
            | Purpose::Log(ticket) => {
                answer(turn, ticket, Err(problem.clone()));
            }
            Purpose::Verdict { asker, query } => {
                self.on_verdict_reply(turn, &asker, &query, None);
            }
            Purpose::Migrate(migration) => self.on_migrate_unanswered(turn, migration),
            Purpose::Cancel(migration) => {
                self.on_cancel_reply(turn, migration, Some(problem.clone()));
            }
            Purpose::Task(..)
            | Purpose::Clear { .. }
            | Purpose::Withhold { .. }
            | Purpose::Heir(_)
            | Purpose::Nothing => {}
        }
    }

    /// What waits for the node waits for its return from now on.
    pub(super) fn on_node_lost(&mut self, turn: &mut Turn, node: &NodeId) {
        for vm in self.vms_waiting_for(node) {
            self.settle(turn, vm);
        }
    }

    /// The node is back: its unfinished tasks go on.
    pub(super) fn resume_tasks(&mut self, turn: &mut Turn, node: &NodeId) {
        for vm in self.vms_waiting_for(node) {
            let task = self.observed.busy.get(&vm);
            if let Some(work) = task.and_then(|id| self.observed.work.get_mut(id)) {
                work.patience = work.patience.filter(|(what, _)| *what != Patience::Absence);
            }
            self.settle(turn, vm);
        }
    }

    /// VMs with a task or a migration that needs the node.
    fn vms_waiting_for(&self, node: &NodeId) -> BTreeSet<VmId> {
        let busy = self.observed.busy.iter().filter(|(vm, task)| {
            let task = self.records.tasks.get(*task);
            let owner = self.records.vms.get(*vm).and_then(|vm| vm.owner.as_ref());
            owner == Some(node) || task.is_some_and(|task| task.node.as_ref() == Some(node))
        });
        let moving = self.observed.moving.iter().filter(|(_, id)| {
            let migration = self.records.migrations.get(*id);
            migration.is_some_and(|m| m.source == *node || m.target == *node)
        });
        let busy = busy.map(|(vm, _)| *vm);
        busy.chain(moving.map(|(vm, _)| *vm)).collect()
    }

    /// The end of a task's patience.
    pub(super) fn on_task_timer(&mut self, turn: &mut Turn, id: TaskId) {
        let patience = self.observed.work.get(&id).and_then(|work| work.patience);
        let Some((patience, until)) = patience else {
            return;
        };
        let Some(task) = self.records.tasks.get(&id) else {
            return;
        };
        if turn.now < until {
            return turn.arm(id, until);
        }
        let vm = task.vm;
        let problem = match patience {
            Patience::Absence => self.absent(vm, task.node.as_ref()),
            Patience::Start => Problem::new(
                codes::TIMEOUT,
                format!("{}'s QEMU did not get to run its guest in time", task.name),
            )
            .remedy(format!(
                "look at its QEMU log: `godwit vm logs {} --kind qemu`",
                task.name
            )),
            Patience::Shutdown => Problem::new(
                codes::TIMEOUT,
                format!("{}'s guest did not power off", task.name),
            )
            .remedy(format!("stop it: `godwit vm stop {}`", task.name)),
        };
        self.end_task(turn, id, End::Failed(problem));
        self.settle(turn, vm);
    }

    fn absent(&self, vm: VmId, node: Option<&NodeId>) -> Problem {
        let owner = self.records.vms.get(&vm).and_then(|vm| vm.owner.as_ref());
        let mut needed = owner.into_iter().chain(node);
        let away = needed.find(|node| !self.is_up(node));
        if let (None, Some(node)) = (away, self.unheard().next()) {
            return unheard(node);
        }
        let away = away.map_or_else(|| "its node".to_owned(), ToString::to_string);
        Problem::new(
            codes::NODE_UNREACHABLE,
            format!("{away} did not come back in time"),
        )
        .remedy(format!(
            "see that godwit-node runs on {away} and reaches the coordinator; {LOST_NODE}"
        ))
    }

    pub(super) fn on_cancel_task(
        &mut self,
        turn: &mut Turn,
        id: TaskId,
    ) -> Result<Output, Problem> {
        let task = self
            .records
            .tasks
            .get(&id)
            .ok_or_else(|| Problem::not_found("task", id))?;
        if task.state.is_final() {
            let message = format!("the task has ended: it is {}", task.state.as_str());
            return Err(conflict(message, "nothing is left to cancel"));
        }
        let (vm, kind) = (task.vm, task.kind);
        if let Some(migration) = task.migration {
            self.on_cancel_migration(turn, migration)?;
            return self.task(id).map(Output::Task);
        }
        let work = self.observed.work.get(&id);
        let waits = work.is_some_and(|work| work.request.is_none() && work.patience.is_some());
        let shutdown = kind == TaskKind::Command(LifecycleCommand::Shutdown);
        if !waits && !shutdown {
            return Err(conflict(
                format!("the node is carrying {} out", kind.as_str()),
                "wait for its answer",
            ));
        }
        let message = if shutdown {
            "nobody waits any more; the guest may still power off"
        } else {
            "called off before it was done"
        };
        self.end_task(turn, id, End::Cancelled(message.into()));
        self.settle(turn, vm);
        self.task(id).map(Output::Task)
    }

    pub(super) fn mark_cancelling(&mut self, turn: &mut Turn, id: TaskId, cancelling: bool) {
        let wanted = if cancelling {
            TaskState::Cancelling
        } else {
            TaskState::Running
        };
        if let Some(task) = self.records.tasks.get_mut(&id)
            && !task.state.is_final()
            && task.state != wanted
        {
            task.state = wanted;
            turn.touch(Key::Task(id));
            turn.task_changed(id);
        }
    }
}

pub(super) fn answer(turn: &mut Turn, ticket: Ticket, outcome: Result<Answer, Problem>) {
    turn.act(Effect::Answer { ticket, outcome });
}

fn done_message(kind: TaskKind, node: &NodeId) -> String {
    let done = match kind {
        TaskKind::Command(LifecycleCommand::Stop) => "stopped",
        TaskKind::Command(LifecycleCommand::Reboot) => "the guest was asked to reboot",
        TaskKind::Command(LifecycleCommand::Reset) => "reset",
        TaskKind::Command(LifecycleCommand::Pause) => "paused",
        TaskKind::Command(LifecycleCommand::Resume) => "running",
        _ => "done",
    };
    format!("{done} on {node}")
}

fn log(outcome: Result<NodeReply, Problem>) -> Result<Answer, Problem> {
    match outcome? {
        NodeReply::Log(text) => Ok(Answer::Log(text)),
        _ => Err(wrong_reply()),
    }
}

/// What placement found, and what the two nodes found beside that.
fn dry_run(
    target: NodeId,
    mut found: Vec<Problem>,
    outcome: Result<NodeReply, Problem>,
) -> Result<Answer, Problem> {
    let NodeReply::Rehearsal { blockers, forecast } = outcome? else {
        return Err(wrong_reply());
    };
    for problem in blockers {
        let same = |known: &Problem| known.code == problem.code && known.field == problem.field;
        if !found.iter().any(same) {
            found.push(problem);
        }
    }
    Ok(Answer::DryRun(DryRun {
        target,
        blockers: found,
        forecast,
    }))
}

pub(super) fn wrong_reply() -> Problem {
    Problem::new(
        codes::PROTOCOL,
        "the node answered something else than was asked",
    )
    .remedy("bring both daemons to the same release")
}
