//! Performing the state machine's effects.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use actix::prelude::*;
use godwit_node_logic::domain::{Action, AgentAction, Effect, Event, Request, Timer};
use godwit_node_logic::handoff::HandoffRecord;
use godwit_node_logic::qemu::plan::{choose_accel, choose_cpu_model, choose_machine, emulator_for};
use godwit_node_logic::qemu::{Accel, Backing, LaunchPlan, argv, facts::Emulator};
use godwit_node_logic::qmp::Command;
use godwit_shared::model::spec::Architecture;
use godwit_shared::model::{DomainReport, Problem, Usage, codes};
use serde_json::json;
use tokio::sync::oneshot;

use super::messages::{DomainSignal, IncomingRequest};
use super::{DomainActor, Waiter};
use crate::fault;
use crate::images;
use crate::journal::{RunRecord, disks_of_others};
use crate::numa;
use crate::qemu::process::Launch;
use crate::qemu::rescue::Begun;
use crate::supervisor::Forget;

/// Commands of the lifecycle are bounded by the machine's own timers; this only
/// lets go of a QEMU that never answers.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the guest's agent may take to synchronise, and to refuse.
const AGENT: Duration = Duration::from_secs(2);

impl DomainActor {
    pub(super) fn perform(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        for effect in effects {
            if let Effect::Journal = effect {
                if let Err(problem) = self.write_journal() {
                    tracing::error!(vm = %self.vm(), %problem, "the domain's journal cannot be written");
                    return self.tell(Event::JournalFailed(problem), ctx);
                }
                continue;
            }
            self.perform_one(effect, ctx);
        }
    }

    fn perform_one(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match effect {
            // Handled above, where it can drop the rest.
            Effect::Journal => {}
            Effect::Written(request) => self.tell(Event::Written(request), ctx),
            Effect::Spawn => self.spawn_qemu(ctx),
            Effect::Do(action) => self.act(action, ctx),
            Effect::AskAgent(action) => self.ask_agent(action, ctx),
            Effect::Resync => self.resync(ctx),
            Effect::Kill => {
                if let Some(process) = &self.process {
                    process.kill();
                }
            }
            Effect::Arm(timer, length) => {
                self.disarm(timer, ctx);
                let fire = ctx.run_later(length.duration(), move |actor, ctx| {
                    actor.timers.remove(&timer);
                    actor.tell(Event::Expired(timer), ctx);
                });
                self.timers.insert(timer, fire);
            }
            Effect::Disarm(timer) => self.disarm(timer, ctx),
            Effect::CleanUp => self.clean_up(),
            Effect::Answer(request, outcome) => self.answer(request, &outcome),
            Effect::Forget(request) => self.forget(request, ctx),
        }
    }

    fn disarm(&mut self, timer: Timer, ctx: &mut Context<Self>) {
        if let Some(armed) = self.timers.remove(&timer) {
            ctx.cancel_future(armed);
        }
    }

    pub(super) fn write_journal(&mut self) -> Result<(), Problem> {
        self.record.state = self.machine.saved();
        if self.newborn {
            self.place.make_state()?;
        }
        self.journal.write(&self.record)?;
        self.newborn = false;
        Ok(())
    }

    /// Makes a request and waits for the machine's answer to it.
    pub(super) fn ask(
        &mut self,
        request: Request,
        event: Event,
        ctx: &mut Context<Self>,
    ) -> oneshot::Receiver<Result<DomainReport, Problem>> {
        let (number, answered) = self.wait_for(request);
        if self.leaving {
            // Only what removes it is still answered: when it is gone.
            if !matches!(request, Request::Discard | Request::Retire) {
                self.answer(request, &Err(leaving()));
            }
            return answered;
        }
        if let Err(rejected) = self.step(event, ctx) {
            let mine = self.waiters.iter().position(|w| w.number == number);
            if let Some(waiter) = mine.map(|at| self.waiters.remove(at)) {
                let _ = waiter.answer.send(Err(rejected.0));
            }
        }
        answered
    }

