//! The source's side of a handoff.
//!
//! This file has the way forward; `ending` what ends or undoes a migration, and
//! `postcopy` what is different once the guest runs on the target before all of
//! its memory is there.

mod converge;
mod ending;
mod event;
mod postcopy;

use godwit_shared::model::{
    Epoch, MigrationId, MigrationPhase, Millis, Postcopy, Problem, TimeoutAction, VmId, codes,
};
use godwit_shared::wire::peer::SourceMessage;
use godwit_shared::wire::uplink::Verdict;
use serde::{Deserialize, Serialize};

use super::Rejected;
use super::record::OutgoingStage;
use converge::Convergence;

pub use converge::pause_limit;
pub use event::{Outcome, QemuMigration, SourceEffect, SourceEvent, Timer};

/// How long the target may take to check, reserve and start its QEMU.
const PREPARE_DEADLINE: Millis = Millis(40_000);
/// How long the target may take to say that the CPUs run, before it is asked.
const ACTIVATE_DEADLINE: Millis = Millis(5_000);
/// How often a source in doubt asks.
const ASK_EVERY: Millis = Millis(500);
/// How long QEMU may take to confirm that its migration was cancelled.
const CANCEL_DEADLINE: Millis = Millis(10_000);
/// How long the guest may stand still before the grant: a target that hangs
/// while it loads must not hold it up for ever.
const SWITCHOVER_DEADLINE: Millis = Millis(30_000);
/// How long a source is in doubt before its operator is told.
const DOUBT_ALARM: Millis = Millis(5_000);
/// How long a cancel waits for QEMU's migration to be `active`: it connects to
/// a socket of this host.
const SETUP_DEADLINE: Millis = Millis(1_000);
/// How often that is waited for.
const SETUP_WAITS: u8 = 10;

/// What a migration is of, and on which terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Terms {
    /// The migration.
    pub migration: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// The epoch at which the source runs the domain.
    pub epoch: Epoch,
    /// Whether the CPUs shall run afterwards, wherever that is.
    pub run: bool,
    /// How it shall go.
    pub plan: Plan,
}

/// What of a migration's policy its source decides on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Whether disks have to be mirrored.
    pub mirrors: bool,
    /// When the guest may be switched to post-copy.
    pub postcopy: Postcopy,
    /// How long it may take until it is switched over.
    pub timeout: Option<Millis>,
    /// What to do then.
    pub timeout_action: TimeoutAction,
}

impl Plan {
    /// Whether QEMU has to be prepared for post-copy.
    pub fn allows_postcopy(&self) -> bool {
        self.postcopy != Postcopy::Never
            || (self.timeout.is_some() && self.timeout_action == TimeoutAction::Postcopy)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Preparing,
    Mirroring,
    Precopy,
    /// The guest stands still, and its mirrors are being finished.
    Finishing,
    Switchover {
        sent: bool,
        loaded: bool,
    },
    Granting,
    Handoff,
    InDoubt,
    /// The guest runs on the target, and its memory follows.
    Pulling {
        connected: bool,
    },
    TakingBack(TakingBack),
    Retiring,
    Cancelling {
        waiting: bool,
    },
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum TakingBack {
    /// The journal is being written.
    Journaling,
    /// QEMU's migration is being cancelled.
    Cancelling,
    /// The guest is being resumed.
    Resuming,
}

/// How far the switch to post-copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Switching {
    No,
    /// [`SourceEffect::StartPostcopy`] was asked for.
    Asked,
    /// The guest stands still for it, by our own command.
    Stopped,
}

/// The source of one migration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    terms: Terms,
    state: State,
    switching: Switching,
    /// The right was granted before the device state was sent.
    granted_early: bool,
    convergence: Convergence,
    /// The policy's time ran out before its action could be taken.
    overdue: bool,
    /// Why QEMU's migration ended after an early grant.
    broken: Option<Problem>,
    /// Whether QEMU has a migration that has not ended.
    qemu_busy: bool,
    /// Whether QEMU may be told to cancel. Cancelled while it still connects
    /// (`setup`), QEMU 10.0 forgets to free its yank instance and refuses every
    /// later migration of the guest with "duplicate yank instance".
    cancellable: bool,
    /// How often QEMU was found connecting when it was to cancel.
    setup_waits: u8,
    qemu_gone: bool,
    link_lost: bool,
    cause: Option<(MigrationPhase, Problem)>,
}

type Effects<'a> = &'a mut Vec<SourceEffect>;

