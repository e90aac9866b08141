//! The domains of one simulated node: what a request does to them, and what is
//! told of it. Guests start, stop and move at once and never fail.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use godwit_shared::model::{
    AgentState, DomainReport, DomainState, Epoch, ExitReason, LifecycleCommand, MigrationFigures,
    MigrationId, MigrationPhase, MigrationProgress, Millis, NodeId, Problem, UnixMillis, VmId,
    VmSpec, codes,
};
use godwit_shared::wire::uplink::{MigrationReport, NodeMessage, NodeReply, NodeRequest, Verdict};
use tokio::sync::mpsc;

use super::Everybody;

const MACHINE: &str = "pc-q35-10.0";

/// What a request led to: news, and the reply.
pub(super) type Outcome = (Vec<NodeMessage>, Result<NodeReply, Problem>);

/// The domains of one node.
#[derive(Debug)]
pub(super) struct Guests {
    name: NodeId,
    inner: Mutex<Inner>,
    /// How many of them run, for those who look often.
    running: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    domains: BTreeMap<VmId, DomainReport>,
    /// The session that stands.
    outbox: Option<mpsc::UnboundedSender<NodeMessage>>,
}

impl Guests {
    pub(super) fn new(name: NodeId) -> Self {
        Self {
            name,
            inner: Mutex::default(),
            running: AtomicUsize::new(0),
        }
    }

