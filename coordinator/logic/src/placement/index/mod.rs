//! The same choice as [`super::place`]'s, without a look at every node.
//!
//! ```text
//! node ── equipment ┐
//!      ── zone, ... ├─ pool: nodes that are alike, a tree by what is free (tree)
//!      ── capacity  ┘
//! VM ──── labels and rules ── kin ── groups: counted by node and domain (kin)
//! request ── what it asks of equipment ── shape: checked once (shape)
//! ```
//!
//! A decision begins with the pools: the equipment, narrow labels and rules over
//! these stand for or against all nodes of one. Then it looks for the best node in
//! the pools that are left, those parts of the trees first whose upper bound of
//! the score is the highest, and ends when no part can hold a better node
//! (search). Nodes are judged by the filters' conditions and the scorers'
//! functions. Where a rule or a label leaves few nodes, those alone are judged.
//!
//! Invariants, held by a property test against the full scan:
//! * The choice is the full scan's: the same node, with the same score; with
//!   [`Index::nearly`], a node that fits with nearly that score.
//! * An index that was changed step by step chooses as a new one does.

mod kin;
mod labels;
mod quick;
mod search;
mod shape;
mod tree;

use std::collections::{BTreeMap, HashMap};

use godwit_shared::api::ScorePart;
use godwit_shared::model::spec::MemoryBacking;
use godwit_shared::model::{Capacity, NodeFacts, NodeId, Usage, VmName, VmSpec};

use self::kin::Kins;
use self::labels::{Labels, Own, number};
use self::shape::Shapes;
use self::tree::{Arena, DIRECTIONS, NONE, Span};
use super::numa::Numa;
use super::profile::Weights;
use super::request::{Candidate, Request, Snapshot};
use super::score;

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Where the VM goes.
    pub node: NodeId,
    /// The node's score, as placement explains it.
    pub score: u32,
}

/// A VM on a node, as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    node: u32,
    kin: u32,
    name: VmName,
    usage: Usage,
    backing: MemoryBacking,
}

/// Nodes and what is on them, in an order that finds the best one soon.
#[derive(Debug, Clone, Default)]
pub struct Index {
    nodes: Vec<Node>,
    free: Vec<u32>,
    by_name: BTreeMap<NodeId, u32>,
    pools: Vec<Pool>,
    by_traits: HashMap<Traits, u32>,
    arena: Arena,
    labels: Labels,
    kins: Kins,
    shapes: Shapes,
    /// Weights of memory, vCPUs and packing whose sum the trees keep.
    directions: Vec<[u32; 3]>,
    /// Nodes that take VMs.
    live: u32,
    /// Nodes with taints that VMs had better avoid.
    disliked: u32,
    /// By how many points the choice may be worse than the best.
    slack: u32,
}

#[derive(Debug, Clone, Default)]
struct Node {
    name: Option<NodeId>,
    /// Numbers in the order of names.
    rank: u64,
    seen: Seen,
    used: Usage,
    numa: Numa,
    /// VMs there that asked for something of their memory.
    backed: Vec<(Usage, MemoryBacking)>,
    /// Of the tree that it is in.
    pool: Option<u32>,
}

/// What a node said of itself, as far as decisions need it.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// It takes VMs.
    live: bool,
    equipment: u32,
    capacity: Capacity,
    numa: Numa,
    images: Vec<String>,
    disliked: bool,
}

/// What the nodes of a pool have in common: equipment, narrow labels, and about
/// the same memory and vCPUs.
type Traits = (u32, Own, [u32; 2]);

#[derive(Debug, Clone)]
struct Pool {
    equipment: u32,
    labels: Own,
    root: u32,
    /// The least and the most memory and vCPUs that a node of it ever had.
    least: [f32; 2],
    most: [f32; 2],
}

/// The distance of names that come one after the other.
const STEP: u64 = if cfg!(test) { 4 } else { 1 << 24 };

impl Index {
    /// An index of those nodes and VMs.
    pub fn of(snapshot: &Snapshot<'_>) -> Self {
        let mut index = Self::default();
        let mut nodes: Vec<&Candidate<'_>> = snapshot.nodes.iter().collect();
        nodes.sort_by_key(|one| one.node);
        for one in nodes {
            index.set_node(one.node, one.connected, one.cordoned, one.facts);
            for vm in &one.vms {
                index.add_vm(one.node, vm);
            }
            index.take(one.node, one.used);
        }
        index
    }

