//! Certificates for bare QEMU's TLS, made for the run (QEMU's manual,
//! "TLS setup for network services").

use std::path::Path;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use crate::lab::ADDRESSES;

/// RFC 7919's ffdhe2048. Without such a file each server searches for a prime,
/// for up to a second.
const DH_PARAMS: &str = "\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
";

/// Writes a CA, a certificate for both ends and both roles, and the parameters
/// into a folder as QEMU looks for them.
pub(crate) fn write_credentials(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut authority = CertificateParams::new(vec!["bench CA".to_owned()])?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    std::fs::write(dir.join("ca-cert.pem"), authority.self_signed(&key)?.pem())?;
    let authority = Issuer::new(authority, key);
    let mut params = CertificateParams::new(Vec::new())?;
    params.subject_alt_names = ADDRESSES.map(SanType::IpAddress).to_vec();
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority)?.pem();
    for role in ["server", "client"] {
        std::fs::write(dir.join(format!("{role}-cert.pem")), &certificate)?;
        std::fs::write(dir.join(format!("{role}-key.pem")), key.serialize_pem())?;
    }
    std::fs::write(dir.join("dh-params.pem"), DH_PARAMS)?;
    Ok(())
}
