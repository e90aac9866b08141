//! The actor that owns the cluster: input, step, commit, act.
//!
//! Steps go on while a commit is under way; what they lead to waits in a
//! queue. When the commit is done, everything that queued up meanwhile goes to
//! the store as one commit (group commit), so the disk's pace bounds how often
//! is committed and not how much.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::effect::{Answer, Effect, Timer};
use godwit_coordinator_logic::input::{Input, Output, SessionId, Ticket};
use godwit_coordinator_logic::record;
use godwit_coordinator_logic::recording::{Clocks, Taken};
use godwit_shared::model::{BootMillis, NodeId, Problem, UnixMillis};
use godwit_shared::wire::uplink::NodeHello;
use tokio::sync::{mpsc, oneshot};

use super::WRITER;
use super::events::EventHub;
use super::reader::{FIRST_STEP, Writer};
use super::sessions::{SessionEntry, Sessions};
use crate::fence::FenceAgent;
use crate::record::Recorder;
use crate::session::Deliver;
use crate::store::{Commit, CommitError, Expect, LEADER, Revision, Store, Write};

/// Inputs that may wait for their turn; further senders wait themselves.
const MAILBOX: usize = 1024;

type OutputSender = oneshot::Sender<Result<Output, Problem>>;
type AnswerSender = oneshot::Sender<Result<Answer, Problem>>;

/// One input, and who wants to know what came of it.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Apply {
    pub(super) input: Input,
    pub(super) reply: Reply,
}

/// Who wants to know what came of an input.
pub(super) enum Reply {
    Nobody,
    Output(OutputSender),
    Answer {
        output: OutputSender,
        ticket: Ticket,
        answer: AnswerSender,
    },
}

/// A node's new session.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Open {
    pub(super) entry: SessionEntry,
    pub(super) incarnation: u32,
    pub(super) hello: NodeHello,
    pub(super) reply: OutputSender,
}

/// Take no more inputs, and say when all is done.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Halt(pub(super) oneshot::Sender<()>);

/// The right to write is lost: what is not durable is answered with this, and
/// nothing more is taken.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Depose(pub(super) Problem);

/// A follower's newer copy of the cluster.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Replace(pub(super) Box<Cluster>);

/// What keeps an older coordinator from writing: every commit expects this
/// record to be as this one left it.
#[derive(Debug, Clone, Copy)]
pub struct Fence {
    /// The record.
    pub key: &'static str,
    /// The commit by which this coordinator took over.
    pub revision: Revision,
}

/// Where effects go.
pub(super) struct Outlets {
    pub(super) events: EventHub,
    pub(super) sessions: Sessions,
    pub(super) fatal: mpsc::UnboundedSender<Problem>,
    pub(super) agents: BTreeMap<NodeId, FenceAgent>,
    pub(super) recorder: Option<Recorder>,
}

/// What one step led to.
struct Batch {
    version: u64,
    writes: Vec<record::Write>,
    acts: Vec<Effect>,
    reply: Option<(OutputSender, Result<Output, Problem>)>,
}

/// The one writer of the cluster's state.
pub(crate) struct ClusterActor {
    writer: Writer,
    store: Arc<dyn Store>,
    fence: Fence,
    outlets: Outlets,
    /// What follows from the records alone, until the actor has started.
    first: Vec<Effect>,
    /// Steps whose effects have not begun.
    waiting: VecDeque<Batch>,
    /// Steps whose commit is under way.
    committing: Vec<Batch>,
    answers: HashMap<Ticket, AnswerSender>,
    timers: HashMap<Timer, SpawnHandle>,
    /// Set when no more inputs are taken: the store failed, or the daemon ends.
    ended: Option<Problem>,
    halts: Vec<oneshot::Sender<()>>,
}

impl ClusterActor {
    pub(super) fn new(
        writer: Writer,
        store: Arc<dyn Store>,
        fence: Fence,
        first: Vec<Effect>,
        outlets: Outlets,
    ) -> Self {
        Self {
            writer,
            store,
            fence,
            outlets,
            first,
            waiting: VecDeque::new(),
            committing: Vec::new(),
            answers: HashMap::new(),
            timers: HashMap::new(),
            ended: None,
            halts: Vec::new(),
        }
    }

    /// One that shows a copy and takes no inputs: they are refused with `problem`.
    pub(super) fn idle(
        writer: Writer,
        store: Arc<dyn Store>,
        outlets: Outlets,
        problem: Problem,
    ) -> Self {
        writer.durable(FIRST_STEP);
        // Nothing is ever committed.
        let (key, revision) = (WRITER, Revision::default());
        let fence = Fence { key, revision };
        Self {
            ended: Some(problem),
            ..Self::new(writer, store, fence, Vec::new(), outlets)
        }
    }

