#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub
)]

mod server;

use std::time::{Duration, Instant};

use godwit_shared::model::codes;

use self::server::Etcd;
use super::*;
use crate::config::EtcdTls;
use crate::store::conformance;

fn settings(etcd: &Etcd, client: bool) -> EtcdSettings {
    let client = client.then(|| (etcd.file("client.pem"), etcd.file("client-key.pem")));
    EtcdSettings {
        endpoints: vec![etcd.endpoint.clone()],
        prefix: "godwit/test/".into(),
        tls: Some(EtcdTls {
            ca: etcd.file("ca.pem"),
            client,
        }),
        room: Room::ETCD,
        lease: Millis(2_000),
    }
}

/// Opens it as soon as etcd answers.
fn opened(settings: &EtcdSettings) -> EtcdStore {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match EtcdStore::open(settings) {
            Ok(store) => return store,
            Err(problem) => assert!(Instant::now() < until, "{problem}"),
        }
        std::thread::yield_now();
    }
}

fn put(key: &str, value: &str) -> Write {
    Write::Put {
        key: key.into(),
        value: Bytes::from(value.to_owned()),
    }
}

#[tokio::test]
async fn it_conforms() {
    let etcd = Etcd::start();
    let settings = settings(&etcd, true);
    conformance::all(|| Arc::new(opened(&settings))).await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_by_name_and_the_store_goes_on() {
    let etcd = Etcd::start();
    let store = opened(&settings(&etcd, true));
    let many = |count| {
        (0..count)
            .map(|n| put(&format!("many/{n:04}"), "x"))
            .collect()
    };
    let refused = store.commit(Commit::of(many(4097))).await.unwrap_err();
    assert!(
        matches!(
            refused,
            CommitError::Store(StoreError::TooLarge { writes: 4097, .. })
        ),
        "{refused}"
    );
    let large = put("large", &"x".repeat(1_600_000));
    let refused = store.commit(Commit::of(vec![large])).await.unwrap_err();
    assert!(refused.to_string().contains("1500000"), "{refused}");
    let problem = Problem::from(refused);
    assert!(problem.remedy.unwrap().contains("max-request-bytes"));
    assert!(store.scan("").await.unwrap().entries.is_empty());
    // As much as is allowed, so that etcd's own bounds are not met before ours.
    store.commit(Commit::of(many(4096))).await.unwrap();
    let large = put("large", &"x".repeat(1_499_000));
    store.commit(Commit::of(vec![large])).await.unwrap();
    let twice = vec![put("twice", "first"), put("twice", "last")];
    store.commit(Commit::of(twice)).await.unwrap();
    assert_eq!(store.record("twice").await.unwrap().unwrap().value, "last");
    let pages = store.scan("many/").await.unwrap().entries;
    assert_eq!(pages.len(), 4096);
    assert!(pages.is_sorted_by(|a, b| a.key < b.key));
}

#[tokio::test]
async fn a_commit_of_thousands_is_one_change() {
    let etcd = Etcd::start();
    let store = opened(&settings(&etcd, true));
    let mut watch = store.watch("many/", store.scan("").await.unwrap().revision);
    let many = |count| {
        (0..count)
            .map(|n| put(&format!("many/{n:04}"), "x"))
            .collect()
    };
    let refused = Commit::of(many(1000)).expecting("none", Expect::At(Revision(1)));
    assert!(matches!(
        store.commit(refused).await,
        Err(CommitError::Conflict { .. })
    ));
    let revision = store.commit(Commit::of(many(1000))).await.unwrap();
    for n in 0..1000 {
        let change = watch.next().await.unwrap();
        assert_eq!(
            (change.revision, change.key),
            (revision, format!("many/{n:04}"))
        );
    }
}

#[tokio::test]
async fn the_watch_goes_on_over_a_restart_of_etcd() {
    let mut etcd = Etcd::start();
    let settings = settings(&etcd, true);
    let store = opened(&settings);
    let mut watch = store.watch("", store.scan("").await.unwrap().revision);
    store.commit(Commit::of(vec![put("a", "1")])).await.unwrap();
    assert_eq!(watch.next().await.unwrap().key, "a");
    etcd.restart();
    let other = opened(&settings);
    other.commit(Commit::of(vec![put("b", "2")])).await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(20), watch.next());
    assert_eq!(next.await.unwrap().unwrap().key, "b");
}

