//! The embedded store: one redb file.
//!
//! A thread of its own ("godwit-store") does every access, since a commit
//! waits for the disk. Requests come through a queue; commits that wait
//! together go to disk together (group commit), each with its own revision and
//! its own verdict.
//!
//! Tables: `records` holds key to (revision, value); `meta` holds `revision`
//! (of the last commit) and `format`. A new file is made beside its place and
//! renamed, so a crash during the first start leaves no half store.

mod file;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use ::redb::{Database, Durability, ReadableDatabase as _, ReadableTable, TableDefinition};
use bytes::Bytes;
use godwit_shared::model::Problem;
use tokio::sync::{mpsc, oneshot};

use super::watch::{Change, History, Watch};
use super::{
    Commit, CommitError, Entry, Expect, Pending, Revision, Scan, Store, StoreError, Write, queue,
};

const RECORDS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("records");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Most commits that go to disk together.
const GROUP: usize = 256;

/// The embedded [`Store`].
#[derive(Debug)]
pub struct RedbStore {
    requests: mpsc::UnboundedSender<Request>,
    history: Arc<History>,
    thread: std::sync::Mutex<Option<JoinHandle<()>>>,
}

enum Request {
    Record(String, oneshot::Sender<Result<Option<Entry>, StoreError>>),
    Scan(String, oneshot::Sender<Result<Scan, StoreError>>),
    Commit(Commit, oneshot::Sender<Result<Revision, CommitError>>),
    Close(oneshot::Sender<()>),
}

impl RedbStore {
    /// Opens the file, and makes it when it is not there.
    ///
    /// # Errors
    /// A [`Problem`] with code `store` that says whether the file is damaged,
    /// in use, of another release, or refused by the system.
    pub fn open(path: &Path) -> Result<Self, Problem> {
        if !path.exists() {
            file::create(path)?;
        }
        let database = file::open(path)?;
        let revision = file::check(&database, path)?;
        let history = History::after(revision);
        let (requests, queue) = mpsc::unbounded_channel();
        let worker = Worker {
            database,
            revision,
            history: Arc::clone(&history),
            failed: None,
        };
        let thread = std::thread::Builder::new()
            .name("godwit-store".into())
            .spawn(move || worker.run(queue))
            .map_err(|e| file::refused(path, "start the store's thread for", &e))?;
        Ok(Self {
            requests,
            history,
            thread: std::sync::Mutex::new(Some(thread)),
        })
    }

    /// Makes a file with these records, as a restore does.
    ///
    /// # Errors
    /// A [`Problem`] with code `store` when the system refuses.
    pub fn write_file(path: &Path, revision: Revision, entries: &[Entry]) -> Result<(), Problem> {
        file::write(path, revision, entries)
    }

    /// Puts the request into the queue at once: so commits keep the order of the
    /// calls. The queue has no bound; the one writer has one commit under way.
    fn ask<T, E>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Request,
    ) -> Pending<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        queue::ask(&self.requests, make)
    }
}

impl Store for RedbStore {
    fn record(&self, key: &str) -> Pending<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.ask(|answer| Request::Record(key, answer))
    }

    fn scan(&self, prefix: &str) -> Pending<Scan, StoreError> {
        let prefix = prefix.to_owned();
        self.ask(|answer| Request::Scan(prefix, answer))
    }

    fn commit(&self, commit: Commit) -> Pending<Revision, CommitError> {
        self.ask(|answer| Request::Commit(commit, answer))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Watch {
        self.history.watch(prefix, after)
    }

    fn close(&self) -> Pending<(), StoreError> {
        queue::close(&self.requests, Request::Close)
    }
}

