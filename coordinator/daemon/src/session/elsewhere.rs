//! What a coordinator that does not lead tells nodes: where the leader is.

use godwit_shared::model::{Problem, codes};
use godwit_shared::pki::PeerIdentity;
use godwit_shared::transport::{CloseCode, Connection, Peer, StreamKind};
use godwit_shared::wire::uplink::{CoordinatorMessage, JoinAnswer, JoinRequest};

use super::{HELLO, hello};
use crate::follower::nobody;

/// Answers the connection's first words, and ends it.
pub(super) async fn answer(connection: Connection, leader: Option<String>) {
    let telling = async {
        match connection.peer().clone() {
            Peer::Joining => tell_host(&connection, leader).await,
            Peer::Known(PeerIdentity::Node { .. }) => tell_node(&connection, leader).await,
            Peer::Known(PeerIdentity::Coordinator) => Err("a coordinator is no node".into()),
        }
    };
    if let Ok(Err(why)) = tokio::time::timeout(HELLO, telling).await {
        tracing::debug!(remote = %connection.remote_address(), why, "nobody was told of the leader");
    }
    connection.close(CloseCode::SHUTDOWN, "this coordinator does not lead");
}

async fn tell_node(connection: &Connection, leader: Option<String>) -> Result<(), String> {
    let (mut sender, _receiver, _hello) = hello(connection).await?;
    let told = CoordinatorMessage::Elsewhere { leader };
    sender.send(&told).await.map_err(|e| e.to_string())?;
    sender.finish().map_err(|e| e.to_string())?;
    sender.acknowledged().await.map_err(|e| e.to_string())
}

/// The token is not spent: the join can be done at the leader.
async fn tell_host(connection: &Connection, leader: Option<String>) -> Result<(), String> {
    let (kind, sender, receiver) = connection.accept().await.map_err(|e| e.to_string())?;
    if kind != StreamKind::Control {
        return Err(format!("a join begins with a control stream, not {kind:?}"));
    }
    let mut receiver = receiver.into_messages::<JoinRequest>();
    receiver.recv().await.map_err(|e| e.to_string())?;
    let refused = JoinAnswer::Refused(leader.map_or_else(nobody, not_here));
    super::join::reply(sender.into_messages(), &refused).await
}

fn not_here(leader: String) -> Problem {
    Problem::new(
        codes::NOT_LEADER,
        format!("this coordinator does not lead; {leader} does"),
    )
    .value(leader)
    .remedy("join again with a token of `godwit node token`: it names the leader first")
}
