//! VMs that are alike in labels and rules, and the groups that rules name.
//!
//! VMs with the same labels and the same rules are *kin*. What a rule counts is a
//! *group*: for each that a VM names, the members are counted by node and by
//! domain, and so are the VMs whose hard rules keep that group away. A VM that
//! comes or goes changes its kin's groups and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};

use godwit_shared::model::spec::placement::HOST;
use godwit_shared::model::spec::{AffinityRule, PlacementSpec, RuleMode};
use godwit_shared::model::{VmName, VmSpec};

use super::labels::{Labels, Own, domain, number};
use super::quick::Quick;
use crate::placement::rules::{self, Group as Named, Kind};

/// How many kinds of kin without a VM are remembered beside those with one.
const IDLE: usize = if cfg!(test) { 2 } else { 1024 };

/// How many of something are where, by number.
pub(super) type Counts = BTreeMap<u32, u32>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topology {
    /// Every node is a domain of its own.
    Host,
    /// The label with that key.
    Label(u32),
}

impl Topology {
    /// The domain of a node with those labels.
    pub(super) fn domain(self, node: u32, own: &[(u32, u32)]) -> Option<u32> {
        match self {
            Self::Host => Some(node),
            Self::Label(key) => domain(own, key),
        }
    }
}

/// A rule of a kin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) kind: Kind,
    pub(super) topology: Topology,
    /// None for a group that nobody belongs to.
    pub(super) group: Option<u32>,
    pub(super) required: bool,
    /// None for `spread_by`, which is no rule.
    pub(super) weight: Option<u32>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Kin {
    labels: BTreeMap<String, String>,
    placement: PlacementSpec,
    vms: u32,
    by_node: Counts,
    /// The groups by labels that its VMs belong to.
    pub(super) groups: Vec<u32>,
    pub(super) wishes: Vec<Wish>,
    /// Whom its hard rules keep away from where.
    bans: Vec<(u32, Topology)>,
}

/// Whom a rule names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    Labels(BTreeMap<String, String>),
    Vm(VmName),
}

#[derive(Debug, Clone)]
pub(super) struct Group {
    who: Who,
    /// How many rules of kin name it.
    users: u32,
    pub(super) all: u32,
    pub(super) by_node: Counts,
    /// By key of the topology, by domain.
    tallies: Vec<(u32, Counts)>,
    /// The VMs that keep it away, by domain.
    pub(super) bans: Vec<(Topology, Counts)>,
}

impl Group {
    pub(super) fn is(&self, name: &VmName) -> bool {
        matches!(&self.who, Who::Vm(one) if one == name)
    }

    /// The members by domain.
    pub(super) fn counts(&self, topology: Topology) -> Option<&Counts> {
        match topology {
            Topology::Host => Some(&self.by_node),
            Topology::Label(key) => {
                let found = self.tallies.iter().find(|(one, _)| *one == key);
                found.map(|(_, counts)| counts)
            }
        }
    }

    fn count(&mut self, node: u32, own: &[(u32, u32)], by: i64) {
        self.all = moved(self.all, by);
        change(&mut self.by_node, node, by);
        self.tally(own, by);
    }

    fn tally(&mut self, own: &[(u32, u32)], by: i64) {
        for (key, counts) in &mut self.tallies {
            if let Some(domain) = domain(own, *key) {
                change(counts, domain, by);
            }
        }
    }

    fn ban(&mut self, topology: Topology, domain: u32, by: i64) {
        let mut bans = self.bans.iter_mut();
        match bans.find(|(one, _)| *one == topology) {
            Some((_, counts)) => change(counts, domain, by),
            None => {
                let mut counts = Counts::new();
                change(&mut counts, domain, by);
                self.bans.push((topology, counts));
            }
        }
    }
}

/// What is on a node.
#[derive(Debug, Clone, Default)]
struct Home {
    labels: Own,
    kins: Counts,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Kins {
    all: Vec<Kin>,
    free: Vec<u32>,
    idle: usize,
    by_hash: HashMap<u64, Vec<u32>>,
    /// The kin that carry a label.
    carriers: HashMap<(String, String), Vec<u32>>,
    groups: Vec<Group>,
    free_groups: Vec<u32>,
    by_who: HashMap<Who, u32>,
    /// The groups that have the label as the one by which they are found.
    anchors: HashMap<(String, String), Vec<u32>>,
    /// Groups of one VM by name.
    by_name: HashMap<VmName, u32>,
    /// Where the VM of a name is.
    names: HashMap<VmName, Vec<u32>>,
    homes: Vec<Home>,
}

impl Kins {
    pub(super) fn kin(&self, kin: u32) -> &Kin {
        &self.all[kin as usize]
    }

