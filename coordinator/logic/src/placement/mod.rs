//! Where a VM goes, and why.
//!
//! [`place`] looks at a [`Snapshot`] of the nodes. *Filters* say why a node
//! cannot take the VM; all of them speak, so that one look is enough, and each
//! refused node comes with the smallest change that would make it fit
//! ([`explain`]). *Scorers* then rate the nodes that can, 0 to 1000 each; the
//! weighted mean decides, and equal scores go to the name that sorts first, so
//! that the same snapshot always gives the same answer.
//!
//! A full look explains everything and costs time for every node and VM. Where
//! only the choice matters, [`index`] makes it from what it keeps, with the
//! same filters and scores. [`simulate`] asks what if.

mod explain;
mod filter;
mod numa;
mod profile;
mod request;
mod rules;
mod score;
mod simulate;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use godwit_shared::api::{NodeVerdict, PlacementView};

use rules::Rules;

pub use profile::{Profiles, Weights};
pub use request::{Candidate, Request, Snapshot};
pub use simulate::{What, simulate};

/// Chooses a node and explains the choice, node by node.
pub fn place(snapshot: &Snapshot<'_>, request: &Request<'_>) -> PlacementView {
    let rules = Rules::of(&snapshot.nodes, request);
    let mut nodes: Vec<NodeVerdict> = snapshot
        .nodes
        .iter()
        .map(|candidate| verdict(candidate, request, &rules, &snapshot.weights))
        .collect();
    nodes.sort_by(|a, b| (Reverse(a.score), &a.node).cmp(&(Reverse(b.score), &b.node)));
    let node = nodes
        .first()
        .filter(|best| best.score.is_some())
        .map(|best| best.node.clone());
    PlacementView { node, nodes }
}

fn verdict(
    candidate: &Candidate<'_>,
    request: &Request<'_>,
    rules: &Rules<'_>,
    weights: &Weights,
) -> NodeVerdict {
    let refused = filter::refusals(candidate, request, rules);
    let scores = match (&refused[..], candidate.facts) {
        ([], Some(facts)) => score::parts(candidate, facts, request, rules, weights),
        _ => Vec::new(),
    };
    let score = refused.is_empty().then(|| score::total(&scores));
    NodeVerdict {
        node: candidate.node.clone(),
        changes: explain::changes(candidate, request, rules, &refused),
        refused: refused.into_iter().map(|one| one.problem).collect(),
        score,
        scores,
    }
}
