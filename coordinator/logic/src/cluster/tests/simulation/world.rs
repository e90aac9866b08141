//! Nodes as the coordinator may meet them: they keep their domains whatever
//! happens to sessions, work on requests late, and move guests among themselves.

use super::super::*;
use godwit_shared::model::codes;

/// MiB that each node offers.
pub(super) const MEMORY: u64 = 1024;
/// MiB that each VM takes: three fit on a node.
pub(super) const VM_MEMORY: u64 = 300;

#[derive(Debug, Default)]
pub(super) struct SimNode {
    pub(super) session: Option<SessionId>,
    /// Sent and not delivered; nothing else is delivered before it.
    pub(super) hello: Option<NodeHello>,
    pub(super) inbox: VecDeque<Sent>,
    pub(super) outbox: VecDeque<NodeMessage>,
    pub(super) domains: BTreeMap<VmId, DomainReport>,
    pub(super) migrations: BTreeMap<MigrationId, MigrationReport>,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) nodes: BTreeMap<NodeId, SimNode>,
    clock: u64,
}

impl World {
    pub(super) fn new(names: &[&str]) -> Self {
        let nodes = names.iter().map(|name| (node(name), SimNode::default()));
        Self {
            nodes: nodes.collect(),
            clock: 0,
        }
    }

    pub(super) fn of(&mut self, name: &NodeId) -> &mut SimNode {
        self.nodes.get_mut(name).unwrap()
    }

    /// The nodes on which the guest's CPUs run.
    pub(super) fn runners(&self, vm: VmId) -> Vec<&NodeId> {
        let runs = |node: &&NodeId| {
            let domain = self.nodes[*node].domains.get(&vm);
            domain.is_some_and(|domain| domain.state.executes())
        };
        self.nodes.keys().filter(runs).collect()
    }

    pub(super) fn vms(&self) -> BTreeSet<VmId> {
        let nodes = self.nodes.values();
        nodes
            .flat_map(|node| node.domains.keys().copied())
            .collect()
    }

    pub(super) fn connect(&mut self, name: &NodeId, session: SessionId) {
        let node = self.of(name);
        node.session = Some(session);
        node.outbox.clear();
        node.hello = Some(NodeHello {
            facts: Document::of(&facts(MEMORY)).unwrap(),
            domains: node.domains.values().cloned().collect(),
            migrations: node.migrations.values().cloned().collect(),
        });
    }

    /// The connection ends; requests that have arrived may still be worked on.
    pub(super) fn cut(&mut self, name: &NodeId, lose_inbox: bool) {
        let node = self.of(name);
        node.session = None;
        node.hello = None;
        node.outbox.clear();
        if lose_inbox {
            node.inbox.clear();
        }
    }

    /// Changes a domain and reports it.
    fn set(&mut self, name: &NodeId, mut report: DomainReport) -> DomainReport {
        self.clock += 1;
        report.since = UnixMillis(self.clock);
        let node = self.of(name);
        node.domains.insert(report.vm, report.clone());
        node.outbox.push_back(NodeMessage::Domain(report.clone()));
        report
    }

    fn remove(&mut self, name: &NodeId, vm: VmId) {
        let node = self.of(name);
        node.domains.remove(&vm);
        node.outbox.push_back(NodeMessage::DomainGone(vm));
    }

    fn has_room(&self, name: &NodeId) -> bool {
        let domains = self.nodes[name].domains.values();
        let running = domains.filter(|domain| domain.state.has_process()).count() as u64;
        (running + 1) * VM_MEMORY <= MEMORY
    }

