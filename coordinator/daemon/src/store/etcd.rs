//! The store in etcd (v3 API), under a prefix of its own.
//!
//! A record is a key of etcd, its revision is the key's `mod_revision`, and a
//! commit is one transaction: compares, then puts and deletes. Requests go through a
//! queue to one thread ("godwit-store") and are carried out one after the
//! other, so commits keep the order of the calls. A watch of etcd on the prefix feeds
//! the same [`History`] as with the embedded store.
//!
//! etcd takes no more than 128 operations and 1.5 MiB in one transaction
//! (`--max-txn-ops`, `--max-request-bytes`). Transactions within a transaction are
//! counted for themselves and are still one change, so [`Room::ETCD`] holds 4,096
//! writes; [`Store::room`] says so to who groups commits. One that is larger by
//! itself is refused by name ([`StoreError::TooLarge`]) and nothing of it is done.
//!
//! A transaction whose answer is lost may have taken place, or may still. Who
//! gets [`StoreError::Failed`] begins anew: with another fence (see
//! [`election`]) and from what a scan finds then.
//!
//! Other programs may use the same etcd: revisions grow, but not by one.

mod client;
mod election;
mod watching;

use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, KvClient, LeaseClient, Txn, TxnOp, TxnOpResponse,
};
use godwit_shared::model::{Millis, Problem};
use tokio::sync::{mpsc, oneshot};

use super::watch::{History, Watch};
use super::{
    Commit, CommitError, Entry, Expect, Pending, Revision, Room, Scan, Store, StoreError, Write,
    queue,
};
use crate::config::EtcdSettings;

pub use election::{Campaign, LEADER, Leadership, Loss};

/// Records that one request of a scan brings.
const PAGE: i64 = 500;
/// Operations that etcd takes in a transaction; those of one within it, and it
/// among its neighbours, together.
const OPERATIONS: usize = 128;

/// The [`Store`] in etcd.
#[derive(Debug)]
pub struct EtcdStore {
    requests: mpsc::UnboundedSender<Request>,
    history: Arc<History>,
    room: Room,
    lease: Millis,
    thread: std::sync::Mutex<Option<JoinHandle<()>>>,
}

enum Request {
    Record(String, oneshot::Sender<Result<Option<Entry>, StoreError>>),
    Scan(String, oneshot::Sender<Result<Scan, StoreError>>),
    Commit(Commit, oneshot::Sender<Result<Revision, CommitError>>),
    Campaign(Bytes, oneshot::Sender<Result<Campaign, StoreError>>),
    Close(oneshot::Sender<()>),
}

impl EtcdStore {
    /// Connects, and looks whether etcd answers. Blocks while it does.
    ///
    /// # Errors
    /// A [`Problem`] with code `config_invalid` about a file or an address, or
    /// with code `store` when etcd does not answer.
    pub fn open(settings: &EtcdSettings) -> Result<Self, Problem> {
        let (requests, queue) = mpsc::unbounded_channel();
        let (started, starting) = std::sync::mpsc::channel();
        let (room, lease) = (settings.room, settings.lease);
        let settings = settings.clone();
        let thread = std::thread::Builder::new()
            .name("godwit-store".into())
            .spawn(move || client::run(&settings, queue, &started))
            .map_err(Problem::internal)?;
        let history = starting
            .recv()
            .map_err(|_| Problem::internal("the store's thread has ended"))??;
        Ok(Self {
            requests,
            history,
            room,
            lease,
            thread: std::sync::Mutex::new(Some(thread)),
        })
    }

    /// Tries to become the leader, once. `leader` is what others read of it.
    pub fn campaign(&self, leader: Bytes) -> Pending<Campaign, StoreError> {
        self.ask(|answer| Request::Campaign(leader, answer))
    }

    /// How long a leader that is not heard of stays one.
    pub const fn lease(&self) -> Millis {
        self.lease
    }

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

impl Store for EtcdStore {
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

    fn room(&self) -> Room {
        self.room
    }

    fn watch(&self, prefix: &str, after: Revision) -> Watch {
        self.history.watch(prefix, after)
    }