    pub(super) fn group(&self, group: u32) -> &Group {
        &self.groups[group as usize]
    }

    /// The group of the VM with that name, where a rule names it.
    pub(super) fn named(&self, name: &VmName) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub(super) fn labels(&self, node: u32) -> &[(u32, u32)] {
        &self.homes[node as usize].labels
    }

    pub(super) fn is_empty(&self, node: u32) -> bool {
        self.homes[node as usize].kins.is_empty()
    }

    /// The node carries those labels now.
    pub(super) fn relabel(&mut self, node: u32, labels: Own) {
        while self.homes.len() <= node as usize {
            self.homes.push(Home::default());
        }
        if self.homes[node as usize].labels != labels {
            self.shift(node, -1);
            self.homes[node as usize].labels = labels;
            self.shift(node, 1);
        }
    }

    /// Counts what is on the node in its domains, or no longer.
    fn shift(&mut self, node: u32, sign: i64) {
        let home = &self.homes[node as usize];
        for (kin, count) in &home.kins {
            let by = sign * i64::from(*count);
            let kin = &self.all[*kin as usize];
            for group in &kin.groups {
                self.groups[*group as usize].tally(&home.labels, by);
            }
            for (group, topology) in &kin.bans {
                if let (Topology::Label(key), group) = (topology, *group as usize)
                    && let Some(domain) = domain(&home.labels, *key)
                {
                    self.groups[group].ban(*topology, domain, by);
                }
            }
        }
        for group in self.by_name.values() {
            let group = &mut self.groups[*group as usize];
            let count = group.by_node.get(&node).copied().unwrap_or_default();
            group.tally(&home.labels, sign * i64::from(count));
        }
    }

    /// A VM of that kin comes to the node, or leaves it.
    pub(super) fn settle(&mut self, node: u32, kin: u32, name: &VmName, comes: bool) {
        let by = if comes { 1 } else { -1 };
        let home = &mut self.homes[node as usize];
        change(&mut home.kins, kin, by);
        let kin = &mut self.all[kin as usize];
        self.idle -= usize::from(comes && kin.vms == 0);
        kin.vms = moved(kin.vms, by);
        self.idle += usize::from(!comes && kin.vms == 0);
        change(&mut kin.by_node, node, by);
        for group in &kin.groups {
            self.groups[*group as usize].count(node, &home.labels, by);
        }
        for (group, topology) in &kin.bans {
            if let Some(domain) = topology.domain(node, &home.labels) {
                self.groups[*group as usize].ban(*topology, domain, by);
            }
        }
        if let Some(group) = self.by_name.get(name) {
            self.groups[*group as usize].count(node, &home.labels, by);
        }
        self.rename(node, name, comes);
    }

    fn rename(&mut self, node: u32, name: &VmName, comes: bool) {
        if comes {
            match self.names.get_mut(name) {
                Some(places) => places.push(node),
                None => drop(self.names.insert(name.clone(), vec![node])),
            }
        } else if let Some(places) = self.names.get_mut(name) {
            if let Some(at) = places.iter().position(|one| *one == node) {
                places.swap_remove(at);
            }
            if places.is_empty() {
                self.names.remove(name);
            }
        }
    }

    /// The kin of that VM.
    pub(super) fn find(&mut self, spec: &VmSpec, labels: &mut Labels) -> u32 {
        let hash = hash(spec);
        let same = |kin: &&u32| self.all[**kin as usize].is(spec);
        if let Some(kin) = self
            .by_hash
            .get(&hash)
            .and_then(|all| all.iter().find(same))
        {
            return *kin;
        }
        if self.idle > IDLE.max(self.all.len() / 2) {
            self.forget_idle();
        }
        self.make(spec, hash, labels)
    }

