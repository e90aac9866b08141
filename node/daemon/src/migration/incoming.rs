//! A migration that comes to this node: the effects of a [`Target`].

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use godwit_node_logic::compat::{self, RunningAs};
use godwit_node_logic::handoff::{
    HandoffRecord, IncomingRecord, IncomingStage, QemuMigration, SOURCE_DONE_DEADLINE, Target,
    TargetEffect, TargetEvent, TargetOutcome, TombstoneVerdict,
};
use godwit_shared::model::{
    Epoch, ExitReason, MigrationId, MigrationPolicy, NodeId, Problem, VmId, VmSpec, codes,
};
use godwit_shared::transport::{Connection, MessageReceiver, Probing, Sender};
use godwit_shared::wire::peer::{Prepare, SourceMessage, TargetMessage};
use godwit_shared::wire::uplink::Verdict;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use super::calls::{follow, record_handoff};
use super::manager::{Ended, MigrationContext};
use super::outgoing::PROBE;
use super::peer::{self, Closer};
use super::tombstones::Tombstones;
use super::{qemu, relay};
use crate::domain::DomainActor;
use crate::domain::messages::{Activate, ActivateError, DiscardIncoming, DomainSignal};
use crate::supervisor::messages::{CheckIncoming, IncomingRequest, StartIncoming};

/// How long to wait before something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// The actor of a migration that comes.
pub(super) struct Incoming {
    context: Arc<MigrationContext>,
    manager: Recipient<Ended>,
    migration: MigrationId,
    vm: VmId,
    record: IncomingRecord,
    target: Target,
    first_effects: Vec<TargetEffect>,
    inputs: mpsc::UnboundedSender<Input>,
    queue: Option<mpsc::UnboundedReceiver<Input>>,
    request: Option<Arrival>,
    accepted: Option<(IncomingRequest, MigrationPolicy)>,
    domain: Option<Addr<DomainActor>>,
    /// A start of QEMU is under way: a discard waits for it.
    starting: bool,
    discard_waits: Option<TombstoneVerdict>,
    link: Option<Link>,
    relay: Option<relay::Relay>,
    questions: Vec<oneshot::Sender<Verdict>>,
}

/// What the source asked for, over which connection.
pub(super) struct Arrival {
    pub(super) prepare: Prepare,
    pub(super) spec: VmSpec,
    pub(super) source: NodeId,
    pub(super) connection: Connection,
    pub(super) sender: Sender,
    pub(super) messages: MessageReceiver<SourceMessage>,
}

struct Link {
    outbox: mpsc::UnboundedSender<TargetMessage>,
    connection: Connection,
    _probing: Probing,
}

/// Everything that an [`Incoming`] learns, in order.
pub(super) enum Input {
    Event(TargetEvent),
    Signal(DomainSignal),
    Message(SourceMessage),
    /// QEMU was started, or not.
    Started(Result<Addr<DomainActor>, Problem>),
}

impl Incoming {
    /// A source asks.
    pub(super) fn begin(
        context: Arc<MigrationContext>,
        manager: Recipient<Ended>,
        arrival: Arrival,
    ) -> Self {
        let mut effects = Vec::new();
        let prepare = &arrival.prepare;
        let target = Target::begin(
            prepare.migration,
            prepare.epoch,
            prepare.dry_run,
            &mut effects,
        );
        let record = IncomingRecord {
            migration: prepare.migration,
            source: arrival.source.clone(),
            epoch: prepare.epoch.next(),
            stage: IncomingStage::Prepared,
        };
        let vm = prepare.vm;
        let mut incoming = Self::new(context, manager, vm, record, target, effects);
        incoming.request = Some(arrival);
        incoming
    }