    /// Ends searches at a node that is at most so many points of 1000 below the
    /// best. Many nodes are about as good in a balanced cluster, and the full
    /// scan's choice among them takes the most time to find.
    #[must_use]
    pub fn nearly(self, slack: u32) -> Self {
        Self { slack, ..self }
    }

    /// A node is new, or something about it is.
    pub fn set_node(
        &mut self,
        name: &NodeId,
        connected: bool,
        cordoned: bool,
        facts: Option<&NodeFacts>,
    ) {
        let node = match self.by_name.get(name) {
            Some(node) => *node,
            None => self.add_node(name),
        };
        let (own, widened) = match facts {
            Some(facts) => self.labels.numbers(&facts.labels),
            None => (Own::new(), false),
        };
        let mut seen = facts.map_or_else(Seen::default, |facts| Seen {
            equipment: self.shapes.equipment(name, facts),
            ..Seen::of(facts)
        });
        seen.live = connected && !cordoned && facts.is_some();
        self.leave_pool(node);
        self.join_labels(node, &seen, own);
        let there = &mut self.nodes[node as usize];
        self.live = self.live + u32::from(seen.live) - u32::from(there.seen.live);
        self.disliked = self.disliked + u32::from(seen.disliked) - u32::from(there.seen.disliked);
        there.seen = seen;
        there.recount();
        if widened {
            self.repool();
        } else {
            self.enter_pool(node);
        }
    }

    fn join_labels(&mut self, node: u32, seen: &Seen, own: Own) {
        let was_live = self.nodes[node as usize].seen.live;
        self.labels.leave(node, self.kins.labels(node), was_live);
        self.labels.join(node, &own, seen.live);
        self.kins.relabel(node, own);
    }

    fn add_node(&mut self, name: &NodeId) -> u32 {
        let rank = self.rank_of(name);
        let node = Node {
            name: Some(name.clone()),
            rank,
            ..Node::default()
        };
        let number = match self.free.pop() {
            Some(old) => {
                self.nodes[old as usize] = node;
                old
            }
            None => {
                self.nodes.push(node);
                number(self.nodes.len() - 1)
            }
        };
        self.by_name.insert(name.clone(), number);
        self.kins.relabel(number, Own::new());
        number
    }

    /// A number between those of the neighbours; all are dealt anew when there is
    /// none left.
    fn rank_of(&mut self, name: &NodeId) -> u64 {
        loop {
            let rank = |node: &u32| self.nodes[*node as usize].rank;
            let before = self.by_name.range(..name).next_back();
            let after = self.by_name.range(name..).next();
            let found = match (before.map(|(_, n)| rank(n)), after.map(|(_, n)| rank(n))) {
                (None, None) => Some(u64::MAX / 2),
                (Some(before), None) => before.checked_add(STEP),
                (None, Some(after)) => after.checked_sub(STEP),
                (Some(before), Some(after)) => {
                    let middle = before.midpoint(after);
                    (middle > before).then_some(middle)
                }
            };
            match found {
                Some(rank) => return rank,
                None => self.deal_ranks(),
            }
        }
    }

    fn deal_ranks(&mut self) {
        let start = u64::MAX / 2;
        for (place, node) in (0..).zip(self.by_name.values()) {
            self.nodes[*node as usize].rank = start + place * STEP;
        }
        self.repool();
    }

    /// The node is no longer there. Its VMs have to be taken away before: false,
    /// and nothing happens, while there are any.
    pub fn remove_node(&mut self, name: &NodeId) -> bool {
        let Some(node) = self.by_name.get(name).copied() else {
            return true;
        };
        if !self.kins.is_empty(node) {
            return false;
        }
        self.set_node(name, false, false, None);
        self.by_name.remove(name);
        self.nodes[node as usize] = Node::default();
        self.free.push(node);
        true
    }

    /// A VM takes room on that node. What it was taken for, which has to be given
    /// back when it goes; none where there is no such node.
    pub fn add_vm(&mut self, node: &NodeId, spec: &VmSpec) -> Option<Resident> {
        let node = *self.by_name.get(node)?;
        let resident = Resident::of(spec, node, self.kins.find(spec, &mut self.labels));
        self.settle(&resident, true);
        Some(resident)
    }

    /// It no longer does.
    pub fn remove(&mut self, resident: &Resident) {
        self.settle(resident, false);
    }

