//! The source's side of a handoff.

use godwit_shared::model::{Epoch, MigrationId, MigrationPhase, Millis, Problem, VmId, codes};
use godwit_shared::wire::peer::SourceMessage;
use godwit_shared::wire::uplink::Verdict;

use super::Rejected;
use super::record::OutgoingStage;

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

/// QEMU's migration as QMP `MIGRATION` events tell it, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QemuMigration {
    /// `active`: memory is being sent.
    Active,
    /// `pre-switchover`: the guest is stopped and QEMU waits to be told to go on.
    PreSwitchover,
    /// `completed`: all was sent and the target's QEMU has loaded it.
    Completed,
    /// `failed`, with QEMU's words.
    Failed(String),
    /// `cancelled`.
    Cancelled,
    /// `none`: there is no migration (a look after a restart).
    Idle,
    /// `setup`: it connects, and must not be cancelled yet (a look after a
    /// restart).
    Connecting,
}

/// What a source can learn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceEvent {
    /// The target's QEMU waits.
    Prepared,
    /// The target cannot receive it, and why.
    Blocked(Vec<Problem>),
    /// The target has loaded everything.
    Loaded,
    /// The target gave up before any grant.
    TargetFailed(Problem),
    /// The target runs the CPUs at this epoch.
    Activated(Epoch),
    /// The target gives the right back; the source may take this epoch.
    HandBack {
        /// The grant's epoch plus one.
        epoch: Epoch,
        /// Why.
        reason: Problem,
    },
    /// The word on the grant, from the target or relayed.
    Verdict(Verdict),
    /// The connection to the target ended.
    LinkLost(Problem),
    /// QEMU's migration changed.
    Qemu(QemuMigration),
    /// QEMU's process ended.
    QemuGone(Problem),
    /// The guest powered off or crashed of its own accord.
    GuestEnded(Problem),
    /// An operator calls it off.
    Cancel,
    /// [`SourceEffect::StartMigration`] or [`SourceEffect::ContinueMigration`] was refused.
    CommandFailed(Problem),
    /// [`SourceEffect::Journal`] is written.
    Journaled(OutgoingStage),
    /// It could not be.
    JournalFailed(Problem),
    /// [`SourceEffect::Stay`] is done: the guest is as it was before.
    Stayed,
    /// It is not.
    StayFailed(Problem),
    /// [`SourceEffect::Retire`] is done.
    Retired,
    /// A timer ran out.
    Timeout(Timer),
}

/// What a source may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timer {
    /// The target's preparation.
    Prepare,
    /// The target's word that the CPUs run.
    Activate,
    /// The next question in doubt.
    Ask,
    /// QEMU's confirmation of a cancel.
    Cancel,
    /// The end of the switchover.
    Switchover,
    /// The target's word, before the operator is told that it does not come.
    Doubt,
}

/// What a source wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceEffect {
    /// Say this to the target over the migration's own connection, if it stands.
    Send(SourceMessage),
    /// Set capabilities and parameters and start QEMU's migration.
    StartMigration,
    /// QMP `migrate-continue`.
    ContinueMigration,
    /// QMP `migrate_cancel`; its end comes as [`SourceEvent::Qemu`].
    CancelMigration,
    /// Write the stage to the domain's record; answers [`SourceEvent::Journaled`].
    Journal(OutgoingStage),
    /// Show the domain as being in the handoff.
    MarkInHandoff,
    /// Ask the target over a fresh connection, and the coordinator beside it.
    Ask,
    /// Keep the domain at this epoch, and make sure that its CPUs run if they shall.
    Stay {
        /// The epoch to run at.
        epoch: Epoch,
    },
    /// End QEMU; the domain is the target's at this epoch.
    Retire {
        /// The target's epoch.
        epoch: Epoch,
    },
    /// Wake me after this time; a timer armed anew replaces the former.
    Arm(Timer, Millis),
    /// The phase changed.
    Phase(MigrationPhase),
    /// Something the operator should know while it goes on.
    Alarm(Problem),
    /// It is over; the connection may go.
    Finish(Outcome),
}

/// How a migration ended, for its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest is the target's.
    Completed,
    /// The guest is the source's.
    Failed {
        /// The phase in which the cause came up.
        phase: MigrationPhase,
        /// The cause.
        problem: Problem,
    },
    /// The guest is the source's because an operator wanted it so.
    Cancelled,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Preparing,
    Precopy,
    Switchover { sent: bool, loaded: bool },
    Granting,
    Handoff,
    InDoubt,
    TakingBack { resuming: bool },
    Retiring,
    Cancelling { waiting: bool },
    Done,
}

