//! The cluster's certificate authority, held by the coordinator.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;

use super::files::{self, Access, StoreError};
use super::fingerprint::CaFingerprint;
use super::identity::{Identity, IdentityError};
use super::names::{COORDINATOR_NAME, NodeIdentity, PeerIdentity};

/// How long a node's certificate is good for, unless configured otherwise.
pub const NODE_VALIDITY: Duration = Duration::from_secs(30 * DAY);
/// How long the coordinator's certificate is good for.
pub const COORDINATOR_VALIDITY: Duration = Duration::from_secs(365 * DAY);

const DAY: u64 = 86_400;
const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * DAY + 2 * DAY);
/// Certificates are dated back by this much, for hosts whose clocks are behind.
const BACKDATE: Duration = Duration::from_secs(3_600);
/// Longest CSR that is looked at, in bytes of PEM.
const MAX_CSR: usize = 16 * 1024;

const CERT_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca-key.pem";

/// The CA: makes every identity of its cluster.
pub struct ClusterCa {
    der: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    fingerprint: CaFingerprint,
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The request is longer than any CSR of ours.
    #[error("the certificate request has {size} bytes, the limit is {limit}")]
    RequestTooLarge {
        /// Its length in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The request is malformed or not signed by its own key.
    #[error("the certificate request is refused: {0}")]
    BadRequest(rcgen::Error),
    /// A further name for the coordinator is neither a DNS name nor an address.
    #[error(
        "`{0}` cannot be a name in the coordinator's certificate: give a DNS name or an IP address"
    )]
    BadName(String),
    /// A further name for the coordinator would make it look like somebody else.
    #[error("`{0}` lies in the cluster's own domain and cannot be given to the coordinator")]
    ReservedName(String),
    /// A point in time is outside of what a certificate can say.
    #[error("the certificate's validity lies outside of the calendar")]
    Validity,
    /// The system has no randomness to give.
    #[error("the system gives no random bytes")]
    Randomness,
    /// Making or signing failed.
    #[error("cannot make the certificate: {0}")]
    Signing(rcgen::Error),
    /// What was made does not hold together.
    #[error("the new certificate is unusable")]
    Unusable(#[from] IdentityError),
}

/// A node's new certificate.
#[derive(Debug, Clone)]
pub struct SignedNode {
    /// The certificate.
    pub certificate_pem: String,
    /// When it stops being valid.
    pub not_after: Timestamp,
}

impl ClusterCa {
    /// Makes a new CA: ECDSA P-256, good for ten years.
    ///
    /// # Errors
    /// When the system has no randomness or the signature fails.
    pub fn create() -> Result<Self, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Signing)?;
        let serial = serial()?;
        let tag = serial
            .iter()
            .take(4)
            .fold(String::new(), |out, byte| format!("{out}{byte:02x}"));
        let mut params = base_params(&format!("Godwit cluster CA {tag}"), &serial);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, Validity::from_now(CA_VALIDITY)?)?;
        let der = params
            .self_signed(&key)
            .map_err(IssueError::Signing)?
            .der()
            .clone();
        Self::assemble(der, key).map_err(IssueError::Signing)
    }

    fn assemble(der: CertificateDer<'static>, key: KeyPair) -> Result<Self, rcgen::Error> {
        Ok(Self {
            pem: files::to_pem("CERTIFICATE", &der),
            fingerprint: CaFingerprint::of(&der),
            issuer: Issuer::from_ca_cert_der(&der, key)?,
            der,
        })
    }

    /// Writes the CA into a directory: `ca.pem` for everybody, `ca-key.pem`
    /// with mode 0600. The directory is made when it isn't there.
    ///
    /// # Errors
    /// When the system refuses, or when the directory holds a CA already.
    pub fn save(&self, dir: &Path) -> Result<(), StoreError> {
        files::make_dir(dir)?;
        let (cert, key) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        // The certificate comes last, so a directory with one is complete.
        if cert.exists() {
            return Err(StoreError::Exists { path: cert });
        }
        files::write(&key, &self.issuer.key().serialize_pem(), Access::Private)?;
        files::write(&cert, &self.pem, Access::Public)
    }

    /// Whether a directory holds a CA.
    pub fn exists(dir: &Path) -> bool {
        dir.join(CERT_FILE).exists()
    }

    /// Reads the CA back.
    ///
    /// # Errors
    /// When a file is missing, exposed to others, or not what it should be.
    pub fn load(dir: &Path) -> Result<Self, StoreError> {
        let (cert_path, key_path) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        let content = |path: &Path, wanted, why: String| StoreError::Content {
            path: path.to_owned(),
            wanted,
            why,
        };
        let cert_pem = files::read(&cert_path, Access::Public)?;
        let key_pem = files::read(&key_path, Access::Private)?;
        let wanted = "a cluster's CA certificate";
        let der = files::certificates(&cert_pem)
            .and_then(|mut all| all.pop().ok_or_else(String::new))
            .map_err(|why| content(&cert_path, wanted, why))?;
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|error| content(&key_path, "a cluster CA's key", error.to_string()))?;
        let spki = public_key(&der).map_err(|why| content(&cert_path, wanted, why))?;
        if spki != key.public_key_raw() {
            let why = format!(
                "it belongs to another certificate than {}",
                cert_path.display()
            );
            return Err(content(&key_path, "this CA's key", why));
        }
        Self::assemble(der, key).map_err(|error| content(&cert_path, wanted, error.to_string()))
    }

    /// SHA-256 of the CA's certificate: what join tokens pin.
    pub fn fingerprint(&self) -> CaFingerprint {
        self.fingerprint
    }

    /// The CA's certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// The CA's certificate as DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Makes a key and a certificate for the coordinator. Beside its own name
    /// it gets, for HTTPS, `localhost`, the loopback addresses, the host's name
    /// and `further` names and addresses.
    ///
    /// # Errors
    /// When a further name is unusable, or signing fails.
    pub fn issue_coordinator(
        &self,
        further: &[String],
        validity: Duration,
    ) -> Result<Identity, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Signing)?;
        let mut params = leaf_params(&PeerIdentity::Coordinator, Validity::from_now(validity)?)?;
        for name in coordinator_names(further) {
            let san = subject_name(&name)?;
            if !params.subject_alt_names.contains(&san) {
                params.subject_alt_names.push(san);
            }
        }
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(IssueError::Signing)?;
        let chain = vec![certificate.der().clone(), self.der.clone()];
        Ok(Identity::new(chain, files::pkcs8(&key))?)
    }

    /// Signs a node's request. Only its public key is used, after its
    /// signature over the request was verified; the names are `identity`'s,
    /// whatever the request asks for.
    ///
    /// # Errors
    /// When the request is too long, malformed or not signed by its own key.
    pub fn sign_node_csr(
        &self,
        csr_pem: &str,
        identity: &NodeIdentity,
        validity: Duration,
    ) -> Result<SignedNode, IssueError> {
        self.sign_node_csr_for(csr_pem, identity, Validity::from_now(validity)?)
    }

    pub(crate) fn sign_node_csr_for(
        &self,
        csr_pem: &str,
        identity: &NodeIdentity,
        validity: Validity,
    ) -> Result<SignedNode, IssueError> {
        if csr_pem.len() > MAX_CSR {
            return Err(IssueError::RequestTooLarge {
                size: csr_pem.len(),
                limit: MAX_CSR,
            });
        }
        let mut request =
            CertificateSigningRequestParams::from_pem(csr_pem).map_err(IssueError::BadRequest)?;
        request.params = leaf_params(&identity.clone().into(), validity)?;
        let certificate = request
            .signed_by(&self.issuer)
            .map_err(IssueError::Signing)?;
        Ok(SignedNode {
            certificate_pem: files::to_pem("CERTIFICATE", certificate.der()),
            not_after: validity.end,
        })
    }
}

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validity {
    pub(crate) start: Timestamp,
    pub(crate) end: Timestamp,
}

