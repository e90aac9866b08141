//! The coordinator's daemon: the production state machine, its store, its
//! sessions.

use std::collections::{BTreeMap, BTreeSet};

use godwit_coordinator_logic::cluster::{
    Cluster, Limits, MigrationLimits, ProtectionRules, RebalanceMode, RebalanceSettings, Settings,
};
use godwit_coordinator_logic::effect::{Effect, Timer};
use godwit_coordinator_logic::input::{Input, Output, SessionId};
use godwit_coordinator_logic::placement::Profiles;
use godwit_coordinator_logic::record::{Key, NodeRecord, Write};
use godwit_coordinator_logic::recording::{Clocks, Taken};
use godwit_shared::api::Marks;
use godwit_shared::model::{BootMillis, Millis, NodeId, Problem, UnixMillis, codes};
use godwit_shared::wire::uplink::{CoordinatorMessage, NodeMessage};

use crate::agenda::{N, ToCoordinator, ToNode, What, node_id};
use crate::mutant::Mutant;
use crate::sim::{NODES, Sim};

/// The daemon and what outlives it.
#[derive(Debug, Default)]
pub struct Coordinator {
    /// The state machine, while the daemon runs.
    pub cluster: Option<Cluster>,
    /// The store.
    pub store: BTreeMap<String, Vec<u8>>,
    /// Which run of the daemon.
    pub life: u32,
    /// Sessions that stand, as the network has them.
    pub sessions: BTreeMap<SessionId, Session>,
    last_session: u64,
    timers: BTreeMap<Timer, UnixMillis>,
}

/// A node's session.
#[derive(Debug, Clone)]
pub struct Session {
    /// Whose.
    pub n: N,
    /// Of which of its daemon's lives.
    pub life: u32,
    /// Nothing goes over it any more.
    pub broken: bool,
    up: u64,
    down: u64,
}

impl Coordinator {
    /// A store in which every node is a member.
    pub(crate) fn found(&mut self) {
        for n in 0..NODES {
            let member = NodeRecord {
                name: node_id(n),
                incarnation: 1,
                address: format!("192.0.2.{n}:7441"),
                cordoned: false,
                revoked: false,
                joined: UnixMillis(0),
                facts: None,
                marks: Marks::default(),
                told: Marks::default(),
                unheard: false,
            };
            if let Ok(value) = serde_json::to_vec(&member) {
                let key = Key::Node(node_id(n)).to_string();
                self.store.insert(key, value);
            }
        }
    }

    fn commit(&mut self, writes: Vec<Write>) {
        for write in writes {
            match write {
                Write::Put { key, value } => drop(self.store.insert(key.to_string(), value)),
                Write::Delete { key } => drop(self.store.remove(&key.to_string())),
            }
        }
    }
}

/// Continuous, and more often than a real cluster would want it.
fn rebalance(evens: bool) -> RebalanceSettings {
    RebalanceSettings {
        mode: match evens {
            true => RebalanceMode::Continuous,
            false => RebalanceMode::Manual,
        },
        interval_s: 15,
        cooldown_s: 60,
        ..RebalanceSettings::default()
    }
}

fn settings(now: UnixMillis, evens: bool) -> Settings {
    Settings {
        name: "simulated".into(),
        software: "0.1.0".into(),
        ca_fingerprint: String::new(),
        started: now,
        placement: Profiles::default(),
        migrations: MigrationLimits::default(),
        rebalance: rebalance(evens),
        limits: Limits {
            // Every event is a record: few are kept, or the store is all log.
            events: 20,
            // So short that a cut outlives them now and then.
            protection: ProtectionRules {
                lease: Millis(6_000),
                margin: Millis(1_500),
                ..ProtectionRules::default()
            },
            ..Limits::default()
        },
        fence_agents: BTreeSet::new(),
    }
}

impl Sim {
    /// It comes up from its store.
    pub(crate) fn start_coordinator(&mut self) {
        if self.coordinator.cluster.is_some() {
            return;
        }
        let now = self.clock();
        let mut effects = Vec::new();
        let records = self.coordinator.store.clone();
        match Cluster::load(settings(now, self.evens), now, records, &mut effects) {
            Ok(cluster) => {
                if let Some(recorder) = &mut self.recorder {
                    let store = self.coordinator.store.clone();
                    recorder.start(cluster.settings().clone(), now, store, effects.clone());
                }
                self.coordinator.cluster = Some(cluster);
            }
            Err(error) => return self.breach(&format!("the store cannot be read: {error}")),
        }
        self.coordinator.life += 1;
        self.perform_cluster(effects);
    }

