//! Who writes: a coordinator alone from its start on, or the one that is elected.

use std::sync::Arc;

use godwit_coordinator_logic::cluster::Settings;
use godwit_shared::model::Problem;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::candidacy::{Candidacy, SessionParts, follower};
use crate::cluster::{ClusterHandle, Extras};
use crate::config::StoreSettings;
use crate::follower::Leader;
use crate::http::{ApiParts, Door};
use crate::session::{Role, SessionContext};
use crate::state_dir::StateDir;
use crate::store::{EtcdStore, RedbStore, Store};

/// The store, by its kind.
pub(super) enum Opened {
    /// Nobody else's.
    Embedded(Arc<RedbStore>),
    /// Other coordinators' as well.
    Etcd(Arc<EtcdStore>),
}

impl Opened {
    /// Opening checks the whole file, or waits for etcd: both take their time.
    pub(super) async fn open(dir: &StateDir, settings: &StoreSettings) -> Result<Self, Problem> {
        let (path, settings) = (dir.store(), settings.clone());
        let opening = move || -> Result<Self, Problem> {
            Ok(match settings {
                StoreSettings::Embedded => Self::Embedded(Arc::new(RedbStore::open(&path)?)),
                StoreSettings::Etcd(etcd) => Self::Etcd(Arc::new(EtcdStore::open(&etcd)?)),
            })
        };
        tokio::task::spawn_blocking(opening)
            .await
            .map_err(Problem::internal)?
    }

    pub(super) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded(store) => Arc::clone(store) as Arc<dyn Store>,
            Self::Etcd(store) => Arc::clone(store) as Arc<dyn Store>,
        }
    }

    pub(super) const fn is_shared(&self) -> bool {
        matches!(self, Self::Etcd(_))
    }
}

/// The writer of the cluster's records.
#[derive(Debug)]
pub(super) enum Leading {
    /// This one, always.
    Alone(ClusterHandle),
    /// Who is elected.
    Elected(JoinHandle<()>),
}

impl Leading {
    /// Resolves when nothing more is written. The stop was told before.
    pub(super) async fn end(self) {
        match self {
            Self::Alone(handle) => handle.halt().await,
            Self::Elected(candidacy) => {
                let _ = candidacy.await;
            }
        }
    }
}

/// What it begins with.
pub(super) struct Begin {
    pub(super) settings: Settings,
    pub(super) about: Leader,
    pub(super) sessions: SessionParts,
    pub(super) parts: ApiParts,
    pub(super) extras: Extras,
    pub(super) stop: CancellationToken,
}

type Begun = (Arc<Door>, watch::Receiver<Role>, Leading);

impl Begin {
    /// A failure of a lone coordinator's store is told to `fatal`.
    pub(super) async fn begin(
        self,
        opened: Opened,
        fatal: mpsc::UnboundedSender<Problem>,
    ) -> Result<Begun, Problem> {
        match opened {
            Opened::Embedded(store) => self.alone(store, fatal).await,
            Opened::Etcd(store) => self.elected(store).await,
        }
    }

    async fn alone(
        self,
        store: Arc<RedbStore>,
        fatal: mpsc::UnboundedSender<Problem>,
    ) -> Result<Begun, Problem> {
        let handle = ClusterHandle::start_with(store, self.settings, self.extras, fatal).await?;
        let door = Door::new(self.parts.leader(&handle, self.stop));
        let role = Role::Leads(SessionContext {
            cluster: handle.clone(),
            authority: self.sessions.authority,
            name: self.sessions.name,
        });
        Ok((Arc::new(door), role.always(), Leading::Alone(handle)))
    }

    /// When this returns, it is known whether this one leads.
    async fn elected(self, store: Arc<EtcdStore>) -> Result<Begun, Problem> {
        let (follower, leader) = follower(&store, &self.settings)?;
        let door = Door::new(self.parts.follower(&follower, self.stop.child_token()));
        let door = Arc::new(door);
        let (tell, roles) = watch::channel(Role::Follows { leader: None });
        let settled = CancellationToken::new();
        let candidacy = Candidacy {
            store,
            about: self.about,
            settings: self.settings,
            extras: self.extras,
            door: Arc::clone(&door),
            api: self.parts,
            roles: tell,
            sessions: self.sessions,
            leader,
            stop: self.stop,
            settled: settled.clone(),
        };
        let running = actix::spawn(candidacy.run(follower));
        settled.cancelled().await;
        Ok((door, roles, Leading::Elected(running)))
    }
}
