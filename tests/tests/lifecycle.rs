//! One real guest through everything that an operator may ask of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use godwit_shared::api::TaskState;
use godwit_shared::model::{
    AgentState, DomainState, ExitReason, LifecycleCommand, RunState, codes,
};
use godwit_tests::api::Refusal;
use godwit_tests::guest::{self, Work, last_count};
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::{BOOT, SETTLE, Scene};
use godwit_tests::wait;
use rustix::process::Signal;

/// A guest shuts down within a second once it was asked; TCG on a busy core is
/// slower.
const SHUTDOWN: Duration = Duration::from_secs(30);

async fn one_guest(work: &Work) -> Scene {
    let mut scene = Scene::start(ClusterOptions::nodes(1)).await.unwrap();
    scene.boot(&[("web", 0)], work).await.unwrap();
    scene
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_paused_resumed_reset_and_stopped() {
    let mut scene = one_guest(&Work::default()).await;
    let api = scene.cluster.api.clone();
    let view = api.vm("web").await.unwrap();
    assert_eq!(
        (view.desired, view.state),
        (RunState::Running, DomainState::Running)
    );
    assert!(view.node_up && view.accelerator.as_deref() == Some("tcg"));
    assert!(
        view.machine.unwrap().starts_with("pc-q35-"),
        "a pinned version"
    );
    let pid = scene.cluster.runs_once_on(view.id, 0).unwrap();
    assert_eq!(view.pid, Some(pid));

    let mark = scene.cluster.events.mark();
    let paused = api
        .done("web", LifecycleCommand::Pause, SETTLE)
        .await
        .unwrap();
    assert_eq!(paused.kind, "vm.pause");
    assert_eq!(api.vm("web").await.unwrap().state, DomainState::Paused);
    let events = &scene.cluster.events;
    events
        .wait(mark, "web is paused", SETTLE, |event| {
            event.kind == "vm.state" && event.message.contains("paused")
        })
        .await
        .unwrap();
    // All that was written before the stop is in the log by now.
    let still = scene.count("web").unwrap().last;
    let again = scene.count("web").unwrap().last;
    assert_eq!(still, again);

    api.done("web", LifecycleCommand::Resume, SETTLE)
        .await
        .unwrap();
    scene.runs_on("web", 0).await.unwrap();
    assert_eq!(scene.cluster.runs_once_on(view.id, 0).unwrap(), pid);

    let before = scene.count("web").unwrap();
    before.check().unwrap();
    api.done("web", LifecycleCommand::Reset, SETTLE)
        .await
        .unwrap();
    boots_again(&scene, "web").await;

    api.done("web", LifecycleCommand::Stop, SETTLE)
        .await
        .unwrap();
    let stopped = api.vm("web").await.unwrap();
    assert_eq!(stopped.state, DomainState::Stopped);
    assert_eq!(stopped.desired, RunState::Stopped);
    assert_eq!(stopped.exit, Some(ExitReason::Stopped));
    assert!(scene.cluster.qemus_of(view.id).is_empty());

    api.done("web", LifecycleCommand::Delete, SETTLE)
        .await
        .unwrap();
    let gone = api.vm("web").await.unwrap_err();
    let refusal = gone.downcast_ref::<Refusal>().unwrap();
    assert_eq!(refusal.problem.code, codes::NOT_FOUND);
    scene
        .cluster
        .nothing_left(view.id, 0, SETTLE)
        .await
        .unwrap();
}

/// Waits until the guest counts from one again.
async fn boots_again(scene: &Scene, name: &str) {
    wait::until("a second count from one", BOOT, || async {
        let log = scene.cluster.api.serial_log(name, 5000).await?;
        let starts = log.matches("count 1 ").count();
        Ok((starts >= 2).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_shuts_down_by_its_power_button() {
    let scene = one_guest(&Work::default()).await;
    let api = &scene.cluster.api;
    let task = api
        .done("web", LifecycleCommand::Shutdown, SHUTDOWN)
        .await
        .unwrap();
    assert_eq!(task.state, TaskState::Succeeded);
    let view = api.vm("web").await.unwrap();
    assert_eq!(view.state, DomainState::Stopped);
    assert_eq!(view.exit, Some(ExitReason::GuestShutdown));
    assert!(scene.cluster.qemus_of(view.id).is_empty());

    let node = scene.cluster.name(0);
    let again = api
        .done("web", LifecycleCommand::Start, BOOT)
        .await
        .unwrap();
    assert_eq!(again.node.or(api.vm("web").await.unwrap().node), Some(node));
    let pid = scene.cluster.runs_once_on(view.id, 0).unwrap();
    assert!(
        api.vm("web").await.unwrap().epoch > view.epoch,
        "each run has its own right"
    );

    // What dies of itself is told apart from what was asked for.
    scene.cluster.signal_qemu(pid, Signal::KILL).unwrap();
    let crashed = wait::until("the crash", SETTLE, || async {
        let view = api.vm("web").await?;
        Ok((view.state == DomainState::Stopped).then_some(view))
    })
    .await
    .unwrap();
    assert!(
        matches!(crashed.exit, Some(ExitReason::Crashed { .. })),
        "{:?}",
        crashed.exit
    );
    assert_eq!(crashed.desired, RunState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_is_seen_and_asked_first() {
    let work = Work {
        agent: true,
        ..Work::default()
    };
    let scene = one_guest(&work).await;
    let api = &scene.cluster.api;
    wait::until("the agent", BOOT, || async {
        let view = api.vm("web").await?;
        Ok((view.agent == AgentState::Connected).then_some(()))
    })
    .await
    .unwrap();
    api.done("web", LifecycleCommand::Reboot, SHUTDOWN)
        .await
        .unwrap();
    boots_again(&scene, "web").await;
    wait::until("the agent after the reboot", BOOT, || async {
        let view = api.vm("web").await?;
        Ok((view.agent == AgentState::Connected).then_some(()))
    })
    .await
    .unwrap();
    api.done("web", LifecycleCommand::Shutdown, SHUTDOWN)
        .await
        .unwrap();
    let view = api.vm("web").await.unwrap();
    assert_eq!(view.exit, Some(ExitReason::GuestShutdown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panicked_guest_is_shown_as_crashed() {
    let scene = one_guest(&Work::default()).await;
    let api = &scene.cluster.api;
    // The console ends in the kernel's own words.
    let words = api.type_line("web", "crash", "Kernel panic", SETTLE).await;
    words.unwrap();
    wait::until("the state crashed", SETTLE, || async {
        let view = api.vm("web").await?;
        Ok((view.state == DomainState::Crashed).then_some(()))
    })
    .await
    .unwrap();
    api.done("web", LifecycleCommand::Stop, SETTLE)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_does_all_of_it() {
    let scene = Scene::start(ClusterOptions::nodes(1)).await.unwrap();
    let cluster = &scene.cluster;
    let spec = guest::spec("cli", &Work::default()).unwrap();
    let file = cluster.root().join("vm.yaml");
    std::fs::write(&file, serde_json::to_string(&spec).unwrap()).unwrap();
    let file = file.display().to_string();
    let ran = async |args: &[&str]| {
        let output = cluster.godwit(args).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, _, err) = ran(&["vm", "create", "-f", &file, "--start"]).await;
    assert_eq!(code, Some(0), "{err}");
    let (code, out, _) = ran(&["vm", "list"]).await;
    assert!(
        code == Some(0) && out.contains("cli") && out.contains("running"),
        "{out}"
    );
    let (code, out, _) = ran(&["vm", "show", "cli", "-o", "json"]).await;
    assert_eq!(code, Some(0));
    let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["state"], "running");
    let (code, out, _) = ran(&["node", "list"]).await;
    assert!(code == Some(0) && out.contains("node-1"), "{out}");
    let (code, out, _) = ran(&["cluster", "status"]).await;
    assert!(code == Some(0) && !out.is_empty());
    wait::until("counts in the log", BOOT, || async {
        let (_, out, _) = ran(&["vm", "logs", "cli", "-n", "50"]).await;
        Ok(last_count(&out).map(|_| ()))
    })
    .await
    .unwrap();
    let (code, _, err) = ran(&["vm", "show", "nobody"]).await;
    assert_eq!(code, Some(4), "{err}");
    assert!(err.contains("not_found"), "{err}");
    let (code, _, err) = ran(&["vm", "stop", "cli"]).await;
    assert_eq!(code, Some(0), "{err}");
    let (code, _, err) = ran(&["vm", "delete", "cli"]).await;
    assert_eq!(code, Some(0), "{err}");
    let (code, out, _) = ran(&["vm", "list", "-o", "json"]).await;
    assert_eq!((code, out.trim()), (Some(0), "[]"));
}
