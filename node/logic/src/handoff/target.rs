//! The target's side of a handoff.

use godwit_shared::model::{Epoch, MigrationId, Millis, Problem, codes};
use godwit_shared::wire::peer::TargetMessage;
use godwit_shared::wire::uplink::Verdict;

use super::Rejected;
use super::record::{IncomingStage, TombstoneVerdict};

/// What a target can learn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetEvent {
    /// [`TargetEffect::Check`] is done: what stands against it.
    Checked(Vec<Problem>),
    /// [`TargetEffect::StartQemu`] is done: QEMU waits for the streams.
    Started,
    /// It could not be started.
    StartFailed(Problem),
    /// QEMU has loaded everything (QMP `MIGRATION`, `completed`).
    Loaded,
    /// QEMU could not load it.
    LoadFailed(Problem),
    /// QEMU's process ended.
    QemuGone(Problem),
    /// The source grants the right.
    Grant {
        /// At this epoch.
        epoch: Epoch,
        /// Whether the CPUs shall run.
        run: bool,
        /// For post-copy: the device state is sent when it was taken.
        early: bool,
    },
    /// QEMU has the device state and waits for pages (QMP `MIGRATION`,
    /// `postcopy-active`).
    Listening,
    /// The source has connected anew to send the rest of a post-copy.
    Resume,
    /// [`TargetEffect::Recover`] is done: QEMU waits for the channels.
    Recovered,
    /// The source, or an operator through it, calls it off.
    Cancel(Problem),
    /// The connection to the source ended.
    LinkLost(Problem),
    /// Somebody asks what became of the grant.
    Query,
    /// [`TargetEffect::Journal`] is written.
    Journaled(IncomingStage),
    /// It could not be.
    JournalFailed(Problem),
    /// [`TargetEffect::Activate`] is done: the CPUs run, if they shall.
    Activated,
    /// It failed, and the CPUs certainly never ran here.
    ActivateFailed(Problem),
    /// It failed, and the CPUs may have run here.
    ActivateUnclear(Problem),
    /// [`TargetEffect::Discard`] is done: no QEMU, no record, and the tombstone
    /// is written.
    Discarded,
    /// The source has retired, or was told all it will ever ask.
    SourceDone,
}

/// What a target wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetEffect {
    /// Find everything that stands against receiving the guest.
    Check,
    /// Reserve, start QEMU with `-incoming defer`, write the promise
    /// ([`IncomingStage::Prepared`]) through to the disk, listen.
    StartQemu,
    /// Say this to the source, if the connection stands.
    Send(TargetMessage),
    /// Write the stage; answers [`TargetEvent::Journaled`]. For
    /// [`IncomingStage::Running`] that answer says that the tombstone
    /// ([`TombstoneVerdict::Granted`]) is written: try until it is. The stage
    /// after it only spares the next daemon a look.
    Journal(IncomingStage),
    /// After a restart of the daemon: look how far QEMU is; answers
    /// [`TargetEvent::Listening`], [`TargetEvent::Loaded`] or nothing.
    Look,
    /// Post-copy, over a new connection: make QEMU wait for the channels again
    /// (QMP `migrate-recover`); answers [`TargetEvent::Recovered`].
    Recover,
    /// Everything is here: wait for the source's last word, but not for ever
    /// ([`SOURCE_DONE_DEADLINE`]).
    AwaitSource,
    /// Take ownership at this epoch and run the CPUs, if they shall.
    Activate {
        /// The grant's epoch.
        epoch: Epoch,
        /// Whether they shall run.
        run: bool,
    },
    /// Write this tombstone first, then end QEMU and remove everything that was
    /// begun, a start that is still under way included; answers
    /// [`TargetEvent::Discarded`].
    Discard(TombstoneVerdict),
    /// Answer the open questions.
    Answer(Verdict),
    /// It is over.
    Finish(TargetOutcome),
}

/// How a migration ended, for its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetOutcome {
    /// The guest is here. The record may be cleared.
    Received,
    /// Nothing of it is here.
    Gone(Problem),
    /// Only its blockers were asked for.
    Checked,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Checking,
    Starting,
    Receiving,
    Loaded,
    Granting {
        run: bool,
        early: bool,
    },
    /// The grant was taken, the device state is on its way.
    Waiting {
        run: bool,
    },
    Activating,
    Running,
    Discarding {
        cause: Problem,
        hand_back: bool,
    },
    Done,
}

