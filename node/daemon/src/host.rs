//! What the daemon needs of its host: directories, the lock on the state
//! directory, small files written whole, and the host's own description.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use godwit_shared::model::{MiB, Problem, codes};
use rustix::fs::FlockOperation;
use serde::Serialize;

use crate::config::HostPort;

/// Where the daemon keeps what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePaths {
    /// What has to survive the daemon.
    pub state_dir: PathBuf,
    /// Sockets.
    pub run_dir: PathBuf,
}

impl NodePaths {
    /// Key, certificate and CA of this node (PEM, 0600).
    pub fn identity(&self) -> PathBuf {
        self.state_dir.join("identity/node.pem")
    }

    /// Which cluster this node joined, and where its coordinator is (TOML).
    pub fn cluster(&self) -> PathBuf {
        self.state_dir.join("identity/cluster.toml")
    }

    /// The members of the cluster as last heard (JSON): a node that starts
    /// while its coordinator is away still knows its peers.
    pub fn members(&self) -> PathBuf {
        self.state_dir.join("members.json")
    }

    /// The terms of the node's lease (JSON).
    pub fn lease(&self) -> PathBuf {
        self.state_dir.join("lease.json")
    }

    /// A directory for each domain.
    pub fn domains(&self) -> PathBuf {
        self.state_dir.join("domains")
    }

    /// A journal for each migration.
    pub fn migrations(&self) -> PathBuf {
        self.state_dir.join("migrations")
    }

    /// Where the running daemon can be reached (JSON).
    pub fn endpoints(&self) -> PathBuf {
        self.state_dir.join("endpoints.json")
    }

    /// Makes the directories, for their owner alone.
    pub fn create(&self) -> Result<(), Problem> {
        let dirs = [
            self.state_dir.clone(),
            self.domains(),
            self.migrations(),
            self.run_dir.clone(),
        ];
        dirs.iter().try_for_each(|dir| make_dir(dir))?;
        // A run directory that a package made may be open to others.
        let private = Permissions::from_mode(0o700);
        std::fs::set_permissions(&self.run_dir, private)
            .map_err(|error| refused("restrict", &self.run_dir, &error))
    }
}

/// Makes a directory and those above it, for their owner alone.
pub fn make_dir(dir: &Path) -> Result<(), Problem> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| refused("create", dir, &error))
}

/// The host refuses something about a path.
pub fn refused(doing: &str, path: &Path, error: &io::Error) -> Problem {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "run the daemon as root, or give it directories that it may write"
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

/// The exclusive right to a state directory, held while this lives. The kernel
/// takes it back when the process ends, however that happens.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the lock, or says who has it.
    pub fn acquire(state_dir: &Path) -> Result<Self, Problem> {
        make_dir(state_dir)?;
        let path = state_dir.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| refused("open", &path, &error))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(taken(state_dir, &mut file)),
            Err(error) => return Err(refused("lock", &path, &error.into())),
        }
        // Only for the message above; the lock itself is the kernel's.
        let _ = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

fn taken(state_dir: &Path, file: &mut File) -> Problem {
    let mut pid = String::new();
    let _ = file.read_to_string(&mut pid);
    let who = match pid.trim() {
        "" => "another godwit-node".to_owned(),
        pid => format!("another godwit-node (pid {pid})"),
    };
    Problem::new(
        codes::STATE_CONFLICT,
        format!("{who} uses the state directory {}", state_dir.display()),
    )
    .field("state_dir")
    .value(state_dir.display().to_string())
    .remedy("end that daemon first, or give this one a directory of its own with --state-dir")
}

/// Puts `content` at `path`, whole or not at all (a reader or a crash sees the
/// old file or the new one), readable by its owner alone.
pub fn write_file(path: &Path, content: &[u8]) -> Result<(), Problem> {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".new");
    let beside = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(content)?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| refused("write", path, &error))
}

