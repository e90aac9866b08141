//! Everything that can go wrong with a migration, at its start, in the middle
//! and in the switchover. Afterwards the right guest runs on the right node,
//! exactly once, nothing is left on the other, and the task says why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "measured numbers belong into the log")]

use std::time::{Duration, Instant};

use godwit_shared::api::{MigrateRequest, NodeHealth, TaskState};
use godwit_shared::model::{
    DomainState, ExitReason, LifecycleCommand, MiB, MigrationPhase, Problem, codes,
};
use godwit_tests::api::Refusal;
use godwit_tests::fault::Moment;
use godwit_tests::guest::Work;
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::{BOOT, SETTLE, Scene};
use godwit_tests::wait;
use rustix::process::Signal;

/// From a silent cut until the guest is confirmed running on its source.
const CUT: Duration = Duration::from_secs(1);
/// The same for a killed daemon or a killed QEMU on the target.
const KILLED: Duration = Duration::from_millis(100);
/// A part of the 100 ms is this machine's: two cores that also run the guest
/// and the harness. So the median of a few decides.
const REPEATS: usize = 5;

/// Enough memory that differs from page to page that a switchover takes a while.
fn work() -> Work {
    Work {
        memory: MiB(160),
        fill: MiB(64),
        rate: MiB(2),
        ..Work::default()
    }
}

async fn scene(options: ClusterOptions) -> Scene {
    let mut scene = Scene::start(options).await.unwrap();
    scene.boot(&[("web", 0)], &work()).await.unwrap();
    scene
}

async fn finish(mut scene: Scene) {
    scene.pages_intact("web").await.unwrap();
    scene.counts_on("web").await.unwrap();
    // And it can still be moved.
    scene.move_to("web", 1).await.unwrap();
    scene.pages_intact("web").await.unwrap();
}

