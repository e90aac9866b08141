//! Tasks: one unfinished at most for each VM, driven by what is true.
//!
//! [`Cluster::drive`] looks at a task's record and at the reports of the nodes,
//! and takes the next step, if there is one. It is called when the task is
//! new, when a request is answered, when a node reports anything about the VM,
//! and when a node comes back: so a task that was interrupted by a lost
//! session or by a restart of the coordinator goes on by itself.
//!
//! ```text
//!  start:    [release the former owner] -> claim -> define -> start -> runs
//!  shutdown: ask the guest -> wait until it is off
//!  delete:   ask the owner -> forget
//!  others:   ask the owner
//! ```

use godwit_shared::api::TaskState;
use godwit_shared::model::{
    DomainReport, DomainState, Epoch, ExitReason, LifecycleCommand, NodeId, Problem, RunState,
    TaskId, VmId, codes,
};
use godwit_shared::wire::document::Document;
use godwit_shared::wire::uplink::NodeRequest;

use super::Cluster;
use super::command::conflict;
use super::failover::epoch_of;
use super::state::{Asked, Patience, Purpose, Work};
use super::turn::{About, Turn};
use crate::record::{Key, TaskKind, TaskRecord};

/// How a task ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// Done; in a few words, what came of it.
    Done(String),
    /// Not done.
    Failed(Problem),
    /// Called off; what that means.
    Cancelled(String),
}

impl Cluster {
    pub(super) fn begin_task(
        &mut self,
        turn: &mut Turn,
        id: TaskId,
        kind: TaskKind,
        vm: VmId,
        node: Option<NodeId>,
    ) {
        let Some(name) = self.records.vms.get(&vm).map(|record| record.name.clone()) else {
            return;
        };
        let about = About {
            task: Some(id),
            ..About::vm(&name, node.as_ref())
        };
        let message = format!("{} of {name} began", kind.as_str());
        let record = TaskRecord {
            id,
            kind,
            state: TaskState::Running,
            vm,
            name,
            node,
            migration: None,
            epoch: None,
            message: String::new(),
            problem: None,
            created: turn.now,
            ended: None,
        };
        self.records.tasks.insert(id, record);
        self.observed.busy.insert(vm, id);
        self.observed.work.insert(id, Work::default());
        turn.touch(Key::Task(id));
        turn.task_changed(id);
        self.note(turn, "task.began", about, message);
    }

    pub(super) fn end_task(&mut self, turn: &mut Turn, id: TaskId, end: End) {
        let Some(task) = self
            .records
            .tasks
            .get_mut(&id)
            .filter(|t| !t.state.is_final())
        else {
            return;
        };
        let outcome = match end {
            End::Done(message) => {
                task.state = TaskState::Succeeded;
                task.message = message;
                "is done".to_owned()
            }
            End::Failed(problem) => {
                task.state = TaskState::Failed;
                task.message.clone_from(&problem.message);
                let outcome = format!("failed: {}", problem.message);
                task.problem = Some(problem);
                outcome
            }
            End::Cancelled(message) => {
                task.state = TaskState::Cancelled;
                task.problem = Some(Problem::new(codes::CANCELLED, message.clone()));
                task.message = message;
                "was called off".to_owned()
            }
        };
        task.ended = Some(turn.now);
        let (vm, kind, state) = (task.vm, task.kind, task.state);
        let about = About {
            task: Some(id),
            migration: task.migration,
            ..About::vm(&task.name, task.node.as_ref())
        };
        let message = format!("{} of {} {outcome}", kind.as_str(), task.name);
        self.observed.busy.remove(&vm);
        self.observed.work.remove(&id);
        self.observed.ended_tasks.push_back(id);
        turn.touch(Key::Task(id));
        turn.task_changed(id);
        self.note(turn, "task.ended", about, message);
        if state != TaskState::Succeeded {
            self.mark_deleting(turn, vm, false);
        }
        self.forget_old_tasks(turn);
    }

