//! The actor of the domain: the production [`Domain`], its journal and its
//! commands to QEMU.
//!
//! One shortcut: QEMU's start and its greeting are one step. A daemon that is
//! killed in between finds a QEMU that it knows by its socket, which is what it
//! finds after the step, too. A second: the state's age is not written.
//!
//! [`Domain`]: godwit_node_logic::domain::Domain

use godwit_node_logic::domain::{
    Action as Command, Domain, Effect, Event, Happening, Request, Role, Timer,
};
use godwit_node_logic::handoff::{
    HandoffRecord, IncomingRecord, IncomingStage, OutgoingRecord, QemuMigration, SourceEvent,
    TargetEvent,
};
use godwit_shared::model::{Bytes, Epoch, Problem, codes};
use godwit_shared::wire::uplink::Member;

use super::{gone, refused, unwritten};
use crate::qemu::{News, Phase, Qemu};
use crate::step::Step;
use crate::world::{
    Activation, DomainActor, Handoff, Host, InTask, MOVES, NOW, OutTask, Record, Run, StayStep,
    id_of,
};

impl Step<'_> {
    /// Tells the domain's machine something. One that is gone hears nothing.
    pub(crate) fn tell_domain(&mut self, n: Host, event: Event) -> Result<(), Problem> {
        let Some(actor) = &mut self.world.hosts[n].edit().domain else {
            return Err(gone());
        };
        let mut effects = Vec::new();
        let result = actor.machine.step(NOW, event, &mut effects);
        self.perform_domain(n, effects);
        result.map_err(|rejected| rejected.0)
    }

    fn perform_domain(&mut self, n: Host, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Journal => {
                    if !self.write_record(n) {
                        let _ = self.tell_domain(n, Event::JournalFailed(unwritten()));
                        return;
                    }
                }
                Effect::Written(request) => drop(self.tell_domain(n, Event::Written(request))),
                Effect::Spawn => self.spawn(n),
                Effect::Do(command) => self.domain_mut(n, |d| d.commands.push(command)),
                Effect::Resync => self.look(n),
                Effect::Kill => self.world.hosts[n].edit().qemu = None,
                Effect::CleanUp => self.clean_up(n),
                Effect::Answer(request, outcome) => self.answer(n, request, outcome.err().as_ref()),
                Effect::Forget(request) => self.forget(n, request),
                // Deadlines of QEMU's: see `fall_silent`.
                Effect::Arm(..) | Effect::Disarm(_) => {}
                Effect::AskAgent(_) => {}
            }
        }
    }

    pub(crate) fn domain_mut(&mut self, n: Host, change: impl FnOnce(&mut DomainActor)) {
        if let Some(domain) = &mut self.world.hosts[n].edit().domain {
            change(domain);
        }
    }

    /// Writes the record as it is in memory. Whether it went through.
    pub(crate) fn write_record(&mut self, n: Host) -> bool {
        if !self.write_goes_through() {
            return false;
        }
        let host = self.world.hosts[n].edit();
        if let Some(domain) = &host.domain {
            host.disk.record = Some(Record {
                saved: domain.machine.saved(),
                run: domain.run,
                handoff: domain.handoff,
            });
        }
        true
    }

    /// Puts the migration's record into the domain's, or takes it out.
    pub(crate) fn record_handoff(&mut self, n: Host, m: usize, record: Option<Handoff>) -> bool {
        let Some(domain) = &mut self.world.hosts[n].edit().domain else {
            return false;
        };
        let ours = domain.handoff.is_none_or(|before| before.m() == m);
        let ends = match record {
            None => true,
            Some(Handoff::Incoming { stage, .. }) => matches!(stage, IncomingStage::Running { .. }),
            Some(Handoff::Outgoing { .. }) => false,
        };
        if ends && !ours {
            return true;
        }
        let before = std::mem::replace(&mut domain.handoff, record);
        let written = self.write_record(n);
        if !written {
            self.domain_mut(n, |d| d.handoff = before);
        }
        written
    }

    fn spawn(&mut self, n: Host) {
        let handoff = self.world.hosts[n].domain.as_ref().and_then(|d| d.handoff);
        if let Some(handoff) = handoff
            && !self.make_image(n, handoff.m())
        {
            return drop(self.tell_domain(n, Event::SpawnFailed(refused())));
        }
        let host = self.world.hosts[n].edit();
        host.qemu = handoff.map(|handoff| Qemu::incoming(handoff.m()));
        let _ = self.tell_domain(n, Event::Spawned);
        let _ = self.tell_domain(n, Event::Ready);
    }

    /// Reads how QEMU stands, after everything that it has said before.
    fn look(&mut self, n: Host) {
        if self.world.hosts[n].news.is_empty() {
            self.looked(n);
        } else {
            self.qemu_says(n, News::Look);
        }
    }

    fn looked(&mut self, n: Host) {
        let status = self.world.hosts[n]
            .qemu
            .as_ref()
            .map(|q| (q.status(), q.migrating()));
        if let Some((run, migrating)) = status {
            let _ = self.tell_domain(n, Event::Status { run, migrating });
        }
    }

    /// QEMU is gone: those who follow it hear so.
    fn clean_up(&mut self, n: Host) {
        self.domain_mut(n, |d| {
            d.run = Run::None;
            d.commands.clear();
        });
        for m in 0..MOVES {
            self.signal_source(n, m, SourceEvent::QemuGone(gone()));
            self.signal_target(n, m, TargetEvent::QemuGone(gone()));
        }
    }

    fn signal_source(&mut self, n: Host, m: usize, event: SourceEvent) {
        if self.world.source_of(m) == Some(n) {
            self.tell_source(m, event);
        }
    }

    /// A target follows its QEMU from its start on.
    fn signal_target(&mut self, n: Host, m: usize, event: TargetEvent) {
        if self.world.target_of(m) == Some(n) && self.follows(m) {
            self.tell_target(m, event);
        }
    }

    /// The domain has no QEMU, and its end came before it was followed.
    pub(crate) fn ended_before(&self, n: Host) -> bool {
        let domain = self.world.hosts[n].domain.as_ref();
        domain.is_some_and(|d| !d.machine.has_process())
    }

    fn follows(&self, m: usize) -> bool {
        let incoming = self.world.moves[m].incoming.as_ref();
        incoming.is_some_and(|i| i.has_domain || i.starting)
    }

    /// Removes every file of the domain, and the actor.
    fn forget(&mut self, n: Host, request: Request) {
        let handoff = self.world.hosts[n].domain.as_ref().and_then(|d| d.handoff);
        self.remove_image(n, request, handoff);
        let host = self.world.hosts[n].edit();
        host.domain = None;
        host.disk.record = None;
        // What was asked of this QEMU is not asked of a later one.
        let leaving = (0..MOVES).filter(|m| self.world.source_of(*m) == Some(n));
        for m in leaving.collect::<Vec<_>>() {
            self.out_mut(m, |o| o.tasks.retain(|task| !task.is_command()));
        }
        self.answer(n, request, None);
    }

    /// Whoever waits for that request hears the answer.
    fn answer(&mut self, n: Host, request: Request, problem: Option<&Problem>) {
        match request {
            Request::Stay => self.answer_stay(n, problem),
            Request::Retire => self.answer_retire(n, problem.is_none()),
            Request::Activate => self.answer_activate(n, problem),
            Request::Discard => self.answer_discard(n, problem.is_none()),
            Request::Receive | Request::Command(_) => {}
        }
    }

    /// What could not be written is tried again.
    fn answer_stay(&mut self, n: Host, problem: Option<&Problem>) {
        let again = problem.is_some_and(|p| p.code == codes::HOST_IO);
        self.swap_out_task(n, |task| match task {
            OutTask::Stay {
                epoch,
                step: StayStep::Told,
                failed,
            } => Some(OutTask::Stay {
                epoch,
                step: if again {
                    StayStep::LetGo
                } else {
                    StayStep::Clear
                },
                failed: failed || (problem.is_some() && !again),
            }),
            _ => None,
        });
    }

    fn answer_retire(&mut self, n: Host, done: bool) {
        self.swap_out_task(n, |task| match task {
            OutTask::Retire { told: true, .. } if done => Some(OutTask::Retired),
            OutTask::Retire { told: true, epoch } => Some(OutTask::Retire { told: false, epoch }),
            _ => None,
        });
    }

    fn answer_activate(&mut self, n: Host, problem: Option<&Problem>) {
        let role = self.world.hosts[n]
            .domain
            .as_ref()
            .map(|d| d.machine.role());
        let incoming = matches!(role, Some(Role::Incoming { .. }));
        self.swap_in_task(n, |task| match task {
            InTask::Activate {
                epoch,
                run,
                told: true,
            } => Some(match problem {
                None => InTask::Activated(Activation::Done),
                Some(p) if incoming && p.code == codes::BUSY => InTask::Activate {
                    epoch,
                    run,
                    told: false,
                },
                Some(_) if incoming => InTask::Activated(Activation::NeverRan),
                Some(_) => InTask::Activated(Activation::Unclear),
            }),
            _ => None,
        });
    }

    fn answer_discard(&mut self, n: Host, done: bool) {
        self.swap_in_task(n, |task| match task {
            InTask::Discard { told: true } if done => Some(InTask::Discarded),
            InTask::Discard { told: true } => Some(InTask::Discard { told: false }),
            _ => None,
        });
    }

    fn swap_out_task(&mut self, n: Host, swap: impl Fn(OutTask) -> Option<OutTask>) {
        for m in (0..MOVES)
            .filter(|m| self.world.source_of(*m) == Some(n))
            .collect::<Vec<_>>()
        {
            let Some(outgoing) = &mut self.world.moves[m].edit().outgoing else {
                continue;
            };
            for task in &mut outgoing.tasks {
                *task = swap(*task).unwrap_or(*task);
            }
            outgoing.tasks.sort_unstable();
        }
    }

    fn swap_in_task(&mut self, n: Host, swap: impl Fn(InTask) -> Option<InTask>) {
        for m in (0..MOVES)
            .filter(|m| self.world.target_of(*m) == Some(n))
            .collect::<Vec<_>>()
        {
            let Some(incoming) = &mut self.world.moves[m].edit().incoming else {
                continue;
            };
            for task in &mut incoming.tasks {
                *task = swap(*task).unwrap_or(*task);
            }
            incoming.tasks.sort_unstable();
        }
    }

    /// The daemon reads the next thing that QEMU said. The domain hears it first.
    pub(crate) fn read(&mut self, n: Host) {
        let news = self.world.hosts[n].edit().news.remove(0);
        for event in meaning(news) {
            let _ = self.tell_domain(n, event);
        }
        if news == News::Look {
            self.looked(n);
        }
        if news == News::Pass {
            // The one that `postcopy: always` waits for.
            let (number, remaining) = (2, Bytes::ZERO);
            for m in 0..MOVES {
                self.signal_source(n, m, SourceEvent::Pass { number, remaining });
            }
        }
        if matches!(
            news,
            News::MirrorReady | News::MirrorEnded | News::MirrorFailed
        ) {
            for m in (0..MOVES)
                .filter(|m| self.world.source_of(*m) == Some(n))
                .collect::<Vec<_>>()
            {
                self.hear_mirror(m, news);
            }
        }
        let Some(change) = migration(news) else {
            return;
        };
        for m in 0..MOVES {
            if self.world.source_of(m) == Some(n) && change == QemuMigration::PostcopyActive {
                self.out_mut(m, |o| o.reconnecting = false);
            }
            self.signal_source(n, m, SourceEvent::Qemu(change.clone()));
            if self.world.target_of(m) == Some(n) && self.follows(m) {
                self.target_qemu_changed(m, &change);
            }
        }
    }

    /// QEMU obeys the domain's next command.
    pub(crate) fn obey(&mut self, n: Host) {
        let Some(command) = self.next_command(n) else {
            return;
        };
        match command {
            Command::Cont => {
                let epoch = self.domain_epoch(n);
                let refuses = self.world.hosts[n].qemu.as_ref().is_some_and(Qemu::refuses);
                self.start_cpus(n, epoch);
                self.qemu_says(
                    n,
                    match refuses {
                        true => News::ContRefused,
                        false => News::Continued,
                    },
                );
            }
            Command::Stop => {
                self.qemu_mut(n, |q| q.running = false);
                self.qemu_says(n, News::Halted);
            }
            Command::Quit => self.world.hosts[n].edit().qemu = None,
            Command::CancelMigration => self.cancel_in_qemu(n),
            Command::Reset | Command::Powerdown => {}
        }
    }

    fn next_command(&mut self, n: Host) -> Option<Command> {
        let domain = self.world.hosts[n].edit().domain.as_mut()?;
        (!domain.commands.is_empty()).then(|| domain.commands.remove(0))
    }

    pub(crate) fn domain_epoch(&self, n: Host) -> Epoch {
        let domain = self.world.hosts[n].domain.as_ref();
        domain.map_or(Epoch(0), |d| d.machine.view().epoch)
    }

    /// `migrate_cancel`.
    pub(crate) fn cancel_in_qemu(&mut self, n: Host) {
        self.qemu_mut(n, |q| {
            // Once the device state is on its way, QEMU takes nothing back.
            if let Phase::Setup(m)
            | Phase::Active(m)
            | Phase::PreSwitchover(m)
            | Phase::Device { m, .. } = q.phase
            {
                q.phase = Phase::Cancelling(m);
            }
        });
    }

    /// A lock on a disk, say: the CPUs do not run.
    pub(crate) fn refuse(&mut self, n: Host) {
        if self.next_command(n) == Some(Command::Cont) {
            self.qemu_says(n, News::ContRefused);
        }
    }

    /// The CPUs run, but the answer comes after the deadline.
    pub(crate) fn fall_silent(&mut self, n: Host) {
        if self.next_command(n) != Some(Command::Cont) {
            return;
        }
        let epoch = self.domain_epoch(n);
        self.start_cpus(n, epoch);
        self.qemu_says(n, News::Continued);
        let _ = self.tell_domain(n, Event::Expired(Timer::Confirm));
        let _ = self.tell_domain(n, Event::Heard);
    }

    /// The domain notices that QEMU has ended.
    pub(crate) fn exit(&mut self, n: Host, rebooted: bool) {
        let end = Event::Exited {
            detail: String::new(),
            last_words: String::new(),
            rebooted,
        };
        let _ = self.tell_domain(n, end);
    }

    /// The domain of the record, after the daemon has come back.
    pub(crate) fn adopt(&mut self, n: Host) {
        let host = self.world.hosts[n].edit();
        let Some(record) = &host.disk.record else {
            return;
        };
        let alive = record.run != Run::None;
        let rebooted = record.run == Run::FormerBoot;
        let handoff = record.handoff.map(production);
        let machine = Domain::restored(record.saved.clone(), handoff.as_ref(), alive, false);
        host.domain = Some(DomainActor {
            machine,
            handoff: record.handoff,
            run: record.run,
            commands: Vec::new(),
        });
        if alive && host.qemu.is_some() {
            let _ = self.tell_domain(n, Event::Ready);
        } else if alive {
            self.exit(n, rebooted);
        }
    }
}

