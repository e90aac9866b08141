//! A node with real guests is drained: what blocks it is told at the start, an
//! abort leaves the rest where it is, a coordinator that is killed goes on, and a
//! return and a rebalance bring the cluster back into shape.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;

use godwit_shared::api::{AbortRequest, PlanState, PlanView, StepState};
use godwit_shared::model::{LifecycleCommand, MiB, MigrationPhase, PlanId, Problem, VmSpec, codes};
use godwit_tests::events::Mark;
use godwit_tests::guest::{self, Work};
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::{MOVE, SETTLE, Scene};
use godwit_tests::wait;

const GUESTS: [&str; 3] = ["one", "two", "three"];
/// Some seconds for each guest.
const RATE: &str = "24MiB/s";

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

async fn godwit(scene: &Scene, line: &str) -> Output {
    let words: Vec<&str> = line.split(' ').collect();
    scene.cluster.godwit(&words).await.unwrap()
}

/// The plan that a command answers with.
async fn ask(scene: &Scene, line: &str) -> PlanView {
    let told = godwit(scene, &format!("{line} -o json")).await;
    serde_json::from_slice(&told.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&told)))
}

async fn plan(scene: &Scene, id: PlanId) -> PlanView {
    let path = format!("/plans/{id}?wait_ms=0");
    scene.cluster.api.get(&path).await.unwrap()
}

/// The plan, when it is as wanted.
async fn when(scene: &Scene, id: PlanId, what: &str, is: impl Fn(&PlanView) -> bool) -> PlanView {
    let path = format!("/plans/{id}");
    let look = || async {
        let view: PlanView = scene.cluster.api.get(&path).await?;
        Ok(is(&view).then_some(view))
    };
    match wait::until(what, MOVE, look).await {
        Ok(view) => view,
        Err(error) => panic!("{error}: {:#?}", plan(scene, id).await),
    }
}

fn count(plan: &PlanView, state: StepState) -> usize {
    let steps = plan.progress.iter();
    steps.filter(|step| step.state == state).count()
}

/// Every guest runs once, counts on, and where it is; takes hold of it there.
async fn places(scene: &mut Scene) -> Vec<usize> {
    let mut places = Vec::new();
    for name in GUESTS {
        let (_, at) = scene.whereabouts(name).await.unwrap();
        scene.visit(name).await.unwrap();
        scene.runs_on(name, at).await.unwrap();
        places.push(at);
    }
    places
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_and_what_follows_it() {
    let options = ClusterOptions {
        node_settings: vec!["labels = { disk = \"fast\" }".to_owned()],
        ..ClusterOptions::nodes(3).memory(&[MiB(1024); 3])
    };
    let mut scene = Scene::start(options).await.unwrap();
    let mut pinned = guest::spec("pinned", &Work::default()).unwrap();
    let here = serde_json::json!({ "node_labels": { "disk": "fast" } });
    pinned.placement = serde_json::from_value(here).unwrap();
    let guests = GUESTS.map(|name| guest::spec(name, &Work::default()).unwrap());
    let all = guests.into_iter().chain([pinned, with_a_disk(&scene)]);
    let all = all.map(|spec| (spec, Some(0))).collect();
    scene.boot_all(all).await.unwrap();

    a_blocker_is_told_at_the_start(&scene).await;
    let moved = an_abort_leaves_the_rest(&mut scene).await;
    for name in ["pinned", "disk"] {
        let stopped = scene
            .cluster
            .api
            .done(name, LifecycleCommand::Stop, SETTLE)
            .await;
        stopped.unwrap();
    }
    let drained = a_killed_coordinator_goes_on(&mut scene).await;
    a_return_brings_back(&mut scene, drained, moved).await;
    a_rebalance_moves_one_and_then_rests(&mut scene).await;
}

/// A guest that placement would move anywhere. Only a target can say that a file
/// is in its disk's place there: all nodes are on this host.
fn with_a_disk(scene: &Scene) -> VmSpec {
    let path = scene.cluster.root().join("disk.raw");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let mut spec = guest::spec("disk", &Work::default()).unwrap();
    let disk = serde_json::json!([{ "path": path, "format": "raw" }]);
    spec.disks = serde_json::from_value(disk).unwrap();
    spec
}

async fn a_blocker_is_told_at_the_start(scene: &Scene) {
    let shown = ask(scene, "node drain node-1 --dry-run").await;
    assert_eq!(shown.state, PlanState::Proposed);
    let names: BTreeSet<&str> = shown.steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, GUESTS.into());
    assert!(shown.estimate.0 > 0, "{shown:?}");
    let blockers = shown.blockers.iter();
    let blockers: BTreeMap<&str, &Problem> =
        blockers.map(|b| (b.name.as_str(), &b.problem)).collect();
    assert_eq!(blockers.len(), 2, "{blockers:#?}");
    assert!(blockers.contains_key("pinned"));
    let told = &blockers["disk"].also[0];
    assert_eq!(told.field.as_deref(), Some("disks[0].path"), "{told}");
    assert!(told.message.contains("on the target"), "{told}");
    let dry = godwit(scene, "node drain node-1 --dry-run").await;
    assert_eq!(dry.status.code(), Some(1), "{}", text(&dry));
    assert!(text(&dry).contains("node-2 lacks"), "{}", text(&dry));
    let real = godwit(scene, "node drain node-1").await;
    assert_eq!(real.status.code(), Some(1), "{}", text(&real));
    for words in [codes::MIGRATION_BLOCKED, "no other node can take pinned"] {
        assert!(text(&real).contains(words), "{words}: {}", text(&real));
    }
    let view = scene.cluster.api.node(&scene.cluster.name(0)).await;
    assert!(!view.unwrap().cordoned, "a refused drain left a trace");
    assert!(text(&godwit(scene, "plan list").await).contains("there are no plans"));
}