    fn close(&self) -> Pending<(), StoreError> {
        queue::close(&self.requests, Request::Close)
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        let (closed, _) = mpsc::unbounded_channel();
        self.requests = closed;
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// Carries the requests out.
struct Worker {
    kv: KvClient,
    lease: LeaseClient,
    ttl: Millis,
    prefix: String,
    room: Room,
}

impl Worker {
    /// Until it is closed; who closed it.
    async fn run(
        mut self,
        mut queue: mpsc::UnboundedReceiver<Request>,
    ) -> Option<oneshot::Sender<()>> {
        let mut done = None;
        while let Some(request) = queue.recv().await {
            match request {
                Request::Record(key, answer) => drop(answer.send(self.record(&key).await)),
                Request::Scan(prefix, answer) => drop(answer.send(self.scan(&prefix).await)),
                Request::Commit(commit, answer) => {
                    drop(answer.send(self.commit(commit).await));
                }
                // Who gave up waiting for an etcd that was silent must not win
                // when it is back.
                Request::Campaign(_, answer) if answer.is_closed() => {}
                Request::Campaign(leader, answer) => {
                    let tried = self.campaign(leader).await;
                    if let Err(Ok(Campaign::Won(leadership))) = answer.send(tried) {
                        leadership.resign().await;
                    }
                }
                Request::Close(answer) => {
                    queue.close();
                    done = Some(answer);
                }
            }
        }
        done
    }

    fn full(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.prefix).into_bytes()
    }

    async fn record(&mut self, key: &str) -> Result<Option<Entry>, StoreError> {
        let full = self.full(key);
        let answer = client::within("read", self.kv.get(full, None)).await?;
        answer.kvs().first().map(|kv| self.entry(kv)).transpose()
    }

    /// Page by page, all at the revision of the first.
    async fn scan(&mut self, prefix: &str) -> Result<Scan, StoreError> {
        let full = self.full(prefix);
        let end = end_of(&full);
        let (mut from, mut revision, mut entries) = (full, 0, Vec::new());
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(PAGE)
                .with_revision(revision);
            let answer = client::within("scan", self.kv.get(from.clone(), Some(options))).await?;
            if revision == 0 {
                revision = answer
                    .header()
                    .map_or(0, etcd_client::ResponseHeader::revision);
            }
            for kv in answer.kvs() {
                entries.push(self.entry(kv)?);
            }
            match answer.kvs().last() {
                Some(last) if answer.more() => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => break,
            }
        }
        Ok(Scan {
            revision: number(revision),
            entries,
        })
    }

    async fn commit(&mut self, commit: Commit) -> Result<Revision, CommitError> {
        let writes = last_of_each(commit.writes);
        self.room.check(&writes, commit.expect.len())?;
        let compares: Vec<Compare> = commit.expect.iter().map(|e| self.compare(e)).collect();
        let looks = commit.expect.iter().map(|(key, _)| {
            let options = GetOptions::new().with_keys_only();
            TxnOp::get(self.full(key), Some(options))
        });
        let looks: Vec<TxnOp> = looks.collect();
        let ops: Vec<TxnOp> = writes.into_iter().map(|write| self.op(write)).collect();
        let txn = Txn::new()
            .when(compares)
            .and_then(nested(ops))
            .or_else(looks);
        let answer = client::within("commit", self.kv.txn(txn)).await?;
        if answer.succeeded() {
            let header = answer.header();
            return Ok(number(
                header.map_or(0, etcd_client::ResponseHeader::revision),
            ));
        }
        Err(conflict(&commit.expect, &answer.op_responses()))
    }

    fn compare(&self, (key, expect): &(String, Expect)) -> Compare {
        let key = self.full(key);
        match expect {
            Expect::Absent => Compare::version(key, CompareOp::Equal, 0),
            Expect::At(Revision(at)) => {
                let at = i64::try_from(*at).unwrap_or(i64::MAX);
                Compare::mod_revision(key, CompareOp::Equal, at)
            }
        }
    }

    fn op(&self, write: Write) -> TxnOp {
        match write {
            Write::Put { key, value } => TxnOp::put(self.full(&key), value, None),
            Write::Delete { key } => TxnOp::delete(self.full(&key), None),
        }
    }

    fn entry(&self, kv: &KeyValue) -> Result<Entry, StoreError> {
        let key = client::key_of(&self.prefix, kv).ok_or_else(|| StoreError::Failed {
            doing: "read",
            why: "a key is not text".into(),
        })?;
        Ok(Entry {
            key,
            value: Bytes::copy_from_slice(kv.value()),
            revision: number(kv.mod_revision()),
        })
    }
}

/// Which expectation does not hold, by what the refused transaction has read.
fn conflict(expect: &[(String, Expect)], found: &[TxnOpResponse]) -> CommitError {
    let found = found.iter().map(|answer| match answer {
        TxnOpResponse::Get(answer) => answer.kvs().first().map(|kv| number(kv.mod_revision())),
        _ => None,
    });
    let broken = expect
        .iter()
        .zip(found)
        .find(|((_, expect), found)| match expect {
            Expect::Absent => found.is_some(),
            Expect::At(revision) => *found != Some(*revision),
        });
    match broken {
        Some(((key, _), found)) => CommitError::Conflict {
            key: key.clone(),
            found,
        },
        None => StoreError::Failed {
            doing: "commit",
            why: "etcd refused a transaction whose conditions hold".into(),
        }
        .into(),
    }
}

/// The operations as they are, or in as many transactions as there may be
/// operations beside them.
fn nested(ops: Vec<TxnOp>) -> Vec<TxnOp> {
    if ops.len() <= OPERATIONS {
        return ops;
    }
    let groups = ops.chunks(OPERATIONS / 2);
    let group = |ops: &[TxnOp]| TxnOp::txn(Txn::new().and_then(ops.to_vec()));
    groups.map(group).collect()
}

/// etcd takes a key only once in a transaction: the last write counts.
fn last_of_each(writes: Vec<Write>) -> Vec<Write> {
    let mut seen = std::collections::HashSet::new();
    let mut last: Vec<Write> = writes
        .into_iter()
        .rev()
        .filter(|write| seen.insert(write.key().to_owned()))
        .collect();
    last.reverse();
    last
}

/// The first key behind all that begin with `prefix`, which is ASCII.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

/// etcd's revisions are positive.
fn number(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or_default())
}

#[cfg(test)]
mod tests;
