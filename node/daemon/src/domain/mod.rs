//! One domain: its QEMU, its state, its console, its agent.
//!
//! [`DomainActor`] owns one QEMU; nothing else talks to it. It hosts the state
//! machine of [`godwit_node_logic::domain`]: a message or a fact becomes an
//! event, the machine answers with effects, the actor performs them (`perform`)
//! and feeds their results back.
//!
//! ```text
//!  messages --> handlers --.                      .--> journal, QEMU (process, QMP)
//!  QMP events --> link ----+--> step --> effects -+--> waiters' answers
//!  process end, timers ----'                      '--> report on the bus
//! ```
//!
//! # Invariants
//! * No handler waits: what takes time is a future of the actor, and a QEMU that
//!   hangs holds up its own answers alone.
//! * Results carry the run (`generation`) that they belong to; those of an
//!   earlier QEMU are dropped.
//! * Files beyond a few kilobytes are touched on blocking threads.

mod agent;
mod console;
mod handlers;
mod link;
pub mod messages;
mod perform;
mod place;
mod rescue;
mod takeover;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::WeakAddr;
use actix::prelude::*;
use godwit_node_logic::domain::{Domain, Effect, Event, Rejected, Request, Timer};
use godwit_node_logic::qemu::facts::Emulator;
use godwit_shared::model::{DomainReport, DomainUsage, Problem, UnixMillis, VmId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::DropGuard;

use self::agent::AgentChannel;
use self::console::ConsoleHub;
use self::messages::DomainSignal;
use self::place::Place;
use crate::bus::NodeBus;
use crate::guard::Guard;
use crate::host::NodePaths;
use crate::images::NewImage;
use crate::journal::{Journal, Record};
use crate::qemu::process::Qemu;
use crate::qemu::session::Session;
use crate::supervisor::Supervisor;
use crate::supervisor::ledger::Ledger;

/// Messages that may wait for one domain.
const MAILBOX: usize = 256;

/// What all domains of a node share.
#[derive(Debug, Clone)]
pub struct NodeContext {
    /// Where files are.
    pub paths: NodePaths,
    /// Where reports go.
    pub bus: NodeBus,
    /// The host's boot, which the record of a run names.
    pub boot_id: String,
    /// The QEMUs of this host.
    pub emulators: Vec<Emulator>,
    /// Who takes how much.
    pub ledger: Ledger,
    /// Who ends protected VMs with the node's lease.
    pub guard: Guard,
}

/// Owns one QEMU; nothing else talks to it.
pub struct DomainActor {
    node: Arc<NodeContext>,
    supervisor: WeakAddr<Supervisor>,
    place: Place,
    journal: Journal,
    /// What is in the journal, or will be with the next write.
    record: Record,
    /// Nothing of it is in the journal yet.
    newborn: bool,
    /// Its files are being removed; it takes nothing on any more.
    leaving: bool,
    machine: Domain,
    /// Images to make before QEMU is started.
    arriving: Vec<NewImage>,
    process: Option<Qemu>,
    /// Which run of QEMU this is; results of an earlier one are dropped.
    generation: u64,
    session: Option<Session>,
    /// The one that outlives the daemon, where QEMU has it.
    rescue: Option<Session>,
    /// Attempts to open a session go on for as long as this is held.
    opening: Option<DropGuard>,
    /// The end of the process, held back until its last QMP events were read.
    end: Option<Event>,
    /// The QEMU that was found at the start was heard of, or given up.
    taken_over: bool,
    hub: ConsoleHub,
    /// The run whose console the hub carries. QEMU serves one connection, so
    /// it is kept when only the QMP session is lost.
    console_of: Option<u64>,
    agent: Option<AgentChannel>,
    timers: BTreeMap<Timer, SpawnHandle>,
    waiters: Vec<Waiter>,
    next_waiter: u64,
    takeover_waiters: Vec<oneshot::Sender<()>>,
    session_waiters: Vec<oneshot::Sender<Result<Session, Problem>>>,
    subscribers: Vec<mpsc::UnboundedSender<DomainSignal>>,
    usage: Option<DomainUsage>,
    published_usage: Option<DomainUsage>,
}

/// Somebody who made a request.
struct Waiter {
    number: u64,
    request: Request,
    answer: oneshot::Sender<Result<DomainReport, Problem>>,
}

/// How an actor comes to its domain.
#[derive(Debug)]
pub(crate) enum Origin {
    /// It is new here: nothing is journaled until its first request.
    New(Record),
    /// It was found in the journal.
    Journal(Record),
}

impl DomainActor {
    /// An actor for a domain; it takes over the domain's QEMU when it starts.
    pub(crate) fn new(
        node: Arc<NodeContext>,
        supervisor: WeakAddr<Supervisor>,
        origin: Origin,
    ) -> Self {
        let (record, newborn) = match origin {
            Origin::New(record) => (record, true),
            Origin::Journal(record) => (record, false),
        };
        let place = Place::new(&node.paths, record.vm);
        let machine = Domain::restored(
            record.state.clone(),
            record.handoff.as_ref(),
            record.run.is_some(),
            record.spec.agent,
        );
        Self {
            journal: Journal::new(&place.state),
            hub: ConsoleHub::new(place.serial_log()),
            place,
            node,
            supervisor,
            taken_over: record.run.is_none(),
            record,
            newborn,
            leaving: false,
            machine,
            arriving: Vec::new(),
            process: None,
            generation: 0,
            session: None,
            rescue: None,
            opening: None,
            end: None,
            console_of: None,
            agent: None,
            timers: BTreeMap::new(),
            waiters: Vec::new(),
            next_waiter: 0,
            takeover_waiters: Vec::new(),
            session_waiters: Vec::new(),
            subscribers: Vec::new(),
            usage: None,
            published_usage: None,
        }
    }

    fn vm(&self) -> VmId {
        self.record.vm
    }

    /// Feeds the machine and performs what it wants.
    fn step(&mut self, event: Event, ctx: &mut Context<Self>) -> Result<(), Rejected> {
        let mut effects = Vec::new();
        let before = self.machine.state();
        let was_silent = self.machine.silent();
        let result = self.machine.step(UnixMillis::now(), event, &mut effects);
        let after = self.machine.state();
        if before != after {
            tracing::info!(vm = %self.vm(), name = %self.record.spec.name, from = %before, to = %after, "state");
        }
        if self.machine.silent() && !was_silent {
            self.await_a_sign_of_life(ctx);
        }
        let journaled = effects.contains(&Effect::Journal);
        self.perform(effects, ctx);
        if before != after && !journaled {
            self.note_state();
        }
        self.publish();
        result
    }

    /// Since when the state is what it is, for the next daemon. Nothing hangs
    /// on it.
    fn note_state(&mut self) {
        if self.newborn || self.leaving {
            return;
        }
        if let Err(problem) = self.write_journal() {
            tracing::warn!(vm = %self.vm(), %problem, "the domain's journal cannot be written");
        }
    }

    /// The same for facts, which cannot be refused.
    fn tell(&mut self, event: Event, ctx: &mut Context<Self>) {
        if let Err(Rejected(problem)) = self.step(event, ctx) {
            tracing::error!(vm = %self.vm(), %problem, "the state machine refused a fact");
        }
    }

    /// Puts the report on the bus. A domain that is being taken over is not
    /// reported before it is known how it stands.
    fn publish(&mut self) {
        if self.taken_over && !self.newborn && !self.leaving {
            self.published_usage = self.usage;
            self.node.bus.publish_domain(self.report());
        }
    }

    fn report(&self) -> DomainReport {
        let view = self.machine.view();
        let run = self.record.run.as_ref();
        let running = view.state.has_process();
        DomainReport {
            vm: self.record.vm,
            name: self.record.spec.name.clone(),
            epoch: view.epoch,
            owner: view.owner,
            state: view.state,
            since: view.since,
            exit: view.exit,
            problem: view.problem,
            agent: view.agent,
            pid: self.process.as_ref().map(|process| process.id().pid),
            migration: view.migration,
            machine: run
                .map(|run| run.machine.clone())
                .or_else(|| self.record.machine.clone()),
            accelerator: run.filter(|_| running).map(|run| run.accelerator.clone()),
            usage: self.usage,
        }
    }

    /// Tells those who subscribed; who no longer listens is forgotten.
    fn signal(&mut self, signal: &DomainSignal) {
        self.subscribers
            .retain(|subscriber| subscriber.send(signal.clone()).is_ok());
    }
}

impl Actor for DomainActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        Self::begin_watch(ctx);
        if self.record.run.is_some() {
            self.take_over(ctx);
        } else {
            self.publish();
        }
    }
}

/// Ends the actor as a fault of ours would.
#[cfg(test)]
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub(crate) struct Vanish;

#[cfg(test)]
impl Handler<Vanish> for DomainActor {
    type Result = ();

    fn handle(&mut self, _: Vanish, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