/// The target of one migration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    migration: MigrationId,
    /// The epoch that a grant has to carry.
    epoch: Epoch,
    dry_run: bool,
    state: State,
    /// QEMU has the device state of a post-copy.
    listening: bool,
    /// All of the guest is here.
    complete: bool,
    /// The word that the CPUs run stands in a tombstone.
    written: bool,
    /// The source has said its last word.
    source_done: bool,
    /// Why QEMU ended, if it did.
    gone: Option<Problem>,
    /// A daemon before this one may have run the CPUs.
    recovered: bool,
    /// The source of a post-copy has come back before this daemon knew whether
    /// the CPUs run.
    resumes: bool,
    asked: bool,
}

type Effects<'a> = &'a mut Vec<TargetEffect>;

impl Target {
    /// A source asks to send a guest that it runs at `source_epoch`.
    pub fn begin(
        migration: MigrationId,
        source_epoch: Epoch,
        dry_run: bool,
        effects: Effects<'_>,
    ) -> Self {
        effects.push(TargetEffect::Check);
        Self {
            migration,
            epoch: source_epoch.next(),
            dry_run,
            state: State::Checking,
            listening: false,
            complete: false,
            written: false,
            source_done: false,
            gone: None,
            recovered: false,
            resumes: false,
            asked: false,
        }
    }

    /// A migration found in the journal after the daemon was restarted, on the
    /// same boot of the host. `epoch` is the one that a grant carries.
    pub fn recover(
        migration: MigrationId,
        epoch: Epoch,
        stage: IncomingStage,
        effects: Effects<'_>,
    ) -> Self {
        let mut target = Self {
            migration,
            epoch,
            dry_run: false,
            state: State::Receiving,
            listening: false,
            complete: false,
            written: false,
            source_done: false,
            gone: None,
            recovered: false,
            resumes: false,
            asked: false,
        };
        match stage {
            IncomingStage::Prepared => target.discard(
                Problem::new(codes::CONNECTION_LOST, "the target's daemon was restarted"),
                false,
                effects,
            ),
            IncomingStage::Granted { run, early: false } => {
                target.complete = true;
                target.activate(run, effects);
            }
            IncomingStage::Granted { run, early: true } => {
                target.state = State::Waiting { run };
                target.recovered = true;
                effects.push(TargetEffect::Look);
            }
            IncomingStage::Running { complete } => {
                target.complete = complete;
                target.run(effects);
                if !complete {
                    effects.push(TargetEffect::Look);
                }
            }
        }
        target
    }

    /// Whether the grant was taken, and the guest is not handed back.
    pub fn is_granted(&self) -> bool {
        matches!(
            self.state,
            State::Granting { .. } | State::Waiting { .. } | State::Activating | State::Running
        )
    }

    /// Whether it is over.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes one event in. A rejected event changed nothing.
    pub fn step(&mut self, event: TargetEvent, effects: Effects<'_>) -> Result<(), Rejected> {
        match event {
            TargetEvent::Checked(blockers) => return self.on_checked(blockers, effects),
            TargetEvent::Started => return self.on_started(effects),
            TargetEvent::Loaded => self.on_loaded(effects),
            TargetEvent::Listening => self.on_listening(effects),
            TargetEvent::Resume => return self.on_resume(effects),
            TargetEvent::Recovered => self.on_recovered(effects),
            TargetEvent::Grant { epoch, run, early } => {
                return self.on_grant(epoch, run, early, effects);
            }
            TargetEvent::Query => self.on_query(effects),
            TargetEvent::Journaled(stage) => return self.on_journaled(stage, effects),
            TargetEvent::JournalFailed(problem) => self.on_journal_failed(problem, effects),
            TargetEvent::Activated | TargetEvent::ActivateUnclear(_) => {
                return self.on_activated(effects);
            }
            TargetEvent::ActivateFailed(problem) => {
                return self.on_activate_failed(problem, effects);
            }
            TargetEvent::Discarded => return self.on_discarded(effects),
            TargetEvent::SourceDone => self.on_source_done(effects),
            TargetEvent::QemuGone(problem) => self.on_qemu_gone(problem, effects),
            TargetEvent::LinkLost(problem) => self.on_link_lost(problem, effects),
            TargetEvent::LoadFailed(problem) => self.on_load_failed(problem, effects),
            TargetEvent::StartFailed(problem) | TargetEvent::Cancel(problem) => {
                self.on_trouble(problem, effects);
            }
        }
        Ok(())
    }

