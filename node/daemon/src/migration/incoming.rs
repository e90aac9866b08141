//! A migration that comes to this node: the effects of a [`Target`].

mod recovery;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use godwit_node_logic::compat::{self, RunningAs};
use godwit_node_logic::handoff::{
    HandoffRecord, IncomingRecord, IncomingStage, QemuMigration, SOURCE_DONE_DEADLINE, Target,
    TargetEffect, TargetEvent, TargetOutcome, TombstoneVerdict,
};
use godwit_shared::model::{
    Epoch, MigrationId, MigrationPolicy, NodeId, Problem, VmId, VmSpec, codes,
};
use godwit_shared::transport::{CloseCode, Connection, MessageReceiver, Probing, Sender};
use godwit_shared::wire::peer::{Prepare, SourceMessage, TargetMessage};
use godwit_shared::wire::uplink::Verdict;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use super::calls::{ended, ended_before, follow, record_handoff, write_granted};
use super::manager::{Ended, MigrationContext};
use super::outgoing::PROBE;
use super::peer::{self, Closer};
use super::progress::now_us;
use super::{disks, qemu, rehearsal, relay};
use crate::domain::DomainActor;
use crate::domain::messages::{Activate, ActivateError, DiscardIncoming, DomainSignal};
use crate::fault;
use crate::images::{self, NewImage};
use crate::supervisor::messages::{CheckIncoming, IncomingRequest, StartIncoming};

/// How long to wait before something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long `RESUME` may take to arrive once `cont` was answered. The guest runs
/// meanwhile; only the source's QEMU ends that much later.
const RESUME_PATIENCE: Duration = Duration::from_millis(250);

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
    /// What was asked for, with the images that it takes.
    request: Option<(Arrival, Vec<NewImage>)>,
    accepted: Option<(IncomingRequest, MigrationPolicy)>,
    domain: Option<Addr<DomainActor>>,
    /// A start of QEMU is under way: a discard waits for it.
    starting: bool,
    discard_waits: Option<TombstoneVerdict>,
    link: Option<Link>,
    /// Which connection is in use: what older ones still say does not count.
    generation: u32,
    relay: Option<relay::Relay>,
    /// QEMU has noticed that its channels are gone, by its own events: in a
    /// broken post-copy its main loop may hang, and nothing else can be asked.
    broken: bool,
    /// It has to notice that first.
    recovery_waits: bool,
    /// When the CPUs began to run, by QEMU's event, in microseconds.
    resumed_us: Option<u64>,
    /// The CPUs run, and `RESUME` has not come yet.
    resume_waits: bool,
    /// Whether the CPUs shall run.
    runs: bool,
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

