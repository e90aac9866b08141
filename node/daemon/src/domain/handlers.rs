//! Messages to the actor.

use std::time::{Duration, Instant};

use actix::prelude::*;
use godwit_node_logic::domain::{Event, Request, Role, Verdict, decide};
use godwit_node_logic::handoff::{HandoffRecord, IncomingStage};
use godwit_node_logic::qmp::Command;
use godwit_shared::model::{DomainReport, LifecycleCommand, Millis, Problem, codes};
use godwit_shared::wire::uplink::LogKind;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::DomainActor;
use super::console::tail;
use super::messages::{
    Activate, ActivateError, Attach, BecomeIncoming, BeginOutgoing, Console, Describe,
    DiscardIncoming, DomainSignal, EndOutgoing, Execute, Lifecycle, MarkInHandoff, OutgoingEnd,
    OutgoingFacts, RecordHandoff, Redefine, Subscribe, TailLog, TakenOver,
};
use super::perform::leaving;
use crate::qemu::session::Session;

/// Most of a log that is sent, in bytes.
const LOG_SENT: usize = 256 * 1024;

type Answered = oneshot::Receiver<Result<DomainReport, Problem>>;

async fn report(answered: Answered) -> Result<DomainReport, Problem> {
    answered.await.unwrap_or_else(|_| {
        Err(Problem::new(codes::INTERNAL, "the domain's actor ended")
            .remedy("look at the daemon's log"))
    })
}

async fn done(answered: Answered) -> Result<(), Problem> {
    report(answered).await.map(|_| ())
}

impl Handler<Lifecycle> for DomainActor {
    type Result = ResponseFuture<Result<DomainReport, Problem>>;

    fn handle(&mut self, message: Lifecycle, ctx: &mut Self::Context) -> Self::Result {
        let Lifecycle { command, epoch } = message;
        let verdict = decide(&self.machine.view(), command, epoch);
        if command == LifecycleCommand::Start
            && verdict == Verdict::Accept
            && let Err(problem) = self.prepare(None)
        {
            return Box::pin(std::future::ready(Err(problem)));
        }
        let event = Event::Command { command, epoch };
        let answered = self.ask(Request::Command(command), event, ctx);
        // A start that was not even journaled has not begun.
        if !self.machine.has_process() {
            self.drop_plan();
        }
        Box::pin(report(answered))
    }
}

impl DomainActor {
    /// Undoes [`prepare`](Self::prepare).
    fn drop_plan(&mut self) {
        self.record.run = None;
        self.arriving.clear();
        self.node.ledger.release(self.record.vm);
    }

    /// The session, once there is one.
    pub(super) fn session_soon(&mut self) -> oneshot::Receiver<Result<Session, Problem>> {
        let (sender, receiver) = oneshot::channel();
        match (&self.session, self.machine.has_process()) {
            (Some(session), _) => drop(sender.send(Ok(session.clone()))),
            (None, true) => self.session_waiters.push(sender),
            (None, false) => {
                let gone = Problem::new(codes::QEMU_GONE, "the domain has no QEMU")
                    .remedy("start it first");
                let _ = sender.send(Err(gone));
            }
        }
        receiver
    }
}

impl Handler<Redefine> for DomainActor {
    type Result = Result<DomainReport, Problem>;

    fn handle(&mut self, message: Redefine, _ctx: &mut Self::Context) -> Self::Result {
        let Redefine {
            spec,
            epoch,
            machine,
        } = message;
        if self.leaving {
            return Err(leaving());
        }
        let same = self.record.spec == spec && !self.newborn;
        if same && (self.machine.has_process() || self.machine.view().epoch >= epoch) {
            return Ok(self.report());
        }
        let before = (self.machine.clone(), self.record.clone());
        self.machine.redefine(epoch, spec.agent).map_err(|e| e.0)?;
        self.record.spec = spec;
        if machine.is_some() {
            self.record.machine = machine;
        }
        if let Err(problem) = self.write_journal() {
            (self.machine, self.record) = before;
            return Err(problem);
        }
        self.publish();
        Ok(self.report())
    }
}

impl Handler<Describe> for DomainActor {
    type Result = MessageResult<Describe>;

    fn handle(&mut self, _: Describe, _ctx: &mut Self::Context) -> Self::Result {
        MessageResult(self.report())
    }
}

impl Handler<Attach> for DomainActor {
    type Result = Result<Console, Problem>;

    fn handle(&mut self, message: Attach, _ctx: &mut Self::Context) -> Self::Result {
        if !self.record.spec.serial {
            return Err(
                Problem::new(codes::STATE_CONFLICT, "the VM has no serial console")
                    .field("serial")
                    .remedy("set `serial: true` in its spec and start it anew"),
            );
        }
        if !self.machine.has_process() {
            return Err(Problem::new(codes::STATE_CONFLICT, "the VM is stopped")
                .remedy("start it first; its log shows what was written before"));
        }
        Ok(self.hub.attach(message.scrollback))
    }
}

