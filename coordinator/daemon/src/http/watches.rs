//! Who watches migrations: progress is sampled only while somebody does.
//!
//! A request that shows a migration's progress holds a watch for some seconds
//! beyond its own end, so that a client that asks again and again keeps one
//! watch going, and one that goes away ends it without a word.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use godwit_coordinator_logic::input::Input;
use godwit_shared::model::MigrationId;

use crate::cluster::ClusterHandle;

/// How long a watch outlives the request that held it.
const LINGER: Duration = Duration::from_secs(3);

/// Watches on migrations. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watches {
    cluster: ClusterHandle,
    /// When each watch ends unless it is held again.
    ends: Arc<Mutex<HashMap<MigrationId, Instant>>>,
}

impl Watches {
    /// Nobody watches anything yet.
    pub fn new(cluster: ClusterHandle) -> Self {
        Self {
            cluster,
            ends: Arc::default(),
        }
    }

    /// Watches a migration for `time` and a little longer.
    pub fn hold(&self, migration: MigrationId, time: Duration) {
        let end = Instant::now() + time + LINGER;
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = ends.get_mut(&migration) {
            *known = end.max(*known);
            return;
        }
        ends.insert(migration, end);
        drop(ends);
        actix::spawn(self.clone().keep(migration));
    }

    async fn keep(self, migration: MigrationId) {
        self.cluster
            .tell(Input::WatchMigration {
                migration,
                watch: true,
            })
            .await;
        while let Some(end) = self.due(migration) {
            tokio::time::sleep_until(end.into()).await;
        }
        self.cluster
            .tell(Input::WatchMigration {
                migration,
                watch: false,
            })
            .await;
    }

    /// When to look again; none when the watch has ended, which it does here.
    fn due(&self, migration: MigrationId) -> Option<Instant> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let end = *ends.get(&migration)?;
        if end > Instant::now() {
            return Some(end);
        }
        ends.remove(&migration);
        None
    }
}
