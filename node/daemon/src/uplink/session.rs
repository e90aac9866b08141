//! One session with the coordinator, from the hello to the end of its connection.
//!
//! ```text
//!   node                                   coordinator
//!    | Hello: facts, every domain, migrations --> |
//!    | <------------- Welcome: the members' mark  |   or Refused, and the end
//!    | AskMembers ------------------------------> |   where that is not the node's own
//!    | <--------------- Members, MembersChanged   |   now, and whenever they change
//!    | Domain, DomainGone, Migration -----------> |   as the bus has news
//!    | <---------------------------------Request  |   any number at once
//!    | Reply -----------------------------------> |   one for each, in any order
//! ```
//!
//! The news begin exactly where the snapshot in the hello ends, and the board
//! keeps the latest word on everything, so a session may end at any point and
//! the next one begins with the whole truth.
//!
//! Three loops share the session: reading messages, writing them, and accepting
//! streams. Reading never waits for writing, and no request waits for another.

mod reader;
mod streams;
mod writer;

use std::path::PathBuf;
use std::time::Duration;

use actix::Addr;
use godwit_shared::model::{NodeFacts, NodeId, Problem, codes};
use godwit_shared::transport::{
    CloseCode, Connection, Disconnect, MessageReceiver, MessageSender, ReceiveError, SendError,
    StreamError, StreamKind,
};
use godwit_shared::wire::document::Document;
use godwit_shared::wire::roster::RosterMark;
use godwit_shared::wire::uplink::{CoordinatorMessage, Member, NodeHello, NodeMessage};
use tokio::sync::mpsc;

use super::connect::Failure;
use super::services::Services;
use super::{SessionUp, Uplink, fit};
use crate::bus::{BusSubscriber, NodeBus};
use crate::identity::{IdentityStore, chain_of};
use crate::lease::LeaseKeeper;
use crate::members;
use reader::Reader;
use streams::accept_streams;
use writer::{Settling, Writer};

/// How long the coordinator may take to answer a hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
/// Replies and questions that wait for the writer.
const OUTBOX: usize = 256;
/// How often the certificate's age is looked at.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);

/// What every session of a node needs.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) facts: Document,
    pub(super) bus: NodeBus,
    pub(super) identity: IdentityStore,
    pub(super) members_file: PathBuf,
    pub(super) services: Services,
    pub(super) uplink: Addr<Uplink>,
    pub(super) lease: Option<Addr<LeaseKeeper>>,
}

impl Context {
    pub(super) fn facts(facts: &NodeFacts) -> Result<Document, Problem> {
        Document::of(facts)
    }

    fn learn_members(&self, list: &[Member]) {
        if self.bus.set_members(list.to_vec())
            && let Err(problem) = members::save(&self.members_file, list)
        {
            tracing::warn!(%problem, "the member list is not kept");
        }
    }

    fn change_members(&self, set: Vec<Member>, gone: &[NodeId]) {
        let mut list = self.bus.members().borrow().clone();
        members::change(&mut list, set, gone);
        self.learn_members(&list);
    }
}

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// The coordinator does not want this node.
    Refused(Problem),
    /// The coordinator does not lead.
    Elsewhere {
        /// Which one does, if any.
        leader: Option<String>,
    },
    /// The connection ended, or the coordinator spoke nonsense.
    Lost {
        /// In words.
        reason: String,
        /// Whether the session had been welcomed.
        welcomed: bool,
    },
}

impl End {
    /// What the end of a connection means.
    fn of(disconnect: &Disconnect, welcomed: bool) -> Self {
        let code = match disconnect {
            Disconnect::ClosedByPeer { code, .. } => Some(*code),
            _ => None,
        };
        let remedy = match code {
            Some(CloseCode::REFUSED | CloseCode::UNAUTHENTICATED) => {
                "if the node should belong to the cluster, join it again: `godwit node token`, then `godwit-node join --force TOKEN`"
            }
            Some(CloseCode::SUPERSEDED) => {
                "another daemon has connected with this node's identity: end one of them, and give every host an identity of its own"
            }
            _ => {
                return Self::Lost {
                    reason: disconnect.to_string(),
                    welcomed,
                };
            }
        };
        let problem = Problem::new(codes::NODE_REVOKED, disconnect.to_string()).remedy(remedy);
        Self::Refused(problem)
    }
}

/// Runs a session on a new connection.
pub(super) async fn run(
    context: &Context,
    connection: &Connection,
    welcomed: impl FnOnce(&str),
) -> End {
    let mut has_begun = false;
    let session = async {
        let (mut session, cluster) = Session::begin(context, connection).await?;
        has_begun = true;
        welcomed(&cluster);
        session.go_on().await
    };
    let error = match session.await {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let end = match error {
        SessionError::Refused(problem) => End::Refused(problem),
        SessionError::Elsewhere(leader) => End::Elsewhere { leader },
        SessionError::Stream(StreamError::Disconnected(reason)) => End::of(&reason, has_begun),
        other => {
            connection.close(CloseCode::PROTOCOL, &other.to_string());
            End::Lost {
                reason: chain_of(&other),
                welcomed: has_begun,
            }
        }
    };
    tracing::debug!(?end, "the session has ended");
    end
}

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the coordinator refuses this node")]
    Refused(#[source] Problem),
    #[error("the coordinator does not lead")]
    Elsewhere(Option<String>),
    #[error("the coordinator did not answer the hello within {} s", WELCOME_TIMEOUT.as_secs())]
    NoWelcome,
    #[error("the coordinator broke the protocol: {0}")]
    Protocol(String),
    #[error("the hello cannot be sent")]
    Hello(#[source] SendError),
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl From<ReceiveError> for SessionError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Stream(error) => Self::Stream(error),
            other => Self::Protocol(chain_of(&other)),
        }
    }
}

