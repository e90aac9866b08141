//! Migrations on their way: the source's reports, and ends without one.
//!
//! The record follows the source's reports. A migration goes on while this
//! coordinator, or its link to either node, is down; so one whose source does
//! not know it any more is concluded from what both nodes report of the domain
//! (see [`Cluster::conclude`]), and never from a timeout.

use std::collections::BTreeSet;

use godwit_shared::api::TaskState;
use godwit_shared::model::{
    DomainState, MigrationFailure, MigrationId, MigrationPhase, NodeId, Problem, codes,
};
use godwit_shared::wire::uplink::MigrationReport;

use super::Cluster;
use super::state::Knowledge;
use super::task::End;
use super::turn::{About, Turn};
use crate::record::{Key, MigrationRecord};

impl Cluster {
    pub(super) fn on_migrate_reply(
        &mut self,
        turn: &mut Turn,
        id: MigrationId,
        refused: Option<Problem>,
    ) {
        let Some(known) = self.observed.moves.get_mut(&id) else {
            return;
        };
        known.source = Knowledge::Known;
        let cancel = std::mem::take(&mut known.cancel);
        let Some(record) = self.records.migrations.get(&id) else {
            return;
        };
        let (vm, phase) = (record.vm, record.phase);
        match refused {
            Some(problem) => {
                let failure = MigrationFailure {
                    phase,
                    problem,
                    recovered_in: None,
                };
                self.finish_migration(turn, id, MigrationPhase::Failed, Some(failure));
            }
            None if cancel => self.send_cancel(turn, id),
            None => self.send_watch(turn, id),
        }
        self.settle(turn, vm);
    }

    /// Whether the source has it is unknown: its reports of the domain decide.
    pub(super) fn on_migrate_unanswered(&mut self, turn: &mut Turn, id: MigrationId) {
        if let Some(known) = self.observed.moves.get_mut(&id) {
            known.source = Knowledge::Lost;
        }
        if let Some(vm) = self.records.migrations.get(&id).map(|record| record.vm) {
            self.settle(turn, vm);
        }
    }

    pub(super) fn on_migration_report(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        report: MigrationReport,
    ) {
        let by_source = report.source == *node;
        let by_target = report.target == *node && report.phase == MigrationPhase::Completed;
        if !by_source && !by_target {
            return;
        }
        self.adopt_migration(turn, &report);
        let vm = report.vm;
        let known = self.records.migrations.get(&report.migration);
        if known.is_none_or(|record| record.vm != vm) {
            return;
        }
        self.take_epoch(turn, &report);
        if by_source {
            self.take_source_epoch(turn, &report);
        }
        self.take_phase(turn, report);
        self.settle(turn, vm);
    }

    /// A migration that this coordinator has no record of (its store was
    /// brought back from a backup) is taken up while it lasts.
    fn adopt_migration(&mut self, turn: &mut Turn, report: &MigrationReport) {
        let id = report.migration;
        let known = self.records.migrations.contains_key(&id);
        if known || report.phase.is_final() || self.observed.moving.contains_key(&report.vm) {
            return;
        }
        let Some(vm) = self.records.vms.get(&report.vm) else {
            return;
        };
        let (source, target) = (report.source.clone(), report.target.clone());
        let record = MigrationRecord {
            epoch: report.epoch,
            phase: report.phase,
            since: report.since,
            progress: report.progress,
            ..MigrationRecord::queued(id, vm, source, target, report.started)
        };
        let message = format!("{} is found moving to {}", record.name, record.target);
        self.track(turn, record, message);
    }

    /// Rule 3: the right is where the end of the migration says.
    fn take_epoch(&mut self, turn: &mut Turn, report: &MigrationReport) {
        let Some(vm) = self.records.vms.get(&report.vm) else {
            return;
        };
        if !report.phase.is_final() || report.epoch < vm.epoch {
            return;
        }
        // At the record's own epoch only the first word of a completion is news.
        let completed = MigrationPhase::Completed;
        let record = self.records.migrations.get(&report.migration);
        let news = report.phase == completed && record.is_some_and(|r| r.phase != completed);
        if report.epoch == vm.epoch && !news {
            return;
        }
        let holder = match report.phase {
            MigrationPhase::Completed => &report.target,
            _ => &report.source,
        };
        self.pass_on(turn, report.vm, holder, report.epoch);
    }

