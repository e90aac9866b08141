//! What coordinators that share a store have in common: one CA, and each
//! other's addresses.
//!
//! The CA's key is in no store. An operator copies the `ca` folder of the first
//! coordinator to the others; [`before`] and [`after`] see to it that none makes
//! a CA of its own, whose nodes the others would not know.

use bytes::Bytes;
use godwit_shared::model::{Problem, codes};
use godwit_shared::pki::ClusterCa;

use crate::state_dir::StateDir;
use crate::store::{Commit, CommitError, Expect, Store, Write};

/// The fingerprint of the cluster's CA.
const CA: &str = "coordinator/ca";
/// A coordinator's address for nodes, which is the rest of the key.
const PEERS: &str = "coordinator/peer/";

/// Refuses a state directory without a CA where the cluster has one.
pub async fn before(store: &dyn Store, dir: &StateDir) -> Result<(), Problem> {
    if store.record(CA).await?.is_some() && !ClusterCa::exists(&dir.ca()) {
        let what = format!("there is no CA in {}", dir.ca().display());
        return Err(foreign(&what, dir));
    }
    Ok(())
}

/// Refuses another CA than the cluster's; the first coordinator's is that.
pub async fn after(store: &dyn Store, dir: &StateDir, fingerprint: &str) -> Result<(), Problem> {
    let write = Write::Put {
        key: CA.into(),
        value: Bytes::from(fingerprint.to_owned()),
    };
    let first = Commit::of(vec![write]).expecting(CA, Expect::Absent);
    match store.commit(first).await {
        Ok(_) => return Ok(()),
        Err(CommitError::Conflict { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    match store.record(CA).await? {
        Some(entry) if entry.value != fingerprint => {
            let what = format!("the CA in {} is another cluster's", dir.ca().display());
            Err(foreign(&what, dir))
        }
        _ => Ok(()),
    }
}

fn foreign(what: &str, dir: &StateDir) -> Problem {
    Problem::new(
        codes::CA_MISMATCH,
        format!("{what}, and the cluster in this etcd has one already"),
    )
    .field("state_dir")
    .value(dir.ca().display().to_string())
    .remedy("copy the `ca` folder and admin.toml of the cluster's first coordinator into the state directory; for a new cluster, set another `prefix`")
}

/// Makes this coordinator known to the others, and gives the addresses of all,
/// its own first.
pub async fn addresses(store: &dyn Store, own: Vec<String>) -> Result<Vec<String>, Problem> {
    let put = |address: &String| Write::Put {
        key: format!("{PEERS}{address}"),
        value: Bytes::new(),
    };
    store
        .commit(Commit::of(own.iter().map(put).collect()))
        .await?;
    let known = store.scan(PEERS).await?.entries;
    let others = known
        .iter()
        .filter_map(|entry| entry.key.strip_prefix(PEERS))
        .filter(|address| !own.iter().any(|own| own == address))
        .map(str::to_owned);
    Ok(own.iter().cloned().chain(others).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::RedbStore;

    #[tokio::test]
    async fn the_first_ca_is_the_clusters_and_no_other_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::acquire(root.path()).unwrap();
        let store = RedbStore::open(&dir.store()).unwrap();
        before(&store, &dir).await.unwrap();
        after(&store, &dir, "aa").await.unwrap();
        after(&store, &dir, "aa").await.unwrap();
        let other = after(&store, &dir, "bb").await.unwrap_err();
        assert_eq!(other.code, codes::CA_MISMATCH);
        // Without one, none is made.
        let missing = before(&store, &dir).await.unwrap_err();
        assert!(missing.remedy.unwrap().contains("copy the `ca` folder"));
    }

    #[tokio::test]
    async fn tokens_name_every_coordinator_the_own_one_first() {
        let root = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&root.path().join("s")).unwrap();
        addresses(&store, vec!["a:1".into()]).await.unwrap();
        let all = addresses(&store, vec!["b:1".into()]).await.unwrap();
        assert_eq!(all, ["b:1", "a:1"]);
        assert_eq!(addresses(&store, all).await.unwrap(), ["b:1", "a:1"]);
    }
}
