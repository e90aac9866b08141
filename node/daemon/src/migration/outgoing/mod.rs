//! A migration that leaves this node: the effects of a [`Source`].
//!
//! This file has what is asked of QEMU, the journal and the domain; `link` the
//! connection to the target; `inputs` everything that is learnt, in order.

mod disks;
mod inputs;
mod link;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use godwit_node_logic::handoff::{
    HandoffRecord, Outcome, OutgoingRecord, OutgoingStage, Source, SourceEffect, SourceEvent,
    Terms, Timer,
};
use godwit_shared::model::{
    BytesPerSec, Epoch, MigrationId, MigrationPolicy, Millis, Problem, VmId, codes,
};
use godwit_shared::wire::uplink::{Verdict, VerdictQuery};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::calls::{ended_before, follow, record_handoff};
use super::manager::{Ended, MigrationContext};
use super::progress::Progress;
use super::{mirror, peer, qemu, relay};
use crate::domain::DomainActor;
use crate::domain::messages::{EndOutgoing, MarkInHandoff, OutgoingEnd, OutgoingFacts};
use crate::fault;
use disks::Mirrors;
use inputs::Input;
pub(super) use inputs::{Cancel, Resolve, Tune, Watch};
use link::Link;
pub(super) use link::prepare;

/// How often an idle side asks the other's host for a sign of life.
pub(super) const PROBE: Duration = Duration::from_millis(25);
/// Samples for those who watch: twice a second.
const SAMPLE: Duration = Duration::from_millis(500);
/// How often the target's clock is looked at.
const ASK_TIME: Duration = Duration::from_secs(1);
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

impl Departure {
    fn terms(&self) -> Terms {
        let record = &self.record;
        Terms {
            migration: record.migration,
            vm: self.vm,
            epoch: record.epoch,
            run: record.run,
            plan: record.plan,
        }
    }
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
    /// Which connection is in use: what older ones still say does not count.
    generation: u32,
    /// An attempt to connect anew is under way.
    reconnecting: bool,
    relay: Option<relay::Relay>,
    mirrors: Option<Mirrors>,
    timers: HashMap<Timer, SpawnHandle>,
    watched: bool,
    /// An operator has decided about the grant.
    resolved: bool,
    asking: Asking,
    /// What the guest writes, sampled from the beginning.
    writes: Option<oneshot::Receiver<BytesPerSec>>,
    /// How it will go is sampled, or was.
    foretelling: bool,
    /// The pause that was asked for, while QEMU gets it in parts.
    pause: Option<Millis>,
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

impl Outgoing {
    /// A migration that begins.
    pub(super) fn begin(
        departure: Departure,
        facts: OutgoingFacts,
        policy: MigrationPolicy,
    ) -> Self {
        let mut effects = Vec::new();
        let source = Source::begin(departure.terms(), &mut effects);
        Self::new(departure, Some((facts, policy)), source, effects)
    }

