//! The cluster's CA and this coordinator's own identity: made on the first
//! start, kept, and renewed in time.
//!
//! One certificate serves both doors: nodes see it over QUIC, operators over
//! HTTPS. Its key is kept across restarts, since stateless resets are derived
//! from it (a coordinator that comes back tells its nodes at once). It is
//! replaced when the names that it has to carry change, or near its end.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use godwit_shared::model::{NodeId, Problem, codes};
use godwit_shared::pki::{
    COORDINATOR_VALIDITY, ClusterCa, Identity, IssueError, NODE_VALIDITY, NodeIdentity, StoreError,
};
use jiff::Timestamp;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;

use crate::state_dir::{StateDir, read_file, write_file};

/// The CA with the identity that it gave to this coordinator. Clones share it.
#[derive(Debug, Clone)]
pub struct Authority(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ca: ClusterCa,
    names: Vec<String>,
    identity: RwLock<Identity>,
    https: Arc<Certificate>,
}

impl Authority {
    /// Reads the CA and the identity, or makes them. `names` are the DNS names
    /// and addresses by which nodes and operators reach this coordinator.
    pub fn open(dir: &StateDir, names: &[String]) -> Result<Self, Problem> {
        let ca = if ClusterCa::exists(&dir.ca()) {
            ClusterCa::load(&dir.ca()).map_err(|e| unreadable(&e))?
        } else {
            let ca = ClusterCa::create().map_err(|e| unissued(&e))?;
            ca.save(&dir.ca()).map_err(|e| unreadable(&e))?;
            tracing::info!(fingerprint = %ca.fingerprint(), "made the CA of a new cluster");
            ca
        };
        // Sorted and each once: the order in a certificate means nothing.
        let names: BTreeSet<String> = names.iter().cloned().collect();
        let names: Vec<String> = names.into_iter().collect();
        let identity = kept_identity(dir, &ca, &names)?;
        let https = Arc::new(Certificate(RwLock::new(certified(&identity)?)));
        let identity = RwLock::new(identity);
        Ok(Self(Arc::new(Inner {
            ca,
            names,
            identity,
            https,
        })))
    }

    /// The CA.
    pub fn ca(&self) -> &ClusterCa {
        &self.0.ca
    }

    /// This coordinator's identity at present.
    pub fn identity(&self) -> Identity {
        self.0
            .identity
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Makes a new identity when the present one nears its end.
    pub fn renew(&self, dir: &StateDir, now: Timestamp) -> Result<Option<Identity>, Problem> {
        if !self.identity().needs_rotation(now) {
            return Ok(None);
        }
        let fresh = make_identity(dir, &self.0.ca, &self.0.names)?;
        let key = certified(&fresh)?;
        *self
            .0
            .https
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner) = key;
        *self
            .0
            .identity
            .write()
            .unwrap_or_else(PoisonError::into_inner) = fresh.clone();
        Ok(Some(fresh))
    }

    /// What HTTPS is served with.
    pub fn https(&self) -> Result<ServerConfig, Problem> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Problem::internal)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.0.https) as Arc<dyn ResolvesServerCert>);
        Ok(config)
    }

    /// Checks a CSR without giving anything for it: a join spends its token
    /// only on a request that can be signed.
    pub fn check_csr(&self, csr: &str, node: &NodeId) -> Result<(), Problem> {
        self.sign(csr, node, 0).map(|_| ())
    }

    /// Signs a node's CSR: the chain, leaf first, as PEM.
    pub fn sign(&self, csr: &str, node: &NodeId, incarnation: u32) -> Result<String, Problem> {
        let identity = NodeIdentity {
            node: node.clone(),
            incarnation,
        };
        let signed = self.0.ca.sign_node_csr(csr, &identity, NODE_VALIDITY);
        let signed = signed.map_err(|error| {
            Problem::new(codes::PROTOCOL, error.to_string())
                .field("csr")
                .remedy("bring both daemons to the same release and join again")
        })?;
        Ok(format!(
            "{}{}",
            signed.certificate_pem,
            self.0.ca.certificate_pem()
        ))
    }
}

/// The kept identity, if it is still the right one; otherwise a new one.
fn kept_identity(dir: &StateDir, ca: &ClusterCa, names: &[String]) -> Result<Identity, Problem> {
    if dir.identity().exists() {
        let identity = Identity::load(&dir.identity()).map_err(|e| unreadable(&e))?;
        let kept: Vec<String> = read_file(&dir.names())?
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        let ours = identity.ca_fingerprint() == ca.fingerprint();
        if ours && kept == names && !identity.needs_rotation(Timestamp::now()) {
            return Ok(identity);
        }
    }
    make_identity(dir, ca, names)
}

