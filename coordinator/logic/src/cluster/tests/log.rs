//! The event log.

use super::*;

#[test]
fn the_log_is_bounded_and_says_when_something_is_missing() {
    let mut bench = Bench::with(Settings {
        limits: Limits {
            events: 3,
            ..Limits::default()
        },
        ..settings()
    });
    for number in 1..=5 {
        bench.join(&format!("node-{number}")).unwrap();
    }
    assert_eq!(bench.cluster.last_event(), 5);
    let seqs = |bench: &Bench, after| {
        let replay = bench.cluster.events_after(after);
        let seqs: Vec<u64> = replay.events.iter().map(|event| event.seq).collect();
        (seqs, replay.gap)
    };
    assert_eq!(seqs(&bench, 0), (vec![3, 4, 5], true));
    assert_eq!(seqs(&bench, 1), (vec![3, 4, 5], true));
    assert_eq!(seqs(&bench, 2), (vec![3, 4, 5], false));
    assert_eq!(seqs(&bench, 4), (vec![5], false));
    assert_eq!(seqs(&bench, 5), (vec![], false));
    assert_eq!(seqs(&bench, 6), (vec![], true), "a number of another life");
    assert_eq!(seqs(&bench, u64::MAX), (vec![], true));

    bench.restart();
    bench.join("node-6").unwrap();
    assert_eq!(
        seqs(&bench, 4),
        (vec![5, 6], false),
        "numbers go on after a restart"
    );
}

#[test]
fn an_empty_log_misses_nothing() {
    let bench = Bench::new();
    let replay = bench.cluster.events_after(0);
    assert!(replay.events.is_empty() && !replay.gap);
}
