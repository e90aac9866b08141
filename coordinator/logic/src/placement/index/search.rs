//! The best node for one request.
//!
//! The bound of a part of a tree is what the scorers would give to a node with
//! the best of everything that the part has. It may be too high by what rounding
//! and 32-bit numbers lose, never too low.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use godwit_shared::api::ScorePart;
use godwit_shared::model::spec::{MemoryBacking, NumaFit};
use godwit_shared::model::{Capacity, NodeId, Usage};

use super::kin::{Counts, Topology, Wish};
use super::labels::domain;
use super::tree::{NONE, Span};
use super::{Index, Pool};
use crate::placement::profile::Weights;
use crate::placement::request::Request;
use crate::placement::rules::{self, Count, Kind};
use crate::placement::score::{self, BEST};

/// So many nodes are looked at one by one where a rule or a label names them.
const FEW: usize = if cfg!(test) { 3 } else { 512 };
/// Of a vertex without those below it.
const ALONE: u32 = 1 << 31;
/// The weighted sums are of 32-bit numbers; this is more than they lose.
const LOSS: f32 = 0.02;

/// Parts of trees, and single nodes, that were not looked at: the bound of their
/// scores, the first name, the pool, the vertex.
type Open = BinaryHeap<(u32, Reverse<u64>, usize, u32)>;

/// The best node with its score.
pub(super) fn best(
    index: &Index,
    request: &Request<'_>,
    kin: u32,
    shape: u32,
    weights: &Weights,
    direction: Option<usize>,
) -> Option<(u32, u32)> {
    let mut search = Search::new(index, request, kin, shape, weights, direction);
    if let Some(only) = request.only {
        search.offer(*index.by_name.get(only)?);
    } else if let Some(few) = search.few() {
        for node in few {
            search.offer(node);
        }
    } else {
        search.climb();
    }
    search.best.map(|best| (best.node, best.score))
}

/// The parts of that node's score; none where it is refused.
pub(super) fn scores(
    index: &Index,
    request: &Request<'_>,
    kin: u32,
    shape: u32,
    weights: &Weights,
    node: u32,
) -> Option<Vec<ScorePart>> {
    let search = Search::new(index, request, kin, shape, weights, None);
    search.judge(node)?;
    Some(search.parts(node, request))
}

/// A rule with what is known of its group now.
struct Rule<'a> {
    wish: Wish,
    counts: Option<&'a Counts>,
    /// `here` is of a domain without any.
    count: Count,
    weight: u32,
    /// Nodes that are near to the group are looked at by themselves: no other one is.
    seen: bool,
}

impl Rule<'_> {
    /// What the rule counts in that domain.
    fn count(&self, domain: Option<u32>) -> Option<Count> {
        let domain = domain?;
        let here = self.counts.and_then(|counts| counts.get(&domain));
        Some(Count {
            here: here.copied().unwrap_or_default(),
            ..self.count
        })
    }

    /// The most points of a node whose domain is not known.
    fn most(&self) -> u32 {
        match self.wish.kind {
            Kind::Near if self.seen => 0,
            Kind::Near => BEST,
            // Who is outside of the topology is apart from everybody.
            Kind::Apart if self.wish.topology != Topology::Host => BEST,
            kind => kind.points(Some(Count {
                here: self.count.least,
                ..self.count
            })),
        }
    }
}

#[derive(Clone, Copy)]
struct Best {
    node: u32,
    score: u32,
    rank: u64,
}

struct Search<'a> {
    index: &'a Index,
    verdicts: &'a [Option<u32>],
    wanted: Usage,
    backing: MemoryBacking,
    exclude: Option<&'a NodeId>,
    weights: &'a Weights,
    direction: Option<usize>,
    rules: Vec<Rule<'a>>,
    /// Where VMs are that keep this one away.
    bans: Vec<(Topology, &'a Counts)>,
    /// Labels that nodes have to carry; none where no node has one.
    labels: Option<Vec<(u32, u32)>>,
    /// The paths of the VM's images, where they have a say.
    images: Option<&'a Request<'a>>,
    /// The sum of all weights.
    weight: f32,
    best: Option<Best>,
}

