//! A QMP session: commands with deadlines, events in order.
//!
//! One task reads, one writes. A QEMU that does not read holds up the writer
//! alone; one that floods is met by the bounded event queue: events that matter
//! ([`qmp::Event::matters`]) wait for room, and thereby hold up QEMU's socket,
//! while chatter is dropped and counted. Replies go past that queue.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use godwit_node_logic::qmp::{
    Codec, CodecError, Command, CommandId, Event, Greeting, Message, Reply,
};
use godwit_shared::model::{Millis, Problem, UnixMillis, codes};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Events that wait for the actor.
const EVENTS: usize = 256;
/// Commands that wait for QEMU to read them.
const COMMANDS: usize = 64;
/// Lines that are no QMP, after which the other end is not taken for QEMU.
const MAX_GARBAGE: u32 = 100;
/// How much is read at once, in bytes.
const READ: usize = 16 * 1024;

/// A session. Cheap to clone; it ends when QEMU closes it, or when the last
/// clone and the event receiver are dropped.
#[derive(Debug, Clone)]
pub struct Session {
    lines: mpsc::Sender<Vec<u8>>,
    waiting: Arc<Mutex<Waiting>>,
    next: Arc<AtomicU64>,
    /// Commands may be sent out of band.
    oob: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    replies: HashMap<CommandId, oneshot::Sender<Result<Value, Problem>>>,
    closed: bool,
}

/// What a session tells by itself.
#[derive(Debug, Clone, PartialEq)]
pub enum SessionEvent {
    /// An event of QEMU.
    Qmp(Event),
    /// The session has ended; nothing follows.
    Closed,
}

impl Session {
    /// Connects to the socket at `path`, waits for the greeting and negotiates.
    /// Takes as long as QEMU does.
    pub async fn open(
        path: &Path,
    ) -> Result<(Self, Greeting, mpsc::Receiver<SessionEvent>), Problem> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|e| gone(&format!("its QMP socket refuses: {e}")))?;
        Self::over(stream).await
    }

    /// Negotiates over a connection.
    pub async fn over(
        stream: UnixStream,
    ) -> Result<(Self, Greeting, mpsc::Receiver<SessionEvent>), Problem> {
        let (mut session, greeted, receiver) = Self::begin(stream, 0);
        let greeting = greeted
            .await
            .map_err(|_| gone("it closed the QMP session before it greeted"))?;
        let oob = greeting.offers_oob();
        session.send(&Command::capabilities(oob)).await?;
        session.oob = oob;
        Ok((session, greeting, receiver))
    }

    /// Goes on with a session that a daemon before this one has negotiated, out
    /// of band included. What comes first may be the end of a line, which is no
    /// JSON and is skipped, and answers to that daemon: the time of day keeps its
    /// numbers apart from these. It left no piece of a command behind, since the
    /// kernel takes what is as short as a command whole or not at all.
    pub fn go_on(stream: UnixStream) -> (Self, mpsc::Receiver<SessionEvent>) {
        let first = UnixMillis::now().0.saturating_mul(1_000);
        let (mut session, _, receiver) = Self::begin(stream, first);
        session.oob = true;
        (session, receiver)
    }

    /// Reads and writes; commands are numbered from `first`.
    fn begin(
        stream: UnixStream,
        first: u64,
    ) -> (
        Self,
        oneshot::Receiver<Greeting>,
        mpsc::Receiver<SessionEvent>,
    ) {
        // Not `into_split`: its half shuts the socket down when it is dropped, for
        // whoever else has a copy of it (`rescue`) too.
        let (from, to) = tokio::io::split(stream);
        let (lines, queued) = mpsc::channel(COMMANDS);
        let (events, receiver) = mpsc::channel(EVENTS);
        let (greet, greeted) = oneshot::channel();
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let session = Self {
            lines,
            waiting: Arc::clone(&waiting),
            next: Arc::new(AtomicU64::new(first)),
            oob: false,
        };
        tokio::spawn(write(to, queued));
        let reader = Reader {
            codec: Codec::new(),
            waiting,
            events,
            greet: Some(greet),
            dropped: 0,
            garbage: 0,
        };
        tokio::spawn(reader.run(from));
        (session, greeted, receiver)
    }

    /// One command and what it returned. When `deadline` passes QEMU may still
    /// carry it out.
    pub async fn execute(&self, command: &Command, deadline: Duration) -> Result<Value, Problem> {
        match tokio::time::timeout(deadline, self.send(command)).await {
            Ok(result) => result,
            Err(_) => Err(Problem::new(
                codes::QEMU_TIMEOUT,
                format!(
                    "QEMU did not answer `{}` within {}",
                    command.name,
                    Millis::from(deadline)
                ),
            )
            .remedy("see whether the host is overloaded or the process is stopped")),
        }
    }

    /// The same, for as long as the session lasts.
    pub async fn send(&self, command: &Command) -> Result<Value, Problem> {
        let id = CommandId(self.next.fetch_add(1, Ordering::Relaxed));
        let (reply, replied) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            if waiting.closed {
                return Err(gone("its QMP session is closed"));
            }
            waiting.replies.insert(id, reply);
        }
        let _forget = Forget {
            waiting: &self.waiting,
            id,
        };
        if self.lines.send(command.line(id, self.oob)).await.is_err() {
            return Err(gone("its QMP session is closed"));
        }
        let outcome = replied
            .await
            .unwrap_or_else(|_| Err(gone("it closed the QMP session")));
        outcome.map_err(|problem| {
            if problem.code == codes::QEMU_COMMAND {
                problem.field(command.name)
            } else {
                problem
            }
        })
    }
}