    /// A migration found in the journal, on the same boot of the host.
    pub(super) fn recover(
        context: Arc<MigrationContext>,
        manager: Recipient<Ended>,
        vm: VmId,
        record: IncomingRecord,
        domain: Addr<DomainActor>,
    ) -> Self {
        let mut effects = Vec::new();
        let target = Target::recover(record.migration, record.epoch, record.stage, &mut effects);
        let mut incoming = Self::new(context, manager, vm, record, target, effects);
        incoming.domain = Some(domain);
        incoming
    }

    fn new(
        context: Arc<MigrationContext>,
        manager: Recipient<Ended>,
        vm: VmId,
        record: IncomingRecord,
        target: Target,
        first_effects: Vec<TargetEffect>,
    ) -> Self {
        let (inputs, queue) = mpsc::unbounded_channel();
        Self {
            context,
            manager,
            migration: record.migration,
            vm,
            record,
            target,
            first_effects,
            inputs,
            queue: Some(queue),
            request: None,
            accepted: None,
            domain: None,
            starting: false,
            discard_waits: None,
            link: None,
            relay: None,
            questions: Vec::new(),
        }
    }

    fn step(&mut self, event: TargetEvent, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        if let Err(rejected) = self.target.step(event, &mut effects) {
            tracing::debug!(migration = %self.migration, %rejected, "an event came out of turn");
        }
        self.perform(effects, ctx);
    }

    fn perform(&mut self, effects: Vec<TargetEffect>, ctx: &mut Context<Self>) {
        for effect in effects {
            tracing::debug!(migration = %self.migration, ?effect, "effect");
            match effect {
                TargetEffect::Check => self.check(),
                TargetEffect::StartQemu => self.start_qemu(),
                TargetEffect::Send(message) => {
                    if let Some(link) = &self.link {
                        let _ = link.outbox.send(message);
                    }
                }
                TargetEffect::Journal(stage) => self.journal(stage, ctx),
                TargetEffect::Activate { epoch, run } => self.activate(epoch, run),
                TargetEffect::Discard(word) => self.discard(word),
                TargetEffect::Answer(verdict) => {
                    for question in self.questions.drain(..) {
                        let _ = question.send(verdict);
                    }
                }
                TargetEffect::Finish(outcome) => self.finish(&outcome, ctx),
            }
        }
    }

    fn beside(&self, work: impl Future<Output = Option<TargetEvent>> + 'static) {
        let inputs = self.inputs.clone();
        actix::spawn(async move {
            if let Some(event) = work.await {
                let _ = inputs.send(Input::Event(event));
            }
        });
    }

    /// Takes the connection in use: answers go out, messages come in.
    fn open_link(&mut self, arrival: Arrival) -> Prepare {
        let Arrival {
            prepare,
            connection,
            sender,
            messages,
            ..
        } = arrival;
        let outbox = peer::outbox(sender.into_messages(), connection.clone(), Closer::Peer);
        let inputs = self.inputs.clone();
        let listening = connection.clone();
        actix::spawn(async move {
            let take = |message| {
                let _ = inputs.send(Input::Message(message));
            };
            let end = peer::listen(messages, listening, take).await;
            let _ = inputs.send(Input::Event(TargetEvent::LinkLost(end)));
        });
        let probing = connection.probe_every(PROBE);
        self.link = Some(Link {
            outbox,
            connection,
            _probing: probing,
        });
        prepare
    }

    fn check(&mut self) {
        let Some(arrival) = self.request.take() else {
            return;
        };
        let spec = arrival.spec.clone();
        let prepare = self.open_link(arrival);
        let source = RunningAs {
            machine: &prepare.machine,
            accelerator: &prepare.accelerator,
            qemu_version: &prepare.qemu_version,
        };
        let mut blockers = compat::blockers(&spec, &source, &self.context.emulators);
        let request = incoming_request(&prepare, spec, self.record.source.clone());
        let supervisor = self.context.supervisor.clone();
        self.record.epoch = prepare.epoch.next();
        let here = CheckIncoming(request.clone());
        self.accepted = Some((request, prepare.policy));
        self.beside(async move {
            match supervisor.send(here).await {
                Ok(more) => blockers.extend(more),
                Err(_) => blockers.push(qemu::actor_gone()),
            }
            Some(TargetEvent::Checked(blockers))
        });
    }

