//! The node's notice board: the latest word on every domain and migration.
//!
//! Domain actors and migrations publish here and never wait. Whoever tells
//! others (the uplink) subscribes. Between the two lies no queue of messages
//! but a set of keys that changed, so
//!
//! * a slow or absent reader costs one key per domain, however much happens;
//! * what it reads is always the latest state, and the last one is never lost;
//! * keys come in the order in which they first changed.
//!
//! The board also holds the cluster's member list, which the uplink gets from
//! the coordinator and the acceptor of peer connections goes by.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use godwit_shared::model::{DomainReport, MigrationId, VmId};
use godwit_shared::wire::uplink::{Member, MigrationReport};
use tokio::sync::{Notify, watch};

/// How many ended migrations are kept for a coordinator that was away.
const MAX_ENDED: usize = 256;

/// The notice board; a clone is the same board.
#[derive(Debug, Clone)]
pub struct NodeBus(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    members: watch::Sender<Vec<Member>>,
}

#[derive(Debug, Default)]
struct State {
    domains: BTreeMap<VmId, DomainReport>,
    migrations: BTreeMap<MigrationId, MigrationReport>,
    /// Ended migrations, in the order of their ends.
    ended: VecDeque<MigrationId>,
    readers: Vec<Weak<Reader>>,
}

/// What changed since a subscriber last looked.
#[derive(Debug, Default)]
struct Reader {
    changed: Mutex<Changed>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Changed {
    order: VecDeque<Key>,
    known: HashSet<Key>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Domain(VmId),
    Migration(MigrationId),
}

/// One piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "lives for one send")]
pub enum NodeChange {
    /// A domain came or changed.
    Domain(DomainReport),
    /// A domain is no longer on the node.
    Gone(VmId),
    /// A migration came or changed.
    Migration(MigrationReport),
}

/// Everything on the board at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSnapshot {
    /// Every domain of the node, by id.
    pub domains: Vec<DomainReport>,
    /// Migrations in hand, and ended ones that may not have been told yet.
    pub migrations: Vec<MigrationReport>,
}

impl Default for NodeBus {
    fn default() -> Self {
        Self::new()
    }
}

