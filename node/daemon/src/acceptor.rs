//! Who may connect to this node: members of the cluster, for a migration.
//!
//! The certificate has been verified when a connection comes here, and it says
//! who the peer is. Whether that still is a member says the list that the
//! coordinator sends: a node that was removed keeps its certificate for a
//! while, and one that joined again under its name has a higher incarnation.
//! A peer that the list does not have yet gets a moment, since the news of its
//! joining may be on the way.

use std::time::Duration;

use actix::Recipient;
use godwit_shared::pki::PeerIdentity;
use godwit_shared::transport::{CloseCode, Connection, Endpoint, Peer};
use godwit_shared::wire::uplink::Member;
use tokio::sync::watch;

use crate::migration::IncomingConnection;

/// How long the news of a joining may be on the way.
const NEWS_TIME: Duration = Duration::from_secs(2);
/// How long the manager may take to take a connection.
const HAND_OVER: Duration = Duration::from_secs(10);

/// What the member list says of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// It is a member.
    Member,
    /// It is not, or not yet.
    Unknown(String),
    /// It was one, and is no more.
    Revoked(String),
}

/// Hands the connections of members to the migration manager, until the
/// endpoint is closed.
pub async fn accept_peers(
    endpoint: Endpoint,
    members: watch::Receiver<Vec<Member>>,
    migrations: Recipient<IncomingConnection>,
) {
    while let Some(connection) = endpoint.accept().await {
        let (members, migrations) = (members.clone(), migrations.clone());
        actix::spawn(async move {
            if let Err(why) = admit(&connection, members).await {
                let (peer, remote) = (connection.peer(), connection.remote_address());
                tracing::warn!(%peer, %remote, why, "a peer is not admitted");
                connection.close(CloseCode::REFUSED, &why);
                return;
            }
            let handed = migrations.send(IncomingConnection(connection.clone()));
            if !matches!(tokio::time::timeout(HAND_OVER, handed).await, Ok(Ok(()))) {
                connection.close(CloseCode::SHUTDOWN, "the node takes no migrations now");
            }
        });
    }
}

async fn admit(
    connection: &Connection,
    mut members: watch::Receiver<Vec<Member>>,
) -> Result<(), String> {
    let Peer::Known(peer) = connection.peer() else {
        return Err("only members of the cluster may connect".into());
    };
    let known =
        members.wait_for(|members| !matches!(standing(peer, members), Standing::Unknown(_)));
    // Times out for a peer that stays unknown; the list at the end counts.
    let _ = tokio::time::timeout(NEWS_TIME, known).await;
    let standing = standing(peer, &members.borrow());
    match standing {
        Standing::Member => Ok(()),
        Standing::Unknown(why) | Standing::Revoked(why) => Err(why),
    }
}

