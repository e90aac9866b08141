//! Room that steps which have not begun will need.

use std::collections::{BTreeMap, BTreeSet};

use godwit_shared::api::{PlanView, StepState};
use godwit_shared::model::{NodeId, Usage, VmId, VmSpec};

use super::super::Cluster;

/// What is to come to a node.
#[derive(Debug, Default)]
pub(in super::super) struct Coming<'a> {
    /// What it will take, beyond what will be free by then.
    pub(in super::super) takes: Usage,
    /// Which VMs.
    pub(in super::super) vms: Vec<&'a VmSpec>,
}

impl Cluster {
    /// What pending steps will take at their targets, `except` left out. A step
    /// that has begun has a migration, which takes that room itself.
    pub(in super::super) fn planned(&self, except: Option<VmId>) -> BTreeMap<&NodeId, Coming<'_>> {
        let mut coming: BTreeMap<&NodeId, Coming<'_>> = BTreeMap::new();
        for plan in self.unfinished() {
            for (step, progress) in plan.steps.iter().zip(&plan.progress) {
                if progress.state != StepState::Pending || Some(step.vm) == except {
                    continue;
                }
                let record = self.records.vms.get(&step.vm);
                let there = |vm: &&_| self.places_of(vm).contains(&step.target);
                if let Some(record) = record.filter(|vm| !there(vm)) {
                    let node = coming.entry(&step.target).or_default();
                    node.takes = node.takes.plus(beyond(plan, step.takes, &step.after));
                    node.vms.push(&record.spec);
                }
            }
        }
        coming
    }

    /// What pending steps will take on that node.
    pub(in super::super) fn planned_at(&self, node: &NodeId) -> Usage {
        if self.observed.plans.is_empty() {
            return Usage::default();
        }
        let coming = self.planned(None).remove(node);
        coming.map(|coming| coming.takes).unwrap_or_default()
    }

    /// VMs that steps which have not ended are about.
    pub(super) fn vms_of_plans(&self) -> BTreeSet<VmId> {
        let steps = self.unfinished();
        let steps = steps.flat_map(|plan| plan.steps.iter().zip(&plan.progress));
        let open = steps.filter(|(_, progress)| !progress.state.is_final());
        open.map(|(step, _)| step.vm).collect()
    }

    /// The plans that have not ended.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = &PlanView> {
        let ids = self.observed.plans.iter();
        ids.filter_map(|id| Some(&self.records.plans.get(id)?.view))
    }
}

/// What a step takes beyond the room that the steps before it will leave.
fn beyond(plan: &PlanView, takes: Usage, after: &[usize]) -> Usage {
    let mut left = takes;
    for place in after {
        let (step, progress) = (plan.steps.get(*place), plan.progress.get(*place));
        let open = progress.is_some_and(|progress| !progress.state.is_final());
        if let Some(step) = step.filter(|_| open) {
            left.vcpus = left.vcpus.saturating_sub(step.takes.vcpus);
            left.memory = left.memory.saturating_sub(step.takes.memory);
        }
    }
    left
}
