//! What of the coordinator makes a difference.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::record::Key;
use godwit_shared::model::{DomainState, Epoch, MigrationPhase};

use super::Order;
use crate::world::{End, HOSTS, Host, MOVES, Move, VM, id_of};

/// What is compared, and what is looked at by properties.
#[derive(Debug, Clone, Default)]
pub struct Digest {
    /// The daemon runs.
    pub up: bool,
    /// Who owns the VM.
    pub owner: Option<Host>,
    /// At which epoch.
    pub epoch: Epoch,
    /// The records of the migrations: their phase, and whether it was concluded
    /// without the source's word.
    pub moves: [Option<(MigrationPhase, bool)>; MOVES],
    /// What each node has told in its session; none without one.
    pub sessions: [Option<Told>; HOSTS],
    /// Commands on their way.
    pub orders: Vec<Order>,
    /// The request by which the target was asked, for each migration. Its
    /// number is left out of every comparison,
    pub asked: [Option<u64>; MOVES],
    /// and so is the number of each node's session.
    pub numbers: [u64; HOSTS],
}

/// What a node has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Told {
    /// Of its domain.
    pub domain: Option<DomainTold>,
    /// Of migrations that leave it.
    pub moves: [Option<MoveTold>; MOVES],
}

/// A report of a domain, as far as it makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DomainTold {
    /// Its state.
    pub state: DomainState,
    /// Its epoch.
    pub epoch: Epoch,
    /// Whether the node holds the right.
    pub owner: bool,
    /// The migration that has it in hand.
    pub migration: Option<Move>,
    /// Its last QEMU ended by itself.
    pub crashed: bool,
}

/// A report of a migration, likewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MoveTold {
    /// Its phase while it is in hand.
    pub phase: Option<MigrationPhase>,
    /// Its end.
    pub end: Option<End>,
    /// The epoch that it names.
    pub epoch: Epoch,
}

impl Digest {
    fn compared(&self) -> impl PartialEq + Hash + '_ {
        (
            (self.up, self.owner, self.epoch),
            (&self.moves, &self.sessions, &self.orders),
            self.asked.map(|request| request.is_some()),
        )
    }

    /// Reads the records.
    pub(super) fn read(&mut self, cluster: &Cluster, store: &BTreeMap<String, Vec<u8>>) {
        let Ok(vm) = cluster.vm(VM) else { return };
        let host = |node| (0..HOSTS).find(|n| crate::node_id(*n) == node);
        self.owner = vm.node.and_then(host);
        self.epoch = vm.epoch;
        for m in 0..MOVES {
            let phase = cluster.migration(id_of(m)).ok().map(|view| view.phase);
            let assumed = store
                .get(&Key::Migration(id_of(m)).to_string())
                .is_some_and(|json| contains(json, b"\"assumed\":true"));
            self.moves[m] = phase.map(|phase| (phase, assumed));
        }
    }
}

fn contains(text: &[u8], words: &[u8]) -> bool {
    text.windows(words.len()).any(|window| window == words)
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.compared() == other.compared()
    }
}

impl Eq for Digest {}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.compared().hash(state);
    }
}