/// The problem says that the peer was lost: at the very start it may not even
/// have been reached.
fn assert_lost(moment: Moment, problem: &Problem) {
    let unreached = moment == Moment::Start && problem.code == codes::NODE_UNREACHABLE;
    assert!(
        unreached || problem.code == codes::CONNECTION_LOST,
        "{moment:?}: {problem:?}"
    );
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_cut_of_the_migrations_path_cancels_it() {
    let mut scene = scene(ClusterOptions::nodes(2).relayed()).await;
    for moment in Moment::ALL {
        let (view, took) = scene
            .survives(
                "web",
                (0, 1),
                moment,
                async |scene, _| {
                    scene.cluster.nodes[1].cut(false)?;
                    Ok(Instant::now())
                },
                async |scene| {
                    scene.cluster.nodes[1].restore();
                    Ok(())
                },
            )
            .await
            .unwrap_or_else(|e| panic!("{moment:?}: {e:#}"));
        let failure = view.failure.unwrap();
        eprintln!(
            "silent cut, {moment:?}: over in {took:?}; {}",
            failure.problem
        );
        assert_eq!(view.phase, MigrationPhase::Failed);
        assert_lost(moment, &failure.problem);
        assert!(took <= CUT, "{moment:?}: confirmed after {took:?}");
    }
    finish(scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_cut_off_from_everybody_cancels_it() {
    let mut scene = scene(ClusterOptions::nodes(2).relayed()).await;
    let (_, took) = scene
        .survives(
            "web",
            (0, 1),
            Moment::Middle,
            async |scene, _| {
                scene.cluster.nodes[1].cut(true)?;
                Ok(Instant::now())
            },
            async |scene| {
                scene.cluster.nodes[1].restore();
                Ok(())
            },
        )
        .await
        .unwrap();
    eprintln!("target cut off from everybody: over in {took:?}");
    assert!(took <= CUT, "confirmed after {took:?}");
    finish(scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_target_daemon_cancels_it() {
    let mut scene = scene(ClusterOptions::nodes(2)).await;
    for moment in Moment::ALL {
        kill_daemon(&mut scene, moment).await;
    }
    finish(scene).await;
}

/// Kills the target's daemon at the moment; returns how long the guest's node
/// took to have it over with. The daemon is back afterwards.
async fn kill_daemon(scene: &mut Scene, moment: Moment) -> Duration {
    let (view, took) = scene
        .survives(
            "web",
            (0, 1),
            moment,
            async |scene, _| {
                let since = Instant::now();
                scene.cluster.nodes[1].kill();
                Ok(since)
            },
            async |scene| scene.cluster.nodes[1].restart().await,
        )
        .await
        .unwrap_or_else(|e| panic!("{moment:?}: {e:#}"));
    let failure = view.failure.unwrap();
    eprintln!(
        "target daemon killed, {moment:?}: over in {took:?}; {}",
        failure.problem
    );
    assert_lost(moment, &failure.problem);
    scene.cluster.wait_health(1, NodeHealth::Up).await.unwrap();
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_target_qemu_cancels_it() {
    // This is also what the target's kernel does when it runs out of memory.
    let mut scene = scene(ClusterOptions::nodes(2)).await;
    for moment in Moment::ALL {
        kill_incoming(&mut scene, moment).await;
    }
    finish(scene).await;
}

/// The same for the QEMU that receives.
async fn kill_incoming(scene: &mut Scene, moment: Moment) -> Duration {
    let id = scene.id("web").unwrap();
    let (view, took) = scene
        .survives(
            "web",
            (0, 1),
            moment,
            async |scene, _| {
                let cluster = &scene.cluster;
                let run = format!("{}/", cluster.nodes[1].run.display());
                let incoming = wait::until("the target's QEMU", SETTLE, || async {
                    let qemus = cluster.qemus_of(id).into_iter();
                    Ok(qemus.into_iter().find(|qemu| qemu.mentions(&run)))
                });
                let pid = incoming.await?.pid;
                let since = Instant::now();
                cluster.signal_qemu(pid, Signal::KILL)?;
                Ok(since)
            },
            async |_| Ok(()),
        )
        .await
        .unwrap_or_else(|e| panic!("{moment:?}: {e:#}"));
    let failure = view.failure.unwrap();
    eprintln!(
        "target QEMU killed, {moment:?}: over in {took:?}; {}",
        failure.problem
    );
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_peer_is_over_with_at_once() {
    let mut scene = Scene::start(ClusterOptions::nodes(2)).await.unwrap();
    // Some seconds of memory at full speed.
    let work = Work {
        memory: MiB(640),
        fill: MiB(480),
        rate: MiB(2),
        ..Work::default()
    };
    scene.boot(&[("web", 0)], &work).await.unwrap();
    scene.filled("web").await.unwrap();
    let (mut daemons, mut qemus) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        daemons.push(kill_daemon(&mut scene, Moment::FullSpeed).await);
        qemus.push(kill_incoming(&mut scene, Moment::FullSpeed).await);
    }
    scene.pages_intact("web").await.unwrap();
    for (what, times) in [("daemon", daemons), ("QEMU", qemus)] {
        let median = median(times);
        eprintln!("target {what} killed: over in {median:?} (median of {REPEATS})");
        assert!(median <= KILLED, "{what}: confirmed after {median:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_cancel_leaves_the_guest_where_it_is() {
    let mut scene = scene(ClusterOptions::nodes(2)).await;
    for moment in Moment::ALL {
        let (view, took) = scene
            .survives(
                "web",
                (0, 1),
                moment,
                async |scene, met| {
                    let since = Instant::now();
                    // One that is granted already is refused; the move then succeeds.
                    let asked = scene.cluster.api.cancel_migration(met.migration).await;
                    if let Err(error) = asked {
                        error.downcast::<Refusal>()?;
                    }
                    Ok(since)
                },
                async |_| Ok(()),
            )
            .await
            .unwrap_or_else(|e| panic!("{moment:?}: {e:#}"));
        eprintln!("cancelled, {moment:?}: over in {took:?}");
        assert_eq!(view.phase, MigrationPhase::Cancelled);
        let task = scene.cluster.api.task(view.task.unwrap()).await.unwrap();
        assert_eq!(task.state, TaskState::Cancelled);
    }
    finish(scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_source_qemu_ends_the_guest_and_leaves_nothing() {
    let mut scene = scene(ClusterOptions::nodes(2)).await;
    for moment in Moment::ALL {
        let id = scene.id("web").unwrap();
        let pid = scene.cluster.runs_once_on(id, 0).unwrap();
        let met = scene.meet("web", 1, moment).await.unwrap();
        scene.cluster.signal_qemu(pid, Signal::KILL).unwrap();
        let (view, took) = scene.end_of(&met, Instant::now(), SETTLE).await.unwrap();
        assert_eq!(view.phase, MigrationPhase::Failed, "{moment:?}");
        let task = scene.cluster.api.ended(met.task.id, SETTLE).await.unwrap();
        assert_eq!(task.state, TaskState::Failed);
        let problem = task.problem.unwrap();
        eprintln!("source QEMU killed, {moment:?}: over in {took:?}; {problem}");
        assert_eq!(problem.code, codes::QEMU_GONE, "{problem}");
        let vm = wait::until("the end of web", SETTLE, || async {
            let vm = scene.cluster.api.vm("web").await?;
            Ok((vm.state == DomainState::Stopped && vm.migration.is_none()).then_some(vm))
        })
        .await
        .unwrap();
        assert_eq!(vm.node, Some(scene.cluster.name(0)));
        assert!(
            matches!(vm.exit, Some(ExitReason::Crashed { .. })),
            "{:?}",
            vm.exit
        );
        scene.cluster.nothing_left(id, 1, SETTLE).await.unwrap();
        assert!(scene.cluster.qemus_of(id).is_empty());
        scene.begin_anew("web").unwrap();
        let api = &scene.cluster.api;
        api.done("web", LifecycleCommand::Start, BOOT)
            .await
            .unwrap();
        scene.visit("web").await.unwrap();
        scene.counts_past("web", 0, BOOT).await.unwrap();
    }
    finish(scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_without_memory_refuses() {
    let memory = [MiB(1024), MiB(256)];
    let options = ClusterOptions::nodes(2).memory(&memory);
    let mut scene = Scene::start(options).await.unwrap();
    scene
        .boot(&[("web", 0), ("other", 1)], &work())
        .await
        .unwrap();
    let request = MigrateRequest {
        target: Some(scene.cluster.name(1)),
        ..MigrateRequest::default()
    };
    let problem = match scene.cluster.api.migrate("web", &request).await {
        Ok(task) => {
            let ended = scene.cluster.api.ended(task.id, SETTLE).await.unwrap();
            assert_eq!(ended.state, TaskState::Failed);
            ended.problem.unwrap()
        }
        Err(error) => error.downcast::<Refusal>().unwrap().problem,
    };
    let text = serde_json::to_string(&problem).unwrap();
    assert!(text.contains(codes::INSUFFICIENT_RESOURCES), "{text}");
    assert!(text.contains("node-2"), "it names the node: {text}");
    let id = scene.id("web").unwrap();
    scene.cluster.nothing_left(id, 1, SETTLE).await.unwrap();
    scene.runs_on("web", 0).await.unwrap();
    scene.runs_on("other", 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_source_daemon_strands_nothing() {
    let mut scene = scene(ClusterOptions::nodes(2)).await;
    // Not while QEMU connects: 10.0 cannot move a guest any more whose channels
    // break in those milliseconds (docs/migration.md), and nobody is left here
    // who could hold them open.
    for moment in [Moment::Start, Moment::Middle, Moment::Switchover] {
        let met = scene.meet("web", 1, moment).await.unwrap();
        scene.cluster.nodes[0].kill();
        let id = scene.id("web").unwrap();
        // The target gives it up by itself while the source is away, unless it
        // holds the grant already.
        scene.cluster.nodes[0].restart().await.unwrap();
        scene.cluster.wait_health(0, NodeHealth::Up).await.unwrap();
        let task = scene.cluster.api.ended(met.task.id, SETTLE).await.unwrap();
        if task.state == TaskState::Succeeded {
            scene.arrived("web", 1, met.migration).await.unwrap();
            scene.cluster.nothing_left(id, 0, SETTLE).await.unwrap();
            scene.move_to("web", 0).await.unwrap();
        } else {
            eprintln!("source daemon killed, {moment:?}: {:?}", task.problem);
            scene.cluster.nothing_left(id, 1, SETTLE).await.unwrap();
            scene.runs_on("web", 0).await.unwrap();
        }
    }
    finish(scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_link_is_no_lost_link() {
    use godwit_tests::relay::Fault;
    let mut scene = scene(ClusterOptions::nodes(2).relayed()).await;
    for (what, fault) in [
        ("2 % loss", Fault::loss(20)),
        ("20 ms each way", Fault::delay(Duration::from_millis(20))),
    ] {
        for node in &scene.cluster.nodes {
            node.relay.as_ref().unwrap().set_both(fault);
        }
        let began = Instant::now();
        let there = scene.move_to("web", 1).await.unwrap();
        let back = scene.move_to("web", 0).await.unwrap();
        eprintln!(
            "{what}: there and back in {:?}, blackouts {:?} and {:?}",
            began.elapsed(),
            there.blackout,
            back.blackout
        );
    }
    for node in &scene.cluster.nodes {
        node.restore();
    }
    finish(scene).await;
}
