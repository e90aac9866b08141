//! Backups: taken over the API, restored over a damaged store.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use godwit_coordinator::app::Coordinator;
use godwit_coordinator::backup::restore::Restore;
use godwit_coordinator::store::{RedbStore, Scan, Store as _};
use godwit_shared::api::{ClusterStatus, TaskState, VmView};
use godwit_shared::backup::open;
use godwit_shared::model::{DomainState, Epoch, Problem, codes};
use reqwest::Method;
use serde_json::json;

use super::node::Node;
use super::running::{Running, config, spec};

async fn take(cluster: &Running) -> Vec<u8> {
    let request = cluster.request(Method::GET, "/api/v1/cluster/backup");
    let answer = request.send().await.unwrap();
    assert!(answer.status().is_success());
    answer.bytes().await.unwrap().into()
}

/// Writes a backup beside the state directory's content.
fn keep(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

async fn restore(file: &Path, state: &Path, name: &str) -> Result<Option<PathBuf>, Problem> {
    let restore = Restore::prepare(file, state).await?;
    restore.confirm(Some(name))?;
    Ok(restore.carry_out()?.aside)
}

async fn content(store: &Path) -> Scan {
    let store = RedbStore::open(store).unwrap();
    let scan = store.scan("").await.unwrap();
    store.close().await.unwrap();
    scan
}

/// What became of the store's file, and how it is found.
fn damage(store: &Path, how: &str) {
    let mut bytes = std::fs::read(store).unwrap();
    match how {
        "cut" => bytes.truncate(bytes.len() / 2),
        "emptied" => bytes.clear(),
        _ => {
            let pages = (4096..bytes.len()).step_by(512);
            pages.for_each(|at| bytes[at] ^= 0x10);
        }
    }
    std::fs::write(store, bytes).unwrap();
}

#[actix::test]
async fn a_damaged_store_is_told_and_restored() {
    let mut cluster = Running::start().await;
    let (mut node, identity) = Node::join(&cluster, "n1").await;
    let task = cluster
        .begin("/api/v1/vms", json!({"spec": spec("web"), "start": true}))
        .await;
    let mut running = node.start_one().await;
    cluster.ended(&task).await;
    let (_kept, file) = keep(&take(&cluster).await);
    cluster
        .post("/api/v1/vms", json!({"spec": spec("later")}))
        .await;
    cluster.coordinator.take().unwrap().stop().await;

    let (state, store) = (cluster.dir.path(), cluster.dir.path().join("store.redb"));
    for how in ["cut", "emptied", "flipped"] {
        damage(&store, how);
        let refused = Coordinator::start(config(state, "127.0.0.1:0")).await;
        let problem = refused.expect_err("a damaged store is refused");
        assert_eq!(problem.code, codes::STORE_DAMAGED, "{how}: {problem}");
        assert!(
            problem
                .remedy
                .unwrap()
                .contains("godwit-coordinator restore")
        );
        let damaged = std::fs::read(&store).unwrap();
        let aside = restore(&file, state, "godwit").await.unwrap().unwrap();
        assert_eq!(std::fs::read(aside).unwrap(), damaged, "{how}");
        let mode = std::fs::metadata(&store).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    cluster.coordinator = Some(
        Coordinator::start(config(state, "127.0.0.1:0"))
            .await
            .unwrap(),
    );
    let token = cluster.credential.token.clone();
    cluster.reread();
    assert_eq!(
        cluster.credential.token, token,
        "the operator's token stays"
    );
    let vms: Vec<VmView> = cluster.get("/api/v1/vms").await;
    assert_eq!(vms.len(), 1, "what came after the backup is not there");
    let status: ClusterStatus = cluster.get("/api/v1/cluster").await;
    assert_eq!(status.unheard.len(), 1);
    // The node has gone on, and is believed.
    running.epoch = Epoch(running.epoch.0 + 4);
    let _node = Node::connect(&cluster, &identity, vec![running.clone()]).await;
    let web: VmView = cluster.get("/api/v1/vms/web").await;
    assert_eq!(
        (web.state, web.epoch),
        (DomainState::Running, running.epoch)
    );
    let status: ClusterStatus = cluster.get("/api/v1/cluster").await;
    assert!(status.unheard.is_empty());
    cluster.stop().await;
}

#[actix::test]
async fn a_start_after_a_restore_waits_for_the_word_of_every_node() {
    let mut cluster = Running::start().await;
    let (node, identity) = Node::join(&cluster, "n1").await;
    let (other, second) = Node::join(&cluster, "n2").await;
    drop((node, other));
    cluster
        .post("/api/v1/vms", json!({"spec": spec("web")}))
        .await;
    let (_kept, file) = keep(&take(&cluster).await);
    cluster.coordinator.take().unwrap().stop().await;
    let state = cluster.dir.path();
    restore(&file, state, "godwit").await.unwrap();
    cluster.coordinator = Some(
        Coordinator::start(config(state, "127.0.0.1:0"))
            .await
            .unwrap(),
    );
    cluster.reread();
    let mut node = Node::connect(&cluster, &identity, Vec::new()).await;
    let task = cluster
        .begin("/api/v1/vms/web/start", json!({"node": "n1"}))
        .await;
    let (status, problem) = cluster
        .refused("/api/v1/nodes/n2/absent", json!({"confirm": "n1"}))
        .await;
    assert_eq!(status, 400);
    assert_eq!(problem.code, codes::CONFIRMATION_NEEDED);
    let _other = Node::connect(&cluster, &second, Vec::new()).await;
    node.start_one().await;
    assert_eq!(cluster.ended(&task).await.state, TaskState::Succeeded);
    cluster.stop().await;
}

#[actix::test]
async fn what_may_not_be_restored_is_refused_and_changes_nothing() {
    let mut cluster = Running::start().await;
    let whole = take(&cluster).await;
    let (header, _) = open(&whole).unwrap();
    assert_eq!(header.cluster, "godwit");
    let (_kept, file) = keep(&whole);
    let state = cluster.dir.path();
    let store = state.join("store.redb");
    let code = |outcome: Result<_, Problem>| outcome.unwrap_err().code;

    let running = restore(&file, state, "godwit").await;
    assert_eq!(code(running), codes::STATE_CONFLICT, "the coordinator runs");
    cluster.coordinator.take().unwrap().stop().await;
    let before = content(&store).await;

    let mut flipped = whole.clone();
    flipped[whole.len() - 20] ^= 1;
    for broken in [&flipped[..], &whole[..whole.len() - 1], b"", b"hello\n"] {
        let (_kept, file) = keep(broken);
        let refused = restore(&file, state, "godwit").await;
        assert_eq!(code(refused), codes::BACKUP_INVALID);
    }
    let unsure = restore(&file, state, "other").await;
    assert_eq!(code(unsure), codes::CONFIRMATION_NEEDED);
    let nowhere = restore(&file, &state.join("nowhere"), "godwit").await;
    assert_eq!(code(nowhere), codes::HOST_IO);

    let foreign = Running::start().await;
    let (_kept, of_another) = keep(&take(&foreign).await);
    foreign.stop().await;
    let refused = restore(&of_another, state, "godwit").await;
    assert_eq!(code(refused), codes::CA_MISMATCH);
    let empty = tempfile::tempdir().unwrap();
    let keyless = restore(&file, empty.path(), "godwit").await;
    assert_eq!(code(keyless), codes::CA_MISMATCH);
    assert_eq!(content(&store).await, before);
}
