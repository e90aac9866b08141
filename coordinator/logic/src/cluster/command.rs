//! Lifecycle commands: what is accepted, and when.

use godwit_shared::api::{CommandOptions, Decision};
use godwit_shared::model::{
    DomainState, LifecycleCommand, NodeId, Problem, RunState, TaskId, UnixMillis, VmId, codes,
};
use godwit_shared::wire::uplink::{LogKind, NodeRequest};

use super::Cluster;
use super::decide::Rating;
use super::live::Live;
use super::member::LOST_NODE;
use super::state::Purpose;
use super::task::End;
use super::turn::Turn;
use crate::input::{Output, SessionId, Ticket};
use crate::placement::Request;
use crate::record::{Key, TaskKind, VmRecord};
use godwit_shared::model::VmName;

impl Cluster {
    pub(super) fn on_command(
        &mut self,
        turn: &mut Turn,
        vm: VmId,
        task: TaskId,
        command: LifecycleCommand,
        options: &CommandOptions,
    ) -> Result<Output, Problem> {
        self.vm_record(vm)?;
        if options.node.is_some() && command != LifecycleCommand::Start {
            return Err(Problem::new(
                codes::BODY_INVALID,
                format!("`{command}` does not take a node"),
            )
            .field("node")
            .remedy("leave it out; `start` takes it"));
        }
        let superseded = self.check_idle(vm, command)?;
        let mut decision = None;
        let node = match command {
            LifecycleCommand::Start => {
                let (asked, now) = (options.node.as_ref(), turn.now);
                let made =
                    self.with_live(|cluster, live| cluster.check_start(live, vm, asked, now))?;
                Some(decision.insert(made).node.clone())
            }
            LifecycleCommand::Delete => self.check_delete(vm)?,
            other => Some(self.check_state(vm, other)?),
        };
        if let Some(shutdown) = superseded {
            let end = End::Cancelled("the VM is stopped without waiting for its guest".into());
            self.end_task(turn, shutdown, end);
        }
        match command {
            LifecycleCommand::Shutdown | LifecycleCommand::Stop => {
                self.want(turn, vm, RunState::Stopped);
            }
            LifecycleCommand::Delete => self.mark_deleting(turn, vm, true),
            _ => {}
        }
        self.remember(turn, vm, decision);
        self.begin_task(turn, task, TaskKind::Command(command), vm, node);
        self.settle(turn, vm);
        self.task(task).map(Output::Task)
    }

    /// Refuses while something else is under way. A stop may follow a shutdown
    /// that waits for its guest, and takes its place.
    pub(super) fn check_idle(
        &self,
        vm: VmId,
        command: LifecycleCommand,
    ) -> Result<Option<TaskId>, Problem> {
        let name = self.name_of(vm);
        if let Some(migration) = self.migration_of(vm) {
            return Err(busy(
                format!("{name} is being migrated"),
                format!("wait for it, or `godwit migration cancel {migration}`"),
            ));
        }
        let Some(id) = self.observed.busy.get(&vm) else {
            return Ok(None);
        };
        let Some(task) = self.records.tasks.get(id) else {
            return Ok(None);
        };
        let waits = task.kind == TaskKind::Command(LifecycleCommand::Shutdown);
        if waits && command == LifecycleCommand::Stop {
            return Ok(Some(*id));
        }
        Err(busy(
            format!("{name} is busy: {} is under way", task.kind.as_str()),
            format!("wait for it, or `godwit task cancel {id}`"),
        ))
    }

    /// Where a stopped VM is to be started.
    fn check_start(
        &self,
        live: &mut Live,
        vm: VmId,
        asked: Option<&NodeId>,
        now: UnixMillis,
    ) -> Result<Decision, Problem> {
        let record = self.vm_record(vm)?;
        let running = self
            .copies(vm)
            .find(|(_, report)| report.state.has_process());
        if let Some((node, report)) = running {
            return Err(conflict(
                format!("{} is {} on {node} already", record.name, report.state),
                "nothing needs to be done, or stop it first",
            ));
        }
        if let Some(node) = asked {
            self.member(node)?;
        }
        let chosen = self.choose(live, record, asked, now)?;
        let elsewhere = |owner: &&NodeId| **owner != chosen.node;
        let former = record.owner.as_ref().filter(elsewhere);
        if let Some(owner) = former.filter(|owner| !self.lost_there(vm, owner)) {
            self.check_up(owner, &record.name)?;
        }
        Ok(chosen)
    }

    /// A VM stays with its owner where it fits there; one with disks of its
    /// node's own goes nowhere else unless that is asked for.
    pub(super) fn choose(
        &self,
        live: &mut Live,
        record: &VmRecord,
        asked: Option<&NodeId>,
        now: UnixMillis,
    ) -> Result<Decision, Problem> {
        let bound = record.spec.disks.iter().any(|disk| !disk.shared);
        let owner = record.owner.as_ref();
        let only = asked.or(owner.filter(|_| bound));
        let mut rating = self.rating_of(live, record, now);
        rating.wish.only = only;
        let owner = owner.filter(|_| asked.is_none());
        match owner.and_then(|owner| rating.stays(owner)) {
            Some(stays) => Ok(stays),
            None => rating.best(),
        }
    }

    /// Where it is to be, but for that node.
    pub(super) fn choose_beside(
        &self,
        live: &mut Live,
        record: &VmRecord,
        not: &NodeId,
        now: UnixMillis,
    ) -> Result<Decision, Problem> {
        let mut rating = self.rating_of(live, record, now);
        rating.wish.exclude = Some(not);
        rating.best()
    }