    fn start_qemu(&mut self) {
        let (Some((request, policy)), Some(link)) = (self.accepted.take(), &self.link) else {
            return;
        };
        self.starting = true;
        let socket = self.context.socket(self.migration);
        let stop = CancellationToken::new();
        self.relay = Some(relay::Relay {
            stop: stop.clone(),
            socket: socket.clone(),
        });
        let context = Arc::clone(&self.context);
        let connection = link.connection.clone();
        let record = HandoffRecord::Incoming(self.record.clone());
        let inputs = self.inputs.clone();
        actix::spawn(async move {
            let started = context.supervisor.send(StartIncoming(request)).await;
            let domain = match started.unwrap_or_else(|_| Err(qemu::actor_gone())) {
                Ok(domain) => domain,
                Err(problem) => {
                    let _ = inputs.send(Input::Started(Err(problem)));
                    return;
                }
            };
            // From here on the domain exists: whatever fails, it is discarded.
            let _ = inputs.send(Input::Started(Ok(domain.clone())));
            let forward = inputs.clone();
            follow(domain.clone(), move |signal| {
                forward.send(Input::Signal(signal)).is_ok()
            })
            .await;
            let ready = async {
                record_handoff(&domain, record.migration(), Some(record), true).await?;
                qemu::start_incoming(&domain, &policy, &socket).await
            };
            let event = match ready.await {
                Ok(()) => {
                    let path = Arc::from(socket);
                    context
                        .runtime
                        .spawn(relay::serve_target(connection, path, stop));
                    TargetEvent::Started
                }
                Err(problem) => TargetEvent::StartFailed(problem),
            };
            let _ = inputs.send(Input::Event(event));
        });
    }

    fn journal(&mut self, stage: IncomingStage, ctx: &mut Context<Self>) {
        self.record.stage = stage;
        let Some(domain) = self.domain.clone() else {
            return;
        };
        let migration = self.migration;
        let record = Some(HandoffRecord::Incoming(self.record.clone()));
        if stage == IncomingStage::Running {
            return self.mark_running(domain, record, ctx);
        }
        self.beside(async move {
            Some(
                match record_handoff(&domain, migration, record, false).await {
                    Ok(()) => TargetEvent::Journaled(stage),
                    Err(problem) => TargetEvent::JournalFailed(problem),
                },
            )
        });
    }

    /// The CPUs run: whoever asks from now on, also after the record is gone,
    /// hears so. Without that word in a tombstone a later question would be
    /// refused, so it is tried until it stands.
    fn mark_running(
        &self,
        domain: Addr<DomainActor>,
        record: Option<HandoffRecord>,
        ctx: &mut Context<Self>,
    ) {
        let tombstones = self.context.tombstones.clone();
        let (migration, vm) = (self.migration, self.vm);
        self.beside(async move {
            write_granted(&tombstones, migration, vm).await;
            if let Err(problem) = record_handoff(&domain, migration, record, false).await {
                tracing::warn!(%migration, %problem, "the record does not show that the guest runs");
            }
            Some(TargetEvent::Journaled(IncomingStage::Running))
        });
        ctx.run_later(SOURCE_DONE_DEADLINE.duration(), |actor, ctx| {
            actor.step(TargetEvent::SourceDone, ctx);
        });
    }

    /// Runs the CPUs. The domain says whether a failure leaves the right free to
    /// go back; while QEMU's session is away it is asked again, for as long as
    /// that takes: the source is told that the grant was taken.
    fn activate(&mut self, epoch: Epoch, run: bool) {
        let Some(domain) = self.domain.clone() else {
            return;
        };
        self.beside(async move {
            loop {
                let Ok(told) = domain.send(Activate { epoch, run }).await else {
                    return Some(TargetEvent::ActivateUnclear(qemu::actor_gone()));
                };
                match told {
                    Ok(()) => return Some(TargetEvent::Activated),
                    Err(ActivateError::NeverRan(problem)) => {
                        return Some(TargetEvent::ActivateFailed(problem));
                    }
                    Err(ActivateError::Unclear(problem)) => {
                        return Some(TargetEvent::ActivateUnclear(problem));
                    }
                    Err(ActivateError::NotYet(_)) => tokio::time::sleep(AGAIN).await,
                }
            }
        });
    }

