#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use godwit_shared::model::codes;

use super::*;
use crate::store::conformance;

fn put(key: &str, value: &str) -> Commit {
    Commit::of(vec![Write::Put {
        key: key.into(),
        value: Bytes::from(value.to_owned()),
    }])
}

#[tokio::test]
async fn it_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    conformance::all(|| Arc::new(RedbStore::open(&path).unwrap())).await;
}

#[tokio::test]
async fn commits_that_wait_together_keep_their_order_and_their_verdicts() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&dir.path().join("store.redb")).unwrap();
    let pending: Vec<_> = (0..2000_u32)
        .map(|n| {
            let commit = put("n", &n.to_string());
            // Every third expects what cannot be.
            if n % 3 == 2 {
                store.commit(commit.expecting("n", Expect::Absent))
            } else {
                store.commit(commit)
            }
        })
        .collect();
    let verdicts = futures_util::future::join_all(pending).await;
    let good = verdicts.iter().filter(|v| v.is_ok()).count();
    assert_eq!(good, 1334);
    assert_eq!(
        store.record("n").await.unwrap().unwrap().value,
        "1999".as_bytes().to_vec()[..].to_vec()
    );
}

#[test]
fn a_store_in_use_is_refused_and_free_after_it_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let first = RedbStore::open(&path).unwrap();
    let problem = RedbStore::open(&path).unwrap_err();
    assert_eq!(problem.code, codes::STORE);
    assert!(problem.message.contains("in use"), "{problem}");
    drop(first);
    RedbStore::open(&path).unwrap();
}

#[test]
fn a_damaged_file_is_a_problem_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    for content in [b"not a store".to_vec(), vec![0; 4096], vec![0xff; 100_000]] {
        std::fs::write(&path, &content).unwrap();
        let problem = RedbStore::open(&path).unwrap_err();
        assert_eq!(problem.code, codes::STORE_DAMAGED);
        assert!(problem.remedy.is_some());
        assert_eq!(std::fs::read(&path).unwrap(), content, "{problem}");
    }
}

#[tokio::test]
async fn a_file_with_a_hole_in_it_is_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    for n in 0..200 {
        store
            .commit(put(&format!("k{n}"), &"x".repeat(500)))
            .await
            .unwrap();
    }
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 3;
    bytes[4096..middle].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let problem = RedbStore::open(&path).unwrap_err();
    assert!(problem.message.contains("damaged"), "{problem}");
}

#[test]
fn a_later_format_is_told_apart_from_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    file::create(&path).unwrap();
    let database = file::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(META)
        .unwrap()
        .insert("format", 99)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let problem = RedbStore::open(&path).unwrap_err();
    assert!(problem.message.contains("format 99"), "{problem}");
}

#[test]
fn only_the_owner_may_read_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    drop(RedbStore::open(&path).unwrap());
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

/// One flipped bit, wherever it is: either it is told, or all is there as it
/// was. Never a panic, never another value.
#[tokio::test]
async fn a_flipped_bit_is_told_or_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    for n in 0..60 {
        let commit = put(&format!("k{n}"), &"x".repeat(300));
        store.commit(commit).await.unwrap();
    }
    let whole = store.scan("").await.unwrap();
    store.close().await.unwrap();
    let bytes = std::fs::read(&path).unwrap();
    // The whole header, and a stride through the rest that hits every part.
    let places = (0..512).step_by(5).chain((512..bytes.len()).step_by(4099));
    let mut told = 0;
    for at in places {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        std::fs::write(&path, flipped).unwrap();
        let opened = std::panic::catch_unwind(|| RedbStore::open(&path));
        match opened.unwrap_or_else(|_| panic!("a panic at byte {at}")) {
            Ok(store) => assert_eq!(store.scan("").await.unwrap(), whole, "byte {at}"),
            Err(problem) => {
                assert!(problem.code.starts_with(codes::STORE), "{problem}");
                told += 1;
            }
        }
    }
    assert!(told > 0);
}