    fn on_checked(&mut self, blockers: Vec<Problem>, effects: Effects<'_>) -> Result<(), Rejected> {
        if self.state != State::Checking {
            return Err(self.rejected("checked"));
        }
        if self.dry_run || !blockers.is_empty() {
            self.state = State::Done;
            let outcome = if self.dry_run {
                TargetOutcome::Checked
            } else {
                TargetOutcome::Gone(Problem::new(
                    codes::MIGRATION_BLOCKED,
                    "the guest cannot be received here",
                ))
            };
            effects.push(TargetEffect::Send(TargetMessage::Blocked {
                migration: self.migration,
                blockers,
            }));
            effects.push(TargetEffect::Finish(outcome));
        } else {
            self.state = State::Starting;
            effects.push(TargetEffect::StartQemu);
        }
        Ok(())
    }

    fn on_started(&mut self, effects: Effects<'_>) -> Result<(), Rejected> {
        match self.state {
            State::Starting => {
                self.state = State::Receiving;
                effects.push(TargetEffect::Send(TargetMessage::Prepared {
                    migration: self.migration,
                }));
                Ok(())
            }
            // It was called off meanwhile; the discard waits for the start.
            State::Discarding { .. } => Ok(()),
            _ => Err(self.rejected("started")),
        }
    }

    fn on_loaded(&mut self, effects: Effects<'_>) {
        if std::mem::replace(&mut self.complete, true) {
            return;
        }
        match self.state {
            State::Receiving => {
                self.state = State::Loaded;
                effects.push(TargetEffect::Send(TargetMessage::Loaded {
                    migration: self.migration,
                }));
            }
            State::Waiting { run } => self.activate(run, effects),
            State::Running => self.on_complete(effects),
            _ => {}
        }
    }

    /// Nothing depends on the source any more.
    fn on_complete(&mut self, effects: Effects<'_>) {
        effects.push(TargetEffect::Journal(IncomingStage::Running {
            complete: true,
        }));
        effects.push(TargetEffect::Send(TargetMessage::Complete {
            migration: self.migration,
        }));
        effects.push(TargetEffect::AwaitSource);
    }

    fn on_listening(&mut self, effects: Effects<'_>) {
        self.listening = true;
        if let State::Waiting { run } = self.state {
            self.activate(run, effects);
        }
    }

    fn on_grant(
        &mut self,
        epoch: Epoch,
        run: bool,
        early: bool,
        effects: Effects<'_>,
    ) -> Result<(), Rejected> {
        let ready = self.state == State::Loaded || (early && self.state == State::Receiving);
        if !ready || epoch != self.epoch {
            return Err(self.rejected("grant"));
        }
        self.state = State::Granting { run, early };
        effects.push(TargetEffect::Journal(IncomingStage::Granted { run, early }));
        Ok(())
    }

    fn on_journaled(&mut self, stage: IncomingStage, effects: Effects<'_>) -> Result<(), Rejected> {
        match (stage, &self.state) {
            (IncomingStage::Granted { .. }, State::Granting { run, early }) => {
                let (run, early) = (*run, *early);
                if early {
                    effects.push(TargetEffect::Send(TargetMessage::Taken {
                        migration: self.migration,
                        epoch: self.epoch,
                    }));
                }
                if self.complete || self.listening {
                    self.activate(run, effects);
                } else {
                    self.state = State::Waiting { run };
                }
                Ok(())
            }
            (IncomingStage::Running { .. }, State::Running) => {
                self.written = true;
                self.finish_when_done(effects);
                Ok(())
            }
            _ => Err(self.rejected("journaled")),
        }
    }

