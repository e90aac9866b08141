//! Sessions: hello, requests and replies, health, renewal, removal.

use std::time::{Duration, Instant};

use godwit_shared::api::{MigrationView, NodeHealth, NodeView, TaskState, VmView};
use godwit_shared::model::{
    DomainReport, DomainState, Epoch, ExitReason, LifecycleCommand, MigrationFigures,
    MigrationPhase, MigrationProgress, NodeId, Problem, RunState, UnixMillis, codes,
};
use godwit_shared::pki::KeyAndCsr;
use godwit_shared::wire::uplink::{
    CoordinatorMessage, LogKind, MigrationReport, NodeMessage, NodeReply, NodeRequest,
};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::node::{Node, hello};
use super::running::{PATIENCE, Running, spec};

/// Looks again until it is so.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < PATIENCE, "not {what} in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[actix::test]
async fn a_vm_is_created_started_and_shut_down() {
    let cluster = Running::start().await;
    let (mut node, _) = Node::join(&cluster, "n1").await;
    let task = cluster
        .begin("/api/v1/vms", json!({"spec": spec("web"), "start": true}))
        .await;
    assert_eq!(task.kind, "vm.create");
    let running = node.start_one().await;
    let task = cluster.ended(&task).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    let vm: VmView = cluster.get("/api/v1/vms/web").await;
    assert_eq!(
        (vm.state, vm.desired, vm.pid),
        (DomainState::Running, RunState::Running, Some(4242))
    );
    assert_eq!(vm.node.as_ref().map(NodeId::as_str), Some("n1"));
    let by_id: VmView = cluster.get(&format!("/api/v1/vms/{}", vm.id)).await;
    assert_eq!(by_id, vm);

    let task = cluster.begin("/api/v1/vms/web/shutdown", json!({})).await;
    let (request, body) = node.request().await;
    assert!(matches!(
        body,
        NodeRequest::Command {
            command: LifecycleCommand::Shutdown,
            ..
        }
    ));
    let asked = DomainReport {
        state: DomainState::ShuttingDown,
        ..running.clone()
    };
    node.reply(request, Ok(NodeReply::Domain(asked))).await;
    let off = DomainReport {
        state: DomainState::Stopped,
        exit: Some(ExitReason::GuestShutdown),
        pid: None,
        ..running
    };
    node.say(NodeMessage::Domain(off)).await;
    assert_eq!(cluster.ended(&task).await.state, TaskState::Succeeded);
    let vm: VmView = cluster.get("/api/v1/vms/web").await;
    assert_eq!(
        (vm.state, vm.desired),
        (DomainState::Stopped, RunState::Stopped)
    );
    cluster.stop().await;
}

#[actix::test]
async fn a_node_that_goes_away_is_down_at_once_and_up_again() {
    let cluster = Running::start().await;
    let (node, identity) = Node::join(&cluster, "n1").await;
    let up: NodeView = cluster.get("/api/v1/nodes/n1").await;
    assert_eq!((up.health, up.vms), (NodeHealth::Up, 0));
    node.leave().await;
    until("down", async || {
        cluster.get::<NodeView>("/api/v1/nodes/n1").await.health == NodeHealth::Down
    })
    .await;
    let down: NodeView = cluster.get("/api/v1/nodes/n1").await;
    assert!(down.reason.is_some_and(|reason| reason.contains("bye")));
    let (status, problem) = cluster
        .refused("/api/v1/vms", json!({"spec": spec("a"), "start": true}))
        .await;
    assert_eq!(
        (status, problem.code.as_ref()),
        (StatusCode::CONFLICT, codes::NO_NODE_FITS)
    );
    let _back = Node::connect(&cluster, &identity, Vec::new()).await;
    let up: NodeView = cluster.get("/api/v1/nodes/n1").await;
    assert_eq!(up.health, NodeHealth::Up);
    cluster.stop().await;
}

#[actix::test]
async fn a_second_session_of_a_node_ends_the_first() {
    let cluster = Running::start().await;
    let (first, identity) = Node::join(&cluster, "n1").await;
    let _second = Node::connect(&cluster, &identity, Vec::new()).await;
    let end = tokio::time::timeout(PATIENCE, first.connection.closed()).await;
    assert!(end.is_ok());
    let view: NodeView = cluster.get("/api/v1/nodes/n1").await;
    assert_eq!(view.health, NodeHealth::Up);
    cluster.stop().await;
}

