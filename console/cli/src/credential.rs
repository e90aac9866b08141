//! Finding the operator's credential.
//!
//! The first that is there wins: `--credential` (or `GODWIT_CREDENTIAL`), the
//! operator's own `$XDG_CONFIG_HOME/godwit/admin.toml`, and the file that a
//! coordinator on this host has written. A file that was named must be
//! readable; of the others, one that may not be read is told, not passed over,
//! because "permission denied" is the usual reason on a coordinator's host.

use std::io;
use std::path::{Path, PathBuf};

use godwit_shared::api::AdminCredential;
use godwit_shared::model::{Problem, codes};

use crate::args::Global;
use crate::failure::{Exit, Failure};

/// Where a coordinator on this host writes its credential.
const LOCAL: &str = "/var/lib/godwit/coordinator/admin.toml";

/// Reads the credential that the arguments and the environment point at.
pub(crate) fn find(global: &Global) -> Result<AdminCredential, Failure> {
    let mut credential = match &global.credential {
        Some(path) => read(path).map_err(|e| cannot_read(path, &e))?,
        None => first_of(&usual_places())?,
    };
    if let Some(endpoint) = &global.endpoint {
        credential.endpoint.clone_from(endpoint);
    }
    Ok(credential)
}

/// The places that are looked at when none is named, in their order.
fn usual_places() -> Vec<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    config
        .map(|config| config.join("godwit/admin.toml"))
        .into_iter()
        .chain([PathBuf::from(LOCAL)])
        .collect()
}

fn first_of(places: &[PathBuf]) -> Result<AdminCredential, Failure> {
    for path in places {
        match read(path) {
            Err(ReadError::Io(e)) if is_absent(&e) => {}
            Err(e) => return Err(cannot_read(path, &e)),
            Ok(credential) => return Ok(credential),
        }
    }
    let looked: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
    Err(Failure::with_exit(
        Problem::new(
            codes::UNAUTHENTICATED,
            format!("there is no credential; looked for {}", looked.join(" and ")),
        )
        .remedy(
            "copy admin.toml from the coordinator's state directory, or name it with --credential FILE",
        ),
        Exit::Unreachable,
    ))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

enum ReadError {
    Io(io::Error),
    Content(String),
}

fn read(path: &Path) -> Result<AdminCredential, ReadError> {
    let text = std::fs::read_to_string(path).map_err(ReadError::Io)?;
    toml::from_str(&text).map_err(|e| ReadError::Content(e.message().to_owned()))
}

fn cannot_read(path: &Path, error: &ReadError) -> Failure {
    let shown = path.display().to_string();
    let (why, remedy) = match error {
        ReadError::Io(e) if is_absent(e) => (
            "there is no such file".to_owned(),
            "copy admin.toml from the coordinator's state directory to that place",
        ),
        ReadError::Io(e) if e.kind() == io::ErrorKind::PermissionDenied => (
            "permission denied".to_owned(),
            "run as the user that it belongs to, or name another with --credential FILE",
        ),
        ReadError::Io(e) => (e.to_string(), "look at the file and its file system"),
        ReadError::Content(why) => (
            why.clone(),
            "copy admin.toml from the coordinator's state directory anew",
        ),
    };
    Failure::with_exit(
        Problem::new(
            codes::UNAUTHENTICATED,
            format!("the credential {shown} cannot be read: {why}"),
        )
        .field("--credential")
        .value(shown)
        .remedy(remedy),
        Exit::Unreachable,
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "endpoint = \"https://127.0.0.1:7443\"\ntoken = \"t\"\nca = \"pem\"\n";

    #[test]
    fn the_first_file_that_is_there_wins() {
        let dir = tempfile::tempdir().unwrap();
        let (absent, present) = (dir.path().join("no/admin.toml"), dir.path().join("a.toml"));
        std::fs::write(&present, GOOD).unwrap();
        let found = first_of(&[absent.clone(), present]).unwrap();
        assert_eq!(found.endpoint, "https://127.0.0.1:7443");
        let failure = first_of(&[absent]).unwrap_err();
        assert_eq!(failure.exit(), Exit::Unreachable);
        assert_eq!(failure.code(), Some(codes::UNAUTHENTICATED));
    }

    #[test]
    fn a_damaged_file_is_told_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (bad, good) = (dir.path().join("bad.toml"), dir.path().join("good.toml"));
        std::fs::write(&bad, "endpoint = 1\n").unwrap();
        std::fs::write(&good, GOOD).unwrap();
        assert!(first_of(&[bad, good]).is_err());
    }
}