    fn step(&mut self, input: Input, reply: Option<OutputSender>, ctx: &mut Context<Self>) {
        if let Some(problem) = &self.ended {
            if let Some(reply) = reply {
                let _ = reply.send(Err(problem.clone()));
            }
            return;
        }
        let mut effects = Vec::new();
        let clocks = Clocks {
            now: UnixMillis::now(),
            steady: steady(),
        };
        let recorded = self.outlets.recorder.as_ref().map(|_| input.clone());
        let (result, version) = self
            .writer
            .step(|cluster| cluster.step_at(clocks.now, clocks.steady, input, &mut effects));
        if let Some(input) = recorded {
            self.record(clocks, input, &result, &effects);
        }
        if let (Err(problem), None) = (&result, &reply) {
            tracing::debug!(%problem, "an input was refused");
        }
        let reply = reply.map(|reply| (reply, result));
        self.queue(version, effects, reply, ctx);
    }

    /// A copy goes to the recorder's thread, which does the rest.
    fn record(
        &mut self,
        clocks: Clocks,
        input: Input,
        outcome: &Result<Output, Problem>,
        effects: &[Effect],
    ) {
        let taken = Taken {
            clocks,
            input,
            outcome: outcome.clone(),
            effects: effects.to_vec(),
        };
        if let Some(recorder) = &mut self.outlets.recorder {
            recorder.took(taken, || self.writer.copy());
        }
    }

    fn queue(
        &mut self,
        version: u64,
        effects: Vec<Effect>,
        reply: Option<(OutputSender, Result<Output, Problem>)>,
        ctx: &mut Context<Self>,
    ) {
        let (mut writes, mut acts) = (Vec::new(), Vec::with_capacity(effects.len()));
        for effect in effects {
            match effect {
                Effect::Persist(more) => writes.extend(more),
                act => acts.push(act),
            }
        }
        self.waiting.push_back(Batch {
            version,
            writes,
            acts,
            reply,
        });
        self.pump(ctx);
    }

    /// Acts on what needs no commit, and commits the rest together.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        if !self.committing.is_empty() {
            return;
        }
        while self
            .waiting
            .front()
            .is_some_and(|batch| batch.writes.is_empty())
        {
            if let Some(batch) = self.waiting.pop_front() {
                self.act(batch, ctx);
            }
        }
        if self.waiting.is_empty() {
            // Those who wait for the end hear of it by the drop.
            self.halts.clear();
            return;
        }
        let together = self.group();
        self.committing = self.waiting.drain(..together).collect();
        let writes = self
            .committing
            .iter_mut()
            .flat_map(|batch| batch.writes.drain(..));
        let commit = Commit::of(writes.map(store_write).collect())
            .expecting(self.fence.key, Expect::At(self.fence.revision));
        super::within(self.store.commit(commit))
            .into_actor(self)
            .map(|result, actor, ctx| actor.on_committed(result, ctx))
            .spawn(ctx);
    }

    /// How many of those that wait fit into one commit; the first in any case.
    fn group(&self) -> usize {
        let room = self.store.room();
        let (mut writes, mut bytes) = (0, 0);
        let fit = self.waiting.iter().take_while(|batch| {
            writes += batch.writes.len();
            bytes += batch.writes.iter().map(size).sum::<usize>();
            room.fits(writes, bytes)
        });
        fit.count().max(1)
    }

    fn on_committed(&mut self, result: Result<Revision, CommitError>, ctx: &mut Context<Self>) {
        let batches = std::mem::take(&mut self.committing);
        match result {
            Ok(_) => {
                for batch in batches {
                    self.act(batch, ctx);
                }
                self.pump(ctx);
            }
            // The lease has ended, and this is how it is noticed.
            Err(CommitError::Conflict { .. }) if self.fence.key == LEADER => {
                self.fail(super::deposed(), batches);
            }
            Err(error) => {
                tracing::error!(%error, "the store failed");
                self.fail(error.into(), batches);
            }
        }
    }

    fn fail(&mut self, problem: Problem, batches: Vec<Batch>) {
        for batch in batches.into_iter().chain(self.waiting.drain(..)) {
            if let Some((reply, _)) = batch.reply {
                let _ = reply.send(Err(problem.clone()));
            }
        }
        self.answers.clear();
        let _ = self.outlets.fatal.send(problem.clone());
        self.ended = Some(problem);
        self.halts.clear();
    }

    fn act(&mut self, batch: Batch, ctx: &mut Context<Self>) {
        for effect in batch.acts {
            self.perform(effect, ctx);
        }
        self.writer.durable(batch.version);
        if let Some((reply, result)) = batch.reply {
            // The client may have gone.
            let _ = reply.send(result);
        }
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        let outlets = &self.outlets;
        match effect {
            // The writes were taken out before; those who wait for a task look
            // again after every step.
            Effect::Persist(_) | Effect::TaskChanged(_) => {}
            Effect::Send {
                session, message, ..
            } => {
                outlets.sessions.deliver(session, Deliver::Message(message));
            }
            Effect::Request {
                session,
                request,
                body,
                deadline,
                ..
            } => {
                outlets.sessions.deliver(
                    session,
                    Deliver::Request {
                        request,
                        body,
                        deadline,
                    },
                );
            }
            Effect::CloseSession {
                session, problem, ..
            } => {
                outlets.sessions.deliver(session, Deliver::Close(problem));
                outlets.sessions.remove(session);
            }
            Effect::Emit(event) => outlets.events.publish(&event),
            Effect::Answer { ticket, outcome } => {
                if let Some(answer) = self.answers.remove(&ticket) {
                    let _ = answer.send(outcome);
                }
            }
            Effect::Fence(node) => self.fence(node, ctx),
            Effect::Arm { timer, at } => self.arm(timer, at, ctx),
        }
    }

    /// Runs the node's fence agent beside everything else.
    fn fence(&mut self, node: NodeId, ctx: &mut Context<Self>) {
        let agent = self.outlets.agents.get(&node).cloned();
        let run = async move {
            let outcome = match agent {
                Some(agent) => agent.off(&node).await,
                None => Err(Problem::internal("a fence agent that is not configured")),
            };
            (node, outcome)
        };
        run.into_actor(self)
            .map(|(node, outcome), actor, ctx| {
                actor.step(Input::FenceEnded { node, outcome }, None, ctx);
            })
            .spawn(ctx);
    }

    fn arm(&mut self, timer: Timer, at: UnixMillis, ctx: &mut Context<Self>) {
        let wait: Duration = UnixMillis::now().until(at).duration();
        let handle = ctx.run_later(wait, move |actor, ctx| {
            actor.timers.remove(&timer);
            actor.step(Input::Timer(timer), None, ctx);
        });
        if let Some(old) = self.timers.insert(timer, handle) {
            ctx.cancel_future(old);
        }
    }
}