    /// The tombstone comes first: without it a later question could get another
    /// answer. What fails is tried again; nothing is said before it is done.
    fn discard(&mut self, word: TombstoneVerdict) {
        if self.starting {
            self.discard_waits = Some(word);
            return;
        }
        self.relay = None;
        let context = Arc::clone(&self.context);
        let (migration, vm, domain) = (self.migration, self.vm, self.domain.take());
        self.beside(async move {
            while let Err(problem) = context.tombstones.write(migration, vm, word) {
                tracing::error!(%migration, %problem, "the refusal cannot be written down");
                tokio::time::sleep(AGAIN).await;
            }
            if let Some(domain) = domain {
                while let Ok(Err(problem)) = domain.send(DiscardIncoming).await {
                    tracing::error!(%migration, %problem, "what was received cannot be removed");
                    tokio::time::sleep(AGAIN).await;
                }
            }
            Some(TargetEvent::Discarded)
        });
    }

    fn finish(&mut self, outcome: &TargetOutcome, ctx: &mut Context<Self>) {
        self.relay = None;
        match outcome {
            TargetOutcome::Received => {
                tracing::info!(migration = %self.migration, vm = %self.vm, "received");
                self.close_record();
            }
            TargetOutcome::Gone(problem) => {
                tracing::info!(migration = %self.migration, %problem, "not received");
            }
            TargetOutcome::Checked => {}
        }
        Ended(self.migration).tell(&self.manager);
        self.link = None;
        ctx.stop();
    }

