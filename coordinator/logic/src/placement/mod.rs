//! Where a VM goes, and why.
//!
//! [`place`] looks at a [`Snapshot`] of the nodes. *Filters* say why a node
//! cannot take the VM, each reason with the smallest change that would help;
//! all of them speak, so that one look is enough. *Scorers* then rate those
//! that can, 0 to 1000 each; the weighted mean decides, and equal scores go to
//! the name that sorts first, so that the same snapshot always gives the same
//! answer.
//!
//! The snapshot is built anew for each decision. With many thousands of nodes
//! an index can hand over the few that are worth a look: nothing here depends
//! on seeing every node.

mod filter;
mod score;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use godwit_shared::api::{NodeVerdict, PlacementView};
use godwit_shared::model::spec::Accelerator;
use godwit_shared::model::{NodeFacts, NodeId, Usage, VmSpec};
use serde::{Deserialize, Serialize};

/// What the scorers weigh. A weight of 0 switches a scorer off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Weights {
    /// Prefer nodes with much memory left, by share.
    pub memory: u32,
    /// Prefer nodes with many vCPUs left, by share.
    pub cpu: u32,
    /// Keep VMs of the same group (`placement.spread_by`) apart.
    pub spread: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            memory: 2,
            cpu: 1,
            spread: 6,
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The VM.
    pub spec: &'a VmSpec,
    /// The machine type it needs: pinned by its first run, else that of the
    /// spec, else none for the architecture's default.
    pub machine: Option<&'a str>,
    /// The accelerator it needs: that in use when it moves, else that of the spec.
    pub accelerator: Accelerator,
    /// Only this node will do.
    pub only: Option<&'a NodeId>,
    /// Not this node: a migration's source.
    pub exclude: Option<&'a NodeId>,
}

/// The nodes at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot<'a> {
    /// Every member.
    pub nodes: Vec<Candidate<'a>>,
    /// What the scorers weigh.
    pub weights: Weights,
}

/// One node at that moment.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// It is connected.
    pub connected: bool,
    /// No new VMs are to be placed on it.
    pub cordoned: bool,
    /// What it said of itself.
    pub facts: Option<&'a NodeFacts>,
    /// What other VMs take there, reservations included.
    pub used: Usage,
    /// How many VMs of the request's group are there.
    pub group: u32,
}

/// Chooses a node and explains the choice, node by node.
pub fn place(snapshot: &Snapshot<'_>, request: &Request<'_>) -> PlacementView {
    let mut nodes: Vec<NodeVerdict> = snapshot
        .nodes
        .iter()
        .map(|candidate| verdict(candidate, request, &snapshot.weights))
        .collect();
    nodes.sort_by(|a, b| (Reverse(a.score), &a.node).cmp(&(Reverse(b.score), &b.node)));
    let node = nodes
        .first()
        .filter(|best| best.score.is_some())
        .map(|best| best.node.clone());
    PlacementView { node, nodes }
}

fn verdict(candidate: &Candidate<'_>, request: &Request<'_>, weights: &Weights) -> NodeVerdict {
    let refused = filter::refusals(candidate, request);
    let scores = match (&refused[..], candidate.facts) {
        ([], Some(facts)) => score::parts(candidate, facts, request, weights),
        _ => Vec::new(),
    };
    let score = refused.is_empty().then(|| score::total(&scores));
    NodeVerdict {
        node: candidate.node.clone(),
        refused,
        changes: Vec::new(),
        score,
        scores,
    }
}
