//! What a migration may ask of the machine.

use godwit_shared::model::{DomainState, Epoch, ExitReason, MigrationId, Problem, codes};

use super::Rejected;
use super::effect::{Action, Effect, Request, Timer};
use super::machine::{Domain, Guest, Process, Role};

impl Domain {
    /// Needs a domain that runs, or that its operator paused.
    pub(super) fn on_begin_outgoing(&mut self, migration: MigrationId) -> Result<(), Rejected> {
        let in_hand = self.pending.is_some() || self.ending.is_some() || self.adopting;
        if self.role != Role::Free || in_hand {
            return Err(busy("another action has the domain in hand"));
        }
        let state = self.state();
        if !matches!(state, DomainState::Running | DomainState::Paused) {
            return Err(conflict(
                &format!("the domain is {state}"),
                "only running and paused domains can be moved",
            ));
        }
        if !self.owner {
            return Err(conflict(
                "this node does not hold the right to run the domain",
                "move it from the node that does",
            ));
        }
        self.role = Role::Outgoing {
            migration,
            granted: false,
        };
        Ok(())
    }

    /// The grant stands in the journal already: this is for reports, and for
    /// the commands that need the right.
    pub(super) fn on_granted(&mut self, out: &mut Vec<Effect>) -> Result<(), Rejected> {
        let Role::Outgoing { migration, .. } = self.role else {
            return Err(conflict("no migration moves the domain away", "begin one"));
        };
        self.role = Role::Outgoing {
            migration,
            granted: true,
        };
        self.owner = false;
        out.push(Effect::Journal);
        Ok(())
    }

    /// The source keeps, or gets back, the domain.
    pub(super) fn on_stay(&mut self, epoch: Epoch, out: &mut Vec<Effect>) -> Result<(), Rejected> {
        if !matches!(self.role, Role::Outgoing { .. }) {
            return Err(conflict("no migration moves the domain away", "begin one"));
        }
        if epoch < self.epoch {
            return Err(old_epoch(epoch, self.epoch));
        }
        match self.pending_request() {
            Some(Request::Stay) if epoch == self.epoch => return Ok(()),
            Some(_) => return Err(busy("another end of the migration is under way")),
            None => {}
        }
        self.await_answer(Request::Stay, out);
        self.role = Role::Free;
        self.owner = true;
        self.epoch = epoch;
        self.hands_off = false;
        out.push(Effect::Journal);
        match self.process {
            Process::Ready => out.push(Effect::Resync),
            // Nothing can be read: the session's return, or QEMU's end, will tell.
            _ => out.push(Effect::Written(Request::Stay)),
        }
        Ok(())
    }

    /// A request whose only work was to be journaled is done.
    pub(super) fn on_written(&mut self, request: Request, out: &mut Vec<Effect>) {
        if self.pending_request() != Some(request) {
            return;
        }
        match request {
            Request::Activate => {
                self.guest = Guest::Paused;
                self.activated(out);
            }
            Request::Retire => {
                self.pending = None;
                out.push(Effect::Forget(Request::Retire));
            }
            _ => self.settle_any(Ok(()), out),
        }
    }

    /// The domain runs elsewhere: what is left of it here goes.
    pub(super) fn on_retire(
        &mut self,
        epoch: Epoch,
        out: &mut Vec<Effect>,
    ) -> Result<(), Rejected> {
        if !matches!(self.role, Role::Outgoing { .. }) {
            return Err(conflict("no migration moves the domain away", "begin one"));
        }
        if epoch <= self.epoch && self.owner {
            return Err(old_epoch(epoch, self.epoch));
        }
        match self.pending_request() {
            Some(Request::Retire) if epoch == self.epoch => return Ok(()),
            Some(_) => return Err(busy("another end of the migration is under way")),
            None => {}
        }
        self.await_answer(Request::Retire, out);
        out.push(Effect::Disarm(Timer::Confirm));
        self.owner = false;
        self.epoch = self.epoch.max(epoch);
        self.wanted = false;
        out.push(Effect::Journal);
        if self.process == Process::None {
            out.push(Effect::Written(Request::Retire));
        } else {
            self.end(ExitReason::Migrated, out);
        }
        Ok(())
    }

    /// Starts the receiving QEMU.
    pub(super) fn on_receive(
        &mut self,
        migration: MigrationId,
        epoch: Epoch,
        out: &mut Vec<Effect>,
    ) -> Result<(), Rejected> {
        if self.process != Process::None || self.pending.is_some() {
            return Err(busy("the domain has a QEMU on this node already"));
        }
        // What is left of an earlier one is still to be removed, by whoever has
        // it in hand: it would remove this one.
        if self.role != Role::Free {
            return Err(busy("another migration has the domain in hand"));
        }
        if epoch < self.epoch {
            return Err(old_epoch(epoch, self.epoch));
        }
        self.await_answer(Request::Receive, out);
        self.role = Role::Incoming { migration };
        self.owner = false;
        self.wanted = true;
        self.epoch = epoch;
        self.launch(Guest::Arriving);
        out.extend([
            Effect::Disarm(Timer::Confirm),
            Effect::Journal,
            Effect::Spawn,
        ]);
        Ok(())
    }

