//! A migration that leaves: what the daemon's `Outgoing` does with the effects
//! of a [`Source`](godwit_node_logic::handoff::Source).

use godwit_node_logic::domain::Event;
use godwit_node_logic::handoff::{
    OutgoingStage, Plan, QemuMigration, Source, SourceEffect, SourceEvent, Terms, Timer,
};
use godwit_shared::model::{DoubtDecision, Epoch, MigrationPhase, Problem, codes};
use godwit_shared::wire::peer::SourceMessage;

use super::{gone, lost, refused, timers, unwritten};
use crate::disk::Watched;
use crate::link::{Link, Side, ToSource, ToTarget};
use crate::mutant::Mutant;
use crate::qemu::{News, Phase, Qemu};
use crate::step::Step;
use crate::world::{Handoff, Host, Move, OutTask, Outgoing, StayStep, VM, Way, id_of};

impl Step<'_> {
    /// The actor of a migration that begins, or was found in the journal.
    pub(crate) fn new_outgoing(
        &mut self,
        m: Move,
        epoch: Epoch,
        (run, plan, images): (bool, Plan, bool),
        found: Option<OutgoingStage>,
    ) {
        let mut effects = Vec::new();
        let found = found.map(|stage| self.mutated_stage(stage));
        let terms = Terms {
            migration: id_of(m),
            vm: VM,
            epoch,
            run,
            plan,
        };
        let source = match found {
            None => Source::begin(terms, &mut effects),
            Some(stage) => Source::recover(terms, stage, &mut effects),
        };
        let tasks = match found {
            None => vec![OutTask::Connect],
            Some(_) => Vec::new(),
        };
        let state = self.world.moves[m].edit();
        state.end = None;
        state.outgoing = Some(Outgoing {
            source,
            tasks,
            timers: 0,
            phase: MigrationPhase::Queued,
            alarmed: false,
            reconnecting: false,
            run,
            plan,
            epoch,
            told_epoch: epoch,
            watched: Watched::Nothing,
            images,
            resolved: false,
        });
        self.perform_source(m, effects);
        let ended = self
            .world
            .source_of(m)
            .is_some_and(|n| self.ended_before(n));
        if ended {
            self.tell_source(m, SourceEvent::QemuGone(gone()));
        }
    }

    /// Tells the source's machine something.
    pub(crate) fn tell_source(&mut self, m: Move, event: SourceEvent) {
        let event = self.mutated_event(m, event);
        let Some(outgoing) = &mut self.world.moves[m].edit().outgoing else {
            return;
        };
        let mut effects = Vec::new();
        // One out of turn is logged, and changes nothing.
        let _ = outgoing.source.step(event, &mut effects);
        self.perform_source(m, effects);
        self.mutant_has_it_complete(m);
    }

    fn perform_source(&mut self, m: Move, effects: Vec<SourceEffect>) {
        for effect in effects {
            match effect {
                SourceEffect::Send(message) => self.send_to_target(m, &message),
                SourceEffect::StartMigration => {
                    self.mutant_finishes_mirror(m);
                    self.out_push(m, OutTask::Start);
                }
                SourceEffect::StartPostcopy => {
                    let stopped = self.mutates(Mutant::PostcopyUnstopped);
                    self.out_push(m, OutTask::StopForPostcopy { stopped });
                }
                SourceEffect::StopGuest => self.out_push(m, OutTask::Stop),
                SourceEffect::ContinueMigration => self.out_push(m, OutTask::Continue),
                SourceEffect::Reconnect => self.reconnect(m),
                SourceEffect::ResumeMigration => self.out_push(m, OutTask::Resume),
                SourceEffect::GuestLost(_) => self.world.moves[m].edit().lost = true,
                SourceEffect::StartMirrors => {
                    self.out_mut(m, |o| o.watched = Watched::Copying);
                    self.out_push(m, OutTask::StartMirror);
                }
                SourceEffect::FinishMirrors => self.want_mirror_finished(m),
                // QEMU stops the guest at some time anyway.
                SourceEffect::HurryUp | SourceEffect::Stalled => {}
                SourceEffect::CancelMigration => self.out_push(m, OutTask::Cancel),
                SourceEffect::Journal(stage) => self.journal_source(m, stage),
                SourceEffect::MarkInHandoff => self.out_push(m, OutTask::Mark),
                // It may ask for as long as it is in doubt.
                SourceEffect::Ask => {}
                SourceEffect::Stay { epoch } => self.stay(m, epoch),
                SourceEffect::Retire { epoch } => {
                    self.out_mut(m, |o| o.told_epoch = epoch);
                    self.out_push(m, OutTask::Retire { epoch, told: false });
                }
                SourceEffect::Arm(timer, _) => {
                    self.out_mut(m, |o| o.timers = timers::with(o.timers, timer));
                }
                SourceEffect::Phase(phase) => self.out_mut(m, |o| {
                    if !phase.is_final() {
                        o.phase = phase;
                    }
                    o.timers = timers::relevant(o.timers, phase);
                }),
                SourceEffect::Alarm(_) => self.out_mut(m, |o| o.alarmed = true),
                SourceEffect::Finish(outcome) => {
                    let state = self.world.moves[m].edit();
                    let ended = state.outgoing.take();
                    let epoch = ended.map_or(Epoch(0), |o| o.told_epoch);
                    state.answers = [None; 2];
                    state.end = Some(((&outcome).into(), epoch));
                    state.link.leave(Side::Source);
                }
            }
        }
    }

    pub(crate) fn out_mut(&mut self, m: Move, change: impl FnOnce(&mut Outgoing)) {
        if let Some(outgoing) = &mut self.world.moves[m].edit().outgoing {
            change(outgoing);
        }
    }

    pub(crate) fn out_push(&mut self, m: Move, task: OutTask) {
        self.out_mut(m, |o| {
            if let Err(place) = o.tasks.binary_search(&task) {
                o.tasks.insert(place, task);
            }
        });
    }

    pub(crate) fn send_to_target(&mut self, m: Move, message: &SourceMessage) {
        if let Some(message) = ToTarget::of(message) {
            if matches!(message, ToTarget::Grant { .. }) {
                self.judge_grant(m);
            }
            self.world.moves[m].edit().link.tell_target(message);
        }
    }

    fn journal_source(&mut self, m: Move, stage: OutgoingStage) {
        let grants = matches!(stage, OutgoingStage::Granted | OutgoingStage::GrantedEarly);
        if self.mutates(Mutant::GrantBeforeJournal) && grants {
            self.send_grant_early(m);
        }
        self.out_push(m, OutTask::Journal(stage));
    }

    fn stay(&mut self, m: Move, epoch: Epoch) {
        let epoch = self.mutated_epoch(m, epoch);
        self.out_mut(m, |o| o.told_epoch = epoch);
        let step = match self.world.moves[m].outgoing.as_ref().is_some_and(|o| o.run) {
            true => StayStep::Run,
            false => self.after_run(),
        };
        self.out_mut(m, |o| o.watched = Watched::Nothing);
        self.out_push(
            m,
            OutTask::Stay {
                epoch,
                step,
                failed: false,
            },
        );
    }

    /// A task goes on.
    pub(crate) fn out_task(&mut self, m: Move, task: OutTask) {
        let Some(n) = self.world.source_of(m) else {
            return;
        };
        self.out_mut(m, |o| o.tasks.retain(|other| *other != task));
        match task {
            OutTask::Connect => self.connect(m),
            OutTask::StartMirror => self.start_mirror(n, m),
            OutTask::FinishMirror => self.finish_mirror(n, m),
            OutTask::LetGo => self.let_go_of_mirror(n, m),
            OutTask::Released => self.released(m),
            OutTask::Start => self.start_migration(n, m),
            OutTask::StopForPostcopy { stopped } => self.stop_for_postcopy(n, m, stopped),
            OutTask::StartPostcopy => self.start_postcopy(n, m),
            OutTask::Stop => self.stop_guest(n, m),
            OutTask::Continue => self.continue_migration(n, m),
            OutTask::Reconnect => self.look_before_reconnecting(n, m),
            OutTask::Redial => self.redial(m),
            OutTask::Resume => self.resume_migration(n, m),
            OutTask::Cancel => self.cancel_migration(n, m),
            OutTask::Journal(stage) => self.write_stage(n, m, stage),
            OutTask::Mark => drop(self.tell_domain(n, Event::Granted)),
            OutTask::Stay {
                epoch,
                step,
                failed,
            } => self.stay_step(n, m, epoch, step, failed),
            OutTask::Retire { epoch, .. } => self.retire(n, m, epoch),
            OutTask::Retired => self.tell_source(m, SourceEvent::Retired),
        }
    }

    /// Dials, and says the first message.
    fn connect(&mut self, m: Move) {
        let up = self
            .world
            .target_of(m)
            .is_some_and(|n| self.world.hosts[n].up);
        let epoch = self.world.moves[m].outgoing.as_ref().map(|o| o.epoch.0);
        let Some(epoch) = epoch.filter(|_| up) else {
            return self.tell_source(m, SourceEvent::LinkLost(lost()));
        };
        let link = &mut self.world.moves[m].edit().link;
        *link = Link::open();
        link.tell_target(ToTarget::Prepare(epoch));
    }

    fn start_migration(&mut self, n: Host, m: Move) {
        let qemu = self.world.hosts[n].qemu.as_ref();
        let free = qemu.is_some_and(|q| !q.migrating());
        if !free {
            return self.tell_source(m, SourceEvent::CommandFailed(refused()));
        }
        self.qemu_mut(n, |q| {
            (q.phase, q.resumes) = (Phase::Setup(m), false);
            (q.passed, q.postcopy) = (false, false);
        });
        self.world.moves[m].edit().link.carried = true;
    }

    /// `stop`: the guest was stopped by its daemon, not by QEMU.
    fn stop_cpus(&mut self, n: Host) -> bool {
        let Some(qemu) = &self.world.hosts[n].qemu else {
            return false;
        };
        if qemu.running {
            self.qemu_mut(n, |q| q.running = false);
            self.qemu_says(n, News::Stopped);
        }
        true
    }

    /// Stops the guest, and only when QEMU still sends memory then lets it
    /// switch to post-copy.
    fn stop_for_postcopy(&mut self, n: Host, m: Move, stopped: bool) {
        if !stopped {
            return match self.stop_cpus(n) {
                true => self.out_push(m, OutTask::StopForPostcopy { stopped: true }),
                false => self.tell_source(m, SourceEvent::CommandFailed(gone())),
            };
        }
        let status = self.world.hosts[n].qemu.as_ref().map(Qemu::look);
        match status {
            None => self.tell_source(m, SourceEvent::CommandFailed(gone())),
            Some(Some(QemuMigration::Active)) => {
                self.out_push(m, OutTask::StartPostcopy);
                self.tell_source(m, SourceEvent::StoppedForPostcopy);
            }
            Some(_) => {}
        }
    }

    fn start_postcopy(&mut self, n: Host, m: Move) {
        let sends = |q: &Qemu| q.phase == Phase::Active(m);
        if self.world.hosts[n].qemu.as_ref().is_some_and(sends) {
            self.qemu_mut(n, |q| q.postcopy = true);
        } else {
            self.tell_source(m, SourceEvent::CommandFailed(refused()));
        }
    }

    fn stop_guest(&mut self, n: Host, m: Move) {
        if !self.stop_cpus(n) {
            self.tell_source(m, SourceEvent::CommandFailed(gone()));
        }
    }

    fn continue_migration(&mut self, n: Host, m: Move) {
        let waits = |q: &Qemu| q.phase == Phase::PreSwitchover(m);
        if self.world.hosts[n].qemu.as_ref().is_some_and(waits) {
            self.qemu_mut(n, |q| {
                q.phase = match q.postcopy {
                    true => Phase::Package { m, arrived: false },
                    false => Phase::Device { m, acked: false },
                };
            });
        } else {
            self.tell_source(m, SourceEvent::CommandFailed(refused()));
        }
    }

    /// What is left of the old connection goes; the attempt is one at a time.
    fn reconnect(&mut self, m: Move) {
        let busy = self.world.moves[m]
            .outgoing
            .as_ref()
            .is_none_or(|o| o.reconnecting);
        if busy {
            return;
        }
        let link = &mut self.world.moves[m].edit().link;
        link.cut();
        link.leave(Side::Source);
        self.out_mut(m, |o| o.reconnecting = true);
        self.out_push(m, OutTask::Reconnect);
    }

    /// A post-copy that still believes in its channels is told that they are
    /// gone; one that is paused may be connected anew.
    fn look_before_reconnecting(&mut self, n: Host, m: Move) {
        let status = self.world.hosts[n].qemu.as_ref().and_then(Qemu::look);
        match status {
            Some(QemuMigration::PostcopyPaused) => return self.out_push(m, OutTask::Redial),
            Some(QemuMigration::PostcopyActive) => self.pause_pulling(n),
            _ => {}
        }
        self.out_mut(m, |o| o.reconnecting = false);
        if let Some(other) = status.filter(|s| *s != QemuMigration::PostcopyActive) {
            self.tell_source(m, SourceEvent::Qemu(other));
        }
    }

    fn redial(&mut self, m: Move) {
        let up = self
            .world
            .target_of(m)
            .is_some_and(|n| self.world.hosts[n].up);
        if !up {
            self.out_mut(m, |o| o.reconnecting = false);
            return self.tell_source(m, SourceEvent::LinkLost(lost()));
        }
        let link = &mut self.world.moves[m].edit().link;
        *link = Link::open();
        link.tell_target(ToTarget::Resume);
    }

    fn resume_migration(&mut self, n: Host, m: Move) {
        let paused = |q: &Qemu| q.phase == Phase::PullPaused(m);
        if self.world.hosts[n].qemu.as_ref().is_some_and(paused) {
            self.qemu_mut(n, |q| q.phase = Phase::PullResuming(m));
            self.world.moves[m].edit().link.carried = true;
        } else {
            self.tell_source(m, SourceEvent::CommandFailed(refused()));
        }
    }

    /// Cancels, and looks where the migration stands then. One that still
    /// connects is left alone.
    fn cancel_migration(&mut self, n: Host, m: Move) {
        let Some(qemu) = &self.world.hosts[n].qemu else {
            return;
        };
        if matches!(qemu.phase, Phase::Setup(_)) {
            return self.tell_source(m, SourceEvent::Qemu(QemuMigration::Connecting));
        }
        self.cancel_in_qemu(n);
        let goes_on = [QemuMigration::Active, QemuMigration::PreSwitchover];
        let status = self.world.hosts[n].qemu.as_ref().and_then(Qemu::look);
        if let Some(ended) = status.filter(|s| !goes_on.contains(s)) {
            self.tell_source(m, SourceEvent::Qemu(ended));
        }
    }

    fn write_stage(&mut self, n: Host, m: Move, stage: OutgoingStage) {
        let Some(outgoing) = &self.world.moves[m].outgoing else {
            return;
        };
        let epoch = outgoing.epoch;
        let record = outgoing_record(m, stage, outgoing);
        if !self.record_handoff(n, m, Some(record)) {
            return self.tell_source(m, SourceEvent::JournalFailed(unwritten()));
        }
        match stage {
            OutgoingStage::Granted | OutgoingStage::GrantedEarly => {
                let target = self.world.target_of(m).unwrap_or(n);
                self.judge_right(epoch.next(), target);
                self.mutant_gives_disk_up(n, epoch);
            }
            OutgoingStage::TakenBack => self.judge_right(epoch.next().next(), n),
            OutgoingStage::Sending => {}
        }
        self.tell_source(m, SourceEvent::Journaled(stage));
    }

    /// Every part is done, whatever became of the one before.
    fn stay_step(&mut self, n: Host, m: Move, epoch: Epoch, step: StayStep, failed: bool) {
        match step {
            StayStep::Run => {
                let failed = !self.make_sure_it_runs(n, epoch);
                self.out_push(
                    m,
                    OutTask::Stay {
                        epoch,
                        step: self.after_run(),
                        failed,
                    },
                );
            }
            StayStep::Abort => {
                let failed = !self.abort_mirror(n) || failed;
                let step = StayStep::LetGo;
                self.out_push(
                    m,
                    OutTask::Stay {
                        epoch,
                        step,
                        failed,
                    },
                );
            }
            StayStep::LetGo => {
                // Its answer finds the task told.
                self.out_push(
                    m,
                    OutTask::Stay {
                        epoch,
                        step: StayStep::Told,
                        failed,
                    },
                );
                if self.tell_domain(n, Event::Stay { epoch }).is_err() {
                    let told = OutTask::Stay {
                        epoch,
                        step: StayStep::Told,
                        failed,
                    };
                    self.out_mut(m, |o| o.tasks.retain(|other| *other != told));
                    self.out_push(
                        m,
                        OutTask::Stay {
                            epoch,
                            step: StayStep::Clear,
                            failed: true,
                        },
                    );
                }
            }
            StayStep::Told => {}
            StayStep::Clear => {
                let gone = self.world.hosts[n].domain.is_none();
                if !self.record_handoff(n, m, None) && !gone {
                    return self.out_push(
                        m,
                        OutTask::Stay {
                            epoch,
                            step,
                            failed,
                        },
                    );
                }
                let problem = Problem::new(codes::INTERNAL, "");
                self.world.judge.stuck |= failed;
                self.tell_source(
                    m,
                    match failed || gone {
                        false => SourceEvent::Stayed,
                        true => SourceEvent::StayFailed(problem),
                    },
                );
            }
        }
    }

    /// Whether the CPUs run in the end.
    fn make_sure_it_runs(&mut self, n: Host, epoch: Epoch) -> bool {
        if self.start_cpus(n, epoch) {
            self.qemu_says(n, News::Resumed);
        }
        let runs = |q: &Qemu| !q.refuses();
        self.world.hosts[n].qemu.as_ref().is_some_and(runs) && self.world.hosts[n].domain.is_some()
    }

    /// QEMU does not go on, for as long as that is tried.
    pub(crate) fn refuse_stay(&mut self, m: Move, task: OutTask) {
        if let OutTask::Stay {
            epoch,
            step: StayStep::Run,
            ..
        } = task
        {
            self.out_mut(m, |o| o.tasks.retain(|other| *other != task));
            self.out_push(
                m,
                OutTask::Stay {
                    epoch,
                    step: self.after_run(),
                    failed: true,
                },
            );
        }
    }

    /// What a stay does once the CPUs run.
    const fn after_run(&self) -> StayStep {
        match self.mirrors() {
            true => StayStep::Abort,
            false => StayStep::LetGo,
        }
    }

    /// Tried again until it is done. An actor that is gone has nothing to end.
    fn retire(&mut self, n: Host, m: Move, epoch: Epoch) {
        if self.world.hosts[n].domain.is_none() {
            return self.out_push(m, OutTask::Retired);
        }
        if !self.images_are_kept(n, m) {
            return self.out_push(m, OutTask::Retire { epoch, told: false });
        }
        self.out_push(m, OutTask::Retire { epoch, told: true });
        if self.tell_domain(n, Event::Retire { epoch }).is_err() {
            self.out_mut(m, |o| {
                o.tasks
                    .retain(|t| *t != OutTask::Retire { epoch, told: true });
            });
            self.out_push(m, OutTask::Retire { epoch, told: false });
        }
    }

    /// On an operator's word nobody knows whether the target has the disks: the
    /// images here stay. Whether that is written, where it has to be.
    fn images_are_kept(&mut self, n: Host, m: Move) -> bool {
        let outgoing = self.world.moves[m].outgoing.as_ref();
        if outgoing.is_none_or(|o| !o.resolved || !o.images) {
            return true;
        }
        let mut record = self.world.hosts[n].domain.as_ref().and_then(|d| d.handoff);
        if let Some(Handoff::Outgoing { images, .. }) = &mut record {
            *images = false;
        }
        let written = self.record_handoff(n, m, record);
        if written {
            self.out_mut(m, |o| o.images = false);
            self.keep_image_for_good(n);
        }
        written
    }

    /// A deadline passes. A cancel that QEMU has not taken by then is given up.
    pub(crate) fn fire(&mut self, m: Move, timer: Timer) {
        self.out_mut(m, |o| {
            o.timers = timers::without(o.timers, timer);
            if timer == Timer::Cancel {
                o.tasks.retain(|task| *task != OutTask::Cancel);
            }
        });
        self.tell_source(m, SourceEvent::Timeout(timer));
    }

    /// An operator ends the doubt.
    pub(crate) fn resolve(&mut self, m: Move, here: bool) {
        self.world.judge.resolved = true;
        let decision = match here {
            true => DoubtDecision::RunOnSource,
            false => DoubtDecision::EndOnSource,
        };
        self.out_mut(m, |o| o.resolved = true);
        self.tell_source(m, SourceEvent::Resolve(decision));
    }

    /// An operator calls it off.
    pub(crate) fn cancel(&mut self, m: Move) {
        let too_late = self.world.moves[m]
            .outgoing
            .as_ref()
            .is_none_or(|o| o.source.is_granted() || o.phase == MigrationPhase::Handoff);
        if !too_late {
            self.tell_source(m, SourceEvent::Cancel);
        }
    }

    /// An answer to a question reaches the source.
    pub(crate) fn hear(&mut self, m: Move, way: Way, last: bool) {
        let slot = &mut self.world.moves[m].edit().answers[way as usize];
        let Some(word) = *slot else { return };
        if last {
            *slot = None;
        }
        self.tell_source(m, SourceEvent::Verdict(word));
    }

    /// A message of the target reaches the source.
    pub(crate) fn source_reads(&mut self, m: Move, message: ToSource) {
        let word = |code| Problem::new(code, "");
        self.tell_source(
            m,
            match message {
                ToSource::Prepared => SourceEvent::Prepared,
                ToSource::Blocked => SourceEvent::Blocked(Vec::new()),
                ToSource::Loaded => SourceEvent::Loaded,
                ToSource::Taken(epoch) => SourceEvent::Taken(Epoch(epoch)),
                ToSource::ResumeReady => SourceEvent::ResumeReady,
                ToSource::Complete => SourceEvent::Complete,
                ToSource::Failed => SourceEvent::TargetFailed(word(codes::QEMU_GONE)),
                ToSource::Activated(epoch) => SourceEvent::Activated(Epoch(epoch)),
                ToSource::HandBack(epoch) => SourceEvent::HandBack {
                    epoch: Epoch(epoch),
                    reason: word(codes::MIGRATION_FAILED),
                },
            },
        );
    }
}

const fn outgoing_record(m: Move, stage: OutgoingStage, of: &Outgoing) -> Handoff {
    Handoff::Outgoing {
        m,
        stage,
        epoch: of.epoch,
        run: of.run,
        plan: of.plan,
        images: of.images,
    }
}
