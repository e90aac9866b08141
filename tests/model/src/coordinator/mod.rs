//! The coordinator: the production [`Cluster`], its store, and its sessions with
//! the nodes.
//!
//! The state machine that answers questions and follows owners and epochs is the
//! production one, step by step, also after a restart from its store. What the
//! nodes tell it is the newest they know, as on the daemon's notice board: a
//! report may come late, and reports between the first and the last may never
//! come at all.
//!
//! Two states are the same to the search when their [`Digest`]s are: what the
//! store says of owner, epoch and migrations, and what each node told in its
//! session. The cluster's log, its numbers and its clock are left out. What it
//! holds beside that (which orders it gave in a session, whether a source was
//! heard of a migration) is that of the first way on which the search got there.
//!
//! * A session ends in the moment in which one of the two daemons does.
//! * A question passes through the coordinator in one step, and so does its
//!   answer; the answer's way to the source is a step of its own.

mod digest;
mod memo;
mod node;
mod setup;

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::input::{Input, SessionId};
use godwit_shared::model::{Epoch, LifecycleCommand};
use godwit_shared::wire::uplink::{NodeMessage, NodeReply, Verdict, VerdictQuery};

use crate::action::Action;
use crate::mutant::Mutant;
use crate::step::Step;
use crate::world::{HOSTS, Host, MOVES, Move, NOW, VM, Way, World, id_of};

pub use digest::{Digest, DomainTold, MoveTold, Told};
pub use memo::Memo;
use memo::Wish;

/// The coordinator and what it remembers.
#[derive(Debug, Clone, Default)]
pub struct Coordinator {
    /// The production state machine, while the daemon runs.
    cluster: Option<Arc<Cluster>>,
    /// What outlives the daemon.
    store: Arc<BTreeMap<String, Vec<u8>>>,
    /// The number of the last session.
    sessions: u64,
    /// What makes a difference.
    pub digest: Digest,
}

/// A command of the coordinator on its way to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Order {
    /// To whom.
    pub n: Host,
    /// What.
    pub command: LifecycleCommand,
    /// At which epoch.
    pub epoch: Epoch,
}

impl PartialEq for Coordinator {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Coordinator {}

impl Hash for Coordinator {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

/// What the coordinator and its sessions may do next.
pub fn progress(world: &World, all: &mut Vec<Action>) {
    let coordinator = &world.coordinator.digest;
    if !coordinator.up {
        return all.push(Action::CoordinatorRestart);
    }
    for n in (0..HOSTS).filter(|n| world.hosts[*n].up) {
        match coordinator.sessions[n] {
            None => all.push(Action::Hello(n)),
            Some(told) => {
                if told.domain != node::domain(world, n) {
                    all.push(Action::Report(n));
                }
            }
        }
    }
    for m in 0..MOVES {
        let told = world.source_of(m).and_then(|n| coordinator.sessions[n]);
        let news = node::migration(world, m);
        if news.is_some() && told.is_some_and(|told| told.moves[m] != news) {
            all.push(Action::ReportMove(m));
        }
    }
    for order in &coordinator.orders {
        all.push(Action::Order(*order));
    }
}

/// Whether a source can ask through the coordinator.
pub fn relays(world: &World, m: Move) -> bool {
    let sessions = &world.coordinator.digest.sessions;
    world.source_of(m).is_some_and(|n| sessions[n].is_some())
}

/// What the coordinator believes that is not so; nothing is left to be told.
pub fn unsettled(world: &World) -> Option<&'static str> {
    let digest = &world.coordinator.digest;
    let (epoch, owner) = world.judge.right;
    let runs = world.runners().count() == 1;
    if runs && digest.owner != Some(owner) {
        return Some("the coordinator does not know who owns the guest");
    }
    if runs && digest.epoch < epoch {
        return Some("the coordinator's epoch is behind");
    }
    let open = |m: Move| {
        let in_hand = world.moves[m].outgoing.is_some();
        let phase = digest.moves[m].map(|(phase, _)| phase);
        !in_hand && phase.is_some_and(|phase| !phase.is_final())
    };
    let hangs = (0..MOVES).any(open);
    hangs.then_some("the coordinator waits for a migration that has ended")
}

impl Step<'_> {
    /// The coordinator that is there at first, with everybody connected.
    pub(crate) fn first_coordinator(&mut self) {
        let store = setup::store(&self.world);
        self.world.coordinator.edit().store = Arc::new(store);
        self.coordinator_restarts();
        for n in 0..HOSTS {
            self.hello(n);
        }
    }

