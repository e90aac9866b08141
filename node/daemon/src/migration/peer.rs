//! The control stream of a migration: dialling a peer, sending in order, and
//! turning what comes into inputs.

use std::time::Duration;

use godwit_shared::model::{NodeId, Problem, codes};
use godwit_shared::pki::PeerIdentity;
use godwit_shared::transport::{
    CloseCode, Connection, Disconnect, Endpoint, MessageReceiver, MessageSender, Peer,
    ReceiveError, StreamError, StreamKind,
};
use godwit_shared::wire::peer::{SourceMessage, TargetMessage};
use godwit_shared::wire::uplink::{Member, Verdict};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::manager::MigrationContext;
use crate::fault;

/// How long the last messages of a connection may take to be acknowledged.
const LINGER: Duration = Duration::from_secs(2);
/// How long a question about a grant may take.
const QUESTION: Duration = Duration::from_secs(3);

/// A connection to a peer, from a socket of its own.
pub(super) struct Dialled {
    pub(super) connection: Connection,
    _endpoint: Endpoint,
}

/// Connects to a member.
pub(super) async fn dial(context: &MigrationContext, member: &Member) -> Result<Dialled, Problem> {
    let failed = |why: String| {
        let (node, address) = (&member.node, &member.address);
        Problem::new(
            codes::NODE_UNREACHABLE,
            format!("node `{node}` at {address}: {why}"),
        )
        .value(address)
        .remedy("see whether its daemon runs and the path between the nodes is open")
    };
    let expected = PeerIdentity::Node {
        node: member.node.clone(),
        incarnation: member.incarnation,
    };
    let address = tokio::net::lookup_host(&member.address)
        .await
        .map_err(|e| failed(e.to_string()))?
        .next()
        .ok_or_else(|| failed("the name has no address".to_owned()))?;
    let identity = context.identity.borrow().clone();
    let endpoint = Endpoint::client(&context.runtime, &identity, context.options.clone())
        .map_err(|e| failed(e.to_string()))?;
    let connection = endpoint
        .connect(address, &expected)
        .await
        .map_err(|e| failed(e.to_string()))?;
    Ok(Dialled {
        connection,
        _endpoint: endpoint,
    })
}

/// The node at the other end, by its certificate.
pub(super) fn node_of(connection: &Connection) -> Option<NodeId> {
    match connection.peer() {
        Peer::Known(identity) => identity.node().cloned(),
        Peer::Joining => None,
    }
}

/// Why a connection ended, as a problem of the migration.
pub(super) fn lost(disconnect: &Disconnect) -> Problem {
    Problem::new(
        codes::CONNECTION_LOST,
        format!("the migration's connection was lost: {disconnect}"),
    )
    .remedy("see whether the other node's daemon runs and the path between the nodes is open")
}

/// Sends messages in order from a task of its own, so that nobody waits for the
/// path. `point` names the fault point before a message. When the outbox is dropped, what is in it is delivered, and the
/// connection closes.
pub(super) fn outbox<T>(
    mut sender: MessageSender<T>,
    connection: Connection,
    closer: Closer,
    point: fn(&T) -> &'static str,
) -> mpsc::UnboundedSender<T>
where
    T: Serialize + Send + Sync + 'static,
{
    let (outbox, mut waiting) = mpsc::unbounded_channel::<T>();
    tokio::spawn(async move {
        while let Some(message) = waiting.recv().await {
            fault::reach(point(&message)).await;
            if sender.send(&message).await.is_err() {
                return;
            }
        }
        let last_words = async {
            if sender.finish().is_ok() {
                let _ = sender.acknowledged().await;
            }
            if closer == Closer::Peer {
                connection.closed().await;
            }
        };
        let _ = tokio::time::timeout(LINGER, last_words).await;
        connection.close(CloseCode::DONE, "the migration is over");
    });
    outbox
}

/// Who closes the connection when all is said. A close overtakes what the other
/// side has not read yet, so it is up to the side that is told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closer {
    /// This side.
    Here,
    /// The peer; this side only when the peer does not.
    Peer,
}

/// Reads messages until the connection ends, and tells why it ended.
pub(super) async fn listen<T: DeserializeOwned>(
    mut receiver: MessageReceiver<T>,
    connection: Connection,
    mut take: impl FnMut(T),
) -> Problem {
    loop {
        match receiver.recv().await {
            Ok(Some(message)) => take(message),
            Ok(None) => return lost(&connection.closed().await),
            Err(ReceiveError::Stream(StreamError::Disconnected(disconnect))) => {
                return lost(&disconnect);
            }
            Err(error) => {
                connection.close(CloseCode::PROTOCOL, "unreadable message");
                return Problem::new(codes::PROTOCOL, error.to_string())
                    .remedy("bring both nodes to the same release");
            }
        }
    }
}

/// Asks a target what became of a grant; nothing when it cannot be reached.
pub(super) async fn ask(
    context: &MigrationContext,
    target: &Member,
    query: SourceMessage,
) -> Option<Verdict> {
    let question = async {
        let dialled = dial(context, target).await.ok()?;
        let (sender, receiver) = dialled.connection.open(StreamKind::Control).await.ok()?;
        sender
            .into_messages::<SourceMessage>()
            .send(&query)
            .await
            .ok()?;
        let answer = receiver
            .into_messages::<TargetMessage>()
            .recv()
            .await
            .ok()??;
        dialled.connection.close(CloseCode::DONE, "answered");
        match answer {
            TargetMessage::Verdict { migration, verdict } if migration == query.migration() => {
                Some(verdict)
            }
            _ => None,
        }
    };
    tokio::time::timeout(QUESTION, question)
        .await
        .ok()
        .flatten()
}