    fn forget_old_tasks(&mut self, turn: &mut Turn) {
        while self.observed.ended_tasks.len() > self.settings.limits.tasks.max(1) {
            if let Some(old) = self.observed.ended_tasks.pop_front() {
                self.records.tasks.remove(&old);
                turn.touch(Key::Task(old));
            }
        }
    }

    /// Takes the task's next step, if there is one to take now.
    pub(super) fn drive(&mut self, turn: &mut Turn, id: TaskId) {
        let Some(task) = self.records.tasks.get(&id).cloned() else {
            return;
        };
        let asked = |work: &Work| work.request.is_some();
        if task.state.is_final() || self.observed.work.get(&id).is_none_or(asked) {
            return;
        }
        if self.waits_for_word(turn, &task) {
            return;
        }
        match task.kind {
            TaskKind::Create { start: false } if task.node.is_none() => {
                self.end_task(turn, id, End::Done("defined".into()));
            }
            TaskKind::Create { .. }
            | TaskKind::Failover
            | TaskKind::Command(LifecycleCommand::Start) => {
                self.drive_start(turn, &task);
            }
            TaskKind::Command(LifecycleCommand::Delete) => self.drive_delete(turn, &task),
            TaskKind::Command(LifecycleCommand::Shutdown) => self.drive_shutdown(turn, &task),
            TaskKind::Command(command) => self.drive_command(turn, &task, command),
            TaskKind::Migrate => {}
        }
    }

    fn drive_start(&mut self, turn: &mut Turn, task: &TaskRecord) {
        let (Some(node), Some(record)) = (&task.node, self.records.vms.get(&task.vm)) else {
            let end = End::Failed(Problem::internal("a start without a VM or a node"));
            return self.end_task(turn, task.id, end);
        };
        let former = record.owner.clone().filter(|owner| owner != node);
        if let Some(former) = former
            && !self.released(turn, task, &former)
        {
            return;
        }
        let epoch = self.claim(turn, task, node);
        if !self.present(turn, task.id, node) {
            return;
        }
        if let Some((other, report)) = self.runner_beside(task.vm, node) {
            let message = format!("{} is {} on {other}", task.name, report.state);
            let end = End::Failed(conflict(message, "stop it there first"));
            return self.end_task(turn, task.id, end);
        }
        let report = self.report(node, task.vm).cloned();
        let told = self.told(task.id, node);
        match (epoch, report) {
            (Some(epoch), Some(report)) if report.epoch >= epoch || report.state.has_process() => {
                self.await_run(turn, task, node, &report);
            }
            (Some(epoch), _) => match told {
                Some(Asked::Start) => self.wait(turn, task.id, Patience::Start, "QEMU is starting"),
                Some(Asked::Define) => self.send_start(turn, task, node, epoch),
                _ => self.send_define(turn, task, node, Epoch(epoch.0.saturating_sub(1))),
            },
            (None, _) if told == Some(Asked::Define) => {
                self.end_task(turn, task.id, End::Done(format!("defined on {node}")));
            }
            (None, _) => {
                let epoch = self.records.vms.get(&task.vm).map(|record| record.epoch);
                self.send_define(turn, task, node, epoch.unwrap_or_default());
            }
        }
    }

    /// Rule 2: whether the former owner has said that it has no such domain.
    fn released(&mut self, turn: &mut Turn, task: &TaskRecord, former: &NodeId) -> bool {
        if self.lost_there(task.vm, former) {
            return true;
        }
        if !self.present(turn, task.id, former) {
            return false;
        }
        let Some(report) = self.report(former, task.vm) else {
            return true;
        };
        if report.state.has_process() {
            let message = format!("{} is {} on {former}", task.name, report.state);
            let end = End::Failed(conflict(message, "stop it there first"));
            self.end_task(turn, task.id, end);
            return false;
        }
        let body = self.command(task.vm, LifecycleCommand::Delete);
        let message = format!("taking it off {former}");
        self.ask_for(turn, task.id, former, Asked::Release, body, message);
        false
    }