    /// It is killed, and comes back by itself.
    pub(crate) fn crash_coordinator(&mut self) {
        self.stop_coordinator();
        let at = self.now + self.rng.between(200, 5_000);
        self.agenda.add(at, What::StartCoordinator);
    }

    /// It is killed: what was committed stays, what was to be sent is lost.
    pub(crate) fn stop_coordinator(&mut self) {
        self.coordinator.cluster = None;
        self.coordinator.timers.clear();
        let sessions: Vec<_> = self.coordinator.sessions.keys().copied().collect();
        for session in sessions {
            self.break_session(session);
        }
    }

    pub(crate) fn on_coordinator(&mut self, to: ToCoordinator) {
        let life = self.coordinator.life;
        match to {
            ToCoordinator::Timer(of, timer) if of == life => {
                let due = self.coordinator.timers.get(&timer);
                if due.is_some_and(|at| *at <= self.clock()) {
                    self.coordinator.timers.remove(&timer);
                    let _ = self.tell_cluster(Input::Timer(timer));
                }
            }
            ToCoordinator::Unanswered(of, request) if of == life => {
                let _ = self.tell_cluster(Input::Unanswered { request });
            }
            ToCoordinator::Hello(of, n, session) if of == life => self.welcome(n, session),
            ToCoordinator::Message(session, message) => self.hear_node(session, *message),
            ToCoordinator::Lost(session) => {
                if let Some(of) = self.coordinator.sessions.remove(&session) {
                    let closed = Input::SessionClosed {
                        node: node_id(of.n),
                        session,
                        reason: "lost".into(),
                    };
                    let _ = self.tell_cluster(closed);
                }
            }
            _ => {}
        }
    }

    fn welcome(&mut self, n: N, session: SessionId) {
        let stands = self.coordinator.sessions.get(&session);
        if stands.is_none_or(|s| s.broken) {
            return;
        }
        let Ok(hello) = self.hello(n) else { return };
        let opened = Input::SessionOpened {
            node: node_id(n),
            incarnation: 1,
            session,
            hello,
        };
        if self.tell_cluster(opened).is_err() {
            self.break_session(session);
        }
    }

    fn hear_node(&mut self, session: SessionId, message: NodeMessage) {
        let Some(of) = self.coordinator.sessions.get(&session) else {
            return;
        };
        if of.broken {
            return;
        }
        let node = node_id(of.n);
        let _ = self.tell_cluster(Input::Message {
            node,
            session,
            message,
        });
    }

    /// One step of the production state machine, and what it wants done; nothing,
    /// where the daemon is away or dies in between.
    pub(crate) fn tell_cluster(&mut self, input: Input) -> Result<Output, Problem> {
        let away = || Problem::new(codes::NODE_UNREACHABLE, "the coordinator is away");
        let now = self.clock();
        let cluster = self.coordinator.cluster.as_mut().ok_or_else(away)?;
        let mut effects = Vec::new();
        let recorded = self.recorder.as_ref().map(|_| input.clone());
        let output = cluster.step(now, input, &mut effects);
        if let (Some(recorder), Some(input)) = (&mut self.recorder, recorded) {
            let (outcome, effects) = (output.clone(), effects.clone());
            let taken = Taken {
                clocks: Clocks {
                    now,
                    steady: BootMillis(now.0),
                },
                input,
                outcome,
                effects,
            };
            recorder.step(taken, cluster);
        }
        let dies = self.troubled() && self.rng.permille(1);
        if dies && self.mutates(Mutant::AnswerBeforeCommit) {
            self.crash_coordinator();
            return output;
        }
        if dies {
            self.note("the coordinator dies between its commit and its acts");
            if let Some(Effect::Persist(writes)) = effects.into_iter().next() {
                self.coordinator.commit(writes);
            }
            self.crash_coordinator();
            return Err(away());
        }
        self.perform_cluster(effects);
        output
    }

