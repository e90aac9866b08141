//! The last decision about a VM's place, in short: kept with the VM, so that
//! "why is it there" has an answer long after the cluster has changed.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::placement::{PlacementView, ScorePart};
use crate::model::{NodeId, UnixMillis};

/// Why the node was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecisionReason {
    /// It had the highest score.
    Best,
    /// The request named it.
    Asked,
    /// The VM was there before, and fits there still.
    Stays,
}

/// The last decision about a VM's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Decision {
    /// When it was made.
    pub at: UnixMillis,
    /// The node.
    pub node: NodeId,
    /// Why this one.
    pub reason: DecisionReason,
    /// Its score then, 0 to 1000; none when it was taken although it did not fit.
    pub score: Option<u32>,
    /// How the score came about.
    pub scores: Vec<ScorePart>,
    /// How many nodes fitted, this one included; none where the cluster is so large
    /// that not every node was looked at. `GET /vms/{vm}/placement` tells of all.
    #[serde(default)]
    pub fitting: Option<u32>,
    /// How many did not.
    #[serde(default)]
    pub refused: Option<u32>,
    /// At how many of these each reason stood, by its code.
    #[serde(default)]
    pub refusals: BTreeMap<String, u32>,
    /// The best of the other nodes that fitted.
    pub runner_up: Option<NodeId>,
    /// Its score.
    pub runner_up_score: Option<u32>,
    /// The placement profile that the VM named.
    #[serde(default)]
    pub profile: Option<String>,
}

impl Decision {
    /// What is kept of that view, of which `node` was chosen.
    pub fn of(view: &PlacementView, node: &NodeId, reason: DecisionReason, at: UnixMillis) -> Self {
        let chosen = view.nodes.iter().find(|verdict| verdict.node == *node);
        let fitting = || view.nodes.iter().filter(|verdict| verdict.score.is_some());
        let next = fitting().find(|verdict| verdict.node != *node);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            at,
            node: node.clone(),
            reason,
            score: chosen.and_then(|verdict| verdict.score),
            scores: chosen
                .map(|verdict| verdict.scores.clone())
                .unwrap_or_default(),
            fitting: Some(count(fitting().count())),
            refused: Some(count(view.nodes.len() - fitting().count())),
            refusals: refusals(view),
            runner_up: next.map(|verdict| verdict.node.clone()),
            runner_up_score: next.and_then(|verdict| verdict.score),
            profile: None,
        }
    }
}

fn refusals(view: &PlacementView) -> BTreeMap<String, u32> {
    let mut refusals = BTreeMap::new();
    for verdict in &view.nodes {
        let codes = verdict.refused.iter().map(|problem| &problem.code);
        for code in codes.collect::<BTreeSet<_>>() {
            *refusals.entry(code.to_string()).or_default() += 1;
        }
    }
    refusals
}
