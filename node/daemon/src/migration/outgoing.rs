//! A migration that leaves this node: the effects of a [`Source`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use godwit_node_logic::handoff::{
    HandoffRecord, Outcome, OutgoingRecord, OutgoingStage, QemuMigration, Source, SourceEffect,
    SourceEvent, Timer,
};
use godwit_shared::model::{
    Epoch, MigrationId, MigrationPhase, MigrationPolicy, MigrationProgress, Problem, VmId, codes,
};
use godwit_shared::transport::{Probing, StreamKind};
use godwit_shared::wire::document::Document;
use godwit_shared::wire::peer::{Prepare, SourceMessage, TargetMessage};
use godwit_shared::wire::uplink::{Verdict, VerdictQuery};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use super::calls::{follow, record_handoff};
use super::manager::{Ended, MigrationContext};
use super::peer::{self, Closer, Dialled};
use super::progress::Progress;
use super::{qemu, relay};
use crate::domain::DomainActor;
use crate::domain::messages::{
    DomainSignal, EndOutgoing, MarkInHandoff, OutgoingEnd, OutgoingFacts,
};

/// How often an idle side asks the other's host for a sign of life.
pub(super) const PROBE: Duration = Duration::from_millis(25);
/// Samples for those who watch: twice a second.
const SAMPLE: Duration = Duration::from_millis(500);
/// How long to wait before something that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the coordinator may take to find out what became of a grant.
const RELAYED: Duration = Duration::from_secs(3);

/// What an [`Outgoing`] is made of.
pub(super) struct Departure {
    pub(super) context: Arc<MigrationContext>,
    pub(super) domain: Addr<DomainActor>,
    pub(super) vm: VmId,
    pub(super) record: OutgoingRecord,
    pub(super) manager: Recipient<Ended>,
}

/// The actor of a migration that leaves.
pub(super) struct Outgoing {
    departure: Departure,
    /// What to ask the target for; none after a restart of the daemon.
    begin: Option<(OutgoingFacts, MigrationPolicy)>,
    source: Source,
    first_effects: Vec<SourceEffect>,
    progress: Progress,
    epoch: Epoch,
    inputs: mpsc::UnboundedSender<Input>,
    queue: Option<mpsc::UnboundedReceiver<Input>>,
    link: Option<Link>,
    relay: Option<relay::Relay>,
    timers: HashMap<Timer, SpawnHandle>,
    watched: bool,
    asking: Asking,
}

/// The connection to the target while it stands.
struct Link {
    outbox: mpsc::UnboundedSender<SourceMessage>,
    dialled: Arc<Dialled>,
    _probing: Probing,
}

/// The ways on which a source in doubt asks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// The target itself, over a fresh connection.
    Direct,
    /// The target through the coordinator.
    Relayed,
}

/// Which questions are under way.
#[derive(Debug, Default)]
struct Asking {
    direct: bool,
    relayed: bool,
}

/// Everything that an [`Outgoing`] learns, in order.
pub(super) enum Input {
    Event(SourceEvent),
    Signal(DomainSignal),
    Connected(Dialled, mpsc::UnboundedSender<SourceMessage>),
    Message(TargetMessage),
    Sampled(MigrationProgress),
    /// Something the operator should know.
    Alarm(Problem),
    /// A question is through, with or without a word.
    Asked(Way),
}

impl Outgoing {
    /// A migration that begins.
    pub(super) fn begin(
        departure: Departure,
        facts: OutgoingFacts,
        policy: MigrationPolicy,
    ) -> Self {
        let mut effects = Vec::new();
        let record = &departure.record;
        let source = Source::begin(
            record.migration,
            departure.vm,
            record.epoch,
            record.run,
            &mut effects,
        );
        Self::new(departure, Some((facts, policy)), source, effects)
    }

    /// A migration found in the journal.
    pub(super) fn recover(departure: Departure) -> Self {
        let mut effects = Vec::new();
        let record = &departure.record;
        let source = Source::recover(
            record.migration,
            departure.vm,
            record.epoch,
            record.run,
            record.stage,
            &mut effects,
        );
        Self::new(departure, None, source, effects)
    }

