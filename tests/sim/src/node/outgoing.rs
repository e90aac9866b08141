//! A migration that leaves: the production `Source`, and what its daemon does
//! with the effects.

use std::collections::HashMap;

use godwit_node_logic::domain::Event;
use godwit_node_logic::handoff::{
    HandoffRecord, Outcome, OutgoingRecord, OutgoingStage, Plan, Source, SourceEffect, SourceEvent,
    Terms, Timer,
};
use godwit_shared::model::{
    DoubtDecision, Epoch, MigrationId, MigrationPhase, Problem, VmId, codes,
};
use godwit_shared::wire::peer::TargetMessage;
use godwit_shared::wire::uplink::{Member, NodeMessage, NodeReply, Verdict, VerdictQuery};

use super::domain::Waiter;
use crate::agenda::{Arrival, Asker, N, OutTask, ToNode, ToQemu, What, node_id};
use crate::mutant::Mutant;
use crate::qemu::gone;
use crate::sim::{NODES, Sim};

/// The actor.
#[derive(Debug)]
pub struct Outgoing {
    /// Of which VM.
    pub vm: VmId,
    /// What the journal has.
    pub record: OutgoingRecord,
    /// The production state machine.
    pub source: Source,
    /// The phase last shown.
    pub phase: MigrationPhase,
    /// The epoch that its reports name.
    pub epoch: Epoch,
    /// An operator was told that only he can end it.
    pub alarmed: bool,
    link: Option<u64>,
    timers: HashMap<Timer, u64>,
}

/// The connection ended.
pub(super) fn lost() -> Problem {
    Problem::new(codes::CONNECTION_LOST, "the connection ended")
}

fn place_of(member: &Member) -> Option<N> {
    (0..NODES).find(|n| node_id(*n) == member.node)
}

fn terms(vm: VmId, record: &OutgoingRecord) -> Terms {
    Terms {
        migration: record.migration,
        vm,
        epoch: record.epoch,
        run: record.run,
        plan: record.plan,
    }
}

impl Sim {
    pub(super) fn outgoing_of(&self, n: N, vm: VmId) -> Vec<MigrationId> {
        let all = self.nodes[n].outgoing.iter();
        all.filter(|(_, o)| o.vm == vm).map(|(m, _)| *m).collect()
    }

    pub(super) fn begin_outgoing(
        &mut self,
        n: N,
        m: MigrationId,
        vm: VmId,
        target: Member,
    ) -> Result<NodeReply, Problem> {
        if self.nodes[n].outgoing.contains_key(&m) {
            return Ok(NodeReply::Done);
        }
        let actor = self.nodes[n].domains.get(&vm);
        let actor = actor.ok_or_else(|| Problem::not_found("VM", vm))?;
        if actor.handoff.is_some() {
            return Err(Problem::new(codes::BUSY, "a migration has it in hand"));
        }
        let (run, epoch) = (actor.machine.wanted(), actor.machine.view().epoch);
        self.tell_domain(n, vm, Event::BeginOutgoing { migration: m })?;
        let record = OutgoingRecord {
            migration: m,
            target,
            epoch,
            run,
            plan: Plan::default(),
            images: Vec::new(),
            stage: OutgoingStage::Sending,
            started: self.clock(),
        };
        self.record_handoff(n, vm, Some(HandoffRecord::Outgoing(record.clone())));
        let mut effects = Vec::new();
        let source = Source::begin(terms(vm, &record), &mut effects);
        self.new_outgoing(n, vm, record, source, effects);
        self.later(n, (1, 20), ToNode::Out(m, OutTask::Connect));
        Ok(NodeReply::Done)
    }

    pub(super) fn recover_outgoing(&mut self, n: N, vm: VmId, record: OutgoingRecord) {
        let mut effects = Vec::new();
        let source = Source::recover(terms(vm, &record), record.stage, &mut effects);
        let m = record.migration;
        self.new_outgoing(n, vm, record, source, effects);
        let has_process = |d: &super::DomainActor| d.machine.has_process();
        if !self.nodes[n].domains.get(&vm).is_some_and(has_process) {
            self.tell_source(n, m, SourceEvent::QemuGone(gone()));
        }
    }

