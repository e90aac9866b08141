//! The index over nodes, kept beside the ledger.
//!
//! Decisions ask [`Index`] for the best node instead of looking at every one. It
//! is told of the same things as the ledger, at the same moments: of a VM when its
//! share is written anew, of a node when its record was touched or its session
//! came or went. What a decision leaves out (the VM itself) or counts as well (what
//! plans will bring) is taken away, or put there, for that decision alone.
//!
//! Invariant, held after every step of a debug build: each member is in the index
//! as it is, with what the ledger says is taken there, and each VM at its places.
//! There every decision is held against the full scan as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use godwit_shared::model::{NodeId, Usage, VmId, VmSpec};

use super::Cluster;
use super::plans::Coming;
use super::turn::Turn;
use crate::placement::{Index, Resident};
use crate::record::Key;

/// The index, and what it was told.
#[derive(Debug, Clone, Default)]
pub(super) struct Live {
    /// Copied only when it is changed: a copy of a cluster is cheap.
    index: Arc<Index>,
    /// VMs that take room.
    vms: BTreeMap<VmId, There>,
    /// VMs with a place that was no member when they got it.
    astray: BTreeSet<VmId>,
    /// Nodes that may be otherwise by now.
    doubtful: BTreeSet<NodeId>,
}

/// Where a VM takes room.
#[derive(Debug, Clone)]
struct There {
    places: Vec<NodeId>,
    residents: Vec<Resident>,
}

/// Where a VM is to be that takes room.
pub(super) type Settled<'a> = (&'a VmSpec, &'a [NodeId]);

/// What is to come to a node, while a decision is made.
struct Reserved<'a> {
    node: &'a NodeId,
    before: Usage,
    residents: Vec<Resident>,
}

impl Live {
    /// The node came or went.
    pub(super) fn doubt(&mut self, node: &NodeId) {
        self.doubtful.insert(node.clone());
    }

    /// The VM takes room there, or nowhere.
    pub(super) fn put(&mut self, vm: VmId, wanted: Option<Settled<'_>>) {
        let wanted = wanted.filter(|(_, places)| !places.is_empty());
        let same = match (self.vms.get(&vm), wanted) {
            (None, None) => true,
            (Some(there), Some(wanted)) => self.is(there, wanted),
            _ => false,
        };
        if !same {
            self.leave(vm);
            if let Some(wanted) = wanted {
                self.enter(vm, wanted);
            }
        }
    }

    fn is(&self, there: &There, (spec, places): Settled<'_>) -> bool {
        let mut residents = there.residents.iter();
        there.places == places
            && there.residents.len() == places.len()
            && residents.all(|resident| self.index.is(resident, spec))
    }

    fn leave(&mut self, vm: VmId) {
        self.astray.remove(&vm);
        if let Some(there) = self.vms.remove(&vm) {
            let index = Arc::make_mut(&mut self.index);
            for resident in &there.residents {
                index.remove(resident);
            }
        }
    }

    fn enter(&mut self, vm: VmId, (spec, places): Settled<'_>) {
        let index = Arc::make_mut(&mut self.index);
        let there = There {
            places: places.to_vec(),
            residents: places
                .iter()
                .filter_map(|node| index.add_vm(node, spec))
                .collect(),
        };
        if there.residents.len() < places.len() {
            self.astray.insert(vm);
        }
        self.vms.insert(vm, there);
    }

    /// Shows the index as it is for a decision about that VM: without it, and with
    /// what plans will bring.
    pub(super) fn for_decision<T>(
        &mut self,
        cluster: &Cluster,
        vm: Option<VmId>,
        look: impl FnOnce(&mut Index) -> T,
    ) -> T {
        let places = vm.and_then(|vm| Some((vm, self.vms.get(&vm)?.places.clone())));
        if let Some((vm, _)) = places {
            self.leave(vm);
        }
        let index = Arc::make_mut(&mut self.index);
        let reserved = reserve(index, cluster, vm);
        let seen = look(index);
        for one in reserved {
            for resident in &one.residents {
                index.remove(resident);
            }
            index.take(one.node, one.before);
        }
        let record = places.and_then(|(vm, places)| Some((cluster.records.vms.get(&vm)?, places)));
        if let Some((record, places)) = record {
            self.enter(record.id, (&record.spec, &places));
        }
        seen
    }