    fn new(
        departure: Departure,
        begin: Option<(OutgoingFacts, MigrationPolicy)>,
        source: Source,
        first_effects: Vec<SourceEffect>,
    ) -> Self {
        let (inputs, queue) = mpsc::unbounded_channel();
        let record = &departure.record;
        let route = (departure.context.node.clone(), record.target.node.clone());
        let progress = Progress::new(
            departure.context.bus.clone(),
            record.migration,
            departure.vm,
            route,
            record.started,
            record.epoch,
        );
        Self {
            epoch: record.epoch,
            departure,
            begin,
            source,
            first_effects,
            progress,
            inputs,
            queue: Some(queue),
            link: None,
            relay: None,
            timers: HashMap::new(),
            watched: false,
            asking: Asking::default(),
        }
    }

    fn migration(&self) -> MigrationId {
        self.departure.record.migration
    }

    fn step(&mut self, event: SourceEvent, ctx: &mut Context<Self>) {
        let _ = self.took(event, ctx);
    }

    /// Steps; whether the event was taken.
    fn took(&mut self, event: SourceEvent, ctx: &mut Context<Self>) -> bool {
        let mut effects = Vec::new();
        let taken = self.source.step(event, &mut effects);
        if let Err(rejected) = &taken {
            tracing::debug!(migration = %self.migration(), %rejected, "an event came out of turn");
        }
        self.perform(effects, ctx);
        taken.is_ok()
    }

    fn perform(&mut self, effects: Vec<SourceEffect>, ctx: &mut Context<Self>) {
        for effect in effects {
            self.perform_one(effect, ctx);
        }
    }

    fn perform_one(&mut self, effect: SourceEffect, ctx: &mut Context<Self>) {
        tracing::debug!(migration = %self.migration(), ?effect, "effect");
        match effect {
            SourceEffect::Send(message) => {
                if let Some(link) = &self.link {
                    let _ = link.outbox.send(message);
                }
            }
            SourceEffect::StartMigration => self.start_migration(),
            SourceEffect::ContinueMigration => self.continue_migration(),
            SourceEffect::CancelMigration => self.cancel_migration(),
            SourceEffect::Journal(stage) => self.journal(stage),
            SourceEffect::MarkInHandoff => self.mark_in_handoff(),
            SourceEffect::Ask => self.ask(),
            SourceEffect::Stay { epoch } => self.stay(epoch),
            SourceEffect::Retire { epoch } => self.retire(epoch),
            SourceEffect::Arm(timer, after) => {
                let handle = ctx.run_later(after.duration(), move |actor, ctx| {
                    actor.step(SourceEvent::Timeout(timer), ctx);
                });
                if let Some(former) = self.timers.insert(timer, handle) {
                    ctx.cancel_future(former);
                }
            }
            SourceEffect::Phase(phase) => self.progress.enter(phase),
            SourceEffect::Alarm(problem) => self.progress.alarm(problem),
            SourceEffect::Finish(outcome) => self.finish(&outcome, ctx),
        }
    }

    /// Runs beside the actor; its result comes as an input.
    fn beside(&self, work: impl Future<Output = Option<SourceEvent>> + 'static) {
        let inputs = self.inputs.clone();
        actix::spawn(async move {
            if let Some(event) = work.await {
                let _ = inputs.send(Input::Event(event));
            }
        });
    }

    /// Dials the target and asks it to prepare.
    fn connect(&mut self) {
        let Some((facts, policy)) = &self.begin else {
            return;
        };
        let prepare = match prepare(&self.departure, facts, policy, false) {
            Ok(prepare) => prepare,
            Err(problem) => {
                return self.beside(async { Some(SourceEvent::CommandFailed(problem)) });
            }
        };
        let context = Arc::clone(&self.departure.context);
        let target = self.departure.record.target.clone();
        let inputs = self.inputs.clone();
        actix::spawn(async move {
            if let Err(problem) = converse(&context, &target, prepare, &inputs).await {
                let _ = inputs.send(Input::Event(SourceEvent::LinkLost(problem)));
            }
        });
    }

    fn start_migration(&mut self) {
        let (Some(link), Some((_, policy))) = (&self.link, &self.begin) else {
            return;
        };
        let socket = self
            .departure
            .context
            .socket(self.departure.record.migration);
        let listener = match listen_at(&socket) {
            Ok(listener) => listener,
            Err(problem) => {
                return self.beside(async { Some(SourceEvent::CommandFailed(problem)) });
            }
        };
        let stop = CancellationToken::new();
        self.departure.context.runtime.spawn(relay::serve_source(
            listener,
            link.dialled.connection.clone(),
            stop.clone(),
        ));
        self.relay = Some(relay::Relay {
            stop,
            socket: socket.clone(),
        });
        let (domain, policy) = (self.departure.domain.clone(), policy.clone());
        self.beside(async move {
            let started = qemu::start_outgoing(&domain, &policy, &socket).await;
            started.err().map(SourceEvent::CommandFailed)
        });
    }