impl Source {
    /// A migration that begins: the caller sends `Prepare` itself, for it knows
    /// the domain.
    pub fn begin(terms: Terms, effects: Effects<'_>) -> Self {
        effects.push(SourceEffect::Phase(MigrationPhase::Preparing));
        effects.push(SourceEffect::Arm(Timer::Prepare, PREPARE_DEADLINE));
        if let Some(timeout) = terms.plan.timeout {
            effects.push(SourceEffect::Arm(Timer::Limit, timeout));
        }
        Self::new(terms, State::Preparing)
    }

    /// A migration found in the journal after the daemon was restarted.
    pub fn recover(terms: Terms, stage: OutgoingStage, effects: Effects<'_>) -> Self {
        let mut source = Self::new(terms, State::Precopy);
        match stage {
            OutgoingStage::Sending => {
                source.qemu_busy = true;
                source.cancellable = true;
                let restarted =
                    Problem::new(codes::CONNECTION_LOST, "the source's daemon was restarted")
                        .remedy("ask for the migration again");
                source.give_up(restarted, effects);
            }
            OutgoingStage::Granted => source.doubt(effects),
            OutgoingStage::GrantedEarly => {
                source.granted_early = true;
                source.qemu_busy = true;
                // Gone with the daemon.
                source.link_lost = true;
                source.doubt(effects);
            }
            OutgoingStage::TakenBack => {
                source.cause = Some((
                    MigrationPhase::Handoff,
                    Problem::new(codes::MIGRATION_FAILED, "the target did not take the guest"),
                ));
                source.qemu_busy = true;
                source.cancel_then_resume(effects);
            }
        }
        source
    }

    fn new(terms: Terms, state: State) -> Self {
        Self {
            terms,
            state,
            switching: Switching::No,
            granted_early: false,
            convergence: Convergence::default(),
            overdue: false,
            broken: None,
            qemu_busy: false,
            cancellable: false,
            setup_waits: 0,
            qemu_gone: false,
            link_lost: false,
            cause: None,
        }
    }

    /// Whether the right to run was granted, and did not come back.
    pub fn is_granted(&self) -> bool {
        matches!(
            self.state,
            State::Granting
                | State::Handoff
                | State::InDoubt
                | State::Pulling { .. }
                | State::Retiring
        )
    }

    /// Whether it is over.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The epoch that a grant carries.
    pub fn granted_epoch(&self) -> Epoch {
        self.terms.epoch.next()
    }

    /// Takes one event in. A rejected event changed nothing.
    pub fn step(&mut self, event: SourceEvent, effects: Effects<'_>) -> Result<(), Rejected> {
        match event {
            SourceEvent::Prepared => self.on_prepared(effects),
            SourceEvent::Blocked(blockers) => self.on_blocked(blockers, effects),
            SourceEvent::Loaded => self.on_loaded(effects),
            SourceEvent::MirrorsReady => self.on_mirrors_ready(effects),
            SourceEvent::MirrorsFinished => self.on_mirrors_finished(effects),
            SourceEvent::MirrorFailed(problem) => self.on_trouble(problem, effects),
            SourceEvent::Pass { number, remaining } => self.on_pass(number, remaining, effects),
            SourceEvent::StoppedForPostcopy => self.on_stopped_for_postcopy(),
            SourceEvent::SwitchToPostcopy => return self.on_switch_wanted(effects),
            SourceEvent::Taken(epoch) => self.on_taken(epoch, effects),
            SourceEvent::ResumeReady => self.on_resume_ready(effects),
            SourceEvent::Complete => self.on_complete(effects),
            SourceEvent::Resolve(decision) => return self.on_resolve(decision, effects),
            SourceEvent::Activated(epoch) => self.on_activated(epoch, effects),
            SourceEvent::HandBack { epoch, reason } => self.on_hand_back(epoch, reason, effects),
            SourceEvent::Verdict(verdict) => self.on_verdict(verdict, effects),
            SourceEvent::LinkLost(problem) => self.on_link_lost(problem, effects),
            SourceEvent::Qemu(change) => self.on_qemu(change, effects),
            SourceEvent::QemuGone(problem) => self.on_qemu_gone(problem, effects),
            SourceEvent::TargetFailed(problem) => self.on_target_failed(problem, effects),
            SourceEvent::GuestEnded(problem) => self.on_trouble(problem, effects),
            SourceEvent::CommandFailed(problem) => self.on_command_failed(problem, effects),
            SourceEvent::Cancel => return self.on_cancel(effects),
            SourceEvent::Journaled(stage) => return self.on_journaled(stage, effects),
            SourceEvent::JournalFailed(problem) => self.on_journal_failed(problem, effects),
            SourceEvent::Stayed => return self.on_stayed(effects),
            SourceEvent::StayFailed(problem) => return self.on_stay_failed(problem, effects),
            SourceEvent::Retired => return self.on_retired(effects),
            SourceEvent::Timeout(timer) => self.on_timeout(timer, effects),
        }
        Ok(())
    }