    fn make(&mut self, spec: &VmSpec, hash: u64, labels: &mut Labels) -> u32 {
        let kin = Kin {
            labels: spec.labels.clone(),
            placement: rules_of(&spec.placement),
            groups: self.groups_with(spec),
            ..Kin::default()
        };
        let new = put(&mut self.all, &mut self.free, kin);
        self.idle += 1;
        self.by_hash.entry(hash).or_default().push(new);
        for (key, value) in &spec.labels {
            let label = (key.clone(), value.clone());
            self.carriers.entry(label).or_default().push(new);
        }
        for wish in rules::wishes(spec) {
            let wish = self.wish(&wish, labels);
            self.all[new as usize].wishes.push(wish);
        }
        for (_, wish) in rules::hard_apart(spec) {
            if let (Some(group), topology) = self.reference(wish.group, wish.topology, labels) {
                self.all[new as usize].bans.push((group, topology));
            }
        }
        new
    }

    fn wish(&mut self, wish: &rules::Wish<'_>, labels: &mut Labels) -> Wish {
        let (group, topology) = self.reference(wish.group, wish.topology, labels);
        Wish {
            kind: wish.kind,
            topology,
            group,
            required: wish.mode == RuleMode::Required,
            weight: wish.name.map(|_| wish.weight),
        }
    }

    fn reference(
        &mut self,
        group: Named<'_>,
        topology: &str,
        labels: &mut Labels,
    ) -> (Option<u32>, Topology) {
        let topology = match topology {
            HOST => Topology::Host,
            key => Topology::Label(labels.key(key)),
        };
        let who = match group {
            Named::Labels(all) => Who::Labels(all.clone()),
            Named::Label(key, value) => Who::Labels([(key.to_owned(), value.to_owned())].into()),
            Named::Vm(name) => Who::Vm(name.clone()),
            Named::Nobody => return (None, topology),
        };
        let group = self.group_of(who);
        self.groups[group as usize].users += 1;
        if let Topology::Label(key) = topology {
            self.tally(group, key);
        }
        (Some(group), topology)
    }

    /// The groups by labels that VMs of that spec belong to.
    fn groups_with(&self, spec: &VmSpec) -> Vec<u32> {
        let labels = spec.labels.iter();
        let labels = labels.map(|(key, value)| (key.clone(), value.clone()));
        let anchors = labels.chain([(String::new(), String::new())]);
        let found = anchors.filter_map(|label| self.anchors.get(&label));
        let found = found.flatten().copied();
        found
            .filter(|group| self.groups[*group as usize].who.has(&spec.labels))
            .collect()
    }

    fn group_of(&mut self, who: Who) -> u32 {
        if let Some(group) = self.by_who.get(&who) {
            return *group;
        }
        let group = Group {
            who: who.clone(),
            users: 0,
            all: 0,
            by_node: Counts::new(),
            tallies: Vec::new(),
            bans: Vec::new(),
        };
        let new = put(&mut self.groups, &mut self.free_groups, group);
        self.by_who.insert(who.clone(), new);
        match who {
            Who::Vm(name) => {
                self.count_named(new, &name);
                self.by_name.insert(name, new);
            }
            Who::Labels(labels) => {
                let anchor = self.anchor(&labels);
                self.count_members(new, &labels, &anchor);
                self.anchors.entry(anchor).or_default().push(new);
            }
        }
        new
    }

    fn count_named(&mut self, new: u32, name: &VmName) {
        for node in self.names.get(name).into_iter().flatten() {
            let own = &self.homes[*node as usize].labels;
            self.groups[new as usize].count(*node, own, 1);
        }
    }