    fn take_phase(&mut self, turn: &mut Turn, report: MigrationReport) {
        let id = report.migration;
        let Some(record) = self.records.migrations.get_mut(&id) else {
            return;
        };
        if record.phase.is_final() {
            return self.take_late_word(turn, report);
        }
        if let Some(known) = self.observed.moves.get_mut(&id) {
            known.source = Knowledge::Known;
            known.progress = report.progress;
        }
        if let Some(task) = record.task {
            turn.task_changed(task);
        }
        if report.phase.is_final() {
            record.blackout = report.blackout;
            record.figures = report.figures;
            return self.finish_migration(turn, id, report.phase, report.failure);
        }
        let alarm = |failure: &Option<MigrationFailure>| {
            failure.as_ref().map(|failure| failure.problem.clone())
        };
        let (before, raised) = (alarm(&record.failure), alarm(&report.failure));
        if record.failure != report.failure {
            record.failure = report.failure;
            turn.touch(Key::Migration(id));
        }
        let (about, name) = (about(record), record.name.clone());
        if record.phase != report.phase {
            record.phase = report.phase;
            record.since = report.since;
            record.progress = report.progress;
            turn.touch(Key::Migration(id));
            let message = format!("the migration of {name} is in phase {}", report.phase);
            self.note(turn, "migration.phase", about.clone(), message);
        }
        if before != raised {
            let message = match raised {
                Some(problem) => format!("the migration of {name}: {}", problem.message),
                None => format!("the migration of {name} goes on without the alarm"),
            };
            self.note(turn, "migration.alarm", about, message);
        }
    }

    /// What a source, or a target that runs the guest, says of a migration that
    /// has a final phase here. Where that end was only concluded, the word of
    /// the two stands above it.
    fn take_late_word(&mut self, turn: &mut Turn, report: MigrationReport) {
        let id = report.migration;
        let Some(record) = self.records.migrations.get_mut(&id) else {
            return;
        };
        if record.phase == report.phase {
            if record.blackout.is_none() && report.blackout.is_some() {
                record.blackout = report.blackout;
                record.figures = report.figures;
                turn.touch(Key::Migration(id));
            }
            if record.assumed {
                record.assumed = false;
                record.failure = report.failure;
                turn.touch(Key::Migration(id));
            }
            return;
        }
        if !record.assumed {
            return;
        }
        if !report.phase.is_final() {
            // That the guest ran on the target is not undone by an older phase.
            if record.phase != MigrationPhase::Completed {
                self.reopen(turn, report);
            }
            return;
        }
        record.assumed = false;
        record.phase = report.phase;
        record.blackout = report.blackout;
        record.figures = report.figures;
        record.failure = report.failure;
        record.progress = report.progress;
        turn.touch(Key::Migration(id));
        let (about, (_, message)) = (about(record), ending(record));
        self.note(turn, "migration.phase", about, message);
    }

    /// A migration that was taken for lost goes on after all.
    fn reopen(&mut self, turn: &mut Turn, report: MigrationReport) {
        let id = report.migration;
        let Some(record) = self.records.migrations.get(&id) else {
            return;
        };
        if self.observed.moving.contains_key(&record.vm) {
            return;
        }
        let record = MigrationRecord {
            phase: report.phase,
            since: report.since,
            progress: report.progress,
            ended: None,
            failure: report.failure,
            assumed: false,
            ..record.clone()
        };
        self.observed.ended_migrations.retain(|ended| *ended != id);
        let message = format!(
            "the migration of {} goes on: it is in phase {}",
            record.name, record.phase
        );
        self.track(turn, record, message);
    }

    /// The epoch that the guest has on its source, by the source's own word.
    fn take_source_epoch(&mut self, turn: &mut Turn, report: &MigrationReport) {
        let granted = matches!(
            report.phase,
            MigrationPhase::Handoff | MigrationPhase::InDoubt
        );
        let Some(record) = self.records.migrations.get_mut(&report.migration) else {
            return;
        };
        if !granted && !report.phase.is_final() && record.epoch != report.epoch {
            record.epoch = report.epoch;
            turn.touch(Key::Migration(report.migration));
        }
    }

    /// Ends a migration; the caller settles the VM.
    pub(super) fn finish_migration(
        &mut self,
        turn: &mut Turn,
        id: MigrationId,
        phase: MigrationPhase,
        failure: Option<MigrationFailure>,
    ) {
        let known = self.observed.moves.remove(&id);
        self.observed.waiting.remove(&id);
        let Some(record) = self.records.migrations.get_mut(&id) else {
            return;
        };
        if record.phase.is_final() {
            return;
        }
        record.phase = phase;
        record.waiting = false;
        record.since = turn.now;
        record.ended = Some(turn.now);
        record.failure = failure;
        if let Some(known) = known {
            record.progress = known.progress;
        }
        let (end, message) = ending(record);
        let (about, task, vm) = (about(record), record.task, record.vm);
        self.observed.moving.remove(&vm);
        self.observed.ended_migrations.push_back(id);
        turn.touch(Key::Migration(id));
        self.note(turn, "migration.phase", about, message);
        if let Some(task) = task {
            self.end_task(turn, task, end);
        }
        while self.observed.ended_migrations.len() > self.settings.limits.migrations.max(1) {
            if let Some(old) = self.observed.ended_migrations.pop_front() {
                self.records.migrations.remove(&old);
                turn.touch(Key::Migration(old));
            }
        }
    }