fn make_identity(dir: &StateDir, ca: &ClusterCa, names: &[String]) -> Result<Identity, Problem> {
    let identity = ca
        .issue_coordinator(names, COORDINATOR_VALIDITY)
        .map_err(|e| unissued(&e))?;
    // The names come last, so names that are there belong to that certificate
    // or to an older one with the same names.
    match std::fs::remove_file(dir.names()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(crate::state_dir::refused("remove", &dir.names(), &error));
        }
        _ => {}
    }
    identity.save(&dir.identity()).map_err(|e| unreadable(&e))?;
    write_file(
        &dir.names(),
        &serde_json::to_vec(names).map_err(Problem::internal)?,
    )?;
    Ok(identity)
}

fn unreadable(error: &StoreError) -> Problem {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    Problem::new(
        codes::HOST_IO,
        format!("{error}{}", cause.unwrap_or_default()),
    )
    .field("state_dir")
    .remedy("restore the coordinator's state directory from a backup, or correct its modes")
}

fn unissued(error: &IssueError) -> Problem {
    match error {
        IssueError::BadName(name) | IssueError::ReservedName(name) => {
            Problem::new(codes::CONFIG_INVALID, error.to_string())
                .field("advertise")
                .value(name)
                .remedy("advertise a DNS name or an IP address by which nodes reach this host")
        }
        other => Problem::internal(other),
    }
}

fn certified(identity: &Identity) -> Result<Arc<CertifiedKey>, Problem> {
    let provider = aws_lc_rs::default_provider();
    CertifiedKey::from_der(identity.chain().to_vec(), identity.key(), &provider)
        .map(Arc::new)
        .map_err(Problem::internal)
}

/// The certificate in use over HTTPS; replaced while connections come in.
#[derive(Debug)]
struct Certificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self.0.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use godwit_shared::pki::KeyAndCsr;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_restart_keeps_ca_and_key_and_other_names_renew_the_certificate() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::acquire(root.path()).unwrap();
        let first = Authority::open(&dir, &names(&["b.example", "a.example"])).unwrap();
        let again = Authority::open(&dir, &names(&["a.example", "b.example"])).unwrap();
        assert_eq!(first.ca().fingerprint(), again.ca().fingerprint());
        assert_eq!(first.identity().chain(), again.identity().chain());
        let renamed = Authority::open(&dir, &names(&["c.example"])).unwrap();
        assert_eq!(first.ca().fingerprint(), renamed.ca().fingerprint());
        assert_ne!(first.identity().chain(), renamed.identity().chain());
    }

    #[test]
    fn a_certificate_near_its_end_is_replaced_on_both_doors() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::acquire(root.path()).unwrap();
        let authority = Authority::open(&dir, &[]).unwrap();
        let now = Timestamp::now();
        assert!(authority.renew(&dir, now).unwrap().is_none());
        let old = authority.identity();
        let late = Timestamp::from_second(old.not_after().as_second() - 60).unwrap();
        let fresh = authority.renew(&dir, late).unwrap().unwrap();
        assert_ne!(fresh.chain(), old.chain());
        let https = authority.0.https.0.read().unwrap().cert.clone();
        assert_eq!(https, fresh.chain());
        assert_eq!(
            Identity::load(&dir.identity()).unwrap().chain(),
            fresh.chain()
        );
    }

    #[test]
    fn a_node_gets_a_certificate_for_its_own_request_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::acquire(root.path()).unwrap();
        let authority = Authority::open(&dir, &[]).unwrap();
        let node: NodeId = "n1".parse().unwrap();
        let key = KeyAndCsr::generate(&node).unwrap();
        authority.check_csr(key.csr_pem(), &node).unwrap();
        let chain = authority.sign(key.csr_pem(), &node, 3).unwrap();
        let (leaf, ca) = chain.split_at(chain.rfind("-----BEGIN").unwrap());
        let identity = key.into_identity(leaf, ca).unwrap();
        assert_eq!(identity.peer().dns_name(), "n1.i3.node.godwit.internal");
        let problem = authority.check_csr("nonsense", &node).unwrap_err();
        assert_eq!(problem.field.as_deref(), Some("csr"));
    }

    #[test]
    fn a_name_that_no_certificate_can_carry_is_a_setting_to_correct() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::acquire(root.path()).unwrap();
        let problem = Authority::open(&dir, &names(&["x.node.godwit.internal"])).unwrap_err();
        assert_eq!(
            (problem.code.as_ref(), problem.field.as_deref()),
            (codes::CONFIG_INVALID, Some("advertise"))
        );
    }
}