    /// The node works on one of its requests: they run beside each other.
    pub(super) fn work(&mut self, name: &NodeId, nth: u8) {
        let inbox = &mut self.of(name).inbox;
        let place = usize::from(nth).checked_rem(inbox.len());
        let Some(sent) = place.and_then(|place| inbox.remove(place)) else {
            return;
        };
        let outcome = match sent.body {
            NodeRequest::Define { vm, epoch, .. } => Ok(self.define(name, vm, epoch)),
            NodeRequest::Command { vm, command, epoch } => self.command(name, vm, command, epoch),
            NodeRequest::Migrate {
                migration,
                vm,
                target,
                ..
            } => self.begin_move(name, migration, vm, &target.node),
            NodeRequest::CancelMigration { migration } => self.cancel_move(name, migration),
            _ => Ok(NodeReply::Done),
        };
        let node = self.of(name);
        if node.session == Some(sent.session) {
            node.outbox.push_back(NodeMessage::Reply {
                request: sent.request,
                outcome,
            });
        }
    }

    fn define(&mut self, name: &NodeId, vm: VmId, epoch: Epoch) -> NodeReply {
        if let Some(known) = self.of(name).domains.get(&vm) {
            return NodeReply::Domain(known.clone());
        }
        let report = DomainReport {
            vm,
            name: "vm".parse().unwrap(),
            epoch,
            owner: false,
            state: DomainState::Stopped,
            since: UnixMillis(0),
            exit: None,
            problem: None,
            agent: AgentState::Absent,
            pid: None,
            migration: None,
            machine: None,
            accelerator: Some("tcg".into()),
            usage: None,
        };
        NodeReply::Domain(self.set(name, report))
    }

    /// As `godwit-node` decides, in short.
    fn command(
        &mut self,
        name: &NodeId,
        vm: VmId,
        command: LifecycleCommand,
        epoch: Epoch,
    ) -> Result<NodeReply, Problem> {
        use DomainState as S;
        use LifecycleCommand as C;
        let Some(mut domain) = self.of(name).domains.get(&vm).cloned() else {
            return Err(Problem::not_found("VM", vm));
        };
        let conflict = || Err(Problem::new(codes::STATE_CONFLICT, format!("{command}")));
        if epoch < domain.epoch || domain.migration.is_some() {
            return conflict();
        }
        match (command, domain.state) {
            (C::Start, S::Stopped) if !self.has_room(name) => {
                return Err(Problem::new(codes::INSUFFICIENT_RESOURCES, "full"));
            }
            (C::Start, S::Stopped) => {
                domain.epoch = epoch;
                domain.owner = true;
                domain.state = S::Running;
                domain.exit = None;
            }
            (C::Delete, S::Stopped) => {
                self.remove(name, vm);
                return Ok(NodeReply::Domain(domain));
            }
            (C::Start, S::Running) | (C::Stop | C::Shutdown, S::Stopped) => {}
            (C::Stop, _) => {
                domain.state = S::Stopped;
                domain.exit = Some(ExitReason::Stopped);
            }
            (C::Shutdown, S::Running) => domain.state = S::ShuttingDown,
            (C::Pause, S::Running) if epoch == domain.epoch => domain.state = S::Paused,
            (C::Resume, S::Paused) if epoch == domain.epoch => domain.state = S::Running,
            (C::Reset, S::Running) if epoch == domain.epoch => {}
            _ => return conflict(),
        }
        Ok(NodeReply::Domain(self.set(name, domain)))
    }

    /// The guest ends by itself.
    pub(super) fn exit(&mut self, vm: VmId, crash: bool) {
        let Some(name) = self.runners(vm).first().map(|name| (*name).clone()) else {
            return;
        };
        let mut domain = self.of(&name).domains[&vm].clone();
        domain.state = DomainState::Stopped;
        domain.exit = Some(if crash {
            let detail = "signal 11".into();
            ExitReason::Crashed { detail }
        } else {
            ExitReason::GuestShutdown
        });
        if let Some(id) = domain.migration.take() {
            self.undo_move(&name, id);
        }
        self.set(&name, domain);
    }