    /// The same by name; the spec is the one with which it came.
    pub fn remove_vm(&mut self, node: &NodeId, spec: &VmSpec) {
        if let Some(node) = self.by_name.get(node).copied() {
            let kin = self.kins.find(spec, &mut self.labels);
            self.settle(&Resident::of(spec, node, kin), false);
        }
    }

    /// Whether it is there for a VM of that spec.
    pub fn is(&self, resident: &Resident, spec: &VmSpec) -> bool {
        resident.name == spec.name
            && resident.usage == Usage::of(spec)
            && resident.backing == spec.memory_backing
            && self.kins.kin(resident.kin).is(spec)
    }

    /// Sets what is taken on the node, whatever its VMs say.
    pub fn take(&mut self, name: &NodeId, used: Usage) {
        let Some(node) = self.by_name.get(name).copied() else {
            return;
        };
        if self.nodes[node as usize].used != used {
            let pool = self.leave_pool(node);
            self.nodes[node as usize].used = used;
            if let Some(pool) = pool {
                self.enter(node, pool);
            }
        }
    }

    /// What is taken on the node; none where there is no such node.
    pub fn used(&self, name: &NodeId) -> Option<Usage> {
        let node = self.by_name.get(name)?;
        Some(self.nodes[*node as usize].used)
    }

