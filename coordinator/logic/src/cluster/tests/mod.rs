//! A cluster on a bench: inputs go in by hand, requests are looked at and
//! answered by hand, and after every step the store is read back and compared.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod calibration;
mod decision;
mod failover;
mod ledger;
mod lifecycle;
mod live;
mod log;
mod marks;
mod members;
mod migration;
mod ownership;
mod plans;
mod queue;
mod restart;
mod restored;
mod simulation;
mod steering;
mod views;
mod what_if;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use godwit_shared::api::{
    CommandOptions, CreateVm, Event, MigrateRequest, TaskState, TaskView, VmView,
};
use godwit_shared::model::capacity::EmulatorFacts;
use godwit_shared::model::spec::{Accelerator, Architecture};
use godwit_shared::model::{
    AgentState, Capacity, DomainReport, DomainState, Epoch, ExitReason, LifecycleCommand, MiB,
    MigrationFigures, MigrationId, MigrationPhase, MigrationProgress, Millis, NodeFacts, NodeId,
    Problem, RunState, TaskId, UnixMillis, VmId, VmSpec,
};
use godwit_shared::wire::document::Document;
use godwit_shared::wire::uplink::{
    CoordinatorMessage, MigrationReport, NodeHello, NodeMessage, NodeReply, NodeRequest,
};
use serde_json::json;

use super::{Cluster, Limits, MigrationLimits, RebalanceSettings, Settings};
use crate::effect::{Answer, Effect, Timer};
use crate::input::{Input, Output, SessionId, Ticket};
use crate::placement::Profiles;
use crate::record::{Key, SecretDigest, Write};

/// A request as it would go to a node.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) node: NodeId,
    pub(super) session: SessionId,
    pub(super) request: u64,
    pub(super) body: NodeRequest,
}

/// The cluster and its surroundings.
pub(super) struct Bench {
    pub(super) cluster: Cluster,
    pub(super) now: UnixMillis,
    pub(super) store: BTreeMap<String, Vec<u8>>,
    /// Requests that nobody has looked at.
    pub(super) sent: VecDeque<Sent>,
    pub(super) told: Vec<(NodeId, CoordinatorMessage)>,
    pub(super) closed: Vec<(NodeId, SessionId, Problem)>,
    pub(super) answers: Vec<(Ticket, Result<Answer, Problem>)>,
    pub(super) events: Vec<Event>,
    pub(super) timers: BTreeMap<Timer, UnixMillis>,
    pub(super) fencing: Vec<NodeId>,
    /// Whether the room given away may never be more than there is, even for
    /// a moment in which a node says otherwise than before.
    pub(super) strict: bool,
    last_id: u128,
    last_session: u64,
}

pub(super) fn settings() -> Settings {
    Settings {
        name: "godwit".into(),
        software: "0.1.0".into(),
        ca_fingerprint: "ab".repeat(32),
        started: UnixMillis(1_000),
        placement: Profiles::default(),
        migrations: MigrationLimits::default(),
        rebalance: RebalanceSettings::default(),
        limits: Limits::default(),
        fence_agents: BTreeSet::new(),
    }
}

pub(super) fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

pub(super) fn facts(memory: u64) -> NodeFacts {
    NodeFacts {
        software: "0.1.0".into(),
        capacity: Capacity {
            vcpus: 16,
            memory: MiB(memory),
        },
        emulators: vec![EmulatorFacts {
            architecture: Architecture::X86_64,
            path: "/usr/bin/qemu-system-x86_64".into(),
            version: "10.0.2".into(),
            accelerators: vec![Accelerator::Tcg],
            machines: vec!["pc-q35-10.0".into()],
            machine_aliases: BTreeMap::from([("q35".into(), "pc-q35-10.0".into())]),
            cpus: Vec::new(),
        }],
        address: "192.0.2.1:7441".into(),
        ..NodeFacts::default()
    }
}

pub(super) fn spec(name: &str, memory: u64) -> VmSpec {
    VmSpec::from_value(json!({ "name": name, "memory": memory })).unwrap()
}

