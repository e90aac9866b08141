//! Looking at the cluster's state without asking its actor.
//!
//! Lists of thousands of VMs must not hold up the one writer, so views are
//! made under a read lock, on the thread of whoever asks. What a step changed
//! is seen at once, but handed out only when it is durable: otherwise a client
//! could act on what a crash then undoes.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use godwit_coordinator_logic::cluster::Cluster;
use godwit_shared::model::{Problem, codes};
use tokio::sync::watch;

use super::COMMIT;

/// Looks at the cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    state: Arc<RwLock<State>>,
    durable: watch::Receiver<u64>,
}

#[derive(Debug)]
struct State {
    cluster: Cluster,
    /// Counts the steps.
    version: u64,
}

impl Reader {
    /// What `look` sees, once all of it is durable. `look` should only make a
    /// view: it keeps the writer waiting.
    pub async fn read<T>(&self, look: impl FnOnce(&Cluster) -> T) -> Result<T, Problem> {
        let (seen, version) = self.look(look);
        let mut durable = self.durable.clone();
        reach(&mut durable, version).await?;
        Ok(seen)
    }

    /// Like [`Self::read`], after every step anew until `enough` or the deadline.
    pub async fn read_until<T>(
        &self,
        deadline: Instant,
        look: impl Fn(&Cluster) -> T,
        enough: impl Fn(&T) -> bool,
    ) -> Result<T, Problem> {
        let mut durable = self.durable.clone();
        loop {
            let (seen, version) = self.look(&look);
            let reached = reach(&mut durable, version).await?;
            if enough(&seen) || Instant::now() >= deadline {
                return Ok(seen);
            }
            if reached > version {
                continue;
            }
            match tokio::time::timeout_at(deadline.into(), durable.changed()).await {
                Ok(changed) => changed.map_err(|_| failed())?,
                Err(_) => return Ok(seen),
            }
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Cluster) -> T) -> (T, u64) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        (look(&state.cluster), state.version)
    }

    /// What `look` sees now, durable or not: for what is not told to anybody.
    pub fn peek<T>(&self, look: impl FnOnce(&Cluster) -> T) -> T {
        self.look(look).0
    }
}

/// Waits until that step is durable, no longer than a commit may take.
async fn reach(durable: &mut watch::Receiver<u64>, version: u64) -> Result<u64, Problem> {
    let wait = durable.wait_for(|durable| *durable >= version);
    match tokio::time::timeout(COMMIT, wait).await {
        Ok(Ok(reached)) => Ok(*reached),
        Ok(Err(_)) => Err(failed()),
        Err(_) => Err(Problem::new(codes::STORE, "the store does not answer")
            .remedy("look at the coordinator's disk and its log")),
    }
}

fn failed() -> Problem {
    Problem::new(codes::STORE, "the store has failed")
        .remedy("look at the coordinator's log; it ends and has to be started again")
}

/// The writer's side.
#[derive(Debug)]
pub(super) struct Writer {
    state: Arc<RwLock<State>>,
    durable: watch::Sender<u64>,
}

/// Loading the records counts as a step.
pub(super) const FIRST_STEP: u64 = 1;

pub(super) fn pair(cluster: Cluster) -> (Reader, Writer) {
    let state = Arc::new(RwLock::new(State {
        cluster,
        version: FIRST_STEP,
    }));
    let (sender, durable) = watch::channel(0);
    (
        Reader {
            state: Arc::clone(&state),
            durable,
        },
        Writer {
            state,
            durable: sender,
        },
    )
}

impl Writer {
    /// Takes a step; the number is for [`Writer::durable`].
    pub(super) fn step<T>(&mut self, step: impl FnOnce(&mut Cluster) -> T) -> (T, u64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.version += 1;
        let version = state.version;
        (step(&mut state.cluster), version)
    }

    /// The state as it is, to write down.
    pub(super) fn copy(&self) -> Cluster {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.cluster.clone()
    }

    /// Everything up to that step is durable.
    pub(super) fn durable(&self, version: u64) {
        self.durable.send_replace(version);
    }
}
