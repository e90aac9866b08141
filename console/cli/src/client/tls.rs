//! TLS to the coordinator: TLS 1.3, aws-lc-rs, and as the only root the CA of
//! the credential. The host's own roots are never asked.

use std::sync::Arc;

use godwit_shared::model::Problem;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::bad_credential;
use crate::failure::Failure;

/// The client's side, with the certificates in `ca` (PEM) as its roots.
pub(crate) fn config(ca: &str) -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        let certificate =
            certificate.map_err(|e| bad_credential(&format!("its CA is not PEM: {e}"), "ca"))?;
        roots
            .add(certificate)
            .map_err(|e| bad_credential(&format!("its CA is not a certificate: {e}"), "ca"))?;
    }
    if roots.is_empty() {
        return Err(bad_credential("it holds no CA certificate", "ca"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| Failure::from(Problem::internal(e)))?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