/// One at a time; called off while the second one moves.
async fn an_abort_leaves_the_rest(scene: &mut Scene) -> usize {
    let mark = scene.cluster.events.mark();
    let line = format!("node drain node-1 --partial --parallel 1 --bandwidth {RATE} --detach");
    let begun = ask(scene, &line).await;
    assert_eq!(begun.state, PlanState::Running);
    let second = when(scene, begun.id, "the second step", |view| {
        assert!(count(view, StepState::Moving) <= 1, "more than one at once");
        count(view, StepState::Done) == 1 && count(view, StepState::Moving) == 1
    });
    let second = second.await;
    one_after_the_other(scene, mark, &second).await;
    let path = format!("/plans/{}/abort", begun.id);
    let request = AbortRequest {
        cancel_running: true,
    };
    let _: PlanView = scene.cluster.api.post(&path, &request).await.unwrap();
    let ended = when(scene, begun.id, "its end", |view| view.state.is_final()).await;
    assert_eq!(ended.state, PlanState::Aborted, "{ended:#?}");
    assert_eq!(count(&ended, StepState::Aborted), 2);
    let places = places(scene).await;
    let away: Vec<usize> = places.into_iter().filter(|at| *at != 0).collect();
    assert_eq!(away.len(), 1, "the other two are where they were");
    away[0]
}

/// The second move was begun when the first had ended.
async fn one_after_the_other(scene: &Scene, mark: Mark, plan: &PlanView) {
    let events = &scene.cluster.events;
    let of = |state| {
        let mut all = plan.progress.iter();
        let step = all.find(|step| step.state == state).unwrap();
        step.migration.unwrap()
    };
    let first = of(StepState::Done);
    let over = events.wait(mark, "the first step's end", SETTLE, |event| {
        event.kind == "plan.step" && event.migration == Some(first)
    });
    let over = over.await.unwrap().event.seq;
    let (second, phase) = (of(StepState::Moving), MigrationPhase::Preparing);
    let begun = events.phase(mark, second, phase, SETTLE).await;
    let begun = begun.unwrap().event.seq;
    assert!(over < begun, "the second ran beside the first");
}

/// Killed while the first of two moves: both are away in the end.
async fn a_killed_coordinator_goes_on(scene: &mut Scene) -> BTreeSet<String> {
    let line = format!("node drain node-1 --parallel 1 --bandwidth {RATE} --detach");
    let begun = ask(scene, &line).await;
    assert_eq!(begun.steps.len(), 2, "{begun:#?}");
    assert_eq!(begun.stopped.len(), 2, "those that were blockers");
    when(scene, begun.id, "its first move", |view| {
        count(view, StepState::Moving) == 1
    })
    .await;
    scene.cluster.restart_coordinator().await.unwrap();
    let ended = when(scene, begun.id, "its end", |view| view.state.is_final()).await;
    assert_eq!(ended.state, PlanState::Done, "{ended:#?}");
    assert_eq!(ended.message, "2 of 2 moved; no VM runs on node-1");
    // What was planned is what was planned.
    assert_eq!((&ended.steps, ended.created), (&begun.steps, begun.created));
    assert!(places(scene).await.iter().all(|at| *at != 0));
    let names = begun.steps.iter().map(|step| step.name.to_string());
    names.collect()
}

async fn a_return_brings_back(scene: &mut Scene, drained: BTreeSet<String>, moved: usize) {
    let told = godwit(scene, "node return node-1").await;
    assert!(told.status.success(), "{}", text(&told));
    for words in ["return of node-1: 2 of 2 moved", "Estimate"] {
        assert!(text(&told).contains(words), "{words}: {}", text(&told));
    }
    for (name, at) in GUESTS.iter().zip(places(scene).await) {
        let home = drained.contains(*name);
        assert_eq!(at, if home { 0 } else { moved }, "{name}");
    }
    let view = scene.cluster.api.node(&scene.cluster.name(0)).await;
    assert!(!view.unwrap().cordoned);
}

/// Two guests, one and none: one move is enough.
async fn a_rebalance_moves_one_and_then_rests(scene: &mut Scene) {
    let shown = ask(scene, "rebalance --dry-run").await;
    assert_eq!(shown.steps.len(), 1, "{shown:#?}");
    let imbalance = shown.imbalance.unwrap();
    assert!(imbalance.after < imbalance.before / 10, "{imbalance:?}");
    let told = godwit(scene, "rebalance").await;
    assert!(told.status.success(), "{}", text(&told));
    let mut places = places(scene).await;
    places.sort_unstable();
    assert_eq!(places, [0, 1, 2]);
    let again = ask(scene, "rebalance").await;
    assert_eq!((again.state, again.steps.len()), (PlanState::Proposed, 0));
    let kept: Vec<PlanView> = scene.cluster.api.get("/plans").await.unwrap();
    assert_eq!(kept.len(), 4, "two drains, a return and a rebalance");
}