impl<'a> Search<'a> {
    fn new(
        index: &'a Index,
        request: &'a Request<'a>,
        kin: u32,
        shape: u32,
        weights: &'a Weights,
        direction: Option<usize>,
    ) -> Self {
        let spec = request.spec;
        let kin = index.kins.kin(kin);
        let named = index.kins.named(&spec.name);
        let groups = kin.groups.iter().copied().chain(named);
        let bans = groups.flat_map(|group| &index.kins.group(group).bans);
        let labels = spec.placement.node_labels.iter();
        let files = weights.images > 0 && score::images(&[], spec).is_some();
        let mut search = Self {
            index,
            verdicts: &index.shapes.shape(shape).verdicts,
            wanted: Usage::of(spec),
            backing: spec.memory_backing,
            exclude: request.exclude,
            weights,
            direction,
            rules: Vec::new(),
            bans: bans
                .filter(|(_, counts)| !counts.is_empty())
                .map(|(topology, counts)| (*topology, counts))
                .collect(),
            labels: labels.map(|(k, v)| index.labels.asked(k, v)).collect(),
            images: files.then_some(request),
            weight: 0.0,
            best: None,
        };
        for wish in &kin.wishes {
            let rule = search.rule(*wish, &kin.groups, request);
            search.rules.push(rule);
        }
        search.weight = search.weigh();
        search
    }