    /// It starts from its store.
    pub(crate) fn coordinator_restarts(&mut self) {
        let coordinator = self.world.coordinator.edit();
        let records = coordinator
            .store
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()));
        let loaded = Cluster::load(setup::settings(), NOW, records, &mut Vec::new());
        coordinator.cluster = loaded.ok().map(Arc::new);
        coordinator.digest.up = coordinator.cluster.is_some();
        self.world.coordinator.edit().read_records();
    }

    /// It is killed.
    pub(crate) fn coordinator_crashes(&mut self) {
        let coordinator = self.world.coordinator.edit();
        coordinator.cluster = None;
        coordinator.digest.asked = [None; MOVES];
        coordinator.digest.up = false;
        coordinator.digest.sessions = [None; HOSTS];
        coordinator.digest.orders.clear();
        for m in 0..MOVES {
            self.drop_relayed(m);
        }
    }

    fn drop_relayed(&mut self, m: Move) {
        let way = Way::Relayed as usize;
        self.world.moves[m].edit().answers[way] = None;
        self.in_mut(m, |i| i.open[way] = false);
    }

    /// A node's daemon has ended, and its session with it.
    pub(crate) fn session_ends(&mut self, n: Host) {
        let coordinator = self.world.coordinator.edit();
        if coordinator.digest.sessions[n].take().is_none() {
            return;
        }
        coordinator.digest.orders.retain(|order| order.n != n);
        let session = SessionId(coordinator.digest.numbers[n]);
        let end = Input::SessionClosed {
            node: crate::node_id(n),
            session,
            reason: String::new(),
        };
        self.tell_cluster(end, MOVES);
        for m in 0..MOVES {
            let concerned = [self.world.source_of(m), self.world.target_of(m)];
            if concerned.contains(&Some(n)) {
                self.world.coordinator.edit().digest.asked[m] = None;
                self.drop_relayed(m);
            }
        }
    }

    /// A node opens a session and tells all that it has.
    pub(crate) fn hello(&mut self, n: Host) {
        let told = node::told(&self.world, n);
        let Ok(hello) = node::hello(&self.world, n) else {
            return;
        };
        let coordinator = self.world.coordinator.edit();
        coordinator.sessions += 1;
        coordinator.digest.numbers[n] = coordinator.sessions;
        coordinator.digest.sessions[n] = Some(told);
        let session = SessionId(coordinator.sessions);
        let hello = Input::SessionOpened {
            node: crate::node_id(n),
            incarnation: 1,
            session,
            hello,
        };
        self.tell_cluster(hello, MOVES);
    }

    /// A node tells of its domain.
    pub(crate) fn report_domain(&mut self, n: Host) {
        let domain = node::domain(&self.world, n);
        if let Some(told) = &mut self.world.coordinator.edit().digest.sessions[n] {
            told.domain = domain;
        }
        self.say(
            n,
            match domain {
                Some(told) => NodeMessage::Domain(node::report(&told)),
                None => NodeMessage::DomainGone(VM),
            },
        );
    }

    /// A source tells of its migration.
    pub(crate) fn report_move(&mut self, m: Move) {
        let (Some(n), Some(news)) = (self.world.source_of(m), node::migration(&self.world, m))
        else {
            return;
        };
        if let Some(told) = &mut self.world.coordinator.edit().digest.sessions[n] {
            told.moves[m] = Some(news);
        }
        if let Some(report) = node::migration_report(&self.world, m, news) {
            self.say(n, NodeMessage::Migration(report));
        }
    }

    /// A source in doubt asks the coordinator.
    pub(crate) fn ask_coordinator(&mut self, m: Move) {
        let (Some(from), Some(to)) = (self.world.source_of(m), self.world.target_of(m)) else {
            return;
        };
        let epoch = self.world.moves[m]
            .outgoing
            .as_ref()
            .map(|o| o.source.granted_epoch());
        let owns = self.world.coordinator.digest.sessions[to].and_then(|told| told.domain);
        if self.mutates(Mutant::RelayTakesOwnerForRunner)
            && owns.is_some_and(|told| told.owner && Some(told.epoch) == epoch)
        {
            let ran = Some(Verdict::Granted { running: true });
            self.world.moves[m].edit().answers[Way::Relayed as usize] = ran;
            return;
        }
        let query = VerdictQuery {
            migration: id_of(m),
            vm: VM,
            target: crate::node_id(to),
            epoch: epoch.unwrap_or_default(),
        };
        self.say(from, NodeMessage::AskVerdict(query));
    }

    /// A target's answer passes through the coordinator.
    pub(crate) fn relay(&mut self, m: Move, word: Verdict) {
        let request = self.world.coordinator.edit().digest.asked[m].take();
        if let (Some(n), Some(request)) = (self.world.target_of(m), request) {
            let outcome = Ok(NodeReply::Verdict(word));
            let reply = NodeMessage::Reply { request, outcome };
            self.say_of(n, reply, m);
        }
    }

    /// A node carries an order out, or refuses it.
    pub(crate) fn carry_out(&mut self, order: Order) {
        let orders = &mut self.world.coordinator.edit().digest.orders;
        orders.retain(|other| *other != order);
        let Order { n, command, epoch } = order;
        let _ = self.tell_domain(
            n,
            godwit_node_logic::domain::Event::Command { command, epoch },
        );
    }

    fn say(&mut self, n: Host, message: NodeMessage) {
        self.say_of(n, message, MOVES);
    }

    /// Says something that is about a migration and does not name it.
    fn say_of(&mut self, n: Host, message: NodeMessage, about: Move) {
        let session = SessionId(self.world.coordinator.digest.numbers[n]);
        let node = crate::node_id(n);
        let input = Input::Message {
            node,
            session,
            message,
        };
        self.tell_cluster(input, about);
    }

    /// One step of the production state machine, and what it wants done.
    fn tell_cluster(&mut self, input: Input, about: Move) {
        let before = &self.world.coordinator;
        let (after, wishes) = self.model.memo.step(before, input, about);
        *self.world.coordinator.edit() = after;
        for wish in wishes {
            match wish {
                Wish::Tell { n, m, word } => self.hear_relayed(n, m, word),
                Wish::Ask { m, request } => {
                    self.world.coordinator.edit().digest.asked[m] = Some(request);
                    self.question(m, Way::Relayed);
                }
                Wish::Order(order) => {
                    let orders = &mut self.world.coordinator.edit().digest.orders;
                    if !orders.contains(&order) {
                        orders.push(order);
                    }
                }
            }
        }
    }

    fn hear_relayed(&mut self, n: Host, m: Move, verdict: Option<Verdict>) {
        let verdict = match verdict {
            None if self.mutates(Mutant::RelayRefusesForAbsent) => Some(Verdict::Refused),
            verdict => verdict,
        };
        if self.world.source_of(m) == Some(n) && verdict.is_some() {
            self.world.moves[m].edit().answers[Way::Relayed as usize] = verdict;
        }
    }
}

impl Coordinator {
    fn read_records(&mut self) {
        if let Some(cluster) = &self.cluster {
            self.digest.read(cluster, &self.store);
        }
    }
}
