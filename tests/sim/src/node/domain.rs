//! The actor of a domain: the production machine, its journal, its QEMU.

use std::collections::BTreeMap;

use godwit_coordinator_logic::input::SessionId;
use godwit_node_logic::domain::{Domain, Effect, Event, Request, Role, Timer};
use godwit_node_logic::handoff::{HandoffRecord, IncomingStage, SourceEvent, TargetEvent};
use godwit_shared::model::{Epoch, LifecycleCommand, MigrationId, Problem, VmId, VmSpec, codes};
use godwit_shared::wire::uplink::NodeReply;

use super::{Record, full};
use crate::agenda::{InTask, N, News, OutTask, ToNode, ToQemu};
use crate::mutant::Mutant;
use crate::qemu::{Qemu, gone};
use crate::sim::Sim;

/// The actor.
#[derive(Debug)]
pub struct DomainActor {
    /// The production state machine.
    pub machine: Domain,
    /// The migration in hand, as it is in memory.
    pub handoff: Option<HandoffRecord>,
    /// Its QEMU, and in which boot of the host it was started.
    pub run: Option<(u64, u32)>,
    /// What the VM is.
    pub spec: VmSpec,
    /// Room is set aside for it.
    pub reserved: bool,
    waiters: Vec<Waiter>,
    timers: BTreeMap<Timer, u64>,
}

/// Who waits for an answer of a domain.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Waiter {
    Command(LifecycleCommand, (SessionId, u64)),
    Stay(MigrationId, Epoch),
    Retire(MigrationId, Epoch),
    Activate(MigrationId, Epoch, bool),
    Discard(MigrationId),
}

impl Waiter {
    const fn request(&self) -> Request {
        match self {
            Self::Command(command, _) => Request::Command(*command),
            Self::Stay(..) => Request::Stay,
            Self::Retire(..) => Request::Retire,
            Self::Activate(..) => Request::Activate,
            Self::Discard(_) => Request::Discard,
        }
    }
}

impl DomainActor {
    pub(super) fn new(machine: Domain, spec: VmSpec) -> Self {
        Self {
            machine,
            handoff: None,
            run: None,
            spec,
            reserved: false,
            waiters: Vec::new(),
            timers: BTreeMap::new(),
        }
    }
}

impl Sim {
    /// Tells the domain's machine something. One that is gone hears nothing.
    pub(crate) fn tell_domain(&mut self, n: N, vm: VmId, event: Event) -> Result<(), Problem> {
        let now = self.clock();
        let Some(actor) = self.nodes[n].domains.get_mut(&vm) else {
            return Err(gone());
        };
        let mut effects = Vec::new();
        let result = actor.machine.step(now, event, &mut effects);
        self.perform_domain(n, vm, effects);
        self.publish(n, vm);
        result.map_err(|rejected| rejected.0)
    }

    /// Tells it, and somebody waits for the answer.
    pub(super) fn ask_domain(&mut self, n: N, vm: VmId, event: Event, waiter: Waiter) {
        let Some(actor) = self.nodes[n].domains.get_mut(&vm) else {
            return self.answered(n, vm, waiter, Err(gone()));
        };
        actor.waiters.push(waiter.clone());
        if let Err(problem) = self.tell_domain(n, vm, event) {
            if let Some(actor) = self.nodes[n].domains.get_mut(&vm) {
                actor.waiters.retain(|other| *other != waiter);
            }
            self.answered(n, vm, waiter, Err(problem));
        }
    }