    fn new_outgoing(
        &mut self,
        n: N,
        vm: VmId,
        record: OutgoingRecord,
        source: Source,
        effects: Vec<SourceEffect>,
    ) {
        let m = record.migration;
        let outgoing = Outgoing {
            vm,
            epoch: record.epoch,
            record,
            source,
            phase: MigrationPhase::Queued,
            alarmed: false,
            link: None,
            timers: HashMap::new(),
        };
        self.nodes[n].outgoing.insert(m, outgoing);
        self.perform_source(n, m, effects);
    }

    pub(super) fn tell_source(&mut self, n: N, m: MigrationId, event: SourceEvent) {
        let event = self.mutated(n, m, event);
        let Some(outgoing) = self.nodes[n].outgoing.get_mut(&m) else {
            return;
        };
        let mut effects = Vec::new();
        // One out of turn is logged, and changes nothing.
        let _ = outgoing.source.step(event, &mut effects);
        self.perform_source(n, m, effects);
    }

    fn mutated(&self, n: N, m: MigrationId, event: SourceEvent) -> SourceEvent {
        let granted = self.nodes[n]
            .outgoing
            .get(&m)
            .is_some_and(|o| o.source.is_granted());
        let gives_up = matches!(event, SourceEvent::Timeout(Timer::Doubt));
        match gives_up && granted && self.mutates(Mutant::ResumeOnTimeout) {
            true => SourceEvent::Verdict(Verdict::Refused),
            false => event,
        }
    }

    fn perform_source(&mut self, n: N, m: MigrationId, effects: Vec<SourceEffect>) {
        for effect in effects {
            match effect {
                SourceEffect::Send(message) => {
                    if let Some(link) = self.link_of(n, m) {
                        self.say_to_target(link, message);
                    }
                }
                SourceEffect::StartMigration => {
                    if let Some(link) = self.link_of(n, m) {
                        self.out_qemu(n, m, ToQemu::Migrate(m, link));
                    }
                }
                SourceEffect::ContinueMigration => self.out_qemu(n, m, ToQemu::Continue),
                SourceEffect::CancelMigration => self.out_qemu(n, m, ToQemu::CancelMigration),
                SourceEffect::Journal(stage) => {
                    self.later(n, (1, 15), ToNode::Out(m, OutTask::Journal(stage)));
                }
                SourceEffect::MarkInHandoff => {
                    if let Some(vm) = self.nodes[n].outgoing.get(&m).map(|o| o.vm) {
                        let _ = self.tell_domain(n, vm, Event::Granted);
                    }
                }
                SourceEffect::Ask => self.ask(n, m),
                SourceEffect::Stay { epoch } => {
                    self.later(n, (20, 60), ToNode::Out(m, OutTask::Stay(epoch)));
                }
                SourceEffect::Retire { epoch } => {
                    self.later(n, (1, 20), ToNode::Out(m, OutTask::Retire(epoch)));
                }
                SourceEffect::Arm(timer, after) => self.arm_source(n, m, timer, after.0),
                SourceEffect::Phase(phase) => {
                    self.out(n, m, |o| o.phase = phase);
                    self.publish_move(n, m, phase);
                }
                SourceEffect::Alarm(problem) => {
                    self.note(&format!("alarm of {m}: {problem}"));
                    self.out(n, m, |o| o.alarmed = true);
                }
                SourceEffect::Finish(outcome) => self.finish_outgoing(n, m, &outcome),
                // No plan here mirrors, is limited, or switches to post-copy: the
                // model checker searches those.
                SourceEffect::StartMirrors
                | SourceEffect::FinishMirrors
                | SourceEffect::StartPostcopy
                | SourceEffect::StopGuest
                | SourceEffect::HurryUp
                | SourceEffect::Stalled
                | SourceEffect::Reconnect
                | SourceEffect::ResumeMigration
                | SourceEffect::GuestLost(_) => {}
            }
        }
    }