    fn perform_cluster(&mut self, effects: Vec<Effect>) {
        let life = self.coordinator.life;
        for effect in effects {
            match effect {
                Effect::Persist(writes) => self.coordinator.commit(writes),
                Effect::Send {
                    node,
                    session,
                    message,
                } => self.say_down(&node, session, message),
                Effect::Request {
                    node,
                    session,
                    request,
                    body,
                    deadline,
                } => {
                    let message = CoordinatorMessage::Request { request, body };
                    self.say_down(&node, session, message);
                    let late = ToCoordinator::Unanswered(life, request);
                    self.agenda
                        .add(self.now + deadline.0, What::Coordinator(late));
                }
                Effect::CloseSession { session, .. } => {
                    self.break_session(session);
                    self.coordinator.sessions.remove(&session);
                }
                Effect::Arm { timer, at } => {
                    self.coordinator.timers.insert(timer, at);
                    let after = at.0.saturating_sub(self.clock().0);
                    let fire = ToCoordinator::Timer(life, timer);
                    self.agenda.add(self.now + after, What::Coordinator(fire));
                }
                Effect::Fence(_)
                | Effect::Emit(_)
                | Effect::TaskChanged(_)
                | Effect::Answer { .. } => {}
            }
        }
    }

    fn say_down(&mut self, node: &NodeId, session: SessionId, message: CoordinatorMessage) {
        let Some(of) = self.coordinator.sessions.get(&session).cloned() else {
            return;
        };
        if of.broken || node_id(of.n) != *node {
            return;
        }
        let at = of.down.max(self.now + self.lag(of.n, 1, 20));
        if let Some(session) = self.coordinator.sessions.get_mut(&session) {
            session.down = at;
        }
        let told = ToNode::Told(session, Box::new(message));
        self.agenda.add(at, What::Node(of.n, of.life, told));
    }

    /// A node says something over its session.
    pub(crate) fn say_up(&mut self, n: N, message: NodeMessage) {
        let Some(session) = self.nodes[n].session else {
            return;
        };
        let Some(of) = self.coordinator.sessions.get(&session).cloned() else {
            return;
        };
        if of.broken {
            return;
        }
        let at = of.up.max(self.now + self.lag(n, 1, 20));
        if let Some(session) = self.coordinator.sessions.get_mut(&session) {
            session.up = at;
        }
        let message = ToCoordinator::Message(session, Box::new(message));
        self.agenda.add(at, What::Coordinator(message));
    }

    /// A node dials. It gets a session, if it reaches the coordinator.
    pub(crate) fn dial(&mut self, n: N) {
        let again = self.now + self.lag(n, 300, 1_500);
        let life = self.nodes[n].life;
        if self.nodes[n].session.is_some() {
            return;
        }
        if self.coordinator.cluster.is_none() || !self.reach(0, n + 1) {
            return self.agenda.add(again, What::Node(n, life, ToNode::Dial));
        }
        self.coordinator.last_session += 1;
        let session = SessionId(self.coordinator.last_session);
        let at = self.now + self.lag(n, 2, 40);
        let new = Session {
            n,
            life,
            broken: false,
            // The hello is the first word.
            up: at + 1,
            down: 0,
        };
        self.coordinator.sessions.insert(session, new);
        self.nodes[n].session = Some(session);
        let hello = ToCoordinator::Hello(self.coordinator.life, n, session);
        self.agenda.add(at, What::Coordinator(hello));
    }

    /// Nothing goes over it any more; both sides notice, each in its own time.
    pub(crate) fn break_session(&mut self, session: SessionId) {
        let Some(of) = self.coordinator.sessions.get_mut(&session) else {
            return;
        };
        if std::mem::replace(&mut of.broken, true) {
            return;
        }
        let (n, life) = (of.n, of.life);
        let here = self.now + self.rng.between(1, 1_500);
        let lost = ToCoordinator::Lost(session);
        self.agenda.add(here, What::Coordinator(lost));
        let there = self.now + self.lag(n, 1, 1_500);
        let lost = ToNode::SessionLost(session);
        self.agenda.add(there, What::Node(n, life, lost));
    }
}
