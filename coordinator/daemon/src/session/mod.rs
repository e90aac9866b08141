//! The side of the coordinator that nodes connect to.
//!
//! [`serve`] accepts connections. A host without a certificate may only
//! [`join`]. A member opens its session: a control stream that begins with its
//! hello. From then on a [`SessionActor`] owns it; a task of its own reads,
//! another one writes, so that a node that neither reads nor answers slows its
//! own session and nothing else.

mod actor;
mod console;
mod elsewhere;
mod join;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use godwit_coordinator_logic::input::SessionId;
use godwit_shared::model::{NodeId, Problem, codes};
use godwit_shared::pki::PeerIdentity;
use godwit_shared::transport::{
    CloseCode, Connection, Endpoint, MessageReceiver, MessageSender, Peer, StreamKind,
};
use godwit_shared::wire::uplink::{CoordinatorMessage, NodeHello, NodeMessage};
use tokio::sync::{Semaphore, watch};

use crate::authority::Authority;
use crate::cluster::{ClusterHandle, SessionEntry};
use actor::{Begin, SessionActor};

pub use actor::Deliver;
pub use console::{Console, open_console};

/// How long a node may take from its connection to the end of its hello.
const HELLO: Duration = Duration::from_secs(10);
/// Hosts that may be joining at once.
const JOINING: usize = 32;

/// What every connection needs.
#[derive(Debug, Clone)]
pub struct SessionContext {
    /// The cluster.
    pub cluster: ClusterHandle,
    /// Signs certificates.
    pub authority: Authority,
    /// The cluster's name.
    pub name: String,
}

/// What this coordinator is to nodes.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one for each coordinator")]
pub enum Role {
    /// The one that they belong to.
    Leads(SessionContext),
    /// One that only tells where the leader is.
    Follows {
        /// `host:port`, if there is one.
        leader: Option<String>,
    },
}

impl Role {
    /// A role for good, in the form of one that may change.
    pub fn always(self) -> watch::Receiver<Self> {
        watch::channel(self).1
    }
}

/// Serves the endpoint until it is closed. Call it on an arbiter.
pub async fn serve(endpoint: Endpoint, role: watch::Receiver<Role>) {
    let numbers = Arc::new(AtomicU64::new(1));
    let joining = Arc::new(Semaphore::new(JOINING));
    while let Some(connection) = endpoint.accept().await {
        let role = role.borrow().clone();
        let context = match role {
            Role::Leads(context) => context,
            Role::Follows { leader } => {
                actix::spawn(elsewhere::answer(connection, leader));
                continue;
            }
        };
        match connection.peer().clone() {
            Peer::Joining => {
                let Ok(place) = Arc::clone(&joining).try_acquire_owned() else {
                    connection.close(CloseCode::REFUSED, "too many hosts join at once");
                    continue;
                };
                actix::spawn(async move {
                    join::serve(connection, &context).await;
                    drop(place);
                });
            }
            Peer::Known(PeerIdentity::Node { node, incarnation }) => {
                let id = SessionId(numbers.fetch_add(1, Ordering::Relaxed));
                actix::spawn(open(connection, node, incarnation, id, context));
            }
            Peer::Known(PeerIdentity::Coordinator) => {
                connection.close(CloseCode::UNAUTHENTICATED, "a coordinator is no node");
            }
        }
    }
}

/// Takes a node's hello and gives the session to an actor.
async fn open(
    connection: Connection,
    node: NodeId,
    incarnation: u32,
    id: SessionId,
    context: SessionContext,
) {
    let (sender, receiver, hello) = match tokio::time::timeout(HELLO, hello(&connection)).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(why)) => {
            tracing::warn!(%node, why, "a node did not say hello");
            connection.close(CloseCode::PROTOCOL, &why);
            return;
        }
        Err(_) => {
            tracing::warn!(%node, "a node did not say hello in time");
            connection.close(CloseCode::PROTOCOL, "no hello came in time");
            return;
        }
    };
    tracing::info!(%node, session = id.0, remote = %connection.remote_address(), "a node is here");
    let cluster = context.cluster.clone();
    let name = node.clone();
    let session = SessionActor::new(node.clone(), incarnation, id, connection.clone(), context);
    let actor = session.start(sender);
    let outlet = actor.clone().recipient();
    let entry = SessionEntry {
        node,
        id,
        outlet,
        connection,
    };
    // Fails only when the session has ended by itself.
    let _ = match cluster.open_session(entry, incarnation, hello).await {
        Ok(()) => actor.send(Begin(receiver)).await,
        Err(problem) => {
            tracing::warn!(node = %name, %problem, "a session is refused");
            actor.send(farewell(problem)).await
        }
    };
}

/// A node that is refused comes back late and by its operator's hand. One that
/// came at a bad moment is only cut off, and tries again at once.
fn farewell(problem: Problem) -> Deliver {
    match &*problem.code {
        codes::OVERLOADED | codes::STORE | codes::NO_LEADER => Deliver::CutOff(problem.message),
        _ => Deliver::Close(problem),
    }
}

type Opened = (
    MessageSender<CoordinatorMessage>,
    MessageReceiver<NodeMessage>,
    NodeHello,
);

async fn hello(connection: &Connection) -> Result<Opened, String> {
    let (kind, sender, receiver) = connection.accept().await.map_err(|e| e.to_string())?;
    if kind != StreamKind::Control {
        return Err(format!(
            "a session begins with a control stream, not {kind:?}"
        ));
    }
    let mut receiver = receiver.into_messages::<NodeMessage>();
    match receiver.recv().await {
        Ok(Some(NodeMessage::Hello(hello))) => Ok((sender.into_messages(), receiver, hello)),
        Ok(Some(_)) => Err("a session begins with a hello".into()),
        Ok(None) => Err("the stream ended before the hello".into()),
        Err(error) => Err(error.to_string()),
    }
}
