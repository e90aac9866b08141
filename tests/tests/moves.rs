//! Real guests moved between nodes, until they are told apart by nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "measured numbers belong into the log")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures_util::future::try_join_all;
use godwit_shared::api::MigrateRequest;
use godwit_shared::model::{
    BytesPerSec, DomainState, LifecycleCommand, MiB, MigrationPhase, MigrationPolicy,
    MigrationTuning, codes,
};
use godwit_tests::api::Refusal;
use godwit_tests::guest::Work;
use godwit_tests::harness::{ClusterOptions, sweep};
use godwit_tests::scene::{MOVE, SETTLE, Scene, slow};

const MOVES: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_moves_back_and_forth_lose_nothing() {
    let mut scene = Scene::start(ClusterOptions::nodes(2)).await.unwrap();
    scene.boot(&[("web", 0)], &Work::default()).await.unwrap();
    let id = scene.id("web").unwrap();
    // Once there and back: what a first move creates is there from now on.
    scene.move_to("web", 1).await.unwrap();
    scene.move_to("web", 0).await.unwrap();
    let files = lasting_files(&scene);
    let (mut blackouts, mut counted_by_qemu) = (Vec::new(), Vec::new());
    for number in 0..MOVES {
        let (from, to) = (number % 2, (number + 1) % 2);
        let done = scene.move_to("web", to).await;
        let done = done.unwrap_or_else(|e| panic!("move {number}: {e:#}"));
        blackouts.push(done.blackout.expect("a measured blackout").0);
        let error = done.figures.clock_error_us.expect("both clocks compared");
        assert!(error < 20_000, "move {number}: the clocks to {error} µs");
        counted_by_qemu.push(done.figures.qemu_downtime.expect("QEMU's count").0);
        scene.cluster.nothing_left(id, from, SETTLE).await.unwrap();
    }
    scene.pages_intact("web").await.unwrap();
    scene.counts_on("web").await.unwrap();
    assert_eq!(lasting_files(&scene), files, "no file more, no file less");
    blackouts.sort_unstable();
    counted_by_qemu.sort_unstable();
    let median = blackouts[MOVES / 2];
    let counted = scene.count("web").unwrap();
    eprintln!(
        "{MOVES} moves: blackout median {median} ms (by QEMU's own count {} ms), worst {} ms; \
         counted {} to {} unbroken, longest gap by the guest's clock {} ms",
        counted_by_qemu[MOVES / 2],
        blackouts[MOVES - 1],
        counted.first,
        counted.last,
        counted.longest_gap_ms
    );
}

