//! Moves tried in their order before a plan is made of them.
//!
//! The searches of [`crate::plan`] know room and which nodes suit which VM *now*.
//! What the moves ahead change (rules between VMs, huge pages, NUMA nodes) is
//! found out here, with the filters that the executor asks before each step: so
//! it is told at the start. Every VM that was tried counts at its target, and no
//! longer at its source.

use std::ptr;

use godwit_shared::api::{NodeVerdict, Stays};
use godwit_shared::model::{NodeId, Problem, Usage, VmSpec, codes};

use super::super::Cluster;
use super::scene::{Scene, stays};
use crate::placement::{Index, Request, Snapshot, place};
use crate::plan::{Drain, Move};
use crate::record::VmRecord;

/// The nodes, as the moves so far leave them.
pub(super) struct Rehearsal<'a> {
    cluster: &'a Cluster,
    snapshot: Snapshot<'a>,
    /// Of the same nodes, with the same VMs.
    index: Index,
}

impl<'a> Rehearsal<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            snapshot: cluster.snapshot(None),
            index: cluster.observed.live.copy(cluster),
        }
    }

    /// As it will be when the plan runs.
    pub(super) fn cordon(&mut self, node: &NodeId, cordoned: bool) {
        let mut nodes = self.snapshot.nodes.iter_mut();
        if let Some(candidate) = nodes.find(|candidate| candidate.node == node) {
            candidate.cordoned = cordoned;
            let (connected, facts) = (candidate.connected, candidate.facts);
            self.index.set_node(node, connected, cordoned, facts);
        }
    }

    /// Moves it to the node that was planned, or else to the best one when it may
    /// go elsewhere. What stands against each, when nothing takes it.
    pub(super) fn go(
        &mut self,
        record: &'a VmRecord,
        planned: Option<&NodeId>,
        elsewhere: bool,
    ) -> Result<NodeId, Vec<NodeVerdict>> {
        let spec = &record.spec;
        let was = self.take_away(spec);
        self.snapshot.weights = self.cluster.settings.placement.weights_for(spec);
        let found = self.choose(record, planned, elsewhere);
        let scanned = || self.scan(record, planned, elsewhere);
        debug_assert!(
            found.is_none() || found == scanned().ok(),
            "the index chooses another node"
        );
        let found = found.map_or_else(scanned, Ok);
        match &found {
            Ok(target) => self.put(spec, |node| node == target),
            Err(_) => self.put(spec, |node| was.contains(&node)),
        }
        found
    }

    /// The index's answer; none as well where the scan has to give it.
    fn choose(
        &mut self,
        record: &VmRecord,
        planned: Option<&NodeId>,
        elsewhere: bool,
    ) -> Option<NodeId> {
        let wish = Request {
            exclude: record.owner.as_ref(),
            ..wish(self.cluster, record)
        };
        let planned = planned.map(|planned| Request {
            only: Some(planned),
            ..wish
        });
        let wishes = planned.into_iter().chain(elsewhere.then_some(wish));
        let weights = self.snapshot.weights;
        for wish in wishes {
            let found = self.index.choose(&wish, &weights);
            let new_enough = |node: &NodeId| self.cluster.old_qemu(record, node).is_none();
            if let Some(found) = found.filter(|found| new_enough(&found.node)) {
                return Some(found.node);
            }
        }
        None
    }

    /// What the filters and scorers say of every node.
    fn scan(
        &self,
        record: &VmRecord,
        planned: Option<&NodeId>,
        elsewhere: bool,
    ) -> Result<NodeId, Vec<NodeVerdict>> {
        let mut nodes = self.look(record);
        let fits = |verdict: &&NodeVerdict| verdict.refused.is_empty();
        let as_planned = nodes.iter().filter(|v| Some(&v.node) == planned).find(fits);
        let best = nodes.iter().find(fits).filter(|_| elsewhere);
        if let Some(found) = as_planned.or(best) {
            return Ok(found.node.clone());
        }
        nodes.retain(|verdict| elsewhere || Some(&verdict.node) == planned);
        Err(nodes)
    }

    /// What placement says of every node but its own, the best first.
    fn look(&self, record: &VmRecord) -> Vec<NodeVerdict> {
        let cluster = self.cluster;
        let mut nodes = place(&self.snapshot, &wish(cluster, record)).nodes;
        nodes.retain(|verdict| record.owner.as_ref() != Some(&verdict.node));
        for verdict in &mut nodes {
            verdict
                .refused
                .extend(cluster.old_qemu(record, &verdict.node));
        }
        nodes
    }

    fn take_away(&mut self, spec: &'a VmSpec) -> Vec<&'a NodeId> {
        let mut was = Vec::new();
        for node in &mut self.snapshot.nodes {
            if let Some(at) = node.vms.iter().position(|vm| ptr::eq(*vm, spec)) {
                node.vms.remove(at);
                let usage = Usage::of(spec);
                node.used.vcpus = node.used.vcpus.saturating_sub(usage.vcpus);
                node.used.memory = node.used.memory.saturating_sub(usage.memory);
                self.index.remove_vm(node.node, spec);
                self.index.take(node.node, node.used);
                was.push(node.node);
            }
        }
        was
    }

    fn put(&mut self, spec: &'a VmSpec, is: impl Fn(&'a NodeId) -> bool) {
        for node in self.snapshot.nodes.iter_mut().filter(|node| is(node.node)) {
            node.used = node.used.plus(Usage::of(spec));
            node.vms.push(spec);
            self.index.add_vm(node.node, spec);
            self.index.take(node.node, node.used);
        }
    }
}