    /// A migration found in the journal.
    pub(super) fn recover(departure: Departure) -> Self {
        let mut effects = Vec::new();
        let (terms, stage) = (departure.terms(), departure.record.stage);
        let source = Source::recover(terms, stage, &mut effects);
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
            generation: 0,
            reconnecting: false,
            relay: None,
            mirrors: None,
            timers: HashMap::new(),
            watched: false,
            resolved: false,
            asking: Asking::default(),
            writes: None,
            foretelling: false,
            pause: None,
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
            SourceEffect::StartMirrors => self.start_mirrors(),
            SourceEffect::FinishMirrors => self.finish_mirrors(),
            SourceEffect::StartMigration => self.start_migration(),
            SourceEffect::StartPostcopy => self.start_postcopy(),
            SourceEffect::StopGuest => self.tell_qemu("stop", serde_json::Value::Null),
            SourceEffect::HurryUp => self.hurry_up(),
            SourceEffect::ContinueMigration => self.continue_migration(),
            SourceEffect::Reconnect => self.reconnect(),
            SourceEffect::ResumeMigration => self.resume_migration(),
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
            SourceEffect::Stalled => self.progress.stalled(),
            SourceEffect::GuestLost(problem) => self.progress.guest_lost(problem),
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

    fn start_migration(&mut self) {
        let Some((_, policy)) = &self.begin else {
            return;
        };
        let policy = policy.clone();
        self.pause = Some(policy.downtime);
        self.over_channels(|domain, socket| async move {
            fault::reach("source.before_migrate").await;
            qemu::start_outgoing(&domain, &policy, &socket).await?;
            fault::reach("source.in_precopy").await;
            Ok(())
        });
    }

    /// Post-copy, after a lost connection: what is left goes over the new one.
    fn resume_migration(&mut self) {
        self.over_channels(|domain, socket| async move {
            qemu::resume_outgoing(&domain, &socket).await
        });
    }

    /// Lets QEMU's channels out on the connection, and does what makes QEMU
    /// connect them.
    fn over_channels<W>(&mut self, work: impl FnOnce(Addr<DomainActor>, PathBuf) -> W)
    where
        W: Future<Output = Result<(), Problem>> + 'static,
    {
        let Some(link) = &self.link else {
            return;
        };
        let context = &self.departure.context;
        let socket = context.socket(self.migration());
        match relay::Relay::of_source(context, &socket, link.connection()) {
            Ok(relay) => self.relay = Some(relay),
            Err(problem) => {
                return self.beside(async { Some(SourceEvent::CommandFailed(problem)) });
            }
        }
        let work = work(self.departure.domain.clone(), socket);
        self.beside(async move { work.await.err().map(SourceEvent::CommandFailed) });
    }

    /// Stops the guest first (see the logic's `postcopy`), and only when QEMU
    /// was still sending memory then, lets it switch.
    fn start_postcopy(&self) {
        let (domain, inputs) = (self.departure.domain.clone(), self.inputs.clone());
        self.beside(async move {
            let stopped = qemu::stop_for_postcopy(&domain).await;
            match stopped {
                Ok(true) => {
                    let _ = inputs.send(Input::Event(SourceEvent::StoppedForPostcopy));
                    let null = serde_json::Value::Null;
                    let told = qemu::execute(&domain, "migrate-start-postcopy", null).await;
                    told.err().map(SourceEvent::CommandFailed)
                }
                // It switches over by itself.
                Ok(false) => None,
                Err(problem) => Some(SourceEvent::CommandFailed(problem)),
            }
        });
    }

    fn hurry_up(&mut self) {
        self.pause = None;
        let arguments = serde_json::json!({ "downtime-limit": qemu::LONGEST_DOWNTIME.0 });
        self.tell_qemu("migrate-set-parameters", arguments);
    }

    fn continue_migration(&self) {
        let domain = self.departure.domain.clone();
        self.beside(async move {
            fault::reach("source.before_continue").await;
            let arguments = serde_json::json!({ "state": "pre-switchover" });
            let told = qemu::execute(&domain, "migrate-continue", arguments).await;
            told.err().map(SourceEvent::CommandFailed)
        });
    }

    /// A command whose refusal ends the migration.
    fn tell_qemu(&self, command: &'static str, arguments: serde_json::Value) {
        let domain = self.departure.domain.clone();
        self.beside(async move {
            let told = qemu::execute(&domain, command, arguments).await;
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
            fault::reach("source.before_grant_journal").await;
            let written = record_handoff(&domain, migration, record, false).await;
            fault::reach("source.after_grant_journal").await;
            Some(match written {
                Ok(()) => SourceEvent::Journaled(stage),
                Err(problem) => SourceEvent::JournalFailed(problem),
            })
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
        let inputs = self.inputs.clone();
        // Their sockets go, so that nothing of QEMU's waits for the target.
        self.mirrors = None;
        let mirrors = self.departure.record.plan.mirrors;
        self.beside(async move {
            fault::reach("source.before_stay").await;
            let runs = if run {
                qemu::make_sure_it_runs(&domain).await
            } else {
                Ok(())
            };
            let aborted = if mirrors {
                fault::reach("source.before_abort_mirrors").await;
                mirror::abort(&domain).await
            } else {
                Ok(())
            };
            // Half undone, the domain would be in a migration that there is no
            // more: nothing could be done with it until the next daemon.
            let kept =
                until_written(&inputs, || let_go(&domain, OutgoingEnd::Stay { epoch })).await;
            let cleared =
                until_written(&inputs, || record_handoff(&domain, migration, None, false)).await;
            Some(match runs.and(aborted).and(kept).and(cleared) {
                Ok(()) => SourceEvent::Stayed,
                Err(problem) => SourceEvent::StayFailed(problem),
            })
        });
    }

    fn retire(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        let domain = self.departure.domain.clone();
        let inputs = self.inputs.clone();
        let (migration, kept) = (self.migration(), self.kept_images());
        self.beside(async move {
            fault::reach("source.before_retire").await;
            if kept.is_some() {
                // Tried like the rest: what would remove them reads the record.
                let keep = || record_handoff(&domain, migration, kept.clone(), false);
                let _ = until_written(&inputs, keep).await;
            }
            if let Ok((sample, downtime)) = qemu::last_sample(&domain).await {
                let _ = inputs.send(Input::Retiring(sample, downtime));
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
            fault::reach("source.after_retire").await;
            Some(SourceEvent::Retired)
        });
    }

    /// On an operator's word nobody knows whether the target has the disks: the
    /// images here stay.
    fn kept_images(&mut self) -> Option<HandoffRecord> {
        let images = &mut self.departure.record.images;
        if !self.resolved || images.is_empty() {
            return None;
        }
        images.clear();
        Some(HandoffRecord::Outgoing(self.departure.record.clone()))
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
}

impl Actor for Outgoing {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if let Some(queue) = self.queue.take() {
            ctx.add_stream(UnboundedReceiverStream::new(queue));
        }
        let (domain, inputs) = (self.departure.domain.clone(), self.inputs.clone());
        // Subscribed before anything is asked of QEMU, so no event is missed.
        let following = async move {
            let forward = move |signal| inputs.send(Input::Signal(signal)).is_ok();
            follow(domain.clone(), forward).await;
            ended_before(&domain).await
        };
        ctx.wait(following.into_actor(self).map(|ended, actor, ctx| {
            let effects = std::mem::take(&mut actor.first_effects);
            actor.perform(effects, ctx);
            actor.sample_writes();
            actor.connect();
            if let Some(problem) = ended {
                actor.step(SourceEvent::QemuGone(problem), ctx);
            }
        }));
        ctx.run_interval(SAMPLE, |actor, _| {
            actor.sample_if_watched();
            actor.sample_disks_if_watched();
        });
        ctx.run_interval(ASK_TIME, |actor, _| actor.ask_time());
    }
}

/// Tries something again for as long as a file cannot be written.
async fn until_written<F>(
    inputs: &mpsc::UnboundedSender<Input>,
    attempt: impl Fn() -> F,
) -> Result<(), Problem>
where
    F: Future<Output = Result<(), Problem>>,
{
    loop {
        match attempt().await {
            Err(problem) if problem.code == codes::HOST_IO => {
                tracing::error!(%problem, "the end of a migration cannot be written down");
                let _ = inputs.send(Input::Alarm(problem));
                tokio::time::sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}

async fn let_go(domain: &Addr<DomainActor>, end: OutgoingEnd) -> Result<(), Problem> {
    domain
        .send(EndOutgoing(end))
        .await
        .unwrap_or_else(|_| Err(qemu::actor_gone()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::RefCell;

    use super::*;

    /// What comes of these answers, with the alarms and the attempts.
    async fn tried(answers: Vec<Result<(), Problem>>) -> (Result<(), Problem>, usize, usize) {
        let (inputs, mut heard) = mpsc::unbounded_channel();
        let (given, left) = (answers.len(), RefCell::new(answers.into_iter()));
        let attempt = || std::future::ready(left.borrow_mut().next().unwrap());
        let done = until_written(&inputs, attempt).await;
        let mut alarms = 0;
        while let Ok(input) = heard.try_recv() {
            assert!(matches!(input, Input::Alarm(_)));
            alarms += 1;
        }
        (done, alarms, given - left.borrow().len())
    }

    #[tokio::test]
    async fn the_end_is_tried_until_it_is_written() {
        let full = || Err(Problem::new(codes::HOST_IO, "no space left"));
        assert_eq!(tried(vec![full(), Ok(())]).await, (Ok(()), 1, 2));
        let gone = Err(qemu::actor_gone());
        let (done, alarms, attempts) = tried(vec![gone, Ok(())]).await;
        assert!(done.is_err(), "nobody is left to write it");
        assert_eq!((alarms, attempts), (0, 1));
    }
}