    /// The right came: journal it, then run. Asked again (the answer was lost,
    /// or the daemon restarted) it finds out what is so.
    pub(super) fn on_activate(
        &mut self,
        epoch: Epoch,
        run: bool,
        out: &mut Vec<Effect>,
    ) -> Result<(), Rejected> {
        let again = self.owner && epoch == self.epoch;
        match self.role {
            Role::Outgoing { .. } => {
                return Err(conflict("the domain is being moved away", "wait for it"));
            }
            Role::Free if !again => {
                return Err(conflict("the domain is not being received", "begin anew"));
            }
            _ if self.pending.is_some() || self.ending.is_some() => {
                return Err(busy("another action has the domain in hand"));
            }
            _ if self.process == Process::None && !again => {
                return Err(conflict("the receiving QEMU is not there", "migrate again"));
            }
            _ if !matches!(self.process, Process::Ready | Process::None) => {
                return Err(busy("QEMU's session is not back yet"));
            }
            _ if !again && epoch <= self.epoch => return Err(old_epoch(epoch, self.epoch)),
            _ => {}
        }
        self.await_answer(Request::Activate, out);
        self.activating_again = again;
        self.owner = true;
        self.epoch = epoch;
        self.wanted = run;
        if self.process == Process::None {
            // It may have run here before it ended: the domain is this node's.
            self.role = Role::Free;
            let gone = Problem::new(codes::QEMU_GONE, "QEMU has ended meanwhile");
            self.settle(Request::Activate, Err(gone), out);
            out.push(Effect::Journal);
            return Ok(());
        }
        out.push(Effect::Journal);
        if run {
            out.push(Effect::Do(Action::Cont));
        } else {
            out.push(Effect::Written(Request::Activate));
        }
        Ok(())
    }

    /// The CPUs run, or stand still as they shall: the domain is an ordinary one.
    pub(super) fn activated(&mut self, out: &mut Vec<Effect>) {
        if self.settle(Request::Activate, Ok(()), out) {
            self.role = Role::Free;
            self.hands_off = false;
            out.push(Effect::Journal);
        }
    }

    /// A `cont` that QEMU refused, or that was never sent, leaves the domain
    /// incoming and without the right, which can go back. After any other failure, and where the
    /// right was taken before, the CPUs may have run: the domain is this node's,
    /// and another look finds out how it stands.
    pub(super) fn on_activation_failed(&mut self, problem: Problem, out: &mut Vec<Effect>) {
        let never_ran = matches!(
            problem.code.as_ref(),
            codes::QEMU_COMMAND | codes::STATE_CONFLICT
        ) && !self.activating_again
            && self.guest != Guest::Running;
        if never_ran {
            self.undo();
        }
        // Answered first: a journal that fails drops what is behind it.
        self.settle(Request::Activate, Err(problem), out);
        if never_ran {
            out.extend([Effect::Do(Action::Stop), Effect::Journal]);
        } else {
            // Where they stand still after all, they are run like any found so.
            self.role = Role::Free;
            self.adopting = true;
            self.hands_off = false;
            out.extend([Effect::Resync, Effect::Journal]);
        }
    }

    /// Throws away what was received.
    pub(super) fn on_discard(&mut self, out: &mut Vec<Effect>) -> Result<(), Rejected> {
        if !matches!(self.role, Role::Incoming { .. }) {
            return Err(conflict("the domain is not being received", "leave it"));
        }
        match self.pending_request() {
            Some(Request::Discard) => return Ok(()),
            // Its CPUs may run in a moment.
            Some(Request::Activate) => return Err(busy("the domain is about to run")),
            _ => {}
        }
        let gone = Problem::new(codes::CANCELLED, "the migration was called off");
        self.settle_any(Err(gone), out);
        if self.process == Process::None {
            out.push(Effect::Forget(Request::Discard));
            return Ok(());
        }
        self.await_answer(Request::Discard, out);
        out.push(Effect::Disarm(Timer::Confirm));
        self.ending = Some(ExitReason::Stopped);
        if self.process != Process::Spawning {
            Self::kill(out);
        }
        Ok(())
    }
}

fn busy(why: &str) -> Rejected {
    Rejected(Problem::new(codes::BUSY, why).remedy("wait for it, or cancel it"))
}

fn conflict(why: &str, remedy: &str) -> Rejected {
    Rejected(Problem::new(codes::STATE_CONFLICT, why).remedy(remedy))
}

fn old_epoch(given: Epoch, own: Epoch) -> Rejected {
    let text = format!("epoch {given} is not above the domain's own, {own}");
    Rejected(
        Problem::new(codes::STATE_CONFLICT, text)
            .field("epoch")
            .value(given.to_string())
            .remedy("the right to run it has passed on; look at the VM's current state"),
    )
}