    /// After a source's hello: its migrations that the hello does not know.
    pub(super) fn find_lost_migrations(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        known: &BTreeSet<MigrationId>,
    ) {
        let mut found = Vec::new();
        for (id, state) in &mut self.observed.moves {
            let Some(record) = self.records.migrations.get(id) else {
                continue;
            };
            // One that waits was never asked for.
            if record.source == *node && !record.waiting {
                let lost = !known.contains(id);
                if lost {
                    state.source = Knowledge::Lost;
                }
                found.push((*id, record.vm, lost));
            }
        }
        for (id, vm, lost) in found {
            if lost {
                self.settle(turn, vm);
            } else {
                self.send_watch(turn, id);
                self.cancel_again(turn, id);
            }
        }
    }

    /// A cancel that was accepted and whose request went down with a session,
    /// or with an earlier run of the coordinator, is sent again.
    fn cancel_again(&mut self, turn: &mut Turn, id: MigrationId) {
        let Some(record) = self.records.migrations.get(&id) else {
            return;
        };
        let granted = matches!(
            record.phase,
            MigrationPhase::Handoff | MigrationPhase::InDoubt
        );
        let task = record.task.and_then(|task| self.records.tasks.get(&task));
        if !granted && task.is_some_and(|task| task.state == TaskState::Cancelling) {
            self.send_cancel(turn, id);
        }
    }

    /// Ends a migration whose source cannot be expected to report its end:
    ///
    /// * the right has passed to the target, and the source has forgotten it, or
    ///   is away with nothing that the guest still needs: completed;
    /// * the source has forgotten it and has the guest as its own: failed;
    /// * the source has forgotten it, has no guest, and neither has the target,
    ///   which is connected: failed;
    /// * the source has forgotten it, and the right has passed to a third node: an
    ///   earlier migration that was taken for failed has moved the guest: failed.
    ///
    /// In every other case one of the two still has something to say.
    pub(super) fn conclude(&mut self, turn: &mut Turn, id: MigrationId) {
        let (Some(record), Some(known)) = (
            self.records.migrations.get(&id),
            self.observed.moves.get(&id),
        ) else {
            return;
        };
        let Some(vm) = self.records.vms.get(&record.vm) else {
            return;
        };
        let (source, target, phase) = (&record.source, &record.target, record.phase);
        let source_up = self.is_up(source);
        let raised = vm.epoch > record.epoch;
        let passed = raised && vm.owner.as_ref() == Some(target);
        let lost = known.source == Knowledge::Lost;
        // In post-copy the source still has pages, and comes back with them.
        let needed = record.policy.allows_postcopy();
        if passed && (lost || (!source_up && !needed)) {
            return self.assume_end(turn, id, MigrationPhase::Completed, None);
        }
        if passed || !lost || !source_up {
            return;
        }
        let stayed = self.report(source, record.vm).is_some_and(|report| {
            report.owner
                && report.state.has_process()
                && report.state != DomainState::InHandoff
                && report.migration != Some(id)
        });
        let nowhere = self.is_up(target)
            && self
                .copies(record.vm)
                .all(|(_, report)| !report.state.has_process());
        let elsewhere = raised && vm.owner.as_ref().is_some_and(|owner| owner != source);
        if stayed || nowhere || elsewhere {
            let problem = Problem::new(
                codes::MIGRATION_FAILED,
                format!("{source} does not know this migration any more"),
            )
            .remedy("its daemon was restarted before it began or after it was undone; try again");
            let failure = MigrationFailure {
                phase,
                problem,
                recovered_in: None,
            };
            self.assume_end(turn, id, MigrationPhase::Failed, Some(failure));
        }
    }

    /// Ends a migration without its source's word.
    fn assume_end(
        &mut self,
        turn: &mut Turn,
        id: MigrationId,
        phase: MigrationPhase,
        failure: Option<MigrationFailure>,
    ) {
        if let Some(record) = self.records.migrations.get_mut(&id) {
            record.assumed = true;
        }
        self.finish_migration(turn, id, phase, failure);
    }
}

pub(super) fn about(record: &MigrationRecord) -> About {
    About {
        migration: Some(record.id),
        task: record.task,
        ..About::vm(&record.name, Some(&record.source))
    }
}

/// How the task ends, and the sentence for the log.
fn ending(record: &MigrationRecord) -> (End, String) {
    let (name, source, target) = (&record.name, &record.source, &record.target);
    let why = |failure: &Option<MigrationFailure>| {
        failure.as_ref().map(|failure| failure.problem.clone())
    };
    match record.phase {
        MigrationPhase::Completed => {
            let pause = match record.blackout {
                Some(blackout) => format!(", paused for {blackout}"),
                None => String::new(),
            };
            let end = End::Done(format!("on {target}{pause}"));
            (
                end,
                format!("{name} moved from {source} to {target}{pause}"),
            )
        }
        MigrationPhase::Cancelled => (
            End::Cancelled(format!("{name} stays on {source}")),
            format!("the migration of {name} was called off; it stays on {source}"),
        ),
        _ => {
            let problem = why(&record.failure).unwrap_or_else(|| {
                Problem::new(codes::MIGRATION_FAILED, "the source gave no reason")
                    .remedy("look at the daemons' logs on both nodes")
            });
            let message = format!("the migration of {name} failed: {}", problem.message);
            (End::Failed(problem), message)
        }
    }
}
