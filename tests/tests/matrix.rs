//! Faults at every step of a migration, with real daemons and real guests:
//! afterwards the guest runs exactly once, on the right node, uninterrupted
//! (or, where its QEMU was killed, is shown as crashed and starts again), nothing
//! is left on the other, and it can be moved.
//!
//! `GODWIT_MATRIX=target.after_cont` runs only cases whose name has that in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "what was run belongs into the log")]

use std::time::{Duration, Instant};

use godwit_node::fault::POINTS;
use godwit_shared::model::DomainState;
use godwit_tests::fault::Moment;
use godwit_tests::guest::Work;
use godwit_tests::harness::ClusterOptions;
use godwit_tests::matrix::{Fault, Party, case};
use godwit_tests::scene::{SETTLE, Scene};
use godwit_tests::wait;
use rustix::process::Signal;

/// Longer than a node waits for QEMU's answer.
const HANGS: Duration = Duration::from_secs(30);

async fn scene(work: &Work) -> Scene {
    let options = ClusterOptions::nodes(2).relayed();
    let mut scene = Scene::start(options).await.unwrap();
    scene.boot(&[("web", 0)], work).await.unwrap();
    scene
}

/// A daemon that does not read the console in time lets QEMU's socket fill up,
/// after some 270 bytes; QEMU then logs a byte at each try to send it.
fn quiet() -> Work {
    Work {
        tick_ms: 300,
        ..Work::default()
    }
}

/// Every point with each of these faults, on one guest that travels.
async fn every_point(faults: &[Fault]) {
    every_point_with(faults, &Work::default()).await;
}

async fn every_point_with(faults: &[Fault], work: &Work) {
    let wanted = std::env::var("GODWIT_MATRIX").unwrap_or_default();
    let mut scene = scene(work).await;
    let cases = faults
        .iter()
        .flat_map(|fault| POINTS.map(|point| (*fault, point)));
    let (mut run, mut broken) = (0, Vec::new());
    for (fault, point) in cases.filter(|(fault, point)| fault.applies(point)) {
        let name = format!("{fault:?} at {point}");
        if !name.contains(&wanted) {
            continue;
        }
        let began = Instant::now();
        let done = case(&mut scene, "web", fault, point).await;
        run += 1;
        let took = began.elapsed();
        if let Err(error) = done {
            eprintln!("{name}: WRONG after {took:?}: {error:#}");
            // What it left behind is not known: the others get a new cluster.
            broken.push(format!("{name}: {error:#}"));
            assert!(wanted.is_empty(), "{broken:#?}");
            scene = self::scene(work).await;
        } else {
            eprintln!("{name}: {:?}, {took:?}", fault.end(point));
        }
    }
    eprintln!("{run} cases");
    assert!(broken.is_empty(), "{broken:#?}");
    let (_, at) = scene.whereabouts("web").await.unwrap();
    scene.move_to("web", 1 - at).await.unwrap();
    scene.pages_intact("web").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_killed_at_every_point() {
    let killed = [Party::SourceDaemon, Party::TargetDaemon, Party::Coordinator];
    every_point(&killed.map(Fault::Kill)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_cut_at_every_point() {
    every_point(&[Fault::CutPath, Fault::CutOff]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_frozen_at_every_point() {
    let frozen = [Party::SourceDaemon, Party::TargetDaemon];
    every_point_with(&frozen.map(Fault::Freeze), &quiet()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_frozen_at_every_point() {
    every_point(&[Fault::Freeze(Party::Coordinator)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemus_killed_at_every_point() {
    every_point(&[Party::SourceQemu, Party::TargetQemu].map(Fault::Kill)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemus_frozen_at_every_point() {
    let frozen = [Party::SourceQemu, Party::TargetQemu];
    every_point_with(&frozen.map(Fault::Freeze), &quiet()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_qemu_frozen_beyond_every_deadline_is_shown_and_hinders_nobody() {
    let mut scene = Scene::start(ClusterOptions::nodes(2)).await.unwrap();
    let guests = [("web", 0), ("other", 0)];
    scene.boot(&guests, &Work::default()).await.unwrap();
    let id = scene.id("web").unwrap();
    let pid = scene.cluster.runs_once_on(id, 0).unwrap();
    let met = scene.meet("web", 1, Moment::Middle).await.unwrap();
    scene.cluster.signal_qemu(pid, Signal::STOP).unwrap();
    // It cannot answer that either.
    let cancelled = scene.cluster.api.cancel_migration(met.migration).await;
    cancelled.unwrap();
    let silent = wait::until("web unresponsive", HANGS, || async {
        let vm = scene.cluster.api.vm("web").await?;
        Ok((vm.state == DomainState::Unresponsive).then_some(()))
    });
    silent.await.unwrap();
    scene.move_to("other", 1).await.unwrap();
    scene.move_to("other", 0).await.unwrap();
    scene.cluster.signal_qemu(pid, Signal::CONT).unwrap();
    let ended = scene.end_of(&met, Instant::now(), SETTLE).await.unwrap();
    eprintln!("frozen beyond every deadline: {}", ended.0.phase);
    scene.runs_on("web", 0).await.unwrap();
    scene.cluster.nothing_left(id, 1, SETTLE).await.unwrap();
    scene.pages_intact("web").await.unwrap();
    // And it can still be moved.
    scene.move_to("web", 1).await.unwrap();
}