#[actix::test]
async fn a_removed_node_is_told_and_stays_out() {
    let cluster = Running::start().await;
    let (mut node, identity) = Node::join(&cluster, "n1").await;
    let removed = cluster
        .request(Method::DELETE, "/api/v1/nodes/n1")
        .send()
        .await
        .unwrap();
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    let CoordinatorMessage::Refused(problem) = node.next().await else {
        panic!()
    };
    assert_eq!(problem.code, codes::NODE_REVOKED);
    let address = cluster.coordinator.as_ref().unwrap().cluster;
    let mut again = Node::open(address, &identity, hello(Vec::new())).await;
    let CoordinatorMessage::Refused(problem) = again.next().await else {
        panic!()
    };
    assert_eq!(problem.code, codes::NODE_REVOKED);
    tokio::time::timeout(PATIENCE, again.connection.closed())
        .await
        .unwrap();
    cluster.stop().await;
}

#[actix::test]
async fn a_node_that_breaks_the_protocol_loses_its_session() {
    let cluster = Running::start().await;
    let (mut node, _) = Node::join(&cluster, "n1").await;
    node.say(NodeMessage::Hello(hello(Vec::new()))).await;
    let end = tokio::time::timeout(PATIENCE, node.connection.closed())
        .await
        .unwrap();
    assert!(end.to_string().contains("hello twice"), "{end}");
    cluster.stop().await;
}

#[actix::test]
async fn a_certificate_is_renewed_over_the_session() {
    let cluster = Running::start().await;
    let (mut node, old) = Node::join(&cluster, "n1").await;
    let key = KeyAndCsr::generate(&"n1".parse().unwrap()).unwrap();
    node.say(NodeMessage::RenewCertificate {
        csr: key.csr_pem().to_owned(),
    })
    .await;
    let CoordinatorMessage::Certificate { chain } = node.next().await else {
        panic!()
    };
    let (leaf, ca) = chain.split_at(chain.rfind("-----BEGIN").unwrap());
    let fresh = key.into_identity(leaf, ca).unwrap();
    assert_eq!(fresh.peer(), old.peer());
    let _again = Node::connect(&cluster, &fresh, Vec::new()).await;
    cluster.stop().await;
}

fn report(view: &MigrationView, phase: MigrationPhase, epoch: Epoch) -> MigrationReport {
    MigrationReport {
        migration: view.id,
        vm: view.vm,
        source: view.source.clone(),
        target: view.target.clone(),
        phase,
        since: UnixMillis::now(),
        started: UnixMillis::now(),
        progress: MigrationProgress::default(),
        blackout: None,
        figures: MigrationFigures::default(),
        failure: None,
        epoch,
    }
}

#[actix::test]
async fn a_migration_is_watched_while_somebody_looks_and_moves_its_vm() {
    let cluster = Running::start().await;
    let (mut n1, _) = Node::join(&cluster, "n1").await;
    let (mut n2, _) = Node::join(&cluster, "n2").await;
    let body = json!({"spec": spec("web"), "start": true, "node": "n1"});
    let task = cluster.begin("/api/v1/vms", body).await;
    let running = n1.start_one().await;
    cluster.ended(&task).await;

    let task = cluster
        .begin("/api/v1/vms/web/migrate", json!({"target": "n2"}))
        .await;
    let (request, body) = n1.request().await;
    assert!(
        matches!(body, NodeRequest::Migrate { dry_run: false, .. }),
        "{body:?}"
    );
    n1.reply(request, Ok(NodeReply::Done)).await;
    let path = format!("/api/v1/migrations/{}", task.migration.unwrap());
    let view: MigrationView = cluster.get(&path).await;
    n1.say(NodeMessage::Migration(report(
        &view,
        MigrationPhase::Precopy,
        running.epoch,
    )))
    .await;
    until("under way", async || {
        cluster.get::<MigrationView>(&path).await.phase == MigrationPhase::Precopy
    })
    .await;
    let _: MigrationView = cluster.get(&format!("{path}?watch=true")).await;
    for wanted in [true, false] {
        let (request, body) = n1.request().await;
        assert!(
            matches!(body, NodeRequest::WatchMigration { watch, .. } if watch == wanted),
            "{body:?}"
        );
        n1.reply(request, Ok(NodeReply::Done)).await;
    }

    let epoch = running.epoch.next();
    let moved = DomainReport { epoch, ..running };
    let waiting = cluster.ended(&task);
    let moving = async {
        n2.say(NodeMessage::Domain(moved)).await;
        n1.say(NodeMessage::Migration(report(
            &view,
            MigrationPhase::Completed,
            epoch,
        )))
        .await;
        n1.say(NodeMessage::DomainGone(view.vm)).await;
    };
    let (task, ()) = tokio::join!(waiting, moving);
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    let vm: VmView = cluster.get("/api/v1/vms/web").await;
    assert_eq!(vm.node.as_ref().map(NodeId::as_str), Some("n2"));
    assert_eq!((vm.epoch, vm.state), (epoch, DomainState::Running));
    cluster.stop().await;
}

