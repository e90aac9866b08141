//! A real coordinator records what it is given and decides while a guest boots,
//! moves and is looked at, and while it is itself killed and started again; the
//! recordings are replayed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use godwit_shared::api::NodeHealth;
use godwit_shared::pki::JoinToken;
use godwit_sim::replay::{Bug, Outcome, Wanted, replay};
use godwit_tests::guest::Work;
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::Scene;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_real_cluster_recorded_is_decided_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = ClusterOptions {
        settings: format!("[record]\ndir = {:?}\n", dir.path()),
        ..ClusterOptions::nodes(2)
    };
    let mut scene = Scene::start(options).await.unwrap();
    scene.boot(&[("web", 0)], &Work::default()).await.unwrap();
    let api = scene.cluster.api.clone();
    let token = api.token().await.unwrap();
    let printed = api.serial_log("web", 20).await.unwrap();
    scene.move_to("web", 1).await.unwrap();
    scene.cluster.restart_coordinator().await.unwrap();
    for node in 0..2 {
        let up = scene.cluster.wait_health(node, NodeHealth::Up);
        up.await.unwrap();
    }
    scene.move_to("web", 0).await.unwrap();
    scene.cluster.terminate().await.unwrap();

    let files = files(dir.path());
    assert_eq!(files.len(), 2, "one for each life");
    for file in &files {
        let outcome = played(file, None);
        assert_eq!(outcome.wrong, None);
        assert!(outcome.steps > 10, "{outcome:?}");
    }
    let wrong = played(&files[0], Some(Bug::StaleEpoch)).wrong.unwrap();
    assert!(wrong.contains("is another"), "{wrong}");
    keeps_secrets(&files, &token, &printed);
}

fn files(dir: &Path) -> Vec<Vec<u8>> {
    let found = std::fs::read_dir(dir).unwrap();
    let mut paths: Vec<_> = found.map(|file| file.unwrap().path()).collect();
    paths.sort_unstable();
    let files = paths.iter().map(std::fs::read);
    files.collect::<Result<_, _>>().unwrap()
}

fn played(file: &[u8], bug: Option<Bug>) -> Outcome {
    let wanted = Wanted {
        bug,
        ..Wanted::default()
    };
    replay(file, wanted, &mut |_| {}).unwrap()
}

/// Neither a token, nor its secret in any of its usual forms, nor what the guest
/// has printed.
fn keeps_secrets(files: &[Vec<u8>], token: &str, printed: &str) {
    let parsed: JoinToken = token.parse().unwrap();
    let line = printed.lines().rfind(|line| line.len() > 8).unwrap();
    for (life, file) in files.iter().enumerate() {
        let text = String::from_utf8_lossy(file);
        assert!(text.contains(&parsed.id) || life > 0);
        assert!(!text.contains(token) && !text.contains(&token[5..]));
        assert!(!text.contains(line), "{line}");
    }
}
