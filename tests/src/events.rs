//! The cluster's events, each with the moment of its arrival here.
//!
//! One connection collects everything from the first event on and follows a
//! coordinator across its restarts (it resumes by number), so a case looks at
//! what has come since a mark, and waits for what has not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use godwit_shared::api::Event;
use godwit_shared::model::{MigrationId, MigrationPhase};
use tokio::sync::watch;

use crate::api::{Api, parse_event};

/// An event and when it came.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// When it arrived here.
    pub at: Instant,
    /// The event.
    pub event: Event,
}

/// Everything that came so far.
#[derive(Debug)]
pub struct EventLog {
    seen: Arc<Mutex<Vec<Arrived>>>,
    count: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

/// A place in the log: what came later is new.
#[derive(Debug, Clone, Copy)]
pub struct Mark(usize);

impl EventLog {
    /// Begins to collect.
    pub fn start(api: Api) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (wake, count) = watch::channel(0);
        let task = tokio::spawn(collect(api, Arc::clone(&seen), wake));
        Self { seen, count, task }
    }

    /// Here and now.
    pub fn mark(&self) -> Mark {
        Mark(self.lock().len())
    }

    /// Everything that came since `mark`.
    pub fn since(&self, mark: Mark) -> Vec<Arrived> {
        self.lock().iter().skip(mark.0).cloned().collect()
    }

    /// The first event since `mark` that `wanted` accepts.
    ///
    /// # Errors
    /// When none came within `limit`; with those that did.
    pub async fn wait(
        &self,
        mark: Mark,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Arrived> {
        let mut count = self.count.clone();
        let search = async {
            loop {
                let found = self.since(mark).into_iter().find(|a| wanted(&a.event));
                if found.is_some() || count.changed().await.is_err() {
                    return found;
                }
            }
        };
        if let Ok(Some(found)) = tokio::time::timeout(limit, search).await {
            return Ok(found);
        }
        let came: Vec<String> = self.since(mark).iter().map(describe).collect();
        bail!(
            "no event `{what}` within {limit:?}; these came:\n{}",
            came.join("\n")
        )
    }

    /// The first word since `mark` that the migration has reached `phase`.
    ///
    /// # Errors
    /// As [`EventLog::wait`].
    pub async fn phase(
        &self,
        mark: Mark,
        migration: MigrationId,
        phase: MigrationPhase,
        limit: Duration,
    ) -> Result<Arrived> {
        let what = format!("migration {phase}");
        self.wait(mark, &what, limit, |event| {
            event.migration == Some(migration) && names_phase(event, phase)
        })
        .await
    }

    /// All of it, for the output of a failed case.
    pub fn dump(&self) -> String {
        let lines: Vec<String> = self.lock().iter().map(describe).collect();
        lines.join("\n")
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arrived>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether the event says that a migration is in that phase: it is the last
/// word of the sentence.
fn names_phase(event: &Event, phase: MigrationPhase) -> bool {
    event.kind == "migration.phase" && event.message.rsplit(' ').next() == Some(phase.as_str())
}

/// Whether `word` is a word of the event's sentence.
pub fn says(event: &Event, word: &str) -> bool {
    let between = |c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_';
    event.message.split(between).any(|part| part == word)
}

fn describe(arrived: &Arrived) -> String {
    let event = &arrived.event;
    format!(
        "  {} {} {} {}",
        event.seq, event.at, event.kind, event.message
    )
}

async fn collect(api: Api, seen: Arc<Mutex<Vec<Arrived>>>, wake: watch::Sender<usize>) {
    let mut last = 0;
    loop {
        if let Ok(stream) = api.event_stream(last).await {
            let take = |arrived: Arrived| {
                last = last.max(arrived.event.seq);
                let mut all = seen.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(arrived);
                wake.send_replace(all.len());
            };
            each(stream, take).await;
        }
        tokio::time::sleep(crate::wait::STEP).await;
    }
}

/// Hands over every event of a stream until it ends.
pub async fn each(stream: reqwest::Response, mut take: impl FnMut(Arrived)) {
    let mut bytes = stream.bytes_stream();
    let mut text = String::new();
    while let Some(Ok(chunk)) = bytes.next().await {
        let at = Instant::now();
        text.push_str(&String::from_utf8_lossy(&chunk));
        while let Some(end) = text.find("\n\n") {
            let block: String = text.drain(..end + 2).collect();
            if let Some(event) = parse_event(&block) {
                take(Arrived { at, event });
            }
        }
    }
}