#[actix::test]
async fn a_log_and_a_dry_run_wait_for_the_node() {
    let cluster = Running::start().await;
    let (mut n1, _) = Node::join(&cluster, "n1").await;
    let (_n2, _) = Node::join(&cluster, "n2").await;
    let body = json!({"spec": spec("web"), "start": true, "node": "n1"});
    let task = cluster.begin("/api/v1/vms", body).await;
    n1.start_one().await;
    cluster.ended(&task).await;

    let asking = cluster
        .request(Method::GET, "/api/v1/vms/web/logs?kind=qemu&lines=3")
        .send();
    let answering = async {
        let (request, body) = n1.request().await;
        assert!(
            matches!(
                body,
                NodeRequest::Log {
                    kind: LogKind::Qemu,
                    lines: 3,
                    ..
                }
            ),
            "{body:?}"
        );
        n1.reply(request, Ok(NodeReply::Log("three\nlines\nhere\n".into())))
            .await;
    };
    let (response, ()) = tokio::join!(asking, answering);
    let response = response.unwrap();
    assert_eq!(
        response.headers()["content-type"],
        "text/plain; charset=utf-8"
    );
    assert_eq!(response.text().await.unwrap(), "three\nlines\nhere\n");

    let asking = cluster.post("/api/v1/vms/web/migrate", json!({"dry_run": true}));
    let answering = async {
        let (request, body) = n1.request().await;
        assert!(
            matches!(body, NodeRequest::Migrate { dry_run: true, .. }),
            "{body:?}"
        );
        n1.reply(
            request,
            Ok(NodeReply::Rehearsal {
                blockers: Vec::new(),
                forecast: None,
            }),
        )
        .await;
    };
    let ((status, found), ()) = tokio::join!(asking, answering);
    assert_eq!((status, &found["target"]), (StatusCode::OK, &json!("n2")));
    assert_eq!(found["blockers"], json!([]));
    cluster.stop().await;
}

#[actix::test]
async fn the_nodes_are_asked_before_a_drain_all_at_once() {
    let cluster = Running::start().await;
    let (mut n1, _) = Node::join(&cluster, "n1").await;
    let (_n2, _) = Node::join(&cluster, "n2").await;
    for name in ["db", "web"] {
        let body = json!({"spec": spec(name), "start": true, "node": "n1"});
        let task = cluster.begin("/api/v1/vms", body).await;
        n1.start_one().await;
        cluster.ended(&task).await;
    }
    let asking = cluster.post("/api/v1/nodes/n1/drain", json!({"dry_run": true}));
    let answering = async {
        let (first, _) = n1.request().await;
        let (second, body) = n1.request().await;
        assert!(
            matches!(body, NodeRequest::Migrate { dry_run: true, .. }),
            "{body:?}"
        );
        let device = Problem::new(codes::MIGRATION_BLOCKED, "a device cannot move");
        let found = NodeReply::Rehearsal {
            blockers: vec![device],
            forecast: None,
        };
        n1.reply(first, Ok(found)).await;
        let lost = Problem::new(codes::NODE_UNREACHABLE, "n2 says nothing");
        n1.reply(second, Err(lost)).await;
    };
    let ((status, plan), ()) = tokio::join!(asking, answering);
    assert_eq!(status, StatusCode::OK, "{plan}");
    let blockers = plan["blockers"].as_array().unwrap();
    assert_eq!(blockers.len(), 1, "{plan}");
    let why = &blockers[0]["problem"]["also"][0]["message"];
    assert_eq!(why, "a device cannot move");
    assert_eq!(plan["steps"].as_array().unwrap().len(), 1);
    let note = plan["progress"][0]["message"].as_str().unwrap();
    assert!(note.contains("n2 says nothing"), "{note}");
    cluster.stop().await;
}