impl Cluster {
    /// A drain, each move tried: those that go, to where they go, and what stays.
    /// A VM that has to be near another one finds its place after that one has.
    pub(super) fn rehearse_drain(
        &self,
        scene: &Scene,
        node: &NodeId,
        found: &Drain,
    ) -> (Vec<Move>, Vec<Stays>) {
        let mut rehearsal = Rehearsal::new(self);
        rehearsal.cordon(node, true);
        let planned = found.moves.iter().map(|one| (one.guest, Some(one.to)));
        let stuck = found.stuck.iter().map(|guest| (*guest, None));
        let mut left: Vec<_> = planned.chain(stuck).collect();
        let mut moves = Vec::new();
        loop {
            let (before, mut stay) = (left.len(), Vec::new());
            left.retain(|(guest, to)| {
                let Some(record) = self.guest(scene, *guest) else {
                    return false;
                };
                let to = to.map(|to| &scene.nodes[to]);
                match rehearsal.go(record, to, true) {
                    Ok(target) => moves.extend(scene.a_move(*guest, &target)),
                    Err(nodes) => {
                        stay.push(stays(record, no_place(record, nodes)));
                        return true;
                    }
                }
                false
            });
            // Each that went may be what another one has waited for.
            if left.is_empty() || left.len() == before {
                return (moves, stay);
            }
        }
    }

    /// The first of the moves that its target does not take.
    pub(super) fn first_refused(&self, scene: &Scene, moves: &[Move]) -> Option<usize> {
        let mut rehearsal = Rehearsal::new(self);
        let refused = moves.iter().find(|one| {
            let record = self.guest(scene, one.guest);
            let to = &scene.nodes[one.to];
            record.is_none_or(|record| rehearsal.go(record, Some(to), false).is_err())
        });
        refused.map(|one| one.guest)
    }

    fn guest(&self, scene: &Scene, guest: usize) -> Option<&VmRecord> {
        self.records.vms.get(scene.vms.get(guest)?)
    }
}

fn wish<'a>(cluster: &'a Cluster, record: &'a VmRecord) -> Request<'a> {
    Request {
        machine: cluster.machine_in_use(record),
        accelerator: cluster.accelerator_in_use(record),
        ..Request::new(&record.spec)
    }
}

/// Why a VM has no place: there is no room, or there is more to it.
fn no_place(record: &VmRecord, nodes: Vec<NodeVerdict>) -> Problem {
    let (name, usage) = (&record.name, Usage::of(&record.spec));
    let (memory, vcpus) = (usage.memory, usage.vcpus);
    let room = |problem: &Problem| problem.code == codes::INSUFFICIENT_RESOURCES;
    let full = |verdict: &NodeVerdict| verdict.refused.iter().all(room);
    let problem = if nodes.iter().any(full) {
        let text = format!("no node has room for {name} ({memory}, {vcpus} vCPUs) as well");
        let remedy = "add a node, or stop or move other VMs first";
        Problem::new(codes::INSUFFICIENT_RESOURCES, text).remedy(remedy)
    } else {
        let text = format!("no other node can take {name}");
        let remedy = format!("see what would help: `godwit vm migrate {name} --dry-run`");
        Problem::new(codes::NO_NODE_FITS, text).remedy(remedy)
    };
    let reasons = nodes.into_iter().flat_map(|verdict| verdict.refused);
    problem.and(reasons.collect())
}
