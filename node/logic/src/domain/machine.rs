//! The machine's state, what it shows, and where each event goes.

use godwit_shared::model::{
    AgentState, DomainState, Epoch, ExitReason, LifecycleCommand, MigrationId, Problem, UnixMillis,
    codes,
};
use serde::{Deserialize, Serialize};

use super::Rejected;
use super::command::{Verdict, decide};
use super::effect::{Action, AgentAction, Effect, Request, Timer};
use super::event::Event;
use crate::handoff::{HandoffRecord, IncomingStage, OutgoingStage};

/// One domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Domain {
    pub(super) epoch: Epoch,
    pub(super) owner: bool,
    pub(super) process: Process,
    pub(super) guest: Guest,
    pub(super) role: Role,
    /// The operator wants the CPUs to run.
    pub(super) wanted: bool,
    /// The guest was asked to shut down.
    pub(super) asked: bool,
    /// QEMU does not answer.
    pub(super) silent: bool,
    /// The process was not started by this session of the daemon, or its QMP
    /// session was lost: what it does has to be read first.
    pub(super) adopting: bool,
    /// A migration's record is in the journal of a domain found at the start:
    /// the migration manager decides what runs.
    pub(super) hands_off: bool,
    /// The activation under way is of a right that this node took before: its
    /// CPUs may have run already.
    pub(super) activating_again: bool,
    pub(super) pending: Option<Pending>,
    /// Why QEMU's end, once it comes, was wanted or foreseen.
    pub(super) ending: Option<ExitReason>,
    pub(super) has_agent: bool,
    pub(super) agent_open: bool,
    pub(super) exit: Option<ExitReason>,
    pub(super) problem: Option<Problem>,
    since: UnixMillis,
    shown: DomainState,
}

/// QEMU as a process and as a QMP session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Process {
    None,
    Spawning,
    /// It runs; there is no QMP session.
    Launched,
    Ready,
}

/// What is known of the guest's CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Guest {
    /// They have not run since QEMU's start or the last reset.
    Fresh,
    Running,
    Paused,
    Panicked,
    IoError,
    PoweredOff,
    /// A migration arrives, or has arrived.
    Arriving,
    /// Everything was sent to a migration's target.
    Sent,
}

/// What a migration has to do with the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Nothing.
    Free,
    /// The domain is being moved away.
    Outgoing {
        /// The migration.
        migration: MigrationId,
        /// Whether the right was granted.
        granted: bool,
    },
    /// The domain is being received, and its CPUs may not run yet.
    Incoming {
        /// The migration.
        migration: MigrationId,
    },
}

/// A request that waits for QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Pending {
    pub(super) request: Request,
    pub(super) before: Before,
}

/// What a request changed before it was journaled, to undo it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Before {
    epoch: Epoch,
    owner: bool,
    wanted: bool,
    role: Role,
}

/// The part of the machine that the journal keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Saved {
    /// The right to run that this node holds, or last held.
    pub epoch: Epoch,
    /// Whether it holds it.
    pub owner: bool,
    /// Whether the operator wants the CPUs to run.
    pub wanted: bool,
    /// Whether the guest was asked to shut down.
    pub asked: bool,
    /// The migration that is being received.
    pub incoming: Option<MigrationId>,
    /// Why the last QEMU ended.
    pub exit: Option<ExitReason>,
    /// Since when it is in its state.
    pub since: UnixMillis,
}

/// What the machine shows of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The state.
    pub state: DomainState,
    /// Since when.
    pub since: UnixMillis,
    /// The right to run that this node holds, or last held.
    pub epoch: Epoch,
    /// Whether it holds it.
    pub owner: bool,
    /// The migration that has the domain in hand.
    pub migration: Option<MigrationId>,
    /// The request that waits for QEMU.
    pub pending: Option<Request>,
    /// Whether QEMU's end is under way.
    pub ending: bool,
    /// The agent's channel.
    pub agent: AgentState,
    /// Why the last QEMU ended.
    pub exit: Option<ExitReason>,
    /// What last went wrong.
    pub problem: Option<Problem>,
}

impl Domain {
    /// A domain that was never run here.
    pub fn new(now: UnixMillis, epoch: Epoch, has_agent: bool) -> Self {
        let saved = Saved {
            epoch,
            owner: true,
            wanted: false,
            asked: false,
            incoming: None,
            exit: None,
            since: now,
        };
        Self::restored(saved, None, false, has_agent)
    }