/// Forgets a command that nobody waits for any more.
struct Forget<'a> {
    waiting: &'a Mutex<Waiting>,
    id: CommandId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.waiting).replies.remove(&self.id);
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn gone(why: &str) -> Problem {
    Problem::new(codes::QEMU_GONE, format!("QEMU cannot be reached: {why}"))
        .remedy("look at the VM's state and its QEMU log")
}

async fn write(mut to: WriteHalf<UnixStream>, mut queued: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = queued.recv().await {
        if to.write_all(&line).await.is_err() {
            return;
        }
    }
}

struct Reader {
    codec: Codec,
    waiting: Arc<Mutex<Waiting>>,
    events: mpsc::Sender<SessionEvent>,
    greet: Option<oneshot::Sender<Greeting>>,
    dropped: u64,
    garbage: u32,
}

impl Reader {
    async fn run(mut self, mut from: ReadHalf<UnixStream>) {
        let mut buffer = vec![0; READ];
        // Nobody listens any more: let go of QEMU's only QMP connection.
        let listener = self.events.clone();
        loop {
            let read = tokio::select! {
                read = from.read(&mut buffer) => read,
                () = listener.closed() => break,
            };
            let Ok(read @ 1..) = read else { break };
            self.codec.push(buffer.get(..read).unwrap_or_default());
            if !self.drain().await {
                break;
            }
        }
        self.close();
        let _ = self.events.send(SessionEvent::Closed).await;
    }

    /// Handles every whole message; false when the session cannot go on.
    async fn drain(&mut self) -> bool {
        loop {
            match self.codec.next() {
                Ok(None) => return true,
                Ok(Some(message)) => {
                    if !self.handle(message).await {
                        return false;
                    }
                }
                Err(error @ CodecError::NotJson { .. }) if self.garbage < MAX_GARBAGE => {
                    self.garbage += 1;
                    tracing::warn!(%error, "QEMU sent something that is not QMP");
                }
                Err(error) => {
                    tracing::error!(%error, "the QMP session is given up");
                    return false;
                }
            }
        }
    }

    async fn handle(&mut self, message: Message) -> bool {
        match message {
            Message::Greeting(greeting) => {
                if let Some(greet) = self.greet.take() {
                    let _ = greet.send(greeting);
                }
            }
            Message::Reply(reply) => self.reply(reply),
            Message::Event(event) if event.matters() => {
                return self.events.send(SessionEvent::Qmp(event)).await.is_ok();
            }
            Message::Event(event) => self.chatter(event),
            Message::Unknown(value) => {
                tracing::debug!(%value, "QEMU sent a message of an unknown kind");
            }
        }
        true
    }

    fn reply(&self, Reply { id, outcome }: Reply) {
        let waiter = id.and_then(|id| lock(&self.waiting).replies.remove(&id));
        let outcome = outcome.map_err(|error| {
            Problem::new(codes::QEMU_COMMAND, error.desc.clone()).value(error.class)
        });
        match waiter {
            Some(waiter) => drop(waiter.send(outcome)),
            None => tracing::debug!(?id, "QEMU answered a command that nobody waits for"),
        }
    }

    /// Half of the queue is kept for what matters.
    fn chatter(&mut self, event: Event) {
        if self.events.capacity() > EVENTS / 2 {
            if let Err(error) = self.events.try_send(SessionEvent::Qmp(event)) {
                tracing::debug!(%error, "an event found no room");
            }
            if self.dropped > 0 {
                tracing::warn!(
                    dropped = self.dropped,
                    "QEMU sent more events than can be read"
                );
                self.dropped = 0;
            }
        } else {
            self.dropped += 1;
        }
    }

    fn close(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.closed = true;
        waiting.replies.clear();
    }
}