    fn rating_of<'a>(
        &'a self,
        live: &'a mut Live,
        record: &'a VmRecord,
        now: UnixMillis,
    ) -> Rating<'a> {
        let wish = Request {
            spec: &record.spec,
            machine: record.machine.as_deref().or(record.spec.machine.as_deref()),
            accelerator: record.spec.accelerator,
            only: None,
            exclude: None,
        };
        Rating {
            cluster: self,
            live,
            wish,
            vm: Some(record.id),
            now,
        }
    }

    /// Keeps why the VM is where it is to be.
    pub(super) fn remember(&mut self, turn: &mut Turn, vm: VmId, decision: Option<Decision>) {
        let Some(record) = self.records.vms.get_mut(&vm) else {
            return;
        };
        if decision.is_some() {
            record.decision = decision;
            turn.touch(Key::Vm(vm));
        }
    }

    fn check_delete(&self, vm: VmId) -> Result<Option<NodeId>, Problem> {
        let record = self.vm_record(vm)?;
        let running = self
            .copies(vm)
            .find(|(_, report)| report.state.has_process());
        if let Some((node, report)) = running {
            let name = &record.name;
            return Err(conflict(
                format!("{name} is {} on {node}", report.state),
                format!("stop it first: `godwit vm stop {name}`"),
            ));
        }
        if let Some(owner) = &record.owner {
            self.check_up(owner, &record.name)?;
        }
        Ok(record.owner.clone())
    }

    /// Whether the command makes sense in the state that the domain is in.
    fn check_state(&self, vm: VmId, command: LifecycleCommand) -> Result<NodeId, Problem> {
        let record = self.vm_record(vm)?;
        let name = &record.name;
        let Some(owner) = &record.owner else {
            return Err(conflict(
                format!("{name} has never been started"),
                format!("start it: `godwit vm start {name}`"),
            ));
        };
        self.check_up(owner, name)?;
        let state = self
            .report(owner, vm)
            .map_or(DomainState::Stopped, |report| report.state);
        match remedy_for(command, state) {
            None => Ok(owner.clone()),
            Some(remedy) => Err(conflict(
                format!("{name} is {state} on {owner}; it cannot be asked to {command}"),
                remedy,
            )),
        }
    }

    /// Refuses when the node that the VM needs is away.
    pub(super) fn check_up(&self, node: &NodeId, name: &VmName) -> Result<SessionId, Problem> {
        self.session(node).ok_or_else(|| {
            Problem::new(
                codes::NODE_UNREACHABLE,
                format!("{name} is on {node}, which is not connected"),
            )
            .field("node")
            .value(node.as_str())
            .remedy(format!(
                "see that godwit-node runs on {node} and reaches the coordinator; {LOST_NODE}"
            ))
        })
    }

    pub(super) fn mark_deleting(&mut self, turn: &mut Turn, vm: VmId, deleting: bool) {
        if let Some(record) = self.records.vms.get_mut(&vm)
            && record.deleting != deleting
        {
            record.deleting = deleting;
            turn.touch(Key::Vm(vm));
        }
    }

    pub(super) fn on_read_log(
        &mut self,
        turn: &mut Turn,
        ticket: Ticket,
        vm: VmId,
        kind: LogKind,
        lines: u32,
    ) -> Result<Output, Problem> {
        let (node, _, _) = self.console_of(vm)?;
        let body = NodeRequest::Log { vm, kind, lines };
        let deadline = self.settings.limits.request;
        self.ask(turn, &node, Purpose::Log(ticket), body, deadline);
        Ok(Output::Waiting)
    }

    /// The session of the node where the VM is, and its name: for a console.
    pub fn console_of(&self, vm: VmId) -> Result<(NodeId, SessionId, VmName), Problem> {
        let record = self.vm_record(vm)?;
        let owner = record.owner.as_ref().ok_or_else(|| {
            conflict(
                format!("{} has never been on a node", record.name),
                format!("start it: `godwit vm start {}`", record.name),
            )
        })?;
        let session = self.check_up(owner, &record.name)?;
        Ok((owner.clone(), session, record.name.clone()))
    }
}

/// What to do instead, where the command makes no sense in that state.
fn remedy_for(command: LifecycleCommand, state: DomainState) -> Option<&'static str> {
    use DomainState as S;
    use LifecycleCommand as C;
    let fine = match command {
        C::Shutdown | C::Reboot => matches!(state, S::Running | S::ShuttingDown),
        C::Reset => matches!(
            state,
            S::Running | S::ShuttingDown | S::Paused | S::Crashed | S::IoError
        ),
        C::Pause => matches!(state, S::Running | S::ShuttingDown),
        C::Resume => matches!(state, S::Paused | S::IoError),
        C::Stop => !matches!(state, S::Incoming | S::InHandoff),
        C::Start | C::Delete => true,
    };
    if fine {
        return None;
    }
    Some(match state {
        S::Stopped => "start it first",
        S::Starting => "wait until it runs",
        S::Running => "nothing needs to be done",
        S::Paused => "resume it first",
        S::ShuttingDown => "wait until its guest has powered off, or stop it",
        S::Crashed => "reset it, or stop it",
        S::IoError => "see to its disk, then resume it, or stop it",
        S::Incoming | S::InHandoff => "wait for its migration",
        S::Unresponsive => "stop it: QEMU does not answer",
    })
}

pub(super) fn conflict(message: String, remedy: impl Into<String>) -> Problem {
    Problem::new(codes::STATE_CONFLICT, message).remedy(remedy)
}

fn busy(message: String, remedy: String) -> Problem {
    Problem::new(codes::BUSY, message).remedy(remedy)
}
