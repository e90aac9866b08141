//! What if: nodes lost, nodes added, VMs to place.
//!
//! It works on a copy of the snapshot with the filters and scores of real
//! decisions, so the answer is what would happen if nothing else did; an index of
//! the copy decides, and the full scan says why a VM has no place. The VMs of
//! lost nodes come first, the largest ahead, because they are the hardest to
//! place; then the new ones in the order in which they were given. Those that
//! are lost with a node but also run elsewhere (the target of a migration) need
//! no new place.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use godwit_shared::api::{Change, NodeVerdict, Placed, Room, SimulationView, Unplaced};
use godwit_shared::model::{Capacity, MiB, NodeFacts, NodeId, Problem, Usage, VmSpec, codes};

use super::index::{Chosen, Index};
use super::place_explained;
use super::profile::Profiles;
use super::request::{Candidate, Request, Snapshot};

/// What is supposed.
#[derive(Debug, Clone, Copy)]
pub struct What<'a> {
    /// New VMs.
    pub vms: &'a [VmSpec],
    /// Nodes that are gone.
    pub lost: &'a BTreeSet<NodeId>,
    /// Nodes that are there as well, empty, with what they say of themselves.
    pub added: &'a BTreeMap<NodeId, NodeFacts>,
    /// The size for which the room left is counted.
    pub room_for: Option<Usage>,
    /// The weights by name.
    pub profiles: &'a Profiles,
}

/// What would become of it.
pub fn simulate(snapshot: &Snapshot<'_>, what: &What<'_>) -> SimulationView {
    let mut world = World::new(snapshot, what);
    let mut view = SimulationView::default();
    for (spec, from) in todo(snapshot, what) {
        match world.settle(spec, from) {
            Ok(placed) => view.placed.push(placed),
            Err(unplaced) => view.unplaced.push(unplaced),
        }
    }
    world.count_room(what.room_for, &mut view);
    view
}

/// Displaced VMs, the largest first, then new ones.
fn todo<'a>(snapshot: &Snapshot<'a>, what: &What<'a>) -> Vec<(&'a VmSpec, Option<&'a NodeId>)> {
    let (gone, stay): (Vec<_>, Vec<_>) = snapshot
        .nodes
        .iter()
        .partition(|node| what.lost.contains(node.node));
    let safe: BTreeSet<&str> = stay
        .iter()
        .flat_map(|node| node.vms.iter().map(|vm| vm.name.as_str()))
        .collect();
    let mut displaced: BTreeMap<&str, (&VmSpec, Option<&NodeId>)> = BTreeMap::new();
    for node in gone {
        let lost = node
            .vms
            .iter()
            .filter(|vm| !safe.contains(vm.name.as_str()));
        displaced.extend(lost.map(|vm| (vm.name.as_str(), (*vm, Some(node.node)))));
    }
    let mut all: Vec<_> = displaced.into_values().collect();
    all.sort_by_key(|(vm, _)| (Reverse(vm.memory), Reverse(vm.cpu.count)));
    all.extend(what.vms.iter().map(|vm| (vm, None)));
    all
}

struct World<'a> {
    snapshot: Snapshot<'a>,
    /// Of the same nodes.
    index: Index,
    /// The place of each node in the snapshot.
    places: BTreeMap<&'a NodeId, usize>,
    profiles: &'a Profiles,
}

impl<'a> World<'a> {
    fn new(snapshot: &Snapshot<'a>, what: &What<'a>) -> Self {
        let stay = snapshot.nodes.iter();
        let mut nodes: Vec<Candidate<'a>> = stay
            .filter(|node| !what.lost.contains(node.node))
            .cloned()
            .collect();
        nodes.extend(what.added.iter().map(|(node, facts)| Candidate {
            node,
            connected: true,
            cordoned: false,
            facts: Some(facts),
            used: Usage::default(),
            vms: Vec::new(),
        }));
        let places = nodes.iter().map(|one| one.node).zip(0..);
        let places = places.collect();
        let snapshot = Snapshot {
            nodes,
            weights: snapshot.weights,
        };
        Self {
            index: Index::of(&snapshot),
            places,
            snapshot,
            profiles: what.profiles,
        }
    }

    fn settle(&mut self, spec: &'a VmSpec, from: Option<&NodeId>) -> Result<Placed, Unplaced> {
        self.snapshot.weights = self.profiles.weights_for(spec);
        let request = Request::new(spec);
        let chosen = self.index.place(&request, &self.snapshot.weights);
        let from = from.cloned();
        let Some(Chosen { node, score }) = chosen else {
            let explained = place_explained(&self.snapshot, &request);
            return Err(unplaced(spec, from, explained.nodes));
        };
        if let Some(place) = self.places.get(&node) {
            let there = &mut self.snapshot.nodes[*place];
            there.used = there.used.plus(Usage::of(spec));
            there.vms.push(spec);
        }
        Ok(Placed {
            vm: spec.name.clone(),
            from,
            node,
            score,
        })
    }

    fn count_room(&self, size: Option<Usage>, view: &mut SimulationView) {
        for node in self.snapshot.nodes.iter().filter(|node| node.live()) {
            let capacity = node.facts.map(|facts| facts.capacity).unwrap_or_default();
            let free = free(capacity, node.used);
            view.left.vcpus = view.left.vcpus.saturating_add(free.vcpus);
            view.left.memory = view.left.memory + free.memory;
            view.room.push(Room {
                node: node.node.clone(),
                capacity,
                used: node.used,
                more: size.map(|size| times(free, size)),
            });
        }
        view.room.sort_by(|a, b| a.node.cmp(&b.node));
        view.more = size.map(|_| view.room.iter().filter_map(|room| room.more).sum());
    }
}

fn free(capacity: Capacity, used: Usage) -> Capacity {
    Capacity {
        vcpus: capacity.vcpus.saturating_sub(used.vcpus),
        memory: capacity.memory - used.memory,
    }
}

/// How many of that size fit; nothing takes no room and counts as one vCPU.
fn times(free: Capacity, size: Usage) -> u64 {
    let by_cpu = u64::from(free.vcpus) / u64::from(size.vcpus.max(1));
    match free.memory.0.checked_div(size.memory.0) {
        Some(by_memory) if size.memory > MiB::ZERO => by_cpu.min(by_memory),
        _ => by_cpu,
    }
}

/// The reasons, and the node that is nearest to fitting.
fn unplaced(spec: &VmSpec, from: Option<NodeId>, nodes: Vec<NodeVerdict>) -> Unplaced {
    let nearest = nodes
        .iter()
        .filter(|verdict| !verdict.changes.is_empty())
        .min_by_key(|verdict| (verdict.changes.len(), &verdict.node));
    let (nearest, changes) = match nearest {
        Some(verdict) => (Some(verdict.node.clone()), verdict.changes.clone()),
        None => (None, Vec::new()),
    };
    let name = &spec.name;
    let remedy = match &nearest {
        Some(node) => format!("{node} fits {}", Change::together(&changes)),
        None => "add a node: `godwit node token` makes a token to join with".to_owned(),
    };
    let reasons = nodes.into_iter().flat_map(|verdict| verdict.refused);
    Unplaced {
        vm: name.clone(),
        from,
        problem: Problem::new(codes::NO_NODE_FITS, format!("no node can take {name}"))
            .remedy(remedy)
            .and(reasons.collect()),
        nearest,
        changes,
    }
}