    fn activate(&mut self, run: bool, effects: Effects<'_>) {
        self.state = State::Activating;
        effects.push(TargetEffect::Activate {
            epoch: self.epoch,
            run,
        });
    }

    /// A grant that could not be journaled was not taken: the right goes back.
    /// The word that the CPUs run is tried again until it is written.
    fn on_journal_failed(&mut self, problem: Problem, effects: Effects<'_>) {
        if matches!(self.state, State::Granting { .. }) {
            self.discard(problem, true, effects);
        }
    }

    fn on_activated(&mut self, effects: Effects<'_>) -> Result<(), Rejected> {
        if self.state != State::Activating {
            return Err(self.rejected("activated"));
        }
        effects.push(TargetEffect::Send(TargetMessage::Activated {
            migration: self.migration,
            epoch: self.epoch,
            resumed_us: None,
        }));
        self.run(effects);
        self.answer(Verdict::Granted { running: true }, effects);
        Ok(())
    }

    /// The CPUs run, or have run. Whoever asks hears so from here on, and from
    /// the tombstone when this machine is no more: it does not end before that.
    fn run(&mut self, effects: Effects<'_>) {
        self.state = State::Running;
        effects.push(TargetEffect::Journal(IncomingStage::Running {
            complete: self.complete,
        }));
        if std::mem::take(&mut self.resumes) {
            self.go_on(effects);
        } else if !self.complete {
            self.tell_if_lost(effects);
        }
        if self.complete {
            effects.push(TargetEffect::AwaitSource);
        }
    }

    /// In post-copy the rest is on the source, and of no use there any more when
    /// the QEMU that needs it is gone.
    fn tell_if_lost(&self, effects: Effects<'_>) {
        if let Some(reason) = &self.gone {
            effects.push(TargetEffect::Send(TargetMessage::Failed {
                migration: self.migration,
                reason: reason.clone(),
            }));
            effects.push(TargetEffect::AwaitSource);
        }
    }

    fn on_activate_failed(
        &mut self,
        problem: Problem,
        effects: Effects<'_>,
    ) -> Result<(), Rejected> {
        if self.state != State::Activating {
            return Err(self.rejected("activate failed"));
        }
        self.discard(problem, true, effects);
        Ok(())
    }

    /// Before the CPUs could have run it is as good as a failed load. While they
    /// are being started the answer of `Activate` decides.
    fn on_qemu_gone(&mut self, problem: Problem, effects: Effects<'_>) {
        self.gone = Some(problem.clone());
        match self.state {
            State::Granting { .. } => self.discard(problem, true, effects),
            State::Waiting { run } => self.give_back(run, problem, effects),
            State::Running if !self.complete => self.tell_if_lost(effects),
            _ => self.on_trouble(problem, effects),
        }
    }

    /// A QEMU that cannot load ends by itself; in post-copy it may also wait for
    /// the source to come back, which is not a failure.
    fn on_load_failed(&mut self, problem: Problem, effects: Effects<'_>) {
        match self.state {
            State::Granting { early: true, .. } => self.discard(problem, true, effects),
            // Its end follows, and only then the domain knows what it has run.
            State::Waiting { .. } if self.recovered => {}
            State::Waiting { run } => self.give_back(run, problem, effects),
            _ => self.on_trouble(problem, effects),
        }
    }

    /// The device state will not come. After a restart it may have come, and the
    /// CPUs may have run: the domain knows, and says so when it is to run them.
    fn give_back(&mut self, run: bool, problem: Problem, effects: Effects<'_>) {
        if self.recovered {
            self.activate(run, effects);
        } else {
            self.discard(problem, true, effects);
        }
    }

    /// After the grant was taken, QEMU's own state says what the loss means: it
    /// has the device state already, or it ends because it never gets it.
    fn on_link_lost(&mut self, problem: Problem, effects: Effects<'_>) {
        self.resumes = false;
        self.on_trouble(problem, effects);
    }

    fn on_resume(&mut self, effects: Effects<'_>) -> Result<(), Rejected> {
        match self.state {
            State::Running => self.go_on(effects),
            State::Waiting { .. } | State::Activating => self.resumes = true,
            _ => return Err(self.rejected("resume")),
        }
        Ok(())
    }