    fn continue_migration(&self) {
        let domain = self.departure.domain.clone();
        let arguments = serde_json::json!({ "state": "pre-switchover" });
        self.beside(async move {
            let told = qemu::execute(&domain, "migrate-continue", arguments).await;
            told.err().map(SourceEvent::CommandFailed)
        });
    }

    fn cancel_migration(&self) {
        let domain = self.departure.domain.clone();
        self.beside(async move {
            match qemu::cancel(&domain).await {
                Ok(ended) => ended.map(SourceEvent::Qemu),
                Err(problem) => {
                    tracing::warn!(%problem, "QEMU does not take the cancel");
                    None
                }
            }
        });
    }

    fn journal(&mut self, stage: OutgoingStage) {
        self.departure.record.stage = stage;
        let record = Some(HandoffRecord::Outgoing(self.departure.record.clone()));
        let (domain, migration) = (self.departure.domain.clone(), self.migration());
        self.beside(async move {
            Some(
                match record_handoff(&domain, migration, record, false).await {
                    Ok(()) => SourceEvent::Journaled(stage),
                    Err(problem) => SourceEvent::JournalFailed(problem),
                },
            )
        });
    }

    fn mark_in_handoff(&self) {
        let domain = self.departure.domain.clone();
        self.beside(async move {
            if let Ok(Err(problem)) = domain.send(MarkInHandoff).await {
                tracing::warn!(%problem, "the domain does not show the handoff");
            }
            None
        });
    }

    /// Asks the target and, through the coordinator, asks again: whichever path
    /// works.
    fn ask(&mut self) {
        if !std::mem::replace(&mut self.asking.direct, true) {
            let context = Arc::clone(&self.departure.context);
            let target = self.departure.record.target.clone();
            let query = self.source.query();
            let answer = async move { peer::ask(&context, &target, query).await };
            self.hear(Way::Direct, answer);
        }
        if !std::mem::replace(&mut self.asking.relayed, true) {
            let uplink = self.departure.context.uplink.clone();
            let query = VerdictQuery {
                migration: self.migration(),
                vm: self.departure.vm,
                target: self.departure.record.target.node.clone(),
                epoch: self.source.granted_epoch(),
            };
            let answer = async move { uplink.ask_verdict(query, RELAYED).await };
            self.hear(Way::Relayed, answer);
        }
    }

    /// The first word counts: where one way is cut, its deadline must not hold
    /// up the other's answer.
    fn hear(&self, way: Way, answer: impl Future<Output = Option<Verdict>> + 'static) {
        let inputs = self.inputs.clone();
        actix::spawn(async move {
            if let Some(verdict) = answer.await {
                let _ = inputs.send(Input::Event(SourceEvent::Verdict(verdict)));
            }
            let _ = inputs.send(Input::Asked(way));
        });
    }

    fn stay(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        let (domain, run) = (self.departure.domain.clone(), self.departure.record.run);
        let migration = self.migration();
        self.beside(async move {
            let runs = if run {
                qemu::make_sure_it_runs(&domain).await
            } else {
                Ok(())
            };
            let kept = let_go(&domain, OutgoingEnd::Stay { epoch }).await;
            let cleared = record_handoff(&domain, migration, None, false).await;
            Some(match runs.and(kept).and(cleared) {
                Ok(()) => SourceEvent::Stayed,
                Err(problem) => SourceEvent::StayFailed(problem),
            })
        });
    }

    fn retire(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        let domain = self.departure.domain.clone();
        let inputs = self.inputs.clone();
        self.beside(async move {
            if let Ok(sample) = qemu::sample(&domain).await {
                let _ = inputs.send(Input::Sampled(sample));
            }
            // The guest runs elsewhere: its QEMU here has to end, however often
            // that takes. An actor that is gone has nothing left to end.
            while let Ok(Err(problem)) = domain
                .send(EndOutgoing(OutgoingEnd::Retire { epoch }))
                .await
            {
                tracing::error!(%problem, "the moved domain's QEMU cannot be ended");
                let _ = inputs.send(Input::Alarm(problem));
                tokio::time::sleep(AGAIN).await;
            }
            Some(SourceEvent::Retired)
        });
    }

