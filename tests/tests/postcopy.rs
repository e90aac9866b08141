//! Post-copy: the guest runs on the target while its memory is still coming.
//! There is no way back then, so a lost connection pauses it, and the nodes
//! bring it to its end by themselves when they reach each other again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "measured numbers belong into the log")]

use std::path::Path;
use std::time::{Duration, Instant};

use godwit_shared::api::{NodeHealth, TaskState};
use godwit_shared::model::{
    BytesPerSec, DomainState, MiB, MigrationPhase, MigrationPolicy, Millis, Postcopy,
    TimeoutAction, codes,
};
use godwit_tests::bare::Qmp;
use godwit_tests::fault::Met;
use godwit_tests::guest::Work;
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::{MOVE, SETTLE, Scene};
use godwit_tests::wait;
use serde_json::json;

/// Without an answer for so long, QEMU's main loop is taken to hang. It reads the
/// memory of these guests in a tenth of that.
const HANGS: Duration = Duration::from_secs(2);

/// A guest that dirties more than the link of these tests takes.
fn work() -> Work {
    Work {
        memory: MiB(144),
        fill: MiB(48),
        rate: MiB(32),
        ..Work::default()
    }
}

async fn scene(options: ClusterOptions) -> Scene {
    let mut scene = Scene::start(options).await.unwrap();
    scene.boot(&[("web", 0)], &work()).await.unwrap();
    scene.filled("web").await.unwrap();
    scene
}

/// A link on which the rest of the memory takes some seconds.
fn slow(postcopy: Postcopy) -> MigrationPolicy {
    MigrationPolicy {
        bandwidth: Some(BytesPerSec(16 << 20)),
        auto_converge: false,
        postcopy,
        ..MigrationPolicy::default()
    }
}

/// Begins a move and waits until the guest runs on the target, with most of its
/// memory still on the source.
async fn pulling(scene: &Scene, to: usize) -> Met {
    let mark = scene.cluster.events.mark();
    let moved = scene.begin_move("web", to, slow(Postcopy::Always));
    let (task, migration) = moved.await.unwrap();
    let events = &scene.cluster.events;
    let phase = MigrationPhase::Postcopy;
    let met = events.phase(mark, migration, phase, MOVE).await.unwrap();
    Met {
        task,
        migration,
        mark,
        at: met.at,
    }
}

