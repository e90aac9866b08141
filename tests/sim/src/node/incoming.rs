//! A migration that comes: the production `Target`, and what its daemon does
//! with the effects.

use godwit_node_logic::domain::Event;
use godwit_node_logic::handoff::{
    HandoffRecord, IncomingRecord, IncomingStage, QemuMigration, SOURCE_DONE_DEADLINE, Target,
    TargetEffect, TargetEvent, TargetOutcome, TombstoneVerdict,
};
use godwit_shared::model::{Epoch, MigrationId, Problem, VmId, VmSpec, codes};
use godwit_shared::wire::peer::SourceMessage;
use godwit_shared::wire::uplink::{NodeReply, Verdict};

use super::domain::Waiter;
use super::full;
use super::outgoing::lost;
use crate::agenda::{Arrival, Asker, InTask, N, ToNode, What, node_id};
use crate::mutant::Mutant;
use crate::qemu::{Phase, gone};
use crate::sim::Sim;

/// The actor.
#[derive(Debug)]
pub struct Incoming {
    /// Of which VM.
    pub vm: VmId,
    /// The production state machine.
    pub target: Target,
    record: IncomingRecord,
    spec: Option<VmSpec>,
    link: Option<u64>,
    starting: bool,
    discard_waits: Option<TombstoneVerdict>,
    has_domain: bool,
    open: Vec<Asker>,
}

impl Sim {
    pub(super) fn incoming_of(&self, n: N, vm: VmId) -> Vec<MigrationId> {
        let all = self.nodes[n].incoming.iter();
        let follows = |i: &Incoming| i.vm == vm && (i.has_domain || i.starting);
        all.filter(|(_, i)| follows(i)).map(|(m, _)| *m).collect()
    }

    /// A source asks to send a guest.
    pub(super) fn arrive(&mut self, n: N, link: u64, arrival: Arrival) {
        let m = arrival.migration;
        let stone = self.nodes[n].disk.stones.contains_key(&m);
        if stone || self.nodes[n].incoming.contains_key(&m) {
            return self.cut_link(link);
        }
        let mut effects = Vec::new();
        let target = Target::begin(m, arrival.epoch, false, &mut effects);
        let record = IncomingRecord {
            migration: m,
            source: node_id(arrival.source),
            epoch: arrival.epoch.next(),
            images: Vec::new(),
            stage: IncomingStage::Prepared,
        };
        let incoming = Incoming {
            vm: arrival.vm,
            target,
            record,
            spec: Some(arrival.shape),
            link: Some(link),
            starting: false,
            discard_waits: None,
            has_domain: false,
            open: Vec::new(),
        };
        self.nodes[n].incoming.insert(m, incoming);
        self.perform_target(n, m, effects);
        if !self.links.carries(link) {
            self.later(n, (50, 1_500), ToNode::LinkLostThere(link, m));
        }
    }

    pub(super) fn recover_incoming(&mut self, n: N, vm: VmId, mut record: IncomingRecord) {
        let m = record.migration;
        // A refusal that was written before the domain was removed stands.
        if self.nodes[n].disk.stones.get(&m) == Some(&TombstoneVerdict::Refused) {
            record.stage = IncomingStage::Prepared;
        }
        let (stage, epoch) = (record.stage, record.epoch);
        let mut effects = Vec::new();
        let target = Target::recover(m, epoch, stage, &mut effects);
        let incoming = Incoming {
            vm,
            target,
            record,
            spec: None,
            link: None,
            starting: false,
            discard_waits: None,
            has_domain: true,
            open: Vec::new(),
        };
        self.nodes[n].incoming.insert(m, incoming);
        self.perform_target(n, m, effects);
        let process = |d: &super::DomainActor| d.machine.has_process();
        if !self.nodes[n].domains.get(&vm).is_some_and(process) {
            self.tell_target(n, m, TargetEvent::QemuGone(gone()));
        }
        if stage == (IncomingStage::Running { complete: true }) {
            self.tell_target(n, m, TargetEvent::SourceDone);
        }
    }

    pub(super) fn tell_target(&mut self, n: N, m: MigrationId, event: TargetEvent) {
        let Some(incoming) = self.nodes[n].incoming.get_mut(&m) else {
            return;
        };
        let mut effects = Vec::new();
        let _ = incoming.target.step(event, &mut effects);
        self.perform_target(n, m, effects);
    }

