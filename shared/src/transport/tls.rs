//! TLS 1.3 for QUIC, from an identity.
//!
//! Two protocols share an endpoint's port, told apart by ALPN:
//! * `godwit/1`: members among themselves; both sides show a certificate of the
//!   cluster's CA, and the initiator asks for the name of whom it expects.
//! * `godwit-join/1`: a host without a certificate; it verifies the coordinator
//!   against a pinned fingerprint of the CA, which the coordinator sends along.
//!
//! Providers are always named (`aws-lc-rs`): the process-wide default is not
//! ours to rely on. There is no session resumption and no 0-RTT: a handshake
//! is a migration's smallest cost, and a resumed session would outlive a
//! certificate that was replaced or revoked.

use std::fmt;
use std::sync::Arc;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::options::TransportOptions;
use crate::pki::{CaFingerprint, Identity};

/// ALPN of members among themselves.
pub(super) const ALPN_MEMBER: &[u8] = b"godwit/1";
/// ALPN of a joining host.
pub(super) const ALPN_JOIN: &[u8] = b"godwit-join/1";

/// An identity cannot be put to use.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("the certificate or key is unusable")]
    Rustls(#[from] Error),
    #[error("the CA's certificate is unusable")]
    Verifier(#[from] VerifierBuilderError),
    #[error("the cryptography has no QUIC cipher suite")]
    Suite(#[from] NoInitialCipherSuite),
}

/// The suite that costs least on this host goes first; the side that connects
/// decides. AES with the shorter key is as good as the others (it is the one
/// that TLS 1.3 requires, RFC 8446 9.1), and a tenth cheaper.
fn provider() -> Arc<CryptoProvider> {
    let first = if has_aes() {
        CipherSuite::TLS13_AES_128_GCM_SHA256
    } else {
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
    };
    let mut provider = aws_lc_rs::default_provider();
    // Stable: the others keep their order.
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != first);
    Arc::new(provider)
}

/// Whether this CPU has instructions for AES; assumed of those that cannot be
/// asked.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = true;
    has
}

fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca().clone())?;
    Ok(Arc::new(roots))
}

/// For accepting connections as `identity`.
pub(super) fn server(
    identity: &Identity,
    options: &TransportOptions,
) -> Result<quinn::ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider());
    // A joining host has no certificate; `handshake` refuses those who come
    // without one for anything else.
    let verifier = if options.accept_join {
        verifier.allow_unauthenticated()
    } else {
        verifier
    }
    .build()?;
    let mut tls = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain().to_vec(), identity.key())?;
    tls.alpn_protocols = vec![ALPN_MEMBER.to_vec()];
    if options.accept_join {
        tls.alpn_protocols.push(ALPN_JOIN.to_vec());
    }
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(options.transport());
    Ok(config)
}

/// For connecting to members as `identity`.
pub(super) fn client(
    identity: &Identity,
    options: &TransportOptions,
) -> Result<quinn::ClientConfig, TlsError> {
    let mut tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(identity.chain().to_vec(), identity.key())?;
    tls.alpn_protocols = vec![ALPN_MEMBER.to_vec()];
    finish_client(tls, options)
}

/// For connecting to a coordinator whose CA has the pinned fingerprint.
pub(super) fn joining(
    pin: CaFingerprint,
    options: &TransportOptions,
) -> Result<quinn::ClientConfig, TlsError> {
    let verifier = Arc::new(PinnedCa {
        pin,
        provider: provider(),
    });
    let mut tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    finish_client(tls, options)
}

fn finish_client(
    mut tls: ClientConfig,
    options: &TransportOptions,
) -> Result<quinn::ClientConfig, TlsError> {
    tls.resumption = Resumption::disabled();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(options.transport());
    Ok(config)
}

/// Trusts the CA with a given fingerprint, if the server sends it, and nobody
/// else; then verifies chain, name and validity as usual.
struct PinnedCa {
    pin: CaFingerprint,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for PinnedCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedCa")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| CaFingerprint::of(certificate) == self.pin)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|_| CertificateError::BadEncoding)?
            .verify_server_cert(end_entity, &[], server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A client that the transport itself would never be: with its CA and its
/// identity from different places, or without an identity.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) fn testing_client(
    ca: &CertificateDer<'static>,
    identity: Option<&Identity>,
    options: &TransportOptions,
    alpn: &[u8],
) -> quinn::ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain().to_vec(), identity.key())
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    finish_client(tls, options).unwrap()
}
