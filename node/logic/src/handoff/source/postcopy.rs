//! Limits, stalls and post-copy.
//!
//! # Post-copy
//!
//! Once QEMU has sent the device state in post-copy it cannot take the guest
//! back, so the right goes over before that: at `pre-switchover`, when the
//! guest stands still, the grant is journaled and sent, and only when the target
//! has taken it (`Taken`) QEMU is told to go on.
//!
//! ```text
//!  Precopy --stop; migrate-start-postcopy--> pre-switchover
//!    --> Granting --journaled--> Handoff --Taken: migrate-continue-->
//!    --Activated--> Pulling --completed--> Retiring
//!  Pulling --link or channels lost--> Pulling { connected: false }
//!    --Reconnect ... ResumeReady: migrate resume--> Pulling { connected: true }
//! ```
//!
//! QEMU resumes the guest by itself when its switch to post-copy fails, also
//! after the device state has left. It does so only for a guest that was running
//! when the switch began; so the guest is stopped first ([`Switching::Stopped`]),
//! and nobody but the holder of the right can run it.

use godwit_shared::model::{
    Bytes, Epoch, MigrationPhase, Millis, Postcopy, Problem, TimeoutAction, codes,
};

use super::{DOUBT_ALARM, Effects, Source, SourceEffect, State, Switching, TakingBack, Timer};
use crate::handoff::Rejected;

/// How often a source in post-copy tries to reach its target again.
const RECONNECT_EVERY: Millis = Millis(500);
/// The pass that `postcopy: always` waits for: all memory was sent once.
const SECOND_PASS: u32 = 2;

impl Source {
    pub(super) fn on_pass(&mut self, number: u32, remaining: Bytes, effects: Effects<'_>) {
        if self.state != State::Precopy {
            return;
        }
        let stalled = self.convergence.pass(number, remaining);
        match self.terms.plan.postcopy {
            Postcopy::Always if number >= SECOND_PASS => self.switch_to_postcopy(effects),
            Postcopy::Fallback if stalled => self.switch_to_postcopy(effects),
            _ if stalled => effects.push(SourceEffect::Stalled),
            _ => {}
        }
    }

    /// An operator does not want to wait any longer.
    pub(super) fn on_switch_wanted(&mut self, effects: Effects<'_>) -> Result<(), Rejected> {
        let allowed = self.terms.plan.allows_postcopy();
        if !allowed || self.state != State::Precopy || !self.cancellable {
            return Err(self.rejected("switch to post-copy".to_owned()));
        }
        self.switch_to_postcopy(effects);
        Ok(())
    }

    fn switch_to_postcopy(&mut self, effects: Effects<'_>) {
        if self.switching == Switching::No {
            self.switching = Switching::Asked;
            effects.push(SourceEffect::StartPostcopy);
        }
    }

    pub(super) fn on_stopped_for_postcopy(&mut self) {
        if self.state == State::Precopy && self.switching == Switching::Asked {
            self.switching = Switching::Stopped;
        }
    }

    /// The time that the policy gives has run out.
    pub(super) fn on_limit(&mut self, effects: Effects<'_>) {
        let before = matches!(
            self.state,
            State::Preparing | State::Mirroring | State::Precopy
        );
        if !before {
            return;
        }
        if self.terms.plan.timeout_action == TimeoutAction::Cancel {
            let problem = Problem::new(codes::TIMEOUT, "the guest was not switched over in time")
                .remedy("give it more time, or another --timeout-action");
            return self.give_up(problem, effects);
        }
        self.overdue = true;
        self.act_if_overdue(effects);
    }

    /// What the policy wants can only be done while memory is sent.
    pub(super) fn act_if_overdue(&mut self, effects: Effects<'_>) {
        if !self.overdue || self.state != State::Precopy || !self.cancellable {
            return;
        }
        self.overdue = false;
        match self.terms.plan.timeout_action {
            TimeoutAction::Cancel => {}
            TimeoutAction::Suspend => effects.push(SourceEffect::StopGuest),
            TimeoutAction::Force => effects.push(SourceEffect::HurryUp),
            TimeoutAction::Postcopy => self.switch_to_postcopy(effects),
        }
    }

    /// The target holds the right: there is no way back that is needed any more.
    /// A word that took so long that it was asked for meanwhile is as good.
    pub(super) fn on_taken(&mut self, epoch: Epoch, effects: Effects<'_>) {
        let ours = self.granted_early && epoch == self.granted_epoch();
        let waits = matches!(self.state, State::Handoff | State::InDoubt) && !self.link_lost;
        if ours && waits {
            effects.push(SourceEffect::ContinueMigration);
        }
    }

    /// The guest runs on the target and needs its memory.
    pub(super) fn pull(&mut self, effects: Effects<'_>) {
        if self.link_lost {
            return self.reconnect(effects);
        }
        self.state = State::Pulling { connected: true };
        effects.push(SourceEffect::Phase(MigrationPhase::Postcopy));
    }

    /// QEMU sends again.
    pub(super) fn on_pulling(&mut self, effects: Effects<'_>) {
        self.qemu_busy = true;
        if self.state == (State::Pulling { connected: false }) && !self.link_lost {
            self.state = State::Pulling { connected: true };
            effects.push(SourceEffect::Phase(MigrationPhase::Postcopy));
        }
    }

    /// The connection, or QEMU's channels over it, are lost.
    pub(super) fn on_channels_broken(&mut self, effects: Effects<'_>) {
        match self.state {
            State::Pulling { connected: true } => self.reconnect(effects),
            // QEMU refuses to cancel by now, and says so by this.
            State::TakingBack(TakingBack::Cancelling) => self.resume(effects),
            _ => {}
        }
    }

    pub(super) fn reconnect(&mut self, effects: Effects<'_>) {
        if self.state != (State::Pulling { connected: false }) {
            effects.push(SourceEffect::Arm(Timer::Doubt, DOUBT_ALARM));
        }
        self.state = State::Pulling { connected: false };
        // The next connection is what counts from here on.
        self.link_lost = false;
        effects.push(SourceEffect::Phase(MigrationPhase::PostcopyPaused));
        effects.push(SourceEffect::Reconnect);
        effects.push(SourceEffect::Arm(Timer::Reconnect, RECONNECT_EVERY));
    }

    /// Whatever an event of QEMU's that came late made of it: this is the answer
    /// to our own request.
    pub(super) fn on_resume_ready(&mut self, effects: Effects<'_>) {
        if let State::Pulling { .. } = self.state {
            effects.push(SourceEffect::ResumeMigration);
        }
    }

    pub(super) fn on_complete(&mut self, effects: Effects<'_>) {
        if let State::Pulling { .. } = self.state {
            self.retire(effects);
        }
    }

    /// One of the two QEMUs has ended before all memory was over.
    pub(super) fn lose_guest(&mut self, problem: Problem, effects: Effects<'_>) {
        effects.push(SourceEffect::GuestLost(problem));
        self.retire(effects);
    }
}