    /// The label that the fewest groups are found by already.
    fn anchor(&self, labels: &BTreeMap<String, String>) -> (String, String) {
        let labels = labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()));
        let rare = labels.min_by_key(|label| self.anchors.get(label).map_or(0, Vec::len));
        rare.unwrap_or_default()
    }

    fn count_members(
        &mut self,
        new: u32,
        labels: &BTreeMap<String, String>,
        anchor: &(String, String),
    ) {
        let all: Vec<u32> = if labels.is_empty() {
            (0..number(self.all.len())).collect()
        } else {
            self.carriers.get(anchor).cloned().unwrap_or_default()
        };
        for kin in all {
            let kin = &mut self.all[kin as usize];
            if has(labels, &kin.labels) {
                kin.groups.push(new);
                for (node, count) in &kin.by_node {
                    let own = &self.homes[*node as usize].labels;
                    self.groups[new as usize].count(*node, own, (*count).into());
                }
            }
        }
    }

    /// Counts the group in that topology from now on.
    fn tally(&mut self, group: u32, key: u32) {
        let group = &mut self.groups[group as usize];
        if group.counts(Topology::Label(key)).is_some() {
            return;
        }
        let mut counts = Counts::new();
        for (node, count) in &group.by_node {
            if let Some(domain) = domain(&self.homes[*node as usize].labels, key) {
                change(&mut counts, domain, (*count).into());
            }
        }
        group.tallies.push((key, counts));
    }

    /// Forgets kin without a VM, and the groups that no other kin names.
    fn forget_idle(&mut self) {
        for hash in self.by_hash.values_mut() {
            hash.retain(|kin| self.all[*kin as usize].vms > 0);
        }
        self.by_hash.retain(|_, kins| !kins.is_empty());
        for carriers in self.carriers.values_mut() {
            carriers.retain(|kin| self.all[*kin as usize].vms > 0);
        }
        self.carriers.retain(|_, kins| !kins.is_empty());
        self.free = Vec::new();
        for (number, kin) in (0..).zip(&mut self.all) {
            if kin.vms == 0 {
                let wished = kin.wishes.iter().filter_map(|wish| wish.group);
                for group in wished.chain(kin.bans.iter().map(|(group, _)| *group)) {
                    self.groups[group as usize].users -= 1;
                }
                *kin = Kin::default();
                self.free.push(number);
            }
        }
        self.idle = 0;
        self.forget_groups();
    }

    fn forget_groups(&mut self) {
        let groups = &self.groups;
        let used = |group: &u32| groups[*group as usize].users > 0;
        for kin in &mut self.all {
            kin.groups.retain(used);
        }
        for anchored in self.anchors.values_mut() {
            anchored.retain(used);
        }
        self.anchors.retain(|_, groups| !groups.is_empty());
        self.by_name.retain(|_, group| used(group));
        let free_groups = &mut self.free_groups;
        self.by_who.retain(|_, group| {
            let keep = used(group);
            if !keep {
                free_groups.push(*group);
            }
            keep
        });
    }
}

impl Kin {
    pub(super) fn is(&self, spec: &VmSpec) -> bool {
        let (own, other) = (&self.placement, &spec.placement);
        self.labels == spec.labels
            && own.spread_by == other.spread_by
            && own.affinity == other.affinity
            && own.anti_affinity == other.anti_affinity
            && own.topology_spread == other.topology_spread
    }
}

impl Who {
    fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        matches!(self, Self::Labels(all) if has(all, labels))
    }
}

fn has(all: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    all.iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// What ties VMs to others.
fn rules_of(placement: &PlacementSpec) -> PlacementSpec {
    PlacementSpec {
        spread_by: placement.spread_by.clone(),
        affinity: placement.affinity.clone(),
        anti_affinity: placement.anti_affinity.clone(),
        topology_spread: placement.topology_spread.clone(),
        ..PlacementSpec::default()
    }
}

/// The same for kin; most others differ in it.
fn hash(spec: &VmSpec) -> u64 {
    let mut state = Quick::default();
    let placement = &spec.placement;
    spec.labels.hash(&mut state);
    placement.spread_by.hash(&mut state);
    let rule = |state: &mut Quick, rule: &AffinityRule| {
        (&rule.name, &rule.topology, &rule.vm, rule.weight).hash(state);
        rule.group.hash(state);
    };
    for one in placement.affinity.iter().chain(&placement.anti_affinity) {
        rule(&mut state, one);
    }
    for one in &placement.topology_spread {
        (&one.name, &one.topology, one.max_skew, one.weight).hash(&mut state);
    }
    state.finish()
}

/// A number that is free, or a new one.
fn put<T>(all: &mut Vec<T>, free: &mut Vec<u32>, one: T) -> u32 {
    if let Some(old) = free.pop() {
        all[old as usize] = one;
        return old;
    }
    all.push(one);
    number(all.len() - 1)
}

fn change(counts: &mut Counts, at: u32, by: i64) {
    if by == 0 {
        return;
    }
    let count = counts.entry(at).or_default();
    *count = moved(*count, by);
    if *count == 0 {
        counts.remove(&at);
    }
}

fn moved(count: u32, by: i64) -> u32 {
    u32::try_from(i64::from(count) + by).unwrap_or_default()
}
