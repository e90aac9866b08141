#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use godwit_shared::model::{MigrationId, codes};
use godwit_shared::pki::PeerIdentity;
use godwit_shared::transport::CloseCode;
use godwit_shared::wire::frame::frame;
use godwit_shared::wire::roster::RosterMark;
use godwit_shared::wire::uplink::{Member, VerdictQuery};

use super::*;
use crate::testing::welcome;

#[actix::test]
async fn a_hello_tells_everything_and_news_follow() {
    let coordinator = TestCoordinator::start();
    let mut node = TestNode::start(&coordinator);
    node.bus.publish_domain(domain(1, DomainState::Running));
    let mut session = coordinator.session().await;
    let facts: NodeFacts = session.hello.facts.read("facts").unwrap();
    assert_eq!(facts.hostname, "h1");
    assert_eq!(session.hello.domains, [domain(1, DomainState::Running)]);
    session.say(welcome(&[])).await;
    node.state(|state| matches!(state, UplinkState::Up { cluster } if cluster == "test"))
        .await;
    node.bus.publish_domain(domain(2, DomainState::Paused));
    assert_eq!(
        session.hear().await,
        NodeMessage::Domain(domain(2, DomainState::Paused))
    );
    node.bus.domain_gone(VmId::from_u128(1));
    assert_eq!(
        session.hear().await,
        NodeMessage::DomainGone(VmId::from_u128(1))
    );
}

#[actix::test]
async fn a_lost_session_loses_nothing() {
    let mut coordinator = TestCoordinator::start();
    let mut node = TestNode::start(&coordinator);
    let session = coordinator.welcomed().await;
    node.state(|state| matches!(state, UplinkState::Up { .. }))
        .await;
    session.connection.close(CloseCode::SHUTDOWN, "restarting");
    node.state(|state| matches!(state, UplinkState::Down { reason: Some(_) }))
        .await;
    node.bus.publish_domain(domain(1, DomainState::Crashed));
    drop(session);
    coordinator.restart().await;
    let mut session = coordinator.session().await;
    // The keeper may have connected once more before the news.
    while session.hello.domains.is_empty() {
        session = coordinator.session().await;
    }
    assert_eq!(session.hello.domains, [domain(1, DomainState::Crashed)]);
    session.say(welcome(&[])).await;
    node.state(|state| matches!(state, UplinkState::Up { .. }))
        .await;
}

#[actix::test]
async fn a_refused_node_says_why_and_tries_again() {
    let coordinator = TestCoordinator::start();
    let mut node = TestNode::start(&coordinator);
    let mut session = coordinator.session().await;
    let removed = Problem::new(codes::NODE_REVOKED, "node `n1` was removed").remedy("join again");
    session
        .say(CoordinatorMessage::Refused(removed.clone()))
        .await;
    let state = node
        .state(|state| matches!(state, UplinkState::Refused(_)))
        .await;
    assert_eq!(state, UplinkState::Refused(removed));
    let _session = coordinator.welcomed().await;
    node.state(|state| matches!(state, UplinkState::Up { .. }))
        .await;
}

#[actix::test]
async fn a_node_that_is_removed_is_told_in_its_session_or_at_the_door() {
    let coordinator = TestCoordinator::start();
    let mut node = TestNode::start(&coordinator);
    let session = coordinator.welcomed().await;
    let gone = |_: &PeerIdentity| Err("node `n1` was removed from the cluster".to_owned());
    coordinator
        .endpoint
        .set_admission(std::sync::Arc::new(gone));
    session.connection.close(CloseCode::REFUSED, "removed");
    let refused = |state: &UplinkState| matches!(state, UplinkState::Refused(p) if p.message.contains("was removed from"));
    let UplinkState::Refused(problem) = node.state(refused).await else {
        unreachable!()
    };
    assert_eq!(problem.code, codes::NODE_REVOKED);
    assert!(problem.remedy.unwrap().contains("join"));
}

#[actix::test]
async fn a_foreign_coordinator_is_not_spoken_to() {
    let coordinator = TestCoordinator::start();
    let foreign = TestCoordinator::start();
    let (identity, _) = coordinator.node("n1", NODE_VALIDITY);
    let addresses = vec![HostPort::of(foreign.address())];
    let mut node = TestNode::with(&coordinator, addresses, identity, Stub::default());
    let state = node
        .state(|state| matches!(state, UplinkState::Refused(_)))
        .await;
    assert!(matches!(state, UplinkState::Refused(p) if p.code == codes::CA_MISMATCH));
}

#[actix::test]
async fn addresses_are_tried_in_turn() {
    let coordinator = TestCoordinator::start();
    let (identity, _) = coordinator.node("n1", NODE_VALIDITY);
    let dead = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = HostPort::of(dead.local_addr().unwrap());
    drop(dead);
    let addresses = vec![nobody, HostPort::of(coordinator.address())];
    let mut node = TestNode::with(&coordinator, addresses, identity, Stub::default());
    let _session = coordinator.welcomed().await;
    node.state(|state| matches!(state, UplinkState::Up { .. }))
        .await;
}