enum Never {}

struct Session<'a> {
    context: &'a Context,
    connection: &'a Connection,
    sender: MessageSender<NodeMessage>,
    receiver: MessageReceiver<CoordinatorMessage>,
    news: BusSubscriber,
    outbox: mpsc::Sender<NodeMessage>,
    queue: mpsc::Receiver<NodeMessage>,
    settling: Settling,
}

impl<'a> Session<'a> {
    /// Says hello and waits for the welcome.
    async fn begin(
        context: &'a Context,
        connection: &'a Connection,
    ) -> Result<(Self, String), SessionError> {
        let (sender, receiver) = connection.open(StreamKind::Control).await?;
        let (outbox, queue) = mpsc::channel(OUTBOX);
        let (snapshot, news) = context.bus.snapshot_and_subscribe();
        let mut settling = Settling::default();
        settling.told(&snapshot.migrations);
        let mut session = Self {
            context,
            connection,
            sender: sender.into_messages(),
            receiver: receiver.into_messages(),
            news,
            outbox,
            queue,
            settling,
        };
        let hello = fit::hello(NodeHello {
            facts: context.facts.clone(),
            domains: snapshot.domains,
            migrations: snapshot.migrations,
        });
        match session.sender.send(&NodeMessage::Hello(hello)).await {
            Ok(()) => {}
            Err(SendError::Stream(error)) => return Err(error.into()),
            Err(error) => return Err(SessionError::Hello(error)),
        }
        let cluster = tokio::time::timeout(WELCOME_TIMEOUT, session.welcome())
            .await
            .map_err(|_| SessionError::NoWelcome)??;
        Ok((session, cluster))
    }

    async fn welcome(&mut self) -> Result<String, SessionError> {
        match self.receiver.recv().await? {
            Some(CoordinatorMessage::Welcome { cluster, members }) => {
                self.ask_for_members(members).await?;
                Ok(cluster)
            }
            Some(CoordinatorMessage::Refused(problem)) => Err(SessionError::Refused(problem)),
            Some(CoordinatorMessage::Elsewhere { leader }) => Err(SessionError::Elsewhere(leader)),
            Some(_) => Err(SessionError::Protocol(
                "its first message is no welcome".into(),
            )),
            None => Err(self.stream_ended().await),
        }
    }

    /// Asks what is different, where the coordinator's members are not those that
    /// this node knows.
    async fn ask_for_members(&mut self, members: RosterMark) -> Result<(), SessionError> {
        let known = RosterMark::of(&self.context.bus.members().borrow());
        if known == members {
            return Ok(());
        }
        match self.sender.send(&NodeMessage::AskMembers { known }).await {
            Ok(()) => Ok(()),
            Err(SendError::Stream(error)) => Err(error.into()),
            Err(error) => Err(SessionError::Hello(error)),
        }
    }

    /// Serves until the end.
    async fn go_on(&mut self) -> Result<Never, SessionError> {
        let up = SessionUp(self.outbox.clone());
        // The actor is gone only when the daemon stops.
        let _ = self.context.uplink.send(up).await;
        let reader = Reader::new(self.context, &self.outbox);
        let writer = Writer {
            bus: &self.context.bus,
            sender: &mut self.sender,
            queue: &mut self.queue,
            news: &mut self.news,
            settling: &mut self.settling,
        };
        let ended = tokio::select! {
            error = reader.run(&mut self.receiver) => error,
            error = writer.run() => error,
            error = accept_streams(self.connection, &self.context.services) => error,
            () = renew(&self.context.identity, &self.outbox) => SessionError::Protocol(String::new()),
        };
        match ended {
            // The coordinator's last words say more than the connection's end,
            // and that more than "the stream has ended".
            SessionError::Stream(_) => Err(match self.last_words().await {
                Some(refused) => refused,
                None => self.stream_ended().await,
            }),
            error => Err(error),
        }
    }

    /// A refusal that had arrived when the connection ended.
    async fn last_words(&mut self) -> Option<SessionError> {
        loop {
            // What has arrived is read at once; more will not come.
            let arrived = tokio::time::timeout(Duration::ZERO, self.receiver.recv()).await;
            match arrived {
                Ok(Ok(Some(CoordinatorMessage::Refused(problem)))) => {
                    return Some(SessionError::Refused(problem));
                }
                Ok(Ok(Some(_))) => {}
                _ => return None,
            }
        }
    }

    /// The stream ended; a connection that ended with it says why.
    async fn stream_ended(&self) -> SessionError {
        let wait = Duration::from_secs(1);
        match tokio::time::timeout(wait, self.connection.closed()).await {
            Ok(reason) => StreamError::Disconnected(reason).into(),
            Err(_) => SessionError::Protocol("it ended the session's stream".into()),
        }
    }
}

/// Asks for a new certificate when it is time. Never ends.
async fn renew(identity: &IdentityStore, outbox: &mpsc::Sender<NodeMessage>) {
    let mut due = tokio::time::interval(RENEWAL_CHECK);
    loop {
        due.tick().await;
        match identity.request_if_due(jiff::Timestamp::now()) {
            Ok(Some(csr)) => {
                let _ = outbox.send(NodeMessage::RenewCertificate { csr }).await;
            }
            Ok(None) => {}
            Err(error) => tracing::error!(error = chain_of(&error), "no certificate request"),
        }
    }
}

/// A failure to connect, as the end of a session that never was.
impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(problem) => Self::Refused(problem),
            Failure::Unreachable(problem) => Self::Lost {
                reason: problem.to_string(),
                welcomed: false,
            },
        }
    }
}
