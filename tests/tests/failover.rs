//! Protected guests lose their node and are started again: after its lease and the
//! margin, elsewhere, and never while the former still runs. A node that loses only
//! the coordinator loses nothing. With a fence agent nobody waits for the lease.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use godwit_shared::api::{LeaseState, LeaseView, NodeHealth};
use godwit_shared::model::spec::Protection;
use godwit_shared::model::{MiB, VmSpec};
use godwit_tests::events::{Mark, says};
use godwit_tests::guest::{self, Work};
use godwit_tests::harness::{ClusterOptions, sweep};
use godwit_tests::scene::{BOOT, SETTLE, Scene};
use godwit_tests::wait;

/// Of the coordinator's settings below.
const LEASE: Duration = Duration::from_secs(4);
const MARGIN: Duration = Duration::from_secs(1);
/// A node's word that it vouched for nobody counts so long after its start.
const YOUNG: Duration = Duration::from_secs(10);

/// Long enough that a start before its end is somebody else's work.
const LONG_LEASE: Duration = Duration::from_secs(120);

fn options(settings: &str) -> ClusterOptions {
    ClusterOptions {
        settings: settings.into(),
        ..ClusterOptions::nodes(3).relayed().memory(&[MiB(1024); 3])
    }
}

fn protected(name: &str) -> VmSpec {
    let mut spec = guest::spec(name, &Work::default()).unwrap();
    spec.protection = Protection::Restart;
    spec
}

/// Three nodes that hold leases; on the first a guest of either kind.
async fn scene() -> Scene {
    scene_with("[protection]\nlease_ms = 4000\nmargin_ms = 1000\n").await
}

async fn scene_with(settings: &str) -> Scene {
    let mut scene = Scene::start(options(settings)).await.unwrap();
    for index in 0..3 {
        lease(&scene, index, LeaseState::Held).await;
    }
    let own = guest::spec("own", &Work::default()).unwrap();
    let guests = vec![(protected("kept"), Some(0)), (own, Some(0))];
    scene.boot_all(guests).await.unwrap();
    scene
}

/// The node's lease, when it stands so.
async fn lease(scene: &Scene, index: usize, state: LeaseState) -> LeaseView {
    let (name, api) = (scene.cluster.name(index), &scene.cluster.api);
    let what = format!("the lease of {name} {}", state.as_str());
    let held = wait::until(&what, BOOT, || async {
        let lease = api.node(&name).await?.lease;
        Ok(lease.filter(|lease| lease.state == state))
    });
    held.await.unwrap()
}

/// Nobody reaches the first node, and it reaches nobody.
fn cut_off(scene: &Scene) {
    let nodes = &scene.cluster.nodes;
    nodes[0].cut(true).unwrap();
    nodes[1].cut(false).unwrap();
    nodes[2].cut(false).unwrap();
}

