//! What every VM takes on which nodes, and in which state it is: kept, not
//! counted.
//!
//! Placement asks what is taken on every node for each VM that starts or moves,
//! a hello asks which VMs are its node's, and operators ask how many VMs are in
//! which state. Counting that over all VMs made each answer as dear as the
//! cluster is large. So each VM's share is kept with the sums that it is in,
//! and is written anew when something was touched that it follows from: its
//! record, its task, its migration, a node's word about it, or its owner's
//! coming and going.
//!
//! Invariants, held against the count after every step of a debug build:
//! * between two steps nothing is doubtful, and the sums are the count;
//! * within a step, who has changed something and then asks for sums calls
//!   [`Cluster::settle_ledger`] between the two.

use std::collections::{BTreeMap, BTreeSet};

use godwit_shared::model::{DomainState, MiB, NodeId, Usage, VmId, VmSpec};

use super::Cluster;
use super::room::Load;
use super::turn::Turn;
use crate::record::{Key, VmRecord};

/// What one VM takes, and how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Share {
    usage: Usage,
    owner: Option<NodeId>,
    /// Where it takes that.
    pub(super) places: Vec<NodeId>,
    state: DomainState,
    /// It may stand in the way of others by more than its size.
    apart: bool,
}

/// What is on one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Place {
    taken: Taken,
    owned: BTreeSet<VmId>,
}

/// A sum of usages. Wide enough that what was added can be taken away again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Taken {
    vcpus: u64,
    memory: u128,
}

/// The shares and their sums.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ledger {
    shares: BTreeMap<VmId, Share>,
    /// Only nodes that have something.
    places: BTreeMap<NodeId, Place>,
    /// VMs in each state.
    states: BTreeMap<&'static str, u32>,
    /// VMs that placement has to see whatever it places.
    apart: BTreeSet<VmId>,
    /// VMs whose share may be another by now.
    doubtful: BTreeSet<VmId>,
}

impl Ledger {
    /// Something was said of the VM.
    pub(super) fn doubt(&mut self, vm: VmId) {
        self.doubtful.insert(vm);
    }

    /// The node came or went, which says something of its VMs.
    pub(super) fn doubt_those_of(&mut self, node: &NodeId) {
        let owned = self.places.get(node).map(|place| &place.owned);
        self.doubtful.extend(owned.into_iter().flatten());
    }

    /// The VMs that the node owns.
    pub(super) fn owned(&self, node: &NodeId) -> impl Iterator<Item = VmId> {
        let place = self.places.get(node);
        place
            .into_iter()
            .flat_map(|place| place.owned.iter().copied())
    }

    /// How many VMs are in each state that any is in.
    pub(super) const fn states(&self) -> &BTreeMap<&'static str, u32> {
        &self.states
    }

    /// What is on the node.
    pub(super) fn load(&self, node: &NodeId) -> Load {
        self.places.get(node).map(Place::load).unwrap_or_default()
    }

    /// What is on every node that has anything.
    #[cfg(test)]
    pub(super) fn loads(&self) -> BTreeMap<&NodeId, Load> {
        let places = self.places.iter();
        places.map(|(node, place)| (node, place.load())).collect()
    }

    /// What is taken on the node, without one VM's share.
    pub(super) fn used(&self, node: &NodeId, except: Option<VmId>) -> Usage {
        let Some(place) = self.places.get(node) else {
            return Usage::default();
        };
        let mut rest = place.taken;
        let share = except.and_then(|vm| self.shares.get(&vm));
        if let Some(share) = share.filter(|share| share.places.contains(node)) {
            rest.change(share.usage, false);
        }
        rest.usage()
    }

    /// Every VM's share, in the order of their ids.
    pub(super) fn all(&self) -> impl Iterator<Item = (VmId, &Share)> {
        self.shares.iter().map(|(vm, share)| (*vm, share))
    }

    /// Only those that placement has to see whatever it places.
    pub(super) fn apart(&self) -> impl Iterator<Item = (VmId, &Share)> {
        let apart = self.apart.iter();
        apart.filter_map(|vm| Some((*vm, self.shares.get(vm)?)))
    }

    fn put(&mut self, vm: VmId, share: Option<Share>) {
        if self.shares.get(&vm) == share.as_ref() {
            return;
        }
        if let Some(old) = self.shares.remove(&vm) {
            self.count(vm, &old, false);
        }
        if let Some(new) = share {
            self.count(vm, &new, true);
            self.shares.insert(vm, new);
        }
    }

    fn count(&mut self, vm: VmId, share: &Share, there: bool) {
        self.apart.remove(&vm);
        if there && share.apart {
            self.apart.insert(vm);
        }
        let state = self.states.entry(share.state.as_str()).or_default();
        *state = if there { *state + 1 } else { *state - 1 };
        self.states.retain(|_, count| *count > 0);
        if let Some(owner) = &share.owner {
            self.at(owner, |place| place.own(vm, there));
        }
        for node in &share.places {
            self.at(node, |place| place.taken.change(share.usage, there));
        }
    }

    fn at(&mut self, node: &NodeId, change: impl FnOnce(&mut Place)) {
        let place = self.places.entry(node.clone()).or_default();
        change(place);
        if *place == Place::default() {
            self.places.remove(node);
        }
    }
}

