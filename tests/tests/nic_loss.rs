//! A node with two network cards: the link in use goes down in the middle of a
//! migration, which goes on over the other one.
//!
//! Two network namespaces are joined by two veth pairs and a third for the talk
//! with the coordinator. The target's address is one of its own that is reached
//! over either link (docs/migration.md, "Two links"). Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "measured numbers belong into the log")]

use std::time::Duration;

use godwit_shared::api::MigrationView;
use godwit_shared::model::{Bytes, MigrationId, MigrationPhase};
use godwit_tests::guest::Work;
use godwit_tests::harness::{ClusterOptions, Seat};
use godwit_tests::netns::{Pair, ip};
use godwit_tests::scene::{MOVE, SETTLE, Scene, slow};
use godwit_tests::wait;

/// Some seconds for a guest of a few dozen megabytes.
const RATE: u64 = 8 << 20;
/// So much goes over the first link before it is lost, and over the second at least.
const PART: Bytes = Bytes(8 << 20);
const PORT: u16 = 7441;

/// The namespaces with node-1 (and the coordinator) here and node-2 there.
fn two_links() -> Pair {
    let pair = Pair::build().unwrap();
    pair.link("ctl", "10.214.3.1/24", "10.214.3.2/24").unwrap();
    pair.link("v1", "10.214.1.1/24", "10.214.1.2/24").unwrap();
    pair.link("v2", "10.214.2.1/24", "10.214.2.2/24").unwrap();
    ip("addr add 10.214.9.1/32 dev lo").unwrap();
    pair.there("addr add 10.214.9.2/32 dev lo").unwrap();
    for link in [1, 2] {
        ip(&format!(
            "route add 10.214.9.2/32 via 10.214.{link}.2 metric {link}"
        ))
        .unwrap();
        pair.there(&format!(
            "route add 10.214.9.1/32 via 10.214.{link}.1 metric {link}"
        ))
        .unwrap();
    }
    pair
}

fn options(pair: &Pair) -> ClusterOptions {
    let seat = |number: u8, netns| Seat {
        netns,
        address: ([10, 214, 9, number], PORT).into(),
    };
    ClusterOptions {
        seats: vec![seat(1, None), seat(2, Some(pair.path()))],
        coordinator: ([10, 214, 3, 1], 0).into(),
        ..ClusterOptions::nodes(2)
    }
}

/// Waits until so much has been sent in the pre-copy.
async fn sends(scene: &Scene, id: MigrationId) {
    let api = &scene.cluster.api;
    wait::until("memory on its way", SETTLE, || async {
        let path = format!("/migrations/{id}?watch=true");
        let view: MigrationView = api.get(&path).await?;
        let sent = view.progress.transferred >= PART;
        Ok((view.phase == MigrationPhase::Precopy && sent).then_some(()))
    })
    .await
    .unwrap();
}

async fn lose_a_link(pair: &Pair) {
    let mut scene = Scene::start(options(pair)).await.unwrap();
    scene.boot(&[("web", 0)], &Work::default()).await.unwrap();
    scene.filled("web").await.unwrap();
    let before = [pair.sent("v1").unwrap(), pair.sent("v2").unwrap()];
    let (task, id) = scene.begin_move("web", 1, slow(RATE)).await.unwrap();
    sends(&scene, id).await;
    let first = pair.sent("v1").unwrap() - before[0];
    assert!(first >= PART.0, "{first} bytes over the first link");
    assert!(pair.sent("v2").unwrap() - before[1] < PART.0);
    ip("link set v1 down").unwrap();
    scene.cluster.api.succeed(task.id, MOVE).await.unwrap();
    let done = scene.arrived("web", 1, id).await.unwrap();
    let second = pair.sent("v2").unwrap() - before[1];
    assert!(second >= PART.0, "{second} bytes over the second link");
    scene.pages_intact("web").await.unwrap();
    eprintln!(
        "{first} bytes over the first link, {second} over the second, blackout {:?}",
        done.blackout
    );
}

#[test]
fn a_migration_outlives_the_link_that_it_used() {
    let pair = two_links();
    // Its threads begin in this thread's namespace, and so do the daemons.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(lose_a_link(&pair));
    runtime.shutdown_timeout(Duration::from_secs(5));
}