/// The source of one migration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    migration: MigrationId,
    vm: VmId,
    epoch: Epoch,
    run: bool,
    state: State,
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
    /// the domain. `epoch` is the one at which the source runs the domain.
    pub fn begin(
        migration: MigrationId,
        vm: VmId,
        epoch: Epoch,
        run: bool,
        effects: Effects<'_>,
    ) -> Self {
        effects.push(SourceEffect::Phase(MigrationPhase::Preparing));
        effects.push(SourceEffect::Arm(Timer::Prepare, PREPARE_DEADLINE));
        Self::new(migration, vm, epoch, run, State::Preparing)
    }

    /// A migration found in the journal after the daemon was restarted.
    pub fn recover(
        migration: MigrationId,
        vm: VmId,
        epoch: Epoch,
        run: bool,
        stage: OutgoingStage,
        effects: Effects<'_>,
    ) -> Self {
        let mut source = Self::new(migration, vm, epoch, run, State::Precopy);
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
            OutgoingStage::TakenBack => {
                source.cause = Some((
                    MigrationPhase::Handoff,
                    Problem::new(codes::MIGRATION_FAILED, "the target did not take the guest"),
                ));
                source.resume(effects);
            }
        }
        source
    }

    fn new(migration: MigrationId, vm: VmId, epoch: Epoch, run: bool, state: State) -> Self {
        Self {
            migration,
            vm,
            epoch,
            run,
            state,
            qemu_busy: false,
            cancellable: false,
            setup_waits: 0,
            qemu_gone: false,
            link_lost: false,
            cause: None,
        }
    }

    /// Whether the right to run was granted and its fate is open.
    pub fn is_granted(&self) -> bool {
        matches!(
            self.state,
            State::Granting | State::Handoff | State::InDoubt
        )
    }

    /// Whether it is over.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The epoch that a grant carries.
    pub fn granted_epoch(&self) -> Epoch {
        self.epoch.next()
    }

    /// Takes one event in. A rejected event changed nothing.
    pub fn step(&mut self, event: SourceEvent, effects: Effects<'_>) -> Result<(), Rejected> {
        match event {
            SourceEvent::Prepared => self.on_prepared(effects),
            SourceEvent::Blocked(blockers) => self.on_blocked(blockers, effects),
            SourceEvent::Loaded => self.on_loaded(effects),
            SourceEvent::Activated(epoch) => self.on_activated(epoch, effects),
            SourceEvent::HandBack { epoch, reason } => self.on_hand_back(epoch, reason, effects),
            SourceEvent::Verdict(verdict) => self.on_verdict(verdict, effects),
            SourceEvent::LinkLost(problem) => self.on_link_lost(problem, effects),
            SourceEvent::Qemu(change) => self.on_qemu(change, effects),
            SourceEvent::QemuGone(problem) => self.on_qemu_gone(problem, effects),
            SourceEvent::TargetFailed(problem) => self.on_target_failed(problem, effects),
            SourceEvent::GuestEnded(problem) => self.on_trouble(problem, effects),
            SourceEvent::CommandFailed(problem) => {
                // `migrate` may be what was refused: then `active` never comes.
                self.cancel_qemu_at_last(effects);
                self.on_trouble(problem, effects);
            }
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
            }
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
        if self.state == State::Precopy {
            self.state = State::Switchover {
                sent: false,
                loaded: false,
            };
            effects.push(SourceEffect::Phase(MigrationPhase::Switchover));
            effects.push(SourceEffect::Arm(Timer::Switchover, SWITCHOVER_DEADLINE));
            effects.push(SourceEffect::ContinueMigration);
        }
    }

    /// QEMU has sent everything. The right is still here.
    fn on_sent(&mut self, effects: Effects<'_>) {
        self.qemu_busy = false;
        match self.state {
            // Without pre-switchover in between: a guest that was paused before.
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
            State::Cancelling { waiting: true } => self.stay(effects),
            _ => {}
        }
    }

    fn on_loaded(&mut self, effects: Effects<'_>) {
        match self.state {
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
            (OutgoingStage::Granted, State::Granting) if self.link_lost => {
                self.doubt(effects);
                Ok(())
            }
            (OutgoingStage::Granted, State::Granting) => {
                self.state = State::Handoff;
                effects.push(SourceEffect::Send(SourceMessage::Grant {
                    migration: self.migration,
                    epoch: self.granted_epoch(),
                    run: self.run,
                }));
                effects.push(SourceEffect::MarkInHandoff);
                effects.push(SourceEffect::Phase(MigrationPhase::Handoff));
                effects.push(SourceEffect::Arm(Timer::Activate, ACTIVATE_DEADLINE));
                Ok(())
            }
            (OutgoingStage::TakenBack, State::TakingBack { resuming: false }) => {
                self.resume(effects);
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
            State::TakingBack { resuming: false } => {
                effects.push(SourceEffect::Alarm(problem));
                self.doubt(effects);
            }
            _ => {}
        }
    }

    fn on_activated(&mut self, epoch: Epoch, effects: Effects<'_>) {
        if epoch == self.granted_epoch() && matches!(self.state, State::Handoff | State::InDoubt) {
            self.retire(effects);
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
            Verdict::Granted { running: true } => self.retire(effects),
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

    fn take_back(&mut self, reason: Problem, effects: Effects<'_>) {
        if matches!(self.state, State::Handoff | State::InDoubt) {
            self.cause = Some((MigrationPhase::Handoff, reason));
            self.state = State::TakingBack { resuming: false };
            effects.push(SourceEffect::Phase(MigrationPhase::Cancelling));
            effects.push(SourceEffect::Journal(OutgoingStage::TakenBack));
        }
    }

    /// The journal says that the right is here again: run the guest.
    fn resume(&mut self, effects: Effects<'_>) {
        self.state = State::TakingBack { resuming: true };
        effects.push(SourceEffect::Stay {
            epoch: self.granted_epoch().next(),
        });
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
            migration: self.migration,
        }));
        effects.push(SourceEffect::Phase(MigrationPhase::Completed));
        effects.push(SourceEffect::Finish(Outcome::Completed));
        Ok(())
    }

    fn on_link_lost(&mut self, problem: Problem, effects: Effects<'_>) {
        self.link_lost = true;
        match self.state {
            State::Handoff => self.doubt(effects),
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

    /// The target's reason explains what QEMU could only call a broken pipe,
    /// whichever of the two came first.
    fn on_target_failed(&mut self, problem: Problem, effects: Effects<'_>) {
        if let (State::Cancelling { .. }, Some((_, cause))) = (&self.state, &mut self.cause)
            && cause.code == codes::MIGRATION_FAILED
        {
            let symptom = std::mem::replace(cause, problem);
            cause.also.push(symptom);
            return;
        }
        self.on_trouble(problem, effects);
    }

    /// Anything that ends a migration before its grant.
    fn on_trouble(&mut self, problem: Problem, effects: Effects<'_>) {
        if matches!(
            self.state,
            State::Preparing | State::Precopy | State::Switchover { .. }
        ) {
            self.give_up(problem, effects);
        }
    }

    fn on_cancel(&mut self, effects: Effects<'_>) -> Result<(), Rejected> {
        match self.state {
            State::Preparing | State::Precopy | State::Switchover { .. } => {
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

    fn give_up(&mut self, problem: Problem, effects: Effects<'_>) {
        let phase = self.phase();
        effects.push(SourceEffect::Send(SourceMessage::Cancel {
            migration: self.migration,
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
    fn on_connecting(&mut self, effects: Effects<'_>) {
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
    fn cancel_qemu_at_last(&mut self, effects: Effects<'_>) {
        let before = std::mem::replace(&mut self.cancellable, true);
        if !before && self.state == (State::Cancelling { waiting: true }) {
            cancel_qemu(effects);
        }
    }

    fn stay(&mut self, effects: Effects<'_>) {
        self.state = State::Cancelling { waiting: false };
        effects.push(SourceEffect::Stay { epoch: self.epoch });
    }

    fn on_qemu_ended(&mut self, problem: Problem, effects: Effects<'_>) {
        self.qemu_busy = false;
        match self.state {
            State::Cancelling { waiting: true } => self.stay(effects),
            _ => self.on_trouble(problem, effects),
        }
    }

    fn on_qemu_gone(&mut self, problem: Problem, effects: Effects<'_>) {
        self.qemu_gone = true;
        self.on_qemu_ended(problem, effects);
    }

    fn on_stayed(&mut self, effects: Effects<'_>) -> Result<(), Rejected> {
        match self.state {
            State::Cancelling { waiting: false } => {}
            State::TakingBack { resuming: true } => {
                let epoch = self.granted_epoch().next();
                effects.push(SourceEffect::Send(SourceMessage::TakenBack {
                    migration: self.migration,
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
    fn on_stay_failed(&mut self, problem: Problem, effects: Effects<'_>) -> Result<(), Rejected> {
        match self.state {
            State::Cancelling { waiting: false } | State::TakingBack { resuming: true } => {
                if let Some((_, cause)) = &mut self.cause {
                    cause.also.push(problem);
                }
                self.finish_failed(effects);
                Ok(())
            }
            _ => Err(self.rejected("stay failed".to_owned())),
        }
    }

    fn finish_failed(&mut self, effects: Effects<'_>) {
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

    fn on_timeout(&mut self, timer: Timer, effects: Effects<'_>) {
        match (timer, &self.state) {
            (Timer::Prepare, State::Preparing) => {
                let problem = Problem::new(codes::TIMEOUT, "the target did not get ready in time")
                    .remedy("look at the target's log, then try again");
                self.give_up(problem, effects);
            }
            (Timer::Switchover, State::Switchover { .. }) => {
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
            _ => {}
        }
    }

    /// Asks about the grant.
    pub fn query(&self) -> SourceMessage {
        SourceMessage::Query {
            migration: self.migration,
            vm: self.vm,
            epoch: self.granted_epoch(),
        }
    }

    fn phase(&self) -> MigrationPhase {
        match self.state {
            State::Preparing => MigrationPhase::Preparing,
            State::Precopy => MigrationPhase::Precopy,
            State::Switchover { .. } | State::Granting => MigrationPhase::Switchover,
            State::Handoff | State::Retiring => MigrationPhase::Handoff,
            State::InDoubt => MigrationPhase::InDoubt,
            State::TakingBack { .. } | State::Cancelling { .. } | State::Done => {
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

fn cancel_qemu(effects: Effects<'_>) {
    effects.push(SourceEffect::CancelMigration);
    effects.push(SourceEffect::Arm(Timer::Cancel, CANCEL_DEADLINE));
}