    fn on_prepared(&mut self, effects: Effects<'_>) {
        if self.state != State::Preparing {
            return;
        }
        if self.terms.plan.mirrors {
            self.state = State::Mirroring;
            effects.push(SourceEffect::Phase(MigrationPhase::Disks));
            effects.push(SourceEffect::StartMirrors);
        } else {
            self.send_memory(effects);
        }
    }

    fn on_mirrors_ready(&mut self, effects: Effects<'_>) {
        if self.state == State::Mirroring {
            self.send_memory(effects);
        }
    }

    fn send_memory(&mut self, effects: Effects<'_>) {
        self.state = State::Precopy;
        self.qemu_busy = true;
        effects.push(SourceEffect::Phase(MigrationPhase::Precopy));
        effects.push(SourceEffect::StartMigration);
    }

    fn on_blocked(&mut self, blockers: Vec<Problem>, effects: Effects<'_>) {
        let problem = Problem::new(
            codes::MIGRATION_BLOCKED,
            "the target cannot receive the guest",
        )
        .remedy("remove what stands against it, or choose another target")
        .and(blockers);
        self.on_trouble(problem, effects);
    }

    fn on_qemu(&mut self, change: QemuMigration, effects: Effects<'_>) {
        match change {
            QemuMigration::Active => {
                self.qemu_busy = true;
                self.cancel_qemu_at_last(effects);
                self.act_if_overdue(effects);
            }
            QemuMigration::PostcopyActive => self.on_pulling(effects),
            QemuMigration::PostcopyPaused => self.on_channels_broken(effects),
            QemuMigration::Connecting => self.on_connecting(effects),
            QemuMigration::PreSwitchover => self.on_pre_switchover(effects),
            QemuMigration::Completed => self.on_sent(effects),
            QemuMigration::Failed(words) => {
                let text = if words.is_empty() {
                    "QEMU could not send the guest".to_owned()
                } else {
                    words
                };
                self.on_qemu_ended(Problem::new(codes::MIGRATION_FAILED, text), effects);
            }
            QemuMigration::Cancelled | QemuMigration::Idle => {
                let problem =
                    Problem::new(codes::MIGRATION_FAILED, "QEMU's migration was cancelled");
                self.on_qemu_ended(problem, effects);
            }
        }
    }

    fn on_pre_switchover(&mut self, effects: Effects<'_>) {
        if self.state != State::Precopy {
            return;
        }
        effects.push(SourceEffect::Phase(MigrationPhase::Switchover));
        effects.push(SourceEffect::Arm(Timer::Switchover, SWITCHOVER_DEADLINE));
        if self.terms.plan.mirrors {
            self.state = State::Finishing;
            effects.push(SourceEffect::FinishMirrors);
        } else {
            self.leave(effects);
        }
    }

    fn on_mirrors_finished(&mut self, effects: Effects<'_>) {
        if self.state == State::Finishing {
            self.leave(effects);
        }
    }

    /// The guest stands still and its disks are done: the rest of its memory,
    /// or in post-copy the right itself, goes over.
    fn leave(&mut self, effects: Effects<'_>) {
        if self.switching == Switching::Stopped {
            self.granted_early = true;
            self.state = State::Granting;
            effects.push(SourceEffect::Journal(OutgoingStage::GrantedEarly));
        } else {
            self.state = State::Switchover {
                sent: false,
                loaded: false,
            };
            effects.push(SourceEffect::ContinueMigration);
        }
    }

    /// QEMU has sent everything. Unless it was granted early, the right is
    /// still here.
    fn on_sent(&mut self, effects: Effects<'_>) {
        self.qemu_busy = false;
        match self.state {
            // Without pre-switchover in between: a guest that was paused before.
            State::Precopy if self.terms.plan.mirrors => self.on_disks_left_behind(effects),
            State::Precopy => {
                effects.push(SourceEffect::Phase(MigrationPhase::Switchover));
                effects.push(SourceEffect::Arm(Timer::Switchover, SWITCHOVER_DEADLINE));
                self.state = State::Switchover {
                    sent: true,
                    loaded: false,
                };
            }
            State::Switchover { loaded, .. } => {
                self.state = State::Switchover { sent: true, loaded };
                self.grant_when_ready(effects);
            }
            State::Pulling { .. } => self.retire(effects),
            State::Cancelling { waiting: true } => self.stay(effects),
            State::TakingBack(TakingBack::Cancelling) => self.resume(effects),
            _ => {}
        }
    }