    fn rule(&self, wish: Wish, groups: &[u32], request: &Request<'_>) -> Rule<'a> {
        let group = wish
            .group
            .map(|number| (number, self.index.kins.group(number)));
        let counts = group.and_then(|(_, group)| group.counts(wish.topology));
        let own = |(number, group): (u32, &super::kin::Group)| {
            groups.contains(&number) || group.is(&request.spec.name)
        };
        let least = match wish.kind {
            Kind::Near => 0,
            _ => counts.map_or(0, |counts| self.least(wish.topology, counts)),
        };
        Rule {
            counts,
            count: Count {
                here: 0,
                least,
                all: group.map_or(0, |(_, group)| group.all),
                own: group.is_some_and(own),
            },
            weight: match wish.weight {
                None => self.weights.spread,
                Some(weight) => self.weights.of_rule(weight),
            },
            seen: false,
            wish,
        }
    }

    /// How many are in that live domain which has the fewest.
    fn least(&self, topology: Topology, counts: &Counts) -> u32 {
        let index = self.index;
        let domains = match topology {
            Topology::Host => index.live,
            Topology::Label(key) => index.labels.live_domains(key),
        };
        let live = |domain: u32| match topology {
            Topology::Host => index.nodes[domain as usize].seen.live,
            Topology::Label(_) => index.labels.is_live(domain),
        };
        if counts.len() < domains as usize {
            return 0;
        }
        let (mut held, mut least) = (0, u32::MAX);
        for (_, count) in counts.iter().filter(|(domain, _)| live(**domain)) {
            held += 1;
            least = least.min(*count);
        }
        if held < domains || held == 0 {
            0
        } else {
            least
        }
    }

    fn weigh(&self) -> f32 {
        let w = self.weights;
        let room = w.memory + w.cpu + w.pack + w.balance + w.headroom;
        let soft = self.rules.iter().filter(|rule| !rule.wish.required);
        let rules: u32 = soft.map(|rule| rule.weight).sum();
        let taints = w.taints * u32::from(self.index.disliked > 0);
        let numa = w.numa * u32::from(self.backing.numa_fit == NumaFit::Preferred);
        let images = w.images * u32::from(self.images.is_some());
        (room + rules + taints + numa + images) as f32
    }

    /// The nodes that a rule or a label leaves, where they are few.
    fn few(&self) -> Option<Vec<u32>> {
        let asked = self.labels.iter().flatten();
        let wide = asked.filter(|(key, _)| self.index.labels.wide(*key));
        let labelled = wide.map(|(_, domain)| self.index.labels.nodes(*domain));
        let mut found: Option<Vec<u32>> = labelled
            .filter(|nodes| nodes.len() <= FEW)
            .min_by_key(|nodes| nodes.len())
            .map(|nodes| nodes.iter().copied().collect());
        for rule in self.rules.iter().filter(|rule| rule.wish.required) {
            let first = rule.count.own && rule.count.all == 0;
            if rule.wish.kind == Kind::Near && !first {
                let near = self.near(rule);
                found = near.or(found);
            }
        }
        found
    }

    /// The nodes in domains where the rule's group is; none where it is no use to
    /// look at each of them.
    fn near(&self, rule: &Rule<'_>) -> Option<Vec<u32>> {
        let Some(counts) = rule.counts else {
            return Some(Vec::new());
        };
        match rule.wish.topology {
            Topology::Host => (counts.len() <= FEW).then(|| counts.keys().copied().collect()),
            Topology::Label(key) if !self.index.labels.wide(key) => None,
            Topology::Label(_) => {
                let mut nodes = Vec::new();
                for domain in counts.keys() {
                    nodes.extend(self.index.labels.nodes(*domain));
                    if nodes.len() > FEW {
                        return None;
                    }
                }
                Some(nodes)
            }
        }
    }

    /// The nodes that preferred rules want the VM near to, and the points that
    /// those rules give to the nodes near to all of them. All other nodes get none.
    fn neighbours(&mut self) -> (Vec<u32>, f32) {
        let (mut nodes, mut points) = (Vec::new(), 0);
        for number in 0..self.rules.len() {
            let rule = &self.rules[number];
            if rule.wish.required || rule.wish.kind != Kind::Near {
                continue;
            }
            if let Some(near) = self.near(rule) {
                points += BEST * rule.weight;
                nodes.extend(near);
                self.rules[number].seen = true;
            }
        }
        (nodes, points as f32)
    }

    /// Looks for the best node: from the top of every pool's tree, and at neighbours.
    fn climb(&mut self) {
        let (neighbours, near) = self.neighbours();
        let slopes = self.slopes();
        let mut open = self.begin(&slopes, &neighbours, near);
        while let Some((bound, Reverse(first), place, vertex)) = open.pop() {
            if !self.promising(bound, first) {
                break;
            }
            if vertex & ALONE != 0 {
                self.offer(vertex & !ALONE);
            } else if let Some(slope) = &slopes[place] {
                self.open_up(&mut open, slope, bound, (place, vertex));
            }
        }
    }

    /// What bounds the scores in each pool; none where something stands against all
    /// nodes of it.
    fn slopes(&self) -> Vec<Option<Slope<'a>>> {
        let pools = self.index.pools.iter();
        let slopes = pools.map(|pool| {
            let points = (pool.root != NONE).then(|| self.points_of(pool))??;
            Some(self.slope(pool, points))
        });
        slopes.collect()
    }

