//! Executing plans, one look after every step of the cluster.
//!
//! [`Cluster::advance_plans`] compares the records of the plans that have not
//! ended with what is true, and does what can be done now: like a task, it does
//! not care whether the coordinator was restarted in between. A move is a
//! migration in the queue like any other, so the queue's limits and its last
//! look at the target apply to it.
//!
//! Before a step begins it is looked at again:
//!
//! * the VM is busy, or its node is away: the step waits, for a node not for ever
//!   ([`super::absent`]);
//! * the VM was stopped or deleted, or is elsewhere by now: it is not needed;
//! * its target does not take it any more: a drain takes another one, where
//!   placement finds one; anything else was computed for this target, so the
//!   step fails. A rebalance then stops: its arithmetic does not hold any more.

use godwit_shared::api::{Decision, PlanKind, PlanState, PlanView, StepProgress, StepState};
use godwit_shared::model::{
    MigrationId, MigrationPhase, MigrationPolicy, NodeId, PlanId, Problem, TaskId, UnixMillis,
    VmId, codes,
};

use super::super::Cluster;
use super::super::live::Live;
use super::super::turn::{About, Turn};
use super::{derived, title};
use crate::record::{Key, MigrationRecord, TaskKind};

/// What is to be done with a step now.
enum Next {
    /// Nothing yet, for this reason.
    Wait(String),
    /// Move it to the node that was decided on.
    Go(Decision),
    /// It has ended.
    End(End),
}

/// How a step ended.
pub(super) struct End {
    state: StepState,
    message: String,
    problem: Option<Problem>,
}

impl End {
    fn new(state: StepState, message: impl Into<String>) -> Self {
        Self {
            state,
            message: message.into(),
            problem: None,
        }
    }

    pub(super) fn failed(problem: Problem) -> Self {
        Self {
            problem: Some(problem.clone()),
            ..Self::new(StepState::Failed, problem.message)
        }
    }
}

impl Cluster {
    /// Takes every plan as far as it goes now; whether anything changed that the
    /// queue of migrations has to look at.
    pub(in super::super) fn advance_plans(&mut self, turn: &mut Turn) -> bool {
        let mut changed = false;
        for id in self.observed.plans.clone() {
            changed |= self.advance_plan(turn, id);
        }
        self.arm_plans(turn);
        changed
    }

    pub(super) fn advance_plan(&mut self, turn: &mut Turn, id: PlanId) -> bool {
        self.settle_ledger(turn);
        let mut changed = self.take_ends(turn, id);
        changed |= self.end_absent(turn, id);
        changed |= self.begin_steps(turn, id);
        self.end_plan(turn, id);
        changed
    }

    /// Steps whose migrations have ended.
    fn take_ends(&mut self, turn: &mut Turn, id: PlanId) -> bool {
        let Some(plan) = self.records.plans.get(&id).map(|record| &record.view) else {
            return false;
        };
        let steps = plan.steps.iter().zip(&plan.progress).enumerate();
        let moving = steps.filter(|(_, (_, progress))| progress.state == StepState::Moving);
        let ends: Vec<_> = moving
            .filter_map(|(place, (step, progress))| {
                let target = progress.target.as_ref().unwrap_or(&step.target);
                let end = self.end_of(progress.migration?, step.vm, target)?;
                Some((place, end))
            })
            .collect();
        let any = !ends.is_empty();
        for (place, end) in ends {
            self.end_step(turn, id, place, end);
        }
        any
    }

    /// What came of a step's migration, once it has ended. One that is no longer
    /// kept ended long ago: the VM's place tells how.
    fn end_of(&self, migration: MigrationId, vm: VmId, target: &NodeId) -> Option<End> {
        let Some(record) = self.records.migrations.get(&migration) else {
            let vm = self.records.vms.get(&vm);
            return Some(match vm.and_then(|vm| vm.owner.as_ref()) {
                Some(node) if node == target => End::new(StepState::Done, format!("on {node}")),
                _ => End::new(StepState::Failed, "its migration is unknown"),
            });
        };
        match record.phase {
            MigrationPhase::Completed => {
                let text = format!("on {}", record.target);
                Some(End::new(StepState::Done, text))
            }
            MigrationPhase::Cancelled => {
                let text = format!("called off; it stays on {}", record.source);
                Some(End::new(StepState::Aborted, text))
            }
            phase if phase.is_final() => Some(match &record.failure {
                Some(failure) => End::failed(failure.problem.clone()),
                None => End::new(StepState::Failed, "its source gave no reason"),
            }),
            _ => None,
        }
    }

