//! What a coordinator that does not lead can say: what the records hold, and
//! where the leader is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_coordinator_logic::cluster::{Cluster, LoadError, Settings};
use godwit_shared::model::{Problem, codes};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::cluster::ClusterHandle;
use crate::replica::Replica;
use crate::store::Store;

/// How old a shown copy may be when there is a newer one: loading a large
/// cluster for every request would be all that a follower does.
const AGE: Duration = Duration::from_millis(500);

/// The leader, as it tells the others of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Its API's URL.
    pub api: String,
    /// Where nodes reach it: `host:port`.
    pub cluster: String,
}

/// A follower's view of the cluster.
#[derive(Debug)]
pub struct Follower {
    handle: ClusterHandle,
    replica: Arc<Replica>,
    settings: Settings,
    leader: watch::Receiver<Option<Leader>>,
    shown: Mutex<Shown>,
}

#[derive(Debug)]
struct Shown {
    version: u64,
    since: Instant,
}

impl Follower {
    /// A view that shows nothing before the first [`Self::refresh`].
    pub fn new(
        store: Arc<dyn Store>,
        replica: Arc<Replica>,
        settings: Settings,
        leader: watch::Receiver<Option<Leader>>,
    ) -> Result<Self, Problem> {
        let empty = Replica::default().cluster(settings.clone());
        let (cluster, version) = empty.map_err(|error| unreadable(&error))?;
        let shown = Shown {
            version,
            since: Instant::now(),
        };
        Ok(Self {
            handle: ClusterHandle::copy(store, cluster, nobody()),
            replica,
            settings,
            leader,
            shown: Mutex::new(shown),
        })
    }

    /// The copy, for the handlers of reads.
    pub fn handle(&self) -> &ClusterHandle {
        &self.handle
    }

    /// Who leads, as far as this one knows.
    pub fn leader(&self) -> Option<Leader> {
        self.leader.borrow().clone()
    }

    /// Shows the newest copy.
    pub async fn refresh(&self) -> Result<(), Problem> {
        let mut shown = self.shown.lock().await;
        let newest = self.replica.version();
        if newest == 0 {
            return Err(no_copy());
        }
        let fresh = shown.version != 0 && shown.since.elapsed() < AGE;
        if newest == shown.version || fresh {
            return Ok(());
        }
        let (cluster, version) = self.load().await?;
        self.handle.replace(cluster).await;
        *shown = Shown {
            version,
            since: Instant::now(),
        };
        Ok(())
    }

    async fn load(&self) -> Result<(Cluster, u64), Problem> {
        let (replica, settings) = (Arc::clone(&self.replica), self.settings.clone());
        tokio::task::spawn_blocking(move || replica.cluster(settings))
            .await
            .map_err(Problem::internal)?
            .map_err(|error| unreadable(&error))
    }
}

fn unreadable(error: &LoadError) -> Problem {
    Problem::new(codes::STORE, error.to_string())
        .remedy("bring all coordinators to the same release")
}

fn no_copy() -> Problem {
    Problem::new(
        codes::NO_LEADER,
        "this coordinator does not lead, and has not read the store yet",
    )
    .remedy("try again in a moment; see that etcd runs if it stays so")
}

/// Nobody leads.
pub fn nobody() -> Problem {
    Problem::new(
        codes::NO_LEADER,
        "no coordinator leads the cluster now: nothing can be changed; VMs and migrations go on",
    )
    .remedy("try again in some seconds; if it stays so, see that a majority of etcd's members runs and that the coordinators reach them")
}