    /// Somebody more waits for the answer to that request.
    pub(super) fn wait_for(
        &mut self,
        request: Request,
    ) -> (u64, oneshot::Receiver<Result<DomainReport, Problem>>) {
        let (answer, answered) = oneshot::channel();
        let number = self.next_waiter;
        self.next_waiter += 1;
        self.waiters.push(Waiter {
            number,
            request,
            answer,
        });
        (number, answered)
    }

    fn answer(&mut self, request: Request, outcome: &Result<(), Problem>) {
        let report = self.report();
        for waiter in self.waiters.extract_if(.., |w| w.request == request) {
            let answer = outcome.clone().map(|()| report.clone());
            let _ = waiter.answer.send(answer);
        }
    }

    fn act(&mut self, action: Action, ctx: &mut Context<Self>) {
        let command = match action {
            Action::Cont => Command::cont(),
            Action::Stop => Command::stop(),
            Action::Reset => Command::system_reset(),
            Action::Powerdown => Command::system_powerdown(),
            Action::Quit => Command::quit(),
            Action::CancelMigration => Command::migrate_cancel(),
        };
        let Some(session) = self.session.clone() else {
            let problem = Problem::new(codes::STATE_CONFLICT, "the QMP session is interrupted")
                .remedy("try again in a moment");
            let outcome = Err(problem);
            return ctx.notify(Fact(self.generation, Event::Replied { action, outcome }));
        };
        let reply = async move { session.execute(&command, PATIENCE).await };
        self.later(reply, ctx, move |actor, reply, ctx| {
            let outcome = reply.map(|_| ());
            actor.tell(Event::Replied { action, outcome }, ctx);
        });
    }

