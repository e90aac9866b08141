//! QEMUs that hang, die, lie or flood, beside one that does not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use godwit_shared::api::TaskState;
use godwit_shared::model::{DomainState, ExitReason, LifecycleCommand, MiB, VmSpec, codes};
use godwit_tests::harness::{Cluster, ClusterOptions};
use godwit_tests::scene::SETTLE;
use godwit_tests::wait;

/// Most that a command to a healthy domain may take beside the sick ones.
const PROMPT: Duration = Duration::from_secs(2);
/// Longer than the daemon waits for a greeting.
const HANGS: Duration = Duration::from_secs(50);

fn spec(name: &str) -> VmSpec {
    let document = serde_json::json!({ "name": name, "memory": 64, "accelerator": "tcg" });
    VmSpec::from_value(document).unwrap()
}

async fn cluster() -> Cluster {
    let options = ClusterOptions::nodes(1).fake().memory(&[MiB(32 << 10)]);
    Cluster::start(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sick_qemu_harms_no_other() {
    let cluster = cluster().await;
    let api = &cluster.api;
    let well = api.create(spec("well"), true, None).await.unwrap();
    api.succeed(well.id, SETTLE).await.unwrap();

    let sick = [
        "hang-1",
        "die-1",
        "mute-1",
        "flood-1",
        "crash-1",
        "garbage-1",
    ];
    let begun = Instant::now();
    let tasks = join_all(sick.map(|name| api.create(spec(name), true, None))).await;
    let tasks: Vec<_> = tasks.into_iter().map(Result::unwrap).collect();

    // The healthy one answers at once, all the while.
    for command in [LifecycleCommand::Pause, LifecycleCommand::Resume].repeat(5) {
        let asked = Instant::now();
        api.done("well", command, SETTLE).await.unwrap();
        assert!(
            asked.elapsed() < PROMPT,
            "{command} took {:?}",
            asked.elapsed()
        );
    }

    let died = api.ended(tasks[1].id, SETTLE).await.unwrap();
    assert_eq!(died.state, TaskState::Failed);
    let problem = died.problem.unwrap();
    assert_eq!(problem.code, codes::QEMU_START);
    let text = serde_json::to_string(&problem).unwrap();
    assert!(
        text.contains("not a valid device model"),
        "QEMU's own words: {text}"
    );
    let view = api.vm("die-1").await.unwrap();
    assert!(
        matches!(view.exit, Some(ExitReason::FailedToStart { .. })),
        "{:?}",
        view.exit
    );
    let log = "/api/v1/vms/die-1/logs?kind=qemu&lines=20";
    let log = api.raw(reqwest::Method::GET, log, None).await.unwrap();
    assert!(
        log.body.contains("not a valid device model"),
        "{}",
        log.body
    );

    let crashed = wait::until("the crash", SETTLE, || async {
        let view = api.vm("crash-1").await?;
        let over = view.state == DomainState::Stopped && view.exit.is_some();
        Ok(over.then_some(view))
    });
    let crashed = crashed.await.unwrap();
    assert!(
        matches!(crashed.exit, Some(ExitReason::Crashed { .. })),
        "{:?}",
        crashed.exit
    );

    // A flood is no reason to be slow, nor to run out of memory.
    let asked = Instant::now();
    api.done("flood-1", LifecycleCommand::Pause, SETTLE)
        .await
        .unwrap();
    assert!(asked.elapsed() < PROMPT * 2, "{:?}", asked.elapsed());

    let hung = api.ended(tasks[0].id, HANGS).await.unwrap();
    assert_eq!(hung.state, TaskState::Failed);
    let code = hung.problem.unwrap().code;
    assert!(
        code == codes::QEMU_TIMEOUT || code == codes::QEMU_START,
        "{code}"
    );
    assert!(begun.elapsed() < HANGS);
    // Its CPUs were seen to run; that it answers nothing more is told later.
    api.succeed(tasks[2].id, HANGS).await.unwrap();
    wait::until("the word that mute-1 does not answer", HANGS, || async {
        let view = api.vm("mute-1").await?;
        let told = matches!(view.state, DomainState::Unresponsive | DomainState::Stopped);
        Ok(told.then_some(()))
    })
    .await
    .unwrap();

    // Every one of them can be ended.
    for name in ["mute-1", "flood-1", "garbage-1", "well"] {
        let view = api.vm(name).await.unwrap();
        if view.state.has_process() {
            let stopped = api.done(name, LifecycleCommand::Stop, HANGS).await;
            stopped.unwrap_or_else(|e| panic!("{name}: {e:#}"));
        }
        assert!(cluster.qemus_of(view.id).is_empty(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_qemu_that_ignores_quit_is_killed() {
    let cluster = cluster().await;
    let api = &cluster.api;
    let task = api.create(spec("stubborn-1"), true, None).await.unwrap();
    api.succeed(task.id, SETTLE).await.unwrap();
    let id = api.vm("stubborn-1").await.unwrap().id;
    // A shutdown that the guest ignores can be called off.
    let ignored = api
        .command("stubborn-1", LifecycleCommand::Shutdown)
        .await
        .unwrap();
    let path = format!("/tasks/{}/cancel", ignored.id);
    let _: serde_json::Value = api.post(&path, &serde_json::json!({})).await.unwrap();
    let ended = api.ended(ignored.id, SETTLE).await.unwrap();
    assert_eq!(ended.state, TaskState::Cancelled);
    api.done("stubborn-1", LifecycleCommand::Stop, HANGS)
        .await
        .unwrap();
    assert!(cluster.qemus_of(id).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_domains_survive_their_daemon() {
    let mut cluster = cluster().await;
    let api = cluster.api.clone();
    let names: Vec<String> = (0..200).map(|n| format!("vm-{n:03}")).collect();
    for some in names.chunks(20) {
        let tasks = join_all(some.iter().map(|name| api.create(spec(name), true, None))).await;
        for task in tasks {
            api.succeed(task.unwrap().id, SETTLE).await.unwrap();
        }
    }
    let before: Vec<_> = api
        .vms()
        .await
        .unwrap()
        .into_iter()
        .map(|vm| vm.pid)
        .collect();
    assert_eq!(before.len(), names.len());
    cluster.nodes[0].restart().await.unwrap();
    let after = wait::until("all of them running", SETTLE, || async {
        let vms = api.vms().await?;
        let up = vms
            .iter()
            .all(|vm| vm.node_up && vm.state == DomainState::Running);
        Ok(up.then_some(vms))
    });
    let after: Vec<_> = after.await.unwrap().into_iter().map(|vm| vm.pid).collect();
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_knocks_at_the_socket_of_a_qemu_that_has_ended() {
    let cluster = cluster().await;
    let api = &cluster.api;
    let task = api.create(spec("short"), true, None).await.unwrap();
    api.succeed(task.id, SETTLE).await.unwrap();
    let id = api.vm("short").await.unwrap().id;
    api.done("short", LifecycleCommand::Stop, SETTLE)
        .await
        .unwrap();
    let dir = cluster.nodes[0].run.join(id.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    let listener = tokio::net::UnixListener::bind(dir.join("qmp.sock")).unwrap();
    // Three times the interval at which a lost session is opened again.
    let knocked = tokio::time::timeout(Duration::from_millis(600), listener.accept());
    assert!(knocked.await.is_err(), "the daemon still wants to reach it");
    // And the next run finds its place as it left it.
    drop(listener);
    api.done("short", LifecycleCommand::Start, SETTLE)
        .await
        .unwrap();
    cluster.runs_once_on(id, 0).unwrap();
}