    /// A domain from its journal. `alive` says whether its QEMU was found.
    pub fn restored(
        saved: Saved,
        handoff: Option<&HandoffRecord>,
        alive: bool,
        has_agent: bool,
    ) -> Self {
        let role = restored_role(&saved, handoff);
        let granted = matches!(role, Role::Outgoing { granted: true, .. });
        let mut domain = Self {
            epoch: saved.epoch,
            owner: saved.owner && !granted,
            process: if alive {
                Process::Launched
            } else {
                Process::None
            },
            guest: match (alive, role) {
                (true, Role::Incoming { .. }) => Guest::Arriving,
                (true, _) if saved.wanted => Guest::Running,
                (true, _) => Guest::Paused,
                (false, _) => Guest::Fresh,
            },
            role,
            wanted: saved.wanted,
            asked: saved.asked,
            silent: false,
            adopting: alive,
            hands_off: handoff.is_some_and(is_open),
            activating_again: false,
            pending: None,
            ending: None,
            has_agent,
            agent_open: false,
            exit: saved.exit,
            problem: None,
            since: saved.since,
            shown: DomainState::Stopped,
        };
        domain.shown = domain.state();
        domain
    }

    /// Takes another definition, and the right that comes with it. Only without
    /// a process.
    pub fn redefine(&mut self, epoch: Epoch, has_agent: bool) -> Result<(), Rejected> {
        let refused = |why: &str, remedy: &str| {
            Err(Rejected(
                Problem::new(codes::STATE_CONFLICT, why).remedy(remedy),
            ))
        };
        if self.process != Process::None || self.pending.is_some() {
            return refused("the VM's QEMU runs with another spec", "stop the VM first");
        }
        if self.role != Role::Free {
            return refused("a migration has the domain in hand", "wait for it");
        }
        if epoch < self.epoch {
            return refused(
                "the definition comes with an older epoch than the node's",
                "look at the VM's current state and try again",
            );
        }
        self.epoch = epoch;
        self.owner = true;
        self.has_agent = has_agent;
        Ok(())
    }

    /// What the journal has to keep.
    pub fn saved(&self) -> Saved {
        Saved {
            epoch: self.epoch,
            owner: self.owner,
            wanted: self.wanted,
            asked: self.asked,
            incoming: match self.role {
                Role::Incoming { migration } => Some(migration),
                _ => None,
            },
            exit: self.exit.clone(),
            since: self.since,
        }
    }

    /// What a report says.
    pub fn view(&self) -> View {
        View {
            state: self.state(),
            since: self.since,
            epoch: self.epoch,
            owner: self.owner,
            migration: match self.role {
                Role::Free => None,
                Role::Outgoing { migration, .. } | Role::Incoming { migration } => Some(migration),
            },
            pending: self.pending.as_ref().map(|pending| pending.request),
            ending: self.ending.is_some(),
            agent: match (self.has_agent, self.agent_open) {
                (false, _) => AgentState::Absent,
                (true, false) => AgentState::Disconnected,
                (true, true) => AgentState::Connected,
            },
            exit: self.exit.clone(),
            problem: self.problem.clone(),
        }
    }

    /// The state in reports.
    pub fn state(&self) -> DomainState {
        match (self.process, self.role) {
            (Process::None, _) => DomainState::Stopped,
            (_, Role::Outgoing { granted: true, .. }) => DomainState::InHandoff,
            (_, Role::Incoming { .. }) => DomainState::Incoming,
            _ if self.silent => DomainState::Unresponsive,
            _ => match self.guest {
                Guest::Fresh => DomainState::Starting,
                Guest::Running if self.asked => DomainState::ShuttingDown,
                Guest::Running => DomainState::Running,
                Guest::Paused | Guest::Sent => DomainState::Paused,
                Guest::Panicked => DomainState::Crashed,
                Guest::IoError => DomainState::IoError,
                Guest::PoweredOff => DomainState::ShuttingDown,
                Guest::Arriving => DomainState::Incoming,
            },
        }
    }

    /// Whether a QEMU process belongs to it.
    pub fn has_process(&self) -> bool {
        self.process != Process::None
    }

    /// Whether its QEMU is believed not to answer.
    pub fn silent(&self) -> bool {
        self.silent
    }

    /// Whether the node holds the right to run it.
    pub fn owner(&self) -> bool {
        self.owner
    }

    /// Whether the operator wants the CPUs to run.
    pub fn wanted(&self) -> bool {
        self.wanted
    }

    /// What a migration has to do with it.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Takes an event. A rejected one has changed nothing.
    pub fn step(
        &mut self,
        now: UnixMillis,
        event: Event,
        out: &mut Vec<Effect>,
    ) -> Result<(), Rejected> {
        let result = self.dispatch(event, out);
        let state = self.state();
        if state != self.shown {
            self.shown = state;
            self.since = now;
        }
        result
    }

