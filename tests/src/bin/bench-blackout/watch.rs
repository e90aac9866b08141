//! When guests stopped and ran on, by their QEMUs' own word (`STOP`, `RESUME`).
//!
//! Every QEMU opens a second QMP session to the socket of this (see
//! [`network`](crate::network)): so the events of those that Godwit runs are seen
//! without a part of Godwit between.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use godwit_tests::bare::{Qmp, time_of};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// Moments since the epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pause {
    pub(crate) stop: Duration,
    pub(crate) resume: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Stop,
    Resume,
}

type Seen = Mutex<Vec<(Event, Duration)>>;

/// Listens for as long as it lives.
#[derive(Debug)]
pub(crate) struct Watch {
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Takes the sessions that QEMUs open to `socket`.
    pub(crate) fn start(socket: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let seen = Arc::new(Seen::default());
        let task = tokio::spawn(accept(listener, Arc::clone(&seen)));
        Ok(Self { seen, task })
    }

    /// Only the next pause counts.
    pub(crate) fn forget(&self) {
        lock(&self.seen).clear();
    }

    /// The first pause since then, when it is over.
    pub(crate) fn pause(&self) -> Option<Pause> {
        let seen = lock(&self.seen);
        let first = |what, after| {
            let moments = seen
                .iter()
                .filter(|(event, at)| *event == what && *at > after);
            moments.map(|(_, at)| *at).min()
        };
        let stop = first(Event::Stop, Duration::ZERO)?;
        // Sessions are read each for itself, so not always in their order.
        let resume = first(Event::Resume, stop)?;
        Some(Pause { stop, resume })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(seen: &Seen) -> std::sync::MutexGuard<'_, Vec<(Event, Duration)>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: UnixListener, seen: Arc<Seen>) {
    let mut sessions = JoinSet::new();
    while let Ok((session, _)) = listener.accept().await {
        let seen = Arc::clone(&seen);
        // One that ends was a QEMU's that has ended.
        sessions.spawn(async move { follow(session, &seen).await.ok() });
    }
}

async fn follow(session: UnixStream, seen: &Seen) -> Result<()> {
    let mut qmp = Qmp::over(session).await?;
    loop {
        let event = qmp.event(Duration::MAX, |_| true).await?;
        let what = match event["event"].as_str() {
            Some("STOP") => Event::Stop,
            Some("RESUME") => Event::Resume,
            _ => continue,
        };
        lock(seen).push((what, time_of(&event)));
    }
}