    /// Begins as many steps as may run beside each other.
    fn begin_steps(&mut self, turn: &mut Turn, id: PlanId) -> bool {
        let mut changed = false;
        let mut place = 0;
        while let Some(next) = self.next_step(id, place) {
            place = next + 1;
            // The room that those before it left.
            self.settle_ledger(turn);
            let found = self.with_live(|cluster, live| cluster.look_at(live, turn, id, next));
            match found {
                Next::Wait(reason) => self.step_waits(turn, id, next, reason),
                Next::Go(made) => changed |= self.begin_step(turn, id, next, made),
                Next::End(end) => {
                    self.end_step(turn, id, next, end);
                    changed = true;
                }
            }
        }
        changed
    }

    /// The first step from there on that may begin.
    fn next_step(&self, id: PlanId, from: usize) -> Option<usize> {
        let plan = &self.records.plans.get(&id)?.view;
        let moving = plan.progress.iter();
        let moving = moving.filter(|p| p.state == StepState::Moving).count();
        let parallel = usize::try_from(plan.limits.parallel).unwrap_or(usize::MAX);
        if plan.state != PlanState::Running || moving >= parallel {
            return None;
        }
        let over = |place: &usize| plan.progress.get(*place).is_none_or(|p| p.state.is_final());
        let mut places = from..plan.steps.len();
        places.find(|place| {
            let pending = plan.progress[*place].state == StepState::Pending;
            pending && plan.steps[*place].after.iter().all(over)
        })
    }

    fn look_at(&self, live: &mut Live, turn: &Turn, id: PlanId, place: usize) -> Next {
        let Some(plan) = self.records.plans.get(&id).map(|record| &record.view) else {
            return Next::Wait(String::new());
        };
        let step = &plan.steps[place];
        let gone = |message: String| Next::End(End::new(StepState::Skipped, message));
        let source = match self.check_source(step.vm) {
            Ok(source) => source,
            Err(problem) => {
                return match &*problem.code {
                    codes::BUSY | codes::NODE_UNREACHABLE => Next::Wait(problem.message),
                    _ => gone(problem.message),
                };
            }
        };
        if source == step.target {
            return Next::End(End::new(StepState::Done, format!("on {source}")));
        }
        if source != step.source {
            return gone(format!("it is on {source} by now"));
        }
        if !self.is_up(&step.target) && self.just_started(turn.now) {
            return Next::Wait(format!("{} is not connected", step.target));
        }
        self.target_for(live, turn.now, &plan.kind, step.vm, (&source, &step.target))
    }

    /// A coordinator that has just been started knows little: nodes that are not
    /// connected are likely to come.
    pub(in super::super) fn just_started(&self, now: UnixMillis) -> bool {
        now < self.settings.started.after(self.settings.limits.absence)
    }

    fn target_for(
        &self,
        live: &mut Live,
        now: UnixMillis,
        kind: &PlanKind,
        vm: VmId,
        way: (&NodeId, &NodeId),
    ) -> Next {
        let (source, planned) = way;
        let failed = |problem| Next::End(End::failed(problem));
        let found = match self.target_by(live, vm, source, Some(planned), now) {
            Ok((made, found)) if found.is_empty() => return Next::Go(made),
            Ok((_, found)) => found,
            Err(problem) => vec![problem],
        };
        if matches!(kind, PlanKind::Drain { .. }) {
            return match self.target_by(live, vm, source, None, now) {
                Ok((made, _)) => Next::Go(made),
                Err(problem) => failed(problem),
            };
        }
        let text = format!("{} no longer fits on {planned}", self.name_of(vm));
        let problem = Problem::new(codes::MIGRATION_BLOCKED, text);
        failed(problem.remedy("make a new plan").and(found))
    }