    /// Makes the node the owner, and gives out the epoch of a start, once.
    fn claim(&mut self, turn: &mut Turn, task: &TaskRecord, node: &NodeId) -> Option<Epoch> {
        let record = self.records.vms.get_mut(&task.vm)?;
        if record.owner.as_ref() != Some(node) {
            record.owner = Some(node.clone());
            turn.touch(Key::Vm(task.vm));
        }
        if task.epoch.is_some() || !task.kind.starts() {
            return task.epoch;
        }
        record.epoch = epoch_of(task.kind, record.epoch);
        record.desired = RunState::Running;
        let epoch = record.epoch;
        turn.touch(Key::Vm(task.vm));
        if let Some(task) = self.records.tasks.get_mut(&task.id) {
            task.epoch = Some(epoch);
            turn.touch(Key::Task(task.id));
        }
        Some(epoch)
    }

    /// Rule 4: another node with a process of the VM.
    fn runner_beside(&self, vm: VmId, node: &NodeId) -> Option<(NodeId, DomainReport)> {
        let mut copies = self.copies(vm);
        copies
            .find(|(other, report)| *other != node && report.state.has_process())
            .map(|(other, report)| (other.clone(), report.clone()))
    }

    /// The start reached the node: waits for the guest to run.
    fn await_run(
        &mut self,
        turn: &mut Turn,
        task: &TaskRecord,
        node: &NodeId,
        report: &DomainReport,
    ) {
        let name = &task.name;
        let end = match (report.state, &report.exit) {
            (DomainState::Starting, _) => {
                return self.wait(turn, task.id, Patience::Start, "QEMU is starting");
            }
            (DomainState::Unresponsive, _) => {
                let message = "QEMU runs and does not answer";
                return self.wait(turn, task.id, Patience::Start, message);
            }
            (DomainState::Incoming | DomainState::InHandoff, _) => {
                let message = "the end of a handoff is awaited";
                return self.wait(turn, task.id, Patience::Start, message);
            }
            (state @ (DomainState::Crashed | DomainState::IoError), _) => {
                End::Failed(stood_still(name.as_str(), state, report.problem.as_ref()))
            }
            (DomainState::Stopped, Some(exit @ ExitReason::GuestShutdown)) => {
                End::Done(format!("ran on {node}, and ended: {exit}"))
            }
            (DomainState::Stopped, exit) => End::Failed(ended_early(name.as_str(), exit.as_ref())),
            (state, _) => End::Done(format!("{state} on {node}")),
        };
        self.end_task(turn, task.id, end);
    }

    fn send_define(&mut self, turn: &mut Turn, task: &TaskRecord, node: &NodeId, epoch: Epoch) {
        let Some(record) = self.records.vms.get(&task.vm) else {
            return;
        };
        let spec = match Document::of(&record.spec) {
            Ok(spec) => spec,
            Err(problem) => return self.end_task(turn, task.id, End::Failed(problem)),
        };
        let body = NodeRequest::Define {
            vm: task.vm,
            spec,
            epoch,
            machine: record.machine.clone(),
        };
        let message = format!("defining it on {node}");
        self.ask_for(turn, task.id, node, Asked::Define, body, message);
    }

    fn send_start(&mut self, turn: &mut Turn, task: &TaskRecord, node: &NodeId, epoch: Epoch) {
        let body = NodeRequest::Command {
            vm: task.vm,
            command: LifecycleCommand::Start,
            epoch,
        };
        let message = format!("starting it on {node}");
        self.ask_for(turn, task.id, node, Asked::Start, body, message);
    }