impl NodeBus {
    /// An empty board.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            members: watch::Sender::new(Vec::new()),
        }))
    }

    /// Puts up a domain's state. One that is there already wakes nobody.
    pub fn publish_domain(&self, report: DomainReport) {
        let key = Key::Domain(report.vm);
        let mut state = self.state();
        if state.domains.get(&report.vm) != Some(&report) {
            state.domains.insert(report.vm, report);
            state.tell(key);
        }
    }

    /// Takes a domain down: it is no longer on the node.
    pub fn domain_gone(&self, vm: VmId) {
        let mut state = self.state();
        if state.domains.remove(&vm).is_some() {
            state.tell(Key::Domain(vm));
        }
    }

    /// Puts up a migration's state. An ended one stays, for a coordinator that
    /// was away, until [`forget_migration`](Self::forget_migration) or until
    /// too many have ended since.
    pub fn publish_migration(&self, report: MigrationReport) {
        let id = report.migration;
        let mut state = self.state();
        if state.migrations.get(&id) == Some(&report) {
            return;
        }
        if report.phase.is_final() && !state.ended.contains(&id) {
            state.ended.push_back(id);
        }
        state.migrations.insert(id, report);
        state.tell(Key::Migration(id));
        while state.ended.len() > MAX_ENDED {
            if let Some(oldest) = state.ended.pop_front() {
                state.migrations.remove(&oldest);
            }
        }
    }

    /// Drops an ended migration that the coordinator knows of.
    pub fn forget_migration(&self, migration: MigrationId) {
        let mut state = self.state();
        if state
            .migrations
            .get(&migration)
            .is_some_and(|report| report.phase.is_final())
        {
            state.migrations.remove(&migration);
            state.ended.retain(|ended| *ended != migration);
        }
    }

    /// The latest word on one domain.
    pub fn domain(&self, vm: VmId) -> Option<DomainReport> {
        self.state().domains.get(&vm).cloned()
    }

    /// Everything on the board.
    pub fn snapshot(&self) -> NodeSnapshot {
        self.state().snapshot()
    }

    /// News from now on.
    pub fn subscribe(&self) -> BusSubscriber {
        self.snapshot_and_subscribe().1
    }

    /// Everything on the board, and news from exactly then on.
    pub fn snapshot_and_subscribe(&self) -> (NodeSnapshot, BusSubscriber) {
        let reader = Arc::new(Reader::default());
        let mut state = self.state();
        state.readers.retain(|reader| reader.strong_count() > 0);
        state.readers.push(Arc::downgrade(&reader));
        let subscriber = BusSubscriber {
            bus: self.clone(),
            reader,
        };
        (state.snapshot(), subscriber)
    }

    /// The cluster's members, the node itself included, as last heard.
    pub fn members(&self) -> watch::Receiver<Vec<Member>> {
        self.0.members.subscribe()
    }

    /// Takes a new member list; tells whether it differs from the last one.
    pub fn set_members(&self, members: Vec<Member>) -> bool {
        self.0.members.send_if_modified(|current| {
            let differs = *current != members;
            *current = members;
            differs
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

impl State {
    fn snapshot(&self) -> NodeSnapshot {
        NodeSnapshot {
            domains: self.domains.values().cloned().collect(),
            migrations: self.migrations.values().cloned().collect(),
        }
    }

    fn tell(&mut self, key: Key) {
        self.readers.retain(|reader| {
            let reader = reader.upgrade();
            if let Some(reader) = &reader {
                reader.note(key);
            }
            reader.is_some()
        });
    }

    fn read(&self, key: Key) -> Option<NodeChange> {
        match key {
            Key::Domain(vm) => Some(match self.domains.get(&vm) {
                Some(report) => NodeChange::Domain(report.clone()),
                None => NodeChange::Gone(vm),
            }),
            Key::Migration(id) => self.migrations.get(&id).cloned().map(NodeChange::Migration),
        }
    }
}

impl Reader {
    fn note(&self, key: Key) {
        let mut changed = lock(&self.changed);
        if changed.known.insert(key) {
            changed.order.push_back(key);
        }
        self.wake.notify_one();
    }

    fn take(&self) -> Option<Key> {
        let mut changed = lock(&self.changed);
        let key = changed.order.pop_front()?;
        changed.known.remove(&key);
        Some(key)
    }
}

/// Reads the news of a [`NodeBus`].
#[derive(Debug)]
pub struct BusSubscriber {
    bus: NodeBus,
    reader: Arc<Reader>,
}

impl BusSubscriber {
    /// The next thing that changed, as it stands now. Waits while nothing has;
    /// a dropped wait loses nothing.
    pub async fn next(&mut self) -> NodeChange {
        loop {
            if let Some(change) = self.try_next() {
                return change;
            }
            self.reader.wake.notified().await;
        }
    }

    /// The next thing that changed, if something has.
    pub fn try_next(&mut self) -> Option<NodeChange> {
        while let Some(key) = self.reader.take() {
            if let Some(change) = self.bus.state().read(key) {
                return Some(change);
            }
        }
        None
    }
}

/// Nothing here panics while it holds a lock, and every change is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use godwit_shared::model::{
        AgentState, DomainState, Epoch, MigrationFigures, MigrationPhase, MigrationProgress,
        UnixMillis,
    };

    use super::*;

    fn domain(vm: u128, state: DomainState) -> DomainReport {
        DomainReport {
            vm: VmId::from_u128(vm),
            name: "a".parse().unwrap(),
            epoch: Epoch::FIRST,
            owner: true,
            state,
            since: UnixMillis(1),
            exit: None,
            problem: None,
            agent: AgentState::Absent,
            pid: None,
            migration: None,
            machine: None,
            accelerator: None,
            usage: None,
        }
    }

    fn migration(id: u128, phase: MigrationPhase) -> MigrationReport {
        MigrationReport {
            migration: MigrationId::from_u128(id),
            vm: VmId::from_u128(1),
            source: "a".parse().unwrap(),
            target: "b".parse().unwrap(),
            phase,
            since: UnixMillis(1),
            started: UnixMillis(1),
            progress: MigrationProgress::default(),
            blackout: None,
            figures: MigrationFigures::default(),
            failure: None,
            epoch: Epoch::FIRST,
        }
    }

    #[test]
    fn a_slow_reader_gets_the_last_state_once() {
        let bus = NodeBus::new();
        let mut news = bus.subscribe();
        for state in [
            DomainState::Starting,
            DomainState::Running,
            DomainState::Paused,
        ] {
            bus.publish_domain(domain(1, state));
        }
        bus.publish_domain(domain(2, DomainState::Running));
        assert_eq!(
            news.try_next(),
            Some(NodeChange::Domain(domain(1, DomainState::Paused)))
        );
        assert_eq!(
            news.try_next(),
            Some(NodeChange::Domain(domain(2, DomainState::Running)))
        );
        assert_eq!(news.try_next(), None);
        bus.publish_domain(domain(2, DomainState::Running));
        assert_eq!(news.try_next(), None, "nothing changed");
    }

    #[test]
    fn what_came_and_went_is_gone() {
        let bus = NodeBus::new();
        let mut news = bus.subscribe();
        bus.publish_domain(domain(1, DomainState::Running));
        bus.domain_gone(VmId::from_u128(1));
        bus.domain_gone(VmId::from_u128(2));
        assert_eq!(
            news.try_next(),
            Some(NodeChange::Gone(VmId::from_u128(1))),
            "and the one that never was is not mentioned"
        );
        assert_eq!(news.try_next(), None);
        assert_eq!(bus.snapshot(), NodeSnapshot::default());
    }

    #[test]
    fn every_subscriber_hears_everything_after_its_snapshot() {
        let bus = NodeBus::new();
        bus.publish_domain(domain(1, DomainState::Running));
        let (snapshot, mut first) = bus.snapshot_and_subscribe();
        assert_eq!(snapshot.domains.len(), 1);
        assert_eq!(first.try_next(), None);
        let mut second = bus.subscribe();
        bus.domain_gone(VmId::from_u128(1));
        assert_eq!(first.try_next(), second.try_next());
        drop(first);
        bus.publish_domain(domain(3, DomainState::Running));
        assert!(second.try_next().is_some());
        assert_eq!(bus.state().readers.len(), 1);
    }

    #[test]
    fn ended_migrations_stay_until_they_are_forgotten() {
        let bus = NodeBus::new();
        bus.publish_migration(migration(1, MigrationPhase::Precopy));
        bus.forget_migration(MigrationId::from_u128(1));
        assert_eq!(bus.snapshot().migrations.len(), 1, "it is in hand");
        bus.publish_migration(migration(1, MigrationPhase::Completed));
        assert_eq!(bus.snapshot().migrations.len(), 1);
        bus.forget_migration(MigrationId::from_u128(1));
        assert!(bus.snapshot().migrations.is_empty());
    }

    #[test]
    fn only_the_newest_ended_migrations_are_kept() {
        let bus = NodeBus::new();
        bus.publish_migration(migration(0, MigrationPhase::Precopy));
        for id in 1..=u128::try_from(MAX_ENDED).unwrap() + 1 {
            bus.publish_migration(migration(id, MigrationPhase::Failed));
        }
        let kept = bus.snapshot().migrations;
        assert_eq!(kept.len(), MAX_ENDED + 1);
        assert_eq!(kept[0].phase, MigrationPhase::Precopy);
        assert_eq!(kept[1].migration, MigrationId::from_u128(2));
    }

    #[test]
    fn members_tell_whether_they_changed() {
        let bus = NodeBus::new();
        let watch = bus.members();
        let member = Member {
            node: "a".parse().unwrap(),
            incarnation: 1,
            address: "h:1".into(),
        };
        assert!(bus.set_members(vec![member.clone()]));
        assert!(!bus.set_members(vec![member.clone()]));
        assert_eq!(*watch.borrow(), [member]);
    }

    #[test]
    fn a_waiting_reader_is_woken() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let bus = NodeBus::new();
        let mut news = bus.subscribe();
        let publisher = bus.clone();
        let change = runtime.block_on(async move {
            let reader = tokio::spawn(async move { news.next().await });
            tokio::task::yield_now().await;
            publisher.publish_domain(domain(1, DomainState::Running));
            reader.await.unwrap()
        });
        assert_eq!(change, NodeChange::Domain(domain(1, DomainState::Running)));
    }
}
