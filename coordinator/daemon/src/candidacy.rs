//! Several coordinators on one store: this one follows, leads, and follows again.
//!
//! ```text
//!            +--------------- the lease is another's: watch it -----------+
//!            v                                                            |
//!  start -> campaign -- won --> load the records, serve as the leader     |
//!            ^                    | the lease lapsed, a write was refused |
//!            |                    v                                       |
//!            +--- close the sessions, fail what is not durable -----------+
//! ```
//!
//! To lead begins as a start of a lone coordinator does: from the records, with
//! nodes that come back and say what they run. To cease ends everything at once:
//! no node and no operator is served by one that may not write.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use godwit_coordinator_logic::cluster::Settings;
use godwit_shared::model::{Problem, UnixMillis, codes};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::cluster::{ClusterHandle, Extras, Fence};
use crate::follower::{Follower, Leader};
use crate::http::{ApiParts, Door};
use crate::replica::Replica;
use crate::session::{Role, SessionContext};
use crate::store::{Campaign, EtcdStore, LEADER, Leadership, Store};

/// After something failed, before the next attempt.
const PAUSE: Duration = Duration::from_millis(500);

/// One coordinator's part in the elections.
pub struct Candidacy {
    /// Where they are held.
    pub store: Arc<EtcdStore>,
    /// What this one says of itself.
    pub about: Leader,
    /// What a cluster begins with.
    pub settings: Settings,
    /// What else the cluster is given.
    pub extras: Extras,
    /// The API.
    pub door: Arc<Door>,
    /// What its handlers share in both roles.
    pub api: ApiParts,
    /// The nodes' side.
    pub roles: watch::Sender<Role>,
    /// What a session needs, but for the cluster.
    pub sessions: SessionParts,
    /// Who leads, for followers.
    pub leader: watch::Sender<Option<Leader>>,
    /// Set when the daemon ends.
    pub stop: CancellationToken,
    /// Set once this one leads, or knows that it does not.
    pub settled: CancellationToken,
}

/// What a session needs, but for the cluster.
#[derive(Debug, Clone)]
pub struct SessionParts {
    /// Signs certificates.
    pub authority: crate::authority::Authority,
    /// The cluster's name.
    pub name: String,
}

/// A follower's view, and the channel by which it is told who leads.
pub fn follower(
    store: &Arc<EtcdStore>,
    settings: &Settings,
) -> Result<(Arc<Follower>, watch::Sender<Option<Leader>>), Problem> {
    let (tell, leader) = watch::channel(None);
    let store: Arc<dyn Store> = Arc::clone(store) as Arc<dyn Store>;
    let replica = Replica::of(Arc::clone(&store));
    let follower = Follower::new(store, replica, settings.clone(), leader)?;
    Ok((Arc::new(follower), tell))
}

impl Candidacy {
    /// Until the daemon ends.
    pub async fn run(self, follower: Arc<Follower>) {
        while !self.stop.is_cancelled() {
            let stop = self.stop.clone();
            let Some(tried) = stop.run_until_cancelled(self.campaign()).await else {
                return;
            };
            match tried {
                Ok(Campaign::Won(leadership)) => self.lead(*leadership, &follower).await,
                Ok(Campaign::Taken { leader, seen }) => {
                    self.follow(leader.as_ref());
                    self.settled.cancel();
                    let mut watch = self.store.watch(LEADER, seen);
                    // The second is for a watch that broke without a word.
                    let next = tokio::time::timeout(self.period(), watch.next());
                    let _ = stop.run_until_cancelled(next).await;
                }
                Err(problem) => {
                    tracing::warn!(%problem, "no election: this coordinator only answers reads");
                    self.follow(None);
                    self.settled.cancel();
                    let _ = stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
                }
            }
        }
    }

    /// How often a follower makes sure that there is a leader, and an etcd.
    fn period(&self) -> Duration {
        self.store.lease().duration() / 3
    }

    async fn campaign(&self) -> Result<Campaign, Problem> {
        let about = serde_json::to_vec(&self.about).map_err(Problem::internal)?;
        let campaign = self.store.campaign(Bytes::from(about));
        // A store that hangs must not leave a follower that names a dead leader.
        match tokio::time::timeout(self.store.lease().duration(), campaign).await {
            Ok(tried) => Ok(tried?),
            Err(_) => Err(Problem::new(codes::STORE, "etcd does not answer")),
        }
    }

    fn follow(&self, leader: Option<&Bytes>) {
        let leader = leader.and_then(|bytes| serde_json::from_slice::<Leader>(bytes).ok());
        // A record of its own is from before a restart or a loss.
        let leader = leader.filter(|leader| leader.api != self.about.api);
        let cluster = leader.as_ref().map(|leader| leader.cluster.clone());
        if self.leader.send_replace(leader.clone()) != leader {
            match &leader {
                Some(leader) => tracing::info!(leader = %leader.api, "another coordinator leads"),
                None => tracing::info!("no coordinator leads"),
            }
            self.roles.send_replace(Role::Follows { leader: cluster });
        }
    }

    async fn lead(&self, leadership: Leadership, follower: &Arc<Follower>) {
        let (fatal, mut failures) = mpsc::unbounded_channel();
        let handle = match self.begin(&leadership, fatal).await {
            Ok(handle) => handle,
            Err(problem) => {
                tracing::error!(%problem, "cannot lead");
                self.settled.cancel();
                leadership.resign().await;
                tokio::time::sleep(PAUSE).await;
                return;
            }
        };
        let ending = self.stop.child_token();
        self.door.open(self.api.leader(&handle, ending.clone()));
        self.roles.send_replace(Role::Leads(SessionContext {
            cluster: handle.clone(),
            authority: self.sessions.authority.clone(),
            name: self.sessions.name.clone(),
        }));
        self.settled.cancel();
        tracing::info!(fence = leadership.fence.0, "this coordinator leads");
        let why = tokio::select! {
            loss = leadership.lost() => Some(loss.to_string()),
            Some(problem) = failures.recv() => Some(problem.to_string()),
            () = self.stop.cancelled() => None,
        };
        match why {
            Some(why) => {
                tracing::error!(why, "this coordinator leads no more");
                handle.depose(ceased()).await;
            }
            None => {
                handle.events().close();
                handle.halt().await;
            }
        }
        ending.cancel();
        self.leader.send_replace(None);
        self.roles.send_replace(Role::Follows { leader: None });
        // Once more: a session may have been let in by the former role.
        handle.sessions().end("this coordinator leads no more");
        let end = self.stop.child_token();
        self.door.open(self.api.follower(follower, end));
        leadership.resign().await;
    }

    /// The cluster from its records, written to by nobody else from here on.
    async fn begin(
        &self,
        leadership: &Leadership,
        fatal: mpsc::UnboundedSender<Problem>,
    ) -> Result<ClusterHandle, Problem> {
        let fence = Fence {
            key: LEADER,
            revision: leadership.fence,
        };
        let settings = Settings {
            started: UnixMillis::now(),
            ..self.settings.clone()
        };
        let store: Arc<dyn Store> = Arc::clone(&self.store) as Arc<dyn Store>;
        let leading = ClusterHandle::lead(store, fence, settings, self.extras.clone(), fatal);
        tokio::select! {
            handle = leading => handle,
            loss = leadership.lost() => Err(Problem::new(codes::NO_LEADER, loss.to_string())),
        }
    }
}

fn ceased() -> Problem {
    Problem::new(
        codes::NO_LEADER,
        "this coordinator has ceased to lead the cluster while it wrote; it may have been done",
    )
    .remedy("look first whether it was done, in some seconds, when another coordinator leads")
}
