//! The names that certificates carry, and back from a certificate to a name.

use std::fmt;

use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::model::id::NodeId;

/// The DNS name in the coordinator's certificate.
pub const COORDINATOR_NAME: &str = "coordinator.godwit.internal";
/// What every name that means an identity ends with.
const CLUSTER_SUFFIX: &str = ".godwit.internal";
/// What a node's name ends with.
const NODE_SUFFIX: &str = ".node.godwit.internal";

/// A node's name together with the count of its joins.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// The node.
    pub node: NodeId,
    /// How many times a node of this name has joined; the first is 1.
    pub incarnation: u32,
}

impl NodeIdentity {
    /// The DNS name in the node's certificate.
    pub fn dns_name(&self) -> String {
        format!("{}.i{}{NODE_SUFFIX}", self.node, self.incarnation)
    }
}

impl fmt::Display for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} (incarnation {})", self.node, self.incarnation)
    }
}

/// What a verified certificate says about its holder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PeerIdentity {
    /// The cluster's coordinator.
    Coordinator,
    /// A node of the cluster.
    Node {
        /// The node.
        node: NodeId,
        /// How many times a node of this name has joined; the first is 1.
        incarnation: u32,
    },
}

/// A certificate or a name says nothing about a member of a cluster.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The certificate cannot be read.
    #[error("the certificate cannot be parsed: {0}")]
    Unreadable(String),
    /// No name of the certificate is one that the cluster's CA gives out.
    #[error("the certificate names no member of a cluster")]
    Missing,
    /// The certificate has more than one such name.
    #[error("the certificate names two members of a cluster, `{first}` and `{second}`")]
    Ambiguous {
        /// One of the names.
        first: String,
        /// Another.
        second: String,
    },
    /// A name is in the cluster's domain, but not one that its CA makes.
    #[error("`{0}` is not the name of a coordinator or a node")]
    Malformed(String),
}

impl PeerIdentity {
    /// The DNS name that stands for it in a certificate.
    pub fn dns_name(&self) -> String {
        match self {
            Self::Coordinator => COORDINATOR_NAME.to_owned(),
            Self::Node { node, incarnation } => NodeIdentity {
                node: node.clone(),
                incarnation: *incarnation,
            }
            .dns_name(),
        }
    }

    /// The node, when it is one.
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Coordinator => None,
            Self::Node { node, .. } => Some(node),
        }
    }

    /// Reads a DNS name of the cluster's domain.
    ///
    /// # Errors
    /// [`NameError::Malformed`] for everything that [`Self::dns_name`] cannot give.
    pub fn from_dns_name(name: &str) -> Result<Self, NameError> {
        let malformed = || NameError::Malformed(name.to_owned());
        if name == COORDINATOR_NAME {
            return Ok(Self::Coordinator);
        }
        let labels = name.strip_suffix(NODE_SUFFIX).ok_or_else(malformed)?;
        let (node, incarnation) = labels.split_once(".i").ok_or_else(malformed)?;
        let identity = Self::Node {
            node: node.parse().map_err(|_| malformed())?,
            incarnation: incarnation.parse().map_err(|_| malformed())?,
        };
        // One identity has one name: no `+1`, no `01`.
        if identity.dns_name() == name {
            Ok(identity)
        } else {
            Err(malformed())
        }
    }

    /// Reads the identity out of a certificate in DER. The caller has verified
    /// the certificate; this only reads.
    ///
    /// # Errors
    /// When not exactly one of its names lies in the cluster's domain.
    pub fn from_certificate(der: &[u8]) -> Result<Self, NameError> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| NameError::Unreadable(error.to_string()))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| NameError::Unreadable(error.to_string()))?;
        let mut ours = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::DNSName(name) if name.ends_with(CLUSTER_SUFFIX) => Some(*name),
                _ => None,
            });
        let first = ours.next().ok_or(NameError::Missing)?;
        match ours.next() {
            None => Self::from_dns_name(first),
            Some(second) => Err(NameError::Ambiguous {
                first: first.to_owned(),
                second: second.to_owned(),
            }),
        }
    }

    /// The name for a TLS client to ask for and to verify.
    pub(crate) fn server_name(&self) -> Result<ServerName<'static>, NameError> {
        let name = self.dns_name();
        ServerName::try_from(name.clone()).map_err(|_| NameError::Malformed(name))
    }
}

impl From<NodeIdentity> for PeerIdentity {
    fn from(identity: NodeIdentity) -> Self {
        Self::Node {
            node: identity.node,
            incarnation: identity.incarnation,
        }
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("the coordinator"),
            Self::Node { node, incarnation } => {
                write!(f, "node {node} (incarnation {incarnation})")
            }
        }
    }
}
