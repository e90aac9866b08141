//! A copy of the cluster's records, kept as the store changes.
//!
//! A coordinator that does not lead answers reads from it, also while the store
//! is silent: then it is as old as the silence. Commits come into it whole.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use godwit_coordinator_logic::cluster::{Cluster, LoadError, Settings};
use godwit_coordinator_logic::record::Key;
use godwit_shared::model::UnixMillis;

use crate::store::{Change, Scan, Store, StoreError, WatchEnd};

/// Between two attempts to read a store that fails.
const PAUSE: Duration = Duration::from_millis(500);

/// The copy.
#[derive(Debug, Default)]
pub struct Replica(Mutex<Records>);

#[derive(Debug, Default)]
struct Records {
    records: BTreeMap<String, Bytes>,
    /// Counts the changes; 0 before the first scan.
    version: u64,
}

impl Replica {
    /// A copy that is kept until the store is closed.
    pub fn of(store: Arc<dyn Store>) -> Arc<Self> {
        let replica = Arc::new(Self::default());
        actix::spawn(keep(store, Arc::clone(&replica)));
        replica
    }

    /// Which copy it is; 0 while there is none.
    pub fn version(&self) -> u64 {
        self.records().version
    }

    /// The cluster as a start would find it, and which copy that is.
    pub fn cluster(&self, settings: Settings) -> Result<(Cluster, u64), LoadError> {
        let (records, version) = {
            let kept = self.records();
            (kept.records.clone(), kept.version)
        };
        let records = records
            .into_iter()
            .map(|(key, value)| (key, value.to_vec()));
        // Timers and all else that follows from loading are the leader's.
        let cluster = Cluster::load(settings, UnixMillis::now(), records, &mut Vec::new())?;
        Ok((cluster, version))
    }

    fn fill(&self, scan: Scan) {
        let mut kept = self.records();
        kept.records = scan.entries.into_iter().map(|e| (e.key, e.value)).collect();
        kept.version += 1;
    }

    fn apply(&self, commit: Vec<Change>) {
        let mut kept = self.records();
        for change in commit {
            match change.value {
                Some(value) => kept.records.insert(change.key, value),
                None => kept.records.remove(&change.key),
            };
        }
        kept.version += 1;
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn keep(store: Arc<dyn Store>, replica: Arc<Replica>) {
    loop {
        match store.scan(Key::PREFIX).await {
            Ok(scan) => {
                let mut watch = store.watch(Key::PREFIX, scan.revision);
                replica.fill(scan);
                let end = loop {
                    match watch.next_commit().await {
                        Ok(commit) => replica.apply(commit),
                        Err(end) => break end,
                    }
                };
                if end == WatchEnd::Closed {
                    return;
                }
            }
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::debug!(%error, "the records cannot be copied yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
