//! How a migration ends when it does not go forward: cancelled, failed, taken
//! back, or decided by an operator.

use godwit_shared::model::{DoubtDecision, MigrationPhase, Problem, codes};
use godwit_shared::wire::peer::SourceMessage;

use super::{
    CANCEL_DEADLINE, Effects, Outcome, SETUP_DEADLINE, SETUP_WAITS, Source, SourceEffect, State,
    TakingBack, Timer,
};
use crate::handoff::Rejected;
use crate::handoff::record::OutgoingStage;

impl Source {
    pub(super) fn take_back(&mut self, reason: Problem, effects: Effects<'_>) {
        if matches!(self.state, State::Handoff | State::InDoubt) {
            self.cause = Some((MigrationPhase::Handoff, reason));
            self.state = State::TakingBack(TakingBack::Journaling);
            effects.push(SourceEffect::Phase(MigrationPhase::Cancelling));
            effects.push(SourceEffect::Journal(OutgoingStage::TakenBack));
        }
    }

    /// The journal says that the right is here again. A migration of QEMU's that
    /// has not ended is cancelled before the guest is run.
    pub(super) fn cancel_then_resume(&mut self, effects: Effects<'_>) {
        if self.qemu_busy && !self.qemu_gone {
            self.state = State::TakingBack(TakingBack::Cancelling);
            cancel_qemu(effects);
        } else {
            self.resume(effects);
        }
    }

    pub(super) fn resume(&mut self, effects: Effects<'_>) {
        self.state = State::TakingBack(TakingBack::Resuming);
        effects.push(SourceEffect::Stay {
            epoch: self.granted_epoch().next(),
        });
    }

    /// The target's reason explains what QEMU could only call a broken pipe,
    /// whichever of the two came first.
    pub(super) fn on_target_failed(&mut self, problem: Problem, effects: Effects<'_>) {
        if let State::Pulling { .. } = self.state {
            return self.lose_guest(problem, effects);
        }
        if let (State::Cancelling { .. }, Some((_, cause))) = (&self.state, &mut self.cause)
            && cause.code == codes::MIGRATION_FAILED
        {
            let symptom = std::mem::replace(cause, problem);
            cause.also.push(symptom);
            return;
        }
        self.on_trouble(problem, effects);
    }

    /// `migrate` may be what was refused: then `active` never comes.
    pub(super) fn on_command_failed(&mut self, problem: Problem, effects: Effects<'_>) {
        self.cancel_qemu_at_last(effects);
        self.on_trouble(problem, effects);
    }

    /// Anything that ends a migration before its grant.
    pub(super) fn on_trouble(&mut self, problem: Problem, effects: Effects<'_>) {
        if matches!(
            self.state,
            State::Preparing
                | State::Mirroring
                | State::Precopy
                | State::Finishing
                | State::Switchover { .. }
        ) {
            self.give_up(problem, effects);
        }
    }

    pub(super) fn on_cancel(&mut self, effects: Effects<'_>) -> Result<(), Rejected> {
        match self.state {
            State::Preparing
            | State::Mirroring
            | State::Precopy
            | State::Finishing
            | State::Switchover { .. } => {
                let problem = Problem::new(
                    codes::MIGRATION_CANCELLED,
                    "an operator cancelled the migration",
                );
                self.give_up(problem, effects);
                Ok(())
            }
            State::Cancelling { .. } => Ok(()),
            _ => Err(self.rejected("cancel".to_owned())),
        }
    }

    pub(super) fn give_up(&mut self, problem: Problem, effects: Effects<'_>) {
        let phase = self.phase();
        effects.push(SourceEffect::Send(SourceMessage::Cancel {
            migration: self.terms.migration,
            reason: problem.clone(),
        }));
        self.cause.get_or_insert((phase, problem));
        effects.push(SourceEffect::Phase(MigrationPhase::Cancelling));
        if self.qemu_busy && !self.qemu_gone {
            self.state = State::Cancelling { waiting: true };
            if self.cancellable {
                cancel_qemu(effects);
            } else {
                effects.push(SourceEffect::Arm(Timer::Cancel, SETUP_DEADLINE));
            }
        } else {
            self.stay(effects);
        }
    }