    fn dispatch(&mut self, event: Event, out: &mut Vec<Effect>) -> Result<(), Rejected> {
        match event {
            Event::Command { command, epoch } => return self.on_command(command, epoch, out),
            Event::BeginOutgoing { migration } => return self.on_begin_outgoing(migration),
            Event::Granted => return self.on_granted(out),
            Event::Stay { epoch } => return self.on_stay(epoch, out),
            Event::Retire { epoch } => return self.on_retire(epoch, out),
            Event::Receive { migration, epoch } => return self.on_receive(migration, epoch, out),
            Event::Activate { epoch, run } => return self.on_activate(epoch, run, out),
            Event::Discard => return self.on_discard(out),
            Event::JournalFailed(problem) => self.on_journal_failed(problem, out),
            Event::Written(request) => self.on_written(request, out),
            Event::Spawned => self.on_spawned(out),
            Event::SpawnFailed(problem) => self.on_spawn_failed(&problem, out),
            Event::Ready => self.on_ready(out),
            Event::SessionLost => self.on_session_lost(out),
            Event::Status { run, migrating } => self.on_status(run, migrating, out),
            Event::Replied { action, outcome } => self.on_replied(action, outcome, out),
            Event::AgentReplied(outcome) => self.on_agent_replied(outcome, out),
            Event::Happened(happening) => self.on_happened(happening, out),
            Event::Silent(problem) => self.on_silent(problem),
            Event::Heard => self.on_heard(out),
            Event::LeaseLost => self.on_lease_lost(),
            Event::Exited {
                detail,
                last_words,
                rebooted,
            } => self.on_exited(detail, &last_words, rebooted, out),
            Event::Expired(timer) => self.on_expired(timer, out),
        }
        Ok(())
    }

    fn on_command(
        &mut self,
        command: LifecycleCommand,
        epoch: Epoch,
        out: &mut Vec<Effect>,
    ) -> Result<(), Rejected> {
        match decide(&self.view(), command, epoch) {
            Verdict::Deny(problem) => return Err(Rejected(problem)),
            Verdict::Ignore => out.push(Effect::Answer(Request::Command(command), Ok(()))),
            Verdict::Join => {}
            Verdict::Accept => self.carry_out(command, epoch, out),
        }
        Ok(())
    }

    fn carry_out(&mut self, command: LifecycleCommand, epoch: Epoch, out: &mut Vec<Effect>) {
        use LifecycleCommand as C;
        let agent = self.agent_open;
        if command == C::Stop {
            return self.stop(out);
        }
        self.await_answer(Request::Command(command), out);
        match command {
            C::Start => self.start(epoch, out),
            C::Pause => {
                self.wanted = false;
                out.extend([Effect::Journal, Effect::Do(Action::Stop)]);
            }
            C::Resume => {
                self.wanted = true;
                out.extend([Effect::Journal, Effect::Do(Action::Cont)]);
            }
            C::Reset => out.push(Effect::Do(Action::Reset)),
            C::Reboot if agent => out.push(Effect::AskAgent(AgentAction::Reboot)),
            C::Reboot => out.push(Effect::Do(Action::Reset)),
            C::Shutdown => {
                self.asked = true;
                out.extend([Effect::Journal, arm(Timer::Guest)]);
                out.push(if agent {
                    Effect::AskAgent(AgentAction::Shutdown)
                } else {
                    Effect::Do(Action::Powerdown)
                });
            }
            C::Delete => {
                self.pending = None;
                out.push(Effect::Disarm(Timer::Confirm));
                out.push(Effect::Forget(Request::Command(C::Delete)));
            }
            C::Stop => {}
        }
    }

    fn start(&mut self, epoch: Epoch, out: &mut Vec<Effect>) {
        self.epoch = epoch;
        self.owner = true;
        self.wanted = true;
        self.launch(Guest::Fresh);
        // QEMU's own start is bounded by the greeting.
        out.extend([
            Effect::Disarm(Timer::Confirm),
            Effect::Journal,
            Effect::Spawn,
        ]);
    }

    /// A new QEMU: nothing of the last one counts any more.
    pub(super) fn launch(&mut self, guest: Guest) {
        self.process = Process::Spawning;
        self.guest = guest;
        self.asked = false;
        self.silent = false;
        self.adopting = false;
        self.hands_off = false;
        self.activating_again = false;
        self.ending = None;
        self.agent_open = false;
        self.exit = None;
        self.problem = None;
    }

