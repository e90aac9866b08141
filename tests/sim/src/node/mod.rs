//! A node: its daemon, its disk, its QEMUs. `tests/model/src/host` names the
//! files of `node/daemon` that the parts here follow, too.

mod board;
mod domain;
mod incoming;
mod lease;
mod outgoing;

use std::collections::BTreeMap;

use godwit_coordinator_logic::input::SessionId;
use godwit_node_logic::domain::{Event, Saved};
use godwit_node_logic::handoff::{HandoffRecord, IncomingStage, TombstoneVerdict};
use godwit_shared::model::{
    ExitReason, LifecycleCommand, MigrationId, Problem, VmId, VmSpec, codes,
};
use godwit_shared::wire::uplink::{
    CoordinatorMessage, MigrationReport, NodeMessage, NodeReply, NodeRequest,
};

use crate::agenda::{Asker, N, ToNode, What};
use crate::qemu::Qemu;
use crate::sim::{MEMORY, Sim};

pub use domain::DomainActor;
pub use incoming::Incoming;
pub use lease::{Guarded, Lease};
pub use outgoing::Outgoing;

/// A host and its daemon.
#[derive(Debug, Default)]
pub struct Node {
    /// The daemon runs.
    pub up: bool,
    /// Which run of it.
    pub life: u32,
    /// Which boot of the host.
    pub boot: u32,
    /// Everything takes longer until then.
    pub slow_until: u64,
    /// Its session, as it knows of it.
    pub session: Option<SessionId>,
    /// What outlives the daemon.
    pub disk: Disk,
    /// Processes, by number.
    pub qemus: BTreeMap<u64, Qemu>,
    /// Domain actors.
    pub domains: BTreeMap<VmId, DomainActor>,
    /// Migrations that leave.
    pub outgoing: BTreeMap<MigrationId, Outgoing>,
    /// Migrations that come.
    pub incoming: BTreeMap<MigrationId, Incoming>,
    /// Migrations as they were last reported.
    pub reports: BTreeMap<MigrationId, MigrationReport>,
    /// Its lease, and its word for others.
    pub lease: Option<Lease>,
    /// What guards protected VMs.
    pub guarded: Guarded,
    pids: u64,
}

/// A node's files.
#[derive(Debug, Default, Clone)]
pub struct Disk {
    /// The domains' records.
    pub records: BTreeMap<VmId, Record>,
    /// The words on migrations.
    pub stones: BTreeMap<MigrationId, TombstoneVerdict>,
}

/// A domain's record.
#[derive(Debug, Clone)]
pub struct Record {
    /// The machine's part.
    pub saved: Saved,
    /// The migration in hand.
    pub handoff: Option<HandoffRecord>,
    /// The QEMU that was started, and in which boot of the host.
    pub run: Option<(u64, u32)>,
    /// What the VM is.
    pub spec: VmSpec,
}

impl Node {
    /// The process that a domain's daemon knows.
    pub fn pid_of(&self, vm: VmId) -> Option<u64> {
        let (pid, boot) = self.domains.get(&vm)?.run?;
        (boot == self.boot && self.qemus.contains_key(&pid)).then_some(pid)
    }

    /// MiB that its processes take.
    pub fn used(&self) -> u64 {
        self.qemus.values().map(|qemu| qemu.memory).sum()
    }

    /// MiB that its daemon has given away: the ledger.
    pub fn reserved(&self) -> u64 {
        let running = self.domains.values().filter(|domain| domain.reserved);
        running.map(|domain| domain.spec.memory.0).sum()
    }

    pub(crate) fn fresh_pid(&mut self) -> u64 {
        self.pids += 1;
        self.pids
    }

    /// Whether so many MiB more fit.
    pub fn has_room(&self, memory: u64) -> bool {
        self.reserved() + memory <= MEMORY
    }
}

impl Sim {
    /// Something for a daemon, a little later.
    pub(crate) fn later(&mut self, n: N, (low, high): (u64, u64), to: ToNode) {
        let at = self.now + self.lag(n, low, high);
        let life = self.nodes[n].life;
        self.agenda.add(at, What::Node(n, life, to));
    }

