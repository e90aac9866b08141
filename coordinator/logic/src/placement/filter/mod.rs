//! Reasons why a node cannot take a VM, one small function each.
//!
//! A reason names what is lacking, and the smallest change with which it would
//! not be: as words in its [`Problem`], and as a [`Change`]. The filters that
//! read a node's facts are silent while it has none; that it never connected is
//! then the reason. What a node did not tell of itself stands against nothing,
//! but for huge pages and a required NUMA fit, which nobody can do without.

mod emulator;
mod node;
mod reach;
mod room;
mod rules;

use godwit_shared::api::Change;
use godwit_shared::model::{NodeFacts, NodeId, Problem, codes};

use super::request::{Candidate, Request};
use super::rules::Rules;

/// Least memory of a VM: less is no change that helps.
const LEAST_MEMORY: u64 = 16;

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) problem: Problem,
    /// What would take the reason away.
    pub(super) change: Change,
}

impl Refusal {
    fn new(problem: Problem, change: Change) -> Self {
        Self { problem, change }
    }
}

/// Everything that stands against the node; empty when it can take the VM.
pub(super) fn refusals(
    candidate: &Candidate<'_>,
    request: &Request<'_>,
    rules: &Rules<'_>,
) -> Vec<Refusal> {
    let mut found = node::refusals(candidate, request);
    if let Some(facts) = candidate.facts {
        found.extend(emulator::refusals(candidate.node, facts, request));
        found.extend(node::taints(candidate.node, facts, request));
        found.extend(reach::refusals(candidate.node, facts, request));
        found.extend(node::labels(candidate.node, facts, request));
        found.extend(room::refusals(candidate, facts, request));
    }
    found.extend(rules::refusals(candidate, rules));
    found
}

/// Whether the node has what the VM needs, whatever else is on it, and bears no
/// taint that keeps it away: all that the filters say which look neither at other
/// VMs nor at labels.
pub(super) fn equipped(node: &NodeId, facts: &NodeFacts, request: &Request<'_>) -> bool {
    emulator::refusals(node, facts, request).is_empty()
        && node::taints(node, facts, request).is_empty()
        && reach::refusals(node, facts, request).is_empty()
}

fn unfit(message: impl Into<String>) -> Problem {
    Problem::new(codes::NO_NODE_FITS, message)
}
