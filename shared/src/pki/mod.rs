//! Who is who in a cluster.
//!
//! The coordinator holds the cluster's own certificate authority
//! ([`ClusterCa`]); nobody else can make a name. A certificate says what its
//! holder is through one DNS name that only the CA chooses ([`PeerIdentity`]):
//!
//! | holder      | name                                          |
//! |-------------|-----------------------------------------------|
//! | coordinator | `coordinator.godwit.internal`                 |
//! | node        | `<node>.i<incarnation>.node.godwit.internal`  |
//!
//! The incarnation grows each time that a node joins anew, so a certificate of
//! a removed node is never mistaken for its successor's.
//!
//! A node joins with a [`JoinToken`]: it carries the CA's fingerprint, so the
//! joining host knows whom it talks to before it sends the token's secret. It
//! makes its key itself ([`KeyAndCsr`]); keys never travel.
//!
//! Invariants:
//! * the identity of a peer is what its verified certificate says, never what
//!   a message says;
//! * private keys are written with mode 0600, under their final name only when
//!   whole, and refused when others could read them;
//! * no `Debug` or `Display` prints a key or a secret.

mod ca;
mod files;
mod fingerprint;
mod identity;
mod names;
mod token;

#[cfg(test)]
pub(crate) use ca::Validity;
pub use ca::{COORDINATOR_VALIDITY, ClusterCa, IssueError, NODE_VALIDITY, SignedNode};
pub use files::StoreError;
pub use fingerprint::{CaFingerprint, FingerprintError};
pub use identity::{Identity, IdentityError, KeyAndCsr};
pub use names::{COORDINATOR_NAME, NameError, NodeIdentity, PeerIdentity};
pub use token::{JoinSecret, JoinToken, SecretHash, TokenError};

#[cfg(test)]
mod tests;