    /// Ends QEMU without asking the guest. Takes the place of what is pending.
    fn stop(&mut self, out: &mut Vec<Effect>) {
        let stopped = Problem::new(codes::STATE_CONFLICT, "the domain was stopped meanwhile")
            .remedy("start it again");
        self.settle_any(Err(stopped), out);
        self.await_answer(Request::Command(LifecycleCommand::Stop), out);
        out.push(Effect::Disarm(Timer::Confirm));
        self.wanted = false;
        self.end(ExitReason::Stopped, out);
    }

    /// Ends QEMU for that reason: politely where it listens.
    pub(super) fn end(&mut self, reason: ExitReason, out: &mut Vec<Effect>) {
        let begun = self.ending.replace(reason).is_some();
        match self.process {
            // It is killed as soon as it is there.
            Process::None | Process::Spawning => {}
            Process::Ready if !self.silent && !begun => {
                out.extend([Effect::Do(Action::Quit), arm(Timer::Quit)]);
            }
            Process::Ready if !self.silent => out.push(arm(Timer::Quit)),
            Process::Ready | Process::Launched => Self::kill(out),
        }
    }

    pub(super) fn kill(out: &mut Vec<Effect>) {
        out.extend([Effect::Disarm(Timer::Quit), Effect::Kill, arm(Timer::Kill)]);
    }

    /// From now on `request` is pending, and QEMU has to confirm it in time.
    pub(super) fn await_answer(&mut self, request: Request, out: &mut Vec<Effect>) {
        self.pending = Some(Pending {
            request,
            before: Before {
                epoch: self.epoch,
                owner: self.owner,
                wanted: self.wanted,
                role: self.role,
            },
        });
        out.push(arm(Timer::Confirm));
    }

    /// Answers `request` if it is the pending one.
    pub(super) fn settle(
        &mut self,
        request: Request,
        outcome: Result<(), Problem>,
        out: &mut Vec<Effect>,
    ) -> bool {
        let fits = self.pending.as_ref().is_some_and(|p| p.request == request);
        if fits {
            self.settle_any(outcome, out);
        }
        fits
    }

    /// Answers whatever is pending.
    pub(super) fn settle_any(&mut self, outcome: Result<(), Problem>, out: &mut Vec<Effect>) {
        if let Some(pending) = self.pending.take() {
            out.push(Effect::Disarm(Timer::Confirm));
            out.push(Effect::Answer(pending.request, outcome));
        }
    }

    pub(super) fn pending_request(&self) -> Option<Request> {
        self.pending.as_ref().map(|pending| pending.request)
    }

    fn on_journal_failed(&mut self, problem: Problem, out: &mut Vec<Effect>) {
        self.problem = Some(problem.clone());
        match self.process {
            // Its process id is not written down: it must not outlive the daemon.
            Process::Launched if !self.adopting && self.ending.is_none() => {
                let error = problem.to_string();
                self.end(ExitReason::FailedToStart { error }, out);
            }
            // What is being ended goes on ending.
            _ if self.pending.is_none() => {}
            _ => {
                self.undo();
                self.settle_any(Err(problem), out);
            }
        }
    }

    pub(super) fn undo(&mut self) {
        let Some(pending) = &self.pending else { return };
        let before = pending.before;
        self.epoch = before.epoch;
        self.owner = before.owner;
        self.wanted = before.wanted;
        self.role = before.role;
        match pending.request {
            Request::Command(LifecycleCommand::Shutdown) => self.asked = false,
            Request::Command(LifecycleCommand::Start) | Request::Receive => {
                self.process = Process::None;
            }
            Request::Retire => self.ending = None,
            _ => {}
        }
    }
}

pub(super) const fn arm(timer: Timer) -> Effect {
    Effect::Arm(timer, timer.length())
}

/// A migration whose outcome still decides what runs. One whose guest ran here
/// is only waiting for its source's last word.
fn is_open(handoff: &HandoffRecord) -> bool {
    match handoff {
        HandoffRecord::Outgoing(_) => true,
        HandoffRecord::Incoming(record) => !matches!(record.stage, IncomingStage::Running { .. }),
    }
}

fn restored_role(saved: &Saved, handoff: Option<&HandoffRecord>) -> Role {
    match handoff {
        Some(HandoffRecord::Outgoing(record)) => Role::Outgoing {
            migration: record.migration,
            granted: matches!(
                record.stage,
                OutgoingStage::Granted | OutgoingStage::GrantedEarly
            ),
        },
        _ => saved
            .incoming
            .map_or(Role::Free, |migration| Role::Incoming { migration }),
    }
}