    /// Runs a future for this run of QEMU; its result is dropped when another
    /// one has begun.
    pub(super) fn later<T: 'static>(
        &mut self,
        future: impl Future<Output = T> + 'static,
        ctx: &mut Context<Self>,
        then: impl FnOnce(&mut Self, T, &mut Context<Self>) + 'static,
    ) {
        let generation = self.generation;
        let future = future.into_actor(self).map(move |result, actor, ctx| {
            if actor.generation == generation {
                then(actor, result, ctx);
            }
        });
        ctx.spawn(future);
    }

    fn ask_agent(&mut self, action: AgentAction, ctx: &mut Context<Self>) {
        let mode = match action {
            AgentAction::Shutdown => "powerdown",
            AgentAction::Reboot => "reboot",
        };
        let Some(agent) = self.agent.clone() else {
            let problem = Problem::new(codes::GUEST_AGENT, "the agent's channel is closed");
            return ctx.notify(Fact(self.generation, Event::AgentReplied(Err(problem))));
        };
        let asked = async move {
            agent
                .tell("guest-shutdown", json!({ "mode": mode }), AGENT)
                .await
        };
        self.later(asked, ctx, |actor, outcome, ctx| {
            if let Err(problem) = &outcome {
                tracing::warn!(vm = %actor.vm(), %problem, "the agent did not do it");
            }
            actor.tell(Event::AgentReplied(outcome), ctx);
        });
    }

    /// Decides how the domain is run here, and notes it in the record. Reserves
    /// what it takes.
    pub(super) fn prepare(&mut self, incoming: Option<&IncomingRequest>) -> Result<(), Problem> {
        if self.leaving {
            return Err(leaving());
        }
        let spec = &self.record.spec;
        if spec.protected() {
            self.node.guard.check()?;
        }
        let emulator = self.emulator(spec.architecture)?;
        let run = match incoming {
            None => {
                let accel =
                    choose_accel(spec.accelerator, &emulator.facts).map_err(|e| e.problem())?;
                (
                    choose_machine(self.record.machine.as_deref(), spec, &emulator.facts),
                    accel.as_str().to_owned(),
                    choose_cpu_model(spec, accel),
                )
            }
            Some(request) => (
                request.machine.clone(),
                request.accelerator.clone(),
                request.cpu_model.clone(),
            ),
        };
        let (machine, accelerator, cpu_model) = run;
        let run = RunRecord {
            process: None,
            boot_id: self.node.boot_id.clone(),
            machine: machine.clone(),
            accelerator,
            cpu_model,
            qemu_version: emulator.facts.version.clone(),
            log_offset: std::fs::metadata(self.place.qemu_log()).map_or(0, |m| m.len()),
        };
        self.place.sockets()?;
        self.backing()?;
        self.node.ledger.reserve(self.vm(), Usage::of(spec))?;
        self.record.machine = Some(machine);
        self.record.run = Some(run);
        Ok(())
    }

    fn emulator(&self, architecture: Architecture) -> Result<&Emulator, Problem> {
        let facts: Vec<_> = self
            .node
            .emulators
            .iter()
            .map(|e| e.facts.clone())
            .collect();
        let found = emulator_for(architecture, &facts).map_err(|e| e.problem())?;
        self.node
            .emulators
            .iter()
            .find(|e| e.facts == *found)
            .ok_or_else(|| Problem::internal("an emulator vanished"))
    }

    /// What the memory is made of here: looked at anew, because other guests
    /// take pages meanwhile.
    fn backing(&self) -> Result<Backing, Problem> {
        numa::backing(&self.record.spec).map_err(|error| error.problem(codes::QEMU_START))
    }

    fn launch(&self) -> Result<Launch, Problem> {
        let emulator = self.emulator(self.record.spec.architecture)?;
        let run = self.record.run.as_ref();
        let run = run.ok_or_else(|| Problem::internal("a start without a plan"))?;
        let accel = Accel::parse(&run.accelerator).ok_or_else(|| {
            Problem::new(
                codes::QEMU_START,
                format!("there is no accelerator `{}`", run.accelerator),
            )
        })?;
        let plan = LaunchPlan {
            vm: self.vm(),
            spec: self.record.spec.clone(),
            machine: run.machine.clone(),
            accel,
            cpu_model: run.cpu_model.clone(),
            backing: self.backing()?,
            incoming: self.machine.view().migration.is_some(),
            sandbox: emulator.sandbox,
            sockets: self.place.sockets()?,
        };
        Ok(Launch {
            program: PathBuf::from(&emulator.facts.path),
            args: argv(&plan),
            qmp: self.place.qmp(),
            log: self.place.qemu_log(),
        })
    }

    fn spawn_qemu(&mut self, ctx: &mut Context<Self>) {
        self.generation += 1;
        self.session = None;
        self.rescue = None;
        self.end = None;
        self.usage = None;
        let launch = self.place.make_run().and_then(|()| self.launch());
        let arriving = std::mem::take(&mut self.arriving);
        let migration = self.record.handoff.as_ref().map(HandoffRecord::migration);
        let journal = self.journal.clone();
        let guard = self.guard();
        let start = move |launch: Launch| {
            if let Some(migration) = migration.filter(|_| !arriving.is_empty()) {
                // On the disk first: whoever removes them has to know of them.
                journal.sync()?;
                images::make(&arriving, migration)?;
            }
            let process = launch.start()?;
            if let Some(Err(problem)) = guard.map(|guard| guard.watch(process.id())) {
                process.kill();
                return Err(problem);
            }
            Ok(process)
        };
        let started = async move {
            let launch = launch?;
            tokio::task::spawn_blocking(move || start(launch))
                .await
                .unwrap_or_else(|e| Err(Problem::internal(e)))
        };
        self.later(started, ctx, |actor, started, ctx| match started {
            Ok(process) => {
                if let Some(run) = &mut actor.record.run {
                    run.process = Some(process.id());
                }
                actor.follow(process, ctx);
                actor.open_rescue(Begun::Now, ctx);
                actor.open_session(ctx);
                actor.tell(Event::Spawned, ctx);
            }
            Err(problem) => {
                tracing::error!(vm = %actor.vm(), %problem, "QEMU cannot be started");
                actor.tell(Event::SpawnFailed(problem), ctx);
            }
        });
    }

    /// QEMU is gone.
    fn clean_up(&mut self) {
        self.generation += 1;
        self.process = None;
        self.session = None;
        self.rescue = None;
        self.opening = None;
        self.agent = None;
        self.usage = None;
        self.record.run = None;
        self.place.remove_run();
        self.node.ledger.release(self.vm());
        let reason = self.machine.view().exit;
        if let Some(reason) = reason {
            tracing::info!(vm = %self.vm(), name = %self.record.spec.name, %reason, "QEMU ended");
            self.signal(&DomainSignal::Exited(reason));
        }
        let gone = || Problem::new(codes::QEMU_GONE, "QEMU ended meanwhile");
        for waiter in self.session_waiters.drain(..) {
            let _ = waiter.send(Err(gone()));
        }
    }

    /// Removes what is left of the domain and ends the actor. The supervisor
    /// forgets it before anybody hears of it, so that the VM can come back.
    pub(super) fn forget(&mut self, request: Request, ctx: &mut Context<Self>) {
        self.node.ledger.release(self.vm());
        self.node.bus.domain_gone(self.vm());
        self.leaving = true;
        let (place, vm) = (self.place.clone(), self.vm());
        let supervisor = self.supervisor.upgrade();
        let handoff = self.record.handoff.clone();
        let point = removal_point(request, handoff.as_ref());
        let domains = self.node.paths.domains();
        let remove = move || {
            // Its record is what knows of them: it goes last.
            remove_images(request, handoff, || disks_of_others(&domains, vm));
            place.remove_all();
        };
        let removed = async move {
            if let Some(point) = point {
                fault::reach(point).await;
            }
            let _ = tokio::task::spawn_blocking(remove).await;
            if let Some(supervisor) = supervisor {
                let _ = supervisor.send(Forget { vm }).await;
            }
        };
        self.later(removed, ctx, move |actor, (), ctx| {
            actor.answer(request, &Ok(()));
            ctx.stop();
        });
    }
}

