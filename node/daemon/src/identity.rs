//! Who this node is: its certificate on disk and in use, and how it is renewed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use godwit_shared::model::{NodeId, Problem, codes};
use godwit_shared::pki::{Identity, IdentityError, KeyAndCsr, NodeIdentity, PeerIdentity};
use godwit_shared::transport::Endpoint;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::host;

/// Which cluster a node belongs to, as its join told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedCluster {
    /// The cluster's name.
    pub cluster: String,
    /// The coordinator's addresses: `host:port`.
    pub coordinator: Vec<String>,
    /// Where peers reach this node, if that was said at the join.
    pub address: Option<String>,
}

impl JoinedCluster {
    /// Reads it back.
    pub fn load(path: &Path) -> Result<Self, Problem> {
        godwit_shared::config::load(path)
    }

    /// Writes it.
    pub fn save(&self, path: &Path) -> Result<(), Problem> {
        let text = toml::to_string(self).map_err(Problem::internal)?;
        host::write_file(path, text.as_bytes())
    }
}

/// Reads the identity of a node that has joined.
pub fn load(path: &Path) -> Result<(Identity, NodeIdentity), Problem> {
    if !path.exists() {
        return Err(
            Problem::new(codes::STATE_CONFLICT, "this host has not joined a cluster")
                .field("state_dir")
                .value(path.display().to_string())
                .remedy("get a token with `godwit node token`, then run `godwit-node join TOKEN`"),
        );
    }
    let unusable = |why: String| {
        Problem::new(codes::HOST_IO, why)
            .field("state_dir")
            .value(path.display().to_string())
            .remedy("put the file right, or join again with `godwit-node join --force TOKEN`")
    };
    let identity = Identity::load(path).map_err(|error| unusable(chain_of(&error)))?;
    match identity.peer() {
        PeerIdentity::Node { node, incarnation } => {
            let me = NodeIdentity {
                node: node.clone(),
                incarnation: *incarnation,
            };
            Ok((identity, me))
        }
        PeerIdentity::Coordinator => Err(unusable(format!(
            "{} is a coordinator's identity, not a node's",
            path.display()
        ))),
    }
}

/// An identity from the key made here and the chain that the coordinator sent:
/// the certificate, then the CA, PEM.
pub fn assemble(key: KeyAndCsr, chain: &str) -> Result<Identity, IdentityError> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    let starts: Vec<usize> = chain.match_indices(BEGIN).map(|(at, _)| at).collect();
    match starts.as_slice() {
        [_, ca] => {
            let (leaf, ca) = chain.split_at(*ca);
            key.into_identity(leaf, ca)
        }
        other => Err(IdentityError::Chain(other.len())),
    }
}

/// An error and its causes in one line.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The identity in use. Renewal swaps it everywhere: on disk, in the endpoint,
/// and for whoever watches (migrations, which open endpoints of their own).
#[derive(Debug, Clone)]
pub struct IdentityStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    me: NodeIdentity,
    endpoint: Endpoint,
    current: watch::Sender<Identity>,
    /// The key of a request that was sent and not answered yet.
    pending: Mutex<Option<KeyAndCsr>>,
}

/// A renewal did not succeed; the old certificate stays in use.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// Nothing was asked for.
    #[error("a certificate came that was not asked for")]
    NotAsked,
    /// It does not fit the key, or is no certificate.
    #[error("the new certificate cannot be used")]
    Identity(#[from] IdentityError),
    /// It is somebody else's, or of another cluster.
    #[error("the new certificate is for {found}, with CA {ca}")]
    Foreign {
        /// Whom it names.
        found: PeerIdentity,
        /// Its CA's fingerprint.
        ca: String,
    },
    /// The endpoint refuses it.
    #[error("the new certificate cannot be taken into use")]
    Endpoint(#[from] godwit_shared::transport::BindError),
    /// It cannot be written.
    #[error("the new certificate cannot be stored")]
    Store(#[from] godwit_shared::pki::StoreError),
}

impl IdentityStore {
    /// Keeps `identity`, which lies at `path` and serves `endpoint`.
    pub fn new(path: PathBuf, identity: Identity, me: NodeIdentity, endpoint: Endpoint) -> Self {
        Self(Arc::new(Inner {
            path,
            me,
            endpoint,
            current: watch::Sender::new(identity),
            pending: Mutex::new(None),
        }))
    }

    /// Who this node is.
    pub fn me(&self) -> &NodeIdentity {
        &self.0.me
    }

    /// This node's name.
    pub fn node(&self) -> &NodeId {
        &self.0.me.node
    }

    /// The identity in use now.
    pub fn current(&self) -> Identity {
        self.0.current.borrow().clone()
    }

    /// The identity, and every one that takes its place.
    pub fn watch(&self) -> watch::Receiver<Identity> {
        self.0.current.subscribe()
    }

    /// A certificate request (PEM), when it is time for a new certificate.
    pub fn request_if_due(&self, now: Timestamp) -> Result<Option<String>, IdentityError> {
        if !self.current().needs_rotation(now) {
            return Ok(None);
        }
        let key = KeyAndCsr::generate(self.node())?;
        let csr = key.csr_pem().to_owned();
        *self.pending() = Some(key);
        Ok(Some(csr))
    }

    /// Takes the answer to a request into use, for all connections from now on.
    pub fn renew(&self, chain: &str) -> Result<Identity, RenewalError> {
        let key = self.pending().take().ok_or(RenewalError::NotAsked)?;
        let new = assemble(key, chain)?;
        let current = self.current();
        if new.peer() != current.peer() || new.ca_fingerprint() != current.ca_fingerprint() {
            return Err(RenewalError::Foreign {
                found: new.peer().clone(),
                ca: new.ca_fingerprint().to_string(),
            });
        }
        // Stored before it is used: after a crash in between, the daemon comes
        // back with the newest one that anybody has seen.
        new.save(&self.0.path)?;
        self.0.endpoint.set_identity(&new)?;
        self.0.current.send_replace(new.clone());
        Ok(new)
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Option<KeyAndCsr>> {
        self.0
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