impl Validity {
    fn from_now(length: Duration) -> Result<Self, IssueError> {
        let now = Timestamp::now();
        let start = now
            .checked_sub(BACKDATE)
            .map_err(|_| IssueError::Validity)?;
        let end = now.checked_add(length).map_err(|_| IssueError::Validity)?;
        // Certificates count in whole seconds.
        let end = Timestamp::from_second(end.as_second()).map_err(|_| IssueError::Validity)?;
        Ok(Self { start, end })
    }
}

fn leaf_params(
    identity: &PeerIdentity,
    validity: Validity,
) -> Result<CertificateParams, IssueError> {
    let name = identity.dns_name();
    // The common name is for people and has 64 bytes at most (RFC 5280 A.1).
    let common: String = match identity {
        PeerIdentity::Coordinator => "Godwit coordinator".into(),
        PeerIdentity::Node { node, .. } => node.as_str().into(),
    };
    let mut params = base_params(&common, &serial()?);
    params.subject_alt_names = vec![subject_name_unchecked(&name)?];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, validity)?;
    Ok(params)
}

fn base_params(common_name: &str, serial: &[u8]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params
}

/// A random positive serial number (RFC 5280 4.1.2.2): the default is derived
/// from the key and would repeat when a key is certified again.
fn serial() -> Result<[u8; 16], IssueError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| IssueError::Randomness)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn set_validity(params: &mut CertificateParams, validity: Validity) -> Result<(), IssueError> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since_epoch = |at: Timestamp| {
        u64::try_from(at.as_second())
            .map(Duration::from_secs)
            .map_err(|_| IssueError::Validity)
    };
    params.not_before = epoch + since_epoch(validity.start)?;
    params.not_after = epoch + since_epoch(validity.end)?;
    Ok(())
}

fn coordinator_names(further: &[String]) -> Vec<String> {
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"]
        .map(str::to_owned)
        .to_vec();
    // A host without a usable name just isn't reached by it.
    if subject_name(&host).is_ok() {
        names.push(host);
    }
    names.extend(
        further
            .iter()
            .filter(|name| *name != COORDINATOR_NAME)
            .cloned(),
    );
    names
}

fn subject_name(name: &str) -> Result<SanType, IssueError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    if name.to_ascii_lowercase().ends_with("godwit.internal") {
        return Err(IssueError::ReservedName(name.to_owned()));
    }
    let valid = rustls_pki_types::DnsName::try_from(name).is_ok();
    if valid {
        subject_name_unchecked(name)
    } else {
        Err(IssueError::BadName(name.to_owned()))
    }
}

fn subject_name_unchecked(name: &str) -> Result<SanType, IssueError> {
    let bad = |_| IssueError::BadName(name.to_owned());
    Ok(SanType::DnsName(name.try_into().map_err(bad)?))
}

fn public_key(der: &[u8]) -> Result<Vec<u8>, String> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
    Ok(certificate.public_key().subject_public_key.data.to_vec())
}