    /// The tops of the trees, and the neighbours with the points that they get.
    fn begin(&self, slopes: &[Option<Slope<'_>>], neighbours: &[u32], near: f32) -> Open {
        let index = self.index;
        let mut open = Open::with_capacity(2 * slopes.len() + neighbours.len());
        let pools = index.pools.iter().zip(slopes).enumerate();
        open.extend(pools.filter_map(|(place, (pool, slope))| {
            let slope = slope.as_ref()?;
            let span = index.arena.all(pool.root);
            let bound = slope.bound(span, 0.0)?;
            Some((bound, Reverse(span.first), place, pool.root))
        }));
        open.extend(neighbours.iter().filter_map(|node| {
            let place = index.nodes[*node as usize].pool? as usize;
            let own = index.arena.own(*node);
            let bound = slopes[place].as_ref()?.bound(own, near)?;
            Some((bound, Reverse(own.first), place, node | ALONE))
        }));
        open
    }

    /// The vertex's own node, and the parts below it.
    fn open_up(
        &mut self,
        open: &mut Open,
        slope: &Slope<'_>,
        bound: u32,
        (place, vertex): (usize, u32),
    ) {
        let index = self.index;
        let arena = &index.arena;
        let own = arena.own(vertex);
        match slope.bound(own, 0.0) {
            Some(alone) if alone + index.slack >= bound => self.offer(vertex),
            // Most on the way down are never worth a look of their own.
            Some(alone) if self.promising(alone, own.first) => {
                open.push((alone, Reverse(own.first), place, vertex | ALONE));
            }
            _ => {}
        }
        let children = arena.children(vertex);
        for child in children.into_iter().filter(|child| *child != NONE) {
            let span = arena.all(child);
            let bound = slope.bound(span, 0.0);
            if let Some(bound) = bound.filter(|bound| self.promising(*bound, span.first)) {
                open.push((bound, Reverse(span.first), place, child));
            }
        }
    }

    /// Whether nodes with that bound, the first of that rank, are worth a look.
    fn promising(&self, bound: u32, first: u64) -> bool {
        let Some(best) = self.best else {
            return true;
        };
        let enough = best.score + self.index.slack;
        bound > enough || (bound == enough && self.index.slack == 0 && first < best.rank)
    }

    /// The most that everything but room gives to the pool's nodes, weighted; none
    /// where something stands against all of them.
    fn points_of(&self, pool: &Pool) -> Option<f32> {
        let taints = self.verdicts[pool.equipment as usize]?;
        let narrow = |key: u32| !self.index.labels.wide(key);
        let carries = |(key, wanted): &(u32, u32)| {
            !narrow(*key) || domain(&pool.labels, *key) == Some(*wanted)
        };
        if !self.labels.as_ref()?.iter().all(carries) || self.banned(|t| common(t, pool, narrow)) {
            return None;
        }
        let mut points = 0;
        for rule in &self.rules {
            let known = match rule.wish.topology {
                Topology::Label(key) if narrow(key) => Some(domain(&pool.labels, key)),
                _ => None,
            };
            let count = known.map(|domain| rule.count(domain));
            if rule.wish.required {
                if count.is_some_and(|count| rule.wish.kind.broken(count)) {
                    return None;
                }
            } else {
                let most = count.map_or_else(|| rule.most(), |count| rule.wish.kind.points(count));
                points += most * rule.weight;
            }
        }
        points += taints * self.weights.taints * u32::from(self.index.disliked > 0);
        let numa = u32::from(self.backing.numa_fit == NumaFit::Preferred);
        points += BEST * self.weights.numa * numa;
        points += BEST * self.weights.images * u32::from(self.images.is_some());
        Some(points as f32)
    }

    /// Whether a VM keeps this one out of the domain of a topology.
    fn banned(&self, domain: impl Fn(Topology) -> Option<u32>) -> bool {
        let mut bans = self.bans.iter();
        bans.any(|(topology, counts)| {
            domain(*topology).is_some_and(|one| counts.contains_key(&one))
        })
    }

    /// Judges one node, and keeps it when it is the best so far.
    fn offer(&mut self, node: u32) {
        let Some(score) = self.judge(node) else {
            return;
        };
        let rank = self.index.nodes[node as usize].rank;
        let better = |best: Best| (score, Reverse(rank)) > (best.score, Reverse(best.rank));
        if self.best.is_none_or(better) {
            self.best = Some(Best { node, score, rank });
        }
    }

    /// The node's score; none where it is refused.
    fn judge(&self, node: u32) -> Option<u32> {
        let there = &self.index.nodes[node as usize];
        let seen = &there.seen;
        let after = there.used.plus(self.wanted);
        if !after.fits(seen.capacity) || !seen.live {
            return None;
        }
        let taints = self.verdicts[seen.equipment as usize]?;
        let own = self.index.kins.labels(node);
        let excluded = self.exclude.is_some() && self.exclude == there.name.as_ref();
        if excluded || !self.carries(own) || self.banned(|topology| topology.domain(node, own)) {
            return None;
        }
        let mut holds = true;
        if !self.backing.is_default() {
            holds = there.numa.holds(self.wanted, self.backing);
            self.backed(there, holds)?;
        }
        let points = self.rule_points(node, own)?;
        Some(self.total(
            seen.capacity,
            after,
            points,
            [taints, u32::from(holds)],
            &seen.images,
        ))
    }

    fn carries(&self, own: &[(u32, u32)]) -> bool {
        let asked = self.labels.as_ref();
        asked.is_some_and(|all| all.iter().all(|one| own.contains(one)))
    }

    /// Whether the node has the memory that is asked for.
    fn backed(&self, there: &super::Node, holds: bool) -> Option<()> {
        let pages = self.backing.hugepages;
        let enough = pages.size().is_none() || there.numa.pages_free(pages) >= self.wanted.memory;
        let bound = self.backing.numa_fit != NumaFit::Required || holds;
        (enough && bound).then_some(())
    }

    /// What preferred rules give, weighted; none where a required one is broken.
    fn rule_points(&self, node: u32, own: &[(u32, u32)]) -> Option<(u32, u32)> {
        let (mut points, mut weight) = (0, 0);
        for rule in &self.rules {
            let count = rule.count(rule.wish.topology.domain(node, own));
            if !rule.wish.required {
                points += rule.wish.kind.points(count) * rule.weight;
                weight += rule.weight;
            } else if rule.wish.kind.broken(count) {
                return None;
            }
        }
        Some((points, weight))
    }

    fn total(
        &self,
        capacity: Capacity,
        after: Usage,
        (points, weight): (u32, u32),
        [taints, holds]: [u32; 2],
        images: &[String],
    ) -> u32 {
        let w = self.weights;
        let mut sum = u64::from(points);
        let mut weights = u64::from(weight);
        let mut add = |points: u32, weight: u32| {
            sum += u64::from(points) * u64::from(weight);
            weights += u64::from(weight);
        };
        for (points, weight) in score::resources(after, capacity, w) {
            add(points, weight);
        }
        if self.index.disliked > 0 {
            add(taints, w.taints);
        }
        if self.backing.numa_fit == NumaFit::Preferred {
            add(BEST * holds, w.numa);
        }
        let held = self
            .images
            .and_then(|request| score::images(images, request.spec));
        if let Some(points) = held {
            add(points, w.images);
        }
        score::mean(sum, weights)
    }

    /// What every scorer says of a node that is not refused: what [`Self::total`]
    /// sums up, in words.
    fn parts(&self, node: u32, request: &Request<'_>) -> Vec<ScorePart> {
        let there = &self.index.nodes[node as usize];
        let (seen, w) = (&there.seen, self.weights);
        let own = self.index.kins.labels(node);
        let mut parts = score::room(there.used.plus(self.wanted), seen.capacity, w);
        let names = rules::wishes(request.spec).map(|wish| wish.name);
        for (rule, name) in self.rules.iter().zip(names) {
            if !rule.wish.required {
                let count = rule.count(rule.wish.topology.domain(node, own));
                parts.push(score::of_rule(
                    name,
                    rule.wish.kind.points(count),
                    rule.weight,
                ));
            }
        }
        if self.index.disliked > 0 {
            let taints = self.verdicts[seen.equipment as usize].unwrap_or_default();
            parts.push(score::part("taints", taints, w.taints));
        }
        if self.backing.numa_fit == NumaFit::Preferred {
            let holds = there.numa.holds(self.wanted, self.backing);
            parts.push(score::part("numa", BEST * u32::from(holds), w.numa));
        }
        if let Some(points) = score::images(&seen.images, request.spec) {
            parts.push(score::part("images", points, w.images));
        }
        parts.retain(|part| part.weight > 0);
        parts
    }

    fn slope(&self, pool: &Pool, points: f32) -> Slope<'a> {
        let wanted = [self.wanted.memory.0 as f32, self.wanted.vcpus as f32];
        let shares = |of: [f32; 2]| [0, 1].map(|axis| super::share(wanted[axis], of[axis]));
        let (least, most) = (shares(pool.most), shares(pool.least));
        Slope {
            wanted: self.wanted,
            weights: self.weights,
            per_weight: if self.weight > 0.0 {
                self.weight.recip()
            } else {
                0.0
            },
            points,
            direction: self.direction.map(|number| {
                let w = self.weights;
                let sum = along_least([w.memory, w.cpu, w.pack], least, most);
                (number, sum)
            }),
            least,
            most,
        }
    }
}

