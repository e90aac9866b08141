//! What the nodes themselves have against the moves of a plan.
//!
//! Placement knows what nodes have told of themselves. Whether a guest has a
//! device that cannot move, or an image is in the way at the target, only the
//! two nodes of a move know. The daemon has each move of a draft rehearsed, as
//! `vm migrate --dry-run` does it, and asks for the plan again with what came of
//! that. Nodes that could not be asked block nothing: the step shows it, and they are
//! asked again when it begins.

use std::collections::BTreeMap;

use godwit_shared::api::{PlanStep, Stays};
use godwit_shared::model::{NodeId, Problem, codes};

use super::super::Cluster;
use super::super::live::Live;
use super::scene::{Scene, stays};
use crate::input::{Survey, Surveyed};
use crate::record::VmRecord;

impl Cluster {
    /// The VMs whose nodes have something against their move. They stay, whatever
    /// else may be moved; what placement itself found is not counted, since the
    /// moves ahead change that.
    pub(super) fn refused_by_nodes(&self, scene: &mut Scene, survey: &Survey) -> Vec<Stays> {
        let mut refused = Vec::new();
        if survey.is_empty() {
            return refused;
        }
        let mut live = self.observed.live.clone();
        for (vm, surveyed) in survey {
            let (Some(record), Ok(found)) = (self.records.vms.get(vm), &surveyed.found) else {
                continue;
            };
            let own = self.placement_has(&mut live, record, &surveyed.target);
            let same = |a: &Problem, b: &Problem| (&a.code, &a.field) == (&b.code, &b.field);
            let mut found = found.clone();
            found.retain(|problem| !own.iter().any(|other| same(problem, other)));
            if !found.is_empty() {
                scene.pin(*vm);
                refused.push(stays(record, refusal(record, surveyed, found)));
            }
        }
        refused
    }

    fn placement_has(&self, live: &mut Live, record: &VmRecord, target: &NodeId) -> Vec<Problem> {
        let Some(owner) = &record.owner else {
            return Vec::new();
        };
        let now = self.observed.now;
        match self.target_by(live, record.id, owner, Some(target), now) {
            Ok((_, found)) => found,
            Err(problem) => vec![problem],
        }
    }
}

fn refusal(record: &VmRecord, surveyed: &Surveyed, found: Vec<Problem>) -> Problem {
    let text = format!("{} cannot be moved to {}", record.name, surveyed.target);
    let remedy = found.first().and_then(|problem| problem.remedy.clone());
    Problem::new(codes::MIGRATION_BLOCKED, text)
        .remedy(remedy.unwrap_or_default())
        .and(found)
}

/// Steps that nobody has said anything of, though others were asked about.
pub(super) fn notes(steps: &[PlanStep], survey: &Survey) -> BTreeMap<usize, String> {
    if survey.is_empty() {
        return BTreeMap::new();
    }
    let notes = steps.iter().enumerate().filter_map(|(place, step)| {
        let surveyed = survey.get(&step.vm);
        let why = match surveyed.filter(|surveyed| surveyed.target == step.target) {
            None => format!("{} was not asked: another target was planned", step.target),
            Some(surveyed) => {
                let problem = surveyed.found.as_ref().err()?;
                format!("its nodes could not be asked: {}", problem.message)
            }
        };
        Some((place, why))
    });
    notes.collect()
}
