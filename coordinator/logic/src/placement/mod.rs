//! Where a VM goes, and why.
//!
//! [`place`] looks at a [`Snapshot`] of the nodes. *Filters* say why a node
//! cannot take the VM; all of them speak, so that one look is enough. *Scorers*
//! then rate the nodes that can, 0 to 1000 each; the weighted mean decides, and
//! equal scores go to the name that sorts first, so that the same snapshot
//! always gives the same answer.
//!
//! [`place_explained`] adds to each refused node the smallest change that would
//! make it fit. That costs several looks at each of them, so it is for operators
//! who ask, not for decisions. [`simulate`] asks what if.
//!
//! Where only the choice matters, [`Index`] makes the same one without looking at
//! every node: it is kept up to date with every change.

mod explain;
mod filter;
mod index;
mod numa;
mod profile;
mod request;
mod rules;
mod score;
mod simulate;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use godwit_shared::api::{Change, NodeVerdict, PlacementView};

use filter::Refusal;
use rules::Rules;

pub use index::{Chosen, Index, Resident};
pub use profile::{Profiles, Weights};
pub use request::{Candidate, Request, Snapshot};
pub use simulate::{What, simulate};

/// Chooses a node and explains the choice, node by node.
pub fn place(snapshot: &Snapshot<'_>, request: &Request<'_>) -> PlacementView {
    look(snapshot, request, |_, _, _| Vec::new())
}

/// The same, with what would make each of the other nodes fit.
pub fn place_explained(snapshot: &Snapshot<'_>, request: &Request<'_>) -> PlacementView {
    look(snapshot, request, |candidate, rules, refused| {
        explain::changes(candidate, request, rules, refused)
    })
}

fn look(
    snapshot: &Snapshot<'_>,
    request: &Request<'_>,
    changes: impl Fn(&Candidate<'_>, &Rules<'_>, &[Refusal]) -> Vec<Change>,
) -> PlacementView {
    let rules = Rules::of(&snapshot.nodes, request);
    let rated = snapshot.nodes.iter().map(|candidate| {
        let refused = filter::refusals(candidate, request, &rules);
        if refused.is_empty() {
            rated(candidate, request, &rules, &snapshot.weights)
        } else {
            NodeVerdict {
                changes: changes(candidate, &rules, &refused),
                refused: refused.into_iter().map(|one| one.problem).collect(),
                ..unrated(candidate)
            }
        }
    });
    let mut nodes: Vec<NodeVerdict> = rated.collect();
    nodes.sort_by(|a, b| (Reverse(a.score), &a.node).cmp(&(Reverse(b.score), &b.node)));
    let node = nodes
        .first()
        .filter(|best| best.score.is_some())
        .map(|best| best.node.clone());
    PlacementView { node, nodes }
}

fn rated(
    candidate: &Candidate<'_>,
    request: &Request<'_>,
    rules: &Rules<'_>,
    weights: &Weights,
) -> NodeVerdict {
    let scores = candidate.facts.map_or_else(Vec::new, |facts| {
        score::parts(candidate, facts, request, rules, weights)
    });
    NodeVerdict {
        score: Some(score::total(&scores)),
        scores,
        ..unrated(candidate)
    }
}

fn unrated(candidate: &Candidate<'_>) -> NodeVerdict {
    NodeVerdict {
        node: candidate.node.clone(),
        refused: Vec::new(),
        changes: Vec::new(),
        score: None,
        scores: Vec::new(),
    }
}