#[actix::test]
async fn members_reach_the_bus_and_outlive_the_daemon() {
    let coordinator = TestCoordinator::start();
    let node = TestNode::start(&coordinator);
    let member = Member {
        node: "n2".parse().unwrap(),
        incarnation: 3,
        address: "h:1".into(),
    };
    let other = Member {
        node: "n3".parse().unwrap(),
        ..member.clone()
    };
    let mut members = node.bus.members();
    let mut session = coordinator.session().await;
    session.say(welcome(std::slice::from_ref(&member))).await;
    let known = RosterMark::of(&[]);
    assert_eq!(session.hear().await, NodeMessage::AskMembers { known });
    let all = vec![member.clone()];
    session.say(CoordinatorMessage::Members(all)).await;
    soon(members.wait_for(|members| members.len() == 1))
        .await
        .unwrap();
    session
        .say(CoordinatorMessage::MembersChanged {
            set: vec![other.clone()],
            gone: Vec::new(),
        })
        .await;
    soon(members.wait_for(|members| members.len() == 2))
        .await
        .unwrap();
    let kept = crate::members::load(&node.dir.path().join("members.json"));
    assert_eq!(kept, [member, other.clone()]);
    session
        .say(CoordinatorMessage::MembersChanged {
            set: Vec::new(),
            gone: vec!["n2".parse().unwrap()],
        })
        .await;
    soon(members.wait_for(|members| members.len() == 1))
        .await
        .unwrap();
    assert_eq!(*members.borrow(), [other]);
}

#[actix::test]
async fn a_question_outlives_its_session() {
    let coordinator = TestCoordinator::start();
    let mut node = TestNode::start(&coordinator);
    let mut session = coordinator.welcomed().await;
    node.state(|state| matches!(state, UplinkState::Up { .. }))
        .await;
    let migration = MigrationId::from_u128(7);
    let query = VerdictQuery {
        migration,
        vm: VmId::from_u128(1),
        target: "n2".parse().unwrap(),
        epoch: Epoch(2),
    };
    let (handle, asked) = (node.handle.clone(), query.clone());
    let answer =
        actix::spawn(async move { handle.ask_verdict(asked, Duration::from_secs(20)).await });
    assert_eq!(session.hear().await, NodeMessage::AskVerdict(query.clone()));
    session.connection.close(CloseCode::SHUTDOWN, "");
    let mut session = coordinator.welcomed().await;
    assert_eq!(session.hear().await, NodeMessage::AskVerdict(query.clone()));
    let verdict = Some(Verdict::Granted { running: true });
    session
        .say(CoordinatorMessage::Verdict { migration, verdict })
        .await;
    assert_eq!(soon(answer).await.unwrap(), verdict);
    let late = node
        .handle
        .ask_verdict(query, Duration::from_millis(20))
        .await;
    assert_eq!(late, None, "nobody answered in time");
}

#[actix::test]
async fn a_certificate_near_its_end_is_renewed() {
    let coordinator = TestCoordinator::start();
    // Dated back by an hour, so in its last third.
    let (old, me) = coordinator.node("n1", Duration::from_secs(600));
    let addresses = vec![HostPort::of(coordinator.address())];
    let node = TestNode::with(&coordinator, addresses, old.clone(), Stub::default());
    let mut current = node.identity.watch();
    let mut session = coordinator.welcomed().await;
    let NodeMessage::RenewCertificate { csr } = session.hear().await else {
        panic!("no request for a certificate");
    };
    let chain = coordinator.sign(&csr, &me);
    session
        .say(CoordinatorMessage::Certificate {
            chain: chain.clone(),
        })
        .await;
    let new = soon(current.wait_for(|new| new.not_after() > old.not_after()))
        .await
        .unwrap()
        .clone();
    let (stored, _) = crate::identity::load(&node.dir.path().join("node.pem")).unwrap();
    assert_eq!(stored.not_after(), new.not_after());
    // One that was not asked for changes nothing, and the session goes on.
    session.say(CoordinatorMessage::Certificate { chain }).await;
    session.say(command(1, 1)).await;
    assert!(reply(session.hear().await).1.is_ok());
}

#[actix::test]
async fn nonsense_from_the_coordinator_ends_the_session_and_nothing_else() {
    let coordinator = TestCoordinator::start();
    let mut node = TestNode::start(&coordinator);
    let connection = soon(coordinator.endpoint.accept()).await.unwrap();
    let (_, sender, _receiver) = soon(connection.accept()).await.unwrap();
    let mut sender = sender.into_bytes();
    sender
        .write_chunk(frame(&[0xff; 40]).unwrap())
        .await
        .unwrap();
    let state = node
        .state(|state| matches!(state, UplinkState::Down { reason: Some(_) }))
        .await;
    let UplinkState::Down { reason } = state else {
        unreachable!()
    };
    assert!(reason.unwrap().contains("protocol"));
    let _session = coordinator.welcomed().await;
    node.state(|state| matches!(state, UplinkState::Up { .. }))
        .await;
}