/// The domain that all nodes of the pool are in; none where they are in several.
fn common(topology: Topology, pool: &Pool, narrow: impl Fn(u32) -> bool) -> Option<u32> {
    match topology {
        Topology::Label(key) if narrow(key) => domain(&pool.labels, key),
        _ => None,
    }
}

/// How much of a node the scorers of memory, vCPUs and packing like, but for a constant.
pub(super) fn along(share: [f32; 2], weights: [u32; 3]) -> f32 {
    let slope = slope_of(weights);
    share[0] * slope[0] + share[1] * slope[1]
}

fn slope_of([memory, cpu, pack]: [u32; 3]) -> [f32; 2] {
    let pack = pack as f32 / 2.0;
    [memory as f32 - pack, cpu as f32 - pack]
}

/// The least that the VM changes of that, on a node where it is between those shares.
fn along_least(weights: [u32; 3], least: [f32; 2], most: [f32; 2]) -> f32 {
    let slope = slope_of(weights);
    let change = |axis: usize| (slope[axis] * least[axis]).min(slope[axis] * most[axis]);
    change(0) + change(1)
}

/// What bounds the scores in one pool.
struct Slope<'a> {
    wanted: Usage,
    weights: &'a Weights,
    /// One divided by the sum of all weights; 0 without any.
    per_weight: f32,
    points: f32,
    direction: Option<(usize, f32)>,
    /// The VM's shares of the pool's largest node, and of its smallest.
    least: [f32; 2],
    most: [f32; 2],
}