    /// A cancel came too early: `active` or `failed` is waited for.
    pub(super) fn on_connecting(&mut self, effects: Effects<'_>) {
        if self.state != (State::Cancelling { waiting: true }) {
            return;
        }
        self.setup_waits += 1;
        if self.setup_waits > SETUP_WAITS {
            return self.stay(effects);
        }
        self.cancellable = false;
        effects.push(SourceEffect::Arm(Timer::Cancel, SETUP_DEADLINE));
    }

    /// QEMU can be told to cancel from now on; it is, if that has waited.
    pub(super) fn cancel_qemu_at_last(&mut self, effects: Effects<'_>) {
        let before = std::mem::replace(&mut self.cancellable, true);
        if !before && self.state == (State::Cancelling { waiting: true }) {
            cancel_qemu(effects);
        }
    }

    pub(super) fn stay(&mut self, effects: Effects<'_>) {
        self.state = State::Cancelling { waiting: false };
        effects.push(SourceEffect::Stay {
            epoch: self.terms.epoch,
        });
    }

    pub(super) fn on_qemu_ended(&mut self, problem: Problem, effects: Effects<'_>) {
        self.qemu_busy = false;
        match self.state {
            State::Cancelling { waiting: true } => self.stay(effects),
            State::TakingBack(TakingBack::Cancelling) => self.resume(effects),
            State::Pulling { .. } => self.lose_guest(problem, effects),
            State::Granting | State::Handoff | State::InDoubt if self.granted_early => {
                self.broken = Some(problem);
            }
            _ => self.on_trouble(problem, effects),
        }
    }

    pub(super) fn on_qemu_gone(&mut self, problem: Problem, effects: Effects<'_>) {
        self.qemu_gone = true;
        self.on_qemu_ended(problem, effects);
    }

    pub(super) fn on_stayed(&mut self, effects: Effects<'_>) -> Result<(), Rejected> {
        match self.state {
            State::Cancelling { waiting: false } => {}
            State::TakingBack(TakingBack::Resuming) => {
                let epoch = self.granted_epoch().next();
                effects.push(SourceEffect::Send(SourceMessage::TakenBack {
                    migration: self.terms.migration,
                    epoch,
                }));
            }
            _ => return Err(self.rejected("stayed".to_owned())),
        }
        self.finish_failed(effects);
        Ok(())
    }

    /// The guest could not be brought back to what it was: the domain's own
    /// state says what it is now, and the migration is over all the same.
    pub(super) fn on_stay_failed(
        &mut self,
        problem: Problem,
        effects: Effects<'_>,
    ) -> Result<(), Rejected> {
        match self.state {
            State::Cancelling { waiting: false } | State::TakingBack(TakingBack::Resuming) => {
                if let Some((_, cause)) = &mut self.cause {
                    cause.also.push(problem);
                }
                self.finish_failed(effects);
                Ok(())
            }
            _ => Err(self.rejected("stay failed".to_owned())),
        }
    }

    pub(super) fn finish_failed(&mut self, effects: Effects<'_>) {
        self.state = State::Done;
        let (phase, problem) = self.cause.take().unwrap_or_else(|| {
            (
                MigrationPhase::Failed,
                Problem::new(
                    codes::MIGRATION_FAILED,
                    "the migration ended without a cause",
                ),
            )
        });
        let outcome = if problem.code == codes::MIGRATION_CANCELLED {
            Outcome::Cancelled
        } else {
            Outcome::Failed { phase, problem }
        };
        let phase = match outcome {
            Outcome::Cancelled => MigrationPhase::Cancelled,
            _ => MigrationPhase::Failed,
        };
        effects.push(SourceEffect::Phase(phase));
        effects.push(SourceEffect::Finish(outcome));
    }

    /// The operator's word stands in for the target's, which nobody can get.
    pub(super) fn on_resolve(
        &mut self,
        decision: DoubtDecision,
        effects: Effects<'_>,
    ) -> Result<(), Rejected> {
        if self.state != State::InDoubt {
            return Err(self.rejected("resolve".to_owned()));
        }
        match decision {
            DoubtDecision::RunOnSource => {
                let why = "an operator decided that the guest runs on its source";
                self.take_back(Problem::new(codes::MIGRATION_FAILED, why), effects);
            }
            DoubtDecision::EndOnSource => self.retire(effects),
        }
        Ok(())
    }
}

fn cancel_qemu(effects: Effects<'_>) {
    effects.push(SourceEffect::CancelMigration);
    effects.push(SourceEffect::Arm(Timer::Cancel, CANCEL_DEADLINE));
}
