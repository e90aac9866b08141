//! A coordinator that ends at the worst moments, and comes back on the same
//! directory.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use godwit_coordinator::app::Coordinator;
use godwit_coordinator::authority::Authority;
use godwit_coordinator::cluster::ClusterHandle;
use godwit_coordinator::session::{self, SessionContext};
use godwit_coordinator::state_dir::StateDir;
use godwit_coordinator::store::{
    Commit, CommitError, Entry, Pending, RedbStore, Revision, Scan, Store, StoreError, Watch,
};
use godwit_coordinator_logic::cluster::{Limits, MigrationLimits, RebalanceSettings, Settings};
use godwit_coordinator_logic::input::Input;
use godwit_coordinator_logic::placement::Profiles;
use godwit_shared::api::{CreateVm, TaskState, TaskView, VmView};
use godwit_shared::model::{DomainState, TaskId, UnixMillis, VmId, VmSpec, codes};
use godwit_shared::transport::{Endpoint, TransportOptions, TransportRuntime};
use godwit_shared::wire::uplink::CoordinatorMessage;
use serde_json::json;
use tokio::sync::mpsc;

use super::node::{Node, hello, join};
use super::running::{Running, config, spec};

/// A store that dies right behind a commit: it is on disk, and nobody hears of it.
#[derive(Debug)]
struct Dying {
    inner: RedbStore,
    dead: AtomicBool,
}

impl Store for Dying {
    fn record(&self, key: &str) -> Pending<Option<Entry>, StoreError> {
        self.inner.record(key)
    }

    fn scan(&self, prefix: &str) -> Pending<Scan, StoreError> {
        self.inner.scan(prefix)
    }

