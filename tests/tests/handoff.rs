//! The path is cut in the handoff itself: the right was granted, and nobody on
//! the source knows whether the grant arrived. It must neither run the guest
//! nor give it up before it has the target's word.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "measured numbers belong into the log")]

use std::time::{Duration, Instant};

use godwit_shared::model::{DomainState, DoubtDecision, MigrationPhase, MigrationPolicy, codes};
use godwit_tests::api::Refusal;
use godwit_tests::fault::Met;
use godwit_tests::guest::Work;
use godwit_tests::harness::ClusterOptions;
use godwit_tests::relay::{Direction, Fault};
use godwit_tests::scene::{SETTLE, Scene};
use godwit_tests::wait;

/// Each way. The event of the handoff has to be here before the grant is there.
const DELAY: Duration = Duration::from_millis(60);
/// A grant that overtook the cut: once more.
const TRIES: usize = 5;

async fn scene() -> Scene {
    let options = ClusterOptions::nodes(2).relayed();
    let mut scene = Scene::start(options).await.unwrap();
    scene.boot(&[("web", 0)], &Work::default()).await.unwrap();
    scene
}

/// Begins a move over a slow path and waits until the right is granted.
async fn granted(scene: &Scene) -> Met {
    for node in &scene.cluster.nodes {
        node.relay.as_ref().unwrap().set_both(Fault::delay(DELAY));
    }
    let mark = scene.cluster.events.mark();
    let moved = scene.begin_move("web", 1, MigrationPolicy::default());
    let (task, migration) = moved.await.unwrap();
    let phase = MigrationPhase::Handoff;
    let events = &scene.cluster.events;
    let met = events.phase(mark, migration, phase, SETTLE).await.unwrap();
    Met {
        task,
        migration,
        mark,
        at: met.at,
    }
}

fn restore(scene: &Scene) {
    for node in &scene.cluster.nodes {
        node.restore();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_is_lost_comes_back() {
    let mut scene = scene().await;
    for _ in 0..TRIES {
        let met = granted(&scene).await;
        scene.cluster.nodes[1].cut(false).unwrap();
        let since = Instant::now();
        let (view, took) = scene.end_of(&met, since, SETTLE).await.unwrap();
        restore(&scene);
        if view.phase == MigrationPhase::Completed {
            scene.arrived("web", 1, met.migration).await.unwrap();
            scene.move_to("web", 0).await.unwrap();
            continue;
        }
        let failure = view.failure.unwrap();
        eprintln!(
            "grant lost: back on the source after {took:?}; {}",
            failure.problem
        );
        assert_eq!(failure.phase, MigrationPhase::Handoff);
        assert!(took < Duration::from_secs(2), "{took:?}");
        scene.runs_on("web", 0).await.unwrap();
        let vm = scene.cluster.api.vm("web").await.unwrap();
        assert!(
            vm.epoch.0 >= 3,
            "the granted right was skipped: {}",
            vm.epoch
        );
        let id = scene.id("web").unwrap();
        scene.cluster.nothing_left(id, 1, SETTLE).await.unwrap();
        scene.pages_intact("web").await.unwrap();
        scene.move_to("web", 1).await.unwrap();
        return;
    }
    panic!("the grant was faster than the cut {TRIES} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_is_asked_for() {
    let mut scene = scene().await;
    let met = granted(&scene).await;
    let relay = scene.cluster.nodes[1].relay.as_ref().unwrap();
    relay.set(Direction::Outward, Fault::CUT);
    let since = Instant::now();
    let (view, took) = scene.end_of(&met, since, SETTLE).await.unwrap();
    eprintln!(
        "answer lost: settled after {took:?}, blackout {:?}",
        view.blackout
    );
    restore(&scene);
    scene.arrived("web", 1, met.migration).await.unwrap();
    let id = scene.id("web").unwrap();
    scene.cluster.nothing_left(id, 0, SETTLE).await.unwrap();
    scene.pages_intact("web").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_doubt_nobody_runs_twice_until_somebody_answers() {
    let mut scene = scene().await;
    let met = granted(&scene).await;
    scene.cluster.nodes[1].cut(true).unwrap();
    let events = &scene.cluster.events;
    let phase = MigrationPhase::InDoubt;
    let doubt = events.phase(met.mark, met.migration, phase, SETTLE).await;
    doubt.unwrap();
    let vm = scene.cluster.api.vm("web").await.unwrap();
    assert_eq!(vm.state, DomainState::InHandoff);
    // The daemon of the source has to remember what it granted.
    scene.cluster.nodes[0].restart().await.unwrap();
    let api = &scene.cluster.api;
    wait::until("the restarted source's word", SETTLE, || async {
        let vm = api.vm("web").await?;
        Ok((vm.node_up && vm.state == DomainState::InHandoff).then_some(()))
    })
    .await
    .unwrap();
    assert!(!api.task(met.task.id).await.unwrap().state.is_final());
    restore(&scene);
    let (view, _) = scene.end_of(&met, Instant::now(), SETTLE).await.unwrap();
    eprintln!("in doubt: {} after the path was back", view.phase);
    let at = usize::from(view.phase == MigrationPhase::Completed);
    if at == 1 {
        scene.visit("web").await.unwrap();
    }
    scene.runs_on("web", at).await.unwrap();
    let id = scene.id("web").unwrap();
    scene
        .cluster
        .nothing_left(id, 1 - at, SETTLE)
        .await
        .unwrap();
    scene.pages_intact("web").await.unwrap();
}

/// The target cannot be asked, and its operator has made sure that it is gone:
/// the guest runs on its source at a higher epoch, and whatever the target may
/// have begun ends when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_may_end_the_doubt() {
    let mut scene = scene().await;
    let met = granted(&scene).await;
    scene.cluster.nodes[1].cut(true).unwrap();
    let events = &scene.cluster.events;
    let phase = MigrationPhase::InDoubt;
    let doubt = events.phase(met.mark, met.migration, phase, SETTLE).await;
    doubt.unwrap();
    let api = scene.cluster.api.clone();
    let decision = DoubtDecision::RunOnSource;
    let unsure = api.resolve(met.migration, decision, "wbe").await;
    let refusal = unsure.unwrap_err().downcast::<Refusal>().unwrap();
    assert_eq!(refusal.problem.code, codes::CONFIRMATION_NEEDED);
    let decided = api.resolve(met.migration, decision, "web").await;
    let resolution = decided.unwrap().resolution.unwrap();
    assert_eq!(resolution.decision, decision);
    let (view, took) = scene.end_of(&met, Instant::now(), SETTLE).await.unwrap();
    eprintln!("decided: {} after {took:?}", view.phase);
    assert_eq!(view.phase, MigrationPhase::Failed);
    let resolved = scene
        .cluster
        .events
        .wait(met.mark, "the decision", SETTLE, |event| {
            event.kind == "migration.resolved"
        })
        .await;
    assert!(resolved.unwrap().event.message.starts_with("admin "));
    let vm = api.vm("web").await.unwrap();
    assert_eq!(vm.node, Some(scene.cluster.name(0)));
    assert!(vm.epoch.0 >= 3, "{}", vm.epoch);
    restore(&scene);
    let id = scene.id("web").unwrap();
    scene.cluster.nothing_left(id, 1, SETTLE).await.unwrap();
    scene.runs_on("web", 0).await.unwrap();
    scene.pages_intact("web").await.unwrap();
}