    /// Whether the node takes VMs.
    pub fn takes_vms(&self, name: &NodeId) -> bool {
        let node = self.by_name.get(name);
        node.is_some_and(|node| self.nodes[*node as usize].seen.live)
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    fn settle(&mut self, resident: &Resident, comes: bool) {
        let node = resident.node;
        self.kins.settle(node, resident.kin, &resident.name, comes);
        let pool = self.leave_pool(node);
        self.nodes[node as usize].settle(resident, comes);
        if let Some(pool) = pool {
            self.enter(node, pool);
        }
    }

    /// The node for that request; none where no node fits.
    pub fn choose(&mut self, request: &Request<'_>, weights: &Weights) -> Option<Chosen> {
        let kin = self.kins.find(request.spec, &mut self.labels);
        let (node, score) = self.chosen(request, kin, weights)?;
        self.told(node, score)
    }

    /// The same, and the VM takes room there from then on.
    pub fn place(&mut self, request: &Request<'_>, weights: &Weights) -> Option<Chosen> {
        let kin = self.kins.find(request.spec, &mut self.labels);
        let (node, score) = self.chosen(request, kin, weights)?;
        self.settle(&Resident::of(request.spec, node, kin), true);
        self.told(node, score)
    }

    /// Places one VM after the other, each with regard to those before it.
    pub fn place_batch<'a>(
        &mut self,
        requests: impl IntoIterator<Item = (Request<'a>, Weights)>,
    ) -> Vec<Option<Chosen>> {
        let requests = requests.into_iter();
        requests
            .map(|(request, weights)| self.place(&request, &weights))
            .collect()
    }

    fn chosen(&mut self, request: &Request<'_>, kin: u32, weights: &Weights) -> Option<(u32, u32)> {
        let shape = self.shapes.find(request);
        let direction = self.direction(weights);
        search::best(self, request, kin, shape, weights, direction)
    }

    /// How the score of that node comes about, as placement explains it; none
    /// where the node is refused.
    pub fn scores(
        &mut self,
        node: &NodeId,
        request: &Request<'_>,
        weights: &Weights,
    ) -> Option<Vec<ScorePart>> {
        let node = *self.by_name.get(node)?;
        let kin = self.kins.find(request.spec, &mut self.labels);
        let shape = self.shapes.find(request);
        search::scores(self, request, kin, shape, weights, node)
    }

    fn told(&self, node: u32, score: u32) -> Option<Chosen> {
        let node = self.nodes[node as usize].name.clone()?;
        Some(Chosen { node, score })
    }

    /// The direction of those weights; the trees learn it when it is new.
    fn direction(&mut self, weights: &Weights) -> Option<usize> {
        let wanted = [weights.memory, weights.cpu, weights.pack];
        let known = self.directions.iter().position(|one| *one == wanted);
        if known.is_some() || self.directions.len() >= DIRECTIONS {
            return known;
        }
        self.directions.push(wanted);
        self.repool();
        Some(self.directions.len() - 1)
    }

    fn leave_pool(&mut self, node: u32) -> Option<u32> {
        let pool = self.nodes[node as usize].pool.take()?;
        let root = &mut self.pools[pool as usize].root;
        self.arena.remove(root, node);
        Some(pool)
    }

    /// Puts a node that takes VMs into the tree of those like it.
    fn enter_pool(&mut self, node: u32) {
        if self.nodes[node as usize].seen.live {
            let pool = self.pool_of(node);
            self.enter(node, pool);
        }
    }

    fn enter(&mut self, node: u32, pool: u32) {
        let there = &mut self.nodes[node as usize];
        there.pool = Some(pool);
        let own = there.span(&self.directions);
        self.arena
            .insert(&mut self.pools[pool as usize].root, node, own);
    }

    fn pool_of(&mut self, node: u32) -> u32 {
        let there = &self.nodes[node as usize];
        let Seen {
            equipment,
            capacity,
            ..
        } = there.seen;
        let labels = self.labels.narrow(self.kins.labels(node));
        let size = [capacity.memory.0 as f32, capacity.vcpus as f32];
        let traits: Traits = (equipment, labels, size.map(class));
        let pool = match self.by_traits.get(&traits) {
            Some(pool) => *pool,
            None => {
                let new = number(self.pools.len());
                self.pools.push(Pool {
                    equipment,
                    labels: traits.1.clone(),
                    root: NONE,
                    least: size,
                    most: size,
                });
                self.by_traits.insert(traits, new);
                new
            }
        };
        self.pools[pool as usize].widen(size);
        pool
    }

    /// Makes every pool anew.
    fn repool(&mut self) {
        self.pools.clear();
        self.by_traits.clear();
        for node in 0..number(self.nodes.len()) {
            self.nodes[node as usize].pool = None;
            self.enter_pool(node);
        }
    }
}

impl Pool {
    fn widen(&mut self, size: [f32; 2]) {
        for (axis, size) in size.into_iter().enumerate() {
            self.least[axis] = self.least[axis].min(size);
            self.most[axis] = self.most[axis].max(size);
        }
    }
}

impl Seen {
    fn of(facts: &NodeFacts) -> Self {
        Self {
            capacity: facts.capacity,
            numa: Numa::empty(facts),
            images: facts.images.clone(),
            disliked: facts.taints.iter().any(score::soft),
            ..Self::default()
        }
    }
}

impl Resident {
    fn of(spec: &VmSpec, node: u32, kin: u32) -> Self {
        Self {
            node,
            kin,
            name: spec.name.clone(),
            usage: Usage::of(spec),
            backing: spec.memory_backing,
        }
    }
}

impl Node {
    fn settle(&mut self, resident: &Resident, comes: bool) {
        let usage = resident.usage;
        if comes {
            self.used = self.used.plus(usage);
        } else {
            self.used.memory = self.used.memory - usage.memory;
            self.used.vcpus = self.used.vcpus.saturating_sub(usage.vcpus);
        }
        if resident.backing.is_default() {
            return;
        }
        let one = (usage, resident.backing);
        if comes {
            self.backed.push(one);
        } else if let Some(at) = self.backed.iter().position(|other| *other == one) {
            self.backed.swap_remove(at);
        }
        self.recount();
    }

    fn recount(&mut self) {
        self.numa = self.seen.numa.left_by(self.backed.clone());
    }

    /// What is free there.
    fn span(&self, directions: &[[u32; 3]]) -> Span {
        let capacity = self.seen.capacity;
        let memory = (capacity.memory - self.used.memory).0;
        let vcpus = capacity.vcpus.saturating_sub(self.used.vcpus);
        let share = [
            share(memory as f32, capacity.memory.0 as f32),
            share(vcpus as f32, capacity.vcpus as f32),
        ];
        let mut along = [0.0; DIRECTIONS];
        for (sum, weights) in along.iter_mut().zip(directions) {
            *sum = search::along(share, *weights);
        }
        Span {
            low: share,
            high: share,
            memory,
            vcpus,
            first: self.rank,
            along,
        }
    }
}

/// In thousandths.
fn share(free: f32, of: f32) -> f32 {
    if of > 0.0 { free / of * 1000.0 } else { 0.0 }
}

/// Sizes within two percent of one another are mostly in one class.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the logarithm of a size of at least 1, times 32, is small and not negative"
)]
fn class(size: f32) -> u32 {
    (size.max(1.0).log2() * 32.0) as u32
}
