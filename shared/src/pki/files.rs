//! Certificates and keys on disk.
//!
//! A file appears under its name only when it is whole: it is written beside
//! its place, synced and renamed over it, and the directory is synced, so a
//! crash leaves either the old or the new one.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Largest file that is read as PEM, in bytes.
const MAX_PEM: u64 = 256 * 1024;

/// Certificates or keys cannot be read from or written to disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refuses.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A private key that others can read is no longer private.
    #[error(
        "{} can be read by other users (mode {mode:04o}): `chmod 600` it if nobody has, otherwise replace the key",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file has other content than its place calls for.
    #[error("{} is not {wanted}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A new CA would replace the one that the cluster's certificates hang on.
    #[error("{} exists already and is not replaced", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
}

impl StoreError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}

/// Whether others may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Mode 0600.
    Private,
    /// Mode 0644.
    Public,
}

/// Makes a directory that only its owner can enter, if it isn't there.
pub(super) fn make_dir(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(StoreError::io("create", dir))
}

/// Puts `content` at `path`, whole or not at all.
pub(super) fn write(path: &Path, content: &str, access: Access) -> Result<(), StoreError> {
    let mode = match access {
        Access::Private => 0o600,
        Access::Public => 0o644,
    };
    let beside = beside(path);
    let result = write_beside(&beside, content, mode)
        .map_err(StoreError::io("write", &beside))
        .and_then(|()| std::fs::rename(&beside, path).map_err(StoreError::io("replace", path)))
        .and_then(|()| sync_parent(path));
    if result.is_err() {
        // The first error is the one to report; a leftover is harmless.
        let _ = std::fs::remove_file(&beside);
    }
    result
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}

fn write_beside(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    // A leftover of a crashed process keeps its mode on open.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(StoreError::io("sync", dir))
}

/// Reads a PEM file; a private one must be readable by its owner alone.
pub(super) fn read(path: &Path, access: Access) -> Result<String, StoreError> {
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let metadata = file.metadata().map_err(StoreError::io("inspect", path))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if access == Access::Private && mode & 0o077 != 0 {
        return Err(StoreError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    file.take(MAX_PEM)
        .read_to_string(&mut text)
        .map_err(StoreError::io("read", path))?;
    Ok(text)
}

/// The certificates of a PEM text, in its order.
pub(super) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    if found.is_empty() {
        Err("it has no certificate".into())
    } else {
        Ok(found)
    }
}

/// The private key of a PEM text.
pub(super) fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| "it has no private key that can be read".to_owned())
}

/// A key pair's PKCS#8 form as rustls wants it.
pub(super) fn pkcs8(key: &rcgen::KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// A DER block as PEM.
pub(super) fn to_pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}
