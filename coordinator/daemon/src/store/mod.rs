//! Where the cluster's records live.
//!
//! A [`Store`] is a sorted map from text keys to bytes in which every change
//! has a revision, as in etcd: whole commits only, compare-and-set on
//! revisions, scans of one moment, and a watch. [`RedbStore`] keeps it in one
//! file of the coordinator's state directory, [`EtcdStore`] in etcd. Both pass
//! the same [`conformance`] tests.
//!
//! Invariants:
//! * a commit that answered [`Ok`] survives the process and the host;
//! * a commit is seen whole or not at all, and revisions grow with each;
//! * a commit whose expectations do not hold changes nothing;
//! * a watch delivers every commit behind its start in order, or ends with
//!   [`WatchEnd`]; it never skips one silently.

#[cfg(test)]
pub(crate) mod conformance;
mod etcd;
mod queue;
mod redb;
mod room;
mod watch;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use godwit_shared::model::{Problem, codes};

pub use self::etcd::{Campaign, EtcdStore, LEADER, Leadership, Loss};
pub use self::redb::RedbStore;
pub use room::Room;
pub use watch::{Change, Watch, WatchEnd};

/// Counts commits; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Revision(pub u64);

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// The commit that wrote it.
    pub revision: Revision,
}

/// Records of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The last commit before that moment.
    pub revision: Revision,
    /// The records, by key.
    pub entries: Vec<Entry>,
}

/// What has to hold for a commit to take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// There is no such record.
    Absent,
    /// The record was last written by that commit.
    At(Revision),
}

/// One change of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Makes or replaces a record.
    Put {
        /// Its key.
        key: String,
        /// Its value.
        value: Bytes,
    },
    /// Removes a record, if it is there.
    Delete {
        /// Its key.
        key: String,
    },
}

/// Changes that happen together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commit {
    /// What has to hold first.
    pub expect: Vec<(String, Expect)>,
    /// The changes.
    pub writes: Vec<Write>,
}

impl Commit {
    /// Changes without a condition.
    pub fn of(writes: Vec<Write>) -> Self {
        Self {
            expect: Vec::new(),
            writes,
        }
    }

    /// Adds a condition.
    #[must_use]
    pub fn expecting(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.expect.push((key.into(), expect));
        self
    }
}

/// A store could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store does not work any more; what was asked may or may not have happened.
    #[error("the store failed while it was to {doing}: {why}")]
    Failed {
        /// What it was to do.
        doing: &'static str,
        /// What went wrong.
        why: String,
    },
    /// A commit is larger than the store takes; nothing of it was done.
    #[error("a commit of {writes} records and {bytes} bytes is more than the store takes at once: {} and {}", .room.writes, .room.bytes)]
    TooLarge {
        /// Its writes, or its expectations where they are more.
        writes: usize,
        /// Its bytes.
        bytes: usize,
        /// What the store takes.
        room: Room,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

/// A commit did not take place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// An expectation does not hold; nothing was changed.
    #[error("record `{key}` is not as expected: it is at revision {found:?}")]
    Conflict {
        /// The record.
        key: String,
        /// The commit that last wrote it; none when there is no such record.
        found: Option<Revision>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let remedy = match error {
            StoreError::TooLarge { .. } => {
                "start etcd with a larger --max-request-bytes, and tell the coordinator in [store]"
            }
            _ => {
                "look at the disk (or at etcd) and the coordinator's log, then restart the coordinator"
            }
        };
        Problem::new(codes::STORE, error.to_string()).remedy(remedy)
    }
}

impl From<CommitError> for Problem {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict { .. } => Problem::new(codes::STORE, error.to_string())
                .remedy("another coordinator has taken the cluster over; stop one of the two"),
            CommitError::Store(error) => error.into(),
        }
    }
}

/// An answer that is on its way.
pub type Pending<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// A durable map with revisions.
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// One record.
    fn record(&self, key: &str) -> Pending<Option<Entry>, StoreError>;

    /// Every record whose key begins with `prefix`, sorted, of one moment.
    fn scan(&self, prefix: &str) -> Pending<Scan, StoreError>;

    /// Makes the changes if the expectations hold. Commits take place in the
    /// order of these calls.
    fn commit(&self, commit: Commit) -> Pending<Revision, CommitError>;

    /// How much one commit may hold.
    fn room(&self) -> Room {
        Room::UNBOUNDED
    }

    /// Changes of records whose key begins with `prefix`, by commits behind `after`.
    fn watch(&self, prefix: &str, after: Revision) -> Watch;

    /// Ends the store: waits for what was begun, and lets go of the file.
    fn close(&self) -> Pending<(), StoreError>;
}
