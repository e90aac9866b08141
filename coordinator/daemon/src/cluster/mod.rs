//! The one writer of the cluster's state, and everybody's way to it.
//!
//! ```text
//!  sessions, HTTP --Input--> ClusterActor --step--> Cluster (godwit-coordinator-logic)
//!                                 |  effects
//!                                 +--1. commit to the store (several steps at once)
//!                                 +--2. act: sessions, timers, EventHub, replies
//!  HTTP <--views-- Reader (waits until what it saw is durable)
//! ```
//!
//! Invariants:
//! * only [`ClusterActor`] changes the cluster, one input at a time;
//! * nothing is sent, answered or shown before the store has committed the
//!   step that it follows from, nor before what earlier steps led to;
//! * when the store fails, the daemon ends: memory is ahead of the store then,
//!   and a new start from the store is right again.

mod actor;
mod events;
mod reader;
mod sessions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use godwit_coordinator_logic::cluster::{Cluster, Settings};
use godwit_coordinator_logic::effect::{Answer, Effect};
use godwit_coordinator_logic::input::{Input, Output, SessionId, Ticket};
use godwit_coordinator_logic::record::Key;
use godwit_shared::api::Event;
use godwit_shared::model::{NodeId, Problem, UnixMillis, codes};
use godwit_shared::wire::uplink::NodeHello;
use tokio::sync::{mpsc, oneshot};

use crate::credential::random_text;
use crate::fence::FenceAgent;
use crate::record::{self, RecordSettings, Recorder};
use crate::store::{Commit, Expect, Pending, Store, StoreError, Write};
use actor::{Apply, ClusterActor, Depose, Halt, Open, Replace, Reply};

pub use actor::Fence;
pub use events::{EventHub, EventLine, Subscription};
pub use reader::Reader;
pub use sessions::{SessionEntry, Sessions};

/// How long an input may wait for its turn. Each takes microseconds.
const TURN: Duration = Duration::from_secs(10);
/// How long the store may take for one answer before it counts as failed.
const STORE: Duration = Duration::from_secs(20);
/// How long the store may take for what follows.
const COMMIT: Duration = Duration::from_secs(30);
/// The record by which an older coordinator is kept from writing.
const WRITER: &str = "coordinator/writer";

/// Everybody's way to the cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ClusterHandle {
    actor: Addr<ClusterActor>,
    reader: Reader,
    events: EventHub,
    sessions: Sessions,
    tickets: Arc<AtomicU64>,
}

/// What else a cluster may be given.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// The nodes' fence agents.
    pub agents: BTreeMap<NodeId, FenceAgent>,
    /// Its steps are written down there.
    pub record: Option<RecordSettings>,
}

/// Who works for a cluster that is written to.
#[derive(Debug, Default)]
struct Helpers {
    agents: BTreeMap<NodeId, FenceAgent>,
    recorder: Option<Recorder>,
}

/// What came of an input that may be answered later.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "lives for one answer")]
pub enum Answered {
    /// At once.
    Output(Output),
    /// After a node was asked.
    Answer(Answer),
}

impl ClusterHandle {
    /// Takes the cluster up from its store. A failure of the store after that
    /// is told to `fatal`; the daemon has to end then.
    pub async fn start(
        store: Arc<dyn Store>,
        settings: Settings,
        fatal: mpsc::UnboundedSender<Problem>,
    ) -> Result<Self, Problem> {
        Self::start_with(store, settings, Extras::default(), fatal).await
    }

    /// The same, with what else the settings ask for.
    pub async fn start_with(
        store: Arc<dyn Store>,
        settings: Settings,
        extras: Extras,
        fatal: mpsc::UnboundedSender<Problem>,
    ) -> Result<Self, Problem> {
        let fence = take_over(&*store).await?;
        Self::lead(store, fence, settings, extras, fatal).await
    }