    fn commit(&self, commit: Commit) -> Pending<Revision, CommitError> {
        let committed = self.inner.commit(commit);
        if !self.dead.load(Ordering::Relaxed) {
            return committed;
        }
        Box::pin(async move {
            let _ = committed.await;
            std::future::pending().await
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Watch {
        self.inner.watch(prefix, after)
    }

    fn close(&self) -> Pending<(), StoreError> {
        self.inner.close()
    }
}

fn settings() -> Settings {
    Settings {
        name: "godwit".into(),
        software: "0".into(),
        ca_fingerprint: String::new(),
        started: UnixMillis::now(),
        placement: Profiles::default(),
        migrations: MigrationLimits::default(),
        rebalance: RebalanceSettings::default(),
        limits: Limits::default(),
        fence_agents: std::collections::BTreeSet::new(),
    }
}

/// The coordinator's cluster and sessions over a store that can die.
struct Mortal {
    store: Arc<Dying>,
    handle: ClusterHandle,
    endpoint: Endpoint,
    _runtime: TransportRuntime,
    _dir: StateDir,
}

impl Mortal {
    async fn start(dir: &Path) -> Self {
        let dir = StateDir::acquire(dir).unwrap();
        let inner = RedbStore::open(&dir.store()).unwrap();
        let dead = AtomicBool::new(false);
        let store = Arc::new(Dying { inner, dead });
        let (fatal, _) = mpsc::unbounded_channel();
        let shared: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
        let handle = ClusterHandle::start(shared, settings(), fatal)
            .await
            .unwrap();
        let authority = Authority::open(&dir, &["127.0.0.1".into()]).unwrap();
        let runtime = TransportRuntime::start(1).unwrap();
        let (any, options) = ("127.0.0.1:0".parse().unwrap(), TransportOptions::default());
        let endpoint = Endpoint::bind(&runtime, any, &authority.identity(), options).unwrap();
        let (cluster, name) = (handle.clone(), "godwit".into());
        let context = SessionContext {
            cluster,
            authority,
            name,
        };
        actix::spawn(session::serve(
            endpoint.clone(),
            session::Role::Leads(context).always(),
        ));
        Self {
            store,
            handle,
            endpoint,
            _runtime: runtime,
            _dir: dir,
        }
    }

    /// Ends as a killed process does, as far as the file is concerned.
    async fn die(self) {
        self.endpoint.close().await;
        self.store.close().await.unwrap();
    }
}

#[actix::test]
async fn a_start_that_was_persisted_and_not_sent_is_sent_once_after_the_restart() {
    let mut cluster = Running::start().await;
    let identity = join(&cluster, "n1").await;
    cluster.coordinator.take().unwrap().stop().await;

    let mortal = Mortal::start(cluster.dir.path()).await;
    let address = mortal.endpoint.local_addr().unwrap();
    let mut node = Node::open(address, &identity, hello(Vec::new())).await;
    assert!(matches!(
        node.next().await,
        CoordinatorMessage::Welcome { .. }
    ));
    let before = mortal.store.scan("").await.unwrap().revision;
    mortal.store.dead.store(true, Ordering::Relaxed);
    let spec = VmSpec::from_value(spec("web")).unwrap();
    let (vm, task) = (VmId::generate(), TaskId::generate());
    let request = CreateVm {
        spec,
        start: true,
        node: None,
    };
    let asked = mortal.handle.apply(Input::CreateVm { vm, task, request });
    let happening = async {
        let mut watch = mortal.store.watch("cluster/vm/", before);
        watch.next().await.unwrap();
        // It is on disk by now, and nothing of it may show: not to an operator,
        let short = Duration::from_millis(100);
        let look = mortal.handle.reader().read(|cluster| cluster.vms().len());
        assert!(
            tokio::time::timeout(short, look).await.is_err(),
            "shown too early"
        );
        // and not to the node.
        assert!(
            tokio::time::timeout(short, node.next()).await.is_err(),
            "sent too early"
        );
    };
    tokio::select! {
        answer = asked => panic!("answered too early: {answer:?}"),
        () = happening => {}
    }
    mortal.die().await;

    let config = config(cluster.dir.path(), "127.0.0.1:0");
    cluster.coordinator = Some(Coordinator::start(config).await.unwrap());
    cluster.reread();
    let begun: TaskView = cluster.get(&format!("/api/v1/tasks/{task}")).await;
    assert_eq!(begun.state, TaskState::Running);
    let mut node = Node::connect(&cluster, &identity, Vec::new()).await;
    assert_eq!(node.start_one().await.vm, vm);
    assert_eq!(cluster.ended(&begun).await.state, TaskState::Succeeded);
    // Not a second time.
    cluster.begin("/api/v1/vms/web/pause", json!({})).await;
    let (_, next) = node.request().await;
    assert!(format!("{next:?}").contains("Pause"), "{next:?}");
    cluster.stop().await;
}

#[actix::test]
async fn a_start_under_way_goes_on_with_the_same_epoch() {
    let mut cluster = Running::start().await;
    let (mut node, identity) = Node::join(&cluster, "n1").await;
    let task = cluster
        .begin("/api/v1/vms", json!({"spec": spec("web"), "start": true}))
        .await;
    let (_, first) = node.request().await;
    cluster.restart().await;
    let mut node = Node::connect(&cluster, &identity, Vec::new()).await;
    let (request, again) = node.request().await;
    assert_eq!(first, again, "the same definition at the same epoch");
    node.reply(
        request,
        Err(godwit_shared::model::Problem::new(
            codes::HOST_IO,
            "no space",
        )),
    )
    .await;
    let task = cluster.ended(&task).await;
    assert_eq!(task.state, TaskState::Failed);
    assert_eq!(task.problem.unwrap().code, codes::HOST_IO);
    cluster.stop().await;
}

#[actix::test]
async fn running_vms_are_found_again_and_not_touched() {
    let mut cluster = Running::start().await;
    let (mut node, identity) = Node::join(&cluster, "n1").await;
    let task = cluster
        .begin("/api/v1/vms", json!({"spec": spec("web"), "start": true}))
        .await;
    let running = node.start_one().await;
    cluster.ended(&task).await;
    cluster.restart().await;
    let away: VmView = cluster.get("/api/v1/vms/web").await;
    assert_eq!((away.state, away.node_up), (DomainState::Running, false));
    let mut node = Node::connect(&cluster, &identity, vec![running]).await;
    let back: VmView = cluster.get("/api/v1/vms/web").await;
    assert_eq!(
        (back.state, back.node_up, back.pid),
        (DomainState::Running, true, Some(4242))
    );
    // The next thing that the node is asked is what an operator wants now.
    let task = cluster.begin("/api/v1/vms/web/pause", json!({})).await;
    let (request, body) = node.request().await;
    assert!(format!("{body:?}").contains("Pause"), "{body:?}");
    node.reply(request, Ok(godwit_shared::wire::uplink::NodeReply::Done))
        .await;
    assert_eq!(cluster.ended(&task).await.state, TaskState::Succeeded);
    cluster.stop().await;
}

#[actix::test]
async fn a_newer_writer_ends_an_older_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&dir.path().join("store.redb")).unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    let (fatal, mut failures) = mpsc::unbounded_channel();
    let old = ClusterHandle::start(Arc::clone(&store), settings(), fatal)
        .await
        .unwrap();
    let (quiet, _never) = mpsc::unbounded_channel();
    let new = ClusterHandle::start(Arc::clone(&store), settings(), quiet)
        .await
        .unwrap();
    let token = |id: &str| Input::CreateToken {
        id: id.into(),
        digest: godwit_coordinator_logic::record::SecretDigest([1; 32]),
        valid: None,
    };
    let refused = old.apply(token("a")).await.unwrap_err();
    assert_eq!(refused.code, codes::STORE);
    assert!(refused.remedy.unwrap().contains("another coordinator"));
    assert_eq!(failures.recv().await.unwrap().code, codes::STORE);
    assert!(old.apply(token("b")).await.is_err(), "it stays ended");
    new.apply(token("c")).await.unwrap();
}