    fn begin_step(&mut self, turn: &mut Turn, id: PlanId, place: usize, made: Decision) -> bool {
        let target = made.node.clone();
        let Some(plan) = self.records.plans.get(&id).map(|record| &record.view) else {
            return false;
        };
        let step = &plan.steps[place];
        let Some(vm) = self.records.vms.get(&step.vm) else {
            return false;
        };
        let seed = id.as_uuid().as_u128();
        let number = u64::try_from(place).unwrap_or(u64::MAX) * 2;
        let migration = MigrationId::from_u128(derived(turn.now, seed, number + 2));
        let task = TaskId::from_u128(derived(turn.now, seed, number + 3));
        let policy = MigrationPolicy {
            bandwidth: plan.limits.bandwidth,
            ..MigrationPolicy::default()
        };
        let record = MigrationRecord {
            policy,
            waiting: true,
            placed: matches!(plan.kind, PlanKind::Drain { .. }),
            decision: Some(made),
            ..MigrationRecord::queued(migration, vm, step.source.clone(), target.clone(), turn.now)
        };
        let vm = step.vm;
        let other = (target != step.target).then(|| target.clone());
        self.begin_task(turn, task, TaskKind::Migrate, vm, Some(target));
        if let Err(problem) = self.begin_migration(turn, record, task) {
            self.end_step(turn, id, place, End::failed(problem));
            return true;
        }
        if let Some(progress) = self.progress_mut(id, place) {
            progress.state = StepState::Moving;
            progress.migration = Some(migration);
            progress.target = other;
            progress.message = None;
            turn.touch(Key::Plan(id));
        }
        true
    }

    fn progress_mut(&mut self, id: PlanId, place: usize) -> Option<&mut StepProgress> {
        self.records
            .plans
            .get_mut(&id)?
            .view
            .progress
            .get_mut(place)
    }

    fn step_waits(&mut self, turn: &mut Turn, id: PlanId, place: usize, reason: String) {
        let Some(progress) = self.progress_mut(id, place) else {
            return;
        };
        if progress.message.as_ref() != Some(&reason) {
            progress.message = Some(reason);
            turn.touch(Key::Plan(id));
        }
    }

    pub(super) fn end_step(&mut self, turn: &mut Turn, id: PlanId, place: usize, end: End) {
        let End {
            state,
            message,
            problem,
        } = end;
        let Some(plan) = self.records.plans.get_mut(&id).map(|r| &mut r.view) else {
            return;
        };
        let (Some(progress), Some(step)) = (plan.progress.get_mut(place), plan.steps.get(place))
        else {
            return;
        };
        progress.state = state;
        if let Some(record) = progress
            .migration
            .and_then(|m| self.records.migrations.get(&m))
        {
            let other = record.target != step.target;
            progress.target = other.then(|| record.target.clone());
        }
        progress.problem = problem;
        let about = About {
            migration: progress.migration,
            ..About::vm(&step.name, Some(&step.source))
        };
        let ended = plan.ended_steps();
        let text = format!(
            "{}: {} is {} ({ended} of {}): {message}",
            title(&plan.kind),
            step.name,
            state.as_str(),
            plan.steps.len(),
        );
        if let Some(progress) = self.progress_mut(id, place) {
            progress.message = Some(message);
        }
        turn.touch(Key::Plan(id));
        self.note(turn, "plan.step", about, text);
        if state != StepState::Done {
            self.stop_dependents(turn, id, place, state);
        }
    }