/// A source that has connected anew, to send the rest of a post-copy.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Reunion {
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
    /// Over the connection of that generation.
    Message(u32, SourceMessage),
    /// It has ended.
    LinkLost(u32, Problem),
    /// After a restart of the daemon: how QEMU's migration stands.
    Looked(QemuMigration),
    /// Post-copy: whether QEMU waits for new channels, over the connection of
    /// that generation.
    ListensAgain(u32, bool),
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
        let images = disks::new_images(&arrival.spec, &prepare.disks);
        let record = IncomingRecord {
            migration: prepare.migration,
            source: arrival.source.clone(),
            epoch: prepare.epoch.next(),
            images: disks::image_paths(&images),
            stage: IncomingStage::Prepared,
        };
        let vm = prepare.vm;
        let mut incoming = Self::new(context, manager, vm, record, target, effects);
        incoming.request = Some((arrival, images));
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
            generation: 0,
            relay: None,
            broken: false,
            recovery_waits: false,
            resumed_us: None,
            resume_waits: false,
            runs: false,
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
                TargetEffect::Send(message) => self.send(message),
                TargetEffect::Look => self.look(),
                TargetEffect::Recover => self.recover_qemu(),
                TargetEffect::AwaitSource => Self::await_source(ctx),
                TargetEffect::Journal(stage) => self.journal(stage),
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
    fn open_link(
        &mut self,
        connection: Connection,
        sender: Sender,
        messages: MessageReceiver<SourceMessage>,
    ) {
        self.generation += 1;
        let generation = self.generation;
        let outbox = peer::outbox(
            sender.into_messages(),
            connection.clone(),
            Closer::Peer,
            point,
        );
        let inputs = self.inputs.clone();
        let listening = connection.clone();
        actix::spawn(async move {
            let take = |message| {
                let _ = inputs.send(Input::Message(generation, message));
            };
            let end = peer::listen(messages, listening, take).await;
            let _ = inputs.send(Input::LinkLost(generation, end));
        });
        let probing = connection.probe_every(PROBE);
        self.link = Some(Link {
            outbox,
            connection,
            _probing: probing,
        });
    }

    fn check(&mut self) {
        let Some((arrival, images)) = self.request.take() else {
            return;
        };
        let Arrival {
            prepare,
            spec,
            connection,
            sender,
            messages,
            ..
        } = arrival;
        if prepare.dry_run {
            let trial = rehearsal::take_trial(connection.clone());
            self.context.runtime.spawn(trial);
        }
        self.open_link(connection, sender, messages);
        let mirrored: Vec<u16> = images.iter().map(|image| image.index).collect();
        let source = RunningAs {
            machine: &prepare.machine,
            accelerator: &prepare.accelerator,
            qemu_version: &prepare.qemu_version,
            cpu_model: &prepare.cpu_model,
            postcopy: prepare.policy.allows_postcopy(),
            mirrored: &mirrored,
        };
        let mut blockers = compat::blockers(&spec, &source, &self.context.emulators);
        let request = disks::incoming_request(&prepare, spec, images, self.record.source.clone());
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
        let images = request.images.clone();
        actix::spawn(async move {
            fault::reach("target.before_start").await;
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
                let exports = disks::export(&context, &domain, &images, &socket).await?;
                qemu::start_incoming(&domain, &policy, &socket).await?;
                Ok(exports)
            };
            let event = match ready.await {
                Ok(exports) => {
                    let serving = relay::serve_target(connection, Arc::from(socket), exports, stop);
                    context.runtime.spawn(serving);
                    TargetEvent::Started
                }
                Err(problem) => TargetEvent::StartFailed(problem),
            };
            let _ = inputs.send(Input::Event(event));
        });
    }

    fn journal(&mut self, stage: IncomingStage) {
        self.record.stage = stage;
        let Some(domain) = self.domain.clone() else {
            return;
        };
        let migration = self.migration;
        let record = Some(HandoffRecord::Incoming(self.record.clone()));
        if let IncomingStage::Running { .. } = stage {
            return self.mark_running(domain, stage, record);
        }
        // A host that forgets, booted anew, that it took the right would throw
        // away the disks to which the guest has written, and the source's are gone.
        let through = !self.record.images.is_empty();
        self.beside(async move {
            fault::reach("target.before_grant_journal").await;
            let written = record_handoff(&domain, migration, record, through).await;
            fault::reach("target.after_grant_journal").await;
            Some(match written {
                Ok(()) => TargetEvent::Journaled(stage),
                Err(problem) => TargetEvent::JournalFailed(problem),
            })
        });
    }

    fn await_source(ctx: &mut Context<Self>) {
        ctx.run_later(SOURCE_DONE_DEADLINE.duration(), |actor, ctx| {
            actor.step(TargetEvent::SourceDone, ctx);
        });
    }

    /// The moment at which the CPUs began to run is known here only.
    fn send(&self, message: TargetMessage) {
        let message = match message {
            TargetMessage::Activated {
                migration, epoch, ..
            } => TargetMessage::Activated {
                migration,
                epoch,
                resumed_us: self.resumed_us,
            },
            other => other,
        };
        if let Some(link) = &self.link {
            let _ = link.outbox.send(message);
        }
    }

    /// The CPUs run: whoever asks from now on, also after the record is gone,
    /// hears so. Without that word in a tombstone a later question would be
    /// refused, so it is tried until it stands. Nothing of it is thrown away from
    /// now on, so the images lose their second names: before the record says so,
    /// because then the guest may leave again, and its next record knows of none.
    fn mark_running(
        &self,
        domain: Addr<DomainActor>,
        stage: IncomingStage,
        record: Option<HandoffRecord>,
    ) {
        let tombstones = self.context.tombstones.clone();
        let (migration, vm) = (self.migration, self.vm);
        let images = self.record.images.clone();
        self.beside(async move {
            fault::reach("target.after_cont").await;
            write_granted(&tombstones, migration, vm).await;
            let _ = tokio::task::spawn_blocking(move || images::keep(&images, migration)).await;
            if let Err(problem) = record_handoff(&domain, migration, record, false).await {
                tracing::warn!(%migration, %problem, "the record does not show that the guest runs");
            }
            Some(TargetEvent::Journaled(stage))
        });
    }

    /// What QEMU did while nobody listened.
    fn look(&self) {
        let Some(domain) = self.domain.clone() else {
            return;
        };
        let inputs = self.inputs.clone();
        actix::spawn(async move {
            match qemu::look_at_incoming(&domain).await {
                Ok(Some(state)) => drop(inputs.send(Input::Looked(state))),
                Ok(None) => {}
                Err(problem) => {
                    tracing::warn!(%problem, "QEMU does not say how its migration stands");
                }
            }
        });
    }

    /// QEMU's migration changed, or was found so.
    fn on_qemu(&mut self, state: &QemuMigration, ctx: &mut Context<Self>) {
        match state {
            QemuMigration::Completed => self.step(TargetEvent::Loaded, ctx),
            QemuMigration::PostcopyActive => {
                self.broken = false;
                self.step(TargetEvent::Listening, ctx);
            }
            QemuMigration::PostcopyPaused => {
                self.broken = true;
                self.step(TargetEvent::Listening, ctx);
                if self.recovery_waits {
                    self.listen_again();
                }
            }
            QemuMigration::Failed(_) => {
                let problem = Problem::new(
                    codes::MIGRATION_FAILED,
                    "the target's QEMU could not load the guest",
                )
                .remedy("look at the target's QEMU log");
                self.step(TargetEvent::LoadFailed(problem), ctx);
            }
            _ => {}
        }
    }

    /// Runs the CPUs. The domain says whether a failure leaves the right free to
    /// go back; while QEMU's session is away it is asked again, for as long as
    /// that takes: the source is told that the grant was taken.
    fn activate(&mut self, epoch: Epoch, run: bool) {
        self.runs = run;
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

    /// `RESUME` and the answer to `cont` come on different ways: the source is
    /// told of both at once, so the answer waits for the event a little.
    fn on_activated(&mut self, ctx: &mut Context<Self>) {
        self.resume_waits = true;
        if self.resumed_us.is_some() || !self.runs {
            return self.on_resume_waited(ctx);
        }
        ctx.run_later(RESUME_PATIENCE, Self::on_resume_waited);
    }

    fn on_resume_waited(&mut self, ctx: &mut Context<Self>) {
        if std::mem::take(&mut self.resume_waits) {
            self.step(TargetEvent::Activated, ctx);
        }
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
            fault::reach("target.before_discard").await;
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
            DomainSignal::Qmp(event) if event.name == "RESUME" => {
                self.resumed_us.get_or_insert(event.timestamp);
                self.on_resume_waited(ctx);
            }
            DomainSignal::Qmp(event) => {
                if let Some(state) = qemu::meaning(&event) {
                    self.on_qemu(&state, ctx);
                }
            }
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
            SourceMessage::Grant {
                epoch,
                run,
                postcopy: early,
                ..
            } => TargetEvent::Grant { epoch, run, early },
            SourceMessage::Cancel { reason, .. } => TargetEvent::Cancel(reason),
            SourceMessage::Retired { .. } => TargetEvent::SourceDone,
            SourceMessage::AskTime { sent_us, .. } => {
                return self.send(TargetMessage::Time {
                    migration: self.migration,
                    sent_us,
                    here_us: now_us(),
                });
            }
            // These come first on a connection of their own, to the manager.
            SourceMessage::TakenBack { .. }
            | SourceMessage::Resume { .. }
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
        let following = async move {
            let forward = move |signal| inputs.send(Input::Signal(signal)).is_ok();
            follow(domain.clone(), forward).await;
            ended_before(&domain).await
        };
        let following = following.into_actor(self);
        ctx.wait(following.map(move |ended, actor, ctx| {
            actor.perform(effects, ctx);
            if let Some(problem) = ended {
                actor.step(TargetEvent::QemuGone(problem), ctx);
            }
            if actor.record.stage == (IncomingStage::Running { complete: true }) {
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
            Input::Event(TargetEvent::Activated) => self.on_activated(ctx),
            Input::Event(event) => self.step(event, ctx),
            Input::Signal(signal) => self.on_signal(signal, ctx),
            Input::Message(generation, message) if generation == self.generation => {
                self.on_message(message, ctx);
            }
            Input::LinkLost(generation, problem) if generation == self.generation => {
                self.step(TargetEvent::LinkLost(problem), ctx);
            }
            Input::Message(..) | Input::LinkLost(..) => {}
            Input::Looked(state) => self.on_qemu(&state, ctx),
            Input::ListensAgain(generation, listens) => {
                self.on_listens_again(generation, listens, ctx);
            }
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

impl Handler<Reunion> for Incoming {
    type Result = ();

    fn handle(&mut self, reunion: Reunion, ctx: &mut Context<Self>) {
        let Reunion {
            source,
            connection,
            sender,
            messages,
        } = reunion;
        if source != self.record.source {
            return connection.close(CloseCode::PROTOCOL, "another node's migration");
        }
        self.open_link(connection, sender, messages);
        self.step(TargetEvent::Resume, ctx);
    }
}

/// The fault point before a message is sent.
fn point(message: &TargetMessage) -> &'static str {
    match message {
        TargetMessage::Prepared { .. } => "target.before_send_prepared",
        TargetMessage::Loaded { .. } => "target.before_send_loaded",
        TargetMessage::Activated { .. } => "target.before_send_activated",
        _ => "target.before_send",
    }
}
