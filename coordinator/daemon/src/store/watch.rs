//! Watches: every change behind a revision, in order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::Revision;

/// How many changes are kept for watches that begin late or read slowly.
const KEPT: usize = 4096;

/// One changed record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The commit that changed it.
    pub revision: Revision,
    /// The record.
    pub key: String,
    /// Its value; none when it was removed.
    pub value: Option<Bytes>,
}

/// Why a watch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnd {
    /// Changes were dropped that it had not seen: scan, and watch from there.
    #[error("changes up to revision {} are no longer kept; scan again", .0.0)]
    Compacted(Revision),
    /// The store was closed.
    #[error("the store was closed")]
    Closed,
}

/// A watch on records; see [`super::Store::watch`].
#[derive(Debug)]
pub struct Watch {
    history: Arc<History>,
    prefix: String,
    /// The last change that was looked at.
    seen: Position,
}

/// A change's place: its commit, and its index in it.
type Position = (Revision, usize);

impl Watch {
    /// The next change.
    pub async fn next(&mut self) -> Result<Change, WatchEnd> {
        let history = Arc::clone(&self.history);
        loop {
            // Registered before the look, so that no change falls in between.
            let changed = history.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(change) = self.look()? {
                return Ok(change);
            }
            changed.await;
        }
    }

    /// The next changes that came with one commit.
    pub async fn next_commit(&mut self) -> Result<Vec<Change>, WatchEnd> {
        let mut changes = vec![self.next().await?];
        let commit = changes[0].revision;
        // A commit's changes are added together, so they are all there.
        loop {
            let before = self.seen;
            match self.look() {
                Ok(Some(change)) if change.revision == commit => changes.push(change),
                _ => {
                    self.seen = before;
                    return Ok(changes);
                }
            }
        }
    }

    fn look(&mut self) -> Result<Option<Change>, WatchEnd> {
        let kept = self.history.kept();
        if self.seen.0 < kept.dropped {
            return Err(WatchEnd::Compacted(kept.dropped));
        }
        let begin = kept
            .changes
            .partition_point(|(place, _)| *place <= self.seen);
        for (place, change) in kept.changes.range(begin..) {
            self.seen = *place;
            if change.key.starts_with(&self.prefix) {
                return Ok(Some(change.clone()));
            }
        }
        if kept.closed {
            Err(WatchEnd::Closed)
        } else {
            Ok(None)
        }
    }
}

/// The last changes of a store, shared by its watches.
#[derive(Debug)]
pub(super) struct History {
    kept: Mutex<Kept>,
    changed: Notify,
}

#[derive(Debug)]
struct Kept {
    /// Changes of commits up to this one may be missing.
    dropped: Revision,
    changes: VecDeque<(Position, Change)>,
    closed: bool,
}

impl History {
    /// A history that begins behind `revision`.
    pub(super) fn after(revision: Revision) -> Arc<Self> {
        let kept = Kept {
            dropped: revision,
            changes: VecDeque::new(),
            closed: false,
        };
        Arc::new(Self {
            kept: Mutex::new(kept),
            changed: Notify::new(),
        })
    }

    pub(super) fn watch(self: &Arc<Self>, prefix: &str, after: Revision) -> Watch {
        let seen = (after, usize::MAX);
        Watch {
            history: Arc::clone(self),
            prefix: prefix.to_owned(),
            seen,
        }
    }

    /// Adds the changes of commits that are durable by now.
    pub(super) fn add(&self, changes: Vec<Change>) {
        let mut kept = self.kept();
        for change in changes {
            let index = match kept.changes.back() {
                Some(((revision, index), _)) if *revision == change.revision => index + 1,
                _ => 0,
            };
            kept.changes.push_back(((change.revision, index), change));
        }
        while kept.changes.len() > KEPT {
            if let Some(((revision, _), _)) = kept.changes.pop_front() {
                kept.dropped = revision;
            }
        }
        drop(kept);
        self.changed.notify_waiters();
    }

    /// The commit behind which it goes on.
    pub(super) fn last(&self) -> Revision {
        let kept = self.kept();
        let last = kept.changes.back().map(|((revision, _), _)| *revision);
        last.unwrap_or(kept.dropped)
    }

    /// Changes up to that commit were missed.
    pub(super) fn forget(&self, revision: Revision) {
        let mut kept = self.kept();
        kept.dropped = kept.dropped.max(revision);
        let dropped = kept.dropped;
        kept.changes.retain(|((of, _), _)| *of > dropped);
        drop(kept);
        self.changed.notify_waiters();
    }

    pub(super) fn close(&self) {
        self.kept().closed = true;
        self.changed.notify_waiters();
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn change(revision: u64) -> Change {
        Change {
            revision: Revision(revision),
            key: format!("k{revision}"),
            value: None,
        }
    }

    #[tokio::test]
    async fn a_slow_watch_is_told_and_not_fooled() {
        let history = History::after(Revision(0));
        let mut watch = history.watch("", Revision(0));
        let commits = KEPT as u64 + 10;
        for revision in 1..=commits {
            history.add(vec![change(revision)]);
        }
        assert_eq!(watch.next().await, Err(WatchEnd::Compacted(Revision(10))));
        let mut again = history.watch("", Revision(10));
        assert_eq!(again.next().await.unwrap().revision, Revision(11));
    }

    #[tokio::test]
    async fn a_closed_store_ends_its_watches_after_the_last_change() {
        let history = History::after(Revision(4));
        let mut watch = history.watch("k", Revision(4));
        history.add(vec![change(5)]);
        history.close();
        assert_eq!(watch.next().await.unwrap().key, "k5");
        assert_eq!(watch.next().await, Err(WatchEnd::Closed));
    }
}
