//! A migration that comes: what the daemon's `Incoming` does with the effects of
//! a [`Target`](godwit_node_logic::handoff::Target).

use godwit_node_logic::domain::{Domain, Event};
use godwit_node_logic::handoff::{
    IncomingStage, QemuMigration, Target, TargetEffect, TargetEvent, TargetOutcome,
    TombstoneVerdict,
};
use godwit_shared::model::{Epoch, Problem, codes};
use godwit_shared::wire::peer::TargetMessage;
use godwit_shared::wire::uplink::Verdict;

use super::{gone, refused, unwritten};
use crate::link::{Side, ToSource, ToTarget};
use crate::mutant::Mutant;
use crate::qemu::{Phase, Qemu};
use crate::step::Step;
use crate::world::{
    Activation, DomainActor, Handoff, Host, InTask, Incoming, Move, NOW, Run, Way, id_of,
};

impl Step<'_> {
    /// A source asks for the first time.
    pub(crate) fn begin_incoming(&mut self, m: Move, source_epoch: Epoch) {
        let mut effects = Vec::new();
        let target = Target::begin(id_of(m), source_epoch, false, &mut effects);
        self.new_incoming(
            m,
            target,
            source_epoch.next(),
            IncomingStage::Prepared,
            false,
        );
        self.perform_target(m, effects);
    }

    /// A migration found in the journal, on the same boot of the host.
    pub(crate) fn recover_incoming(&mut self, m: Move, epoch: Epoch, stage: IncomingStage) {
        let mut effects = Vec::new();
        let target = Target::recover(id_of(m), epoch, stage, &mut effects);
        self.new_incoming(m, target, epoch, stage, true);
        self.perform_target(m, effects);
        let ended = self
            .world
            .target_of(m)
            .is_some_and(|n| self.ended_before(n));
        if ended {
            self.tell_target(m, TargetEvent::QemuGone(gone()));
        }
        if stage == (IncomingStage::Running { complete: true }) {
            self.tell_target(m, TargetEvent::SourceDone);
        }
    }

    fn new_incoming(
        &mut self,
        m: Move,
        target: Target,
        epoch: Epoch,
        stage: IncomingStage,
        has_domain: bool,
    ) {
        self.world.moves[m].edit().incoming = Some(Incoming {
            target,
            tasks: Vec::new(),
            starting: false,
            discard_waits: None,
            has_domain,
            open: [false; 2],
            epoch,
            stage,
            waits_for_source: false,
            broken: false,
            recovery_waits: false,
        });
    }

    /// Tells the target's machine something.
    pub(crate) fn tell_target(&mut self, m: Move, event: TargetEvent) {
        if self.mutant_answers(m, &event) {
            return;
        }
        let event = self.mutated_activation(event);
        let Some(incoming) = &mut self.world.moves[m].edit().incoming else {
            return;
        };
        let mut effects = Vec::new();
        let _ = incoming.target.step(event, &mut effects);
        self.perform_target(m, effects);
    }

    fn perform_target(&mut self, m: Move, effects: Vec<TargetEffect>) {
        for effect in effects {
            match effect {
                TargetEffect::Check => self.in_push(m, InTask::Check),
                TargetEffect::StartQemu => {
                    self.in_mut(m, |i| i.starting = true);
                    self.in_push(m, InTask::Start);
                }
                TargetEffect::Send(message) => self.send_to_source(m, &message),
                TargetEffect::Look => self.in_push(m, InTask::Look),
                TargetEffect::Recover => self.recover_qemu(m),
                TargetEffect::AwaitSource => self.in_mut(m, |i| i.waits_for_source = true),
                TargetEffect::Journal(stage) => self.journal_target(m, stage),
                TargetEffect::Activate { epoch, run } => {
                    self.in_push(
                        m,
                        InTask::Activate {
                            epoch,
                            run,
                            told: false,
                        },
                    );
                }
                TargetEffect::Discard(word) => self.discard(m, word),
                TargetEffect::Answer(verdict) => self.answer_questions(m, verdict),
                TargetEffect::Finish(outcome) => self.finish_target(m, &outcome),
            }
        }
    }

    pub(crate) fn in_mut(&mut self, m: Move, change: impl FnOnce(&mut Incoming)) {
        if let Some(incoming) = &mut self.world.moves[m].edit().incoming {
            change(incoming);
        }
    }

    pub(crate) fn in_push(&mut self, m: Move, task: InTask) {
        self.in_mut(m, |i| {
            if let Err(place) = i.tasks.binary_search(&task) {
                i.tasks.insert(place, task);
            }
        });
    }

    fn send_to_source(&mut self, m: Move, message: &TargetMessage) {
        if let Some(message) = ToSource::of(message) {
            if matches!(message, ToSource::HandBack(_)) {
                self.judge_word(m, Verdict::Refused);
            }
            self.world.moves[m].edit().link.tell_source(message);
        }
    }

    fn journal_target(&mut self, m: Move, stage: IncomingStage) {
        self.in_mut(m, |i| i.stage = stage);
        let grants = matches!(stage, IncomingStage::Granted { .. });
        if self.mutates(Mutant::RunBeforeJournal) && grants {
            self.run_early(m);
        }
        if self.world.moves[m]
            .incoming
            .as_ref()
            .is_some_and(|i| i.has_domain)
        {
            self.in_push(m, InTask::Journal(stage));
        }
    }

    fn discard(&mut self, m: Move, word: TombstoneVerdict) {
        let starting = self.world.moves[m]
            .incoming
            .as_ref()
            .is_some_and(|i| i.starting);
        if starting {
            return self.in_mut(m, |i| i.discard_waits = Some(word));
        }
        self.mutant_refuses_early(m);
        self.in_push(m, InTask::Bury(word));
    }

    fn answer_questions(&mut self, m: Move, verdict: Verdict) {
        let open = self.world.moves[m].incoming.as_ref().map(|i| i.open);
        self.in_mut(m, |i| i.open = [false; 2]);
        let ways = Way::ALL
            .into_iter()
            .filter(|way| open.is_some_and(|open| open[*way as usize]));
        for way in ways {
            self.put_answer(m, way, verdict);
        }
    }

    fn finish_target(&mut self, m: Move, outcome: &TargetOutcome) {
        let state = self.world.moves[m].edit();
        let ended = state.incoming.take();
        state.link.leave(Side::Target);
        let has_domain = ended.is_some_and(|ended| ended.has_domain);
        state.closing = *outcome == TargetOutcome::Received && has_domain;
    }

    /// The record of a guest that was received becomes the domain's own again.
    /// Tried until it does, or there is no domain any more.
    pub(crate) fn close(&mut self, m: Move) {
        let Some(n) = self.world.target_of(m) else {
            return;
        };
        self.keep_image(n);
        let cleared = self.record_handoff(n, m, None);
        self.world.moves[m].edit().closing = !cleared && self.world.hosts[n].domain.is_some();
    }

    /// A task goes on.
    pub(crate) fn in_task(&mut self, m: Move, task: InTask) {
        let Some(n) = self.world.target_of(m) else {
            return;
        };
        self.in_mut(m, |i| i.tasks.retain(|other| *other != task));
        match task {
            InTask::Check => self.check(n, m),
            InTask::Start => self.start_incoming(n, m),
            InTask::Promise => self.promise(n, m),
            InTask::EndExports => self.end_exports(n),
            InTask::Journal(stage) => self.write_mark(n, m, stage),
            InTask::Look => self.look_at_qemu(n, m),
            InTask::Pause => self.pause_pulling(n),
            InTask::ListenAgain => self.listen_again(n, m),
            InTask::Activate { epoch, run, .. } => self.activate(n, m, epoch, run),
            InTask::Activated(how) => {
                if how == Activation::Unclear {
                    self.judge_may_have_run();
                }
                let event = match how {
                    Activation::Done => TargetEvent::Activated,
                    Activation::NeverRan => TargetEvent::ActivateFailed(refused()),
                    Activation::Unclear => TargetEvent::ActivateUnclear(gone()),
                };
                self.tell_target(m, event);
            }
            InTask::Bury(word) => self.bury_first(m, word),
            InTask::Discard { .. } => self.throw_away(n, m),
            InTask::Discarded => self.tell_target(m, TargetEvent::Discarded),
        }
    }

    fn check(&mut self, n: Host, m: Move) {
        let has_process = self.world.hosts[n]
            .domain
            .as_ref()
            .is_some_and(|d| d.machine.has_process());
        let busy = has_process.then(|| Problem::new(codes::BUSY, ""));
        let blockers = busy.into_iter().chain(self.disk_blockers(n));
        self.tell_target(m, TargetEvent::Checked(blockers.collect()));
    }

    /// The supervisor's part: a domain, and in it a QEMU that waits.
    fn start_incoming(&mut self, n: Host, m: Move) {
        let Some(epoch) = self.world.moves[m]
            .incoming
            .as_ref()
            .map(|i| Epoch(i.epoch.0 - 1))
        else {
            return;
        };
        let new = self.world.hosts[n].domain.is_none();
        if new {
            self.world.hosts[n].edit().domain = Some(DomainActor {
                machine: Domain::new(NOW, epoch, false),
                handoff: None,
                run: Run::None,
                commands: Vec::new(),
            });
        }
        if self.become_incoming(n, m, epoch) {
            self.in_mut(m, |i| i.has_domain = true);
            return self.in_push(m, InTask::Promise);
        }
        if new {
            let host = self.world.hosts[n].edit();
            host.domain = None;
        }
        self.start_ended(m, TargetEvent::StartFailed(refused()));
    }

    fn become_incoming(&mut self, n: Host, m: Move, epoch: Epoch) -> bool {
        let has_process = |step: &Self| {
            step.world.hosts[n]
                .domain
                .as_ref()
                .is_some_and(|d| d.machine.has_process())
        };
        if has_process(self) {
            return false;
        }
        let stage = IncomingStage::Prepared;
        let promise = Handoff::Incoming {
            m,
            stage,
            epoch: epoch.next(),
            images: self.mirrors(),
        };
        let mut before = None;
        self.domain_mut(n, |d| {
            before = d.handoff.replace(promise);
            d.run = Run::ThisBoot;
        });
        let migration = id_of(m);
        let _ = self.tell_domain(n, Event::Receive { migration, epoch });
        let began = has_process(self);
        if !began {
            self.domain_mut(n, |d| (d.handoff, d.run) = (before, Run::None));
        }
        began
    }

    /// The promise is written through to the disk; then QEMU listens.
    fn promise(&mut self, n: Host, m: Move) {
        let Some(epoch) = self.world.moves[m].incoming.as_ref().map(|i| i.epoch) else {
            return;
        };
        let stage = IncomingStage::Prepared;
        let record = self.incoming_record(m, stage, epoch);
        let written = self.record_handoff(n, m, Some(record));
        let host = self.world.hosts[n].edit();
        if written {
            host.synced = host.disk.clone();
        }
        let waits = host
            .qemu
            .as_ref()
            .is_some_and(|q| q.phase == Phase::Waiting(m));
        if !written || !waits {
            return self.start_ended(m, TargetEvent::StartFailed(unwritten()));
        }
        self.opens_exports(n);
        self.qemu_mut(n, |q| q.phase = Phase::Listening(m));
        self.start_ended(m, TargetEvent::Started);
    }

    pub(crate) const fn incoming_record(
        &self,
        m: Move,
        stage: IncomingStage,
        epoch: Epoch,
    ) -> Handoff {
        Handoff::Incoming {
            m,
            stage,
            epoch,
            images: self.mirrors(),
        }
    }

    /// QEMU's start has ended one way or the other: a discard may go on.
    fn start_ended(&mut self, m: Move, event: TargetEvent) {
        self.in_mut(m, |i| i.starting = false);
        self.tell_target(m, event);
        let mut waits = None;
        self.in_mut(m, |i| waits = i.discard_waits.take());
        if let Some(word) = waits {
            self.discard(m, word);
        }
    }

    fn write_mark(&mut self, n: Host, m: Move, stage: IncomingStage) {
        // The word comes first, and is tried until it stands.
        let word = TombstoneVerdict::Granted;
        let runs = matches!(stage, IncomingStage::Running { .. });
        if runs && self.write_stone(m, word).is_none() && !self.mutates(Mutant::WordNotTried) {
            return self.in_push(m, InTask::Journal(stage));
        }
        let Some(epoch) = self.world.moves[m].incoming.as_ref().map(|i| i.epoch) else {
            return;
        };
        let record = self.incoming_record(m, stage, epoch);
        if !self.record_handoff(n, m, Some(record)) && !runs {
            return self.tell_target(m, TargetEvent::JournalFailed(unwritten()));
        }
        if matches!(stage, IncomingStage::Granted { .. }) {
            self.write_through(n);
            self.judge_taken(m);
        }
        self.tell_target(m, TargetEvent::Journaled(stage));
    }

    /// QEMU's migration changed, or was found so.
    pub(crate) fn target_qemu_changed(&mut self, m: Move, state: &QemuMigration) {
        match state {
            QemuMigration::Completed => self.tell_target(m, TargetEvent::Loaded),
            QemuMigration::PostcopyActive => {
                self.in_mut(m, |i| i.broken = false);
                self.tell_target(m, TargetEvent::Listening);
            }
            QemuMigration::PostcopyPaused => {
                self.in_mut(m, |i| i.broken = true);
                self.tell_target(m, TargetEvent::Listening);
                let waits = self.world.moves[m].incoming.as_ref();
                if waits.is_some_and(|i| i.recovery_waits) {
                    self.ask_to_listen_again(m);
                }
            }
            QemuMigration::Failed(_) => self.tell_target(m, TargetEvent::LoadFailed(refused())),
            _ => {}
        }
    }

    fn look_at_qemu(&mut self, n: Host, m: Move) {
        let state = self.world.hosts[n].qemu.as_ref().and_then(Qemu::look);
        if let Some(state) = state {
            self.target_qemu_changed(m, &state);
        }
    }

    /// Post-copy, over a new connection: QEMU has to notice that the old
    /// channels are gone, then it is made to wait for new ones.
    fn recover_qemu(&mut self, m: Move) {
        let broken = self.world.moves[m]
            .incoming
            .as_ref()
            .is_some_and(|i| i.broken);
        if broken {
            return self.ask_to_listen_again(m);
        }
        self.in_mut(m, |i| i.recovery_waits = true);
        self.in_push(m, InTask::Pause);
    }

    fn ask_to_listen_again(&mut self, m: Move) {
        self.in_mut(m, |i| (i.recovery_waits, i.broken) = (false, false));
        self.in_push(m, InTask::ListenAgain);
    }

    /// Where somebody has come anew meanwhile, it is for the next connection.
    fn listen_again(&mut self, n: Host, m: Move) {
        let waits = |q: &Qemu| matches!(q.phase, Phase::PullBroken(_) | Phase::PullListening(_));
        let listens = self.world.hosts[n].qemu.as_ref().is_some_and(waits);
        if listens {
            self.qemu_mut(n, |q| q.phase = Phase::PullListening(m));
            self.in_mut(m, |i| i.broken = true);
        }
        let state = self.world.moves[m].incoming.as_ref();
        let (anew, broken) = state.map_or((false, false), |i| (i.recovery_waits, i.broken));
        if anew {
            if broken {
                self.ask_to_listen_again(m);
            }
        } else if listens {
            self.tell_target(m, TargetEvent::Recovered);
        } else {
            self.world.moves[m].edit().link.leave(Side::Target);
        }
    }

    /// Tells the domain, whose answer finds the task told.
    fn activate(&mut self, n: Host, m: Move, epoch: Epoch, run: bool) {
        if self.world.hosts[n].domain.is_none() {
            return self.in_push(m, InTask::Activated(Activation::Unclear));
        }
        let told = InTask::Activate {
            epoch,
            run,
            told: true,
        };
        self.in_push(m, told);
        let Err(problem) = self.tell_domain(n, Event::Activate { epoch, run }) else {
            return;
        };
        self.in_mut(m, |i| i.tasks.retain(|task| *task != told));
        let role = self.world.hosts[n]
            .domain
            .as_ref()
            .map(|d| d.machine.role());
        let incoming = matches!(role, Some(godwit_node_logic::domain::Role::Incoming { .. }));
        self.in_push(
            m,
            match incoming {
                true if problem.code == codes::BUSY => InTask::Activate {
                    epoch,
                    run,
                    told: false,
                },
                true => InTask::Activated(Activation::NeverRan),
                false => InTask::Activated(Activation::Unclear),
            },
        );
    }

    /// The word comes first: nothing is removed before it stands. Tried again
    /// until it does.
    fn bury_first(&mut self, m: Move, word: TombstoneVerdict) {
        if self.write_stone(m, word).is_none() {
            return self.in_push(m, InTask::Bury(word));
        }
        let mut has_domain = false;
        self.in_mut(m, |i| has_domain = std::mem::take(&mut i.has_domain));
        self.in_push(
            m,
            match has_domain {
                true => InTask::Discard { told: false },
                false => InTask::Discarded,
            },
        );
    }

    fn throw_away(&mut self, n: Host, m: Move) {
        if self.world.hosts[n].domain.is_none() {
            return self.in_push(m, InTask::Discarded);
        }
        self.in_push(m, InTask::Discard { told: true });
        if self.tell_domain(n, Event::Discard).is_err() {
            self.in_mut(m, |i| {
                i.tasks
                    .retain(|task| *task != InTask::Discard { told: true });
            });
            self.in_push(m, InTask::Discard { told: false });
        }
    }

    /// A message of the source reaches the target's actor.
    pub(crate) fn target_reads(&mut self, m: Move, message: ToTarget) {
        let event = match message {
            ToTarget::Grant { epoch, run, early } => TargetEvent::Grant {
                epoch: Epoch(epoch),
                run,
                early,
            },
            ToTarget::Cancel => TargetEvent::Cancel(Problem::new(codes::MIGRATION_CANCELLED, "")),
            ToTarget::Retired => TargetEvent::SourceDone,
            ToTarget::TakenBack | ToTarget::Resume | ToTarget::Prepare(_) => return,
        };
        self.tell_target(m, event);
    }

    /// The source's last word has not come for so long that it is not waited for.
    pub(crate) fn enough(&mut self, m: Move) {
        self.in_mut(m, |i| i.waits_for_source = false);
        self.tell_target(m, TargetEvent::SourceDone);
    }
}
