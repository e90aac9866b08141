//! Who may join, and who is told why not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use godwit_shared::api::{NodeHealth, TokenView};
use godwit_shared::model::{VmSpec, codes};
use godwit_tests::api::Refusal;
use godwit_tests::harness::{Cluster, ClusterOptions, programs};
use godwit_tests::scene::SETTLE;
use godwit_tests::wait;
use tokio::process::Command;

async fn cluster(nodes: usize) -> Cluster {
    Cluster::start(ClusterOptions::nodes(nodes).fake())
        .await
        .unwrap()
}

async fn join(token: &str, dir: &Path, name: &str) -> Output {
    let mut join = Command::new(programs::find("godwit-node").unwrap());
    join.args(["join", token, "--name", name, "--state-dir"])
        .arg(dir);
    join.kill_on_drop(true).output().await.unwrap()
}

/// Checks that joining is refused with that code and a remedy, and leaves no
/// identity behind.
async fn refused(token: &str, dir: &Path, name: &str, code: &str) {
    let output = join(token, dir, name).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(code), "wanted {code}: {error}");
    assert!(
        !dir.join("identity").exists() || dir_is_empty(&dir.join("identity")),
        "{error}"
    );
}

fn dir_is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_token_is_refused_with_its_own_word() {
    let cluster = cluster(0).await;
    let other = self::cluster(0).await;
    let dir = |name: &str| cluster.root().join(name);
    let good = cluster.api.token().await.unwrap();

    for malformed in [
        "",
        "hello",
        "gwt1_",
        &good[..good.len() - 9],
        &good.replace("gwt1", "gwt9"),
    ] {
        refused(malformed, &dir("m"), "a", codes::TOKEN_MALFORMED).await;
    }
    // A character changed in its middle.
    let middle = good.len() / 2;
    let swap = if &good[middle..=middle] == "A" {
        "B"
    } else {
        "A"
    };
    let damaged = format!("{}{swap}{}", &good[..middle], &good[middle + 1..]);
    refused(&damaged, &dir("m"), "a", codes::TOKEN_MALFORMED).await;

    // The other cluster's token, sent to this one: its CA is not ours.
    let theirs: godwit_shared::pki::JoinToken = other.api.token().await.unwrap().parse().unwrap();
    let ours: godwit_shared::pki::JoinToken = good.parse().unwrap();
    let mut foreign = theirs.clone();
    foreign.coordinator.clone_from(&ours.coordinator);
    refused(&foreign.to_string(), &dir("f"), "a", codes::CA_MISMATCH).await;

    // Right cluster, and a secret that it never gave out.
    let mut unknown = theirs;
    unknown.coordinator.clone_from(&ours.coordinator);
    unknown.ca = ours.ca;
    refused(&unknown.to_string(), &dir("u"), "a", codes::TOKEN_UNKNOWN).await;
    let mut guessed = ours.clone();
    guessed.secret = unknown.secret.clone();
    refused(&guessed.to_string(), &dir("g"), "a", codes::TOKEN_UNKNOWN).await;

    let short = serde_json::json!({ "valid": 1 });
    let short: TokenView = cluster.api.post("/tokens", &short).await.unwrap();
    refused(&short.token, &dir("e"), "a", codes::TOKEN_EXPIRED).await;

    let joined = join(&good, &dir("a"), "a").await;
    assert!(
        joined.status.success(),
        "{}",
        String::from_utf8_lossy(&joined.stderr)
    );
    refused(&good, &dir("b"), "b", codes::TOKEN_USED).await;

    let fresh = cluster.api.token().await.unwrap();
    refused(&fresh, &dir("taken"), "a", codes::NODE_NAME_TAKEN).await;
    refused(&fresh, &dir("taken"), "Not_A_Label", codes::NAME_INVALID).await;
    // Joining anew on the same host needs a word more.
    let again = join(&fresh, &dir("a"), "d").await;
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("--force"));

    let mode = std::fs::metadata(cluster.credential_path()).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_is_not_there_is_named() {
    let cluster = cluster(0).await;
    let token = cluster.api.token().await.unwrap();
    let mut token: godwit_shared::pki::JoinToken = token.parse().unwrap();
    token.coordinator = vec!["127.0.0.1:9".to_owned()];
    let output = join(&token.to_string(), &cluster.root().join("x"), "a").await;
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("127.0.0.1:9"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_shut_out() {
    let mut cluster = cluster(2).await;
    let api = cluster.api.clone();
    let document = serde_json::json!({ "name": "web", "memory": 64 });
    let spec = VmSpec::from_value(document).unwrap();
    let task = api.create(spec, true, Some(cluster.name(0))).await.unwrap();
    api.succeed(task.id, SETTLE).await.unwrap();

    let remove = |name: &str| {
        let path = format!("/api/v1/nodes/{name}");
        let api = api.clone();
        async move { api.raw(reqwest::Method::DELETE, &path, None).await.unwrap() }
    };
    let full = remove("node-1").await;
    assert_eq!(full.problem().unwrap().code, codes::NODE_NOT_EMPTY);
    let empty = remove("node-2").await;
    assert!(empty.status.is_success(), "{}", empty.body);
    let gone = api.node(&cluster.name(1)).await.unwrap_err();
    assert_eq!(
        gone.downcast_ref::<Refusal>().unwrap().problem.code,
        codes::NOT_FOUND
    );
    // It tries again, with a certificate that is good but for the removal.
    cluster.nodes[1].restart().await.unwrap();
    let log = cluster.nodes[1].daemon.log_path();
    wait::until("the node's word that it was removed", SETTLE, || async {
        let log = std::fs::read_to_string(&log)?;
        Ok(log.contains(codes::NODE_REVOKED).then_some(()))
    })
    .await
    .unwrap();
    assert!(api.node(&cluster.name(1)).await.is_err());
    // Its name may be used again, and the new one is a new incarnation.
    cluster.nodes[1].kill();
    let token = api.token().await.unwrap();
    let joined = join(&token, &cluster.root().join("again"), "node-2").await;
    assert!(
        joined.status.success(),
        "{}",
        String::from_utf8_lossy(&joined.stderr)
    );
    let node = api.node(&cluster.name(1)).await.unwrap();
    assert_eq!((node.incarnation, node.health), (2, NodeHealth::New));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_down_at_once_and_a_cordoned_one_gets_nothing() {
    let mut cluster = cluster(2).await;
    let api = cluster.api.clone();
    let name = cluster.name(1);
    let empty = serde_json::json!({});
    let path = format!("/nodes/{name}/cordon");
    let view: godwit_shared::api::NodeView = api.post(&path, &empty).await.unwrap();
    assert!(view.cordoned);
    let document = |name: &str| serde_json::json!({ "name": name, "memory": 64 });
    let placed = api
        .place(VmSpec::from_value(document("a")).unwrap())
        .await
        .unwrap();
    assert_eq!(placed.node, Some(cluster.name(0)));
    let refused = placed
        .nodes
        .iter()
        .find(|verdict| verdict.node == name)
        .unwrap();
    assert!(!refused.refused.is_empty() && refused.score.is_none());

    let mark = cluster.events.mark();
    let since = std::time::Instant::now();
    cluster.nodes[0].kill();
    let down = cluster
        .events
        .wait(mark, "node-1 down", SETTLE, |event| {
            event.kind == "node.down"
        })
        .await
        .unwrap();
    let took = down.at.duration_since(since);
    assert!(took.as_millis() < 1000, "{took:?}");
    let nothing = api
        .place(VmSpec::from_value(document("a")).unwrap())
        .await
        .unwrap();
    assert_eq!(nothing.node, None);
    let task = api
        .create(VmSpec::from_value(document("a")).unwrap(), true, None)
        .await;
    let problem = match task {
        Ok(task) => api.ended(task.id, SETTLE).await.unwrap().problem.unwrap(),
        Err(error) => error.downcast::<Refusal>().unwrap().problem,
    };
    assert_eq!(problem.code, codes::NO_NODE_FITS);
    assert_eq!(problem.also.len(), 2, "each node's reason: {problem:?}");
}
