#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;
use std::path::Path;

use godwit_coordinator_logic::cluster::{Limits, MigrationLimits, RebalanceSettings};
use godwit_coordinator_logic::input::{Input, Ticket};
use godwit_coordinator_logic::placement::Profiles;
use godwit_coordinator_logic::record::SecretDigest;
use godwit_coordinator_logic::recording::Clocks;
use godwit_coordinator_logic::recording::line::Lines;
use godwit_coordinator_logic::recording::replay::Replay;
use godwit_shared::model::{BootMillis, VmId};
use godwit_shared::wire::uplink::LogKind;

use super::*;

const NOW: UnixMillis = UnixMillis(1_000_000);

fn settings() -> Settings {
    Settings {
        name: "recorded".into(),
        software: "0.1.0".into(),
        ca_fingerprint: String::new(),
        started: NOW,
        placement: Profiles::default(),
        migrations: MigrationLimits::default(),
        rebalance: RebalanceSettings::default(),
        fence_agents: BTreeSet::new(),
        limits: Limits::default(),
    }
}

/// A cluster and its recorder.
struct Recorded {
    cluster: Cluster,
    recorder: Recorder,
}

impl Recorded {
    fn start(dir: &Path, file_bytes: u64, keep: usize, queue: usize) -> Self {
        let mut effects = Vec::new();
        let cluster = Cluster::load(settings(), NOW, [], &mut effects).unwrap();
        let start = Start {
            settings: settings(),
            now: NOW,
            records: Vec::new(),
            effects,
        };
        let wanted = RecordSettings {
            dir: dir.to_owned(),
            file_bytes,
            keep,
        };
        let recorder = Recorder::with_queue(&wanted, start, queue).unwrap();
        Self { cluster, recorder }
    }

    fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        let outcome = self.cluster.step(NOW, input.clone(), &mut effects);
        let taken = Taken {
            clocks: Clocks {
                now: NOW,
                steady: BootMillis(NOW.0),
            },
            input,
            outcome,
            effects,
        };
        self.recorder.took(taken, || self.cluster.clone());
    }
}

fn token(id: u32) -> Input {
    Input::CreateToken {
        id: format!("token-{id}"),
        digest: SecretDigest([7; 32]),
        valid: None,
    }
}

/// Replays every file, oldest first; the numbers of the first and last step in each.
fn replayed(dir: &Path) -> Vec<(u64, u64)> {
    let files = std::fs::read_dir(dir).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort_unstable();
    paths.iter().map(|path| range(path)).collect()
}

fn range(path: &Path) -> (u64, u64) {
    let file = std::fs::read(path).unwrap();
    let mut lines = Lines::of(&file).unwrap();
    let (mut replay, mut first) = (Replay::default(), 0);
    while let Some(entry) = lines.next_entry().unwrap() {
        let mut logic =
            |cluster: &mut Cluster, clocks: Clocks, input, effects: &mut Vec<Effect>| {
                cluster.step_at(clocks.now, clocks.steady, input, effects)
            };
        let played = replay.feed(entry, &mut logic).unwrap();
        if let Some(played) = played {
            assert_eq!(played.difference, None, "{path:?}");
            first = first.max(u64::from(first == 0) * played.number);
        }
    }
    assert_eq!(lines.cut_off(), 0);
    (first, replay.steps())
}

#[test]
fn files_follow_each_other_without_a_gap_and_the_oldest_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut recorded = Recorded::start(dir.path(), 4096, 3, 64);
    for id in 1..200 {
        recorded.step(token(id));
        // Refused, and a step all the same.
        recorded.step(Input::ReadLog {
            ticket: Ticket(1),
            vm: VmId::from_u128(1),
            kind: LogKind::Qemu,
            lines: 1,
        });
        wait_for_room(&recorded.recorder);
    }
    drop(recorded);
    let found = replayed(dir.path());
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found[2].1, 398);
    for pair in found.windows(2) {
        assert_eq!(pair[0].1 + 1, pair[1].0, "{found:?}");
    }
    assert!(found[0].0 > 1, "the first ones are gone");
}

/// A test that must not lose a step waits where the actor never would.
fn wait_for_room(recorder: &Recorder) {
    let queue = recorder.queue.as_ref().unwrap();
    while queue.capacity() < queue.max_capacity() {
        std::thread::yield_now();
    }
}

#[test]
fn what_does_not_fit_into_the_queue_is_left_out_and_the_next_file_begins_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut recorded = Recorded::start(dir.path(), u64::MAX, 100, 2);
    for id in 1..500 {
        recorded.step(token(id));
    }
    while recorded.recorder.lost > 0 {
        wait_for_room(&recorded.recorder);
        recorded.step(token(1_000));
    }
    wait_for_room(&recorded.recorder);
    recorded.step(token(1_001));
    let last = recorded.recorder.steps;
    drop(recorded);
    let found = replayed(dir.path());
    assert!(found.len() > 1, "a queue of two held them all: {found:?}");
    assert_eq!(found.last().unwrap().1, last);
}

#[test]
fn a_directory_that_cannot_be_written_is_refused_by_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let start = Start {
        settings: settings(),
        now: NOW,
        records: Vec::new(),
        effects: Vec::new(),
    };
    let wanted = RecordSettings {
        dir: file.path().join("below"),
        file_bytes: 1,
        keep: 1,
    };
    let problem = Recorder::begin(&wanted, start).unwrap_err();
    assert_eq!(problem.field.as_deref(), Some("record.dir"));
}
