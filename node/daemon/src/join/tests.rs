#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::os::unix::fs::PermissionsExt as _;

use godwit_shared::pki::NODE_VALIDITY;
use godwit_shared::transport::Peer;

use super::*;
use crate::testing::{TestCoordinator, soon};

struct Host {
    _dir: tempfile::TempDir,
    paths: NodePaths,
    runtime: TransportRuntime,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = NodePaths {
            state_dir: dir.path().join("state"),
            run_dir: dir.path().join("run"),
        };
        let runtime = TransportRuntime::start(1).unwrap();
        Self {
            _dir: dir,
            paths,
            runtime,
        }
    }

    async fn join(&self, token: &str, force: bool) -> Result<Joined, Problem> {
        let join = Join {
            token,
            name: "n1".parse().unwrap(),
            address: None,
            paths: &self.paths,
            force,
        };
        soon(join.run(&self.runtime)).await.map_err(Problem::from)
    }
}

fn token(coordinator: &TestCoordinator) -> JoinToken {
    coordinator.token(vec![coordinator.address().to_string()])
}

/// Answers the next host that joins; gives back what it asked.
async fn answer(
    coordinator: &TestCoordinator,
    make: impl FnOnce(&JoinRequest) -> JoinAnswer,
) -> JoinRequest {
    let connection = soon(coordinator.endpoint.accept()).await.unwrap();
    assert_eq!(*connection.peer(), Peer::Joining);
    let (_, sender, receiver) = soon(connection.accept()).await.unwrap();
    let mut receiver = receiver.into_messages::<JoinRequest>();
    let request = soon(receiver.recv()).await.unwrap().unwrap();
    let mut sender = sender.into_messages::<JoinAnswer>();
    sender.send(&make(&request)).await.unwrap();
    sender.finish().unwrap();
    soon(sender.acknowledged()).await.unwrap();
    let _ = soon(connection.closed()).await;
    request
}

fn admit(coordinator: &TestCoordinator, request: &JoinRequest, incarnation: u32) -> JoinAnswer {
    let me = NodeIdentity {
        node: request.node.clone(),
        incarnation,
    };
    JoinAnswer::Joined {
        incarnation,
        chain: coordinator.sign(&request.csr, &me),
        cluster: "test".into(),
    }
}

#[tokio::test]
async fn a_host_becomes_a_node() {
    let (coordinator, host) = (TestCoordinator::start(), Host::new());
    let token = token(&coordinator);
    let text = token.to_string();
    let (joined, request) = tokio::join!(
        host.join(&text, false),
        answer(&coordinator, |request| admit(&coordinator, request, 3)),
    );
    let joined = joined.unwrap();
    assert_eq!(joined.me.to_string(), "node n1 (incarnation 3)");
    assert_eq!(joined.ca, coordinator.ca.fingerprint());
    assert_eq!(request.token, "t1");
    assert_eq!(request.secret, token.secret.reveal());
    assert_eq!(request.address, "127.0.0.1:7441");
    let (_, me) = identity::load(&host.paths.identity()).unwrap();
    assert_eq!(me, joined.me);
    let mode = std::fs::metadata(host.paths.identity())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let cluster = JoinedCluster::load(&host.paths.cluster()).unwrap();
    assert_eq!(cluster.coordinator, token.coordinator);
    assert_eq!(cluster.address, None);
}

#[tokio::test]
async fn a_node_joins_again_only_by_force() {
    let (coordinator, host) = (TestCoordinator::start(), Host::new());
    let (old, _) = coordinator.node("n1", NODE_VALIDITY);
    host::make_dir(&host.paths.state_dir).unwrap();
    old.save(&host.paths.identity()).unwrap();
    let text = token(&coordinator).to_string();
    let problem = host.join(&text, false).await.unwrap_err();
    assert_eq!(problem.code, codes::STATE_CONFLICT);
    assert!(
        problem.message.contains("node n1 (incarnation 1)"),
        "{problem}"
    );
    assert!(problem.remedy.unwrap().contains("--force"));
    let (joined, _) = tokio::join!(
        host.join(&text, true),
        answer(&coordinator, |request| admit(&coordinator, request, 2)),
    );
    assert_eq!(joined.unwrap().me.incarnation, 2);
}