impl Place {
    fn own(&mut self, vm: VmId, there: bool) {
        if there {
            self.owned.insert(vm);
        } else {
            self.owned.remove(&vm);
        }
    }

    fn load(&self) -> Load {
        Load {
            used: self.taken.usage(),
            vms: u32::try_from(self.owned.len()).unwrap_or(u32::MAX),
        }
    }
}

impl Taken {
    fn change(&mut self, usage: Usage, there: bool) {
        let (vcpus, memory) = (u64::from(usage.vcpus), u128::from(usage.memory.0));
        if there {
            self.vcpus += vcpus;
            self.memory += memory;
        } else {
            self.vcpus -= vcpus;
            self.memory -= memory;
        }
    }

    fn usage(self) -> Usage {
        Usage {
            vcpus: u32::try_from(self.vcpus).unwrap_or(u32::MAX),
            memory: MiB(u64::try_from(self.memory).unwrap_or(u64::MAX)),
        }
    }
}

impl Cluster {
    /// Writes down the shares of the VMs of which anything was touched or said.
    pub(super) fn settle_ledger(&mut self, turn: &Turn) {
        self.settle_nodes(turn);
        let mut doubtful = std::mem::take(&mut self.observed.ledger.doubtful);
        doubtful.extend(turn.touched().filter_map(|key| self.vm_of(key)));
        for vm in doubtful {
            let record = self.records.vms.get(&vm);
            let share = record.map(|record| self.share_of(record));
            let settled = record.zip(share.as_ref());
            let settled = settled.map(|(record, share)| (&record.spec, &share.places[..]));
            self.observed.live.put(vm, settled);
            self.observed.ledger.put(vm, share);
        }
    }

    /// Writes everything down, at the start.
    pub(super) fn begin_ledger(&mut self) {
        let ledger = self.count_ledger();
        self.begin_live();
        for (vm, share) in ledger.all() {
            let record = self.records.vms.get(&vm);
            let settled = record.map(|record| (&record.spec, &share.places[..]));
            self.observed.live.put(vm, settled);
        }
        self.observed.ledger = ledger;
    }

    /// The ledger as a count over all VMs gives it.
    fn count_ledger(&self) -> Ledger {
        let mut ledger = Ledger::default();
        for (vm, record) in &self.records.vms {
            ledger.put(*vm, Some(self.share_of(record)));
        }
        ledger
    }

    pub(super) fn check_ledger(&self) {
        debug_assert_eq!(
            self.observed.ledger,
            self.count_ledger(),
            "the ledger is not the count"
        );
    }

    fn vm_of(&self, key: &Key) -> Option<VmId> {
        match key {
            Key::Vm(vm) => Some(*vm),
            Key::Task(id) => self.records.tasks.get(id).map(|task| task.vm),
            Key::Migration(id) => self.records.migrations.get(id).map(|record| record.vm),
            _ => None,
        }
    }

    fn share_of(&self, record: &VmRecord) -> Share {
        Share {
            usage: Usage::of(&record.spec),
            owner: record.owner.clone(),
            places: self.places_of(record).into_iter().cloned().collect(),
            state: self.state_of(record).0,
            apart: keeps_apart(&record.spec),
        }
    }
}

/// Whether the VM may keep another one off its host, or take a part of the
/// host, although the host is large enough.
fn keeps_apart(spec: &VmSpec) -> bool {
    !spec.placement.anti_affinity.is_empty() || !spec.memory_backing.is_default()
}