#[tokio::test]
async fn an_etcd_that_is_gone_is_told_and_a_stranger_is_not_let_in() {
    let mut etcd = Etcd::start();
    let store = opened(&settings(&etcd, true));
    let refused = EtcdStore::open(&settings(&etcd, false)).unwrap_err();
    assert_eq!(refused.code, codes::STORE, "{refused}");
    etcd.kill();
    let lost = store.commit(Commit::of(vec![put("a", "1")])).await;
    assert!(
        matches!(lost, Err(CommitError::Store(StoreError::Failed { .. }))),
        "{lost:?}"
    );
    etcd.restart();
    let until = Instant::now() + Duration::from_secs(20);
    while let Err(error) = store.commit(Commit::of(vec![put("a", "1")])).await {
        assert!(Instant::now() < until, "{error}");
    }
    assert_eq!(store.record("a").await.unwrap().unwrap().value, "1");
}

async fn won(store: &EtcdStore, name: &'static str) -> Leadership {
    match store.campaign(Bytes::from_static(name.as_bytes())).await {
        Ok(Campaign::Won(leadership)) => *leadership,
        other => panic!("{name} does not lead: {other:?}"),
    }
}

fn fenced(write: Write, fence: Revision) -> Commit {
    Commit::of(vec![write]).expecting(LEADER, Expect::At(fence))
}

#[tokio::test]
async fn a_deposed_leader_is_refused_whatever_it_believes() {
    let etcd = Etcd::start();
    let (old, new) = (
        opened(&settings(&etcd, true)),
        opened(&settings(&etcd, true)),
    );
    let first = won(&old, "old").await;
    let taken = new.campaign(Bytes::from_static(b"new")).await;
    assert!(
        matches!(&taken, Ok(Campaign::Taken { leader: Some(of), .. }) if of == "old"),
        "{taken:?}"
    );
    old.commit(fenced(put("vm", "by old"), first.fence))
        .await
        .unwrap();
    let scan = new.scan(LEADER).await.unwrap();
    let mut watch = new.watch(LEADER, scan.revision);
    let fence = first.fence;
    // The process stops keeping its lease, and knows nothing of that.
    drop(first);
    let gone = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
    assert_eq!(gone.unwrap().unwrap().value, None);
    // Nobody leads, and it is refused already.
    let late = old.commit(fenced(put("vm", "late"), fence)).await;
    assert!(
        matches!(&late, Err(CommitError::Conflict { key, found: None }) if key == LEADER),
        "{late:?}"
    );
    let second = won(&new, "new").await;
    let late = old.commit(fenced(put("vm", "later"), fence)).await;
    let found = Some(second.fence);
    let key = LEADER.to_owned();
    assert_eq!(late, Err(CommitError::Conflict { key, found }));
    new.commit(fenced(put("vm", "by new"), second.fence))
        .await
        .unwrap();
    assert_eq!(old.record("vm").await.unwrap().unwrap().value, "by new");
    // Given back, it can be had at once.
    second.resign().await;
    won(&old, "old again").await;
}

#[tokio::test]
async fn a_leader_without_etcd_knows_of_it_before_another_one_leads() {
    let mut etcd = Etcd::start();
    let store = opened(&settings(&etcd, true));
    let leadership = won(&store, "a").await;
    let kept = tokio::time::timeout(Duration::from_millis(3_500), leadership.lost()).await;
    assert!(kept.is_err(), "a lease of 2 s is kept alive: {kept:?}");
    etcd.freeze();
    let begun = Instant::now();
    let loss = tokio::time::timeout(Duration::from_secs(10), leadership.lost()).await;
    assert!(matches!(loss, Ok(Loss::Silence(_))), "{loss:?}");
    assert!(
        begun.elapsed() <= Duration::from_millis(2_500),
        "{:?}",
        begun.elapsed()
    );
    etcd.thaw();
}
