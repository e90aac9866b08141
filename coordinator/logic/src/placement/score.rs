//! Ratings of nodes that can take a VM: 0 to 1000 each, weighted, averaged.

use godwit_shared::api::ScorePart;
use godwit_shared::model::{NodeFacts, Usage};

use super::{Candidate, Request, Weights};

/// The best that a scorer gives.
pub(super) const BEST: u32 = 1000;

/// Every scorer that has a say, with its points.
pub(super) fn parts(
    candidate: &Candidate<'_>,
    facts: &NodeFacts,
    request: &Request<'_>,
    weights: &Weights,
) -> Vec<ScorePart> {
    let after = candidate.used.plus(Usage::of(request.spec));
    let capacity = facts.capacity;
    let mut parts = vec![
        part(
            "memory_balance",
            share_left(after.memory.0, capacity.memory.0),
            weights.memory,
        ),
        part(
            "cpu_balance",
            share_left(after.vcpus.into(), capacity.vcpus.into()),
            weights.cpu,
        ),
    ];
    if request.spec.placement.spread_by.is_some() {
        parts.push(part("spread", spread(candidate.group), weights.spread));
    }
    parts.retain(|part| part.weight > 0);
    parts
}

/// The weighted mean of the parts; 0 when none has a say.
pub(super) fn total(parts: &[ScorePart]) -> u32 {
    let weight: u64 = parts.iter().map(|part| u64::from(part.weight)).sum();
    let points: u64 = parts
        .iter()
        .map(|part| u64::from(part.points) * u64::from(part.weight))
        .sum();
    points
        .checked_div(weight)
        .and_then(|mean| u32::try_from(mean).ok())
        .unwrap_or(0)
}

fn part(name: &str, points: u32, weight: u32) -> ScorePart {
    ScorePart {
        name: name.to_owned(),
        points,
        weight,
    }
}

/// Which share of `capacity` is left when `taken` of it is taken.
fn share_left(taken: u64, capacity: u64) -> u32 {
    let left = u128::from(capacity.saturating_sub(taken)) * u128::from(BEST);
    left.checked_div(capacity.into())
        .and_then(|share| u32::try_from(share).ok())
        .unwrap_or(0)
}

/// All points where no other VM of the group is, half with one, a third with two.
fn spread(group: u32) -> u32 {
    BEST / group.saturating_add(1)
}
