//! What QEMU's process, its QMP session and the guest do to the machine.

use godwit_shared::model::{ExitReason, LifecycleCommand, Problem, codes};

use super::effect::{Action, Effect, Request, Timer};
use super::event::Happening;
use super::machine::{Domain, Guest, Process, Role, arm};
use crate::qmp::status::RunStatus;

const START: Request = Request::Command(LifecycleCommand::Start);
const RESUME: Request = Request::Command(LifecycleCommand::Resume);
const RESET: Request = Request::Command(LifecycleCommand::Reset);
const REBOOT: Request = Request::Command(LifecycleCommand::Reboot);
const PAUSE: Request = Request::Command(LifecycleCommand::Pause);
const SHUTDOWN: Request = Request::Command(LifecycleCommand::Shutdown);

impl Domain {
    pub(super) fn on_spawned(&mut self, out: &mut Vec<Effect>) {
        if self.process != Process::Spawning {
            return;
        }
        self.process = Process::Launched;
        if self.ending.is_some() {
            // Stopped or discarded before it was there.
            Self::kill(out);
        } else {
            out.extend([arm(Timer::Greeting), Effect::Journal]);
        }
    }

    pub(super) fn on_spawn_failed(&mut self, problem: &Problem, out: &mut Vec<Effect>) {
        if self.process == Process::Spawning {
            let words = problem.to_string();
            self.on_exited("it was never started".to_owned(), &words, false, out);
        }
    }

    pub(super) fn on_ready(&mut self, out: &mut Vec<Effect>) {
        if self.process != Process::Launched {
            return;
        }
        self.process = Process::Ready;
        out.push(Effect::Disarm(Timer::Greeting));
        if self.ending.is_some() {
            return;
        }
        if self.silent {
            self.silent = false;
            self.problem = None;
        }
        if self.adopting {
            out.push(Effect::Resync);
        } else if matches!(self.role, Role::Incoming { .. }) {
            self.settle(Request::Receive, Ok(()), out);
        } else if self.owner && self.wanted {
            out.extend([Effect::Do(Action::Cont), arm(Timer::Confirm)]);
        }
    }

    pub(super) fn on_session_lost(&mut self, out: &mut Vec<Effect>) {
        if self.process == Process::Ready {
            self.process = Process::Launched;
            self.adopting = true;
            out.push(arm(Timer::Greeting));
        }
    }

    pub(super) fn on_status(&mut self, run: RunStatus, migrating: bool, out: &mut Vec<Effect>) {
        if self.process != Process::Ready {
            return;
        }
        match run {
            RunStatus::Running | RunStatus::Suspended => self.on_running(out),
            RunStatus::Shutdown => self.on_powered_off(out),
            RunStatus::GuestPanicked => self.on_panicked(),
            RunStatus::IoError => self.stood_still(Guest::IoError),
            RunStatus::InternalError => {
                self.stood_still(Guest::Panicked);
                self.problem = Some(Problem::new(
                    codes::QEMU_COMMAND,
                    "QEMU cannot go on with this guest (internal error)",
                ));
            }
            RunStatus::InMigrate => self.guest = Guest::Arriving,
            RunStatus::FinishMigrate | RunStatus::PostMigrate => self.on_paused(Guest::Sent, out),
            // After a reset of a paused machine QEMU says prelaunch, too.
            RunStatus::Prelaunch if self.wanted => self.guest = Guest::Fresh,
            RunStatus::Prelaunch | RunStatus::Paused | RunStatus::Watchdog => {
                self.on_paused(Guest::Paused, out);
            }
        }
        let stays = self.settle(Request::Stay, Ok(()), out);
        if std::mem::take(&mut self.adopting) || stays {
            self.go_on(run, migrating, out);
        }
    }

    /// A domain that was found standing still though it shall run: its start, or
    /// the cancelling of its migration, had been cut short. Nothing was granted,
    /// or the journal would hold the migration's record. Likewise one that stays
    /// after a migration that QEMU was too busy to cancel in time: left alone, it
    /// would stop the CPUs at its switchover, and nobody would go on from there.
    fn go_on(&mut self, run: RunStatus, migrating: bool, out: &mut Vec<Effect>) {
        if self.role != Role::Free || self.hands_off || !self.owner || self.ending.is_some() {
            return;
        }
        let startable = matches!(
            run,
            RunStatus::Prelaunch
                | RunStatus::Paused
                | RunStatus::PostMigrate
                | RunStatus::FinishMigrate
        );
        if migrating {
            // Its end comes as an event, and is followed by another look.
            self.adopting = true;
            out.push(Effect::Do(Action::CancelMigration));
        } else if self.wanted && startable {
            out.extend([Effect::Do(Action::Cont), arm(Timer::Confirm)]);
        }
    }

