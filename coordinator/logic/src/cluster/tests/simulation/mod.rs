//! Random histories: operators, guests, sessions, crashes of the coordinator
//! between the commit and the act, and time, in any order.
//!
//! After every step: no guest runs twice, epochs never go down, events have no
//! gap, what was persisted is what is in memory, and no decision gave away more
//! room than there was. At the end everything is healed, and then every task
//! and migration has ended and the records tell the truth.

mod world;

use super::*;
use proptest::prelude::*;
use world::{VM_MEMORY, World};

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];

/// One thing that happens. Numbers choose among what there is.
#[derive(Debug, Clone, Copy)]
enum Act {
    Create {
        start: bool,
    },
    Command {
        vm: u8,
        command: LifecycleCommand,
    },
    StartOn {
        vm: u8,
        node: u8,
    },
    Migrate {
        vm: u8,
    },
    CancelTask {
        task: u8,
    },
    Connect {
        node: u8,
    },
    Disconnect {
        node: u8,
        lose_inbox: bool,
    },
    Work {
        node: u8,
        nth: u8,
    },
    Deliver {
        node: u8,
    },
    /// Deliveries and work everywhere, for a while.
    Flow {
        rounds: u8,
    },
    Exit {
        vm: u8,
        crash: bool,
    },
    Advance {
        migration: u8,
    },
    Unanswered {
        request: u8,
    },
    Pass {
        seconds: u8,
    },
    /// The coordinator dies after it has committed a command and before it
    /// acts on it; with no command it just dies.
    Crash {
        vm: u8,
        command: Option<LifecycleCommand>,
        lose_inbox: bool,
    },
}

fn command() -> impl Strategy<Value = LifecycleCommand> {
    use LifecycleCommand as C;
    prop::sample::select(vec![
        C::Start,
        C::Start,
        C::Stop,
        C::Shutdown,
        C::Pause,
        C::Resume,
        C::Reset,
        C::Delete,
    ])
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => any::<bool>().prop_map(|start| Act::Create { start }),
        4 => (any::<u8>(), command()).prop_map(|(vm, command)| Act::Command { vm, command }),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(vm, node)| Act::StartOn { vm, node }),
        3 => any::<u8>().prop_map(|vm| Act::Migrate { vm }),
        1 => any::<u8>().prop_map(|task| Act::CancelTask { task }),
        6 => any::<u8>().prop_map(|node| Act::Connect { node }),
        1 => (any::<u8>(), any::<bool>())
            .prop_map(|(node, lose_inbox)| Act::Disconnect { node, lose_inbox }),
        9 => (any::<u8>(), any::<u8>()).prop_map(|(node, nth)| Act::Work { node, nth }),
        12 => any::<u8>().prop_map(|node| Act::Deliver { node }),
        5 => (1_u8..8).prop_map(|rounds| Act::Flow { rounds }),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(vm, crash)| Act::Exit { vm, crash }),
        5 => any::<u8>().prop_map(|migration| Act::Advance { migration }),
        2 => any::<u8>().prop_map(|request| Act::Unanswered { request }),
        1 => (0_u8..120).prop_map(|seconds| Act::Pass { seconds }),
        1 => (any::<u8>(), prop::option::of(command()), any::<bool>())
            .prop_map(|(vm, command, lose_inbox)| Act::Crash { vm, command, lose_inbox }),
    ]
}

fn pick<T: Clone>(from: impl IntoIterator<Item = T>, number: u8) -> Option<T> {
    let all: Vec<T> = from.into_iter().collect();
    let index = usize::from(number).checked_rem(all.len())?;
    Some(all[index].clone())
}

struct Simulation {
    bench: Bench,
    world: World,
    epochs: BTreeMap<VmId, Epoch>,
    last_session: u64,
}

impl Simulation {
    fn new() -> Self {
        let mut bench = Bench::new();
        bench.strict = false;
        for name in NODES {
            bench.join(name).unwrap();
        }
        let mut simulation = Self {
            bench,
            world: World::new(&NODES),
            epochs: BTreeMap::new(),
            last_session: 0,
        };
        for name in NODES {
            simulation.connect(&node(name));
            simulation.deliver(&node(name));
        }
        simulation
    }

