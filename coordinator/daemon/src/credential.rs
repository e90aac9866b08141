//! The admin token: who holds it may do everything over the API.
//!
//! The store keeps only its SHA-256; the token itself is in `admin.toml`, for
//! the local operator. A start that finds no such file, or one whose token is
//! not the store's, makes a new token: that is also how a lost or leaked one is
//! replaced (delete the file, restart).

use aws_lc_rs::{constant_time, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use godwit_shared::api::AdminCredential;
use godwit_shared::digest::sha256;
use godwit_shared::model::{Problem, codes};
use serde::{Deserialize, Serialize};

use crate::state_dir::{StateDir, read_file, write_file};
use crate::store::{Commit, Store, Write};

/// Where the hash is kept.
const KEY: &str = "auth/admin";
/// What a token begins with, so that scanners for leaked secrets find it.
const PREFIX: &str = "gwa1_";

/// SHA-256 of the admin token. The token has 256 random bits, so a plain hash
/// is enough.
#[derive(Debug, Clone)]
pub struct TokenHash([u8; 32]);

/// The record at [`KEY`].
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    sha256: [u8; 32],
}

impl TokenHash {
    /// The hash of a token.
    pub fn of(token: &str) -> Self {
        Self(sha256(token.as_bytes()))
    }

    /// Whether `token` is the one, in a time that says nothing about it.
    pub fn admits(&self, token: &str) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &sha256(token.as_bytes())).is_ok()
    }
}

/// Random bytes in URL-safe text.
pub fn random_text<const BYTES: usize>() -> Result<String, Problem> {
    let mut bytes = [0; BYTES];
    rand::fill(&mut bytes).map_err(|_| Problem::internal("the system gives no random bytes"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// The hash of the admin token, from the store; makes the token where it is
/// missing, and writes `admin.toml` with the API's present URL and CA. Where the
/// store is `shared`, the token is the other coordinators' too: it is never
/// replaced, and a file that is missing or another's is left so.
pub async fn prepare(
    dir: &StateDir,
    store: &dyn Store,
    endpoint: &str,
    ca: &str,
    shared: bool,
) -> Result<TokenHash, Problem> {
    let kept = kept(store).await?;
    let on_disk = on_disk(dir)?;
    if let (true, Some(kept)) = (shared, &kept)
        && !on_disk
            .as_ref()
            .is_some_and(|file| kept.admits(&file.token))
    {
        tracing::warn!(
            "admin.toml does not hold the cluster's admin token: copy that of another coordinator"
        );
        return Ok(kept.clone());
    }
    let valid = on_disk.as_ref().filter(|credential| {
        kept.as_ref()
            .is_some_and(|hash| hash.admits(&credential.token))
    });
    let token = match valid {
        Some(credential) => credential.token.clone(),
        None => format!("{PREFIX}{}", random_text::<32>()?),
    };
    let wanted = AdminCredential {
        endpoint: endpoint.into(),
        token,
        ca: ca.into(),
    };
    let hash = TokenHash::of(&wanted.token);
    if valid.is_none() {
        if kept.is_some() {
            tracing::warn!("admin.toml does not hold the admin token: a new one replaces it");
        }
        // The store first: a file that was written and does not match is made anew.
        let value = serde_json::to_vec(&Record { sha256: hash.0 }).map_err(Problem::internal)?;
        let write = Write::Put {
            key: KEY.into(),
            value: Bytes::from(value),
        };
        store.commit(Commit::of(vec![write])).await?;
    }
    if on_disk.as_ref() != Some(&wanted) {
        let text = toml::to_string(&wanted).map_err(Problem::internal)?;
        write_file(&dir.admin(), text.as_bytes())?;
    }
    Ok(hash)
}

async fn kept(store: &dyn Store) -> Result<Option<TokenHash>, Problem> {
    let Some(entry) = store.record(KEY).await? else {
        return Ok(None);
    };
    let record: Record = serde_json::from_slice(&entry.value).map_err(|error| {
        Problem::new(
            codes::STORE,
            format!("the record `{KEY}` cannot be read: {error}"),
        )
        .remedy("restore the store from a backup")
    })?;
    Ok(Some(TokenHash(record.sha256)))
}

/// The file's credential; none when it is missing or is not one.
fn on_disk(dir: &StateDir) -> Result<Option<AdminCredential>, Problem> {
    Ok(read_file(&dir.admin())?.and_then(|text| toml::from_str(&text).ok()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::store::RedbStore;

    #[tokio::test]
    async fn the_token_stays_and_the_store_never_sees_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::acquire(root.path()).unwrap();
        let store = RedbStore::open(&dir.store()).unwrap();
        prepare(&dir, &store, "https://127.0.0.1:1", "CA", false)
            .await
            .unwrap();
        let first = on_disk(&dir).unwrap().unwrap();
        assert_eq!(
            std::fs::metadata(dir.admin()).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let hash = prepare(&dir, &store, "https://127.0.0.1:2", "CA", false)
            .await
            .unwrap();
        let second = on_disk(&dir).unwrap().unwrap();
        assert_eq!(first.token, second.token);
        assert_eq!(second.endpoint, "https://127.0.0.1:2");
        assert!(hash.admits(&first.token) && !hash.admits("gwa1_") && !hash.admits(""));
        let records = store.scan("").await.unwrap().entries;
        let secret = first.token.as_bytes();
        assert!(
            records
                .iter()
                .all(|r| !r.value.windows(secret.len()).any(|w| w == secret))
        );
    }

    #[tokio::test]
    async fn a_lost_or_foreign_file_makes_a_new_token_and_ends_the_old_one() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::acquire(root.path()).unwrap();
        let store = RedbStore::open(&dir.store()).unwrap();
        prepare(&dir, &store, "https://a", "CA", false)
            .await
            .unwrap();
        let old = on_disk(&dir).unwrap().unwrap().token;
        std::fs::remove_file(dir.admin()).unwrap();
        let hash = prepare(&dir, &store, "https://a", "CA", false)
            .await
            .unwrap();
        assert!(!hash.admits(&old));
        std::fs::write(dir.admin(), "not toml").unwrap();
        let hash = prepare(&dir, &store, "https://a", "CA", false)
            .await
            .unwrap();
        assert!(hash.admits(&on_disk(&dir).unwrap().unwrap().token));
    }

    #[tokio::test]
    async fn the_token_of_several_coordinators_is_not_replaced_by_one() {
        let roots = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [first, second] = roots
            .each_ref()
            .map(|d| StateDir::acquire(d.path()).unwrap());
        let store = RedbStore::open(&first.store()).unwrap();
        prepare(&first, &store, "https://a", "CA", true)
            .await
            .unwrap();
        let token = on_disk(&first).unwrap().unwrap().token;
        let hash = prepare(&second, &store, "https://b", "CA", true)
            .await
            .unwrap();
        assert!(hash.admits(&token) && on_disk(&second).unwrap().is_none());
        std::fs::copy(first.admin(), second.admin()).unwrap();
        prepare(&second, &store, "https://b", "CA", true)
            .await
            .unwrap();
        let copied = on_disk(&second).unwrap().unwrap();
        assert_eq!(
            (copied.endpoint.as_str(), copied.token),
            ("https://b", token)
        );
    }
}