    /// A timer of its daemon: late on a slow node, but its clock is not slow.
    pub(crate) fn wake(&mut self, n: N, after: u64, to: ToNode) {
        let at = self.now + after + self.lag(n, 0, 2);
        let life = self.nodes[n].life;
        self.agenda.add(at, What::Node(n, life, to));
    }

    pub(crate) fn on_node(&mut self, n: N, to: ToNode) {
        match to {
            ToNode::Dial => self.dial(n),
            ToNode::Told(session, message) => {
                if self.nodes[n].session == Some(session) {
                    self.on_told(n, session, *message);
                }
            }
            ToNode::SessionLost(session) => {
                if self.nodes[n].session == Some(session) {
                    self.nodes[n].session = None;
                    self.lost_session(n, session);
                    self.later(n, (50, 500), ToNode::Dial);
                }
            }
            ToNode::Domain(vm, event) => drop(self.tell_domain(n, vm, *event)),
            ToNode::DomainTimer(vm, timer, armed) => self.fire_domain(n, vm, timer, armed),
            ToNode::News(vm, pid, news) => self.read(n, vm, pid, news),
            ToNode::Source(m, event) => self.tell_source(n, m, *event),
            ToNode::SourceTimer(m, timer, armed) => self.fire_source(n, m, timer, armed),
            ToNode::Out(m, task) => self.out_task(n, m, task),
            ToNode::Target(m, event) => self.tell_target(n, m, *event),
            ToNode::In(m, task) => self.in_task(n, m, task),
            ToNode::Prepare(link, arrival) => self.arrive(n, link, *arrival),
            ToNode::FromSource(link, m, message) => self.target_reads(n, link, m, *message),
            ToNode::FromTarget(link, m, message) => self.source_reads(n, link, m, *message),
            ToNode::LinkLostHere(link, m) => self.source_lost_link(n, link, m),
            ToNode::LinkLostThere(link, m) => self.target_lost_link(n, link, m),
            ToNode::Query(asker, query) => self.question(n, asker, query.migration),
            ToNode::Word(m, word) => self.hear_word(n, m, word),
            ToNode::Renew => self.renew_lease(n),
            ToNode::LeaseAsked(by, ask) => self.lease_asked(n, by, *ask),
            ToNode::LeaseAnswered(from, answer) => self.lease_answered(n, from, *answer),
        }
    }

    fn on_told(&mut self, n: N, session: SessionId, message: CoordinatorMessage) {
        match message {
            CoordinatorMessage::Request { request, body } => {
                self.on_request(n, session, request, body);
            }
            CoordinatorMessage::Verdict { migration, verdict } => {
                if let Some(word) = verdict {
                    self.hear_word(n, migration, word);
                }
            }
            CoordinatorMessage::Refused(_) | CoordinatorMessage::Elsewhere { .. } => {
                self.break_session(session);
            }
            CoordinatorMessage::Welcome { .. } => self.ask_for_lease(n),
            CoordinatorMessage::MembersChanged { .. }
            | CoordinatorMessage::Members(_)
            | CoordinatorMessage::Certificate { .. } => {}
            CoordinatorMessage::Lease { of, grant } => {
                self.lease_granted(n, of.as_ref(), grant);
            }
        }
    }

    fn on_request(&mut self, n: N, session: SessionId, request: u64, body: NodeRequest) {
        let reply = (session, request);
        let outcome = match body {
            NodeRequest::Define {
                vm, spec, epoch, ..
            } => match spec.read("VM's spec") {
                Ok(spec) => self.define(n, vm, spec, epoch),
                Err(problem) => Err(problem),
            },
            NodeRequest::Command { vm, command, epoch } => {
                return self.command(n, vm, Event::Command { command, epoch }, command, reply);
            }
            NodeRequest::Migrate {
                migration,
                vm,
                target,
                dry_run: false,
                ..
            } => self.begin_outgoing(n, migration, vm, target),
            NodeRequest::CancelMigration { migration } => self.cancel_outgoing(n, migration),
            NodeRequest::ResolveMigration {
                migration,
                decision,
            } => self.resolve_outgoing(n, migration, decision),
            NodeRequest::Verdict(query) => {
                let asker = Asker::Coordinator(session, request);
                return self.question(n, asker, query.migration);
            }
            NodeRequest::WithholdVouch { node, period } => self.withhold(n, node, period),
            _ => Ok(NodeReply::Done),
        };
        self.reply(n, reply, outcome);
    }