    /// The guest must not run where its disks are not complete, whichever side's
    /// word on its memory comes first.
    fn on_disks_left_behind(&mut self, effects: Effects<'_>) {
        let text = "QEMU sent the guest before its disks were complete";
        self.on_trouble(Problem::new(codes::MIGRATION_FAILED, text), effects);
    }

    fn on_loaded(&mut self, effects: Effects<'_>) {
        match self.state {
            State::Precopy if self.terms.plan.mirrors => self.on_disks_left_behind(effects),
            State::Precopy => {
                self.state = State::Switchover {
                    sent: false,
                    loaded: true,
                }
            }
            State::Switchover { sent, .. } => {
                self.state = State::Switchover { sent, loaded: true };
                self.grant_when_ready(effects);
            }
            _ => {}
        }
    }

    fn grant_when_ready(&mut self, effects: Effects<'_>) {
        if self.state
            == (State::Switchover {
                sent: true,
                loaded: true,
            })
        {
            self.state = State::Granting;
            effects.push(SourceEffect::Journal(OutgoingStage::Granted));
        }
    }

    fn on_journaled(&mut self, stage: OutgoingStage, effects: Effects<'_>) -> Result<(), Rejected> {
        match (stage, &self.state) {
            (OutgoingStage::Granted | OutgoingStage::GrantedEarly, State::Granting)
                if self.link_lost =>
            {
                self.doubt(effects);
                Ok(())
            }
            (OutgoingStage::Granted | OutgoingStage::GrantedEarly, State::Granting) => {
                self.state = State::Handoff;
                effects.push(SourceEffect::Send(SourceMessage::Grant {
                    migration: self.terms.migration,
                    epoch: self.granted_epoch(),
                    run: self.terms.run,
                    postcopy: self.granted_early,
                }));
                effects.push(SourceEffect::MarkInHandoff);
                effects.push(SourceEffect::Phase(MigrationPhase::Handoff));
                effects.push(SourceEffect::Arm(Timer::Activate, ACTIVATE_DEADLINE));
                Ok(())
            }
            (OutgoingStage::TakenBack, State::TakingBack(TakingBack::Journaling)) => {
                self.cancel_then_resume(effects);
                Ok(())
            }
            _ => Err(self.rejected(format!("journaled {stage:?}"))),
        }
    }

    /// A grant that was never written was never given. One that could not be
    /// taken back in the journal stays where it is and is tried again.
    fn on_journal_failed(&mut self, problem: Problem, effects: Effects<'_>) {
        match self.state {
            State::Granting => self.give_up(problem, effects),
            State::TakingBack(TakingBack::Journaling) => {
                effects.push(SourceEffect::Alarm(problem));
                self.doubt(effects);
            }
            _ => {}
        }
    }

    fn on_activated(&mut self, epoch: Epoch, effects: Effects<'_>) {
        if epoch == self.granted_epoch() && matches!(self.state, State::Handoff | State::InDoubt) {
            self.on_running_there(effects);
        }
    }

    /// The CPUs run on the target.
    fn on_running_there(&mut self, effects: Effects<'_>) {
        match self.broken.take() {
            Some(problem) => self.lose_guest(problem, effects),
            None if self.granted_early && self.qemu_busy => self.pull(effects),
            None => self.retire(effects),
        }
    }

    fn on_hand_back(&mut self, epoch: Epoch, reason: Problem, effects: Effects<'_>) {
        if epoch == self.granted_epoch().next() {
            self.take_back(reason, effects);
        }
    }

    fn on_verdict(&mut self, verdict: Verdict, effects: Effects<'_>) {
        if !matches!(self.state, State::Handoff | State::InDoubt) {
            return;
        }
        match verdict {
            Verdict::Granted { running: true } => self.on_running_there(effects),
            Verdict::Granted { running: false } => {}
            Verdict::Refused => {
                let why = "the target did not take the grant";
                self.take_back(Problem::new(codes::MIGRATION_FAILED, why), effects);
            }
            Verdict::Lost => effects.push(SourceEffect::Alarm(
                Problem::new(
                    codes::STATE_CONFLICT,
                    "the target's host was rebooted in the handoff: nobody knows whether the guest ran there",
                )
                .remedy("look at the guest's disks before anything is started; it stays paused here"),
            )),
        }
    }

    fn retire(&mut self, effects: Effects<'_>) {
        self.state = State::Retiring;
        effects.push(SourceEffect::Retire {
            epoch: self.granted_epoch(),
        });
    }