    fn out(&mut self, n: N, m: MigrationId, change: impl FnOnce(&mut Outgoing)) {
        if let Some(outgoing) = self.nodes[n].outgoing.get_mut(&m) {
            change(outgoing);
        }
    }

    fn link_of(&self, n: N, m: MigrationId) -> Option<u64> {
        self.nodes[n].outgoing.get(&m)?.link
    }

    fn out_qemu(&mut self, n: N, m: MigrationId, what: ToQemu) {
        let vm = self.nodes[n].outgoing.get(&m).map(|o| o.vm);
        if let Some(pid) = vm.and_then(|vm| self.nodes[n].pid_of(vm)) {
            self.tell_qemu(n, pid, what);
        }
    }

    fn arm_source(&mut self, n: N, m: MigrationId, timer: Timer, after: u64) {
        let armed = self.agenda.number();
        self.out(n, m, |o| {
            o.timers.insert(timer, armed);
        });
        self.wake(n, after, ToNode::SourceTimer(m, timer, armed));
    }

    pub(super) fn fire_source(&mut self, n: N, m: MigrationId, timer: Timer, armed: u64) {
        let due = self.nodes[n]
            .outgoing
            .get(&m)
            .and_then(|o| o.timers.get(&timer));
        if due == Some(&armed) {
            self.tell_source(n, m, SourceEvent::Timeout(timer));
        }
    }

    /// A source in doubt asks the target itself, and the coordinator beside it.
    fn ask(&mut self, n: N, m: MigrationId) {
        let Some(outgoing) = self.nodes[n].outgoing.get(&m) else {
            return;
        };
        let target = outgoing.record.target.clone();
        let query = VerdictQuery {
            migration: m,
            vm: outgoing.vm,
            target: target.node.clone(),
            epoch: outgoing.source.granted_epoch(),
        };
        self.say_up(n, NodeMessage::AskVerdict(query.clone()));
        let there = place_of(&target).filter(|t| self.reach(n + 1, t + 1));
        if let Some(t) = there {
            let asker = Asker::Source(n, self.nodes[n].life);
            self.later(t, (2, 60), ToNode::Query(asker, query));
        }
    }

    pub(super) fn hear_word(&mut self, n: N, m: MigrationId, word: Verdict) {
        self.tell_source(n, m, SourceEvent::Verdict(word));
    }

    pub(super) fn out_task(&mut self, n: N, m: MigrationId, task: OutTask) {
        let Some(vm) = self.nodes[n].outgoing.get(&m).map(|o| o.vm) else {
            return;
        };
        match task {
            OutTask::Connect => self.connect(n, m),
            OutTask::Journal(stage) => {
                self.out(n, m, |o| o.record.stage = stage);
                let record = self.nodes[n].outgoing.get(&m).map(|o| o.record.clone());
                let record = record.map(HandoffRecord::Outgoing);
                let event = match self.record_handoff(n, vm, record) {
                    true => SourceEvent::Journaled(stage),
                    false => SourceEvent::JournalFailed(gone()),
                };
                self.tell_source(n, m, event);
            }
            OutTask::Stay(epoch) => {
                let run = self.nodes[n].outgoing.get(&m).is_some_and(|o| o.record.run);
                if run {
                    self.out_qemu(n, m, ToQemu::Do(godwit_node_logic::domain::Action::Cont));
                }
                self.out(n, m, |o| o.epoch = epoch);
                self.ask_domain(n, vm, Event::Stay { epoch }, Waiter::Stay(m, epoch));
            }
            OutTask::Clear => {
                self.end_handoff(n, vm, m);
                self.tell_source(n, m, SourceEvent::Stayed);
            }
            OutTask::Retire(epoch) => {
                self.out(n, m, |o| o.epoch = epoch);
                if self.nodes[n].domains.contains_key(&vm) {
                    self.ask_domain(n, vm, Event::Retire { epoch }, Waiter::Retire(m, epoch));
                } else {
                    self.tell_source(n, m, SourceEvent::Retired);
                }
            }
        }
    }

