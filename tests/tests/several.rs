//! Several coordinators on one etcd, with nodes and a guest that know nothing
//! of their deaths.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(unreachable_pub, reason = "a helper that other packages use as well")]
#![allow(clippy::print_stderr, reason = "measured numbers belong into the log")]

#[path = "../../coordinator/daemon/src/store/etcd/tests/server.rs"]
mod etcd;

use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use godwit_shared::api::{AdminCredential, LeaseState, NodeHealth};
use godwit_shared::model::codes;
use godwit_shared::model::spec::Protection;
use godwit_tests::api::Api;
use godwit_tests::guest::{self, Work};
use godwit_tests::harness::ClusterOptions;
use godwit_tests::harness::process::Daemon;
use godwit_tests::harness::programs;
use godwit_tests::scene::Scene;
use godwit_tests::wait;

use self::etcd::Etcd;

/// What a new leader may take until it has done something.
const FAILOVER: Duration = Duration::from_secs(5);
/// What everything else may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn free_address() -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().to_string()
}

fn settings(etcd: &Etcd) -> String {
    let file = |name| etcd.file(name).display().to_string();
    format!(
        "[store]\nkind = 'etcd'\nendpoints = ['{}']\nca = '{}'\ncert = '{}'\nkey = '{}'\n",
        etcd.endpoint,
        file("ca.pem"),
        file("client.pem"),
        file("client-key.pem")
    )
}

fn credential(state: &Path) -> AdminCredential {
    let text = std::fs::read_to_string(state.join("admin.toml")).unwrap();
    toml::from_str(&text).unwrap()
}

/// A further coordinator of the scene's cluster.
async fn one_more(scene: &Scene, name: &str, listen: &str) -> (Daemon, AdminCredential) {
    let root = scene.cluster.root();
    let (first, state) = (scene.cluster.coordinator_dir(), root.join(name));
    std::fs::create_dir_all(state.join("ca")).unwrap();
    for entry in std::fs::read_dir(first.join("ca")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), state.join("ca").join(entry.file_name())).unwrap();
    }
    std::fs::copy(first.join("admin.toml"), state.join("admin.toml")).unwrap();
    let (config, state_dir) = (root.join("c.toml"), state.display().to_string());
    let config = config.display().to_string();
    let args = [
        "run",
        "--config",
        &config,
        "--state-dir",
        &state_dir,
        "--listen",
        listen,
    ];
    let args = args.iter().chain(&["--api", "127.0.0.1:0"]);
    let args = args.map(|arg| (*arg).to_owned()).collect();
    let program = programs::find("godwit-coordinator").unwrap();
    let mut daemon = Daemon::new(name, program, args, root);
    daemon.start().await.unwrap();
    (daemon, credential(&state))
}

/// Runs the command until it succeeds; how long that took.
async fn done(scene: &Scene, endpoints: &str, what: &[&str]) -> Duration {
    let begun = Instant::now();
    let args: Vec<&str> = ["--endpoint", endpoints]
        .iter()
        .chain(what)
        .copied()
        .collect();
    loop {
        let output = scene.cluster.godwit(&args).await.unwrap();
        if output.status.success() {
            return begun.elapsed();
        }
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(begun.elapsed() < PATIENCE, "{what:?}: {told}");
        tokio::time::sleep(wait::STEP).await;
    }
}

/// The API of the coordinator that leads, once both nodes are there.
async fn led(scene: &mut Scene, credentials: &[&AdminCredential]) {
    let apis: Vec<Api> = credentials.iter().map(|c| Api::new(c).unwrap()).collect();
    let up = wait::until("a leader with its nodes", PATIENCE, || async {
        for api in &apis {
            let nodes = api.nodes().await.unwrap_or_default();
            if nodes.len() == 2 && nodes.iter().all(|n| n.health == NodeHealth::Up) {
                return Ok(Some(api.clone()));
            }
        }
        Ok(None)
    });
    scene.cluster.api = up.await.unwrap();
}

async fn holds_lease(scene: &Scene, index: usize) {
    let (name, api) = (scene.cluster.name(index), &scene.cluster.api);
    let held = wait::until("a lease", PATIENCE, || async {
        let lease = api.node(&name).await?.lease;
        Ok(lease.filter(|lease| lease.state == LeaseState::Held))
    });
    held.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_outlives_its_leader_and_etcd_and_moves_under_the_next_one() {
    let mut etcd = Etcd::start();
    let listen = [free_address(), free_address(), free_address()];
    let node = format!("coordinator = {listen:?}\n");
    let mut scene = Scene::start(ClusterOptions {
        coordinator: listen[0].parse().unwrap(),
        settings: settings(&etcd),
        node_settings: vec![node.clone(), node],
        ..ClusterOptions::nodes(2)
    })
    .await
    .unwrap();
    let first = credential(&scene.cluster.coordinator_dir());
    let (mut second_daemon, second) = one_more(&scene, "c2", &listen[1]).await;
    let (mut third_daemon, third) = one_more(&scene, "c3", &listen[2]).await;
    let all = [&first, &second, &third]
        .map(|c| c.endpoint.clone())
        .join(",");
    for index in 0..2 {
        holds_lease(&scene, index).await;
    }
    // It ends with its node's lease, if a change of leaders let that run out.
    let mut web = guest::spec("web", &Work::default()).unwrap();
    web.protection = Protection::Restart;
    scene.boot_all(vec![(web, Some(0))]).await.unwrap();
    let id = scene.id("web").unwrap();
    let pid = scene.cluster.runs_once_on(id, 0).unwrap();

    // The leader is killed; the command finds the next one by itself.
    scene.cluster.coordinator.kill();
    let took = done(&scene, &all, &["node", "label", "node-2", "seen=yes"]).await;
    eprintln!("a write {took:?} after the leader was killed");
    assert!(took < FAILOVER, "{took:?}");
    led(&mut scene, &[&second, &third]).await;
    scene.runs_on("web", 0).await.unwrap();
    assert_eq!(scene.cluster.runs_once_on(id, 0).unwrap(), pid);
    scene.move_to("web", 1).await.unwrap();
    let moved = scene.cluster.runs_once_on(id, 1).unwrap();

    // etcd stands still: the guest goes on, everything can be read, and
    // nothing can be changed.
    etcd.freeze();
    let refused = wait::until("a refusal", PATIENCE, || async {
        let args = [
            "--endpoint",
            all.as_str(),
            "node",
            "label",
            "node-2",
            "seen=no",
        ];
        let output = scene.cluster.godwit(&args).await?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(told.contains(codes::NO_LEADER).then_some(told))
    });
    refused.await.unwrap();
    let shown = scene
        .cluster
        .godwit(&["--endpoint", &all, "-o", "name", "vm", "list"])
        .await
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&shown.stdout).trim(), "web");
    let told = String::from_utf8_lossy(&shown.stderr).into_owned();
    assert!(told.contains("no coordinator leads"), "{told}");
    scene.counts_on("web").await.unwrap();

    // It recovers without help.
    etcd.thaw();
    done(&scene, &all, &["node", "label", "node-2", "seen=again"]).await;
    led(&mut scene, &[&second, &third]).await;
    scene.runs_on("web", 1).await.unwrap();
    assert_eq!(scene.cluster.runs_once_on(id, 1).unwrap(), moved);
    second_daemon.kill();
    third_daemon.kill();
}