/// The move has to succeed, with the guest unharmed on the target alone.
async fn succeeds(scene: &mut Scene, met: &Met, to: usize) {
    let task = scene.cluster.api.succeed(met.task.id, MOVE).await.unwrap();
    assert_eq!(task.state, TaskState::Succeeded);
    let view = scene.arrived("web", to, met.migration).await.unwrap();
    eprintln!("blackout {:?}, {:?}", view.blackout, view.progress);
    scene.pages_intact("web").await.unwrap();
    let id = scene.id("web").unwrap();
    let left = scene.cluster.nothing_left(id, 1 - to, SETTLE).await;
    left.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_never_converges_moves_by_post_copy() {
    let mut scene = scene(ClusterOptions::nodes(2)).await;
    for (to, postcopy) in [(1, Postcopy::Always), (0, Postcopy::Fallback)] {
        let mark = scene.cluster.events.mark();
        let moved = scene.begin_move("web", to, slow(postcopy)).await;
        let (task, migration) = moved.unwrap();
        let events = &scene.cluster.events;
        let phase = MigrationPhase::Postcopy;
        let met = events.phase(mark, migration, phase, MOVE).await.unwrap();
        // The guest counts there while its memory is on the way.
        let vm = scene.cluster.api.vm("web").await.unwrap();
        assert_eq!(vm.node, Some(scene.cluster.name(to)), "{postcopy:?}");
        assert_eq!(vm.state, DomainState::Running);
        let met = Met {
            task,
            migration,
            mark,
            at: met.at,
        };
        succeeds(&mut scene, &met, to).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_pauses_it_and_the_nodes_recover_it() {
    let mut scene = scene(ClusterOptions::nodes(2).relayed()).await;
    let met = pulling(&scene, 1).await;
    for _ in 0..2 {
        let cut = Instant::now();
        let mark = scene.cluster.events.mark();
        scene.cluster.nodes[1].cut(false).unwrap();
        let events = &scene.cluster.events;
        let phase = MigrationPhase::PostcopyPaused;
        let paused = events.phase(mark, met.migration, phase, SETTLE).await;
        let noticed = paused.unwrap().at.duration_since(cut);
        scene.cluster.nodes[1].restore();
        let phase = MigrationPhase::Postcopy;
        let again = events.phase(mark, met.migration, phase, SETTLE).await;
        eprintln!(
            "paused after {noticed:?}, on its way again after {:?}",
            again.unwrap().at.duration_since(cut)
        );
    }
    succeeds(&mut scene, &met, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_daemon_that_dies_in_post_copy_finishes_it_when_it_is_back() {
    let mut scene = scene(ClusterOptions::nodes(2)).await;
    let met = pulling(&scene, 1).await;
    let asked = scene.cluster.api.cancel_migration(met.migration).await;
    assert!(asked.is_err(), "there is no way back");
    scene.cluster.nodes[0].kill();
    scene.cluster.nodes[0].restart().await.unwrap();
    scene.cluster.wait_health(0, NodeHealth::Up).await.unwrap();
    succeeds(&mut scene, &met, 1).await;
}

/// Has QEMU read all of its guest's memory in its main loop, which then hangs in
/// the first page that is still on the source; it often hangs already. Its daemon
/// is not running.
async fn hang_main_loop(qmp: &Path) {
    let read = async {
        let mut qmp = Qmp::connect(qmp).await?;
        let size = work().memory.bytes().0;
        let memory = json!({ "val": 0, "size": size, "filename": "/dev/null" });
        qmp.execute("pmemsave", memory).await
    };
    let answer = tokio::time::timeout(HANGS, read).await;
    assert!(answer.is_err(), "the main loop does not hang: {answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_daemon_that_dies_while_it_is_broken_recovers_it() {
    let mut scene = scene(ClusterOptions::nodes(2).relayed()).await;
    let met = pulling(&scene, 1).await;
    let mark = scene.cluster.events.mark();
    scene.cluster.nodes[1].cut(false).unwrap();
    let events = &scene.cluster.events;
    let phase = MigrationPhase::PostcopyPaused;
    let paused = events.phase(mark, met.migration, phase, SETTLE).await;
    paused.unwrap();
    scene.cluster.nodes[1].kill();
    let id = scene.id("web").unwrap();
    let run = scene.cluster.nodes[1].run.join(id.to_string());
    hang_main_loop(&run.join("qmp.sock")).await;
    scene.cluster.nodes[1].restart().await.unwrap();
    let api = &scene.cluster.api;
    wait::until("no new QMP session", SETTLE, || async {
        let vm = api.vm("web").await?;
        Ok((vm.state == DomainState::Unresponsive).then_some(()))
    })
    .await
    .unwrap();
    scene.cluster.nodes[1].restore();
    succeeds(&mut scene, &met, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_limit_has_its_action() {
    let mut scene = scene(ClusterOptions::nodes(2)).await;
    let limited = |timeout_action| MigrationPolicy {
        timeout: Some(Millis(2_000)),
        timeout_action,
        ..slow(Postcopy::Never)
    };
    let (task, _) = scene
        .begin_move("web", 1, limited(TimeoutAction::Cancel))
        .await
        .unwrap();
    let ended = scene.cluster.api.ended(task.id, MOVE).await.unwrap();
    assert_eq!(ended.problem.unwrap().code, codes::TIMEOUT);
    scene.runs_on("web", 0).await.unwrap();
    let actions = [
        (1, TimeoutAction::Suspend),
        (0, TimeoutAction::Force),
        (1, TimeoutAction::Postcopy),
    ];
    for (to, action) in actions {
        let began = Instant::now();
        let moved = scene.begin_move("web", to, limited(action)).await;
        let (task, migration) = moved.unwrap();
        scene.cluster.api.succeed(task.id, MOVE).await.unwrap();
        let view = scene.arrived("web", to, migration).await.unwrap();
        eprintln!(
            "{action:?}: done after {:?}, blackout {:?}",
            began.elapsed(),
            view.blackout
        );
        scene.pages_intact("web").await.unwrap();
    }
}