    /// The same with a right to write that was had otherwise, by an election.
    pub async fn lead(
        store: Arc<dyn Store>,
        fence: Fence,
        settings: Settings,
        extras: Extras,
        fatal: mpsc::UnboundedSender<Problem>,
    ) -> Result<Self, Problem> {
        let scan = within(store.scan(Key::PREFIX)).await?;
        let records = scan
            .entries
            .into_iter()
            .map(|entry| (entry.key, entry.value.to_vec()));
        let now = UnixMillis::now();
        let records: Vec<_> = records.collect();
        let Extras { agents, record } = extras;
        let start = record.map(|record| (record, settings.clone(), records.clone()));
        let mut effects = Vec::new();
        let kept = settings.limits.events;
        let cluster = Cluster::load(settings, now, records, &mut effects)
            .map_err(|error| unreadable(&error))?;
        let recorder = start.map(|(record, settings, records)| {
            let effects = effects.clone();
            let start = record::Start {
                settings,
                now,
                records,
                effects,
            };
            Recorder::begin(&record, start)
        });
        let (reader, writer) = reader::pair(cluster);
        let events = EventHub::new(kept, &past_events(&reader, &effects));
        let helpers = Helpers {
            agents,
            recorder: recorder.transpose()?,
        };
        Ok(Self::with(reader, events, helpers, fatal, |outlets| {
            ClusterActor::new(writer, store, fence, effects, outlets)
        }))
    }

    /// A copy to look at: [`Self::replace`] renews it, and every input is
    /// refused with `problem`.
    pub fn copy(store: Arc<dyn Store>, cluster: Cluster, problem: Problem) -> Self {
        let (reader, writer) = reader::pair(cluster);
        let events = EventHub::new(0, &[]);
        events.close();
        let (fatal, _) = mpsc::unbounded_channel();
        Self::with(reader, events, Helpers::default(), fatal, |outlets| {
            ClusterActor::idle(writer, store, outlets, problem)
        })
    }

    fn with(
        reader: Reader,
        events: EventHub,
        helpers: Helpers,
        fatal: mpsc::UnboundedSender<Problem>,
        make: impl FnOnce(actor::Outlets) -> ClusterActor,
    ) -> Self {
        let sessions = Sessions::default();
        let outlets = actor::Outlets {
            events: events.clone(),
            sessions: sessions.clone(),
            fatal,
            agents: helpers.agents,
            recorder: helpers.recorder,
        };
        Self {
            actor: make(outlets).start(),
            reader,
            events,
            sessions,
            tickets: Arc::default(),
        }
    }

    /// Shows another copy from now on.
    pub async fn replace(&self, cluster: Cluster) {
        // Fails only when the daemon ends.
        let _ = self.actor.send(Replace(Box::new(cluster))).await;
    }

    /// The right to write is lost: ends all at once, nodes' sessions too.
    pub async fn depose(&self, problem: Problem) {
        let _ = self.actor.send(Depose(problem)).await;
        self.events.close();
        self.sessions.end("this coordinator leads no more");
    }

    /// The cluster's state, to look at.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// What has happened.
    pub fn events(&self) -> &EventHub {
        &self.events
    }

    /// The sessions of nodes.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Feeds an input; resolves when what came of it is durable.
    pub async fn apply(&self, input: Input) -> Result<Output, Problem> {
        let (sender, output) = oneshot::channel();
        self.post(Apply {
            input,
            reply: Reply::Output(sender),
        })
        .await?;
        durable(output).await
    }

    /// Feeds an input that a node may have to answer first. That answer, or
    /// the problem instead of it, comes by the cluster's own deadlines.
    pub async fn ask(&self, input: impl FnOnce(Ticket) -> Input) -> Result<Answered, Problem> {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let (sender, output) = oneshot::channel();
        let (answerer, answer) = oneshot::channel();
        let reply = Reply::Answer {
            output: sender,
            ticket,
            answer: answerer,
        };
        self.post(Apply {
            input: input(ticket),
            reply,
        })
        .await?;
        match durable(output).await? {
            Output::Waiting => answer.await.map_err(|_| ending())?.map(Answered::Answer),
            output => Ok(Answered::Output(output)),
        }
    }

    /// Feeds an input whose outcome concerns nobody; resolves when it had its
    /// turn, however long that takes, so that whoever sends too fast is slowed
    /// down and nothing that a node says is lost.
    pub async fn tell(&self, input: Input) {
        let apply = Apply {
            input,
            reply: Reply::Nobody,
        };
        // Fails only when the daemon ends.
        let _ = self.actor.send(apply).await;
    }

    /// Takes no more inputs; resolves when what had come is durable and done.
    pub async fn halt(&self) {
        let (sender, done) = oneshot::channel();
        if self.actor.send(Halt(sender)).await.is_ok() {
            let _ = tokio::time::timeout(COMMIT, done).await;
        }
    }

