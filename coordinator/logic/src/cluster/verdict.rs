//! A source in doubt asks what became of its grant.
//!
//! The coordinator answers from what it knows only when it knows that the
//! guest has run elsewhere: then the source may end its own. Anything short of
//! that is the target's to say, so the question is passed on, unless the target
//! was fenced; when the target
//! is away there is no answer, and the source goes on waiting.

use godwit_shared::model::{DomainState, MigrationPhase, NodeId};
use godwit_shared::wire::uplink::{
    CoordinatorMessage, NodeReply, NodeRequest, Verdict, VerdictQuery,
};

use super::Cluster;
use super::state::Purpose;
use super::turn::Turn;

impl Cluster {
    pub(super) fn on_ask_verdict(&mut self, turn: &mut Turn, asker: &NodeId, query: &VerdictQuery) {
        if self.known_to_run(asker, query) || self.lost_with_target(query) {
            let verdict = Some(Verdict::Granted { running: true });
            return self.tell_verdict(turn, asker, query, verdict);
        }
        let relay = Purpose::Verdict {
            asker: asker.clone(),
            query: query.clone(),
        };
        let target = query.target.clone();
        let body = NodeRequest::Verdict(query.clone());
        let deadline = self.settings.limits.request;
        if target == *asker || self.ask(turn, &target, relay, body, deadline).is_none() {
            self.tell_verdict(turn, asker, query, None);
        }
    }

    /// Whether the target was fenced: it runs the guest no more, and nobody can say
    /// whether it did. What the source has may be from before that, so a protected
    /// VM is started anew instead ([`super::failover`]).
    fn lost_with_target(&self, query: &VerdictQuery) -> bool {
        let migration = self.records.migrations.get(&query.migration);
        migration.is_some_and(|m| m.vm == query.vm && self.lost_there(m.vm, &m.target))
    }

    /// Whether the guest is known to run, or to have run, at the epoch asked
    /// about or a later one, on another node than the one that asks.
    fn known_to_run(&self, asker: &NodeId, query: &VerdictQuery) -> bool {
        let Some(record) = self.records.vms.get(&query.vm) else {
            return false;
        };
        let elsewhere = record.owner.as_ref().is_some_and(|owner| owner != asker);
        if !elsewhere || record.epoch < query.epoch {
            return false;
        }
        let migration = self.records.migrations.get(&query.migration);
        let completed = migration.is_some_and(|m| m.phase == MigrationPhase::Completed);
        let ran = self.owner_report(query.vm).is_some_and(|report| {
            report.owner
                && report.epoch >= query.epoch
                && (report.state.executes() || report.state == DomainState::Paused)
        });
        completed || ran
    }

    pub(super) fn on_verdict_reply(
        &mut self,
        turn: &mut Turn,
        asker: &NodeId,
        query: &VerdictQuery,
        reply: Option<&NodeReply>,
    ) {
        let verdict = match reply {
            Some(NodeReply::Verdict(verdict)) => Some(*verdict),
            _ => None,
        };
        self.tell_verdict(turn, asker, query, verdict);
    }

    fn tell_verdict(
        &self,
        turn: &mut Turn,
        asker: &NodeId,
        query: &VerdictQuery,
        verdict: Option<Verdict>,
    ) {
        let message = CoordinatorMessage::Verdict {
            migration: query.migration,
            verdict,
        };
        self.tell(turn, asker, message);
    }
}