    fn drive_shutdown(&mut self, turn: &mut Turn, task: &TaskRecord) {
        let Some(owner) = self.owner_of(task.vm) else {
            return self.end_task(turn, task.id, End::Done("it was not running".into()));
        };
        if !self.present(turn, task.id, &owner) {
            return;
        }
        match self.report(&owner, task.vm) {
            Some(report) if report.state.has_process() => {}
            report => {
                let end = after_shutdown(report);
                return self.end_task(turn, task.id, end);
            }
        }
        if self.told(task.id, &owner) == Some(Asked::Command) {
            return self.wait(
                turn,
                task.id,
                Patience::Shutdown,
                "the guest was asked to power off",
            );
        }
        let body = self.command(task.vm, LifecycleCommand::Shutdown);
        let message = "asking the guest to power off".into();
        self.ask_for(turn, task.id, &owner, Asked::Command, body, message);
    }

    fn drive_delete(&mut self, turn: &mut Turn, task: &TaskRecord) {
        if let Some(owner) = self.owner_of(task.vm) {
            if !self.present(turn, task.id, &owner) {
                return;
            }
            if self.report(&owner, task.vm).is_some() {
                let body = self.command(task.vm, LifecycleCommand::Delete);
                let message = format!("deleting it on {owner}");
                return self.ask_for(turn, task.id, &owner, Asked::Remove, body, message);
            }
        }
        if let Some(record) = self.records.vms.remove(&task.vm) {
            self.observed.names.remove(&record.name);
            turn.touch(Key::Vm(task.vm));
            let about = About::vm(&record.name, record.owner.as_ref());
            self.note(
                turn,
                "vm.deleted",
                about,
                format!("{} was deleted", record.name),
            );
        }
        self.end_task(turn, task.id, End::Done("deleted".into()));
    }

    /// Stop, reboot, reset, pause and resume. A reboot or a reset whose answer
    /// was lost is not sent again: the guest may have been reset once.
    fn drive_command(&mut self, turn: &mut Turn, task: &TaskRecord, command: LifecycleCommand) {
        let Some(owner) = self.owner_of(task.vm) else {
            return self.end_task(turn, task.id, End::Done("it was not running".into()));
        };
        let sent = self
            .observed
            .work
            .get(&task.id)
            .is_some_and(|work| work.sent);
        if sent && matches!(command, LifecycleCommand::Reboot | LifecycleCommand::Reset) {
            let end = End::Failed(answer_lost(&owner, command));
            return self.end_task(turn, task.id, end);
        }
        if !self.present(turn, task.id, &owner) {
            return;
        }
        let state = self
            .report(&owner, task.vm)
            .map_or(DomainState::Stopped, |report| report.state);
        if let Some(message) = done_already(command, state) {
            return self.end_task(turn, task.id, End::Done(message.into()));
        }
        let body = self.command(task.vm, command);
        let message = format!("asking {owner} to {command} it");
        self.ask_for(turn, task.id, &owner, Asked::Command, body, message);
    }

    fn owner_of(&self, vm: VmId) -> Option<NodeId> {
        self.records.vms.get(&vm)?.owner.clone()
    }

    /// A command for the owner, at the epoch of its guest: the record's, or a
    /// lower one where the record took over a runner that it had left behind.
    fn command(&self, vm: VmId, command: LifecycleCommand) -> NodeRequest {
        let runs = |report: &&DomainReport| report.owner && report.state.has_process();
        let running = self.owner_report(vm).filter(runs);
        let record = self.records.vms.get(&vm).map(|record| record.epoch);
        let epoch = running.map(|report| report.epoch).or(record);
        NodeRequest::Command {
            vm,
            command,
            epoch: epoch.unwrap_or_default(),
        }
    }

    /// What the node has done of the task in its present session.
    fn told(&self, task: TaskId, node: &NodeId) -> Option<Asked> {
        let (session, asked) = self.observed.work.get(&task)?.told?;
        (self.session(node) == Some(session)).then_some(asked)
    }