impl Slope<'_> {
    /// No node of that part has a higher score, with so many points more; none
    /// where none has room.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a mean of points is 0 to 1000; anything else is clamped by the cast"
    )]
    fn bound(&self, span: &Span, more: f32) -> Option<u32> {
        if span.memory < self.wanted.memory.0 || span.vcpus < self.wanted.vcpus {
            return None;
        }
        if self.per_weight <= 0.0 {
            return Some(0);
        }
        let best = BEST as f32;
        let w = self.weights;
        let high = [0, 1].map(|axis| (span.high[axis] - self.least[axis]).max(0.0));
        let low = [0, 1].map(|axis| (span.low[axis] - self.most[axis]).max(0.0));
        // Each share is rounded down, and so is their mean: packing may gain by it.
        let pack = w.pack as f32;
        let packed = (best - f32::midpoint(low[0], low[1]) + 1.5).min(best);
        let mut linear = w.memory as f32 * high[0] + w.cpu as f32 * high[1] + pack * packed;
        if let Some((number, least)) = self.direction {
            linear = linear.min(span.along[number] - least + pack * (best + 1.5));
        }
        let mut total = linear + self.points + more;
        if w.balance > 0 {
            let gap = (low[0] - high[1]).max(low[1] - high[0]).max(0.0);
            total += w.balance as f32 * (best - gap + 1.0).min(best);
        }
        if w.headroom > 0 {
            let left = (high[0].min(high[1]) + LOSS) as u32;
            let taken = BEST - left.min(BEST);
            total += w.headroom as f32 * score::headroom(taken) as f32;
        }
        Some((total * self.per_weight + LOSS) as u32)
    }
}
