//! One node's session.
//!
//! ```text
//!  cluster --Deliver--> SessionActor --outbox (bounded)--> writer --> node
//!                          | deadlines of requests
//!  cluster <--Input------ reader <------------------------------------ node
//! ```
//!
//! The reader waits until the cluster has had its message, so a node that
//! talks too fast is slowed down by QUIC's flow control. When the node doesn't
//! read, the outbox fills up, and then the connection is closed: the node comes
//! back with a hello that says where it stands.

use std::collections::HashMap;
use std::time::Duration;

use actix::prelude::*;
use godwit_coordinator_logic::input::{Input, SessionId};
use godwit_shared::model::{Millis, NodeId, Problem};
use godwit_shared::transport::{CloseCode, Connection, MessageReceiver, MessageSender};
use godwit_shared::wire::uplink::{CoordinatorMessage, NodeMessage, NodeRequest};
use tokio::sync::mpsc;

use super::SessionContext;

/// Messages that may wait for a node that reads slowly.
const OUTBOX: usize = 512;
/// How long a node may take to read why its session is refused.
const FAREWELL: Duration = Duration::from_secs(2);

/// Something for the node.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub enum Deliver {
    /// A message.
    Message(CoordinatorMessage),
    /// A request; when no reply comes in time, the cluster is told.
    Request {
        /// Its number.
        request: u64,
        /// What to ask.
        body: NodeRequest,
        /// How long to wait.
        deadline: Millis,
    },
    /// End the session, and say why.
    Close(Problem),
    /// End the connection at once, for a reason that has nothing to do with the
    /// node: it comes back by itself.
    CutOff(String),
}

/// The cluster has taken the session in: read what the node says.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Begin(pub(super) MessageReceiver<NodeMessage>);

/// The node replied to the request of that number.
#[derive(Message)]
#[rtype(result = "()")]
struct Replied(u64);

/// Owns one session.
pub(super) struct SessionActor {
    node: NodeId,
    incarnation: u32,
    id: SessionId,
    connection: Connection,
    context: SessionContext,
    outbox: mpsc::Sender<CoordinatorMessage>,
    queue: Option<mpsc::Receiver<CoordinatorMessage>>,
    deadlines: HashMap<u64, SpawnHandle>,
    closing: bool,
}

impl SessionActor {
    pub(super) fn new(
        node: NodeId,
        incarnation: u32,
        id: SessionId,
        connection: Connection,
        context: SessionContext,
    ) -> Self {
        let (outbox, queue) = mpsc::channel(OUTBOX);
        Self {
            node,
            incarnation,
            id,
            connection,
            context,
            outbox,
            queue: Some(queue),
            deadlines: HashMap::new(),
            closing: false,
        }
    }

    /// Starts it; it reads nothing before it is told to [`Begin`].
    pub(super) fn start(mut self, sender: MessageSender<CoordinatorMessage>) -> Addr<Self> {
        let queue = self.queue.take();
        Self::create(move |ctx| {
            ctx.set_mailbox_capacity(OUTBOX);
            if let Some(queue) = queue {
                let writer = write(sender, queue, self.connection.clone());
                ctx.spawn(writer.into_actor(&self));
            }
            self
        })
    }

    fn put(&mut self, message: CoordinatorMessage) {
        if !self.closing && self.outbox.try_send(message).is_err() {
            tracing::warn!(node = %self.node, "the node does not read its session");
            self.connection
                .close(CloseCode::PROTOCOL, "the node does not read its session");
        }
    }

    fn request(
        &mut self,
        request: u64,
        body: NodeRequest,
        deadline: Millis,
        ctx: &mut Context<Self>,
    ) {
        let handle = ctx.run_later(deadline.duration(), move |actor, ctx| {
            actor.deadlines.remove(&request);
            let cluster = actor.context.cluster.clone();
            let tell = async move { cluster.tell(Input::Unanswered { request }).await };
            ctx.spawn(tell.into_actor(actor));
        });
        self.deadlines.insert(request, handle);
        self.put(CoordinatorMessage::Request { request, body });
    }

    fn close(&mut self, problem: Problem, ctx: &mut Context<Self>) {
        let text = problem.message.clone();
        self.put(CoordinatorMessage::Refused(problem));
        self.closing = true;
        // The writer ends when the last sender of its queue is gone.
        self.outbox = mpsc::channel(1).0;
        let connection = self.connection.clone();
        ctx.run_later(FAREWELL, move |_, ctx| {
            connection.close(CloseCode::REFUSED, &text);
            ctx.stop();
        });
    }
}

impl Actor for SessionActor {
    type Context = Context<Self>;
}