    /// Dials, and says the first message.
    fn connect(&mut self, n: N, m: MigrationId) {
        let Some(outgoing) = self.nodes[n].outgoing.get(&m) else {
            return;
        };
        let target = place_of(&outgoing.record.target);
        let there = target.filter(|t| self.reach(n + 1, t + 1) && self.nodes[*t].up && *t != n);
        let spec = self.nodes[n].domains.get(&outgoing.vm).map(|d| &d.spec);
        let (Some(t), Some(spec)) = (there, spec) else {
            return self.tell_source(n, m, SourceEvent::LinkLost(lost()));
        };
        let arrival = Arrival {
            migration: m,
            vm: outgoing.vm,
            source: n,
            epoch: outgoing.record.epoch,
            shape: spec.clone(),
        };
        let life = self.nodes[t].life;
        let link = self.links.open(m, (n, self.nodes[n].life), (t, life));
        self.out(n, m, |o| o.link = Some(link));
        let at = self.now + self.lag(t, 2, 60);
        let prepare = ToNode::Prepare(link, Box::new(arrival));
        self.agenda.add(at, What::Node(t, life, prepare));
    }

    pub(super) fn source_reads(&mut self, n: N, link: u64, m: MigrationId, message: TargetMessage) {
        if self.link_of(n, m) != Some(link) {
            return;
        }
        let event = match message {
            TargetMessage::Prepared { .. } => SourceEvent::Prepared,
            TargetMessage::Blocked { blockers, .. } => SourceEvent::Blocked(blockers),
            TargetMessage::Loaded { .. } => SourceEvent::Loaded,
            TargetMessage::Taken { epoch, .. } => SourceEvent::Taken(epoch),
            TargetMessage::ResumeReady { .. } => SourceEvent::ResumeReady,
            TargetMessage::Complete { .. } => SourceEvent::Complete,
            TargetMessage::Failed { reason, .. } => SourceEvent::TargetFailed(reason),
            TargetMessage::Activated { epoch, .. } => SourceEvent::Activated(epoch),
            TargetMessage::HandBack { epoch, reason, .. } => {
                SourceEvent::HandBack { epoch, reason }
            }
            TargetMessage::Verdict { .. } | TargetMessage::Time { .. } => return,
        };
        self.tell_source(n, m, event);
    }

    pub(super) fn source_lost_link(&mut self, n: N, link: u64, m: MigrationId) {
        if self.link_of(n, m) == Some(link) {
            self.out(n, m, |o| o.link = None);
            self.tell_source(n, m, SourceEvent::LinkLost(lost()));
        }
    }

    pub(super) fn cancel_outgoing(&mut self, n: N, m: MigrationId) -> Result<NodeReply, Problem> {
        let outgoing = self.nodes[n].outgoing.get(&m);
        let outgoing = outgoing.ok_or_else(|| Problem::not_found("migration", m))?;
        if outgoing.source.is_granted() {
            return Err(Problem::new(
                codes::STATE_CONFLICT,
                "the guest is on its way",
            ));
        }
        self.tell_source(n, m, SourceEvent::Cancel);
        Ok(NodeReply::Done)
    }

    pub(super) fn resolve_outgoing(
        &mut self,
        n: N,
        m: MigrationId,
        decision: DoubtDecision,
    ) -> Result<NodeReply, Problem> {
        if !self.nodes[n].outgoing.contains_key(&m) {
            return Err(Problem::not_found("migration", m));
        }
        self.tell_source(n, m, SourceEvent::Resolve(decision));
        Ok(NodeReply::Done)
    }

    fn finish_outgoing(&mut self, n: N, m: MigrationId, outcome: &Outcome) {
        let phase = match outcome {
            Outcome::Completed => MigrationPhase::Completed,
            Outcome::Failed { .. } => MigrationPhase::Failed,
            Outcome::Cancelled => MigrationPhase::Cancelled,
        };
        self.report.moved += u64::from(phase == MigrationPhase::Completed);
        self.publish_move(n, m, phase);
        if let Some(link) = self.nodes[n].outgoing.remove(&m).and_then(|o| o.link) {
            self.close_link(link);
        }
    }
}
