//! Recordings of what the cluster's state machine was given and decided, for
//! `godwit-sim replay` (`docs/simulation.md`). Off unless the settings say where.
//!
//! ```text
//! ClusterActor --Taken, or the whole state--> queue --> a thread of its own --> files
//! ```
//!
//! Invariants:
//! * the actor never waits: what does not fit into the queue is left out, and the
//!   next file begins behind the gap, with the state as it is then;
//! * each file can be replayed alone, and no more of them are kept than asked for;
//! * a disk that fails ends the recording, and nothing else.

mod files;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc as done;
use std::time::Duration;

use godwit_coordinator_logic::cluster::{Cluster, Settings};
use godwit_coordinator_logic::effect::Effect;
use godwit_coordinator_logic::recording::Taken;
use godwit_shared::model::{Problem, UnixMillis, codes};
use tokio::sync::mpsc;

use files::Files;

/// Steps that may wait for the disk.
const QUEUE: usize = 8192;
/// How long the end of the daemon waits for the disk.
const LAST: Duration = Duration::from_secs(5);

/// Where recordings go, and how much of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSettings {
    /// The directory; it holds nothing else.
    pub dir: PathBuf,
    /// Bytes of steps in one file, apart from the state that it begins with.
    pub file_bytes: u64,
    /// Files that are kept.
    pub keep: usize,
}

/// What the daemon starts from.
#[derive(Debug)]
pub struct Start {
    /// Its settings.
    pub settings: Settings,
    /// When.
    pub now: UnixMillis,
    /// The store's records.
    pub records: Vec<(String, Vec<u8>)>,
    /// What it does first.
    pub effects: Vec<Effect>,
}

/// What goes to the thread.
#[allow(clippy::large_enum_variant, reason = "nearly all are steps")]
enum Item {
    Start(Start),
    Step(u64, Taken),
    /// Begin a new file with this state, of behind that step.
    State(u64, Box<Cluster>),
}

/// The actor's side.
#[derive(Debug)]
pub struct Recorder {
    queue: Option<mpsc::Sender<Item>>,
    /// The number of the last file that is full.
    full: Arc<AtomicU32>,
    /// The number of the file that the next step goes to.
    file: u32,
    steps: u64,
    /// Steps that were left out since the last one that was not.
    lost: u64,
    ended: done::Receiver<()>,
}

impl Recorder {
    /// Begins a recording.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn begin(settings: &RecordSettings, start: Start) -> Result<Self, Problem> {
        Self::with_queue(settings, start, QUEUE)
    }

    fn with_queue(settings: &RecordSettings, start: Start, size: usize) -> Result<Self, Problem> {
        let files = Files::open(settings, start.now).map_err(|error| refused(settings, &error))?;
        let (queue, items) = mpsc::channel(size);
        let (ending, ended) = done::channel();
        let full = Arc::new(AtomicU32::new(0));
        let told = Arc::clone(&full);
        let work = move || {
            let _ending: done::Sender<()> = ending;
            write(files, items, &told);
        };
        std::thread::Builder::new()
            .name("recorder".into())
            .spawn(work)
            .map_err(Problem::internal)?;
        // The queue is empty yet.
        let _ = queue.try_send(Item::Start(start));
        Ok(Self {
            queue: Some(queue),
            full,
            file: 1,
            steps: 0,
            lost: 0,
            ended,
        })
    }

    /// A step was taken; `behind` gives the state behind it, if that is needed.
    pub fn took(&mut self, taken: Taken, behind: impl FnOnce() -> Cluster) {
        let Some(queue) = &self.queue else { return };
        self.steps += 1;
        // Behind a gap only a whole state is of use.
        let sent = self.lost == 0 && queue.try_send(Item::Step(self.steps, taken)).is_ok();
        if sent && self.full.load(Ordering::Relaxed) < self.file {
            return;
        }
        self.lost += u64::from(!sent);
        // Where there is no place, the next step looks again.
        if let Ok(place) = queue.try_reserve() {
            place.send(Item::State(self.steps, Box::new(behind())));
            self.file += 1;
            tell_lost(std::mem::take(&mut self.lost));
        } else if queue.is_closed() {
            self.queue = None;
        }
    }
}

fn tell_lost(steps: u64) {
    if steps > 0 {
        tracing::warn!(
            steps,
            "the recording's disk is too slow: steps were left out"
        );
    }
}

impl Drop for Recorder {
    /// What waits is written yet.
    fn drop(&mut self) {
        self.queue = None;
        let _ = self.ended.recv_timeout(LAST);
    }
}

fn write(mut files: Files, mut items: mpsc::Receiver<Item>, full: &AtomicU32) {
    while let Some(item) = items.blocking_recv() {
        let mut written = match item {
            Item::Start(start) => files.start(start),
            Item::Step(number, taken) => files.step(number, taken),
            Item::State(steps, cluster) => files.state(steps, &cluster),
        };
        if items.is_empty() {
            written = written.and_then(|()| files.flush());
        }
        if let Err(error) = written {
            tracing::error!(%error, "the recording ends: it cannot be written");
            return;
        }
        if files.is_full() {
            full.store(files.number(), Ordering::Relaxed);
        }
    }
}

fn refused(settings: &RecordSettings, error: &std::io::Error) -> Problem {
    let dir = settings.dir.display();
    Problem::new(
        codes::HOST_IO,
        format!("recordings cannot be written to {dir}: {error}"),
    )
    .field("record.dir")
    .value(dir.to_string())
    .remedy("name a directory that the coordinator may write, or leave `record.dir` out")
}
