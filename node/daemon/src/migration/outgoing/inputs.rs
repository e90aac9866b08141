//! What a migration that leaves learns: QEMU's events, the target's messages,
//! operators' wishes. All of it goes through one queue, in order.

use actix::prelude::*;
use godwit_node_logic::handoff::{QemuMigration, SourceEvent, pause_limit};
use godwit_shared::model::{
    Bytes, DoubtDecision, Forecast, MigrationPhase, MigrationProgress, MigrationTuning, Millis,
    Problem, codes,
};
use godwit_shared::wire::peer::{SourceMessage, TargetMessage};
use tokio::sync::mpsc;

use super::link::Link;
use super::{Outgoing, Way};
use crate::domain::messages::DomainSignal;
use crate::migration::peer::Dialled;
use crate::migration::qemu;

/// Everything that an [`Outgoing`] learns, in order.
pub(super) enum Input {
    Event(SourceEvent),
    Signal(DomainSignal),
    /// The connection of that generation stands.
    Connected(u32, Dialled, mpsc::UnboundedSender<SourceMessage>),
    /// It does not, or no longer.
    LinkLost(u32, Problem),
    /// Over that connection.
    Message(u32, TargetMessage),
    /// Post-copy: QEMU waits for new channels.
    MayDial,
    /// Post-copy: it does not, and how its migration stands.
    StaysApart(Option<QemuMigration>),
    Sampled(MigrationProgress),
    /// Of the disks, so much of so much is mirrored.
    Mirrored(Bytes, Bytes),
    /// A pass has begun, with this sample.
    Passed(u32, MigrationProgress),
    /// How it will go.
    Foretold(Forecast),
    /// QEMU's last figures, and its count of the pause.
    Retiring(MigrationProgress, Option<Millis>),
    /// Something the operator should know.
    Alarm(Problem),
    /// A question is through, with or without a word.
    Asked(Way),
}

impl Outgoing {
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
                let pass = event.data.get("pass");
                let pass = pass.and_then(serde_json::Value::as_u64).unwrap_or(0);
                self.look_at_pass(u32::try_from(pass).unwrap_or(u32::MAX));
            }
            "BLOCK_JOB_READY" | "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" => {
                self.on_job(event, ctx);
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
                Some(change) => {
                    // The attempt has succeeded: channels that break from here
                    // on are another matter.
                    self.reconnecting &= change != QemuMigration::PostcopyActive;
                    self.step(SourceEvent::Qemu(change), ctx);
                    // Beside what the step has sent, and behind it.
                    self.ask_time();
                }
                None => {}
            },
        }
    }

    /// What each pass leaves to send says whether it converges.
    fn look_at_pass(&mut self, number: u32) {
        self.progress.pass(number);
        self.grant_pause(number);
        let (domain, inputs) = (self.departure.domain.clone(), self.inputs.clone());
        actix::spawn(async move {
            if let Ok(sample) = qemu::sample(&domain).await {
                let _ = inputs.send(Input::Passed(number, sample));
            }
        });
    }

    /// Gives QEMU the next part of the pause that it may take, unless an operator
    /// has decided about that meanwhile.
    fn grant_pause(&mut self, pass: u32) {
        let Some(asked) = self.pause else { return };
        let downtime = pause_limit(pass, asked);
        if downtime == asked {
            self.pause = None;
        }
        let tuning = MigrationTuning {
            downtime: Some(downtime),
            ..MigrationTuning::default()
        };
        let domain = self.departure.domain.clone();
        actix::spawn(async move {
            // It may have ended by now.
            if let Err(problem) = qemu::tune(&domain, &tuning).await {
                tracing::debug!(%problem, "QEMU takes no longer pause");
            }
        });
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
            TargetMessage::Taken { epoch, .. } => SourceEvent::Taken(epoch),
            TargetMessage::Activated {
                epoch, resumed_us, ..
            } => {
                self.progress.activated(resumed_us);
                SourceEvent::Activated(epoch)
            }
            TargetMessage::ResumeReady { .. } => SourceEvent::ResumeReady,
            TargetMessage::Complete { .. } => SourceEvent::Complete,
            TargetMessage::Time {
                sent_us, here_us, ..
            } => {
                self.progress.told_time(sent_us, here_us);
                return self.foretell();
            }
            TargetMessage::HandBack { epoch, reason, .. } => {
                SourceEvent::HandBack { epoch, reason }
            }
            TargetMessage::Verdict { verdict, .. } => SourceEvent::Verdict(verdict),
        };
        self.step(event, ctx);
    }

    pub(super) fn sample_if_watched(&self) {
        if self.watched && self.progress.phase().sends_memory() {
            let (domain, inputs) = (self.departure.domain.clone(), self.inputs.clone());
            actix::spawn(async move {
                if let Ok(sample) = qemu::sample(&domain).await {
                    let _ = inputs.send(Input::Sampled(sample));
                }
            });
        }
    }
}