    fn perform_target(&mut self, n: N, m: MigrationId, effects: Vec<TargetEffect>) {
        for effect in effects {
            match effect {
                TargetEffect::Check => self.later(n, (1, 30), ToNode::In(m, InTask::Check)),
                TargetEffect::StartQemu => {
                    self.inc(n, m, |i| i.starting = true);
                    self.later(n, (1, 50), ToNode::In(m, InTask::Start));
                }
                TargetEffect::Send(message) => {
                    if let Some(link) = self.nodes[n].incoming.get(&m).and_then(|i| i.link) {
                        self.say_to_source(link, message);
                    }
                }
                TargetEffect::AwaitSource => {
                    self.wake(n, SOURCE_DONE_DEADLINE.0, ToNode::In(m, InTask::Enough));
                }
                TargetEffect::Journal(stage) => {
                    self.inc(n, m, |i| i.record.stage = stage);
                    if self.nodes[n].incoming.get(&m).is_some_and(|i| i.has_domain) {
                        self.later(n, (1, 15), ToNode::In(m, InTask::Journal(stage)));
                    }
                }
                TargetEffect::Activate { epoch, run } => {
                    self.later(n, (1, 10), ToNode::In(m, InTask::Activate(epoch, run)));
                }
                TargetEffect::Discard(word) => self.discard(n, m, word),
                TargetEffect::Answer(word) => {
                    let mut open = Vec::new();
                    self.inc(n, m, |i| open = std::mem::take(&mut i.open));
                    for asker in open {
                        self.answer_asker(n, m, asker, word);
                    }
                }
                TargetEffect::Finish(outcome) => self.finish_incoming(n, m, &outcome),
                // Post-copy only, or after a restart in it.
                TargetEffect::Look | TargetEffect::Recover => {}
            }
        }
    }

    fn inc(&mut self, n: N, m: MigrationId, change: impl FnOnce(&mut Incoming)) {
        if let Some(incoming) = self.nodes[n].incoming.get_mut(&m) {
            change(incoming);
        }
    }

    fn discard(&mut self, n: N, m: MigrationId, word: TombstoneVerdict) {
        if self.nodes[n].incoming.get(&m).is_some_and(|i| i.starting) {
            return self.inc(n, m, |i| i.discard_waits = Some(word));
        }
        self.later(n, (1, 15), ToNode::In(m, InTask::Bury(word)));
    }

    pub(super) fn in_task(&mut self, n: N, m: MigrationId, task: InTask) {
        let Some(vm) = self.nodes[n].incoming.get(&m).map(|i| i.vm) else {
            return;
        };
        match task {
            InTask::Check => self.check_arrival(n, m, vm),
            InTask::Start => self.start_incoming(n, m, vm),
            InTask::Promise => self.promise(n, m, vm),
            InTask::Journal(stage) => {
                let runs = matches!(stage, IncomingStage::Running { .. });
                if runs {
                    self.write_stone(n, m, TombstoneVerdict::Granted);
                }
                let record = self.nodes[n].incoming.get(&m).map(|i| i.record.clone());
                let record = record.map(HandoffRecord::Incoming);
                let written = self.record_handoff(n, vm, record);
                let event = match written || runs {
                    true => TargetEvent::Journaled(stage),
                    false => TargetEvent::JournalFailed(gone()),
                };
                self.tell_target(n, m, event);
            }
            InTask::Activate(epoch, run) => self.activate(n, m, vm, (epoch, run)),
            InTask::Bury(word) => {
                self.write_stone(n, m, word);
                let mut has_domain = false;
                self.inc(n, m, |i| has_domain = std::mem::take(&mut i.has_domain));
                match has_domain {
                    true => self.in_task(n, m, InTask::Discard),
                    false => self.tell_target(n, m, TargetEvent::Discarded),
                }
            }
            InTask::Discard if !self.nodes[n].domains.contains_key(&vm) => {
                self.tell_target(n, m, TargetEvent::Discarded);
            }
            InTask::Discard => self.ask_domain(n, vm, Event::Discard, Waiter::Discard(m)),
            InTask::Enough => self.tell_target(n, m, TargetEvent::SourceDone),
        }
    }

    fn check_arrival(&mut self, n: N, m: MigrationId, vm: VmId) {
        let node = &self.nodes[n];
        let busy = node
            .domains
            .get(&vm)
            .is_some_and(|d| d.machine.has_process());
        let needs = node.incoming.get(&m).and_then(|i| i.spec.as_ref());
        let needs = needs.map_or(0, |spec| spec.memory.0);
        let mut blockers = Vec::new();
        if busy {
            blockers.push(Problem::new(codes::BUSY, "it has a process here"));
        }
        if !node.has_room(needs) && !self.mutates(Mutant::NoLedger) {
            blockers.push(full());
        }
        self.tell_target(n, m, TargetEvent::Checked(blockers));
    }

    fn start_incoming(&mut self, n: N, m: MigrationId, vm: VmId) {
        let incoming = self.nodes[n].incoming.get_mut(&m);
        let Some((spec, record)) = incoming.and_then(|i| Some((i.spec.take()?, i.record.clone())))
        else {
            return;
        };
        if self.become_incoming(n, vm, spec, HandoffRecord::Incoming(record)) {
            self.inc(n, m, |i| i.has_domain = true);
            self.later(n, (10, 400), ToNode::In(m, InTask::Promise));
        } else {
            self.start_ended(n, m, TargetEvent::StartFailed(full()));
        }
    }