    /// The word is in a tombstone; the domain's record is its own again. A
    /// record that stays would let the next daemon run the guest anew.
    fn close_record(&self) {
        let Some(domain) = self.domain.clone() else {
            return;
        };
        let migration = self.migration;
        actix::spawn(async move {
            while let Err(problem) = record_handoff(&domain, migration, None, false).await {
                if !domain.connected() {
                    return;
                }
                tracing::warn!(%migration, %problem, "the handoff stays in the domain's record");
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    fn on_signal(&mut self, signal: DomainSignal, ctx: &mut Context<Self>) {
        match signal {
            DomainSignal::Qmp(event) => match qemu::meaning(&event) {
                Some(QemuMigration::Completed) => self.step(TargetEvent::Loaded, ctx),
                Some(QemuMigration::Failed(_)) => {
                    let problem = Problem::new(
                        codes::MIGRATION_FAILED,
                        "the target's QEMU could not load the guest",
                    )
                    .remedy("look at the target's QEMU log");
                    self.step(TargetEvent::LoadFailed(problem), ctx);
                }
                _ => {}
            },
            DomainSignal::Exited(reason) => self.step(TargetEvent::QemuGone(ended(&reason)), ctx),
            DomainSignal::QmpLost => {
                let problem =
                    Problem::new(codes::QEMU_GONE, "the target's QEMU closed its QMP session");
                self.step(TargetEvent::LoadFailed(problem), ctx);
            }
        }
    }

    fn on_message(&mut self, message: SourceMessage, ctx: &mut Context<Self>) {
        if message.migration() != self.migration {
            tracing::warn!(migration = %self.migration, "a message for another migration");
            return;
        }
        let event = match message {
            SourceMessage::Grant { epoch, run, .. } => TargetEvent::Grant { epoch, run },
            SourceMessage::Cancel { reason, .. } => TargetEvent::Cancel(reason),
            SourceMessage::Retired { .. } => TargetEvent::SourceDone,
            // A question comes over a connection of its own, to the manager.
            SourceMessage::TakenBack { .. }
            | SourceMessage::Prepare(_)
            | SourceMessage::Query { .. } => return,
        };
        self.step(event, ctx);
    }

    fn on_started(&mut self, started: Result<Addr<DomainActor>, Problem>, ctx: &mut Context<Self>) {
        match started {
            Ok(domain) => self.domain = Some(domain),
            Err(problem) => self.on_start_ended(TargetEvent::StartFailed(problem), ctx),
        }
    }

    /// QEMU's start has ended one way or the other: a discard may go on.
    fn on_start_ended(&mut self, event: TargetEvent, ctx: &mut Context<Self>) {
        self.starting = false;
        self.step(event, ctx);
        if let Some(word) = self.discard_waits.take() {
            self.discard(word);
        }
    }
}

impl Actor for Incoming {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if let Some(queue) = self.queue.take() {
            ctx.add_stream(UnboundedReceiverStream::new(queue));
        }
        let effects = std::mem::take(&mut self.first_effects);
        let Some(domain) = self.domain.clone() else {
            return self.perform(effects, ctx);
        };
        let inputs = self.inputs.clone();
        let following = follow(domain, move |signal| {
            inputs.send(Input::Signal(signal)).is_ok()
        });
        let following = following.into_actor(self);
        ctx.wait(following.map(move |(), actor, ctx| {
            actor.perform(effects, ctx);
            if actor.record.stage == IncomingStage::Running {
                actor.step(TargetEvent::SourceDone, ctx);
            }
        }));
    }
}

impl StreamHandler<Input> for Incoming {
    fn handle(&mut self, input: Input, ctx: &mut Context<Self>) {
        match input {
            Input::Event(event @ (TargetEvent::Started | TargetEvent::StartFailed(_))) => {
                self.on_start_ended(event, ctx);
            }
            Input::Event(event) => self.step(event, ctx),
            Input::Signal(signal) => self.on_signal(signal, ctx),
            Input::Message(message) => self.on_message(message, ctx),
            Input::Started(started) => self.on_started(started, ctx),
        }
    }
}

/// What became of the grant? Asked by the source itself, or (none) through the
/// coordinator. A stranger gets no answer.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Question {
    pub(super) asker: Option<NodeId>,
    pub(super) answer: oneshot::Sender<Verdict>,
}

impl Handler<Question> for Incoming {
    type Result = ();

    fn handle(&mut self, question: Question, ctx: &mut Context<Self>) {
        if question
            .asker
            .is_some_and(|asker| asker != self.record.source)
        {
            return;
        }
        self.questions.retain(|waiting| !waiting.is_closed());
        self.questions.push(question.answer);
        self.step(TargetEvent::Query, ctx);
    }
}

/// Writes down that the guest ran here, however often that takes.
async fn write_granted(tombstones: &Tombstones, migration: MigrationId, vm: VmId) {
    loop {
        match tombstones.write(migration, vm, TombstoneVerdict::Granted) {
            Ok(TombstoneVerdict::Granted) => return,
            Ok(other) => {
                tracing::error!(%migration, ?other, "the word given before was another");
                return;
            }
            Err(problem) => {
                tracing::error!(%migration, %problem, "the word on the grant cannot be written down");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

fn incoming_request(prepare: &Prepare, spec: VmSpec, source: NodeId) -> IncomingRequest {
    IncomingRequest {
        source,
        migration: prepare.migration,
        vm: prepare.vm,
        spec,
        epoch: prepare.epoch,
        machine: prepare.machine.clone(),
        accelerator: prepare.accelerator.clone(),
        cpu_model: prepare.cpu_model.clone(),
    }
}

fn ended(reason: &ExitReason) -> Problem {
    Problem::new(
        codes::QEMU_GONE,
        format!("the target's QEMU ended: {reason}"),
    )
    .remedy("look at the target's QEMU log")
}