fn standing(peer: &PeerIdentity, members: &[Member]) -> Standing {
    let PeerIdentity::Node { node, incarnation } = peer else {
        return Standing::Revoked("a coordinator does not connect to nodes".into());
    };
    match members.iter().find(|member| member.node == *node) {
        None => Standing::Unknown(format!(
            "unknown: this node's coordinator knows no node `{node}`; it may have been removed"
        )),
        Some(member) if member.incarnation > *incarnation => Standing::Revoked(format!(
            "revoked: node `{node}` has joined anew since this certificate was made"
        )),
        Some(member) if member.incarnation < *incarnation => Standing::Unknown(format!(
            "unknown: node `{node}` is not known to have joined {incarnation} times"
        )),
        Some(_) => Standing::Member,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use actix::{Actor, Context, Handler};
    use godwit_shared::pki::NODE_VALIDITY;
    use godwit_shared::transport::{ConnectError, Disconnect, TransportOptions};
    use tokio::sync::mpsc;

    use super::*;
    use crate::testing::{TestCoordinator, soon};

    fn member(node: &str, incarnation: u32) -> Member {
        Member {
            node: node.parse().unwrap(),
            incarnation,
            address: "h:1".into(),
        }
    }

    fn peer(node: &str, incarnation: u32) -> PeerIdentity {
        PeerIdentity::Node {
            node: node.parse().unwrap(),
            incarnation,
        }
    }

    /// Stands in for the migration manager: keeps what it is handed, since a
    /// connection that is dropped ends, maybe before its other end has it.
    struct Manager {
        handed: mpsc::UnboundedSender<PeerIdentity>,
        kept: Vec<Connection>,
    }

    impl Actor for Manager {
        type Context = Context<Self>;
    }

    impl Handler<IncomingConnection> for Manager {
        type Result = ();

        fn handle(&mut self, incoming: IncomingConnection, _: &mut Self::Context) {
            let Peer::Known(peer) = incoming.0.peer() else {
                panic!("a stranger was handed over");
            };
            self.handed.send(peer.clone()).unwrap();
            self.kept.push(incoming.0);
        }
    }

    struct Door {
        cluster: TestCoordinator,
        endpoint: Endpoint,
        members: watch::Sender<Vec<Member>>,
        handed: mpsc::UnboundedReceiver<PeerIdentity>,
    }

    impl Door {
        fn open(members: Vec<Member>) -> Self {
            let cluster = TestCoordinator::start();
            let (identity, _) = cluster.node("n1", NODE_VALIDITY);
            let any = "127.0.0.1:0".parse().unwrap();
            let endpoint = Endpoint::bind(
                &cluster.runtime,
                any,
                &identity,
                TransportOptions::default(),
            )
            .unwrap();
            let members = watch::Sender::new(members);
            let (sender, handed) = mpsc::unbounded_channel();
            let manager = Manager {
                handed: sender,
                kept: Vec::new(),
            };
            let manager = manager.start().recipient();
            actix::spawn(accept_peers(endpoint.clone(), members.subscribe(), manager));
            Self {
                cluster,
                endpoint,
                members,
                handed,
            }
        }

        /// A peer `b` of the cluster knocks.
        async fn knock(&self) -> Result<Connection, ConnectError> {
            let (identity, _) = self.cluster.node("b", NODE_VALIDITY);
            let options = TransportOptions::default();
            let from = Endpoint::client(&self.cluster.runtime, &identity, options).unwrap();
            let to = self.endpoint.local_addr().unwrap();
            soon(from.connect(to, &peer("n1", 1))).await
        }
    }

    #[actix::test]
    async fn a_member_is_handed_over() {
        let mut door = Door::open(vec![member("b", 1)]);
        let _connection = door.knock().await.unwrap();
        assert_eq!(soon(door.handed.recv()).await, Some(peer("b", 1)));
    }

    #[actix::test]
    async fn a_newcomer_is_admitted_when_the_news_of_it_comes() {
        let mut door = Door::open(vec![member("a", 1)]);
        let _connection = door.knock().await.unwrap();
        door.members.send_replace(vec![member("b", 1)]);
        assert_eq!(soon(door.handed.recv()).await, Some(peer("b", 1)));
    }

    #[actix::test]
    async fn who_was_removed_or_replaced_is_told_so() {
        for (members, word) in [(vec![member("b", 2)], "revoked"), (vec![], "unknown")] {
            let mut door = Door::open(members);
            // The refusal may be there before the connection stands.
            let reason = match door.knock().await {
                Err(ConnectError::NotAdmitted { message, .. }) => message,
                Err(other) => panic!("{other}"),
                Ok(connection) => match soon(connection.closed()).await {
                    Disconnect::ClosedByPeer {
                        code: CloseCode::REFUSED,
                        reason,
                    } => reason,
                    end => panic!("{end}"),
                },
            };
            assert!(reason.starts_with(word), "{reason}");
            assert!(door.handed.try_recv().is_err());
        }
    }

    #[test]
    fn only_the_current_incarnation_of_a_member_is_admitted() {
        let members = [member("a", 2), member("b", 1)];
        assert_eq!(standing(&peer("a", 2), &members), Standing::Member);
        assert!(matches!(
            standing(&peer("a", 1), &members),
            Standing::Revoked(why) if why.starts_with("revoked")
        ));
        assert!(matches!(
            standing(&peer("a", 3), &members),
            Standing::Unknown(_)
        ));
        assert!(matches!(
            standing(&peer("c", 1), &members),
            Standing::Unknown(why) if why.contains("`c`")
        ));
        assert!(matches!(
            standing(&PeerIdentity::Coordinator, &members),
            Standing::Revoked(_)
        ));
    }
}
