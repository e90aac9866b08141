//! The state directory: what lies where, the lock on it, and files that appear whole.
//!
//! ```text
//! ca/ca.pem, ca/ca-key.pem    the cluster's CA
//! identity/coordinator.pem    this coordinator's key and certificate
//! identity/names.json         the further names in that certificate
//! store.redb                  the cluster's records
//! admin.toml                  the local operator's credential
//! endpoints.json              where the running daemon can be reached
//! lock                        held by the running daemon
//! ```

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use godwit_shared::model::{Problem, codes};
use rustix::fs::FlockOperation;
use serde::Serialize;

/// The exclusive right to a state directory, held while this lives. The kernel
/// takes it back when the process ends, however that happens.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory where it is missing, and takes the lock, or says
    /// who has it.
    pub fn acquire(path: &Path) -> Result<Self, Problem> {
        let mut make = DirBuilder::new();
        make.recursive(true).mode(0o700);
        make.create(path)
            .map_err(|error| refused("create", path, &error))?;
        let lock = lock(path)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The CA's directory.
    pub fn ca(&self) -> PathBuf {
        self.path.join("ca")
    }

    /// This coordinator's key and certificate.
    pub fn identity(&self) -> PathBuf {
        self.path.join("identity/coordinator.pem")
    }

    /// The further names in that certificate.
    pub fn names(&self) -> PathBuf {
        self.path.join("identity/names.json")
    }

    /// The cluster's records.
    pub fn store(&self) -> PathBuf {
        self.path.join("store.redb")
    }

    /// The local operator's credential.
    pub fn admin(&self) -> PathBuf {
        self.path.join("admin.toml")
    }

    /// Where the running daemon can be reached.
    pub fn endpoints(&self) -> PathBuf {
        self.path.join("endpoints.json")
    }
}

fn lock(state_dir: &Path) -> Result<File, Problem> {
    let path = state_dir.join("lock");
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let mut file = options
        .open(&path)
        .map_err(|error| refused("open", &path, &error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(taken(state_dir, &mut file)),
        Err(error) => return Err(refused("lock", &path, &error.into())),
    }
    // Only for the message below; the lock itself is the kernel's.
    let _ = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

fn taken(state_dir: &Path, file: &mut File) -> Problem {
    let mut pid = String::new();
    let _ = file.read_to_string(&mut pid);
    let who = match pid.trim() {
        "" => "another godwit-coordinator".to_owned(),
        pid => format!("another godwit-coordinator (pid {pid})"),
    };
    let what = format!("{who} uses the state directory {}", state_dir.display());
    Problem::new(codes::STATE_CONFLICT, what)
        .field("state_dir")
        .value(state_dir.display().to_string())
        .remedy("end that daemon first, or give this one a directory of its own with --state-dir")
}

/// The host refuses something about a path.
pub fn refused(doing: &str, path: &Path, error: &io::Error) -> Problem {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "run the daemon as a user that may write there, or name another directory with --state-dir"
        }
        io::ErrorKind::StorageFull => "free some space there",
        _ => "check the path, its permissions and its file system",
    };
    Problem::new(
        codes::HOST_IO,
        format!("cannot {doing} {}: {error}", path.display()),
    )
    .value(path.display().to_string())
    .remedy(remedy)
}

/// Puts `content` at `path`, whole or not at all (a reader or a crash sees the
/// old file or the new one), readable by its owner alone.
pub fn write_file(path: &Path, content: &[u8]) -> Result<(), Problem> {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".new");
    let beside = path.with_file_name(name);
    let write = || -> io::Result<()> {
        // A left-over of a crash may have another mode.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| refused("write", path, &error))
}

/// Makes a rename in the folder of `path` outlive the host.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads a file, if it is there.
pub fn read_file(path: &Path) -> Result<Option<String>, Problem> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refused("read", path, &error)),
    }
}

#[derive(Debug, Serialize)]
struct Endpoints<'a> {
    api: &'a str,
    cluster: &'a str,
    pid: u32,
}

/// The file that says where this daemon can be reached; removed with this.
#[derive(Debug)]
pub struct EndpointsFile(PathBuf);

impl EndpointsFile {
    /// Writes it: the API is at the URL `api`, nodes connect to `cluster`.
    pub fn write(path: PathBuf, api: &str, cluster: &str) -> Result<Self, Problem> {
        let endpoints = Endpoints {
            api,
            cluster,
            pid: std::process::id(),
        };
        let text = serde_json::to_vec(&endpoints).map_err(Problem::internal)?;
        write_file(&path, &text)?;
        Ok(Self(path))
    }
}

impl Drop for EndpointsFile {
    fn drop(&mut self) {
        // It may have been removed already.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::acquire(dir.path()).unwrap();
        let problem = StateDir::acquire(dir.path()).unwrap_err();
        assert_eq!(problem.code, codes::STATE_CONFLICT);
        let pid = format!("(pid {})", std::process::id());
        assert!(problem.message.contains(&pid), "{problem}");
        drop(first);
        StateDir::acquire(dir.path()).unwrap();
    }

    #[test]
    fn files_are_private_even_over_an_open_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.toml");
        let leftover = dir.path().join("admin.toml.new");
        std::fs::write(&leftover, "x").unwrap();
        std::fs::set_permissions(&leftover, std::fs::Permissions::from_mode(0o644)).unwrap();
        write_file(&path, b"secret").unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(read_file(&path).unwrap().as_deref(), Some("secret"));
        assert_eq!(read_file(&leftover).unwrap(), None);
    }

    #[test]
    fn the_endpoints_file_goes_with_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoints.json");
        let file = EndpointsFile::write(path.clone(), "https://a:1", "a:2").unwrap();
        let text = read_file(&path).unwrap().unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["api"], &value["cluster"]),
            (&"https://a:1".into(), &"a:2".into())
        );
        drop(file);
        assert!(!path.exists());
    }
}