    pub(super) fn on_replied(
        &mut self,
        action: Action,
        outcome: Result<(), Problem>,
        out: &mut Vec<Effect>,
    ) {
        match (action, outcome) {
            // QEMU sends RESUME and STOP before it replies. Where none came the
            // CPUs stood so already, which a look confirms.
            (Action::Cont, Ok(())) if self.guest == Guest::Running => self.on_running(out),
            (Action::Stop, Ok(())) if self.guest != Guest::Running => {
                self.on_paused(self.guest, out);
            }
            (Action::Cont | Action::Stop, Ok(())) => out.push(Effect::Resync),
            (Action::Powerdown, Ok(())) => {
                self.settle(SHUTDOWN, Ok(()), out);
            }
            (Action::Quit | Action::CancelMigration, _) | (_, Ok(())) => {}
            (_, Err(problem)) => self.on_refused(action, problem, out),
        }
    }

    fn on_refused(&mut self, action: Action, problem: Problem, out: &mut Vec<Effect>) {
        match (action, self.pending_request()) {
            (Action::Cont, Some(Request::Activate)) => self.on_activation_failed(problem, out),
            (Action::Cont, Some(START)) => {
                let error = problem.message.clone();
                self.end(ExitReason::FailedToStart { error }, out);
            }
            (Action::Stop, Some(PAUSE)) => {
                self.wanted = true;
                self.settle_any(Err(problem), out);
            }
            (Action::Powerdown, Some(SHUTDOWN)) => {
                self.asked = false;
                out.push(Effect::Disarm(Timer::Guest));
                self.settle_any(Err(problem), out);
            }
            (Action::Cont, Some(RESUME | RESET)) | (Action::Reset, Some(RESET | REBOOT)) => {
                self.settle_any(Err(problem), out);
            }
            (Action::Cont, None) => {
                // It has answered: nothing is left to be confirmed.
                out.push(Effect::Disarm(Timer::Confirm));
                self.problem = Some(problem);
            }
            _ => self.problem = Some(problem),
        }
    }

    /// An agent that does not do it leaves ACPI and the reset line.
    pub(super) fn on_agent_replied(&mut self, outcome: Result<(), Problem>, out: &mut Vec<Effect>) {
        match (self.pending_request(), outcome) {
            (Some(SHUTDOWN | REBOOT), Ok(())) => self.settle_any(Ok(()), out),
            (Some(SHUTDOWN), Err(_)) => out.push(Effect::Do(Action::Powerdown)),
            (Some(REBOOT), Err(_)) => out.push(Effect::Do(Action::Reset)),
            _ => {}
        }
    }

    pub(super) fn on_happened(&mut self, happening: Happening, out: &mut Vec<Effect>) {
        if self.process == Process::None {
            return;
        }
        match happening {
            Happening::Stop => self.on_paused(Guest::Paused, out),
            Happening::Resume => self.on_running(out),
            Happening::Reset => self.on_reset(out),
            Happening::Shutdown { guest: true, .. } => self.on_powered_off(out),
            Happening::Shutdown { reason, .. } => {
                // QEMU ends by itself now; who ended it is worth keeping.
                let detail = format!("QEMU was ended on its host ({reason})");
                self.ending.get_or_insert(ExitReason::Crashed { detail });
                out.push(arm(Timer::Quit));
            }
            Happening::Panicked => self.on_panicked(),
            Happening::IoError { what } => {
                self.stood_still(Guest::IoError);
                self.problem = Some(
                    Problem::new(codes::HOST_IO, what)
                        .remedy("put the storage right, then resume the VM"),
                );
            }
            Happening::Watchdog => {
                self.stood_still(Guest::Paused);
                self.problem = Some(
                    Problem::new(codes::TIMEOUT, "the guest's watchdog stopped its CPUs")
                        .remedy("look at its console, then reset or resume it"),
                );
            }
            Happening::Agent { open } => self.agent_open = open,
            Happening::MigrationOver if self.adopting => out.push(Effect::Resync),
            Happening::MigrationOver => {}
        }
    }