    fn ask_for(
        &mut self,
        turn: &mut Turn,
        task: TaskId,
        node: &NodeId,
        asked: Asked,
        body: NodeRequest,
        message: String,
    ) {
        let limits = &self.settings.limits;
        let deadline = match asked {
            Asked::Start => limits.start,
            _ => limits.request,
        };
        let request = self.ask(turn, node, Purpose::Task(task, asked), body, deadline);
        if let Some(work) = self.observed.work.get_mut(&task) {
            work.request = request;
            work.sent = true;
            work.patience = None;
            work.message = message;
            turn.task_changed(task);
        }
    }

    /// Whether the node is connected; when it is not, the task waits for it.
    fn present(&mut self, turn: &mut Turn, task: TaskId, node: &NodeId) -> bool {
        if self.is_up(node) {
            return true;
        }
        let message = format!("waiting for {node}, which is not connected");
        self.wait(turn, task, Patience::Absence, &message);
        false
    }

    /// Waits for something that may never come.
    pub(super) fn wait(
        &mut self,
        turn: &mut Turn,
        task: TaskId,
        patience: Patience,
        message: &str,
    ) {
        let limits = &self.settings.limits;
        let limit = match patience {
            Patience::Absence => limits.absence,
            Patience::Start => limits.start,
            Patience::Shutdown => limits.shutdown,
        };
        let Some(work) = self.observed.work.get_mut(&task) else {
            return;
        };
        if work.message != message {
            message.clone_into(&mut work.message);
            turn.task_changed(task);
        }
        if work.patience.is_none_or(|(other, _)| other != patience) {
            let until = turn.now.after(limit);
            work.patience = Some((patience, until));
            turn.arm(task, until);
        }
    }
}

/// Whether the state is what the command was to bring about.
fn done_already(command: LifecycleCommand, state: DomainState) -> Option<&'static str> {
    match (command, state) {
        (LifecycleCommand::Stop, DomainState::Stopped) => Some("it is stopped"),
        (LifecycleCommand::Pause, DomainState::Paused) => Some("it is paused"),
        (LifecycleCommand::Resume, DomainState::Running) => Some("it is running"),
        _ => None,
    }
}

fn after_shutdown(report: Option<&DomainReport>) -> End {
    match report.and_then(|report| report.exit.as_ref()) {
        Some(exit @ ExitReason::Crashed { .. }) => End::Failed(
            Problem::new(codes::QEMU_GONE, format!("it did not power off: {exit}"))
                .remedy("look at its QEMU log: `godwit vm logs --kind qemu`"),
        ),
        Some(exit) => End::Done(exit.to_string()),
        None => End::Done("it is stopped".into()),
    }
}

/// The guest was started and its CPUs do not run any more.
fn stood_still(name: &str, state: DomainState, problem: Option<&Problem>) -> Problem {
    let why = problem.map_or_else(String::new, |problem| format!(": {}", problem.message));
    let remedy = match state {
        DomainState::Crashed => {
            format!("look at its console: `godwit vm logs {name}`; then `godwit vm reset {name}`")
        }
        _ => format!("put its disk right, then `godwit vm resume {name}`"),
    };
    Problem::new(codes::STATE_CONFLICT, format!("{name} is {state}{why}")).remedy(remedy)
}

fn ended_early(name: &str, exit: Option<&ExitReason>) -> Problem {
    let code = match exit {
        Some(ExitReason::FailedToStart { .. }) | None => codes::QEMU_START,
        Some(_) => codes::QEMU_GONE,
    };
    let message = match exit {
        Some(exit) => format!("{name} did not stay up: {exit}"),
        None => format!("{name} was not started"),
    };
    Problem::new(code, message).remedy(format!(
        "look at its QEMU log: `godwit vm logs {name} --kind qemu`"
    ))
}

fn answer_lost(node: &NodeId, command: LifecycleCommand) -> Problem {
    Problem::new(
        codes::CONNECTION_LOST,
        format!(
            "the connection to {node} was lost before it answered; it may have done the {command}"
        ),
    )
    .remedy("look at the guest before you ask again")
}