#[tokio::test]
async fn a_coordinators_refusal_is_told_as_it_is() {
    let (coordinator, host) = (TestCoordinator::start(), Host::new());
    let text = token(&coordinator).to_string();
    for code in [
        codes::TOKEN_UNKNOWN,
        codes::TOKEN_USED,
        codes::TOKEN_EXPIRED,
        codes::NODE_NAME_TAKEN,
    ] {
        let refuse = |_: &JoinRequest| JoinAnswer::Refused(Problem::new(code, "no"));
        let (refused, _) = tokio::join!(host.join(&text, false), answer(&coordinator, refuse));
        let problem = refused.unwrap_err();
        assert_eq!(problem.code, code);
        assert!(problem.remedy.is_some(), "{code}");
        assert!(!host.paths.identity().exists());
    }
}

#[tokio::test]
async fn a_malformed_token_is_refused_before_anything_is_touched() {
    let host = Host::new();
    let good = token(&TestCoordinator::start()).to_string();
    for text in [
        "",
        "gwt1_",
        "hello",
        "gwt2_abc",
        &good[..good.len() - 3],
        &good.replace("gwt1_", "gwt1_!"),
    ] {
        let problem = host.join(text, false).await.unwrap_err();
        assert_eq!(problem.code, codes::TOKEN_MALFORMED, "{text}");
        assert!(problem.remedy.is_some());
    }
    assert!(!host.paths.state_dir.exists());
    let coordinator = TestCoordinator::start();
    for addresses in [vec![], vec!["nonsense".to_owned()]] {
        let text = coordinator.token(addresses).to_string();
        assert_eq!(
            host.join(&text, false).await.unwrap_err().code,
            codes::TOKEN_MALFORMED
        );
    }
}

#[tokio::test]
async fn a_coordinator_of_another_cluster_learns_nothing() {
    let (coordinator, foreign, host) = (
        TestCoordinator::start(),
        TestCoordinator::start(),
        Host::new(),
    );
    let text = coordinator
        .token(vec![foreign.address().to_string()])
        .to_string();
    let problem = host.join(&text, false).await.unwrap_err();
    assert_eq!(problem.code, codes::CA_MISMATCH, "{problem}");
    assert!(problem.remedy.is_some());
}

#[tokio::test]
async fn a_coordinator_that_is_not_there_is_unreachable_and_the_next_one_is_tried() {
    let (coordinator, host) = (TestCoordinator::start(), Host::new());
    let dead = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = dead.local_addr().unwrap().to_string();
    drop(dead);
    let text = coordinator.token(vec![nobody.clone()]).to_string();
    let problem = host.join(&text, false).await.unwrap_err();
    assert_eq!(problem.code, codes::COORDINATOR_UNREACHABLE, "{problem}");
    let both = vec![nobody, coordinator.address().to_string()];
    let text = coordinator.token(both).to_string();
    let (joined, _) = tokio::join!(
        host.join(&text, false),
        answer(&coordinator, |request| admit(&coordinator, request, 1)),
    );
    joined.unwrap();
}

#[tokio::test]
async fn a_certificate_for_somebody_else_is_not_kept() {
    let (coordinator, host) = (TestCoordinator::start(), Host::new());
    let text = token(&coordinator).to_string();
    let wrong_name = |request: &JoinRequest| {
        let other = JoinRequest {
            node: "n2".parse().unwrap(),
            ..request.clone()
        };
        admit(&coordinator, &other, 1)
    };
    let no_chain = |_: &JoinRequest| JoinAnswer::Joined {
        incarnation: 1,
        chain: "nothing".into(),
        cluster: "test".into(),
    };
    let (refused, _) = tokio::join!(host.join(&text, false), answer(&coordinator, wrong_name));
    assert_eq!(refused.unwrap_err().code, codes::PROTOCOL);
    let (refused, _) = tokio::join!(host.join(&text, false), answer(&coordinator, no_chain));
    assert_eq!(refused.unwrap_err().code, codes::PROTOCOL);
    assert!(!host.paths.identity().exists());
}

#[tokio::test]
async fn a_running_node_is_not_joined_over() {
    let (coordinator, host) = (TestCoordinator::start(), Host::new());
    let _running = StateLock::acquire(&host.paths.state_dir).unwrap();
    let problem = host
        .join(&token(&coordinator).to_string(), true)
        .await
        .unwrap_err();
    assert_eq!(problem.code, codes::STATE_CONFLICT);
}
