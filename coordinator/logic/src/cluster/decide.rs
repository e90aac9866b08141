//! One decision about a VM's place.
//!
//! The index finds the node. In a cluster of few nodes every one is looked at as
//! well, so that the decision keeps how many fitted, who came second, and what
//! stood against the others; where there are many, that is told when somebody asks
//! ([`Cluster::explain`]), or when no node fits and the reasons are the answer.
//!
//! A debug build looks at every node each time, and compares.

use std::collections::BTreeMap;

use godwit_shared::api::{Decision, DecisionReason, PlacementView, ScorePart};
use godwit_shared::model::{NodeId, Problem, UnixMillis, VmId};

use super::Cluster;
use super::live::Live;
use super::room::{choice, decision};
use crate::placement::{Chosen, Request, place, place_explained};

/// A decision in the making.
pub(super) struct Rating<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) live: &'a mut Live,
    pub(super) wish: Request<'a>,
    /// The VM, if there is one already: what it takes itself is left out.
    pub(super) vm: Option<VmId>,
    pub(super) now: UnixMillis,
}

impl Rating<'_> {
    /// The best node, or why there is none.
    pub(super) fn best(mut self) -> Result<Decision, Problem> {
        let only = self.wish.only;
        if let Some(found) = self.found(only) {
            let reason = match only {
                Some(_) => DecisionReason::Asked,
                None => DecisionReason::Best,
            };
            return Ok(self.made(found, reason));
        }
        choice(self.view(), self.wish.spec, only, self.now)
    }

    /// Whether the VM may stay on that node.
    pub(super) fn stays(&mut self, node: &NodeId) -> Option<Decision> {
        let found = self.found(Some(node))?;
        Some(self.made(found, DecisionReason::Stays))
    }

    /// The decision for the node that the wish names, and what stands against it.
    pub(super) fn asked(mut self, node: &NodeId) -> (Decision, Vec<Problem>) {
        if let Some(found) = self.found(Some(node)) {
            return (self.made(found, DecisionReason::Asked), Vec::new());
        }
        let view = self.view();
        let reason = DecisionReason::Asked;
        let made = decision(&view, self.wish.spec, node, reason, self.now);
        let verdict = view.nodes.into_iter().find(|one| one.node == *node);
        let against = verdict.map(|verdict| verdict.refused);
        (made, against.unwrap_or_default())
    }

    /// What the index says: of one node, or of all.
    fn found(&mut self, only: Option<&NodeId>) -> Option<(Chosen, Vec<ScorePart>)> {
        let wish = Request { only, ..self.wish };
        let weights = self.cluster.settings.placement.weights_for(wish.spec);
        let found = self.live.for_decision(self.cluster, self.vm, |index| {
            let chosen = index.choose(&wish, &weights)?;
            let scores = index.scores(&chosen.node, &wish, &weights)?;
            Some((chosen, scores))
        });
        if cfg!(debug_assertions) {
            self.check(&wish, found.as_ref());
        }
        found
    }

    fn check(&self, wish: &Request<'_>, found: Option<&(Chosen, Vec<ScorePart>)>) {
        let view = self.cluster.rate(wish, self.vm);
        let best = view.nodes.first().filter(|one| one.score.is_some());
        let scanned = best.map(|one| (&one.node, one.score, &one.scores));
        let found = found.map(|(chosen, scores)| (&chosen.node, Some(chosen.score), scores));
        debug_assert_eq!(found, scanned, "the index chooses another node");
    }

    /// What is kept of it.
    fn made(&self, (chosen, scores): (Chosen, Vec<ScorePart>), reason: DecisionReason) -> Decision {
        let spec = self.wish.spec;
        let members = self.cluster.observed.nodes.len();
        if members <= self.cluster.settings.limits.explained {
            return decision(&self.view(), spec, &chosen.node, reason, self.now);
        }
        Decision {
            at: self.now,
            node: chosen.node,
            reason,
            score: Some(chosen.score),
            scores,
            fitting: None,
            refused: None,
            refusals: BTreeMap::new(),
            runner_up: None,
            runner_up_score: None,
            profile: spec.placement.profile.clone(),
        }
    }

    fn view(&self) -> PlacementView {
        self.cluster.rate(&self.wish, self.vm)
    }
}

impl Cluster {
    /// Rates every node for a VM; what it takes itself is left out.
    pub(super) fn rate(&self, wish: &Request<'_>, vm: Option<VmId>) -> PlacementView {
        place(&self.snapshot_enough_for(wish.spec, vm), wish)
    }

    /// What placement says of every node for that VM as things are: why it could
    /// be there or could not, and what would help.
    pub fn explain(&self, vm: VmId) -> Result<PlacementView, Problem> {
        let record = self.vm_record(vm)?;
        let wish = Request {
            machine: self.machine_in_use(record),
            accelerator: self.accelerator_in_use(record),
            ..Request::new(&record.spec)
        };
        let snapshot = self.snapshot_for(&record.spec, Some(vm));
        Ok(place_explained(&snapshot, &wish))
    }
}