    /// The source is there with the rest of the memory, where that is still
    /// needed.
    fn go_on(&mut self, effects: Effects<'_>) {
        if self.complete {
            effects.push(TargetEffect::Send(TargetMessage::Complete {
                migration: self.migration,
            }));
        } else if self.gone.is_some() {
            self.tell_if_lost(effects);
        } else {
            effects.push(TargetEffect::Recover);
        }
    }

    fn on_recovered(&mut self, effects: Effects<'_>) {
        effects.push(TargetEffect::Send(TargetMessage::ResumeReady {
            migration: self.migration,
        }));
    }

    /// Anything that ends it before the grant was taken.
    fn on_trouble(&mut self, problem: Problem, effects: Effects<'_>) {
        match self.state {
            State::Checking => {
                self.state = State::Done;
                effects.push(TargetEffect::Finish(TargetOutcome::Gone(problem)));
            }
            State::Starting | State::Receiving | State::Loaded => {
                self.discard(problem, false, effects);
            }
            _ => {}
        }
    }

    fn discard(&mut self, cause: Problem, hand_back: bool, effects: Effects<'_>) {
        self.state = State::Discarding { cause, hand_back };
        effects.push(TargetEffect::Discard(TombstoneVerdict::Refused));
    }

    fn on_discarded(&mut self, effects: Effects<'_>) -> Result<(), Rejected> {
        let State::Discarding { cause, hand_back } = &self.state else {
            return Err(self.rejected("discarded"));
        };
        let (migration, reason) = (self.migration, cause.clone());
        let message = if *hand_back {
            TargetMessage::HandBack {
                migration,
                epoch: self.epoch.next(),
                reason: reason.clone(),
            }
        } else {
            TargetMessage::Failed {
                migration,
                reason: reason.clone(),
            }
        };
        self.state = State::Done;
        effects.push(TargetEffect::Send(message));
        self.answer(Verdict::Refused, effects);
        effects.push(TargetEffect::Finish(TargetOutcome::Gone(reason)));
        Ok(())
    }

    /// A grant that has not arrived by now is refused for good, also where
    /// somebody asks before there can be one: what was said stands. Once it is
    /// over the tombstone answers, not this machine.
    fn on_query(&mut self, effects: Effects<'_>) {
        self.asked = true;
        match self.state {
            State::Running => self.answer(Verdict::Granted { running: true }, effects),
            State::Granting { .. } | State::Waiting { .. } | State::Activating => {
                effects.push(TargetEffect::Answer(Verdict::Granted { running: false }));
            }
            State::Checking | State::Starting | State::Receiving | State::Loaded => {
                let cause = Problem::new(codes::MIGRATION_FAILED, "the grant did not arrive");
                self.discard(cause, false, effects);
            }
            State::Discarding { .. } | State::Done => {}
        }
    }

    fn answer(&mut self, verdict: Verdict, effects: Effects<'_>) {
        if std::mem::take(&mut self.asked) {
            effects.push(TargetEffect::Answer(verdict));
        }
    }

    fn on_source_done(&mut self, effects: Effects<'_>) {
        if self.state == State::Running {
            self.source_done = true;
            self.finish_when_done(effects);
        }
    }

    /// The source has said its last word, and this side's is written.
    fn finish_when_done(&mut self, effects: Effects<'_>) {
        if self.source_done && self.written {
            self.state = State::Done;
            effects.push(TargetEffect::Finish(TargetOutcome::Received));
        }
    }

    fn rejected(&self, event: &str) -> Rejected {
        let state = match self.state {
            State::Checking => "checking",
            State::Starting => "starting",
            State::Receiving => "receiving",
            State::Loaded => "loaded",
            State::Granting { .. } => "granting",
            State::Waiting { .. } => "waiting",
            State::Activating => "activating",
            State::Running => "running",
            State::Discarding { .. } => "discarding",
            State::Done => "done",
        };
        Rejected {
            state,
            event: event.to_owned(),
        }
    }
}

/// How long a target keeps what it has received open for the source's last
/// word before it writes the tombstone and closes the record by itself.
pub const SOURCE_DONE_DEADLINE: Millis = Millis(60_000);
