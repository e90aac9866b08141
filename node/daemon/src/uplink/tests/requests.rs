#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use godwit_shared::model::{DomainState, MigrationId, codes};
use godwit_shared::wire::uplink::{LogKind, Member, VerdictQuery};

use super::*;

type Check = fn(&Result<NodeReply, Problem>) -> bool;

#[actix::test]
async fn a_hung_domain_delays_no_other_and_each_request_gets_one_answer() {
    let coordinator = TestCoordinator::start();
    let _node = TestNode::start(&coordinator);
    let mut session = coordinator.welcomed().await;
    session.say(command(1, HUNG)).await;
    for request in 2..100 {
        session.say(command(request, 1)).await;
    }
    let mut seen: Vec<u64> = Vec::new();
    for _ in 2..100 {
        let (request, outcome) = reply(session.hear().await);
        assert_eq!(
            outcome,
            Ok(NodeReply::Domain(domain(1, DomainState::Running)))
        );
        seen.push(request);
    }
    seen.sort_unstable();
    assert_eq!(seen, (2..100).collect::<Vec<u64>>());
}

#[actix::test]
async fn every_kind_of_request_reaches_its_actor() {
    let coordinator = TestCoordinator::start();
    let _node = TestNode::start(&coordinator);
    let mut session = coordinator.welcomed().await;
    let (migration, vm) = (MigrationId::from_u128(7), VmId::from_u128(1));
    let target = Member {
        node: "n2".parse().unwrap(),
        incarnation: 1,
        address: "h:1".into(),
    };
    let query = VerdictQuery {
        migration,
        vm,
        target: target.node.clone(),
        epoch: Epoch(2),
    };
    let spec = serde_json::json!({ "name": "web", "memory": 64 });
    let spec = godwit_shared::wire::document::Document::of(&spec).unwrap();
    let nonsense = godwit_shared::wire::document::Document::of(&1).unwrap();
    let define = |spec| NodeRequest::Define {
        vm,
        spec,
        epoch: Epoch::FIRST,
        machine: None,
    };
    let policy = godwit_shared::model::MigrationPolicy::default();
    let migrate = NodeRequest::Migrate {
        migration,
        vm,
        target,
        policy,
        dry_run: false,
    };
    let log = |lines| NodeRequest::Log {
        vm,
        kind: LogKind::Serial,
        lines,
    };
    let cases: [(NodeRequest, Check); 8] = [
        (
            define(spec),
            |o| matches!(o, Ok(NodeReply::Domain(d)) if d.name.as_str() == "web"),
        ),
        (
            define(nonsense),
            |o| matches!(o, Err(p) if p.code == codes::PROTOCOL),
        ),
        (
            migrate,
            |o| matches!(o, Err(p) if p.code == codes::NOT_FOUND),
        ),
        (NodeRequest::CancelMigration { migration }, |o| {
            *o == Ok(NodeReply::Done)
        }),
        (
            NodeRequest::WatchMigration {
                migration,
                watch: true,
            },
            |o| *o == Ok(NodeReply::Done),
        ),
        (NodeRequest::Verdict(query), |o| {
            *o == Ok(NodeReply::Verdict(Verdict::Refused))
        }),
        (log(3), |o| *o == Ok(NodeReply::Log("xxx".into()))),
        (
            log(2 << 20),
            |o| matches!(o, Err(p) if p.code == codes::INTERNAL),
        ),
    ];
    for (number, (body, check)) in cases.into_iter().enumerate() {
        let request = number as u64;
        session
            .say(CoordinatorMessage::Request { request, body })
            .await;
        let (answered, outcome) = reply(session.hear().await);
        assert_eq!(answered, request);
        assert!(check(&outcome), "{number}: {outcome:?}");
    }
}

#[actix::test]
async fn a_request_to_an_actor_that_is_gone_is_answered() {
    let coordinator = TestCoordinator::start();
    let node = TestNode::start(&coordinator);
    let mut session = coordinator.welcomed().await;
    node.stub.send(Halt).await.unwrap();
    session.say(command(1, 1)).await;
    let (request, outcome) = reply(session.hear().await);
    assert_eq!(request, 1);
    assert_eq!(outcome.unwrap_err().code, codes::INTERNAL);
}

#[derive(Message)]
#[rtype(result = "()")]
struct Halt;

impl Handler<Halt> for Stub {
    type Result = ();
    fn handle(&mut self, _: Halt, context: &mut Context<Self>) {
        context.stop();
    }
}