    fn finish(&mut self, outcome: &Outcome, ctx: &mut Context<Self>) {
        match outcome {
            Outcome::Completed => tracing::info!(migration = %self.migration(), "migrated"),
            Outcome::Cancelled => tracing::info!(migration = %self.migration(), "cancelled"),
            Outcome::Failed { phase, problem } => {
                tracing::warn!(migration = %self.migration(), %phase, %problem, "not migrated");
            }
        }
        self.relay = None;
        self.link = None;
        self.progress.finish(outcome, self.epoch);
        Ended(self.migration()).tell(&self.departure.manager);
        ctx.stop();
    }

    fn on_signal(&mut self, signal: DomainSignal, ctx: &mut Context<Self>) {
        match signal {
            DomainSignal::Qmp(event) => self.on_qmp(&event, ctx),
            DomainSignal::Exited(reason) => {
                let problem = Problem::new(
                    codes::QEMU_GONE,
                    format!("the source's QEMU ended: {reason}"),
                )
                .remedy("look at the VM's QEMU log");
                self.step(SourceEvent::QemuGone(problem), ctx);
            }
            DomainSignal::QmpLost => {
                let problem =
                    Problem::new(codes::QEMU_GONE, "the source's QEMU closed its QMP session");
                self.step(SourceEvent::CommandFailed(problem), ctx);
            }
        }
    }

    fn on_qmp(&mut self, event: &godwit_node_logic::qmp::Event, ctx: &mut Context<Self>) {
        match event.name.as_str() {
            "STOP" => self.progress.guest_stopped(event.timestamp),
            "MIGRATION_PASS" => {
                let pass = event
                    .data
                    .get("pass")
                    .and_then(serde_json::Value::as_u64)
                    .unwrap_or(0);
                self.progress.pass(u32::try_from(pass).unwrap_or(u32::MAX));
            }
            "SHUTDOWN" | "GUEST_PANICKED" => {
                let problem = Problem::new(
                    codes::MIGRATION_FAILED,
                    "the guest ended while it was moved",
                );
                self.step(SourceEvent::GuestEnded(problem), ctx);
            }
            _ => match qemu::meaning(event) {
                Some(QemuMigration::Failed(_)) => self.fetch_failure(),
                Some(change) => self.step(SourceEvent::Qemu(change), ctx),
                None => {}
            },
        }
    }

    fn fetch_failure(&mut self) {
        self.progress.trouble();
        let domain = self.departure.domain.clone();
        self.beside(async move {
            let words = qemu::failure(&domain).await;
            Some(SourceEvent::Qemu(QemuMigration::Failed(words)))
        });
    }

    fn on_message(&mut self, message: TargetMessage, ctx: &mut Context<Self>) {
        if message.migration() != self.migration() {
            tracing::warn!(migration = %self.migration(), other = %message.migration(), "a message for another migration");
            return;
        }
        let event = match message {
            TargetMessage::Prepared { .. } => SourceEvent::Prepared,
            TargetMessage::Blocked { blockers, .. } => SourceEvent::Blocked(blockers),
            TargetMessage::Loaded { .. } => SourceEvent::Loaded,
            TargetMessage::Failed { reason, .. } => SourceEvent::TargetFailed(reason),
            TargetMessage::Activated { epoch, .. } => {
                self.progress.activated();
                SourceEvent::Activated(epoch)
            }
            TargetMessage::HandBack { epoch, reason, .. } => {
                SourceEvent::HandBack { epoch, reason }
            }
            TargetMessage::Verdict { verdict, .. } => SourceEvent::Verdict(verdict),
        };
        self.step(event, ctx);
    }

    fn sample_if_watched(&self) {
        if self.watched && self.progress.phase() == MigrationPhase::Precopy {
            let (domain, inputs) = (self.departure.domain.clone(), self.inputs.clone());
            actix::spawn(async move {
                if let Ok(sample) = qemu::sample(&domain).await {
                    let _ = inputs.send(Input::Sampled(sample));
                }
            });
        }
    }
}

impl Actor for Outgoing {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if let Some(queue) = self.queue.take() {
            ctx.add_stream(UnboundedReceiverStream::new(queue));
        }
        let (domain, inputs) = (self.departure.domain.clone(), self.inputs.clone());
        // Subscribed before anything is asked of QEMU, so no event is missed.
        let following = follow(domain, move |signal| {
            inputs.send(Input::Signal(signal)).is_ok()
        });
        ctx.wait(following.into_actor(self).map(|(), actor, ctx| {
            let effects = std::mem::take(&mut actor.first_effects);
            actor.perform(effects, ctx);
            actor.connect();
        }));
        ctx.run_interval(SAMPLE, |actor, _| actor.sample_if_watched());
    }
}