impl Handler<TailLog> for DomainActor {
    type Result = ResponseFuture<Result<String, Problem>>;

    fn handle(&mut self, message: TailLog, _ctx: &mut Self::Context) -> Self::Result {
        let path = match message.kind {
            LogKind::Serial => self.place.serial_log(),
            LogKind::Qemu => self.place.qemu_log(),
        };
        let read = tokio::task::spawn_blocking(move || match tail(&path, LOG_SENT) {
            Ok((bytes, size)) => Ok(last_lines(&bytes, size, message.lines)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(crate::host::refused("read", &path, &error)),
        });
        Box::pin(async move { read.await.unwrap_or_else(|e| Err(Problem::internal(e))) })
    }
}

/// The last so many lines, without one that `bytes` holds the end of only.
fn last_lines(bytes: &[u8], size: u64, lines: u32) -> String {
    let text = String::from_utf8_lossy(bytes);
    let whole = match text.split_once('\n') {
        Some((_, rest)) if size > bytes.len() as u64 => rest,
        _ => &text,
    };
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    let skip = whole.lines().count().saturating_sub(lines);
    // Lossy text is up to three times as long as its bytes.
    let kept: Vec<&str> = whole.split_inclusive('\n').skip(skip).collect();
    let kept = kept.concat();
    let surplus = kept.len().saturating_sub(LOG_SENT);
    let cut = (surplus..=kept.len()).find(|at| kept.is_char_boundary(*at));
    cut.and_then(|at| kept.get(at..))
        .unwrap_or_default()
        .to_owned()
}

impl Handler<TakenOver> for DomainActor {
    type Result = ResponseActFuture<Self, Option<HandoffRecord>>;

    fn handle(&mut self, _: TakenOver, _ctx: &mut Self::Context) -> Self::Result {
        let (sender, receiver) = oneshot::channel();
        if self.taken_over {
            let _ = sender.send(());
        } else {
            self.takeover_waiters.push(sender);
        }
        Box::pin(
            receiver
                .into_actor(self)
                .map(|_, actor, _| actor.record.handoff.clone()),
        )
    }
}

impl Handler<Execute> for DomainActor {
    type Result = ResponseFuture<Result<Value, Problem>>;

    fn handle(&mut self, message: Execute, _ctx: &mut Self::Context) -> Self::Result {
        let Execute {
            command,
            arguments,
            deadline,
        } = message;
        let command = Command::new(command, arguments);
        let session = self.session_for(&command);
        Box::pin(execute(command, deadline, session))
    }
}

async fn execute(
    command: Command,
    deadline: Duration,
    session: oneshot::Receiver<Result<Session, Problem>>,
) -> Result<Value, Problem> {
    let until = Instant::now() + deadline;
    let session = match tokio::time::timeout(deadline, session).await {
        Ok(Ok(session)) => session?,
        Ok(Err(_)) => return Err(Problem::new(codes::QEMU_GONE, "the domain's actor ended")),
        Err(_) => {
            let text = format!("QEMU was not ready within {}", Millis::from(deadline));
            return Err(Problem::new(codes::QEMU_TIMEOUT, text).field(command.name));
        }
    };
    let left = until.saturating_duration_since(Instant::now());
    let left = left.max(Duration::from_millis(1));
    session.execute(&command, left).await
}

impl Handler<Subscribe> for DomainActor {
    type Result = MessageResult<Subscribe>;

    fn handle(&mut self, _: Subscribe, _ctx: &mut Self::Context) -> Self::Result {
        let (sender, receiver) = mpsc::unbounded_channel::<DomainSignal>();
        self.subscribers.push(sender);
        MessageResult(receiver)
    }
}

impl Handler<BeginOutgoing> for DomainActor {
    type Result = Result<OutgoingFacts, Problem>;

    fn handle(&mut self, message: BeginOutgoing, ctx: &mut Self::Context) -> Self::Result {
        let wanted = self.machine.wanted();
        let run = self.record.run.clone();
        let run = run.ok_or_else(|| {
            Problem::new(codes::STATE_CONFLICT, "the domain has no QEMU")
                .remedy("only running and paused domains can be moved")
        })?;
        // Its record would take the place of the arrival's, which is all that
        // knows of it until the word on it is in a tombstone.
        if let Some(HandoffRecord::Incoming(arrival)) = &self.record.handoff
            && arrival.stage != (IncomingStage::Running { complete: true })
        {
            return Err(
                Problem::new(codes::BUSY, "the domain has not quite arrived here yet")
                    .remedy("try again in a moment"),
            );
        }
        let begin = Event::BeginOutgoing {
            migration: message.migration,
        };
        self.step(begin, ctx).map_err(|e| e.0)?;
        Ok(OutgoingFacts {
            spec: self.record.spec.clone(),
            epoch: self.machine.view().epoch,
            machine: run.machine,
            accelerator: run.accelerator,
            cpu_model: run.cpu_model,
            qemu_version: run.qemu_version,
            run: wanted,
            disks: Vec::new(),
        })
    }
}

impl Handler<RecordHandoff> for DomainActor {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, message: RecordHandoff, _ctx: &mut Self::Context) -> Self::Result {
        let ours = self
            .record
            .handoff
            .as_ref()
            .is_none_or(|r| r.migration() == message.migration);
        // The end of a migration comes late: another one may have begun since.
        let ends = match &message.record {
            None => true,
            Some(HandoffRecord::Incoming(record)) => {
                matches!(record.stage, IncomingStage::Running { .. })
            }
            Some(HandoffRecord::Outgoing(_)) => false,
        };
        if ends && !ours {
            return Box::pin(std::future::ready(Ok(())));
        }
        let before = std::mem::replace(&mut self.record.handoff, message.record);
        if let Err(problem) = self.write_journal() {
            self.record.handoff = before;
            return Box::pin(std::future::ready(Err(problem)));
        }
        if !message.durable {
            return Box::pin(std::future::ready(Ok(())));
        }
        let journal = self.journal.clone();
        let synced = tokio::task::spawn_blocking(move || journal.sync());
        Box::pin(async move { synced.await.unwrap_or_else(|e| Err(Problem::internal(e))) })
    }
}