    fn perform_domain(&mut self, n: N, vm: VmId, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Journal => self.write_record(n, vm),
                Effect::Written(request) => drop(self.tell_domain(n, vm, Event::Written(request))),
                Effect::Spawn => self.spawn(n, vm),
                Effect::Do(action) => self.ask_its_qemu(n, vm, ToQemu::Do(action)),
                Effect::Resync => self.ask_its_qemu(n, vm, ToQemu::Look),
                Effect::Kill => self.ask_its_qemu(n, vm, ToQemu::Kill),
                Effect::AskAgent(_) => {
                    let none = Err(Problem::new(codes::GUEST_AGENT, "there is none"));
                    self.later(
                        n,
                        (1, 5),
                        ToNode::Domain(vm, Box::new(Event::AgentReplied(none))),
                    );
                }
                Effect::Arm(timer, after) => self.arm_domain(n, vm, timer, after.0),
                Effect::Disarm(timer) => {
                    if let Some(actor) = self.nodes[n].domains.get_mut(&vm) {
                        actor.timers.remove(&timer);
                    }
                }
                Effect::CleanUp => self.clean_up(n, vm),
                Effect::Answer(request, outcome) => self.answer(n, vm, request, &outcome),
                Effect::Forget(request) => self.forget(n, vm, request),
            }
        }
    }

    fn ask_its_qemu(&mut self, n: N, vm: VmId, what: ToQemu) {
        if let Some(pid) = self.nodes[n].pid_of(vm) {
            self.tell_qemu(n, pid, what);
        }
    }

    fn arm_domain(&mut self, n: N, vm: VmId, timer: Timer, after: u64) {
        let armed = self.agenda.number();
        let Some(actor) = self.nodes[n].domains.get_mut(&vm) else {
            return;
        };
        actor.timers.insert(timer, armed);
        self.wake(n, after, ToNode::DomainTimer(vm, timer, armed));
    }

    pub(super) fn fire_domain(&mut self, n: N, vm: VmId, timer: Timer, armed: u64) {
        let Some(actor) = self.nodes[n].domains.get_mut(&vm) else {
            return;
        };
        if actor.timers.get(&timer) == Some(&armed) {
            actor.timers.remove(&timer);
            let _ = self.tell_domain(n, vm, Event::Expired(timer));
        }
    }

    pub(super) fn write_record(&mut self, n: N, vm: VmId) {
        let node = &mut self.nodes[n];
        if let Some(actor) = node.domains.get(&vm) {
            let record = Record {
                saved: actor.machine.saved(),
                handoff: actor.handoff.clone(),
                run: actor.run,
                spec: actor.spec.clone(),
            };
            node.disk.records.insert(vm, record);
        }
    }

    /// Puts a migration's record into the domain's, or takes it out. Whether
    /// there is a domain.
    pub(super) fn record_handoff(&mut self, n: N, vm: VmId, record: Option<HandoffRecord>) -> bool {
        let Some(actor) = self.nodes[n].domains.get_mut(&vm) else {
            return false;
        };
        actor.handoff = record;
        self.write_record(n, vm);
        true
    }

    /// The same for a migration that ends: another one's record stays.
    pub(super) fn end_handoff(&mut self, n: N, vm: VmId, m: MigrationId) -> bool {
        let actor = self.nodes[n].domains.get(&vm);
        let of = actor
            .and_then(|d| d.handoff.as_ref())
            .map(HandoffRecord::migration);
        of.is_some_and(|of| of != m) || self.record_handoff(n, vm, None)
    }

    fn spawn(&mut self, n: N, vm: VmId) {
        let node = &mut self.nodes[n];
        let pid = node.fresh_pid();
        let boot = node.boot;
        let Some(actor) = node.domains.get_mut(&vm) else {
            return;
        };
        let incoming = actor.machine.view().migration;
        actor.run = Some((pid, boot));
        let memory = actor.spec.memory.0;
        node.qemus.insert(pid, Qemu::new(vm, memory, incoming));
        self.write_record(n, vm);
        self.qemu_says(n, pid, News::Spawned);
        self.qemu_says(n, pid, News::Greeting);
        self.guard(n, vm, pid);
    }

    /// Sets room aside for a domain that is to run.
    pub(super) fn reserve(&mut self, n: N, vm: VmId) -> Result<(), Problem> {
        let mutant = self.mutates(Mutant::NoLedger);
        let actor = self.nodes[n].domains.get(&vm);
        self.check_lease(n, actor.is_some_and(|actor| actor.spec.protected()))?;
        let node = &mut self.nodes[n];
        let needs = node.domains.get(&vm).filter(|d| !d.reserved);
        let needs = needs.map_or(0, |d| d.spec.memory.0);
        if !mutant && !node.has_room(needs) {
            return Err(full());
        }
        if let Some(actor) = node.domains.get_mut(&vm) {
            actor.reserved = true;
        }
        Ok(())
    }

    /// A start that was not taken needs no room.
    pub(super) fn release_if_idle(&mut self, n: N, vm: VmId) {
        if let Some(actor) = self.nodes[n].domains.get_mut(&vm) {
            actor.reserved = actor.machine.has_process();
        }
    }

    fn clean_up(&mut self, n: N, vm: VmId) {
        if let Some(actor) = self.nodes[n].domains.get_mut(&vm) {
            actor.run = None;
            actor.reserved = false;
        }
        for m in self.outgoing_of(n, vm) {
            self.tell_source(n, m, SourceEvent::QemuGone(gone()));
        }
        for m in self.incoming_of(n, vm) {
            self.tell_target(n, m, TargetEvent::QemuGone(gone()));
        }
    }

    fn forget(&mut self, n: N, vm: VmId, request: Request) {
        self.nodes[n].disk.records.remove(&vm);
        self.answer(n, vm, request, &Ok(()));
        self.nodes[n].domains.remove(&vm);
        self.publish_gone(n, vm);
    }

    fn answer(&mut self, n: N, vm: VmId, request: Request, outcome: &Result<(), Problem>) {
        let Some(actor) = self.nodes[n].domains.get_mut(&vm) else {
            return;
        };
        let (mine, rest) = std::mem::take(&mut actor.waiters)
            .into_iter()
            .partition(|waiter| waiter.request() == request);
        actor.waiters = rest;
        let mine: Vec<Waiter> = mine;
        for waiter in mine {
            self.answered(n, vm, waiter, outcome.clone());
        }
    }

    fn answered(&mut self, n: N, vm: VmId, waiter: Waiter, outcome: Result<(), Problem>) {
        let soon = (1, 5);
        let again = (1_000, 1_001);
        match (waiter, outcome) {
            (Waiter::Command(_, reply), Ok(())) => {
                let report = self.report_of(n, vm).map(NodeReply::Domain);
                self.reply(n, reply, report.ok_or_else(gone));
            }
            (Waiter::Command(_, reply), Err(problem)) => self.reply(n, reply, Err(problem)),
            (Waiter::Stay(m, _), outcome) => {
                if let Err(problem) = &outcome {
                    self.note(&format!("stay of {vm}: {problem}"));
                }
                self.later(n, soon, ToNode::Out(m, OutTask::Clear));
            }
            (Waiter::Retire(m, _), Ok(())) => {
                self.later(n, soon, ToNode::Source(m, Box::new(SourceEvent::Retired)));
            }
            (Waiter::Retire(m, epoch), Err(_)) => {
                self.later(n, again, ToNode::Out(m, OutTask::Retire(epoch)));
            }
            (Waiter::Activate(m, epoch, run), outcome) => {
                self.activation_answered(n, vm, m, (epoch, run), outcome);
            }
            (Waiter::Discard(m), Ok(())) => {
                self.later(n, soon, ToNode::Target(m, Box::new(TargetEvent::Discarded)));
            }
            (Waiter::Discard(m), Err(_)) => {
                self.later(n, again, ToNode::In(m, InTask::Discard));
            }
        }
    }

    fn activation_answered(
        &mut self,
        n: N,
        vm: VmId,
        m: MigrationId,
        (epoch, run): (Epoch, bool),
        outcome: Result<(), Problem>,
    ) {
        let role = self.nodes[n].domains.get(&vm).map(|d| d.machine.role());
        let incoming = matches!(role, Some(Role::Incoming { .. }));
        let event = match outcome {
            Ok(()) => TargetEvent::Activated,
            Err(problem) if incoming && problem.code == codes::BUSY => {
                return self.later(n, (500, 501), ToNode::In(m, InTask::Activate(epoch, run)));
            }
            Err(problem) if incoming => TargetEvent::ActivateFailed(problem),
            Err(problem) => TargetEvent::ActivateUnclear(problem),
        };
        self.later(n, (1, 5), ToNode::Target(m, Box::new(event)));
    }

    /// The daemon reads what a QEMU said. The domain hears it first.
    pub(super) fn read(&mut self, n: N, vm: VmId, pid: u64, news: News) {
        let run = self.nodes[n].domains.get(&vm).and_then(|d| d.run);
        if run.map(|(pid, _)| pid) != Some(pid) {
            return;
        }
        let exited = || Event::Exited {
            detail: "signal 9".into(),
            last_words: String::new(),
            rebooted: false,
        };
        match news {
            News::Spawned => drop(self.tell_domain(n, vm, Event::Spawned)),
            News::Greeting => drop(self.tell_domain(n, vm, Event::Ready)),
            News::Domain(event) => {
                let silent = |sim: &Self| {
                    let actor = sim.nodes[n].domains.get(&vm);
                    actor.is_some_and(|actor| actor.machine.silent())
                };
                let answers_again = silent(self);
                drop(self.tell_domain(n, vm, event));
                if answers_again && silent(self) {
                    drop(self.tell_domain(n, vm, Event::Heard));
                }
            }
            News::Ended => {
                self.tell_of_lease(n, vm, pid);
                drop(self.tell_domain(n, vm, exited()));
            }
            News::Refused => {
                let problem = Problem::new(codes::QEMU_COMMAND, "QEMU refuses");
                for m in self.outgoing_of(n, vm) {
                    self.tell_source(n, m, SourceEvent::CommandFailed(problem.clone()));
                }
            }
            News::Migration(change, events) => {
                for event in events {
                    let _ = self.tell_domain(n, vm, event);
                }
                for m in self.outgoing_of(n, vm) {
                    self.tell_source(n, m, SourceEvent::Qemu(change.clone()));
                }
                for m in self.incoming_of(n, vm) {
                    self.target_qemu_changed(n, m, &change);
                }
            }
        }
    }

    pub(super) fn define(
        &mut self,
        n: N,
        vm: VmId,
        spec: VmSpec,
        epoch: Epoch,
    ) -> Result<NodeReply, Problem> {
        let now = self.clock();
        let node = &mut self.nodes[n];
        let actor = node
            .domains
            .entry(vm)
            .or_insert_with(|| DomainActor::new(Domain::new(now, epoch, false), spec.clone()));
        if actor.spec != spec || actor.machine.view().epoch != epoch || !actor.machine.owner() {
            actor.machine.redefine(epoch, false).map_err(|r| r.0)?;
            actor.spec = spec;
        }
        self.write_record(n, vm);
        self.publish(n, vm);
        self.report_of(n, vm)
            .map(NodeReply::Domain)
            .ok_or_else(gone)
    }

    /// The domain of a record, after the daemon has come back.
    pub(super) fn adopt(&mut self, n: N, vm: VmId, record: &Record) {
        let node = &mut self.nodes[n];
        let alive = record.run.is_some();
        let rebooted = record.run.is_some_and(|(_, boot)| boot != node.boot);
        let found = record
            .run
            .is_some_and(|(pid, boot)| boot == node.boot && node.qemus.contains_key(&pid));
        let machine = Domain::restored(record.saved.clone(), record.handoff.as_ref(), alive, false);
        let mut actor = DomainActor::new(machine, record.spec.clone());
        actor.handoff.clone_from(&record.handoff);
        actor.run = record.run;
        actor.reserved = alive;
        node.domains.insert(vm, actor);
        if let Some((pid, _)) = record.run.filter(|_| found) {
            let _ = self.tell_domain(n, vm, Event::Ready);
            self.guard(n, vm, pid);
        } else if let Some((pid, _)) = record.run {
            self.tell_of_lease(n, vm, pid);
            let end = Event::Exited {
                detail: String::new(),
                last_words: String::new(),
                rebooted,
            };
            let _ = self.tell_domain(n, vm, end);
        }
        self.publish(n, vm);
    }

    /// A receiving domain, and in it a QEMU that waits. Whether it began.
    pub(super) fn become_incoming(
        &mut self,
        n: N,
        vm: VmId,
        spec: VmSpec,
        promise: HandoffRecord,
    ) -> bool {
        let HandoffRecord::Incoming(record) = &promise else {
            return false;
        };
        let (migration, epoch) = (record.migration, Epoch(record.epoch.0 - 1));
        debug_assert_eq!(record.stage, IncomingStage::Prepared, "a promise");
        let now = self.clock();
        let node = &mut self.nodes[n];
        let new = !node.domains.contains_key(&vm);
        let actor = node
            .domains
            .entry(vm)
            .or_insert_with(|| DomainActor::new(Domain::new(now, epoch, false), spec));
        if actor.machine.has_process() {
            return false;
        }
        let before = actor.handoff.replace(promise);
        let room = self.reserve(n, vm).is_ok();
        let began = room
            && self
                .tell_domain(n, vm, Event::Receive { migration, epoch })
                .is_ok();
        if !began {
            self.release_if_idle(n, vm);
            if let Some(actor) = self.nodes[n].domains.get_mut(&vm) {
                actor.handoff = before;
            }
            if new {
                self.nodes[n].domains.remove(&vm);
                self.nodes[n].disk.records.remove(&vm);
                self.publish_gone(n, vm);
            }
        }
        began
    }
}