    fn on_running(&mut self, out: &mut Vec<Effect>) {
        self.guest = Guest::Running;
        if matches!(self.role, Role::Incoming { .. }) {
            self.ran_while_incoming(out);
            return;
        }
        if !self.silent {
            self.problem = None;
        }
        match self.pending_request() {
            Some(START | RESUME | RESET | REBOOT) => self.settle_any(Ok(()), out),
            Some(Request::Activate) => self.activated(out),
            _ => {
                if self.pending.is_none() {
                    out.push(Effect::Disarm(Timer::Confirm));
                }
            }
        }
    }

    fn ran_while_incoming(&mut self, out: &mut Vec<Effect>) {
        if self.pending_request() == Some(Request::Activate) {
            self.activated(out);
        } else if self.adopting && self.owner && self.ending.is_none() {
            // Activated, and the daemon ended before it could write that down.
            self.role = Role::Free;
            out.push(Effect::Journal);
        }
    }

    fn on_paused(&mut self, how: Guest, out: &mut Vec<Effect>) {
        if matches!(self.role, Role::Incoming { .. }) {
            self.guest = Guest::Arriving;
            return;
        }
        // A STOP follows each of these, and says less.
        if !matches!(
            self.guest,
            Guest::Panicked | Guest::IoError | Guest::PoweredOff
        ) {
            self.guest = how;
        }
        self.settle(PAUSE, Ok(()), out);
    }

    fn stood_still(&mut self, how: Guest) {
        if self.guest != Guest::PoweredOff {
            self.guest = how;
        }
    }

    fn on_panicked(&mut self) {
        self.stood_still(Guest::Panicked);
        self.problem = Some(
            Problem::new(codes::STATE_CONFLICT, "the guest's kernel panicked")
                .remedy("look at its console, then reset or stop it"),
        );
    }

    fn on_powered_off(&mut self, out: &mut Vec<Effect>) {
        let granted = matches!(self.role, Role::Outgoing { granted: true, .. });
        if granted || matches!(self.role, Role::Incoming { .. }) {
            return;
        }
        self.guest = Guest::PoweredOff;
        self.settle(SHUTDOWN, Ok(()), out);
        out.push(Effect::Disarm(Timer::Guest));
        if self.ending.is_none() {
            self.end(ExitReason::GuestShutdown, out);
        }
    }

    fn on_reset(&mut self, out: &mut Vec<Effect>) {
        if matches!(self.role, Role::Incoming { .. }) {
            return;
        }
        self.asked = false;
        out.push(Effect::Disarm(Timer::Guest));
        let stood = matches!(self.guest, Guest::Panicked | Guest::IoError);
        if stood && self.pending_request() == Some(RESET) && self.owner {
            self.wanted = true;
            self.guest = Guest::Fresh;
            self.problem = None;
            out.extend([Effect::Journal, Effect::Do(Action::Cont)]);
            return;
        }
        if let Some(request @ (RESET | REBOOT)) = self.pending_request() {
            self.settle(request, Ok(()), out);
        }
    }

    pub(super) fn on_silent(&mut self, problem: Problem) {
        if self.process != Process::None {
            self.silent = true;
            self.problem = Some(problem);
        }
    }

    pub(super) fn on_heard(&mut self, out: &mut Vec<Effect>) {
        if !self.silent {
            return;
        }
        self.silent = false;
        self.problem = None;
        if self.process == Process::Ready {
            out.push(Effect::Resync);
        }
    }

    /// Whoever ended it first gave the reason.
    pub(super) fn on_lease_lost(&mut self) {
        if self.process != Process::None {
            self.ending.get_or_insert(ExitReason::LeaseLost);
        }
    }