    /// A VM that stays leaves no room to those that were to have it. What was
    /// computed as a whole is not done in part beyond that.
    fn stop_dependents(&mut self, turn: &mut Turn, id: PlanId, place: usize, state: StepState) {
        let Some(plan) = self.records.plans.get(&id).map(|record| &record.view) else {
            return;
        };
        let left = plan.progress.iter().zip(&plan.steps).enumerate();
        let all = state == StepState::Failed && matches!(plan.kind, PlanKind::Rebalance { .. });
        let hit = left.filter(|(_, (progress, step))| {
            progress.state == StepState::Pending && (all || step.after.contains(&place))
        });
        let hit: Vec<usize> = hit.map(|(place, _)| place).collect();
        let why = format!("step {} was not done", place + 1);
        for other in hit {
            // Earlier ones of this loop may have reached it.
            let pending = |p: &mut StepProgress| p.state == StepState::Pending;
            if self.progress_mut(id, other).is_some_and(pending) {
                self.end_step(turn, id, other, End::new(StepState::Aborted, why.clone()));
            }
        }
    }

    /// Steps that have not begun will not; those that wait in the queue are taken
    /// out, and those that run are cancelled if that was asked for.
    pub(super) fn call_off(&mut self, turn: &mut Turn, id: PlanId) {
        let Some(record) = self.records.plans.get(&id) else {
            return;
        };
        let cancel = record.cancel_running;
        let progress = record.view.progress.clone();
        for (place, step) in progress.into_iter().enumerate() {
            match (step.state, step.migration) {
                (StepState::Pending, _) => {
                    let end = End::new(StepState::Aborted, "the plan was called off");
                    self.end_step(turn, id, place, end);
                }
                (StepState::Moving, Some(migration)) => {
                    let queued = self.observed.waiting.contains_key(&migration);
                    if queued || cancel {
                        // One that cannot be cancelled any more ends by itself.
                        let _ = self.on_cancel_migration(turn, migration);
                    }
                }
                _ => {}
            }
        }
    }

    fn end_plan(&mut self, turn: &mut Turn, id: PlanId) {
        let Some(plan) = self.records.plans.get(&id).map(|record| &record.view) else {
            self.observed.plans.remove(&id);
            return;
        };
        if plan.progress.iter().any(|step| !step.state.is_final()) {
            return;
        }
        let (state, message) = self.outcome(plan);
        let about = plan.kind.node().map(About::node).unwrap_or_default();
        let text = format!("the {} is {}: {message}", title(&plan.kind), state.as_str());
        if let Some(record) = self.records.plans.get_mut(&id) {
            record.view.state = state;
            record.view.message = message;
            record.view.ended = Some(turn.now);
        }
        self.observed.plans.remove(&id);
        turn.touch(Key::Plan(id));
        self.note(turn, "plan.ended", about, text);
        self.forget_old_plans(turn);
    }

    fn outcome(&self, plan: &PlanView) -> (PlanState, String) {
        let count = |state| plan.progress.iter().filter(|p| p.state == state).count();
        let (done, failed, skipped) = (
            count(StepState::Done),
            count(StepState::Failed),
            count(StepState::Skipped),
        );
        let stopped = count(StepState::Aborted);
        let state = match plan.state {
            PlanState::Aborting => PlanState::Aborted,
            _ if failed + stopped > 0 => PlanState::Failed,
            _ => PlanState::Done,
        };
        let mut message = format!("{done} of {} moved", plan.steps.len());
        for (count, what) in [
            (failed, "failed"),
            (skipped, "not needed"),
            (stopped, "called off"),
        ] {
            if count > 0 {
                message.push_str(&format!(", {count} {what}"));
            }
        }
        if let PlanKind::Drain { node, .. } = &plan.kind {
            message.push_str(&self.what_is_left(node));
        }
        (state, message)
    }

    fn what_is_left(&self, node: &NodeId) -> String {
        let vms = self.records.vms.values();
        let here = vms.filter(|vm| vm.owner.as_ref() == Some(node));
        let mut left = here.filter(|vm| self.has_process_on(node, vm.id));
        let Some(first) = left.next() else {
            return format!("; no VM runs on {node}");
        };
        match left.count() {
            0 => format!("; {} still runs on {node}", first.name),
            more => format!("; {} and {more} more still run on {node}", first.name),
        }
    }
}
