//! The embedded store is killed (`kill -9`) at random instants while it
//! commits, again and again, and looked at after every time. The killed process
//! is this test binary again, told by its environment what to be.
//!
//! Commit `n` says four things at once: that it was (`a/n`), something long
//! (`b/n`, kept for a while), that an older long one goes, and that it is the
//! last one (`last`), by the revision of the one before. So whatever is found
//! afterwards has to be the outcome of whole commits in their order; and it has
//! to reach as far as the last commit that was acknowledged.
//!
//! `scripts/crash-store` runs it for longer.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_coordinator::store::{Commit, Expect, RedbStore, Revision, Scan, Store, Write};

const PATH: &str = "GODWIT_CRASH_STORE";
const WRITES: &str = "GODWIT_CRASH_WRITES";
/// Commits that have to be acknowledged over all rounds.
const ENOUGH: u64 = 10_000;
/// Most commits that one round waits for before it kills.
const ROUND: u64 = 160;
/// Commits that wait for the disk at once: what a busy coordinator would have.
const DEPTH: usize = 24;
/// How long the long values stay.
const WINDOW: u64 = 300;

fn short(n: u64) -> String {
    format!("a/{n:09}")
}

fn long(n: u64) -> String {
    format!("b/{n:09}")
}

/// What `b/n` holds: some hundred to some thousand bytes that tell `n`.
fn content(n: u64) -> Vec<u8> {
    let length = 200 + usize::try_from(n * 7919 % 6000).unwrap();
    n.to_be_bytes().into_iter().cycle().take(length).collect()
}

fn commit(n: u64) -> Commit {
    let put = |key: String, value: Vec<u8>| Write::Put {
        key,
        value: Bytes::from(value),
    };
    let number = n.to_string().into_bytes();
    let mut writes = vec![put(short(n), number.clone()), put(long(n), content(n))];
    if let Some(old) = n.checked_sub(WINDOW) {
        writes.push(Write::Delete { key: long(old) });
    }
    writes.push(put("last".into(), number));
    let expect = match n {
        1 => Expect::Absent,
        n => Expect::At(Revision(n - 1)),
    };
    Commit::of(writes).expecting("last", expect)
}

/// Not a test: what the killed process does. Without its environment, nothing.
#[test]
fn writing_process() {
    let Ok(path) = std::env::var(PATH) else {
        return;
    };
    let store = RedbStore::open(Path::new(&path)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut next = store.scan("last").await.unwrap().revision.0 + 1;
        let mut waiting = VecDeque::new();
        loop {
            while waiting.len() < DEPTH {
                waiting.push_back(store.commit(commit(next)));
                next += 1;
            }
            let done = waiting.pop_front().unwrap().await.unwrap();
            // One short write to a pipe is whole or not at all (pipe(7)).
            writeln!(std::io::stdout(), "done {}", done.0).unwrap();
        }
    });
}

/// The process that writes; killed at the latest when it is dropped.
struct Writer {
    child: Child,
    done: Receiver<u64>,
    acknowledged: u64,
}

impl Writer {
    fn start(path: &Path, acknowledged: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::writing_process", "--nocapture"])
            .env(PATH, path)
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, done) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(n) = line.strip_prefix("done ") {
                    let _ = sender.send(n.parse().unwrap());
                }
            }
        });
        Self {
            child,
            done,
            acknowledged,
        }
    }

    /// Takes acknowledgements until that one, or until then.
    fn until(&mut self, n: u64, deadline: Instant) {
        while self.acknowledged < n {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.done.recv_timeout(left) {
                Ok(done) => self.acknowledged = done,
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => panic!("the writer ended by itself"),
            }
        }
    }

    /// Kills it; gives the last commit that it had acknowledged.
    fn kill(mut self) -> u64 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for done in &self.done {
            self.acknowledged = done;
        }
        self.acknowledged
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A number below `bound`.
fn random(bound: u64) -> u64 {
    RandomState::new().hash_one(0) % bound
}

/// One round: gives the last commit that was acknowledged.
fn write_and_kill(path: &Path, acknowledged: u64, round: u64) -> u64 {
    let mut writer = Writer::start(path, acknowledged);
    let now = Instant::now();
    if round.is_multiple_of(8) {
        // Wherever its start or its first commits are then.
        writer.until(u64::MAX, now + Duration::from_micros(random(60_000)));
    } else {
        writer.until(
            acknowledged + 1 + random(ROUND),
            now + Duration::from_secs(30),
        );
        // Not always right behind an acknowledgement.
        let more = Duration::from_micros(random(2_000));
        writer.until(u64::MAX, Instant::now() + more);
    }
    writer.kill()
}

/// Looks at what is there; gives the last commit.
async fn look(path: &Path) -> u64 {
    let store = RedbStore::open(path).unwrap();
    let scan = store.scan("").await.unwrap();
    store.close().await.unwrap();
    let last = scan.revision.0;
    check(&scan, last);
    last
}

/// The records are those of the commits up to `last`, all of them whole.
fn check(scan: &Scan, last: u64) {
    let oldest = (last + 1).saturating_sub(WINDOW).max(1);
    let shorts = (1..=last).map(|n| (n, short(n), n.to_string().into_bytes()));
    let longs = (oldest..=last).map(|n| (n, long(n), content(n)));
    let end = (last > 0).then(|| (last, "last".to_owned(), last.to_string().into_bytes()));
    let mut wanted = shorts.chain(longs).chain(end);
    for entry in &scan.entries {
        let (n, key, value) = wanted.next().expect("no more than was written");
        assert_eq!((&entry.key, entry.revision), (&key, Revision(n)));
        assert_eq!(entry.value, value, "{key}");
    }
    assert_eq!(wanted.next(), None, "after {last} commits");
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "what a long run has done")]
async fn no_acknowledged_commit_is_lost_and_none_is_halved() {
    let enough = std::env::var(WRITES).map_or(ENOUGH, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let (mut there, mut total, mut rounds) = (0, 0, 0);
    while total < enough {
        let acknowledged = write_and_kill(&path, there, rounds);
        let found = look(&path).await;
        assert!(
            found >= acknowledged,
            "{acknowledged} were acknowledged, {found} are there (round {rounds})"
        );
        total += acknowledged - there;
        there = found;
        rounds += 1;
    }
    println!("{total} acknowledged commits, {rounds} kills, none lost");
}