/// Files of all nodes, but for logs of the harness and the short words that a
/// target keeps about past migrations (they are bounded by age).
fn lasting_files(scene: &Scene) -> BTreeSet<PathBuf> {
    let nodes = scene.cluster.nodes.iter();
    nodes
        .flat_map(|node| [sweep::files(&node.state), sweep::files(&node.run)].concat())
        .filter(|path| !path.parent().is_some_and(|dir| dir.ends_with("migrations")))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_guests_move_at_once_between_three_nodes() {
    let mut scene = Scene::start(ClusterOptions::nodes(3)).await.unwrap();
    let names: Vec<String> = (1..=8).map(|n| format!("g{n}")).collect();
    let places: Vec<(&str, usize)> = names
        .iter()
        .enumerate()
        .map(|(index, name)| (name.as_str(), index % 3))
        .collect();
    let work = Work {
        memory: MiB(112),
        tick_ms: 50,
        fill: MiB(8),
        rate: MiB(1),
        ..Work::default()
    };
    scene.boot(&places, &work).await.unwrap();
    // Round one clockwise and counter-clockwise at once: every link both ways.
    let targets: Vec<usize> = (0..8).map(|n| (n % 3 + 1 + n % 2) % 3).collect();
    for targets in [
        targets.clone(),
        places.iter().map(|(_, node)| *node).collect(),
    ] {
        let began = std::time::Instant::now();
        let asked = places.iter().zip(&targets);
        let asked =
            asked.map(|((name, _), to)| scene.begin_move(name, *to, MigrationPolicy::default()));
        let moves = try_join_all(asked).await.unwrap();
        for (task, _) in &moves {
            scene.cluster.api.succeed(task.id, MOVE * 3).await.unwrap();
        }
        eprintln!("eight moves at once took {:?}", began.elapsed());
        for (((name, _), to), (_, migration)) in places.iter().zip(&targets).zip(&moves) {
            scene.arrived(name, *to, *migration).await.unwrap();
        }
    }
    for (name, at) in &places {
        scene.pages_intact(name).await.unwrap();
        scene.counts_on(name).await.unwrap();
        let id = scene.id(name).unwrap();
        for node in (0..3).filter(|node| node != at) {
            scene.cluster.nothing_left(id, node, SETTLE).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_guest_moves_and_stays_paused() {
    let mut scene = Scene::start(ClusterOptions::nodes(2)).await.unwrap();
    scene.boot(&[("web", 0)], &Work::default()).await.unwrap();
    let api = scene.cluster.api.clone();
    api.done("web", LifecycleCommand::Pause, SETTLE)
        .await
        .unwrap();
    let policy = MigrationPolicy {
        channels: 0,
        ..MigrationPolicy::default()
    };
    let (task, _) = scene.begin_move("web", 1, policy).await.unwrap();
    api.succeed(task.id, MOVE).await.unwrap();
    let view = api.vm("web").await.unwrap();
    assert_eq!(view.state, DomainState::Paused);
    assert_eq!(view.node, Some(scene.cluster.name(1)));
    scene.visit("web").await.unwrap();
    api.done("web", LifecycleCommand::Resume, SETTLE)
        .await
        .unwrap();
    scene.runs_on("web", 1).await.unwrap();
    scene.pages_intact("web").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_finds_blockers_and_moves_nothing() {
    let memory = [MiB(1024), MiB(1024), MiB(96)];
    let options = ClusterOptions::nodes(3).memory(&memory);
    let mut scene = Scene::start(options).await.unwrap();
    scene.boot(&[("web", 0)], &Work::default()).await.unwrap();
    let api = &scene.cluster.api;
    let to = |index: usize| MigrateRequest {
        target: Some(scene.cluster.name(index)),
        ..MigrateRequest::default()
    };
    let fits = api.dry_run("web", &to(1)).await.unwrap();
    assert_eq!(
        (fits.target, fits.blockers.len()),
        (scene.cluster.name(1), 0)
    );
    // Either the coordinator knows already, or the node says so.
    match api.dry_run("web", &to(2)).await {
        Ok(found) => assert_eq!(found.blockers[0].code, codes::INSUFFICIENT_RESOURCES),
        Err(error) => {
            let refusal = error.downcast_ref::<Refusal>().expect("a refusal");
            let problem = serde_json::to_string(&refusal.problem).unwrap();
            assert!(problem.contains(codes::INSUFFICIENT_RESOURCES), "{problem}");
        }
    }
    let same = api.migrate("web", &to(0)).await.unwrap_err();
    let same = same.downcast_ref::<Refusal>().expect("a refusal");
    assert_eq!(same.problem.code, codes::STATE_CONFLICT, "{}", same.problem);
    let id = scene.id("web").unwrap();
    for node in [1, 2] {
        assert!(scene.cluster.remains(id, node).is_empty());
    }
    scene.runs_on("web", 0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_changed_while_it_runs() {
    let mut scene = Scene::start(ClusterOptions::nodes(2)).await.unwrap();
    scene.boot(&[("web", 0)], &Work::default()).await.unwrap();
    let mark = scene.cluster.events.mark();
    // Minutes, if nobody did anything.
    let moved = scene.begin_move("web", 1, slow(256 << 10)).await;
    let (task, migration) = moved.unwrap();
    let events = &scene.cluster.events;
    let phase = MigrationPhase::Precopy;
    events.phase(mark, migration, phase, SETTLE).await.unwrap();
    let switch = MigrationTuning {
        postcopy: true,
        ..MigrationTuning::default()
    };
    let api = scene.cluster.api.clone();
    let refusal = api.tune(migration, &switch).await.unwrap_err();
    let refusal = refusal.downcast_ref::<Refusal>().expect("a refusal");
    assert_eq!(refusal.problem.field.as_deref(), Some("postcopy"));
    let faster = MigrationTuning {
        bandwidth: Some(BytesPerSec::ZERO),
        ..MigrationTuning::default()
    };
    api.tune(migration, &faster).await.unwrap();
    api.succeed(task.id, MOVE).await.unwrap();
    scene.arrived("web", 1, migration).await.unwrap();
    scene.pages_intact("web").await.unwrap();
}