    /// A reply goes over the session over which the request came, or not at all.
    pub(crate) fn reply(
        &mut self,
        n: N,
        (session, request): (SessionId, u64),
        outcome: Result<NodeReply, Problem>,
    ) {
        if self.nodes[n].session == Some(session) {
            self.say_up(n, NodeMessage::Reply { request, outcome });
        }
    }

    fn command(
        &mut self,
        n: N,
        vm: VmId,
        event: Event,
        command: LifecycleCommand,
        reply: (SessionId, u64),
    ) {
        if !self.nodes[n].domains.contains_key(&vm) {
            return self.reply(n, reply, Err(Problem::not_found("VM", vm)));
        }
        if command == LifecycleCommand::Start
            && let Err(problem) = self.reserve(n, vm)
        {
            return self.reply(n, reply, Err(problem));
        }
        self.ask_domain(n, vm, event, domain::Waiter::Command(command, reply));
        self.release_if_idle(n, vm);
    }

    /// The daemon starts: it takes over what it finds.
    pub(crate) fn start_node(&mut self, n: N) {
        if self.nodes[n].up {
            return;
        }
        self.nodes[n].up = true;
        self.nodes[n].life += 1;
        self.begin_lease(n);
        let records = self.nodes[n].disk.records.clone();
        for (vm, record) in &records {
            self.adopt(n, *vm, record);
        }
        for (vm, record) in records {
            match record.handoff {
                None => {}
                Some(HandoffRecord::Outgoing(outgoing)) => self.recover_outgoing(n, vm, outgoing),
                Some(HandoffRecord::Incoming(incoming)) => {
                    let exit = self.nodes[n]
                        .domains
                        .get(&vm)
                        .and_then(|d| d.machine.view().exit);
                    if exit == Some(ExitReason::HostReboot) {
                        self.bury(n, vm, incoming.migration, incoming.stage);
                    } else {
                        self.recover_incoming(n, vm, incoming);
                    }
                }
            }
        }
        self.later(n, (1, 50), ToNode::Dial);
    }

    /// The host was booted anew: an outcome that was open then can be neither
    /// confirmed nor denied.
    fn bury(&mut self, n: N, vm: VmId, m: MigrationId, stage: IncomingStage) {
        let ran = matches!(stage, IncomingStage::Running { .. });
        let word = match ran {
            true => TombstoneVerdict::Granted,
            false => TombstoneVerdict::Lost,
        };
        self.write_stone(n, m, word);
        let gone = !ran && self.tell_domain(n, vm, Event::Discard).is_ok();
        if !gone {
            self.record_handoff(n, vm, None);
        }
    }

    /// The daemon is killed; its QEMUs go on.
    pub(crate) fn crash_node(&mut self, n: N) {
        let node = &mut self.nodes[n];
        node.up = false;
        let life = node.life;
        node.domains.clear();
        node.outgoing.clear();
        node.incoming.clear();
        node.reports.clear();
        node.lease = None;
        if let Some(session) = node.session.take() {
            self.break_session(session);
        }
        let ours = |side: (N, u32)| side == (n, life);
        for link in self
            .links
            .between(|link| ours(link.source) || ours(link.target))
        {
            self.cut_link(link);
        }
    }

    /// The host is booted anew. What its daemon had written is there.
    pub(crate) fn reboot_node(&mut self, n: N) {
        self.crash_node(n);
        for qemu in std::mem::take(&mut self.nodes[n].qemus).into_values() {
            self.lost_guest(&qemu);
        }
        self.nodes[n].boot += 1;
        self.lose_guardian(n);
    }
}

/// There is no room.
fn full() -> Problem {
    Problem::new(codes::INSUFFICIENT_RESOURCES, "the node is full")
}
