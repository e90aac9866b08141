//! Daemons die and come back; guests go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "measured numbers belong into the log")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use godwit_shared::api::NodeHealth;
use godwit_shared::model::{DomainState, ExitReason, LifecycleCommand, MiB};
use godwit_tests::guest::Work;
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::{BOOT, SETTLE, Scene};
use godwit_tests::wait;
use rustix::process::Signal;

/// Most that a guest may go without a count, as seen from outside. Ten of them
/// share two cores here.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest that each guest's console was silent while `work` went on.
async fn silences<T>(
    scene: &mut Scene,
    names: &[String],
    work: impl Future<Output = T>,
) -> (BTreeMap<String, Duration>, T) {
    let mut work = std::pin::pin!(work);
    let mut last: BTreeMap<String, (u64, Instant)> = BTreeMap::new();
    let mut longest: BTreeMap<String, Duration> = BTreeMap::new();
    let mut step = tokio::time::interval(wait::STEP);
    loop {
        tokio::select! {
            done = &mut work => return (longest, done),
            _ = step.tick() => {}
        }
        for name in names {
            let now = Instant::now();
            let count = scene.count(name).unwrap().last;
            let (before, at) = *last.get(name).unwrap_or(&(count, now));
            let silent = now.duration_since(at);
            let most = longest.entry(name.clone()).or_default();
            *most = (*most).max(silent);
            let since = if count > before { now } else { at };
            last.insert(name.clone(), (count, since));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_guests_never_notice_that_their_daemons_were_killed() {
    let mut scene = Scene::start(ClusterOptions::nodes(2)).await.unwrap();
    let names: Vec<String> = (1..=10).map(|n| format!("g{n}")).collect();
    let places: Vec<(&str, usize)> = names
        .iter()
        .enumerate()
        .map(|(index, name)| (name.as_str(), index % 2))
        .collect();
    let work = Work {
        memory: MiB(96),
        tick_ms: 100,
        fill: MiB(4),
        rate: MiB(1),
        ..Work::default()
    };
    scene.boot(&places, &work).await.unwrap();
    let pids = |scene: &Scene| -> Vec<u32> {
        let found = places.iter().map(|(name, node)| {
            let id = scene.id(name).unwrap();
            scene.cluster.runs_once_on(id, *node).unwrap()
        });
        found.collect()
    };
    let before = pids(&scene);
    let mark = scene.cluster.events.mark();

    // The daemons are taken out of the scene, so that consoles can be watched
    // while they are killed.
    let mut nodes = std::mem::take(&mut scene.cluster.nodes);
    let (longest, restarted) = silences(&mut scene, &names, async {
        for node in &mut nodes {
            node.kill();
        }
        for node in &mut nodes {
            node.restart().await?;
        }
        // Again, one at a time, and once politely.
        for node in &mut nodes {
            node.restart().await?;
        }
        nodes[0].daemon.terminate().await?;
        nodes[0].start().await?;
        anyhow::Ok(nodes)
    })
    .await;
    scene.cluster.nodes = restarted.unwrap();
    for node in 0..2 {
        scene
            .cluster
            .wait_health(node, NodeHealth::Up)
            .await
            .unwrap();
    }
    assert_eq!(pids(&scene), before, "the same processes");
    for (name, node) in &places {
        scene.runs_on(name, *node).await.unwrap();
    }
    let stopped = scene.cluster.events.since(mark).into_iter();
    let stopped: Vec<_> = stopped
        .filter(|came| came.event.kind == "vm.state")
        .filter(|came| {
            ["paused", "stopped", "crashed"]
                .iter()
                .any(|word| godwit_tests::events::says(&came.event, word))
        })
        .collect();
    assert!(stopped.is_empty(), "{stopped:?}");
    let worst = longest.iter().max_by_key(|(_, silence)| **silence).unwrap();
    eprintln!("longest silence of a guest: {:?} ({})", worst.1, worst.0);
    assert!(*worst.1 < PAUSE, "{worst:?}");
    // And they are really held: the daemons can still act on them.
    let api = &scene.cluster.api;
    for name in [&names[0], &names[1]] {
        api.done(name, LifecycleCommand::Pause, SETTLE)
            .await
            .unwrap();
        api.done(name, LifecycleCommand::Resume, SETTLE)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_while_the_daemon_was_away_is_told() {
    let mut scene = Scene::start(ClusterOptions::nodes(1)).await.unwrap();
    let work = Work {
        memory: MiB(96),
        fill: MiB(4),
        ..Work::default()
    };
    let guests = [("killed", 0), ("off", 0), ("on", 0)];
    scene.boot(&guests, &work).await.unwrap();
    let killed = scene.id("killed").unwrap();
    let pid = scene.cluster.runs_once_on(killed, 0).unwrap();
    let api = scene.cluster.api.clone();
    let asked = api
        .command("off", LifecycleCommand::Shutdown)
        .await
        .unwrap();
    scene.cluster.nodes[0].kill();
    scene.cluster.signal_qemu(pid, Signal::KILL).unwrap();
    scene
        .cluster
        .wait_health(0, NodeHealth::Down)
        .await
        .unwrap();
    let away = api.vm("on").await.unwrap();
    assert!(
        !away.node_up && away.state == DomainState::Running,
        "its last word"
    );
    scene.cluster.nodes[0].restart().await.unwrap();
    for name in ["killed", "off"] {
        wait::until(&format!("the end of {name}"), SETTLE, || async {
            let view = api.vm(name).await?;
            Ok((view.state == DomainState::Stopped && view.node_up).then_some(()))
        })
        .await
        .unwrap();
    }
    let exit = api.vm("killed").await.unwrap().exit;
    assert!(matches!(exit, Some(ExitReason::Crashed { .. })), "{exit:?}");
    let exit = api.vm("off").await.unwrap().exit;
    assert_eq!(exit, Some(ExitReason::GuestShutdown));
    assert!(api.ended(asked.id, SETTLE).await.unwrap().state.is_final());
    scene.runs_on("on", 0).await.unwrap();
    // A new run after all that.
    api.done("off", LifecycleCommand::Start, BOOT)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_killed_in_a_migration_finds_it_done() {
    let mut scene = Scene::start(ClusterOptions::nodes(2)).await.unwrap();
    let work = Work {
        memory: MiB(160),
        fill: MiB(48),
        ..Work::default()
    };
    scene.boot(&[("web", 0)], &work).await.unwrap();
    let id = scene.id("web").unwrap();
    // Long enough to be met, short enough to end while the coordinator is away.
    let policy = godwit_tests::scene::slow(40 << 20);
    let mark = scene.cluster.events.mark();
    let (task, migration) = scene.begin_move("web", 1, policy).await.unwrap();
    let events = &scene.cluster.events;
    let phase = godwit_shared::model::MigrationPhase::Precopy;
    events.phase(mark, migration, phase, SETTLE).await.unwrap();
    scene.cluster.coordinator.kill();
    let cluster = &scene.cluster;
    wait::until("the move without a coordinator", BOOT, || async {
        Ok(Some(cluster.runs_once_on(id, 1)?))
    })
    .await
    .unwrap();
    scene.cluster.restart_coordinator().await.unwrap();
    for node in 0..2 {
        scene
            .cluster
            .wait_health(node, NodeHealth::Up)
            .await
            .unwrap();
    }
    let ended = scene.cluster.api.succeed(task.id, SETTLE).await.unwrap();
    assert_eq!(ended.migration, Some(migration));
    scene.arrived("web", 1, migration).await.unwrap();
    scene.cluster.nothing_left(id, 0, SETTLE).await.unwrap();
    scene.pages_intact("web").await.unwrap();
    scene.move_to("web", 0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_killed_while_it_starts_guests_starts_each_once() {
    let mut scene = Scene::start(ClusterOptions::nodes(2)).await.unwrap();
    let work = Work {
        memory: MiB(96),
        fill: MiB::ZERO,
        ..Work::default()
    };
    let api = scene.cluster.api.clone();
    let mut tasks = Vec::new();
    for number in 0..4 {
        let spec = godwit_tests::guest::spec(&format!("g{number}"), &work).unwrap();
        tasks.push(api.create(spec, true, None).await.unwrap());
    }
    scene.cluster.restart_coordinator().await.unwrap();
    for task in &tasks {
        assert!(api.ended(task.id, BOOT).await.unwrap().state.is_final());
    }
    for view in api.vms().await.unwrap() {
        let qemus = scene.cluster.qemus_of(view.id).len();
        let expected = usize::from(view.state.has_process());
        assert_eq!(qemus, expected, "{} is {}", view.name, view.state);
        assert_eq!(view.state, DomainState::Running, "{}", view.name);
    }
}
