//! Faults at every step of a migration, with real daemons and real guests:
//! afterwards the guest runs exactly once, on the right node, uninterrupted,
//! nothing is left on the other, and it can be moved.
//!
//! `GODWIT_MATRIX=target.after_cont` runs only cases whose name has that in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "what was run belongs into the log")]

use std::time::Instant;

use godwit_node::fault::POINTS;
use godwit_tests::guest::Work;
use godwit_tests::harness::ClusterOptions;
use godwit_tests::matrix::{Fault, Party, case};
use godwit_tests::scene::Scene;

async fn scene() -> Scene {
    let options = ClusterOptions::nodes(2).relayed();
    let mut scene = Scene::start(options).await.unwrap();
    scene.boot(&[("web", 0)], &Work::default()).await.unwrap();
    scene
}

/// Every point with each of these faults, on one guest that travels.
async fn every_point(faults: &[Fault]) {
    let wanted = std::env::var("GODWIT_MATRIX").unwrap_or_default();
    let mut scene = scene().await;
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
            scene = self::scene().await;
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
