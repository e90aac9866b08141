//! What every [`Store`] has to do, as tests over the trait.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use bytes::Bytes;

use super::{Change, Commit, CommitError, Expect, Revision, Store, StoreError, WatchEnd, Write};

/// Runs all of them. `open` opens the same store each time it is called; the
/// former one has been closed by then.
pub(crate) async fn all<S: Store>(open: impl Fn() -> Arc<S>) {
    commits_are_whole(&*open()).await;
    conditions_hold_or_nothing_happens(&*open()).await;
    scans_are_sorted_and_bounded(&*open()).await;
    watches_see_every_change_in_order(&*open()).await;
    late_watches_are_told(&*open()).await;
    it_survives_being_closed(&open).await;
}

fn put(key: &str, value: &str) -> Write {
    Write::Put {
        key: key.into(),
        value: Bytes::from(value.to_owned()),
    }
}

fn delete(key: &str) -> Write {
    Write::Delete { key: key.into() }
}

async fn value(store: &dyn Store, key: &str) -> Option<String> {
    let entry = store.record(key).await.unwrap()?;
    Some(String::from_utf8(entry.value.to_vec()).unwrap())
}

async fn commits_are_whole(store: &dyn Store) {
    let first = store
        .commit(Commit::of(vec![put("a/1", "x"), put("a/2", "y")]))
        .await
        .unwrap();
    let second = store
        .commit(Commit::of(vec![delete("a/1"), put("a/2", "z")]))
        .await
        .unwrap();
    assert!(second > first);
    assert_eq!(value(store, "a/1").await, None);
    let entry = store.record("a/2").await.unwrap().unwrap();
    assert_eq!((entry.value.as_ref(), entry.revision), (&b"z"[..], second));
    store.close().await.unwrap();
    assert_eq!(store.record("a/2").await, Err(StoreError::Closed));
}

async fn conditions_hold_or_nothing_happens(store: &dyn Store) {
    let made = store
        .commit(Commit::of(vec![put("cas", "1")]).expecting("cas", Expect::Absent))
        .await
        .unwrap();
    let again = Commit::of(vec![put("cas", "2"), put("cas-other", "2")]);
    let refused = store
        .commit(again.clone().expecting("cas", Expect::Absent))
        .await;
    let conflict = CommitError::Conflict {
        key: "cas".into(),
        found: Some(made),
    };
    assert_eq!(refused, Err(conflict));
    assert_eq!(value(store, "cas").await.as_deref(), Some("1"));
    assert_eq!(value(store, "cas-other").await, None);
    store
        .commit(again.clone().expecting("cas", Expect::At(made)))
        .await
        .unwrap();
    let stale = store.commit(again.expecting("cas", Expect::At(made))).await;
    assert!(matches!(stale, Err(CommitError::Conflict { .. })));
    let gone = Commit::of(vec![delete("cas")]).expecting("none", Expect::At(Revision(1)));
    let conflict = CommitError::Conflict {
        key: "none".into(),
        found: None,
    };
    assert_eq!(store.commit(gone).await, Err(conflict));
    assert_eq!(value(store, "cas").await.as_deref(), Some("2"));
    store.close().await.unwrap();
}

async fn scans_are_sorted_and_bounded(store: &dyn Store) {
    let writes = ["s/b", "s/a", "s0", "s/a/b", "r/z"].map(|key| put(key, key));
    let revision = store.commit(Commit::of(writes.to_vec())).await.unwrap();
    let scan = store.scan("s/").await.unwrap();
    let keys: Vec<_> = scan
        .entries
        .iter()
        .map(|entry| entry.key.as_str())
        .collect();
    assert_eq!(
        (keys, scan.revision),
        (vec!["s/a", "s/a/b", "s/b"], revision)
    );
    assert!(store.scan("nothing/").await.unwrap().entries.is_empty());
    store.close().await.unwrap();
}

async fn watches_see_every_change_in_order(store: &dyn Store) {
    let start = store.scan("").await.unwrap().revision;
    let mut watch = store.watch("w/", start);
    let first = store
        .commit(Commit::of(vec![put("w/1", "a"), put("x", "no")]))
        .await
        .unwrap();
    let second = store
        .commit(Commit::of(vec![put("w/2", "b"), delete("w/1")]))
        .await
        .unwrap();
    let change = |revision, key: &str, value: Option<&str>| Change {
        revision,
        key: key.into(),
        value: value.map(|v| Bytes::from(v.to_owned())),
    };
    assert_eq!(watch.next().await, Ok(change(first, "w/1", Some("a"))));
    assert_eq!(watch.next().await, Ok(change(second, "w/2", Some("b"))));
    assert_eq!(watch.next().await, Ok(change(second, "w/1", None)));
    let mut behind = store.watch("w/", first);
    assert_eq!(behind.next().await, Ok(change(second, "w/2", Some("b"))));
    store.close().await.unwrap();
    assert_eq!(watch.next().await, Err(WatchEnd::Closed));
}

async fn late_watches_are_told(store: &dyn Store) {
    let start = store.scan("").await.unwrap().revision;
    assert!(start > Revision(1));
    let mut watch = store.watch("", Revision(0));
    assert!(matches!(watch.next().await, Err(WatchEnd::Compacted(_))));
    store.close().await.unwrap();
}

async fn it_survives_being_closed<S: Store>(open: &impl Fn() -> Arc<S>) {
    let store = open();
    let revision = store
        .commit(Commit::of(vec![put("kept", "yes")]))
        .await
        .unwrap();
    let closing = store.close();
    closing.await.unwrap();
    drop(store);
    let store = open();
    let entry = store.record("kept").await.unwrap().unwrap();
    assert_eq!(
        (entry.value.as_ref(), entry.revision),
        (&b"yes"[..], revision)
    );
    assert_eq!(store.scan("").await.unwrap().revision, revision);
    store.close().await.unwrap();
}
