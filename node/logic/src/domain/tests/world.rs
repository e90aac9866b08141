//! A QEMU, a journal and timers that obey the test.

use std::collections::{BTreeSet, VecDeque};

use godwit_shared::model::{Epoch, LifecycleCommand, MigrationId, Problem, UnixMillis, codes};

use super::super::*;
use crate::qmp::status::RunStatus;

pub(super) const MIGRATION: MigrationId = MigrationId::from_u128(9);

/// What performs the machine's effects.
pub(super) struct World {
    pub(super) domain: Domain,
    pub(super) now: UnixMillis,
    /// Results and events on their way to the machine.
    pub(super) inbox: VecDeque<Event>,
    pub(super) timers: BTreeSet<Timer>,
    pub(super) answers: Vec<(Request, Result<(), Problem>)>,
    pub(super) journal: Saved,
    pub(super) forgotten: bool,
    /// The next so many journal writes fail.
    pub(super) failing_writes: u32,
    /// QEMU answers nothing.
    pub(super) hangs: bool,
    pub(super) refuses_cont: bool,
    pub(super) alive: bool,
    pub(super) running: bool,
    pub(super) actions: Vec<Action>,
}

pub(super) fn trouble() -> Problem {
    Problem::new(codes::HOST_IO, "no space left")
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Domain::new(UnixMillis(1), Epoch(1), true))
    }

    pub(super) fn with(domain: Domain) -> Self {
        Self {
            journal: domain.saved(),
            alive: domain.has_process(),
            domain,
            now: UnixMillis(1),
            inbox: VecDeque::new(),
            timers: BTreeSet::new(),
            answers: Vec::new(),
            forgotten: false,
            failing_writes: 0,
            hangs: false,
            refuses_cont: false,
            running: false,
            actions: Vec::new(),
        }
    }

    pub(super) fn feed(&mut self, event: Event) -> Result<(), Rejected> {
        let spawned = event == Event::Spawned;
        let mut effects = Vec::new();
        self.now.0 += 1;
        let result = self.domain.step(self.now, event, &mut effects);
        for effect in effects {
            if !self.perform(effect) {
                break;
            }
        }
        if spawned && self.alive && !self.hangs {
            self.inbox.push_back(Event::Ready);
        }
        result
    }

    pub(super) fn command(&mut self, command: LifecycleCommand) -> Result<(), Rejected> {
        let epoch = self.domain.view().epoch;
        self.feed(Event::Command { command, epoch })
    }

    /// Delivers everything, in order, until nothing is left.
    pub(super) fn settle(&mut self) {
        while let Some(event) = self.inbox.pop_front() {
            let _ = self.feed(event);
        }
    }

    /// Delivers everything and lets every timer run out.
    pub(super) fn exhaust(&mut self) {
        for _ in 0..50 {
            self.settle();
            match self.timers.pop_first() {
                Some(timer) => drop(self.feed(Event::Expired(timer))),
                None => return,
            }
        }
        panic!("timers never end: {:?}", self.timers);
    }

    pub(super) fn started() -> Self {
        let mut world = Self::new();
        world.command(LifecycleCommand::Start).unwrap();
        world.settle();
        world.answers.clear();
        world.actions.clear();
        world
    }

    pub(super) fn dies(&mut self) {
        if std::mem::take(&mut self.alive) {
            self.running = false;
            self.inbox.push_back(Event::Exited {
                detail: "killed by signal 9".into(),
                last_words: String::new(),
                rebooted: false,
            });
        }
    }

    /// Performs one effect; false drops the rest of the step's effects.
    fn perform(&mut self, effect: Effect) -> bool {
        assert!(!self.forgotten, "{effect:?} after the domain was forgotten");
        match effect {
            Effect::Journal if self.failing_writes > 0 => {
                self.failing_writes -= 1;
                let _ = self.feed(Event::JournalFailed(trouble()));
                return false;
            }
            Effect::Journal => self.journal = self.domain.saved(),
            Effect::Written(request) => drop(self.feed(Event::Written(request))),
            Effect::Spawn => {
                assert!(!self.alive, "one QEMU at a time");
                self.alive = true;
                self.inbox.push_back(Event::Spawned);
            }
            Effect::Do(action) => self.act(action),
            Effect::AskAgent(_) if self.hangs => {
                self.inbox.push_back(Event::AgentReplied(Err(trouble())));
            }
            Effect::AskAgent(_) => self.inbox.push_back(Event::AgentReplied(Ok(()))),
            Effect::Resync if self.alive && !self.hangs => {
                let run = if self.running {
                    RunStatus::Running
                } else {
                    RunStatus::Paused
                };
                self.inbox.push_back(Event::Status {
                    run,
                    migrating: false,
                });
            }
            Effect::Resync => {}
            Effect::Kill => self.dies(),
            Effect::Arm(timer, _) => drop(self.timers.insert(timer)),
            Effect::Disarm(timer) => drop(self.timers.remove(&timer)),
            Effect::CleanUp => assert!(!self.alive, "cleaned up under a living QEMU"),
            Effect::Answer(request, outcome) => self.answers.push((request, outcome)),
            Effect::Forget(request) => {
                assert!(!self.alive, "forgotten with a QEMU");
                self.forgotten = true;
                self.answers.push((request, Ok(())));
            }
        }
        true
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
        if action == Action::Cont {
            assert!(self.domain.owner(), "cont without the right to run");
            assert!(self.journal.owner, "cont before the right is journaled");
        }
        if self.hangs || !self.alive {
            return;
        }
        let outcome = if action == Action::Cont && self.refuses_cont {
            Err(Problem::new(codes::QEMU_COMMAND, "not now"))
        } else {
            Ok(())
        };
        match action {
            Action::Cont if outcome.is_ok() && !self.running => {
                self.running = true;
                self.inbox.push_back(Event::Happened(Happening::Resume));
            }
            Action::Stop if self.running => {
                self.running = false;
                self.inbox.push_back(Event::Happened(Happening::Stop));
            }
            Action::Reset => self.inbox.push_back(Event::Happened(Happening::Reset)),
            Action::Quit => self.dies(),
            _ => {}
        }
        self.inbox.push_back(Event::Replied { action, outcome });
    }
}
