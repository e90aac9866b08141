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
use crate::placement::{Request, Snapshot, place};
use crate::plan::{Drain, Move};
use crate::record::VmRecord;

/// The nodes, as the moves so far leave them.
pub(super) struct Rehearsal<'a> {
    cluster: &'a Cluster,
    snapshot: Snapshot<'a>,
}

impl<'a> Rehearsal<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            snapshot: cluster.snapshot(None),
        }
    }

    /// As it will be when the plan runs.
    pub(super) fn cordon(&mut self, node: &NodeId, cordoned: bool) {
        let mut nodes = self.snapshot.nodes.iter_mut();
        if let Some(candidate) = nodes.find(|candidate| candidate.node == node) {
            candidate.cordoned = cordoned;
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
        let mut nodes = self.look(record);
        let fits = |verdict: &&NodeVerdict| verdict.refused.is_empty();
        let as_planned = nodes.iter().filter(|v| Some(&v.node) == planned).find(fits);
        let best = nodes.iter().find(fits).filter(|_| elsewhere);
        if let Some(found) = as_planned.or(best) {
            let target = found.node.clone();
            self.put(spec, |node| *node == target);
            return Ok(target);
        }
        self.put(spec, |node| was.contains(&node));
        nodes.retain(|verdict| elsewhere || Some(&verdict.node) == planned);
        Err(nodes)
    }

    /// What placement says of every node but its own, the best first.
    fn look(&mut self, record: &VmRecord) -> Vec<NodeVerdict> {
        let cluster = self.cluster;
        self.snapshot.weights = cluster.settings.placement.weights_for(&record.spec);
        let wish = Request {
            machine: cluster.machine_in_use(record),
            accelerator: cluster.accelerator_in_use(record),
            ..Request::new(&record.spec)
        };
        let mut nodes = place(&self.snapshot, &wish).nodes;
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
                was.push(node.node);
            }
        }
        was
    }

    fn put(&mut self, spec: &'a VmSpec, is: impl Fn(&'a NodeId) -> bool) {
        for node in self.snapshot.nodes.iter_mut().filter(|node| is(node.node)) {
            node.used = node.used.plus(Usage::of(spec));
            node.vms.push(spec);
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