impl StreamHandler<Input> for Outgoing {
    fn handle(&mut self, input: Input, ctx: &mut Context<Self>) {
        match input {
            Input::Event(event) => self.step(event, ctx),
            Input::Signal(signal) => self.on_signal(signal, ctx),
            Input::Message(generation, message) if generation == self.generation => {
                self.on_message(message, ctx);
            }
            Input::LinkLost(generation, problem) if generation == self.generation => {
                self.reconnecting = false;
                self.step(SourceEvent::LinkLost(problem), ctx);
            }
            Input::Message(..) | Input::LinkLost(..) => {}
            Input::MayDial => self.on_may_dial(),
            Input::StaysApart(state) => {
                self.reconnecting = false;
                if let Some(state) = state {
                    self.step(SourceEvent::Qemu(state), ctx);
                }
            }
            Input::Passed(number, sample) => {
                let remaining = sample.remaining;
                self.progress.sampled(sample);
                self.step(SourceEvent::Pass { number, remaining }, ctx);
            }
            Input::Mirrored(done, total) => self.progress.mirrored(done, total),
            Input::Sampled(sample) => self.progress.sampled(sample),
            Input::Retiring(sample, downtime) => {
                self.progress.sampled(sample);
                self.progress.qemu_downtime(downtime);
            }
            Input::Alarm(problem) => self.progress.alarm(problem),
            Input::Asked(Way::Direct) => self.asking.direct = false,
            Input::Asked(Way::Relayed) => self.asking.relayed = false,
            Input::Connected(generation, dialled, outbox) => {
                if generation == self.generation {
                    self.link = Some(Link::new(dialled, outbox));
                    self.ask_time();
                }
            }
            Input::Foretold(forecast) => self.progress.foretold(forecast),
        }
    }
}

/// An operator calls it off.
#[derive(Message)]
#[rtype(result = "Result<(), Problem>")]
pub(in crate::migration) struct Cancel;

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

/// Change it while it runs. Resolves when QEMU took it.
#[derive(Message)]
#[rtype(result = "Result<(), Problem>")]
pub(in crate::migration) struct Tune(pub(in crate::migration) MigrationTuning);

impl Handler<Tune> for Outgoing {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, tune: Tune, ctx: &mut Context<Self>) -> Self::Result {
        let tuning = tune.0;
        if self.progress.phase() == MigrationPhase::Disks && !tuning.postcopy {
            return self.tune_disks(tuning);
        }
        if !self.progress.phase().sends_memory() {
            let text = format!("the migration is in phase {}", self.progress.phase());
            let problem = Problem::new(codes::STATE_CONFLICT, text)
                .remedy("it can be tuned while memory is sent");
            return Box::pin(std::future::ready(Err(problem)));
        }
        if tuning.postcopy && !self.took(SourceEvent::SwitchToPostcopy, ctx) {
            let problem = Problem::new(
                codes::STATE_CONFLICT,
                "the migration cannot be switched to post-copy",
            )
            .field("postcopy")
            .remedy("begin it with --postcopy fallback, and switch while memory is sent");
            return Box::pin(std::future::ready(Err(problem)));
        }
        if tuning.downtime.is_some() {
            self.pause = None;
        }
        let domain = self.departure.domain.clone();
        Box::pin(async move { qemu::tune(&domain, &tuning).await })
    }
}

/// An operator ends the doubt about the grant.
#[derive(Message)]
#[rtype(result = "Result<(), Problem>")]
pub(in crate::migration) struct Resolve(pub(in crate::migration) DoubtDecision);

impl Handler<Resolve> for Outgoing {
    type Result = Result<(), Problem>;

    fn handle(&mut self, resolve: Resolve, ctx: &mut Context<Self>) -> Self::Result {
        self.resolved = true;
        if self.took(SourceEvent::Resolve(resolve.0), ctx) {
            tracing::warn!(migration = %self.migration(), decision = ?resolve.0, "an operator ended the doubt");
            return Ok(());
        }
        self.resolved = false;
        let text = format!(
            "the migration is in phase {}, not in doubt",
            self.progress.phase()
        );
        Err(Problem::new(codes::STATE_CONFLICT, text).remedy("show it: nothing has to be decided"))
    }
}

/// Whether somebody watches.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::migration) struct Watch(pub(in crate::migration) bool);

impl Handler<Watch> for Outgoing {
    type Result = ();

    fn handle(&mut self, watch: Watch, _: &mut Context<Self>) {
        self.watched = watch.0;
        self.sample_if_watched();
    }
}