    /// The index with what plans will bring, to try moves on.
    pub(super) fn copy(&self, cluster: &Cluster) -> Index {
        let mut index = Index::clone(&self.index);
        reserve(&mut index, cluster, None);
        index
    }
}

/// Puts what plans will bring to their targets.
fn reserve<'a>(index: &mut Index, cluster: &'a Cluster, except: Option<VmId>) -> Vec<Reserved<'a>> {
    if cluster.observed.plans.is_empty() {
        return Vec::new();
    }
    let planned = cluster.planned(except).into_iter();
    let reserved = planned.filter_map(|(node, Coming { takes, vms })| {
        let before = index.used(node)?;
        let residents = vms.into_iter().filter_map(|spec| index.add_vm(node, spec));
        let residents = residents.collect();
        index.take(node, before.plus(takes));
        Some(Reserved {
            node,
            before,
            residents,
        })
    });
    reserved.collect()
}

impl Cluster {
    /// Lets `look` ask the index; the cluster that it is given has none meanwhile.
    pub(super) fn with_live<T>(&mut self, look: impl FnOnce(&Self, &mut Live) -> T) -> T {
        let mut live = std::mem::take(&mut self.observed.live);
        let seen = look(self, &mut live);
        self.observed.live = live;
        seen
    }

    /// Tells the index of the nodes of which anything was touched or said. VMs
    /// that have waited for one of them are doubtful.
    pub(super) fn settle_nodes(&mut self, turn: &Turn) {
        let mut nodes = std::mem::take(&mut self.observed.live.doubtful);
        nodes.extend(turn.touched().filter_map(|key| match key {
            Key::Node(node) => Some(node.clone()),
            _ => None,
        }));
        for node in &nodes {
            self.settle_node(node);
        }
    }

    fn settle_node(&mut self, node: &NodeId) {
        let up = self.is_up(node);
        let record = self.records.nodes.get(node).filter(|node| !node.revoked);
        let live = &mut self.observed.live;
        let index = Arc::make_mut(&mut live.index);
        if let Some(record) = record {
            if index.used(node).is_none() {
                for vm in &live.astray {
                    self.observed.ledger.doubt(*vm);
                }
            }
            index.set_node(node, up, record.cordoned, record.facts.as_ref());
        } else if !index.remove_node(node) {
            index.set_node(node, false, false, None);
        }
    }

    /// Tells the index of every member, at the start.
    pub(super) fn begin_live(&mut self) {
        self.observed.live = Live::default();
        let nodes: Vec<NodeId> = self.records.nodes.keys().cloned().collect();
        for node in nodes {
            self.settle_node(&node);
        }
    }

    pub(super) fn check_live(&self) {
        let live = &self.observed.live;
        let members = self.records.nodes.values().filter(|node| !node.revoked);
        let mut count = 0;
        for record in members {
            count += 1;
            let node = &record.name;
            let takes_vms = self.is_up(node) && !record.cordoned && record.facts.is_some();
            let found = (live.index.used(node), live.index.takes_vms(node));
            let used = self.observed.ledger.used(node, None);
            debug_assert_eq!(found, (Some(used), takes_vms), "the index errs on {node}");
        }
        debug_assert_eq!(live.index.len(), count, "the index has other members");
        for (vm, share) in self.observed.ledger.all() {
            let spec = self.records.vms.get(&vm).map(|record| &record.spec);
            let there = live.vms.get(&vm);
            let fine = match (there, spec) {
                (Some(there), Some(spec)) => live.is(there, (spec, &share.places)),
                _ => there.is_none() && share.places.is_empty(),
            };
            debug_assert!(fine, "the index errs on the places of {vm}");
        }
    }
}
