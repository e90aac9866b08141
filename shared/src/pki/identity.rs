//! What one daemon is: its key, its certificate and its cluster's CA.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::files::{self, Access, StoreError};
use super::fingerprint::CaFingerprint;
use super::names::{NameError, PeerIdentity};
use crate::model::id::NodeId;

/// A key with the certificate that its cluster's CA signed for it.
///
/// Cheap to clone. Invariants: the key belongs to the certificate, the CA
/// signed it, and it names exactly one member of the cluster. It may have
/// expired: a daemon that slept too long still has to load it to say so.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    /// The leaf first, the CA last.
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    peer: PeerIdentity,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// Certificates and a key do not make an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There isn't exactly a leaf and its CA.
    #[error("an identity is a certificate and its CA's, but there are {0} certificates")]
    Chain(usize),
    /// A certificate or key text cannot be read.
    #[error("the {what} cannot be read: {why}")]
    Unreadable {
        /// Which one.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The certificate names nobody in a cluster.
    #[error("the certificate is no identity")]
    Name(#[from] NameError),
    /// The certificate is for another key.
    #[error("the certificate belongs to another key")]
    WrongKey,
    /// Another CA signed the certificate.
    #[error("the certificate was not signed by the CA that came with it")]
    WrongCa,
    /// The system's cryptography refuses.
    #[error("the certificate cannot be used")]
    Tls(#[from] rustls::Error),
    /// Making a key or request failed.
    #[error("cannot make a key and a certificate request: {0}")]
    Generate(rcgen::Error),
}

impl Identity {
    /// Puts an identity together; the chain is the leaf and then its CA.
    ///
    /// # Errors
    /// When an invariant of [`Identity`] does not hold.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, IdentityError> {
        let [leaf, ca] = chain.as_slice() else {
            return Err(IdentityError::Chain(chain.len()));
        };
        let peer = PeerIdentity::from_certificate(leaf)?;
        let (not_before, not_after) = validity(leaf)?;
        check_key(&chain, &key)?;
        check_signature(leaf, ca, &peer)?;
        Ok(Self(Arc::new(Inner {
            chain,
            key,
            peer,
            not_before,
            not_after,
        })))
    }

    /// Writes the identity to one file with mode 0600, atomically: the key, the
    /// certificate and the CA, all PEM.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn save(&self, path: &Path) -> Result<(), StoreError> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            files::make_dir(dir)?;
        }
        let mut text = files::to_pem("PRIVATE KEY", self.0.key.secret_der());
        text.push_str(&self.chain_pem());
        files::write(path, &text, Access::Private)
    }

    /// Reads an identity back.
    ///
    /// # Errors
    /// When the file is missing, readable by others, or no identity.
    pub fn load(path: &Path) -> Result<Self, StoreError> {
        let text = files::read(path, Access::Private)?;
        let content = |why: String| StoreError::Content {
            path: path.to_owned(),
            wanted: "the identity of a cluster member",
            why,
        };
        let chain = files::certificates(&text).map_err(content)?;
        let key = files::private_key(&text).map_err(content)?;
        Self::new(chain, key).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            content(format!("{error}{}", cause.unwrap_or_default()))
        })
    }

    /// Who this is.
    pub fn peer(&self) -> &PeerIdentity {
        &self.0.peer
    }

    /// When the certificate stops being valid.
    pub fn not_after(&self) -> Timestamp {
        self.0.not_after
    }

    /// When the certificate became valid.
    pub fn not_before(&self) -> Timestamp {
        self.0.not_before
    }

    /// Whether it is time for a new certificate: the last third of its life.
    pub fn needs_rotation(&self, now: Timestamp) -> bool {
        let (start, end) = (self.0.not_before.as_second(), self.0.not_after.as_second());
        now.as_second() >= end - (end - start) / 3
    }

    /// The certificate and then its CA.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    /// The certificate and then its CA, as PEM.
    pub fn chain_pem(&self) -> String {
        self.0
            .chain
            .iter()
            .map(|der| files::to_pem("CERTIFICATE", der))
            .collect()
    }

    /// The private key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.0.key.clone_key()
    }

    /// The CA's certificate.
    pub fn ca(&self) -> &CertificateDer<'static> {
        // `new` has made sure of both.
        &self.0.chain[1]
    }

    /// The CA's certificate as PEM.
    pub fn ca_pem(&self) -> String {
        files::to_pem("CERTIFICATE", self.ca())
    }

    /// The fingerprint of the CA.
    pub fn ca_fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(self.ca())
    }

    /// 32 bytes that only the holder of this key can know, the same at every
    /// call with the same purpose.
    pub(crate) fn derive(&self, purpose: &str) -> [u8; 32] {
        let key =
            ::aws_lc_rs::hmac::Key::new(::aws_lc_rs::hmac::HMAC_SHA256, self.0.key.secret_der());
        let mut out = [0; 32];
        out.copy_from_slice(::aws_lc_rs::hmac::sign(&key, purpose.as_bytes()).as_ref());
        out
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer", &self.0.peer)
            .field("not_after", &self.0.not_after)
            .finish_non_exhaustive()
    }
}