    pub(super) const fn name(&self) -> &NodeId {
        &self.name
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything for the hello; news go to `outbox` from then on.
    pub(super) fn snapshot(&self, outbox: mpsc::UnboundedSender<NodeMessage>) -> Vec<DomainReport> {
        let mut inner = self.lock();
        inner.outbox = Some(outbox);
        inner.domains.values().cloned().collect()
    }

    pub(super) fn reports(&self) -> Vec<DomainReport> {
        self.lock().domains.values().cloned().collect()
    }

    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// To be called with every change.
    fn count(&self, inner: &Inner) {
        let reports = inner.domains.values();
        let running = reports.filter(|report| report.state == DomainState::Running);
        self.running.store(running.count(), Ordering::Relaxed);
    }

    /// The state of a guest changes by itself.
    pub(super) fn happen(&self, vm: VmId, state: DomainState) {
        let mut inner = self.lock();
        if let Some(report) = inner.domains.get_mut(&vm) {
            report.state = state;
            report.since = UnixMillis::now();
            let news = NodeMessage::Domain(report.clone());
            inner.tell(news);
            self.count(&inner);
        }
    }

    /// A guest arrives by a migration.
    fn arrive(&self, report: DomainReport) {
        let mut inner = self.lock();
        inner.domains.insert(report.vm, report.clone());
        inner.tell(NodeMessage::Domain(report));
        self.count(&inner);
    }

    /// Does what is asked.
    pub(super) fn serve(&self, request: NodeRequest, everybody: &Everybody) -> Outcome {
        match request {
            NodeRequest::Define {
                vm,
                spec,
                epoch,
                machine,
            } => match spec.read("spec") {
                Ok(spec) => self.define(vm, &spec, epoch, machine),
                Err(problem) => (Vec::new(), Err(problem)),
            },
            NodeRequest::Command { vm, command, epoch } => self.command(vm, command, epoch),
            NodeRequest::Migrate { dry_run: true, .. } => {
                let reply = NodeReply::Rehearsal {
                    blockers: Vec::new(),
                    forecast: None,
                };
                (Vec::new(), Ok(reply))
            }
            NodeRequest::Migrate {
                migration,
                vm,
                target,
                ..
            } => self.migrate(migration, vm, &target.node, everybody),
            NodeRequest::Verdict(_) => (Vec::new(), Ok(NodeReply::Verdict(Verdict::Refused))),
            NodeRequest::Log { .. } => (Vec::new(), Ok(NodeReply::Log(String::new()))),
            NodeRequest::WithholdVouch { .. } => {
                let left = Millis::ZERO;
                (Vec::new(), Ok(NodeReply::Withheld { left }))
            }
            NodeRequest::WatchMigration { .. } => (Vec::new(), Ok(NodeReply::Done)),
            NodeRequest::CancelMigration { migration }
            | NodeRequest::TuneMigration { migration, .. }
            | NodeRequest::ResolveMigration { migration, .. } => {
                (Vec::new(), Err(Problem::not_found("migration", migration)))
            }
        }
    }

    fn define(&self, vm: VmId, spec: &VmSpec, epoch: Epoch, machine: Option<String>) -> Outcome {
        let mut inner = self.lock();
        let report = inner
            .domains
            .entry(vm)
            .or_insert_with(|| stopped(vm, spec, epoch, machine));
        let report = report.clone();
        let news = vec![NodeMessage::Domain(report.clone())];
        (news, Ok(NodeReply::Domain(report)))
    }

    fn command(&self, vm: VmId, command: LifecycleCommand, epoch: Epoch) -> Outcome {
        let mut inner = self.lock();
        let Some(report) = inner.domains.get_mut(&vm) else {
            return (Vec::new(), Err(Problem::not_found("domain", vm)));
        };
        if epoch < report.epoch {
            let text = format!("{vm} is at epoch {} here", report.epoch);
            return (Vec::new(), Err(Problem::new(codes::STATE_CONFLICT, text)));
        }
        if command == LifecycleCommand::Delete {
            inner.domains.remove(&vm);
            self.count(&inner);
            return (vec![NodeMessage::DomainGone(vm)], Ok(NodeReply::Done));
        }
        apply(report, command, epoch);
        let report = report.clone();
        self.count(&inner);
        let news = vec![NodeMessage::Domain(report.clone())];
        (news, Ok(NodeReply::Domain(report)))
    }

    /// Moves the guest at once: the target has it before the source lets go.
    fn migrate(
        &self,
        migration: MigrationId,
        vm: VmId,
        target: &NodeId,
        everybody: &Everybody,
    ) -> Outcome {
        let here = self.lock().domains.get(&vm).cloned();
        let there = everybody
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(target)
            .cloned();
        let (Some(here), Some(there)) = (here, there) else {
            return (Vec::new(), Err(Problem::not_found("domain", vm)));
        };
        let arrived = DomainReport {
            epoch: Epoch(here.epoch.0 + 1),
            ..here
        };
        let epoch = arrived.epoch;
        there.arrive(arrived);
        {
            let mut inner = self.lock();
            inner.domains.remove(&vm);
            self.count(&inner);
        }
        let report = |phase| {
            NodeMessage::Migration(MigrationReport {
                phase,
                ..report(migration, vm, &self.name, target, epoch)
            })
        };
        let news = vec![
            report(MigrationPhase::Preparing),
            report(MigrationPhase::Precopy),
            report(MigrationPhase::Completed),
            NodeMessage::DomainGone(vm),
        ];
        (news, Ok(NodeReply::Done))
    }
}

impl Inner {
    fn tell(&self, message: NodeMessage) {
        if let Some(outbox) = &self.outbox {
            // Without a session, the next hello tells it.
            let _ = outbox.send(message);
        }
    }
}

fn stopped(vm: VmId, spec: &VmSpec, epoch: Epoch, machine: Option<String>) -> DomainReport {
    DomainReport {
        vm,
        name: spec.name.clone(),
        epoch,
        owner: true,
        state: DomainState::Stopped,
        since: UnixMillis::now(),
        exit: None,
        problem: None,
        agent: AgentState::Disconnected,
        pid: None,
        migration: None,
        machine: Some(machine.unwrap_or_else(|| MACHINE.to_owned())),
        accelerator: None,
        usage: None,
    }
}

fn apply(report: &mut DomainReport, command: LifecycleCommand, epoch: Epoch) {
    let (state, exit) = match command {
        LifecycleCommand::Start
        | LifecycleCommand::Resume
        | LifecycleCommand::Reboot
        | LifecycleCommand::Reset => (DomainState::Running, None),
        LifecycleCommand::Pause => (DomainState::Paused, None),
        LifecycleCommand::Shutdown => (DomainState::Stopped, Some(ExitReason::GuestShutdown)),
        LifecycleCommand::Stop | LifecycleCommand::Delete => {
            (DomainState::Stopped, Some(ExitReason::Stopped))
        }
    };
    let runs = state != DomainState::Stopped;
    report.epoch = epoch;
    report.state = state;
    report.exit = exit;
    report.since = UnixMillis::now();
    report.pid = runs.then_some(4242);
    report.accelerator = runs.then(|| "kvm".to_owned());
}

fn report(
    migration: MigrationId,
    vm: VmId,
    source: &NodeId,
    target: &NodeId,
    epoch: Epoch,
) -> MigrationReport {
    let now = UnixMillis::now();
    MigrationReport {
        migration,
        vm,
        source: source.clone(),
        target: target.clone(),
        phase: MigrationPhase::Preparing,
        since: now,
        started: now,
        progress: MigrationProgress::default(),
        blackout: Some(Millis(30)),
        figures: MigrationFigures::default(),
        failure: None,
        epoch,
    }
}