    /// The promise is written; then QEMU listens.
    fn promise(&mut self, n: N, m: MigrationId, vm: VmId) {
        let incoming = self.nodes[n].incoming.get(&m);
        let Some((record, link)) = incoming.and_then(|i| Some((i.record.clone(), i.link?))) else {
            return self.start_ended(n, m, TargetEvent::StartFailed(lost()));
        };
        let written = self.record_handoff(n, vm, Some(HandoffRecord::Incoming(record)));
        let pid = self.nodes[n].pid_of(vm).filter(|_| written);
        let qemu = pid.and_then(|pid| self.nodes[n].qemus.get_mut(&pid));
        match qemu.filter(|q| q.phase == Phase::Waiting(m)) {
            Some(qemu) => qemu.phase = Phase::Listening(m, link),
            None => return self.start_ended(n, m, TargetEvent::StartFailed(gone())),
        }
        self.links.set_target_qemu(link, pid.unwrap_or_default());
        self.start_ended(n, m, TargetEvent::Started);
    }

    /// QEMU's start has ended one way or the other: a discard may go on.
    fn start_ended(&mut self, n: N, m: MigrationId, event: TargetEvent) {
        self.inc(n, m, |i| i.starting = false);
        self.tell_target(n, m, event);
        let mut waits = None;
        self.inc(n, m, |i| waits = i.discard_waits.take());
        if let Some(word) = waits {
            self.discard(n, m, word);
        }
    }

    fn activate(&mut self, n: N, m: MigrationId, vm: VmId, (epoch, run): (Epoch, bool)) {
        if self.nodes[n].domains.contains_key(&vm) {
            let waiter = Waiter::Activate(m, epoch, run);
            self.ask_domain(n, vm, Event::Activate { epoch, run }, waiter);
        } else {
            self.tell_target(n, m, TargetEvent::ActivateUnclear(gone()));
        }
    }

    pub(super) fn target_qemu_changed(&mut self, n: N, m: MigrationId, change: &QemuMigration) {
        match change {
            QemuMigration::Completed => self.tell_target(n, m, TargetEvent::Loaded),
            QemuMigration::Failed(_) => self.tell_target(n, m, TargetEvent::LoadFailed(gone())),
            _ => {}
        }
    }

    pub(super) fn target_reads(&mut self, n: N, link: u64, m: MigrationId, message: SourceMessage) {
        if self.nodes[n].incoming.get(&m).and_then(|i| i.link) != Some(link) {
            return;
        }
        let event = match message {
            SourceMessage::Grant {
                epoch,
                run,
                postcopy,
                ..
            } => TargetEvent::Grant {
                epoch,
                run,
                early: postcopy,
            },
            SourceMessage::Cancel { reason, .. } => TargetEvent::Cancel(reason),
            SourceMessage::Retired { .. } => TargetEvent::SourceDone,
            _ => return,
        };
        self.tell_target(n, m, event);
    }

    pub(super) fn target_lost_link(&mut self, n: N, link: u64, m: MigrationId) {
        if self.nodes[n].incoming.get(&m).and_then(|i| i.link) == Some(link) {
            self.inc(n, m, |i| i.link = None);
            self.tell_target(n, m, TargetEvent::LinkLost(lost()));
        }
    }

    /// Somebody asks what became of a grant. One that nobody has in hand is
    /// refused for good.
    pub(super) fn question(&mut self, n: N, asker: Asker, m: MigrationId) {
        if self.nodes[n].incoming.contains_key(&m) {
            self.inc(n, m, |i| {
                if !i.open.contains(&asker) {
                    i.open.push(asker);
                }
            });
            return self.tell_target(n, m, TargetEvent::Query);
        }
        let word = self.write_stone(n, m, TombstoneVerdict::Refused);
        self.answer_asker(n, m, asker, word.into());
    }

    fn answer_asker(&mut self, n: N, m: MigrationId, asker: Asker, word: Verdict) {
        match asker {
            Asker::Coordinator(session, request) => {
                self.reply(n, (session, request), Ok(NodeReply::Verdict(word)));
            }
            Asker::Source(s, life) if self.reach(n + 1, s + 1) => {
                let at = self.now + self.lag(s, 2, 60);
                self.agenda
                    .add(at, What::Node(s, life, ToNode::Word(m, word)));
            }
            Asker::Source(..) => {}
        }
    }

    /// Writes a word down. The first one stands, and is the answer.
    pub(super) fn write_stone(
        &mut self,
        n: N,
        m: MigrationId,
        word: TombstoneVerdict,
    ) -> TombstoneVerdict {
        *self.nodes[n].disk.stones.entry(m).or_insert(word)
    }

    fn finish_incoming(&mut self, n: N, m: MigrationId, outcome: &TargetOutcome) {
        let Some(ended) = self.nodes[n].incoming.remove(&m) else {
            return;
        };
        if *outcome == TargetOutcome::Received && ended.has_domain {
            self.end_handoff(n, ended.vm, m);
        }
        if let Some(link) = ended.link {
            self.close_link(link);
        }
    }
}
