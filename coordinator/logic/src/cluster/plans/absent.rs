//! Steps whose source does not come back.
//!
//! A node that is away is waited for: it mostly comes back, and a move that it had
//! begun goes on without the coordinator. But a plan must end by itself. A step
//! whose source was not connected for [`Limits::plan_source`] is given up: one
//! that had not begun will not, one that waits in the queue leaves it, and the
//! migration of one that runs goes on, or ends, without the plan. The others go on.
//!
//! [`Limits::plan_source`]: super::super::Limits::plan_source

use godwit_shared::api::{PlanState, StepState};
use godwit_shared::model::{MigrationId, NodeId, PlanId, Problem, UnixMillis, codes};

use super::super::Cluster;
use super::super::turn::Turn;
use super::run::End;
use crate::effect::{Effect, Timer};

impl Cluster {
    /// Gives up the steps whose source has been away for too long; whether there
    /// were any.
    pub(super) fn end_absent(&mut self, turn: &mut Turn, id: PlanId) -> bool {
        let waits = self.waits_for_sources(id).into_iter();
        let late: Vec<_> = waits.filter(|wait| wait.until <= turn.now).collect();
        let any = !late.is_empty();
        for wait in late {
            let queued = wait
                .migration
                .filter(|m| self.observed.waiting.contains_key(m));
            if let Some(migration) = queued {
                // It has not begun, so nothing of it is anywhere else.
                let _ = self.on_cancel_migration(turn, migration);
            }
            let begun = wait.migration.is_some() && queued.is_none();
            let end = End::failed(self.gone(&wait.source, begun));
            self.end_step(turn, id, wait.place, end);
        }
        any
    }

    fn gone(&self, source: &NodeId, begun: bool) -> Problem {
        let minutes = self.settings.limits.plan_source.0 / 60_000;
        let mut text = format!("{source} has not been connected for {minutes} min");
        if begun {
            text.push_str("; the migration goes on, or ends, without the plan");
        }
        Problem::new(codes::NODE_UNREACHABLE, text)
            .remedy("bring the node back, then make a new plan")
    }

    /// Looks at the plans again when the next step is to be given up.
    pub(super) fn arm_plans(&mut self, turn: &mut Turn) {
        let plans = self.observed.plans.iter();
        let waits = plans.flat_map(|id| self.waits_for_sources(*id));
        let Some(at) = waits.map(|wait| wait.until).min() else {
            return;
        };
        // Arming it takes an earlier one's place.
        if self.observed.plans_at.is_none_or(|armed| at < armed) {
            self.observed.plans_at = Some(at);
            let timer = Timer::Plans;
            turn.act(Effect::Arm { timer, at });
        }
    }

    /// The steps of a plan that have not ended, and whose source is away.
    fn waits_for_sources(&self, id: PlanId) -> Vec<Wait> {
        let Some(plan) = self.records.plans.get(&id).map(|record| &record.view) else {
            return Vec::new();
        };
        let steps = plan.steps.iter().zip(&plan.progress).enumerate();
        let open = steps.filter(|(_, (_, progress))| match progress.state {
            StepState::Moving => true,
            StepState::Pending => plan.state == PlanState::Running,
            _ => false,
        });
        let waits = open.filter_map(|(place, (step, progress))| {
            let node = self.observed.nodes.get(&step.source)?;
            let until = node.since.after(self.settings.limits.plan_source);
            node.session.is_none().then(|| Wait {
                place,
                source: step.source.clone(),
                migration: progress.migration,
                until,
            })
        });
        waits.collect()
    }
}

/// A step that waits for its source.
struct Wait {
    place: usize,
    source: NodeId,
    migration: Option<MigrationId>,
    until: UnixMillis,
}
