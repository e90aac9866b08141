//! A queue of moves of real guests: one at a time, the most urgent first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use godwit_shared::model::{MigrationPhase, MigrationPolicy};
use godwit_tests::guest::Work;
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::{MOVE, SETTLE, Scene, slow};

/// Some seconds for each guest.
const RATE: u64 = 16 << 20;
/// In the order in which they are asked for.
const GUESTS: [(&str, u8); 4] = [("first", 50), ("low", 10), ("off", 20), ("high", 90)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_at_a_time_and_the_most_urgent_first() {
    let options = ClusterOptions {
        settings: "[migrations]\nper_node = 1\n".to_owned(),
        ..ClusterOptions::nodes(2)
    };
    let mut scene = Scene::start(options).await.unwrap();
    let guests = GUESTS.map(|(name, _)| (name, 0));
    scene.boot(&guests, &Work::default()).await.unwrap();
    let mark = scene.cluster.events.mark();
    let mut moves = Vec::new();
    for (name, priority) in GUESTS {
        let policy = MigrationPolicy {
            priority,
            ..slow(RATE)
        };
        moves.push(scene.begin_move(name, 1, policy).await.unwrap());
    }
    let api = scene.cluster.api.clone();
    let queued = api.migration(moves[1].1).await.unwrap();
    assert_eq!(queued.phase, MigrationPhase::Queued);
    let queue = queued.queue.expect("a place in the queue");
    assert_eq!(queue.position, 3, "behind the more urgent ones");
    assert_eq!(queue.reason, "node-1 carries its most: 1");
    let listed = scene.cluster.godwit(&["migration", "list"]).await.unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("#1"), "{listed}");
    // A guest that powers off has nothing to wait for.
    // Its console ends with it.
    let off = api
        .type_line("off", "poweroff", "nothing more", SETTLE)
        .await;
    assert!(off.is_err(), "{off:?}");
    let left = api.ended(moves[2].0.id, SETTLE).await.unwrap();
    assert!(left.problem.is_some(), "{left:?}");
    let first = api.migration(moves[0].1).await.unwrap();
    assert!(!first.phase.is_final(), "at once, not at its turn");

    let (mut begun, mut ended) = (Vec::new(), Vec::new());
    for index in [0, 3, 1] {
        let (name, (task, id)) = (GUESTS[index].0, &moves[index]);
        api.succeed(task.id, MOVE).await.unwrap();
        scene.arrived(name, 1, *id).await.unwrap();
        let events = &scene.cluster.events;
        let preparing = MigrationPhase::Preparing;
        let told = events.phase(mark, *id, preparing, SETTLE).await.unwrap();
        begun.push(told.event.seq);
        let over = events.wait(mark, "its task's end", SETTLE, |event| {
            event.kind == "task.ended" && event.task == Some(task.id)
        });
        ended.push(over.await.unwrap().event.seq);
    }
    assert!(ended[0] < begun[1], "`high` ran beside `first`");
    assert!(ended[1] < begun[2], "`low` ran beside `high`");
}