impl Handler<Deliver> for SessionActor {
    type Result = ();

    fn handle(&mut self, deliver: Deliver, ctx: &mut Self::Context) {
        match deliver {
            Deliver::Message(message) => self.put(message),
            Deliver::Request {
                request,
                body,
                deadline,
            } => {
                self.request(request, body, deadline, ctx);
            }
            Deliver::Close(problem) => self.close(problem, ctx),
            Deliver::CutOff(why) => {
                self.connection.close(CloseCode::SHUTDOWN, &why);
                ctx.stop();
            }
        }
    }
}

impl Handler<Begin> for SessionActor {
    type Result = ();

    fn handle(&mut self, Begin(receiver): Begin, ctx: &mut Self::Context) {
        let reader = Reader {
            node: self.node.clone(),
            incarnation: self.incarnation,
            id: self.id,
            context: self.context.clone(),
            session: ctx.address(),
            outbox: self.outbox.clone(),
        };
        let reading = reader.run(receiver, self.connection.clone());
        reading
            .into_actor(self)
            .map(|(), _, ctx| ctx.stop())
            .spawn(ctx);
    }
}

impl Handler<Replied> for SessionActor {
    type Result = ();

    fn handle(&mut self, Replied(request): Replied, ctx: &mut Self::Context) {
        if let Some(handle) = self.deadlines.remove(&request) {
            ctx.cancel_future(handle);
        }
    }
}

async fn write(
    mut sender: MessageSender<CoordinatorMessage>,
    mut queue: mpsc::Receiver<CoordinatorMessage>,
    connection: Connection,
) {
    while let Some(message) = queue.recv().await {
        let refused = matches!(message, CoordinatorMessage::Refused(_));
        if let Err(error) = sender.send(&message).await {
            connection.close(CloseCode::PROTOCOL, &error.to_string());
            return;
        }
        if refused {
            // Closed now, the refusal could be lost on the way.
            let _ = sender.finish();
            let _ = tokio::time::timeout(FAREWELL, sender.acknowledged()).await;
            connection.close(CloseCode::REFUSED, "the session was refused");
            return;
        }
    }
}

/// Reads what the node says.
struct Reader {
    node: NodeId,
    incarnation: u32,
    id: SessionId,
    context: SessionContext,
    session: Addr<SessionActor>,
    outbox: mpsc::Sender<CoordinatorMessage>,
}

impl Reader {
    /// Until the connection has ended; then the cluster knows that and why.
    async fn run(self, mut receiver: MessageReceiver<NodeMessage>, connection: Connection) {
        let violation = tokio::select! {
            why = self.read(&mut receiver) => Some(why),
            _ = connection.closed() => None,
        };
        // A stream that ends with its connection is no violation.
        let end = tokio::time::timeout(Duration::ZERO, connection.closed()).await;
        let reason = match (end, violation) {
            (Ok(end), _) => end.to_string(),
            (Err(_), Some(why)) => {
                connection.close(CloseCode::PROTOCOL, &why);
                why
            }
            (Err(_), None) => connection.closed().await.to_string(),
        };
        tracing::info!(node = %self.node, session = self.id.0, reason, "a session has ended");
        self.context
            .cluster
            .close_session(self.node, self.id, reason)
            .await;
    }

    async fn read(&self, receiver: &mut MessageReceiver<NodeMessage>) -> String {
        loop {
            let message = match receiver.recv().await {
                Ok(Some(message)) => message,
                Ok(None) => return "the node ended its session".into(),
                Err(error) => return error.to_string(),
            };
            match message {
                NodeMessage::Hello(_) => return "the node said hello twice".into(),
                NodeMessage::RenewCertificate { csr } => self.renew(&csr).await,
                message => self.pass_on(message).await,
            }
        }
    }

    async fn pass_on(&self, message: NodeMessage) {
        if let NodeMessage::Reply { request, .. } = &message {
            // Fails only while the session ends.
            let _ = self.session.send(Replied(*request)).await;
        }
        let (node, session) = (self.node.clone(), self.id);
        self.context
            .cluster
            .tell(Input::Message {
                node,
                session,
                message,
            })
            .await;
    }

    async fn renew(&self, csr: &str) {
        match self
            .context
            .authority
            .sign(csr, &self.node, self.incarnation)
        {
            Ok(chain) => {
                tracing::info!(node = %self.node, "renewed a node's certificate");
                let _ = self
                    .outbox
                    .send(CoordinatorMessage::Certificate { chain })
                    .await;
            }
            Err(problem) => {
                tracing::warn!(node = %self.node, %problem, "cannot renew a certificate");
            }
        }
    }
}