    fn perform(&mut self, act: Act) {
        let vms = || self.bench.cluster.records.vms.keys().copied();
        match act {
            Act::Create { start } => {
                let name = format!("vm-{}", self.bench.id());
                if self.bench.cluster.records.vms.len() < 6
                    && self
                        .bench
                        .create(spec(&name, VM_MEMORY), start, None)
                        .is_ok()
                {
                    self.check_room();
                }
            }
            Act::Command { vm, command } => {
                if let Some(vm) = pick(vms(), vm) {
                    self.command(vm, command, None);
                }
            }
            Act::StartOn { vm, node } => {
                let target = pick(NODES, node);
                if let Some(vm) = pick(vms(), vm) {
                    self.command(vm, LifecycleCommand::Start, target);
                }
            }
            Act::Migrate { vm } => {
                if let Some(vm) = pick(vms(), vm)
                    && self.bench.migrate(vm, None).is_ok()
                {
                    self.check_room();
                }
            }
            Act::CancelTask { task } => {
                let tasks = self.bench.cluster.observed.work.keys().copied();
                if let Some(task) = pick(tasks, task) {
                    let _ = self.bench.step(Input::CancelTask { task });
                }
            }
            Act::Connect { node } => {
                let name = pick(self.world.nodes.keys().cloned(), node).unwrap();
                self.connect(&name);
            }
            Act::Disconnect { node, lose_inbox } => {
                let name = pick(self.world.nodes.keys().cloned(), node).unwrap();
                self.disconnect(&name, lose_inbox);
            }
            Act::Work { node, nth } => {
                let busy = self
                    .world
                    .nodes
                    .iter()
                    .filter(|(_, node)| !node.inbox.is_empty());
                if let Some(name) = pick(busy.map(|(name, _)| name.clone()), node) {
                    self.world.work(&name, nth);
                }
            }
            Act::Deliver { node } => {
                let speaking = self.world.nodes.iter().filter(|(_, node)| {
                    node.session.is_some() && (node.hello.is_some() || !node.outbox.is_empty())
                });
                if let Some(name) = pick(speaking.map(|(name, _)| name.clone()), node) {
                    self.deliver(&name);
                }
            }
            Act::Flow { rounds } => {
                for _ in 0..rounds {
                    self.flow();
                }
            }
            Act::Exit { vm, crash } => {
                if let Some(vm) = pick(self.world.vms(), vm) {
                    self.world.exit(vm, crash);
                }
            }
            Act::Advance { migration } => {
                if let Some((source, id)) = pick(self.world.moves(), migration) {
                    self.world.advance(&source, id);
                }
            }
            Act::Unanswered { request } => {
                let requests = self.bench.cluster.observed.requests.keys().copied();
                if let Some(request) = pick(requests, request) {
                    self.bench.step(Input::Unanswered { request }).unwrap();
                }
            }
            Act::Pass { seconds } => self.bench.pass(Millis(u64::from(seconds) * 1000)),
            Act::Crash {
                vm,
                command,
                lose_inbox,
            } => {
                if let (Some(vm), Some(command)) = (pick(vms(), vm), command) {
                    let _ = self.bench.command(vm, command);
                }
                self.crash(lose_inbox);
            }
        }
        self.carry();
        self.check();
    }

    fn command(&mut self, vm: VmId, command: LifecycleCommand, on: Option<&str>) {
        let done = self.bench.command_on(vm, command, on).is_ok();
        if done && command == LifecycleCommand::Start {
            self.check_room();
        }
    }

    fn connect(&mut self, name: &NodeId) {
        if self.world.nodes[name].session.is_none() {
            self.last_session += 1;
            self.world.connect(name, SessionId(self.last_session));
        }
    }

    fn disconnect(&mut self, name: &NodeId, lose_inbox: bool) {
        let Some(session) = self.world.nodes[name].session else {
            return;
        };
        self.world.cut(name, lose_inbox);
        let closed = Input::SessionClosed {
            node: name.clone(),
            session,
            reason: "cut".into(),
        };
        self.bench.step(closed).unwrap();
    }