impl Drop for RedbStore {
    /// Waits until the file is let go of, so that it can be opened again.
    fn drop(&mut self) {
        let (closed, _) = mpsc::unbounded_channel();
        self.requests = closed;
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

struct Worker {
    database: Database,
    revision: Revision,
    history: Arc<History>,
    /// Set by the first failed commit: from then on nothing is known of the file.
    failed: Option<StoreError>,
}

type Waiting = (Commit, oneshot::Sender<Result<Revision, CommitError>>);

impl Worker {
    fn run(mut self, mut queue: mpsc::UnboundedReceiver<Request>) {
        let mut done = None;
        while let Some(request) = queue.blocking_recv() {
            let mut next = Some(request);
            while let Some(request) = next.take() {
                match request {
                    Request::Commit(commit, answer) => {
                        next = self.group((commit, answer), &mut queue);
                    }
                    Request::Record(key, answer) => drop(answer.send(self.record(&key))),
                    Request::Scan(prefix, answer) => drop(answer.send(self.scan(&prefix))),
                    Request::Close(answer) => {
                        queue.close();
                        done = Some(answer);
                    }
                }
            }
        }
        self.history.close();
        drop(self.database);
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    /// Commits what waits in the queue, up to the first other request.
    fn group(
        &mut self,
        first: Waiting,
        queue: &mut mpsc::UnboundedReceiver<Request>,
    ) -> Option<Request> {
        let mut waiting = vec![first];
        let mut other = None;
        while waiting.len() < GROUP && other.is_none() {
            match queue.try_recv() {
                Ok(Request::Commit(commit, answer)) => waiting.push((commit, answer)),
                Ok(request) => other = Some(request),
                Err(_) => break,
            }
        }
        self.commit(waiting);
        other
    }

    fn commit(&mut self, waiting: Vec<Waiting>) {
        if let Some(failed) = &self.failed {
            for (_, answer) in waiting {
                let _ = answer.send(Err(failed.clone().into()));
            }
            return;
        }
        let (commits, answers): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        match write(&self.database, self.revision, commits) {
            Ok(written) => {
                self.revision = written.revision;
                self.history.add(written.changes);
                for (answer, verdict) in answers.into_iter().zip(written.verdicts) {
                    let _ = answer.send(verdict);
                }
            }
            Err(error) => {
                let failed = StoreError::Failed {
                    doing: "commit",
                    why: error.to_string(),
                };
                for answer in answers {
                    let _ = answer.send(Err(failed.clone().into()));
                }
                self.failed = Some(failed);
            }
        }
    }

    fn record(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let read = || -> Result<Option<Entry>, ::redb::Error> {
            let records = self.database.begin_read()?.open_table(RECORDS)?;
            Ok(records.get(key)?.map(|found| entry(key, found.value())))
        };
        read().map_err(|e| StoreError::Failed {
            doing: "read",
            why: e.to_string(),
        })
    }

    fn scan(&self, prefix: &str) -> Result<Scan, StoreError> {
        let read = || -> Result<Vec<Entry>, ::redb::Error> {
            let records = self.database.begin_read()?.open_table(RECORDS)?;
            let mut entries = Vec::new();
            for found in records.range(prefix..)? {
                let (key, value) = found?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                entries.push(entry(key.value(), value.value()));
            }
            Ok(entries)
        };
        read()
            .map(|entries| Scan {
                revision: self.revision,
                entries,
            })
            .map_err(|e| StoreError::Failed {
                doing: "scan",
                why: e.to_string(),
            })
    }
}

fn entry(key: &str, (revision, value): (u64, &[u8])) -> Entry {
    let (key, value) = (key.to_owned(), Bytes::copy_from_slice(value));
    Entry {
        key,
        value,
        revision: Revision(revision),
    }
}

struct Written {
    revision: Revision,
    changes: Vec<Change>,
    verdicts: Vec<Result<Revision, CommitError>>,
}

/// Writes a group of commits in one transaction and one sync of the file.
fn write(
    database: &Database,
    mut revision: Revision,
    commits: Vec<Commit>,
) -> Result<Written, ::redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    let (mut changes, mut verdicts) = (Vec::new(), Vec::new());
    {
        let mut records = transaction.open_table(RECORDS)?;
        for commit in commits {
            if let Some(conflict) = conflict(&records, &commit.expect)? {
                verdicts.push(Err(conflict));
                continue;
            }
            revision = Revision(revision.0 + 1);
            for change in commit.writes {
                changes.push(apply(&mut records, revision, change)?);
            }
            verdicts.push(Ok(revision));
        }
        transaction
            .open_table(META)?
            .insert("revision", revision.0)?;
    }
    transaction.commit()?;
    Ok(Written {
        revision,
        changes,
        verdicts,
    })
}

fn conflict(
    records: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
    expect: &[(String, Expect)],
) -> Result<Option<CommitError>, ::redb::Error> {
    for (key, expect) in expect {
        let found = records
            .get(key.as_str())?
            .map(|found| Revision(found.value().0));
        let holds = match expect {
            Expect::Absent => found.is_none(),
            Expect::At(revision) => found == Some(*revision),
        };
        if !holds {
            return Ok(Some(CommitError::Conflict {
                key: key.clone(),
                found,
            }));
        }
    }
    Ok(None)
}

fn apply(
    records: &mut ::redb::Table<'_, &'static str, (u64, &'static [u8])>,
    revision: Revision,
    change: Write,
) -> Result<Change, ::redb::Error> {
    match change {
        Write::Put { key, value } => {
            records.insert(key.as_str(), (revision.0, value.as_ref()))?;
            Ok(Change {
                revision,
                key,
                value: Some(value),
            })
        }
        Write::Delete { key } => {
            records.remove(key.as_str())?;
            Ok(Change {
                revision,
                key,
                value: None,
            })
        }
    }
}

#[cfg(test)]
mod tests;
