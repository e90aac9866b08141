//! etcd's watch on the prefix, as the store's history.
//!
//! It is asked for anew behind the last change whenever it breaks. When etcd
//! has compacted what comes next, the watches of this store are told and scan.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Client, Event, EventType, WatchOptions, WatchResponse};

use super::client::{key_of, within};
use super::{end_of, number};
use crate::store::watch::{Change, History};
use crate::store::{Revision, StoreError};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Until it is aborted.
pub(super) async fn feed(mut client: Client, prefix: String, history: Arc<History>) {
    let mut seen = history.last();
    loop {
        if let Err(error) = follow(&mut client, &prefix, &history, &mut seen).await {
            tracing::debug!(%error, "the watch on etcd broke");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow(
    client: &mut Client,
    prefix: &str,
    history: &History,
    seen: &mut Revision,
) -> Result<(), StoreError> {
    let start = i64::try_from(seen.0).unwrap_or_default() + 1;
    let options = WatchOptions::new()
        .with_range(end_of(prefix.as_bytes()))
        .with_start_revision(start);
    let mut stream = within("watch", client.watch(prefix, Some(options))).await?;
    loop {
        let message = stream.message().await.map_err(|error| StoreError::Failed {
            doing: "watch",
            why: error.to_string(),
        })?;
        let Some(answer) = message else { return Ok(()) };
        if answer.compact_revision() > 0 {
            let compacted = number(answer.compact_revision() - 1);
            history.forget(compacted);
            *seen = compacted.max(*seen);
            return Ok(());
        }
        if answer.canceled() {
            return Ok(());
        }
        take(&answer, prefix, history, seen);
    }
}

fn take(answer: &WatchResponse, prefix: &str, history: &History, seen: &mut Revision) {
    let changes = answer.events().iter().filter_map(|e| change(e, prefix));
    let changes: Vec<Change> = changes.collect();
    if let Some(last) = changes.last() {
        *seen = last.revision;
        history.add(changes);
    }
}

fn change(event: &Event, prefix: &str) -> Option<Change> {
    let kv = event.kv()?;
    let put = event.event_type() == EventType::Put;
    Some(Change {
        revision: number(kv.mod_revision()),
        key: key_of(prefix, kv)?,
        value: put.then(|| Bytes::copy_from_slice(kv.value())),
    })
}
