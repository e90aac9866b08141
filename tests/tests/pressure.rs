//! A loaded host is no lost peer: two hundred moves while every core is kept
//! busy by other work, and liveness ends none of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "measured numbers belong into the log")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use godwit_shared::model::{MiB, MigrationPhase, MigrationPolicy};
use godwit_tests::guest::Work;
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::{MOVE, SETTLE, Scene};

const MOVES: usize = 200;
const GUESTS: [&str; 4] = ["g1", "g2", "g3", "g4"];
const NODES: usize = 3;
/// After so many rounds each guest is looked at closely.
const CLOSE_LOOK: usize = 10;
/// The other work ends by itself, whatever becomes of the test.
const LONGEST: Duration = Duration::from_secs(400);

/// Work that keeps every core busy until it is dropped.
struct OtherWork {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<u64>>,
}

impl OtherWork {
    fn begin() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = std::thread::available_parallelism().unwrap().get();
        let until = Instant::now() + LONGEST;
        let threads = (0..cores).map(|seed| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || spin(u64::try_from(seed).unwrap(), &stop, until))
        });
        Self {
            threads: threads.collect(),
            stop,
        }
    }
}

fn spin(mut number: u64, stop: &AtomicBool, until: Instant) -> u64 {
    while !stop.load(Ordering::Relaxed) && Instant::now() < until {
        for _ in 0..10_000 {
            number = black_box(
                number
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1),
            );
        }
    }
    number
}

impl Drop for OtherWork {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_moves_on_busy_cores_raise_no_false_alarm() {
    let options = ClusterOptions {
        log: "info".to_owned(),
        ..ClusterOptions::nodes(NODES)
    };
    let mut scene = Scene::start(options).await.unwrap();
    let places: Vec<(&str, usize)> = (0..).zip(GUESTS).map(|(n, g)| (g, n % NODES)).collect();
    let work = Work {
        memory: MiB(96),
        tick_ms: 50,
        fill: MiB(4),
        rate: MiB(1),
        ..Work::default()
    };
    scene.boot(&places, &work).await.unwrap();
    let mark = scene.cluster.events.mark();
    let other = OtherWork::begin();
    let (began, mut blackouts) = (Instant::now(), Vec::new());
    for round in 0..MOVES / GUESTS.len() {
        blackouts.extend(all_move(&mut scene, &places, round + 1).await);
    }
    let took = began.elapsed();
    drop(other);
    for name in GUESTS {
        scene.counts_on(name).await.unwrap();
        scene.pages_intact(name).await.unwrap();
    }
    // The sessions with the coordinator stood as well.
    let lost = scene.cluster.events.since(mark).into_iter();
    let lost: Vec<_> = lost.filter(|a| a.event.kind == "node.down").collect();
    assert!(lost.is_empty(), "{lost:#?}");
    blackouts.sort_unstable();
    let (count, stalls) = (blackouts.len(), stalls(&scene));
    eprintln!(
        "{count} moves on busy cores took {took:?}, none was lost; blackout median {} ms, \
         worst {} ms; the transports did not run for 200 ms or more {} times, at most for {} ms",
        blackouts[count / 2],
        blackouts[count - 1],
        stalls.len(),
        stalls.iter().max().unwrap_or(&0)
    );
}

/// Every guest at once to the next node; returns their blackouts.
async fn all_move(scene: &mut Scene, places: &[(&str, usize)], round: usize) -> Vec<u64> {
    let to = |from: usize| (from + round) % NODES;
    let policy = MigrationPolicy::default;
    let asked = places
        .iter()
        .map(|(name, from)| scene.begin_move(name, to(*from), policy()));
    let moves = try_join_all(asked).await.unwrap();
    let mut blackouts = Vec::new();
    for ((name, from), (task, migration)) in places.iter().zip(moves) {
        let api = &scene.cluster.api;
        let ended = api.succeed(task.id, MOVE).await;
        ended.unwrap_or_else(|e| panic!("{name}, round {round}: {e:#}"));
        let view = api.migration(migration).await.unwrap();
        assert_eq!(view.phase, MigrationPhase::Completed, "{:?}", view.failure);
        blackouts.extend(view.blackout.map(|pause| pause.0));
        scene.visit(name).await.unwrap();
        if round.is_multiple_of(CLOSE_LOOK) {
            let left = (from + round - 1) % NODES;
            scene.runs_on(name, to(*from)).await.unwrap();
            let id = scene.id(name).unwrap();
            scene.cluster.nothing_left(id, left, SETTLE).await.unwrap();
        }
    }
    blackouts
}

/// The stalls that the nodes' transports have noticed of themselves, in ms.
fn stalls(scene: &Scene) -> Vec<u64> {
    let logs = scene.cluster.nodes.iter();
    let logs = logs.map(|node| std::fs::read_to_string(node.daemon.log_path()).unwrap());
    let stalled = |log: String| -> Vec<u64> {
        log.lines()
            .filter(|line| line.contains("the transport did not run"))
            .filter_map(|line| line.split("milliseconds=").nth(1)?.split(' ').next())
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    logs.flat_map(stalled).collect()
}
