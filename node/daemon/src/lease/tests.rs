//! Two keepers on real endpoints, with sessions whose every word the test chooses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use godwit_shared::model::codes;
use godwit_shared::pki::NODE_VALIDITY;
use godwit_shared::transport::{StreamKind, TransportOptions};
use godwit_shared::wire::lease::Circle;

use super::*;
use crate::guard::serve_for_tests;
use crate::testing::{TestCoordinator, soon};

/// Long enough that a busy machine does not end it.
const LENGTH: Millis = Millis(60_000);

struct TestNode {
    name: NodeId,
    keeper: Addr<LeaseKeeper>,
    guard: Guard,
    endpoint: Endpoint,
    members: watch::Sender<Vec<Member>>,
    dir: tempfile::TempDir,
}

impl TestNode {
    fn start(coordinator: &TestCoordinator, name: &str) -> Self {
        let (identity, me) = coordinator.node(name, NODE_VALIDITY);
        let any = "127.0.0.1:0".parse().unwrap();
        let options = TransportOptions::default();
        let endpoint = Endpoint::bind(&coordinator.runtime, any, &identity, options).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let guard = serve_for_tests(dir.path());
        let members = watch::Sender::new(Vec::new());
        let params = LeaseParams {
            node: me.node.clone(),
            guard: guard.clone(),
            endpoint: endpoint.clone(),
            members: members.subscribe(),
            file: dir.path().join("lease.json"),
        };
        let keeper = LeaseKeeper::new(params, None).start();
        Self {
            name: me.node,
            keeper,
            guard,
            endpoint,
            members,
            dir,
        }
    }

    fn member(&self) -> Member {
        Member {
            node: self.name.clone(),
            incarnation: 1,
            address: self.endpoint.local_addr().unwrap().to_string(),
        }
    }

    /// A session with nobody but the test at its other end.
    async fn session(&self) -> mpsc::Receiver<NodeMessage> {
        let (outbox, sent) = mpsc::channel(16);
        self.keeper.send(Session(Some(outbox))).await.unwrap();
        sent
    }

    async fn grant(&self, of: Option<NodeId>, number: u64, members: &[&Self]) {
        let members = members.iter().map(|node| node.name.clone()).collect();
        let grant = LeaseGrant {
            number,
            length: LENGTH,
            margin: Millis(1_000),
            circle: Circle {
                version: 1,
                members,
            },
        };
        self.keeper.send(Granted { of, grant }).await.unwrap();
    }
}

async fn renewal(sent: &mut mpsc::Receiver<NodeMessage>) -> (Option<NodeId>, u64) {
    match soon(sent.recv()).await.unwrap() {
        NodeMessage::RenewLease { of, request } => (of, request.number),
        other => panic!("{other:?}"),
    }
}

/// Serves the questions of its peers, as the migration manager does.
fn serve_peers(node: &TestNode) {
    let (endpoint, keeper) = (node.endpoint.clone(), node.keeper.clone());
    actix::spawn(async move {
        while let Some(connection) = endpoint.accept().await {
            let begins = |kind| kind == StreamKind::Lease;
            let stream = connection.accept_first(begins).await.unwrap();
            let (_, sender, receiver) = stream.unwrap();
            let godwit_shared::transport::Peer::Known(peer) = connection.peer() else {
                panic!("a stranger");
            };
            let node = peer.node().cloned().unwrap();
            let keeper = Some(keeper.clone().recipient());
            answer_peer(&connection, node, (sender, receiver), keeper).await;
        }
    });
}

#[actix::test]
async fn a_session_asks_at_once_and_its_grant_lets_protected_vms_run() {
    let coordinator = TestCoordinator::start();
    let node = TestNode::start(&coordinator, "n1");
    assert_eq!(node.guard.check().unwrap_err().code, codes::LEASE_LOST);
    let mut sent = node.session().await;
    let (of, number) = renewal(&mut sent).await;
    assert_eq!(of, None);
    node.grant(None, number, &[&node]).await;
    node.guard.check().unwrap();
    let kept = terms::load(&node.dir.path().join("lease.json")).unwrap();
    assert_eq!((kept.length, kept.circle.version), (LENGTH, 1));
}

#[actix::test]
async fn a_peer_with_a_session_carries_the_request_of_one_without() {
    let coordinator = TestCoordinator::start();
    let asker = TestNode::start(&coordinator, "n1");
    let carrier = TestNode::start(&coordinator, "n2");
    serve_peers(&carrier);
    asker.members.send_replace(vec![carrier.member()]);
    let mut own = asker.session().await;
    let (_, number) = renewal(&mut own).await;
    asker.grant(None, number, &[&asker, &carrier]).await;
    let before = asker.guard.begin().unwrap().unwrap();

    let mut carried = carrier.session().await;
    assert_eq!(renewal(&mut carried).await.0, None, "its own");
    asker.keeper.send(Session(None)).await.unwrap();
    let (of, number) = renewal(&mut carried).await;
    assert_eq!(of.as_ref(), Some(&asker.name));
    carrier.grant(of, number, &[&asker, &carrier]).await;
    soon(async {
        while asker.guard.begin().unwrap().unwrap() <= before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[actix::test]
async fn a_young_daemon_vouches_for_nobody() {
    let coordinator = TestCoordinator::start();
    let node = TestNode::start(&coordinator, "n1");
    let ask = LeaseAsk {
        request: LeaseRequest {
            number: 7,
            circle: 1,
        },
        length: LENGTH,
        margin: Millis(1_000),
    };
    let peer: NodeId = "n2".parse().unwrap();
    let asks = PeerAsks {
        node: peer.clone(),
        ask,
    };
    assert_eq!(node.keeper.send(asks).await.unwrap(), LeaseAnswer::Refused);
    let withhold = Withhold {
        node: peer,
        period: Millis(61_000),
    };
    let left = node.keeper.send(withhold).await.unwrap();
    assert!(left > Millis(30_000), "it may have vouched before: {left}");
}