/// What the news means to the domain.
fn meaning(news: News) -> Vec<Event> {
    let happened = |happening| Event::Happened(happening);
    let replied = |action, outcome| Event::Replied { action, outcome };
    let resume = |resumed: bool| resumed.then(|| happened(Happening::Resume));
    let over = happened(Happening::MigrationOver);
    match news {
        News::Active
        | News::Pass
        | News::PostcopyActive
        | News::PostcopyPaused
        | News::MirrorReady
        | News::MirrorEnded
        | News::MirrorFailed
        | News::Look => vec![],
        News::PreSwitchover | News::Stopped => vec![happened(Happening::Stop)],
        News::Completed => vec![over],
        News::Failed { resumed } | News::Cancelled { resumed } => {
            resume(resumed).into_iter().chain([over]).collect()
        }
        News::Resumed => vec![happened(Happening::Resume)],
        News::Continued => vec![happened(Happening::Resume), replied(Command::Cont, Ok(()))],
        News::ContRefused => vec![replied(Command::Cont, Err(refused()))],
        News::Halted => vec![happened(Happening::Stop), replied(Command::Stop, Ok(()))],
    }
}

/// What it means to a migration.
fn migration(news: News) -> Option<QemuMigration> {
    Some(match news {
        News::Active => QemuMigration::Active,
        News::PreSwitchover => QemuMigration::PreSwitchover,
        News::PostcopyActive => QemuMigration::PostcopyActive,
        News::PostcopyPaused => QemuMigration::PostcopyPaused,
        News::Completed => QemuMigration::Completed,
        News::Failed { .. } => QemuMigration::Failed(String::new()),
        News::Cancelled { .. } => QemuMigration::Cancelled,
        News::Pass
        | News::Stopped
        | News::MirrorReady
        | News::MirrorEnded
        | News::MirrorFailed
        | News::Resumed
        | News::Continued
        | News::ContRefused
        | News::Halted
        | News::Look => return None,
    })
}

/// The record as the daemon has it.
fn production(handoff: Handoff) -> HandoffRecord {
    let node = || crate::node_id(0);
    match handoff {
        Handoff::Outgoing {
            m,
            stage,
            epoch,
            run,
            plan,
            ..
        } => HandoffRecord::Outgoing(OutgoingRecord {
            migration: id_of(m),
            target: Member {
                node: node(),
                incarnation: 1,
                address: String::new(),
            },
            epoch,
            run,
            plan,
            images: Vec::new(),
            stage,
            started: NOW,
        }),
        Handoff::Incoming {
            m, stage, epoch, ..
        } => HandoffRecord::Incoming(IncomingRecord {
            migration: id_of(m),
            source: node(),
            epoch,
            images: Vec::new(),
            stage,
        }),
    }
}