impl StreamHandler<Input> for Outgoing {
    fn handle(&mut self, input: Input, ctx: &mut Context<Self>) {
        match input {
            Input::Event(event) => self.step(event, ctx),
            Input::Signal(signal) => self.on_signal(signal, ctx),
            Input::Message(message) => self.on_message(message, ctx),
            Input::Sampled(sample) => self.progress.sampled(sample),
            Input::Alarm(problem) => self.progress.alarm(problem),
            Input::Asked(Way::Direct) => self.asking.direct = false,
            Input::Asked(Way::Relayed) => self.asking.relayed = false,
            Input::Connected(dialled, outbox) => {
                let probing = dialled.connection.probe_every(PROBE);
                self.link = Some(Link {
                    outbox,
                    dialled: Arc::new(dialled),
                    _probing: probing,
                });
            }
        }
    }
}

/// An operator calls it off.
#[derive(Message)]
#[rtype(result = "Result<(), Problem>")]
pub(super) struct Cancel;

impl Handler<Cancel> for Outgoing {
    type Result = Result<(), Problem>;

    fn handle(&mut self, _: Cancel, ctx: &mut Context<Self>) -> Self::Result {
        if self.source.is_granted() || self.progress.phase() == MigrationPhase::Handoff {
            return Err(Problem::new(
                codes::STATE_CONFLICT,
                "the right to run the guest has been handed over: it can no longer be cancelled",
            )
            .remedy("wait for it to end, then move the VM back"));
        }
        if self.took(SourceEvent::Cancel, ctx) {
            Ok(())
        } else {
            Err(
                Problem::new(codes::STATE_CONFLICT, "the migration is about to end")
                    .remedy("show it in a moment"),
            )
        }
    }
}

/// Whether somebody watches.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Watch(pub(super) bool);

impl Handler<Watch> for Outgoing {
    type Result = ();

    fn handle(&mut self, watch: Watch, _: &mut Context<Self>) {
        self.watched = watch.0;
        self.sample_if_watched();
    }
}

/// What the target is asked.
pub(super) fn prepare(
    departure: &Departure,
    facts: &OutgoingFacts,
    policy: &MigrationPolicy,
    dry_run: bool,
) -> Result<SourceMessage, Problem> {
    Ok(SourceMessage::Prepare(Prepare {
        migration: departure.record.migration,
        vm: departure.vm,
        spec: Document::of(&facts.spec)?,
        epoch: facts.epoch,
        policy: policy.clone(),
        dry_run,
        machine: facts.machine.clone(),
        accelerator: facts.accelerator.clone(),
        cpu_model: facts.cpu_model.clone(),
        qemu_version: facts.qemu_version.clone(),
    }))
}

/// Opens the control stream, sends the first message and reads from then on.
async fn converse(
    context: &MigrationContext,
    target: &godwit_shared::wire::uplink::Member,
    prepare: SourceMessage,
    inputs: &mpsc::UnboundedSender<Input>,
) -> Result<(), Problem> {
    let dialled = peer::dial(context, target).await?;
    let connection = dialled.connection.clone();
    let broken = |e: godwit_shared::transport::StreamError| {
        Problem::new(codes::CONNECTION_LOST, e.to_string())
    };
    let (sender, receiver) = connection.open(StreamKind::Control).await.map_err(broken)?;
    let outbox = peer::outbox(sender.into_messages(), connection.clone(), Closer::Here);
    let _ = outbox.send(prepare);
    let _ = inputs.send(Input::Connected(dialled, outbox));
    let take = |message| {
        let _ = inputs.send(Input::Message(message));
    };
    let end = peer::listen(receiver.into_messages(), connection, take).await;
    Err(end)
}

async fn let_go(domain: &Addr<DomainActor>, end: OutgoingEnd) -> Result<(), Problem> {
    domain
        .send(EndOutgoing(end))
        .await
        .unwrap_or_else(|_| Err(qemu::actor_gone()))
}

fn listen_at(socket: &std::path::Path) -> Result<std::os::unix::net::UnixListener, Problem> {
    let failed = |e: std::io::Error| {
        let path = socket.display().to_string();
        Problem::new(
            codes::HOST_IO,
            format!("QEMU's migration socket `{path}`: {e}"),
        )
        .value(path)
        .remedy("make the run directory writable, and its path shorter than 80 bytes")
    };
    let _ = std::fs::remove_file(socket);
    let listener = std::os::unix::net::UnixListener::bind(socket).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}
