//! Backups of the store: taken while it is in use, restored while it is not.
//!
//! A backup is one scan of the store, so it is of one moment and holds whole
//! commits alone. Two kinds of records stay out: `coordinator/`, which say
//! which process writes, and join tokens, which must not be good a second time.
//! The CA is not part of it: its key never leaves the coordinator's host over
//! the API. It does not change, and is copied once (docs/store.md).
//!
//! * [`take`] makes the file ([`godwit_shared::backup`]) from a store;
//! * [`read`] gives its records back;
//! * [`restore`] puts them where a coordinator starts from.

pub mod restore;

use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use godwit_shared::backup::{BackupHeader, damaged, open, seal};
use godwit_shared::model::{Problem, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::store::{Entry, Revision, Store};

/// Records that stay out: the first part of their keys.
const LEFT_OUT: [&str; 2] = ["coordinator/", "cluster/token/"];
/// The store's records are text that repeats itself: more would not gain much.
const LEVEL: i32 = 3;

/// Makes backups of a store.
#[derive(Clone)]
pub struct Backups {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The cluster's name.
    pub cluster: String,
    /// The CA's fingerprint.
    pub ca_fingerprint: String,
}

impl std::fmt::Debug for Backups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backups")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// A record's line.
#[derive(Debug, Serialize, Deserialize)]
struct Line<'a> {
    key: std::borrow::Cow<'a, str>,
    revision: u64,
    value: std::borrow::Cow<'a, str>,
}

impl Backups {
    /// A backup of this moment.
    pub async fn take(&self) -> Result<Vec<u8>, Problem> {
        let scan = self.store.scan("").await?;
        let about = self.clone();
        let sealing = move || about.seal(scan.revision, &scan.entries);
        tokio::task::spawn_blocking(sealing)
            .await
            .map_err(Problem::internal)?
    }

    fn seal(&self, revision: Revision, entries: &[Entry]) -> Result<Vec<u8>, Problem> {
        let kept = |entry: &&Entry| !LEFT_OUT.iter().any(|prefix| entry.key.starts_with(prefix));
        let entries: Vec<&Entry> = entries.iter().filter(kept).collect();
        let count = |prefix: &str| {
            let found = entries.iter().filter(|entry| entry.key.starts_with(prefix));
            found.count() as u64
        };
        let header = BackupHeader {
            cluster: self.cluster.clone(),
            ca_fingerprint: self.ca_fingerprint.clone(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            taken: UnixMillis::now(),
            revision: revision.0,
            records: entries.len() as u64,
            nodes: count("cluster/node/"),
            vms: count("cluster/vm/"),
        };
        seal(&header, &pack(&entries).map_err(Problem::internal)?)
    }
}

fn pack(entries: &[&Entry]) -> std::io::Result<Vec<u8>> {
    let mut packed = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
    for entry in entries {
        // Every value is JSON or plain text.
        let value = std::str::from_utf8(&entry.value).map_err(std::io::Error::other)?;
        let line = Line {
            key: entry.key.as_str().into(),
            revision: entry.revision.0,
            value: value.into(),
        };
        serde_json::to_writer(&mut packed, &line)?;
        packed.write_all(b"\n")?;
    }
    packed.finish()
}

/// What a backup holds, once it is known to be whole.
pub fn read(file: &[u8]) -> Result<(BackupHeader, Vec<Entry>), Problem> {
    let (header, packed) = open(file)?;
    let entries = unpack(packed).map_err(|error| damaged(&error.to_string()))?;
    if entries.len() as u64 != header.records {
        return Err(damaged("records are missing"));
    }
    Ok((header, entries))
}

fn unpack(packed: &[u8]) -> std::io::Result<Vec<Entry>> {
    let lines = BufReader::new(zstd::stream::read::Decoder::new(packed)?).lines();
    lines
        .map(|line| {
            let text = line?;
            let line: Line<'_> = serde_json::from_str(&text)?;
            Ok(Entry {
                key: line.key.into_owned(),
                value: Bytes::from(line.value.into_owned()),
                revision: Revision(line.revision),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::{Commit, RedbStore, Write};

    #[tokio::test]
    async fn a_backup_holds_the_cluster_and_neither_tokens_nor_the_writer() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&dir.path().join("store.redb")).unwrap();
        let put = |key: &str| Write::Put {
            key: key.into(),
            value: Bytes::from(format!("{{\"of\": \"{key}\"}}")),
        };
        let keys = ["auth/admin", "cluster/node/n1", "cluster/vm/1"];
        let out = ["cluster/token/t", "coordinator/writer"];
        for key in keys.iter().chain(&out) {
            store.commit(Commit::of(vec![put(key)])).await.unwrap();
        }
        let backups = Backups {
            store: Arc::new(store),
            cluster: "godwit".into(),
            ca_fingerprint: "ab".into(),
        };
        let (header, entries) = read(&backups.take().await.unwrap()).unwrap();
        assert_eq!((header.revision, header.records), (5, 3));
        assert_eq!((header.nodes, header.vms), (1, 1));
        let found: Vec<_> = entries
            .iter()
            .map(|e| (e.key.as_str(), e.revision.0))
            .collect();
        assert_eq!(found, keys.into_iter().zip(1..).collect::<Vec<_>>());
        assert_eq!(entries[1].value, "{\"of\": \"cluster/node/n1\"}");
    }
}