/// Waits until the protected guest runs on another node, and sees to it that at
/// no moment two of its QEMUs are there. Where it runs.
async fn runs_elsewhere(scene: &Scene) -> usize {
    let id = scene.id("kept").unwrap();
    let end = Instant::now() + BOOT;
    loop {
        let qemus = scene.cluster.qemus_of(id);
        assert!(qemus.len() <= 1, "two runners: {qemus:?}");
        let (view, at) = scene.whereabouts("kept").await.unwrap();
        if at != 0 && view.state.executes() {
            return at;
        }
        assert!(Instant::now() < end, "not restarted: {view:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn happened(scene: &Scene, mark: Mark, kind: &str, word: &str) {
    let wanted = scene.cluster.events.wait(mark, kind, BOOT, |event| {
        event.kind == kind && says(event, word)
    });
    wanted.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_stops_what_is_started_elsewhere() {
    let mut scene = scene().await;
    let (mark, begun) = (scene.cluster.events.mark(), Instant::now());
    cut_off(&scene);
    let at = runs_elsewhere(&scene).await;
    assert!(begun.elapsed() >= LEASE * 3 / 4 + MARGIN, "too early");
    for kind in ["node.lease_ended", "node.fenced"] {
        happened(&scene, mark, kind, "node-1").await;
    }
    happened(&scene, mark, "vm.restarted", "kept").await;
    // What it counted in its first life is whole as well.
    scene.count("kept").unwrap().check().unwrap();
    scene.begin_anew("kept").unwrap();
    scene.visit("kept").await.unwrap();
    scene.runs_on("kept", at).await.unwrap();
    scene.counts_on("own").await.unwrap();

    for node in &scene.cluster.nodes {
        node.restore();
    }
    scene.cluster.wait_health(0, NodeHealth::Up).await.unwrap();
    lease(&scene, 0, LeaseState::Held).await;
    scene.all_run_on(&[("kept", at), ("own", 0)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_killed_leaves_a_guardian() {
    let mut scene = scene().await;
    scene.cluster.nodes[0].kill();
    let at = runs_elsewhere(&scene).await;
    // What it counted in its first life is whole as well.
    scene.count("kept").unwrap().check().unwrap();
    scene.begin_anew("kept").unwrap();
    scene.visit("kept").await.unwrap();
    scene.runs_on("kept", at).await.unwrap();
    scene.counts_on("own").await.unwrap();
    scene.cluster.nodes[0].start().await.unwrap();
    scene.cluster.wait_health(0, NodeHealth::Up).await.unwrap();
    scene.all_run_on(&[("kept", at), ("own", 0)]).await.unwrap();
}

/// A fence agent for the first node: it kills the processes that a file names, as
/// a power switch would. The settings that name it.
fn power_switch(dir: &Path) -> String {
    let program = dir.join("fence_test");
    let text = "#!/bin/sh\n\
        cd \"$(dirname \"$0\")\" || exit 1\n\
        case \"$(cat)\" in\n\
        *action=off*) xargs kill -9 < on && mv on off ;;\n\
        *) [ -e off ] && exit 2 ;;\n\
        esac\n";
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    format!(
        "[protection]\nlease_ms = {}\nmargin_ms = 6000\nfence_after_ms = 1000\n\
         [fence.node-1]\nagent = '{}'\n",
        LONG_LEASE.as_millis(),
        program.display()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_agent_spares_the_wait_for_the_lease() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = scene_with(&power_switch(dir.path())).await;
    let mark = scene.cluster.events.mark();
    // The host hangs: its daemon says nothing, and its guests run on.
    let (node, root) = (&scene.cluster.nodes[0], scene.cluster.root());
    let run = node.run.display().to_string();
    let own = sweep::processes(root).into_iter();
    let own = own.filter(|process| process.mentions(&run)).map(|p| p.pid);
    let daemon = node.daemon.pid().unwrap();
    let pids: Vec<String> = own.chain([daemon]).map(|pid| pid.to_string()).collect();
    assert!(pids.len() >= 4, "daemon, guardian, two guests: {pids:?}");
    std::fs::write(dir.path().join("on"), pids.join(" ")).unwrap();
    let begun = Instant::now();
    scene.cluster.nodes[0].daemon.freeze().unwrap();

    let at = runs_elsewhere(&scene).await;
    assert!(begun.elapsed() < LONG_LEASE / 2, "that was the lease");
    assert!(dir.path().join("off").exists());
    for kind in ["node.fencing", "node.fenced"] {
        happened(&scene, mark, kind, "node-1").await;
    }
    scene.count("kept").unwrap().check().unwrap();
    scene.begin_anew("kept").unwrap();
    scene.visit("kept").await.unwrap();
    scene.runs_on("kept", at).await.unwrap();
    scene.cluster.nodes[0].kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_loses_only_the_coordinator_loses_no_guest() {
    let mut scene = scene().await;
    let (began, mark) = (Instant::now(), scene.cluster.events.mark());
    let uplink = scene.cluster.nodes[0].uplink.as_ref();
    uplink.unwrap().cut();
    let carried = || async {
        let name = scene.cluster.name(0);
        let lease = scene.cluster.api.node(&name).await?.lease;
        Ok(lease.and_then(|lease| lease.through))
    };
    wait::until("a lease through a peer", SETTLE, carried)
        .await
        .unwrap();
    for_at_least(began, (LEASE + MARGIN) * 3).await;
    lease(&scene, 0, LeaseState::Held).await;
    scene.cluster.nodes[0].restore();
    scene.cluster.wait_health(0, NodeHealth::Up).await.unwrap();

    // And now nobody has one: the nodes vouch for each other.
    for_at_least(began, YOUNG).await;
    scene.cluster.coordinator.kill();
    let killed = Instant::now();
    for_at_least(killed, (LEASE + MARGIN) * 3).await;
    scene.cluster.restart_coordinator().await.unwrap();
    for index in 0..3 {
        scene
            .cluster
            .wait_health(index, NodeHealth::Up)
            .await
            .unwrap();
    }
    scene.all_run_on(&[("kept", 0), ("own", 0)]).await.unwrap();
    for kind in ["node.fenced", "vm.lost"] {
        let all = scene.cluster.events.since(mark);
        let found = all.iter().find(|arrived| arrived.event.kind == kind);
        assert!(found.is_none(), "{found:?}");
    }
}

/// Until so much time has passed since then: what is shown is that nothing happens.
async fn for_at_least(since: Instant, length: Duration) {
    tokio::time::sleep_until((since + length).into()).await;
}
