//! The QMP session of a domain: opened, read, opened again when it is lost.

use std::time::Duration;

use actix::prelude::*;
use futures_util::StreamExt as _;
use godwit_node_logic::domain::{Event, Happening};
use godwit_node_logic::qemu::chardev;
use godwit_node_logic::qmp::status::{RunStatus, frontend_open, migration_active};
use godwit_node_logic::qmp::{self, Command, Greeting};
use godwit_shared::model::{Problem, codes};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::DomainActor;
use super::agent::AgentChannel;
use super::messages::DomainSignal;
use crate::qemu::session::{Session, SessionEvent};

/// Between two attempts to reach a QEMU that closed its session.
const AGAIN: Duration = Duration::from_millis(200);
/// For questions that only look.
const LOOK: Duration = Duration::from_secs(10);

/// An event of the session of one run.
struct FromSession(u64, SessionEvent);

impl DomainActor {
    /// Connects, as often as it takes. The machine's timers decide when that
    /// takes too long; the process' end ends it.
    pub(super) fn open_session(&mut self, ctx: &mut Context<Self>) {
        let path = self.place.qmp();
        let opened = async move {
            loop {
                match Session::open(&path).await {
                    Ok(opened) => return opened,
                    Err(problem) => tracing::debug!(%problem, "QMP"),
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        let token = CancellationToken::new();
        let opened = token.clone().run_until_cancelled_owned(opened);
        self.opening = Some(token.drop_guard());
        self.later(opened, ctx, |actor, opened, ctx| {
            // A process whose end was seen has nothing more to say.
            if let Some((session, greeting, events)) = opened
                && actor.end.is_none()
            {
                actor.begin_session(session, &greeting, events, ctx);
            }
        });
    }

    fn begin_session(
        &mut self,
        session: Session,
        greeting: &Greeting,
        events: mpsc::Receiver<SessionEvent>,
        ctx: &mut Context<Self>,
    ) {
        tracing::debug!(vm = %self.vm(), qemu = %greeting.release(), "QMP is ready");
        let generation = self.generation;
        let events = futures_util::stream::unfold(events, |mut events| async move {
            events.recv().await.map(|event| (event, events))
        });
        ctx.add_stream(events.map(move |event| FromSession(generation, event)));
        for waiter in self.session_waiters.drain(..) {
            let _ = waiter.send(Ok(session.clone()));
        }
        self.session = Some(session);
        self.open_console(ctx);
        self.open_agent(ctx);
        self.tell(Event::Ready, ctx);
    }

    fn open_console(&mut self, ctx: &mut Context<Self>) {
        let carried = self.console_of == Some(self.generation);
        if !self.record.spec.serial || carried {
            return;
        }
        self.console_of = Some(self.generation);
        let path = self.place.serial();
        self.later(UnixStream::connect(path), ctx, |actor, socket, _| match socket {
            Ok(socket) => actor.hub.connect(socket),
            Err(error) => {
                tracing::warn!(vm = %actor.vm(), %error, "the serial console cannot be reached");
            }
        });
    }

    fn open_agent(&mut self, ctx: &mut Context<Self>) {
        if !self.record.spec.agent || self.agent.is_some() {
            return;
        }
        let path = self.place.agent();
        self.later(UnixStream::connect(path), ctx, |actor, socket, _| match socket {
            Ok(socket) => actor.agent = Some(AgentChannel::over(socket)),
            Err(error) => {
                tracing::warn!(vm = %actor.vm(), %error, "the agent's channel cannot be reached");
            }
        });
    }

    /// Reads how QEMU stands: its run state, whether a migration is under way,
    /// and whether the guest has the agent's channel open.
    pub(super) fn resync(&mut self, ctx: &mut Context<Self>) {
        let Some(session) = self.session.clone() else {
            return;
        };
        let look = async move {
            let (status, migrate, chardev) = (
                Command::query_status(),
                Command::query_migrate(),
                Command::query_chardev(),
            );
            tokio::join!(
                session.execute(&status, LOOK),
                session.execute(&migrate, LOOK),
                session.execute(&chardev, LOOK),
            )
        };
        self.later(look, ctx, |actor, (status, migrate, chardev), ctx| {
            let open = chardev
                .ok()
                .and_then(|answer| frontend_open(&answer, chardev::AGENT));
            if let Some(open) = open {
                actor.tell(Event::Happened(Happening::Agent { open }), ctx);
            }
            match status {
                Ok(answer) => {
                    let run = RunStatus::read(&answer).unwrap_or(RunStatus::Paused);
                    let migrating = migrate.is_ok_and(|answer| migration_active(&answer));
                    actor.tell(Event::Status { run, migrating }, ctx);
                }
                Err(problem) if problem.code == codes::QEMU_TIMEOUT => {
                    actor.fell_silent(problem, ctx);
                }
                // A session that was lost is opened again, and looked at again.
                Err(problem) => tracing::debug!(vm = %actor.vm(), %problem, "no status"),
            }
            actor.heard_at_last();
        });
    }

    /// QEMU does not answer.
    pub(super) fn fell_silent(&mut self, problem: Problem, ctx: &mut Context<Self>) {
        tracing::warn!(vm = %self.vm(), %problem, "QEMU does not answer");
        self.tell(Event::Silent(problem), ctx);
        self.heard_at_last();
    }

    /// Notices when a QEMU that was silent answers again. Without a session the
    /// next one tells.
    pub(super) fn await_a_sign_of_life(&mut self, ctx: &mut Context<Self>) {
        if let Some(session) = self.session.clone() {
            let answered = async move { session.send(&Command::query_status()).await };
            self.later(answered, ctx, |actor, answer, ctx| {
                if answer.is_ok() {
                    actor.tell(Event::Heard, ctx);
                }
            });
        }
    }

    fn on_qmp(&mut self, event: qmp::Event, ctx: &mut Context<Self>) {
        let happening = Happening::of(&event);
        if happening.is_none() && !event.matters() {
            // These may be many: a guest can cause some of them (`RTC_CHANGE`) as
            // often as it likes.
            tracing::trace!(vm = %self.vm(), event = event.name, data = %event.data, "QMP");
            return;
        }
        tracing::debug!(vm = %self.vm(), event = event.name, data = %event.data, "QMP");
        if let Some(happening) = happening {
            self.tell(Event::Happened(happening), ctx);
        }
        if event.matters() && !self.subscribers.is_empty() {
            self.signal(&DomainSignal::Qmp(event));
        }
    }

    fn on_closed(&mut self, ctx: &mut Context<Self>) {
        self.session = None;
        if let Some(end) = self.end.take() {
            return self.tell(end, ctx);
        }
        self.signal(&DomainSignal::QmpLost);
        self.tell(Event::SessionLost, ctx);
        self.open_session(ctx);
    }
}

impl StreamHandler<FromSession> for DomainActor {
    fn handle(&mut self, FromSession(generation, event): FromSession, ctx: &mut Self::Context) {
        if generation != self.generation {
            return;
        }
        match event {
            SessionEvent::Qmp(event) => self.on_qmp(event, ctx),
            SessionEvent::Closed => self.on_closed(ctx),
        }
    }

    /// The actor outlives its sessions.
    fn finished(&mut self, _ctx: &mut Self::Context) {}
}