/// The time that leases are counted in.
fn steady() -> BootMillis {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let millis = now.tv_sec.saturating_mul(1_000) + now.tv_nsec / 1_000_000;
    BootMillis(u64::try_from(millis).unwrap_or_default())
}

/// What a write takes of the store's room, a key's length taken as the longest.
fn size(write: &record::Write) -> usize {
    let value = match write {
        record::Write::Put { value, .. } => value.len(),
        record::Write::Delete { .. } => 0,
    };
    value + Write::LONGEST_KEY
}

fn store_write(write: record::Write) -> Write {
    match write {
        record::Write::Put { key, value } => Write::Put {
            key: key.to_string(),
            value: Bytes::from(value),
        },
        record::Write::Delete { key } => Write::Delete {
            key: key.to_string(),
        },
    }
}

impl Actor for ClusterActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let effects = std::mem::take(&mut self.first);
        self.queue(FIRST_STEP, effects, None, ctx);
    }
}

impl Handler<Apply> for ClusterActor {
    type Result = ();

    fn handle(&mut self, apply: Apply, ctx: &mut Self::Context) {
        let reply = match apply.reply {
            Reply::Nobody => None,
            Reply::Output(output) => Some(output),
            Reply::Answer {
                output,
                ticket,
                answer,
            } => {
                // Those who were answered otherwise have let go of theirs.
                self.answers.retain(|_, answer| !answer.is_closed());
                self.answers.insert(ticket, answer);
                Some(output)
            }
        };
        self.step(apply.input, reply, ctx);
    }
}

impl Handler<Halt> for ClusterActor {
    type Result = ();

    fn handle(&mut self, Halt(done): Halt, ctx: &mut Self::Context) {
        self.ended.get_or_insert_with(super::ending);
        // Waits until it is written.
        self.outlets.recorder = None;
        self.halts.push(done);
        self.pump(ctx);
    }
}

impl Handler<Depose> for ClusterActor {
    type Result = ();

    fn handle(&mut self, Depose(problem): Depose, ctx: &mut Self::Context) {
        // Whatever the commit under way comes to, nothing is done about it.
        let batches = std::mem::take(&mut self.committing);
        for (_, timer) in self.timers.drain() {
            ctx.cancel_future(timer);
        }
        self.fail(problem, batches);
    }
}

impl Handler<Replace> for ClusterActor {
    type Result = ();

    fn handle(&mut self, Replace(fresh): Replace, _: &mut Self::Context) {
        let ((), version) = self.writer.step(|cluster| *cluster = *fresh);
        self.writer.durable(version);
    }
}

impl Handler<Open> for ClusterActor {
    type Result = ();

    fn handle(&mut self, open: Open, ctx: &mut Self::Context) {
        let Open {
            entry,
            incarnation,
            hello,
            reply,
        } = open;
        let (node, session): (_, SessionId) = (entry.node.clone(), entry.id);
        // First, since the step's effects may be for this very session.
        self.outlets.sessions.insert(entry);
        let input = Input::SessionOpened {
            node,
            incarnation,
            session,
            hello,
        };
        self.step(input, Some(reply), ctx);
    }
}
