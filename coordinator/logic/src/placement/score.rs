//! Ratings of nodes that can take a VM: 0 to 1000 each, weighted, averaged.

use godwit_shared::api::ScorePart;
use godwit_shared::model::spec::{NumaFit, RuleMode, Taint, TaintEffect};
use godwit_shared::model::{Capacity, NodeFacts, Usage, VmSpec};

use super::numa::Numa;
use super::profile::Weights;
use super::request::{Candidate, Request};
use super::rules::{Rule, Rules};

/// The best that a scorer gives.
pub(super) const BEST: u32 = 1000;
/// Up to which share a node may be taken before it loses points for headroom.
const FULL_ENOUGH: u32 = 800;

/// Points and weight.
type Part = (u32, u32);

/// Every scorer that has a say, with its points.
pub(super) fn parts(
    candidate: &Candidate<'_>,
    facts: &NodeFacts,
    request: &Request<'_>,
    rules: &Rules<'_>,
    weights: &Weights,
) -> Vec<ScorePart> {
    let after = candidate.used.plus(Usage::of(request.spec));
    let mut parts = room(after, facts.capacity, weights);
    let soft = rules
        .own
        .iter()
        .filter(|rule| rule.wish.mode == RuleMode::Preferred);
    parts.extend(soft.map(|rule| soft_rule(candidate, rule, weights)));
    if rules.soft_taints {
        parts.push(part("taints", taints(facts, request.spec), weights.taints));
    }
    if request.spec.memory_backing.numa_fit == NumaFit::Preferred {
        let numa = Numa::on(candidate, facts);
        let holds = numa.holds(Usage::of(request.spec), request.spec.memory_backing);
        parts.push(part("numa", BEST * u32::from(holds), weights.numa));
    }
    if let Some(points) = images(&facts.images, request.spec) {
        parts.push(part("images", points, weights.images));
    }
    parts.retain(|part| part.weight > 0);
    parts
}

/// The weighted mean of the parts; 0 when none has a say.
pub(super) fn total(parts: &[ScorePart]) -> u32 {
    let (mut points, mut weight) = (0_u64, 0_u64);
    for part in parts {
        points += u64::from(part.points) * u64::from(part.weight);
        weight += u64::from(part.weight);
    }
    mean(points, weight)
}

/// The mean of points that are weighted already; 0 without a weight.
pub(super) fn mean(points: u64, weight: u64) -> u32 {
    points
        .checked_div(weight)
        .and_then(|mean| u32::try_from(mean).ok())
        .unwrap_or(0)
}

/// The same as [`resources`], by name.
pub(super) fn room(after: Usage, capacity: Capacity, weights: &Weights) -> Vec<ScorePart> {
    let names = [
        "memory_balance",
        "cpu_balance",
        "pack",
        "balance",
        "headroom",
    ];
    let parts = names.into_iter().zip(resources(after, capacity, weights));
    parts
        .map(|(name, (points, weight))| part(name, points, weight))
        .collect()
}

/// What the scorers of memory and vCPUs say to a node that is taken so far.
pub(super) fn resources(after: Usage, capacity: Capacity, weights: &Weights) -> [Part; 5] {
    let memory = share_left(after.memory.0, capacity.memory.0);
    let cpu = share_left(after.vcpus.into(), capacity.vcpus.into());
    let taken = BEST - memory.min(cpu);
    [
        (memory, weights.memory),
        (cpu, weights.cpu),
        (BEST - u32::midpoint(memory, cpu), weights.pack),
        (BEST - memory.abs_diff(cpu), weights.balance),
        (headroom(taken), weights.headroom),
    ]
}

/// All points up to four fifths, none when the node is full.
pub(super) fn headroom(taken: u32) -> u32 {
    let over = taken.saturating_sub(FULL_ENOUGH);
    BEST - over * BEST / (BEST - FULL_ENOUGH)
}

fn soft_rule(candidate: &Candidate<'_>, rule: &Rule<'_>, weights: &Weights) -> ScorePart {
    let points = rule.wish.kind.points(rule.count(candidate));
    let weight = match rule.wish.name {
        None => weights.spread,
        Some(_) => weights.of_rule(rule.wish.weight),
    };
    of_rule(rule.wish.name, points, weight)
}

/// A rule's part of the score; that of `spread_by` has no name.
pub(super) fn of_rule(name: Option<&str>, points: u32, weight: u32) -> ScorePart {
    match name {
        None => part("spread", points, weight),
        Some(name) => part(&format!("rule {name}"), points, weight),
    }
}

/// Whether VMs had better avoid nodes with that taint.
pub(super) fn soft(taint: &Taint) -> bool {
    taint.effect == TaintEffect::PreferNoSchedule
}

/// All points without such taints, half with one, a third with two.
pub(super) fn taints(facts: &NodeFacts, spec: &VmSpec) -> u32 {
    let disliked = facts
        .taints
        .iter()
        .filter(|taint| soft(taint) && !spec.placement.tolerates(taint));
    BEST / u32::try_from(disliked.count() + 1).unwrap_or(u32::MAX)
}

/// Which share of the VM's files the node holds; none when it has no files.
pub(super) fn images(there: &[String], spec: &VmSpec) -> Option<u32> {
    let boot = [&spec.boot.kernel, &spec.boot.initrd].into_iter().flatten();
    let disks = spec.disks.iter().map(|disk| &disk.path);
    let (mut files, mut held) = (0, 0);
    for file in boot.chain(disks) {
        files += 1;
        held += u32::from(there.contains(file));
    }
    (held * BEST).checked_div(files)
}

pub(super) fn part(name: &str, points: u32, weight: u32) -> ScorePart {
    ScorePart {
        name: name.to_owned(),
        points,
        weight,
    }
}

/// Which share of `capacity` is left when `taken` of it is taken.
fn share_left(taken: u64, capacity: u64) -> u32 {
    let left = capacity.saturating_sub(taken).saturating_mul(BEST.into());
    left.checked_div(capacity)
        .and_then(|share| u32::try_from(share).ok())
        .unwrap_or(0)
}
