//! Calling migrations off, and watching them.

use godwit_shared::model::{MigrationId, MigrationPhase, Problem};
use godwit_shared::wire::uplink::NodeRequest;

use super::Cluster;
use super::command::conflict;
use super::progress::about;
use super::state::{Knowledge, Purpose};
use super::turn::Turn;
use crate::input::Output;

impl Cluster {
    pub(super) fn on_cancel_migration(
        &mut self,
        turn: &mut Turn,
        id: MigrationId,
    ) -> Result<Output, Problem> {
        let record = self
            .records
            .migrations
            .get(&id)
            .ok_or_else(|| Problem::not_found("migration", id))?;
        let name = &record.name;
        match record.phase {
            phase if phase.is_final() => {
                return Err(conflict(
                    format!("the migration of {name} has ended: it is {phase}"),
                    "nothing is left to cancel",
                ));
            }
            MigrationPhase::Handoff
            | MigrationPhase::InDoubt
            | MigrationPhase::Postcopy
            | MigrationPhase::PostcopyPaused => {
                return Err(conflict(
                    format!(
                        "the right to run {name} was granted to {} already",
                        record.target
                    ),
                    "wait for the target's word; it cannot be called off any more",
                ));
            }
            _ => {}
        }
        if record.waiting {
            self.finish_migration(turn, id, MigrationPhase::Cancelled, None);
            return self.migration(id).map(Output::Migration);
        }
        self.check_up(&record.source, name)?;
        let task = record.task;
        let asking = match self.observed.moves.get_mut(&id) {
            Some(known) => {
                known.cancel = known.source == Knowledge::Asked;
                known.cancel
            }
            None => false,
        };
        if !asking {
            self.send_cancel(turn, id);
        }
        if let Some(task) = task {
            self.mark_cancelling(turn, task, true);
        }
        self.migration(id).map(Output::Migration)
    }

    pub(super) fn send_cancel(&mut self, turn: &mut Turn, id: MigrationId) {
        let purpose = Purpose::Cancel(id);
        let body = NodeRequest::CancelMigration { migration: id };
        let already = self
            .observed
            .requests
            .values()
            .any(|p| p.purpose == purpose);
        if let (Some(record), false) = (self.records.migrations.get(&id), already) {
            let source = record.source.clone();
            self.ask(turn, &source, purpose, body, self.settings.limits.request);
        }
    }

    /// A cancel that the source refused leaves the migration as it is.
    pub(super) fn on_cancel_reply(
        &mut self,
        turn: &mut Turn,
        id: MigrationId,
        refused: Option<Problem>,
    ) {
        let Some(problem) = refused else { return };
        let Some(record) = self
            .records
            .migrations
            .get(&id)
            .filter(|r| !r.phase.is_final())
        else {
            return;
        };
        let (about, task) = (about(record), record.task);
        let message = format!(
            "the migration of {} was not called off: {}",
            record.name, problem.message
        );
        self.note(turn, "migration.cancel", about, message);
        if let Some(task) = task {
            self.mark_cancelling(turn, task, false);
        }
    }

    pub(super) fn on_watch_migration(
        &mut self,
        turn: &mut Turn,
        id: MigrationId,
        watch: bool,
    ) -> Result<Output, Problem> {
        if !self.records.migrations.contains_key(&id) {
            return Err(Problem::not_found("migration", id));
        }
        let Some(known) = self.observed.moves.get_mut(&id) else {
            return Ok(Output::Done);
        };
        if known.watched != watch {
            known.watched = watch;
            self.ask_watch(turn, id, watch);
        }
        Ok(Output::Done)
    }

    pub(super) fn send_watch(&mut self, turn: &mut Turn, id: MigrationId) {
        if self
            .observed
            .moves
            .get(&id)
            .is_some_and(|known| known.watched)
        {
            self.ask_watch(turn, id, true);
        }
    }

    fn ask_watch(&mut self, turn: &mut Turn, id: MigrationId, watch: bool) {
        let asking = self
            .observed
            .moves
            .get(&id)
            .is_some_and(|known| known.source == Knowledge::Asked);
        let record = self.records.migrations.get(&id);
        if let Some(source) = record.filter(|_| !asking).map(|r| r.source.clone()) {
            let body = NodeRequest::WatchMigration {
                migration: id,
                watch,
            };
            let deadline = self.settings.limits.request;
            self.ask(turn, &source, Purpose::Nothing, body, deadline);
        }
    }
}