/// Where a running daemon can be reached, for scripts and tests.
#[derive(Debug, Serialize)]
struct Endpoints<'a> {
    cluster: &'a str,
    pid: u32,
}

/// The file that says where this daemon can be reached; removed with this.
#[derive(Debug)]
pub struct EndpointsFile(PathBuf);

impl EndpointsFile {
    /// Writes it: the daemon serves at `cluster`.
    pub fn write(path: PathBuf, cluster: &str) -> Result<Self, Problem> {
        let pid = std::process::id();
        let text = serde_json::to_vec(&Endpoints { cluster, pid }).map_err(Problem::internal)?;
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

/// What the host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDescription {
    /// Its name.
    pub hostname: String,
    /// Changes whenever the host is booted anew.
    pub boot_id: String,
    /// The running kernel's release.
    pub kernel: String,
    /// Cores that this process may use.
    pub cores: u32,
    /// Its memory.
    pub memory: MiB,
}

impl HostDescription {
    /// Asks the host.
    pub fn read() -> Result<Self, Problem> {
        let uname = rustix::system::uname();
        let system = rustix::system::sysinfo();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let bytes = u64::from(system.mem_unit).saturating_mul(system.totalram);
        Ok(Self {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            boot_id: boot_id()?,
            kernel: uname.release().to_string_lossy().into_owned(),
            cores: u32::try_from(cores).unwrap_or(u32::MAX),
            memory: MiB(bytes >> 20),
        })
    }
}

/// The kernel's boot id (random(4)).
pub fn boot_id() -> Result<String, Problem> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|error| refused("read", path, &error))
}

/// Where this host is reached from `peer`'s side, with `port`: the address that
/// the kernel would send from. Nothing is sent. The host's name, when the
/// kernel knows no way.
pub fn address_towards(peer: SocketAddr, port: u16) -> HostPort {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let local = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(peer)?;
        socket.local_addr()
    });
    match local {
        Ok(local) => HostPort::of(SocketAddr::new(local.ip(), port)),
        Err(_) => address_by_name(port),
    }
}

/// The host's name, with `port`.
pub fn address_by_name(port: u16) -> HostPort {
    HostPort::of_host(rustix::system::uname().nodename().to_string_lossy(), port)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let lock = StateLock::acquire(dir.path()).unwrap();
        let problem = StateLock::acquire(dir.path()).unwrap_err();
        assert_eq!(problem.code, codes::STATE_CONFLICT);
        let pid = format!("(pid {})", std::process::id());
        assert!(problem.message.contains(&pid), "{problem}");
        drop(lock);
        StateLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn directories_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let paths = NodePaths {
            state_dir: dir.path().join("state"),
            run_dir: dir.path().join("run"),
        };
        std::fs::create_dir(&paths.run_dir).unwrap();
        paths.create().unwrap();
        for path in [&paths.state_dir, &paths.run_dir, &paths.domains()] {
            let mode = std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", path.display());
        }
    }

    #[test]
    fn a_path_that_is_refused_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let problem = StateLock::acquire(&file.join("state")).unwrap_err();
        assert_eq!(problem.code, codes::HOST_IO);
        assert!(problem.value.unwrap().ends_with("file/state"));
    }

    #[test]
    fn the_endpoints_file_goes_with_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoints.json");
        let file = EndpointsFile::write(path.clone(), "127.0.0.1:7441").unwrap();
        let value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(value["cluster"], "127.0.0.1:7441");
        assert_eq!(value["pid"], std::process::id());
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_peer_on_this_host_reaches_it_at_its_loopback() {
        let peer = "127.0.0.1:7440".parse().unwrap();
        assert_eq!(address_towards(peer, 7441).to_string(), "127.0.0.1:7441");
    }

    #[test]
    fn the_host_describes_itself() {
        let host = HostDescription::read().unwrap();
        assert!(host.cores > 0 && host.memory > MiB(64));
        assert_eq!(host.boot_id.len(), 36);
    }
}