impl Handler<MarkInHandoff> for DomainActor {
    type Result = Result<(), Problem>;

    fn handle(&mut self, _: MarkInHandoff, ctx: &mut Self::Context) -> Self::Result {
        self.step(Event::Granted, ctx).map_err(|e| e.0)
    }
}

impl Handler<EndOutgoing> for DomainActor {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, message: EndOutgoing, ctx: &mut Self::Context) -> Self::Result {
        let answered = match message.0 {
            OutgoingEnd::Stay { epoch } => self.ask(Request::Stay, Event::Stay { epoch }, ctx),
            OutgoingEnd::Retire { epoch } => {
                self.ask(Request::Retire, Event::Retire { epoch }, ctx)
            }
        };
        Box::pin(done(answered))
    }
}

impl Handler<BecomeIncoming> for DomainActor {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, message: BecomeIncoming, ctx: &mut Self::Context) -> Self::Result {
        let request = message.0;
        if self.machine.has_process() {
            let busy = Problem::new(codes::BUSY, "the VM has a QEMU on this node already")
                .remedy("wait until it has ended, or stop it there");
            return Box::pin(std::future::ready(Err(busy)));
        }
        let former = std::mem::replace(&mut self.record.spec, request.spec.clone());
        if let Err(problem) = self.prepare(Some(&request)) {
            self.record.spec = former;
            return Box::pin(std::future::ready(Err(problem)));
        }
        let event = Event::Receive {
            migration: request.migration,
            epoch: request.epoch,
        };
        // In the journal before QEMU is started: whatever happens then, a
        // restart of the daemon knows whose arrival it was.
        let handoff = HandoffRecord::Incoming(request.record());
        let before = self.record.handoff.replace(handoff);
        self.arriving = request.images;
        let answered = self.ask(Request::Receive, event, ctx);
        if !self.machine.has_process() {
            self.record.spec = former;
            self.record.handoff = before;
            self.drop_plan();
        }
        Box::pin(done(answered))
    }
}

impl Handler<Activate> for DomainActor {
    type Result = ResponseActFuture<Self, Result<(), ActivateError>>;

    fn handle(&mut self, message: Activate, ctx: &mut Self::Context) -> Self::Result {
        let Activate { epoch, run } = message;
        let event = Event::Activate { epoch, run };
        let answered = done(self.ask(Request::Activate, event, ctx));
        // A domain that is still incoming has certainly never run here.
        Box::pin(answered.into_actor(self).map(|outcome, actor, _| {
            outcome.map_err(|problem| match actor.machine.role() {
                Role::Incoming { .. } if problem.code == codes::BUSY => {
                    ActivateError::NotYet(problem)
                }
                Role::Incoming { .. } => ActivateError::NeverRan(problem),
                _ => ActivateError::Unclear(problem),
            })
        }))
    }
}

impl Handler<DiscardIncoming> for DomainActor {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, _: DiscardIncoming, ctx: &mut Self::Context) -> Self::Result {
        if self.newborn && !self.machine.has_process() {
            // Refused before anything of it was written down.
            let answered = self.wait_for(Request::Discard).1;
            self.forget(Request::Discard, ctx);
            return Box::pin(done(answered));
        }
        Box::pin(done(self.ask(Request::Discard, Event::Discard, ctx)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_at_lines() {
        let text = b"one\ntwo\nthree";
        assert_eq!(last_lines(text, 13, 2), "two\nthree");
        assert_eq!(last_lines(text, 13, 10), "one\ntwo\nthree");
        assert_eq!(last_lines(text, 20, 10), "two\nthree", "a cut first line");
        assert_eq!(last_lines(b"", 0, 10), "");
        let wild = vec![0xff; LOG_SENT];
        assert!(last_lines(&wild, LOG_SENT as u64, 1).len() <= LOG_SENT);
    }
}