    fn deliver(&mut self, name: &NodeId) {
        let node = self.world.of(name);
        let Some(session) = node.session else { return };
        let (name, incarnation) = (name.clone(), 1);
        let input = match (node.hello.take(), node.outbox.is_empty()) {
            (Some(hello), _) => Input::SessionOpened {
                node: name,
                incarnation,
                session,
                hello,
            },
            (None, true) => return,
            (None, false) => Input::Message {
                node: name,
                session,
                message: node.outbox.pop_front().unwrap(),
            },
        };
        self.bench.step(input).unwrap();
    }

    /// What was committed stays, what was to be sent is lost.
    fn crash(&mut self, lose_inbox: bool) {
        for name in NODES {
            self.world.cut(&node(name), lose_inbox);
        }
        self.bench.restart();
    }

    /// One delivery and one piece of work on each node.
    fn flow(&mut self) {
        for name in NODES.map(node) {
            self.deliver(&name);
            self.carry();
            self.world.work(&name, 0);
        }
    }

    /// Takes requests from the cluster to the nodes.
    fn carry(&mut self) {
        while let Some(sent) = self.bench.sent.pop_front() {
            let node = self.world.of(&sent.node);
            if node.session == Some(sent.session) {
                node.inbox.push_back(sent);
            }
        }
    }

    fn check(&mut self) {
        for vm in self.world.vms() {
            let runners = self.world.runners(vm);
            assert!(runners.len() <= 1, "{vm} runs on {runners:?}");
        }
        for (id, record) in &self.bench.cluster.records.vms {
            let last = self.epochs.insert(*id, record.epoch).unwrap_or_default();
            assert!(record.epoch >= last, "the epoch of {id} went down");
        }
    }

    /// Right after a decision: it counted everything that is known.
    fn check_room(&self) {
        let loads = self.bench.cluster.loads();
        let Some(record) = self.bench.cluster.records.tasks.values().next_back() else {
            return;
        };
        let Some(name) = record.node.as_ref().filter(|_| !record.state.is_final()) else {
            return;
        };
        let used = loads.get(name).unwrap().used;
        let capacity = facts(world::MEMORY).capacity;
        assert!(used.fits(capacity), "{name} was given {used:?}");
    }

    /// Everything is connected, delivered and worked on until nothing moves.
    fn heal(&mut self) {
        for _ in 0..50 {
            for name in NODES.map(node) {
                self.connect(&name);
                for _ in 0..50 {
                    self.deliver(&name);
                    self.carry();
                    self.world.work(&name, 0);
                }
            }
            for (source, id) in self.world.moves() {
                self.world.advance(&source, id);
            }
            self.check();
            self.bench.pass(Millis(200_000));
            self.carry();
        }
    }

    fn check_truth(&self) {
        let cluster = &self.bench.cluster;
        assert_eq!(
            cluster.observed.work.len(),
            0,
            "{:?}",
            cluster.observed.work
        );
        assert_eq!(
            cluster.observed.moves.len(),
            0,
            "{:?}",
            cluster.observed.moves
        );
        assert_eq!(cluster.observed.requests.len(), 0);
        for view in cluster.vms() {
            let runners = self.world.runners(view.id);
            let runs = !runners.is_empty();
            if let Some(runner) = runners.first() {
                assert_eq!(view.node.as_ref(), Some(*runner), "{view:?}");
                assert_eq!(view.desired, RunState::Running, "{view:?}");
            }
            assert_eq!(view.state.executes(), runs, "{view:?}");
            assert_eq!(view.migration, None);
            let owner = view.node.as_ref();
            for (name, node) in &self.world.nodes {
                let domain = node.domains.get(&view.id);
                let leftover = domain.filter(|_| runs && Some(name) != owner);
                assert_eq!(leftover, None, "{name} has a leftover");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_the_rules(acts in prop::collection::vec(act(), 1..300)) {
        let mut simulation = Simulation::new();
        for act in acts {
            simulation.perform(act);
        }
        simulation.heal();
        simulation.check_truth();
    }
}
