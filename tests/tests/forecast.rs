//! What is foretold of a move, against how it went.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "measured numbers belong into the log")]

use godwit_shared::api::{Calibration, Calibrations, MigrateRequest};
use godwit_shared::model::{BytesPerSec, MigrationPolicy};
use godwit_tests::guest::Work;
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::{MOVE, Scene};

const MOVES: usize = 6;

/// Every second move has a link of 32 MiB/s.
fn policy(number: usize) -> MigrationPolicy {
    let narrow = Some(BytesPerSec(32 << 20));
    MigrationPolicy {
        bandwidth: narrow.filter(|_| number % 2 == 1),
        ..MigrationPolicy::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_go_as_foretold() {
    let mut scene = Scene::start(ClusterOptions::nodes(2)).await.unwrap();
    scene.boot(&[("web", 0)], &Work::default()).await.unwrap();
    scene.filled("web").await.unwrap();
    let (mut asked, mut stored) = (0, 0);
    for number in 0..MOVES {
        let to = (number + 1) % 2;
        let request = MigrateRequest {
            target: Some(scene.cluster.name(to)),
            policy: policy(number),
            dry_run: true,
        };
        let rehearsed = scene.cluster.api.dry_run("web", &request).await.unwrap();
        assert_eq!(rehearsed.blockers, []);
        let before = rehearsed.forecast.expect("a forecast");
        assert!(before.converges, "{before:?}");
        let (task, migration) = scene.begin_move("web", to, policy(number)).await.unwrap();
        scene.cluster.api.succeed(task.id, MOVE).await.unwrap();
        let done = scene.arrived("web", to, migration).await.unwrap();
        let kept = done.figures.forecast.expect("one of its own");
        let (duration, blackout) = (done.figures.duration.unwrap(), done.blackout.unwrap());
        eprintln!("{duration} and {blackout}; foretold {before:?}; while it began {kept:?}");
        let right = |f: &godwit_shared::model::Forecast| {
            f.duration.holds(duration) && f.blackout.holds(blackout)
        };
        assert_eq!(done.met.duration, Some(kept.duration.fit(duration)));
        assert_eq!(done.met.blackout, Some(kept.blackout.fit(blackout)));
        asked += usize::from(right(&before));
        stored += usize::from(right(&kept));
    }
    let added_up: Calibrations = scene
        .cluster
        .api
        .get("/migrations/calibration")
        .await
        .unwrap();
    let found = &added_up.precopy;
    assert_eq!((found.completed, found.foretold), (6, 6), "{added_up:?}");
    assert_eq!((found.duration.count, found.blackout.count), (6, 6));
    // Each of those that were right was so in both.
    let least = u32::try_from(stored).unwrap();
    assert!(found.duration.inside.min(found.blackout.inside) >= least);
    assert_eq!(added_up.postcopy, Calibration::default());
    assert!(asked + 1 >= MOVES, "{asked} of {MOVES} dry runs were right");
    assert!(
        stored + 1 >= MOVES,
        "{stored} of {MOVES} forecasts were right"
    );
}
