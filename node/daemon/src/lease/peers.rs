//! Asking peers for a lease, and answering them: one question for each connection,
//! on a stream of its own kind.

use std::time::Duration;

use actix::Recipient;
use godwit_shared::model::NodeId;
use godwit_shared::pki::PeerIdentity;
use godwit_shared::transport::{CloseCode, Connection, Endpoint, Receiver, Sender, StreamKind};
use godwit_shared::wire::lease::{LeaseAnswer, LeaseAsk};
use godwit_shared::wire::uplink::Member;

use super::PeerAsks;
use crate::identity::chain_of;

/// How long connecting and asking may take.
const ASK: Duration = Duration::from_secs(4);
/// How long this node may take over a peer's question.
const ANSWER: Duration = Duration::from_secs(3);

/// Asks a member. Why not, in words.
pub(super) async fn ask(
    endpoint: &Endpoint,
    member: &Member,
    ask: &LeaseAsk,
) -> Result<LeaseAnswer, String> {
    let asked = tokio::time::timeout(ASK, connect_and_ask(endpoint, member, ask)).await;
    asked.unwrap_or_else(|_| Err("no answer in time".into()))
}

async fn connect_and_ask(
    endpoint: &Endpoint,
    member: &Member,
    ask: &LeaseAsk,
) -> Result<LeaseAnswer, String> {
    let expected = PeerIdentity::Node {
        node: member.node.clone(),
        incarnation: member.incarnation,
    };
    let address = tokio::net::lookup_host(&member.address)
        .await
        .map_err(|error| error.to_string())?
        .next()
        .ok_or("its name has no address")?;
    let connection = endpoint
        .connect(address, &expected)
        .await
        .map_err(|error| chain_of(&error))?;
    let answer = exchange(&connection, ask).await;
    connection.close(CloseCode::DONE, "the question is answered");
    answer
}

async fn exchange(connection: &Connection, ask: &LeaseAsk) -> Result<LeaseAnswer, String> {
    let (sender, receiver) = connection
        .open(StreamKind::Lease)
        .await
        .map_err(|error| chain_of(&error))?;
    let mut sender = sender.into_messages::<LeaseAsk>();
    sender.send(ask).await.map_err(|error| chain_of(&error))?;
    let answer = receiver.into_messages::<LeaseAnswer>().recv().await;
    answer
        .map_err(|error| chain_of(&error))?
        .ok_or_else(|| "it ended without an answer".into())
}

/// Answers the one question of a peer's stream.
pub async fn answer_peer(
    connection: &Connection,
    node: NodeId,
    (sender, receiver): (Sender, Receiver),
    keeper: Option<Recipient<PeerAsks>>,
) {
    let mut questions = receiver.into_messages::<LeaseAsk>();
    let Ok(Ok(Some(ask))) = tokio::time::timeout(ANSWER, questions.recv()).await else {
        return connection.close(CloseCode::PROTOCOL, "no question came");
    };
    let answer = match keeper {
        Some(keeper) => tokio::time::timeout(ANSWER, keeper.send(PeerAsks { node, ask })).await,
        None => Ok(Ok(LeaseAnswer::Refused)),
    };
    let answer = answer.ok().and_then(Result::ok);
    let mut sender = sender.into_messages::<LeaseAnswer>();
    if sender
        .send(&answer.unwrap_or(LeaseAnswer::Refused))
        .await
        .is_ok()
    {
        // The asker closes when it has read it.
        let _ = tokio::time::timeout(ANSWER, connection.closed()).await;
    }
    connection.close(CloseCode::DONE, "the question is answered");
}