    pub(super) fn on_exited(
        &mut self,
        detail: String,
        last_words: &str,
        rebooted: bool,
        out: &mut Vec<Effect>,
    ) {
        if self.process == Process::None {
            return;
        }
        let reason = self.exit_reason(detail, last_words, rebooted);
        // Received, owned and ended: it is an ordinary domain that is off. Where
        // the migration's record is still to be gone by, its manager says so, or
        // has it thrown away; it has said so where it had the CPUs run.
        let activates = self.pending_request() == Some(Request::Activate);
        let decided = rebooted || activates || !self.hands_off;
        if self.owner && decided && matches!(self.role, Role::Incoming { .. }) {
            self.role = Role::Free;
        }
        self.process = Process::None;
        self.guest = Guest::Fresh;
        self.asked = false;
        self.silent = false;
        self.adopting = false;
        self.agent_open = false;
        self.problem = None;
        self.exit = Some(reason.clone());
        out.extend(Timer::ALL.map(Effect::Disarm));
        out.push(Effect::CleanUp);
        match self.pending_request() {
            Some(request @ (Request::Retire | Request::Discard)) => {
                self.pending = None;
                out.push(Effect::Forget(request));
                return;
            }
            Some(
                Request::Command(LifecycleCommand::Stop | LifecycleCommand::Shutdown)
                | Request::Stay,
            ) => self.settle_any(Ok(()), out),
            _ => self.settle_any(Err(ended(&reason)), out),
        }
        out.push(Effect::Journal);
    }

    fn exit_reason(&mut self, detail: String, last_words: &str, rebooted: bool) -> ExitReason {
        let started =
            self.adopting || (self.process == Process::Ready && self.guest != Guest::Fresh);
        let words = last_words.trim();
        match self.ending.take() {
            _ if rebooted => ExitReason::HostReboot,
            Some(reason) => reason,
            None if !started => ExitReason::FailedToStart {
                error: if words.is_empty() {
                    detail
                } else {
                    words.to_owned()
                },
            },
            None if words.is_empty() => ExitReason::Crashed { detail },
            None => ExitReason::Crashed {
                detail: format!("{detail}; QEMU's last words: {words}"),
            },
        }
    }

    pub(super) fn on_expired(&mut self, timer: Timer, out: &mut Vec<Effect>) {
        if self.process == Process::None {
            return;
        }
        match timer {
            Timer::Greeting if self.adopting => self.on_silent(no_answer("its QMP socket")),
            Timer::Greeting => {
                let error = format!("QEMU did not greet within {}", timer.length());
                self.end(ExitReason::FailedToStart { error }, out);
            }
            Timer::Confirm => self.on_unconfirmed(out),
            Timer::Guest => {
                self.asked = false;
                self.problem = Some(
                    Problem::new(
                        codes::TIMEOUT,
                        format!("the guest did not shut down within {}", timer.length()),
                    )
                    .remedy("look at its console, ask again, or stop it"),
                );
            }
            Timer::Quit => Self::kill(out),
            Timer::Kill => {
                let stuck = Problem::new(
                    codes::QEMU_TIMEOUT,
                    "QEMU did not end after SIGKILL; the kernel holds it in a disk or device wait",
                )
                .remedy("put the host's storage right; QEMU ends when the kernel lets it go");
                self.on_silent(stuck.clone());
                self.settle(Request::Command(LifecycleCommand::Stop), Err(stuck), out);
            }
        }
    }

    fn on_unconfirmed(&mut self, out: &mut Vec<Effect>) {
        let problem = no_answer("a command");
        match self.pending_request() {
            Some(Request::Activate) => self.on_activation_failed(problem.clone(), out),
            Some(SHUTDOWN) => {
                self.asked = false;
                out.push(Effect::Disarm(Timer::Guest));
                self.settle_any(Err(problem.clone()), out);
            }
            _ => self.settle_any(Err(problem.clone()), out),
        }
        self.on_silent(problem);
    }
}

fn no_answer(what: &str) -> Problem {
    Problem::new(
        codes::QEMU_TIMEOUT,
        format!("QEMU does not answer on {what}"),
    )
    .remedy("see whether the host is overloaded or the process is stopped; stop the VM to end it")
}

fn ended(reason: &ExitReason) -> Problem {
    match reason {
        ExitReason::FailedToStart { error } => {
            Problem::new(codes::QEMU_START, format!("QEMU did not start: {error}"))
                .remedy("correct what it names in the VM's spec or on the node, and start it again")
        }
        other => Problem::new(codes::QEMU_GONE, format!("QEMU ended meanwhile: {other}"))
            .remedy("look at the VM's exit reason and its QEMU log"),
    }
}
