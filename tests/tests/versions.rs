//! Moves between nodes with different QEMUs.
//!
//! A guest keeps the versioned machine type that it was created with. QEMU moves
//! it to the same or a later version; back is a blocker, which says why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "measured numbers belong into the log")]

use godwit_shared::api::MigrateRequest;
use godwit_shared::model::codes;
use godwit_tests::guest::Work;
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::{SETTLE, Scene};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_moves_to_a_later_qemu_and_not_back() {
    let options = ClusterOptions::nodes(3).old(2);
    let mut scene = Scene::start(options).await.unwrap();
    scene.boot(&[("web", 0)], &Work::default()).await.unwrap();
    // Between two old ones, then to the new one.
    for to in [1, 2] {
        let moved = scene.move_to("web", to).await.unwrap();
        eprintln!("to node-{}: blackout {:?}", to + 1, moved.blackout);
        scene.pages_intact("web").await.unwrap();
    }
    let back = MigrateRequest {
        target: Some(scene.cluster.name(0)),
        ..MigrateRequest::default()
    };
    let found = scene.cluster.api.dry_run("web", &back).await.unwrap();
    let fields: Vec<_> = found
        .blockers
        .iter()
        .filter_map(|b| b.field.as_deref())
        .collect();
    assert_eq!(fields, ["qemu"], "{:?}", found.blockers);
    let blocker = &found.blockers[0];
    assert_eq!(blocker.code, codes::MIGRATION_BLOCKED);
    let text = blocker.to_string();
    assert!(text.contains("10.") && text.contains("7.2"), "{text}");
    scene.runs_on("web", 2).await.unwrap();
    let id = scene.id("web").unwrap();
    for node in [0, 1] {
        scene.cluster.nothing_left(id, node, SETTLE).await.unwrap();
    }
}