pub(super) fn report(vm: &VmView, state: DomainState, epoch: u64) -> DomainReport {
    DomainReport {
        vm: vm.id,
        name: vm.name.clone(),
        epoch: Epoch(epoch),
        owner: !matches!(state, DomainState::Incoming),
        state,
        since: UnixMillis(0),
        exit: None,
        problem: None,
        agent: AgentState::Absent,
        pid: state.has_process().then_some(100),
        migration: None,
        machine: state.has_process().then(|| "pc-q35-10.0".into()),
        accelerator: Some("tcg".into()),
        usage: None,
    }
}

pub(super) fn exited(vm: &VmView, epoch: u64, exit: ExitReason) -> DomainReport {
    DomainReport {
        exit: Some(exit),
        ..report(vm, DomainState::Stopped, epoch)
    }
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(settings())
    }

    pub(super) fn with(settings: Settings) -> Self {
        let now = UnixMillis(1_000);
        let cluster = Cluster::load(settings, now, [], &mut Vec::new()).unwrap();
        Self {
            cluster,
            now,
            store: BTreeMap::new(),
            sent: VecDeque::new(),
            told: Vec::new(),
            closed: Vec::new(),
            answers: Vec::new(),
            events: Vec::new(),
            timers: BTreeMap::new(),
            fencing: Vec::new(),
            strict: true,
            last_id: 0,
            last_session: 0,
        }
    }

    /// A cluster whose nodes, of 1 GiB each, are connected.
    pub(super) fn of(nodes: &[&str]) -> Self {
        Self::of_with(settings(), nodes)
    }

    pub(super) fn of_with(settings: Settings, nodes: &[&str]) -> Self {
        let mut bench = Self::with(settings);
        for name in nodes {
            bench.join(name).unwrap();
            bench.connect(name, 1024, vec![]);
        }
        bench
    }

    pub(super) fn id(&mut self) -> u128 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn step(&mut self, input: Input) -> Result<Output, Problem> {
        let mut effects = Vec::new();
        let before = self.cluster.records.clone();
        let output = self.cluster.step(self.now, input, &mut effects);
        if output.is_err() {
            assert_eq!(before, self.cluster.records, "a refusal changed records");
            assert_eq!(effects, [], "a refusal has effects");
        }
        self.perform(effects);
        self.check();
        output
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for (place, effect) in effects.into_iter().enumerate() {
            match effect {
                Effect::Persist(writes) => {
                    assert_eq!(place, 0, "writes come first");
                    self.write(writes);
                }
                Effect::Send { node, message, .. } => self.told.push((node, message)),
                Effect::Request {
                    node,
                    session,
                    request,
                    body,
                    ..
                } => self.sent.push_back(Sent {
                    node,
                    session,
                    request,
                    body,
                }),
                Effect::CloseSession {
                    node,
                    session,
                    problem,
                } => self.closed.push((node, session, problem)),
                Effect::Emit(event) => {
                    let last = self.events.last().map_or(0, |event| event.seq);
                    assert_eq!(event.seq, last + 1, "event numbers have no gap");
                    self.events.push(event);
                }
                Effect::TaskChanged(_) => {}
                Effect::Fence(node) => self.fencing.push(node),
                Effect::Answer { ticket, outcome } => self.answers.push((ticket, outcome)),
                Effect::Arm { timer, at } => {
                    self.timers.insert(timer, at);
                }
            }
        }
    }

    pub(super) fn write(&mut self, writes: Vec<Write>) {
        let keys: BTreeSet<&Key> = writes.iter().map(Write::key).collect();
        assert_eq!(keys.len(), writes.len(), "each key is written once");
        for write in writes {
            match write {
                Write::Put { key, value } => self.store.insert(key.to_string(), value),
                Write::Delete { key } => self.store.remove(&key.to_string()),
            };
        }
    }

    /// What was persisted is what is in memory, and the room given away is
    /// never more than there is.
    fn check(&self) {
        let loaded = self.load(&mut Vec::new());
        assert_eq!(loaded.records, self.cluster.records);
        let loads = self.cluster.loads();
        for (name, load) in loads.into_iter().filter(|_| self.strict) {
            let record = &self.cluster.records.nodes[name];
            let capacity = record.facts.as_ref().unwrap().capacity;
            assert!(load.used.fits(capacity), "{name} has {load:?}");
        }
    }

    fn load(&self, effects: &mut Vec<Effect>) -> Cluster {
        Cluster::load(
            self.cluster.settings.clone(),
            self.now,
            self.store.clone(),
            effects,
        )
        .unwrap()
    }

    /// The coordinator is killed, and started on its store.
    pub(super) fn restart(&mut self) {
        let mut effects = Vec::new();
        self.cluster = self.load(&mut effects);
        self.sent.clear();
        self.told.clear();
        self.timers.clear();
        self.perform(effects);
    }

    /// The same, and the nodes come back with what they had.
    pub(super) fn restart_connected(&mut self, names: &[&str]) {
        let state = |name: &&str| &self.cluster.observed.nodes[&node(name)];
        let domains = names.iter().map(|name| state(name).domains.values());
        let all: Vec<Vec<DomainReport>> = domains.map(|all| all.cloned().collect()).collect();
        self.restart();
        for (name, domains) in names.iter().zip(all) {
            self.connect(name, 1024, domains);
        }
    }

    pub(super) fn join(&mut self, name: &str) -> Result<Output, Problem> {
        let id = format!("token-{}", self.id());
        let digest = SecretDigest([7; 32]);
        self.step(Input::CreateToken {
            id: id.clone(),
            digest,
            valid: None,
        })?;
        self.step(Input::Join {
            token: id,
            digest,
            node: node(name),
            address: "192.0.2.1:7441".into(),
        })
    }

    pub(super) fn hello(
        &mut self,
        name: &str,
        incarnation: u32,
        hello: NodeHello,
    ) -> Result<SessionId, Problem> {
        self.last_session += 1;
        let session = SessionId(self.last_session);
        self.step(Input::SessionOpened {
            node: node(name),
            incarnation,
            session,
            hello,
        })?;
        Ok(session)
    }

    pub(super) fn connect(&mut self, name: &str, memory: u64, domains: Vec<DomainReport>) {
        let hello = NodeHello {
            facts: Document::of(&facts(memory)).unwrap(),
            domains,
            migrations: vec![],
        };
        self.hello(name, 1, hello).unwrap();
    }

    pub(super) fn disconnect(&mut self, name: &str) {
        let session = self.cluster.session(&node(name)).unwrap();
        self.step(Input::SessionClosed {
            node: node(name),
            session,
            reason: "silent for 600 ms".into(),
        })
        .unwrap();
    }

    pub(super) fn say(&mut self, name: &str, message: NodeMessage) {
        let session = self.cluster.session(&node(name)).unwrap();
        self.step(Input::Message {
            node: node(name),
            session,
            message,
        })
        .unwrap();
    }

    /// The oldest request that nobody has looked at.
    pub(super) fn asked(&mut self) -> Sent {
        self.sent.pop_front().expect("a request is sent")
    }

    pub(super) fn reply(&mut self, to: &Sent, outcome: Result<NodeReply, Problem>) {
        self.step(Input::Message {
            node: to.node.clone(),
            session: to.session,
            message: NodeMessage::Reply {
                request: to.request,
                outcome,
            },
        })
        .unwrap();
    }

    pub(super) fn domain(&mut self, to: &Sent, report: DomainReport) {
        self.reply(to, Ok(NodeReply::Domain(report)));
    }

    pub(super) fn create(
        &mut self,
        spec: VmSpec,
        start: bool,
        on: Option<&str>,
    ) -> Result<(VmId, TaskId), Problem> {
        let vm = VmId::from_u128(self.id());
        let task = TaskId::from_u128(self.id());
        self.step(Input::CreateVm {
            vm,
            task,
            request: CreateVm {
                spec,
                start,
                node: on.map(node),
            },
        })?;
        Ok((vm, task))
    }

    pub(super) fn command(
        &mut self,
        vm: VmId,
        command: LifecycleCommand,
    ) -> Result<TaskId, Problem> {
        self.command_on(vm, command, None)
    }

    pub(super) fn command_on(
        &mut self,
        vm: VmId,
        command: LifecycleCommand,
        on: Option<&str>,
    ) -> Result<TaskId, Problem> {
        let task = TaskId::from_u128(self.id());
        self.step(Input::Command {
            vm,
            task,
            command,
            options: CommandOptions { node: on.map(node) },
        })?;
        Ok(task)
    }

    /// A VM of 256 MiB that runs on that node.
    pub(super) fn running(&mut self, name: &str, on: &str) -> VmId {
        self.running_as(spec(name, 256), on)
    }

    /// One of that spec.
    pub(super) fn running_as(&mut self, spec: VmSpec, on: &str) -> VmId {
        let (vm, task) = self.create(spec, true, Some(on)).unwrap();
        let view = self.vm(vm);
        let define = self.asked();
        let before = view.epoch.0 - 1;
        self.domain(&define, report(&view, DomainState::Stopped, before));
        let start = self.asked();
        self.domain(&start, report(&view, DomainState::Running, view.epoch.0));
        assert_eq!(self.task(task).state, TaskState::Succeeded);
        vm
    }

    pub(super) fn migrate(
        &mut self,
        vm: VmId,
        target: Option<&str>,
    ) -> Result<(MigrationId, TaskId), Problem> {
        let migration = MigrationId::from_u128(self.id());
        let task = TaskId::from_u128(self.id());
        self.step(Input::Migrate {
            vm,
            migration,
            task,
            ticket: Ticket(1),
            request: MigrateRequest {
                target: target.map(node),
                ..MigrateRequest::default()
            },
        })?;
        Ok((migration, task))
    }

    pub(super) fn moving(
        &self,
        id: MigrationId,
        phase: MigrationPhase,
        epoch: u64,
    ) -> MigrationReport {
        let record = &self.cluster.records.migrations[&id];
        MigrationReport {
            migration: id,
            vm: record.vm,
            source: record.source.clone(),
            target: record.target.clone(),
            phase,
            since: self.now,
            started: self.now,
            progress: MigrationProgress::default(),
            blackout: (phase == MigrationPhase::Completed).then_some(Millis(23)),
            figures: MigrationFigures::default(),
            failure: None,
            epoch: Epoch(epoch),
        }
    }

    pub(super) fn vm(&self, vm: VmId) -> VmView {
        self.cluster.vm(vm).unwrap()
    }

    pub(super) fn task(&self, task: TaskId) -> TaskView {
        self.cluster.task(task).unwrap()
    }

    pub(super) fn kinds(&self) -> Vec<&str> {
        self.events
            .iter()
            .map(|event| event.kind.as_str())
            .collect()
    }

    pub(super) fn pass(&mut self, wait: Millis) {
        self.now = self.now.after(wait);
        let due: Vec<Timer> = self
            .timers
            .iter()
            .filter(|(_, at)| **at <= self.now)
            .map(|(timer, _)| *timer)
            .collect();
        for timer in due {
            self.timers.remove(&timer);
            self.step(Input::Timer(timer)).unwrap();
        }
    }
}

pub(super) fn command_of(sent: &Sent) -> (LifecycleCommand, Epoch) {
    match &sent.body {
        NodeRequest::Command { command, epoch, .. } => (*command, *epoch),
        other => panic!("a command was expected, not {other:?}"),
    }
}

pub(super) fn define_epoch(sent: &Sent) -> Epoch {
    match &sent.body {
        NodeRequest::Define { epoch, .. } => *epoch,
        other => panic!("a definition was expected, not {other:?}"),
    }
}

pub(super) fn wants(bench: &Bench, vm: VmId) -> (RunState, Option<String>, u64) {
    let view = bench.vm(vm);
    let node = view.node.map(|node| node.to_string());
    (view.desired, node, view.epoch.0)
}

/// Which migrations the nodes were asked for since the last look.
pub(super) fn begun(bench: &mut Bench) -> Vec<MigrationId> {
    let sent = bench.sent.drain(..);
    let ids = sent.filter_map(|sent| match sent.body {
        NodeRequest::Migrate { migration, .. } => Some(migration),
        _ => None,
    });
    ids.collect()
}