    fn begin_move(
        &mut self,
        name: &NodeId,
        id: MigrationId,
        vm: VmId,
        target: &NodeId,
    ) -> Result<NodeReply, Problem> {
        let domain = self.of(name).domains.get(&vm).cloned();
        let fine = |domain: &DomainReport| {
            domain.migration.is_none() && domain.state == DomainState::Running
        };
        let Some(mut domain) = domain.filter(fine) else {
            return Err(Problem::new(codes::STATE_CONFLICT, "not running"));
        };
        domain.migration = Some(id);
        let epoch = domain.epoch;
        self.set(name, domain);
        let report = MigrationReport {
            migration: id,
            vm,
            source: name.clone(),
            target: target.clone(),
            phase: MigrationPhase::Preparing,
            since: UnixMillis(self.clock),
            started: UnixMillis(self.clock),
            progress: MigrationProgress::default(),
            blackout: None,
            figures: MigrationFigures::default(),
            failure: None,
            epoch,
        };
        self.tell_move(name, report);
        Ok(NodeReply::Done)
    }

    fn tell_move(&mut self, name: &NodeId, report: MigrationReport) {
        let node = self.of(name);
        node.migrations.insert(report.migration, report.clone());
        node.outbox.push_back(NodeMessage::Migration(report));
    }

    fn cancel_move(&mut self, name: &NodeId, id: MigrationId) -> Result<NodeReply, Problem> {
        let report = self.of(name).migrations.get(&id).cloned();
        let early = [MigrationPhase::Preparing, MigrationPhase::Precopy];
        match report.filter(|report| early.contains(&report.phase)) {
            Some(report) => {
                let mut domain = self.of(name).domains[&report.vm].clone();
                domain.migration = None;
                self.set(name, domain);
                self.undo_move(name, id);
                Ok(NodeReply::Done)
            }
            None => Err(Problem::new(codes::STATE_CONFLICT, "too late")),
        }
    }

    /// Before the grant: nothing is left on the target.
    fn undo_move(&mut self, name: &NodeId, id: MigrationId) {
        let Some(mut report) = self.of(name).migrations.get(&id).cloned() else {
            return;
        };
        let (target, vm) = (report.target.clone(), report.vm);
        let incoming = self.of(&target).domains.get(&vm);
        if incoming.is_some_and(|domain| domain.state == DomainState::Incoming) {
            self.remove(&target, vm);
        }
        report.phase = MigrationPhase::Failed;
        self.tell_move(name, report);
    }

    /// Every unfinished migration, with its source.
    pub(super) fn moves(&self) -> Vec<(NodeId, MigrationId)> {
        let mut found = Vec::new();
        for (name, node) in &self.nodes {
            let open = node.migrations.values().filter(|m| !m.phase.is_final());
            found.extend(open.map(|report| (name.clone(), report.migration)));
        }
        found
    }

    /// The next step of a migration, between the nodes alone.
    pub(super) fn advance(&mut self, source: &NodeId, id: MigrationId) {
        let mut report = self.of(source).migrations[&id].clone();
        let (target, vm) = (report.target.clone(), report.vm);
        let mut domain = self.of(source).domains[&vm].clone();
        match report.phase {
            MigrationPhase::Preparing => {
                let there = self.of(&target).domains.get(&vm);
                let taken = there.is_some_and(|domain| domain.state.has_process());
                if taken || !self.has_room(&target) {
                    let _ = self.cancel_move(source, id);
                    return;
                }
                let incoming = DomainReport {
                    owner: false,
                    state: DomainState::Incoming,
                    ..domain
                };
                self.set(&target, incoming);
                report.phase = MigrationPhase::Precopy;
                self.tell_move(source, report);
            }
            MigrationPhase::Precopy => {
                domain.state = DomainState::InHandoff;
                domain.owner = false;
                self.set(source, domain);
                report.phase = MigrationPhase::Handoff;
                self.tell_move(source, report);
            }
            _ => {
                let incoming = self.of(&target).domains.get(&vm).cloned();
                let Some(mut incoming) =
                    incoming.filter(|domain| domain.state == DomainState::Incoming)
                else {
                    report.phase = MigrationPhase::Completed;
                    report.epoch = report.epoch.next();
                    self.remove(source, vm);
                    return self.tell_move(source, report);
                };
                incoming.state = DomainState::Running;
                incoming.owner = true;
                incoming.epoch = report.epoch.next();
                incoming.migration = None;
                self.set(&target, incoming);
            }
        }
    }
}
