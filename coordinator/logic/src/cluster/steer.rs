//! Changing a migration that is under way, and ending a source's doubt.
//!
//! Both are the source's to carry out; whoever asked is told what it said. An
//! operator who ends a doubt overrules the one rule that keeps a guest from
//! running twice, so that is written down: who, when, and how.

use godwit_shared::model::{MigrationId, MigrationPhase, MigrationTuning, Problem};
use godwit_shared::wire::uplink::{NodeReply, NodeRequest};

use super::Cluster;
use super::command::conflict;
use super::progress::about;
use super::reply::{answer, wrong_reply};
use super::state::Purpose;
use super::turn::Turn;
use crate::effect::Answer;
use crate::input::{Output, Ticket};
use crate::record::{Key, Resolution};

impl Cluster {
    pub(super) fn on_tune_migration(
        &mut self,
        turn: &mut Turn,
        id: MigrationId,
        ticket: Ticket,
        tuning: MigrationTuning,
    ) -> Result<Output, Problem> {
        let phase = self.moving_phase(id)?;
        if !phase.sends_memory() {
            return Err(conflict(
                format!("the migration is in phase {phase}"),
                "it can be changed while memory is sent",
            ));
        }
        let body = NodeRequest::TuneMigration {
            migration: id,
            tuning,
        };
        self.steer(turn, id, (ticket, None), body)
    }

    pub(super) fn on_resolve_migration(
        &mut self,
        turn: &mut Turn,
        id: MigrationId,
        ticket: Ticket,
        resolution: Resolution,
    ) -> Result<Output, Problem> {
        let phase = self.moving_phase(id)?;
        if phase != MigrationPhase::InDoubt {
            return Err(conflict(
                format!("the migration is in phase {phase}, not in doubt"),
                "show it: nothing has to be decided",
            ));
        }
        let body = NodeRequest::ResolveMigration {
            migration: id,
            decision: resolution.decision,
        };
        self.steer(turn, id, (ticket, Some(resolution)), body)
    }

    /// The phase of a migration that has not ended.
    fn moving_phase(&self, id: MigrationId) -> Result<MigrationPhase, Problem> {
        let record = self.records.migrations.get(&id);
        let record = record.ok_or_else(|| Problem::not_found("migration", id))?;
        if record.phase.is_final() {
            return Err(conflict(
                format!(
                    "the migration of {} has ended: it is {}",
                    record.name, record.phase
                ),
                "nothing is left to change",
            ));
        }
        Ok(record.phase)
    }

    fn steer(
        &mut self,
        turn: &mut Turn,
        id: MigrationId,
        (ticket, resolution): (Ticket, Option<Resolution>),
        body: NodeRequest,
    ) -> Result<Output, Problem> {
        let record = self.records.migrations.get(&id);
        let record = record.ok_or_else(|| Problem::not_found("migration", id))?;
        let (source, name) = (record.source.clone(), record.name.clone());
        self.check_up(&source, &name)?;
        let purpose = Purpose::Steer {
            ticket,
            migration: id,
            resolves: resolution.is_some(),
        };
        // Before the source can act on it, and whatever becomes of its answer.
        if let Some(resolution) = resolution {
            self.write_resolution(turn, id, resolution);
        }
        self.ask(turn, &source, purpose, body, self.settings.limits.request);
        Ok(Output::Waiting)
    }

    pub(super) fn on_steered(
        &mut self,
        turn: &mut Turn,
        id: MigrationId,
        (ticket, resolves): (Ticket, bool),
        outcome: Result<NodeReply, Problem>,
    ) {
        let done = match outcome {
            Ok(NodeReply::Done) => Ok(()),
            Ok(_) => Err(wrong_reply()),
            Err(problem) => Err(problem),
        };
        if let (Err(problem), true) = (&done, resolves) {
            self.unwrite_resolution(turn, id, problem);
        }
        let view = done
            .and_then(|()| self.migration(id))
            .map(Answer::Migration);
        answer(turn, ticket, view);
    }

    fn write_resolution(&mut self, turn: &mut Turn, id: MigrationId, resolution: Resolution) {
        let Some(record) = self.records.migrations.get_mut(&id) else {
            return;
        };
        let message = format!(
            "{} ends the doubt about {}: {}",
            resolution.by,
            record.name,
            resolution.decision.as_str()
        );
        record.resolution = Some(resolution);
        let about = about(record);
        turn.touch(Key::Migration(id));
        self.note(turn, "migration.resolved", about, message);
    }
    /// The source has refused: nothing was overruled. The event stays.
    fn unwrite_resolution(&mut self, turn: &mut Turn, id: MigrationId, problem: &Problem) {
        let Some(record) = self.records.migrations.get_mut(&id) else {
            return;
        };
        record.resolution = None;
        let message = format!("{} stays in doubt: {}", record.name, problem.message);
        let about = about(record);
        turn.touch(Key::Migration(id));
        self.note(turn, "migration.unresolved", about, message);
    }
}