/// The fault point before images are removed.
fn removal_point(request: Request, handoff: Option<&HandoffRecord>) -> Option<&'static str> {
    match (request, handoff?) {
        (Request::Discard, HandoffRecord::Incoming(record)) if !record.images.is_empty() => {
            Some("target.before_remove_images")
        }
        (Request::Retire, HandoffRecord::Outgoing(record)) if !record.images.is_empty() => {
            Some("source.before_remove_images")
        }
        _ => None,
    }
}

/// Images of a guest that did not arrive, or has left with its disks. Blocks.
fn remove_images(
    request: Request,
    handoff: Option<HandoffRecord>,
    of_others: impl FnOnce() -> Result<BTreeSet<String>, Problem>,
) {
    match (request, handoff) {
        (Request::Discard, Some(HandoffRecord::Incoming(record))) => {
            images::remove_arrived(&record.images, record.migration);
        }
        (Request::Retire, Some(HandoffRecord::Outgoing(record))) if !record.images.is_empty() => {
            match of_others() {
                Ok(of_others) => images::remove_left(&record.images, &of_others),
                Err(problem) => images::keep_left(&record.images, &problem),
            }
        }
        _ => {}
    }
}

/// The domain is being removed from this node.
pub(super) fn leaving() -> Problem {
    Problem::new(codes::BUSY, "the domain is being removed from this node")
        .remedy("try again in a moment")
}

/// A fact that the actor tells itself: not from inside of a step.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Fact(u64, Event);

impl Handler<Fact> for DomainActor {
    type Result = ();

    fn handle(&mut self, Fact(generation, event): Fact, ctx: &mut Self::Context) {
        if generation == self.generation {
            self.tell(event, ctx);
        }
    }
}