fn validity(leaf: &[u8]) -> Result<(Timestamp, Timestamp), IdentityError> {
    let unreadable = |why: String| IdentityError::Unreadable {
        what: "certificate",
        why,
    };
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|error| unreadable(error.to_string()))?;
    let validity = certificate.validity();
    let at =
        |seconds| Timestamp::from_second(seconds).map_err(|error| unreadable(error.to_string()));
    Ok((
        at(validity.not_before.timestamp())?,
        at(validity.not_after.timestamp())?,
    ))
}

fn check_key(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<(), IdentityError> {
    let provider = aws_lc_rs::default_provider();
    match CertifiedKey::from_der(chain.to_vec(), key.clone_key(), &provider) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(IdentityError::WrongKey),
        Err(error) => Err(error.into()),
    }
}

/// Verifies the leaf as a peer would, at the first moment when both it and its
/// CA are valid.
fn check_signature(
    leaf: &CertificateDer<'static>,
    ca: &CertificateDer<'static>,
    peer: &PeerIdentity,
) -> Result<(), IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).map_err(|_| IdentityError::WrongCa)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|_| IdentityError::WrongCa)?;
    let start = validity(leaf)?.0.max(validity(ca)?.0);
    let since_epoch = Duration::from_secs(start.as_second().unsigned_abs());
    let now = UnixTime::since_unix_epoch(since_epoch);
    match verifier.verify_server_cert(leaf, &[], &peer.server_name()?, &[], now) {
        // One that had expired before its CA began is only of use to tests,
        // and to an operator who asks why nothing works.
        Ok(_)
        | Err(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => Ok(()),
        Err(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => Err(IdentityError::WrongCa),
        Err(error) => Err(error.into()),
    }
}

/// A new key with the request to certify it. The key stays here; the request
/// goes to the coordinator.
pub struct KeyAndCsr {
    key: KeyPair,
    csr_pem: String,
}

impl fmt::Debug for KeyAndCsr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyAndCsr").finish_non_exhaustive()
    }
}

impl KeyAndCsr {
    /// Makes an ECDSA P-256 key and a request signed with it. The node's name
    /// in the request is for logs; the CA sets the names.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(node: &NodeId) -> Result<Self, IdentityError> {
        let key =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IdentityError::Generate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, node.as_str());
        let csr_pem = params
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .map_err(IdentityError::Generate)?;
        Ok(Self { key, csr_pem })
    }

    /// The request, as PEM.
    pub fn csr_pem(&self) -> &str {
        &self.csr_pem
    }

    /// Puts the identity together from what the coordinator sent back.
    ///
    /// # Errors
    /// When the certificate is for another key, or another CA signed it.
    pub fn into_identity(
        self,
        certificate_pem: &str,
        ca_pem: &str,
    ) -> Result<Identity, IdentityError> {
        let one = |what: &'static str, pem: &str| {
            let found =
                files::certificates(pem).map_err(|why| IdentityError::Unreadable { what, why })?;
            <[_; 1]>::try_from(found)
                .map(|[one]| one)
                .map_err(|found| IdentityError::Chain(found.len() + 1))
        };
        let chain = vec![
            one("certificate", certificate_pem)?,
            one("CA certificate", ca_pem)?,
        ];
        Identity::new(chain, files::pkcs8(&self.key))
    }
}