    fn on_retired(&mut self, effects: Effects<'_>) -> Result<(), Rejected> {
        if self.state != State::Retiring {
            return Err(self.rejected("retired".to_owned()));
        }
        self.state = State::Done;
        effects.push(SourceEffect::Send(SourceMessage::Retired {
            migration: self.terms.migration,
        }));
        effects.push(SourceEffect::Phase(MigrationPhase::Completed));
        effects.push(SourceEffect::Finish(Outcome::Completed));
        Ok(())
    }

    fn on_link_lost(&mut self, problem: Problem, effects: Effects<'_>) {
        self.link_lost = true;
        match self.state {
            State::Handoff => self.doubt(effects),
            State::Pulling { .. } => self.on_channels_broken(effects),
            _ => self.on_trouble(problem, effects),
        }
    }

    fn doubt(&mut self, effects: Effects<'_>) {
        self.state = State::InDoubt;
        effects.push(SourceEffect::MarkInHandoff);
        effects.push(SourceEffect::Phase(MigrationPhase::InDoubt));
        effects.push(SourceEffect::Ask);
        effects.push(SourceEffect::Arm(Timer::Ask, ASK_EVERY));
        effects.push(SourceEffect::Arm(Timer::Doubt, DOUBT_ALARM));
    }

    fn on_timeout(&mut self, timer: Timer, effects: Effects<'_>) {
        match (timer, &self.state) {
            (Timer::Prepare, State::Preparing) => {
                let problem = Problem::new(codes::TIMEOUT, "the target did not get ready in time")
                    .remedy("look at the target's log, then try again");
                self.give_up(problem, effects);
            }
            (Timer::Limit, _) => self.on_limit(effects),
            (Timer::Reconnect, State::Pulling { connected: false }) => self.reconnect(effects),
            (Timer::Switchover, State::Finishing | State::Switchover { .. }) => {
                let problem = Problem::new(codes::TIMEOUT, "the switchover did not end in time")
                    .remedy("look at the target's QEMU log and its storage, then try again");
                self.give_up(problem, effects);
            }
            (Timer::Activate, State::Handoff) => self.doubt(effects),
            (Timer::Doubt, State::InDoubt) => effects.push(SourceEffect::Alarm(
                Problem::new(
                    codes::NODE_UNREACHABLE,
                    "the target does not say whether the guest runs there; it stands still here",
                )
                .remedy("bring the target's daemon, or a path to it, back"),
            )),
            (Timer::Doubt, State::Pulling { connected: false }) => {
                effects.push(SourceEffect::Alarm(
                    Problem::new(
                        codes::NODE_UNREACHABLE,
                        "the target cannot be reached, and the guest waits there for its memory",
                    )
                    .remedy("bring the target's daemon, or a path to it, back"),
                ));
            }
            (Timer::Ask, State::InDoubt) => {
                effects.push(SourceEffect::Ask);
                effects.push(SourceEffect::Arm(Timer::Ask, ASK_EVERY));
            }
            (Timer::Cancel, State::Cancelling { waiting: true }) if !self.cancellable => {
                self.cancel_qemu_at_last(effects);
            }
            // QEMU does not answer: the domain shows that by itself. The right
            // never left, so keeping the domain is safe.
            (Timer::Cancel, State::Cancelling { waiting: true }) => self.stay(effects),
            (Timer::Cancel, State::TakingBack(TakingBack::Cancelling)) => self.resume(effects),
            _ => {}
        }
    }

    /// Asks about the grant.
    pub fn query(&self) -> SourceMessage {
        SourceMessage::Query {
            migration: self.terms.migration,
            vm: self.terms.vm,
            epoch: self.granted_epoch(),
        }
    }

    fn phase(&self) -> MigrationPhase {
        match self.state {
            State::Preparing => MigrationPhase::Preparing,
            State::Mirroring => MigrationPhase::Disks,
            State::Precopy => MigrationPhase::Precopy,
            State::Finishing | State::Switchover { .. } | State::Granting => {
                MigrationPhase::Switchover
            }
            State::Handoff | State::Retiring => MigrationPhase::Handoff,
            State::InDoubt => MigrationPhase::InDoubt,
            State::Pulling { connected: true } => MigrationPhase::Postcopy,
            State::Pulling { connected: false } => MigrationPhase::PostcopyPaused,
            State::TakingBack(_) | State::Cancelling { .. } | State::Done => {
                MigrationPhase::Cancelling
            }
        }
    }

    fn rejected(&self, event: String) -> Rejected {
        Rejected {
            state: self.phase().as_str(),
            event,
        }
    }
}