    /// Takes a node's session in, or says why not.
    pub async fn open_session(
        &self,
        entry: SessionEntry,
        incarnation: u32,
        hello: NodeHello,
    ) -> Result<(), Problem> {
        let (node, session) = (entry.node.clone(), entry.id);
        let (reply, opened) = oneshot::channel();
        let open = Open {
            entry,
            incarnation,
            hello,
            reply,
        };
        let posted = posted(self.actor.send(open).timeout(TURN).await);
        let opened = match posted {
            Ok(()) => durable(opened).await.map(|_| ()),
            Err(problem) => Err(problem),
        };
        if let Err(problem) = &opened {
            // The hello may be taken in yet, behind a full mailbox or a slow
            // store: what comes behind it ends the session that nobody reads.
            self.sessions.remove(session);
            let (cluster, reason) = (self.clone(), problem.message.clone());
            actix::spawn(async move { cluster.close_session(node, session, reason).await });
        }
        opened
    }

    /// A session has ended.
    pub async fn close_session(&self, node: NodeId, session: SessionId, reason: String) {
        self.tell(Input::SessionClosed {
            node,
            session,
            reason,
        })
        .await;
        self.sessions.remove(session);
    }

    async fn post(&self, apply: Apply) -> Result<(), Problem> {
        posted(self.actor.send(apply).timeout(TURN).await)
    }
}

fn posted(result: Result<(), MailboxError>) -> Result<(), Problem> {
    result.map_err(|error| match error {
        MailboxError::Timeout => Problem::new(codes::OVERLOADED, "the coordinator is overloaded")
            .remedy("try again in a moment"),
        MailboxError::Closed => ending(),
    })
}

async fn durable<T>(reply: oneshot::Receiver<Result<T, Problem>>) -> Result<T, Problem> {
    match tokio::time::timeout(COMMIT, reply).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(ending()),
        Err(_) => Err(Problem::new(
            codes::STORE,
            "the store does not answer; it may still happen",
        )
        .remedy("look at the coordinator's disk, then at the state of what was asked for")),
    }
}

pub(crate) fn ending() -> Problem {
    Problem::new(codes::OVERLOADED, "the coordinator is shutting down")
        .remedy("try again when it is back")
}

/// The store's answer, or its failure when there is none in [`STORE`]: a disk
/// that hangs must not leave a coordinator that does nothing and says nothing.
async fn within<T, E: From<StoreError>>(answer: Pending<T, E>) -> Result<T, E> {
    let silent = |_| StoreError::Failed {
        doing: "answer",
        why: format!("nothing came for {} s", STORE.as_secs()),
    };
    tokio::time::timeout(STORE, answer).await.map_err(silent)?
}

/// Another coordinator has, or will have, the right to write.
pub(crate) fn deposed() -> Problem {
    Problem::new(
        codes::NO_LEADER,
        "this coordinator has ceased to lead the cluster; nothing of this was done",
    )
    .remedy("ask again: another coordinator leads in some seconds")
}

/// Makes this coordinator the writer: commits of an older one fail from now on.
async fn take_over(store: &dyn Store) -> Result<Fence, Problem> {
    let found = within(store.record(WRITER)).await?;
    let expect = found.map_or(Expect::Absent, |entry| Expect::At(entry.revision));
    let value = Bytes::from(random_text::<16>()?);
    let write = Write::Put {
        key: WRITER.into(),
        value,
    };
    let commit = store.commit(Commit::of(vec![write]).expecting(WRITER, expect));
    let revision = within(commit).await?;
    Ok(Fence {
        key: WRITER,
        revision,
    })
}

fn unreadable(error: &dyn std::error::Error) -> Problem {
    let cause = error
        .source()
        .map(|cause| format!(": {cause}"))
        .unwrap_or_default();
    Problem::new(codes::STORE, format!("{error}{cause}"))
        .remedy("run the release that wrote the store, or restore it from a backup")
}

/// The events that were durable before this start; those that loading itself
/// leads to are emitted like any other.
fn past_events(reader: &Reader, effects: &[Effect]) -> Vec<Event> {
    let first_new = effects.iter().find_map(|effect| match effect {
        Effect::Emit(event) => Some(event.seq),
        _ => None,
    });
    let mut events = reader.peek(|cluster| cluster.events_after(0)).events;
    events.retain(|event| first_new.is_none_or(|first| event.seq < first));
    events
}
