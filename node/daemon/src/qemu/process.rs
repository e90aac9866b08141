//! QEMU's process.
//!
//! It is started in a process group of its own, with the QMP socket as its
//! standard input and its log as standard output and error, and with the ends of
//! its second QMP session where it has one ([`rescue`](super::rescue)); nothing of
//! it is tied to the daemon's life. A later daemon finds it by process id, start time
//! (`/proc/PID/stat`, field 22) and the host's boot id, and holds it by a pidfd
//! from then on. (A session of its own would need `unsafe`; a process group
//! keeps terminal signals away just as well.)

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use command_fds::CommandFdExt as _;
use godwit_node_logic::numa::meminfo;
use godwit_shared::model::{Bytes, DomainUsage, MiB, Problem, UnixMillis, codes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd as _;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Longest path of a unix socket, in bytes (`sun_path` without its final zero).
const SOCKET_PATH_MAX: usize = 107;

/// A process beyond the reuse of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process id.
    pub pid: u32,
    /// When it was started, in clock ticks since the host's boot.
    pub start_time: u64,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where its QMP socket shall be.
    pub qmp: PathBuf,
    /// Where what it prints is appended.
    pub log: PathBuf,
}

/// A QEMU that was started or found.
#[derive(Debug, Clone)]
pub struct Qemu {
    id: ProcessId,
    pidfd: Arc<OwnedFd>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// It was not started by this daemon, so the kernel does not tell.
    Unseen,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::Unseen => f.write_str("it ended; its status went to another process"),
        }
    }
}

impl Launch {
    /// Starts it. Blocks for some milliseconds.
    pub fn start(&self) -> Result<Qemu, Problem> {
        let qmp = listen(&self.qmp)?;
        let log = append(&self.log)
            .map_err(|e| host_io(&format!("`{}` cannot be opened", self.log.display()), &e))?;
        let errors = log
            .try_clone()
            .map_err(|e| host_io("QEMU's log cannot be opened twice", &e))?;
        let rescue =
            super::rescue::ends(&self.args).map_err(|e| host_io("a socket pair is refused", &e))?;
        let mut command = Command::new(&self.program);
        // Even no ends would make it a fork of all of this process.
        if !rescue.is_empty() {
            command.fd_mappings(rescue).map_err(Problem::internal)?;
        }
        command
            .args(&self.args)
            .stdin(Stdio::from(OwnedFd::from(qmp)))
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(errors))
            .env_remove("NOTIFY_SOCKET")
            .process_group(0);
        let mut child = command.spawn().map_err(|e| {
            Problem::new(
                codes::QEMU_START,
                format!("`{}` cannot be started: {e}", self.program.display()),
            )
            .remedy("check that QEMU is installed there and that the daemon may run it")
        })?;
        // Nobody else waits for it, so its id stays its own until then.
        Qemu::of_pid(child.id()).map_err(|e| {
            // One that cannot be followed must not be left running.
            let _ = child.kill();
            let _ = child.wait();
            host_io("the started QEMU cannot be followed (pidfd)", &e)
        })
    }
}

/// Binds a unix socket, replacing one that was left behind.
pub fn listen(path: &Path) -> Result<UnixListener, Problem> {
    check_socket_path(path)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(host_io(
                &format!("`{}` cannot be removed", path.display()),
                &error,
            ));
        }
        _ => {}
    }
    UnixListener::bind(path)
        .map_err(|e| host_io(&format!("`{}` cannot be bound", path.display()), &e))
}

/// Refuses a path that no unix socket can have.
pub fn check_socket_path(path: &Path) -> Result<(), Problem> {
    let length = path.as_os_str().len();
    if length <= SOCKET_PATH_MAX {
        return Ok(());
    }
    Err(Problem::new(
        codes::HOST_IO,
        format!(
            "the socket path `{}` has {length} bytes, and unix sockets take {SOCKET_PATH_MAX}",
            path.display()
        ),
    )
    .field("run_dir")
    .value(path.display().to_string())
    .remedy("give the daemon a shorter run directory (--run-dir)"))
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

impl Qemu {
    fn of_pid(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let pidfd = pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        let stat = Stat::read(pid)?;
        Ok(Self {
            id: ProcessId {
                pid,
                start_time: stat.start_time,
            },
            pidfd: Arc::new(pidfd),
        })
    }

    /// This process.
    pub fn this() -> io::Result<Self> {
        Self::of_pid(std::process::id())
    }

    /// Finds a process that an earlier daemon started; none when it has ended.
    pub fn adopt(id: ProcessId) -> Option<Self> {
        // The pidfd comes first: what is read after it is of the same process.
        let found = Self::of_pid(id.pid).ok()?;
        let stat = Stat::read(id.pid).ok()?;
        (found.id == id && !matches!(stat.state, 'Z' | 'X')).then_some(found)
    }

    /// Finds the process that has the socket at `path` as its standard input:
    /// a QEMU whose id its daemon could not write down any more.
    pub fn listening_at(path: &Path) -> Option<Self> {
        let inode = socket_inode(path)?;
        let wanted = format!("socket:[{inode}]");
        let processes = std::fs::read_dir("/proc").ok()?;
        let pid = processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .find(|pid| {
                std::fs::read_link(format!("/proc/{pid}/fd/0"))
                    .is_ok_and(|link| link.as_os_str() == wanted.as_str())
            })?;
        Self::of_pid(pid).ok()
    }

    /// Which process it is.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// It, whatever becomes of its id.
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Whether it has ended, be it reaped or not.
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// SIGKILL. One that has ended already is fine.
    pub fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&*self.pidfd, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            tracing::error!(pid = self.id.pid, %error, "QEMU cannot be killed");
        }
    }

    /// Resolves when it has ended, and leaves no zombie behind.
    pub async fn ended(self) -> Ended {
        match watch(Arc::clone(&self.pidfd)) {
            Ok(watched) => {
                let _ = watched.readable().await;
            }
            Err(error) => {
                tracing::error!(pid = self.id.pid, %error, "QEMU's end cannot be watched");
                std::future::pending::<()>().await;
            }
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(status)) => status
                .exit_status()
                .map(Ended::Status)
                .or(status.terminating_signal().map(Ended::Signal))
                .unwrap_or(Ended::Unseen),
            _ => Ended::Unseen,
        }
    }

    /// What it uses now. Reads files of /proc; may block.
    pub fn usage(&self) -> io::Result<Sample> {
        let stat = Stat::read(self.id.pid)?;
        if stat.start_time != self.id.start_time {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        let (read, written) = read_io(self.id.pid).unwrap_or_default();
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let pages = rustix::param::page_size() as u64;
        Ok(Sample {
            usage: DomainUsage {
                cpu_ms: stat.cpu_ticks.saturating_mul(1000) / ticks,
                resident: MiB(stat.resident_pages.saturating_mul(pages) >> 20)
                    + huge_pages(self.id.pid).unwrap_or_default(),
                read: Bytes(read),
                written: Bytes(written),
                at: UnixMillis::now(),
            },
            stopped: matches!(stat.state, 'T' | 't'),
        })
    }
}

/// A pidfd is readable once its process has ended (pidfd_open(2)).
#[allow(
    deprecated,
    reason = "its successor is unsafe for types that could close their descriptor early; \
              a shared OwnedFd stays open as long as the AsyncFd holds it"
)]
fn watch(pidfd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

/// One look at a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// What it uses.
    pub usage: DomainUsage,
    /// A signal or a debugger has stopped it.
    pub stopped: bool,
}

/// `/proc/PID/stat`, see proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    cpu_ticks: u64,
    start_time: u64,
    resident_pages: u64,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// The second field is a name in brackets, and may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        // The first of these is the third field.
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            cpu_ticks: number(14)?.saturating_add(number(15)?),
            start_time: number(22)?,
            resident_pages: number(24)?,
        })
    }
}

/// Huge pages, which do not count as resident (`HugetlbPages` of
/// proc_pid_status(5)).
fn huge_pages(pid: u32) -> Option<MiB> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    meminfo(&text, "HugetlbPages")
}

/// Bytes from and to storage: `read_bytes` and `write_bytes` of `/proc/PID/io`.
fn read_io(pid: u32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok())
    };
    Some((field("read_bytes")?, field("write_bytes")?))
}

/// The inode of the socket bound to `path` (`/proc/net/unix`).
fn socket_inode(path: &Path) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/net/unix").ok()?;
    let path = path.to_str()?;
    text.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(6);
        let (inode, bound) = (fields.next()?, fields.next()?);
        (bound == path).then(|| inode.parse().ok())?
    })
}

fn host_io(what: &str, error: &io::Error) -> Problem {
    Problem::new(codes::HOST_IO, format!("{what}: {error}"))
        .remedy("check the daemon's directories, their permissions and the space left")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_is_skipped() {
        let text = "7 (a) S (b) R 1 7 7 0 -1 4194560 1 2 3 4 50 60 0 0 20 0 3 0 900 1000 25 0";
        assert_eq!(
            Stat::parse(text),
            Some(Stat {
                state: 'R',
                cpu_ticks: 110,
                start_time: 900,
                resident_pages: 25,
            })
        );
        assert_eq!(Stat::parse("nonsense"), None);
    }

    #[test]
    fn long_socket_paths_are_named() {
        let path = PathBuf::from(format!("/{}", "x".repeat(200)));
        let problem = check_socket_path(&path).unwrap_err();
        assert_eq!(problem.field.as_deref(), Some("run_dir"));
        assert!(problem.message.contains("107"));
    }

    fn sleeper(dir: &Path) -> Launch {
        Launch {
            program: "/bin/sleep".into(),
            args: vec!["60".into()],
            qmp: dir.join("qmp.sock"),
            log: dir.join("qemu.log"),
        }
    }

    #[tokio::test]
    async fn a_process_is_started_found_again_and_reaped() {
        let dir = tempfile::tempdir().unwrap();
        let started = sleeper(dir.path()).start().unwrap();
        let found = Qemu::adopt(started.id()).unwrap();
        assert_eq!(found.id(), started.id());
        let by_socket = Qemu::listening_at(&dir.path().join("qmp.sock")).unwrap();
        assert_eq!(by_socket.id(), started.id());
        let other = ProcessId {
            start_time: started.id().start_time + 1,
            ..started.id()
        };
        assert!(Qemu::adopt(other).is_none(), "a reused process id");
        assert!(started.usage().unwrap().usage.resident < MiB(100));
        found.kill();
        assert_eq!(started.clone().ended().await, Ended::Signal(9));
        assert!(Qemu::adopt(started.id()).is_none());
        assert!(started.usage().is_err());
        found.kill();
    }

    #[tokio::test]
    async fn an_exit_status_is_seen_and_the_log_written() {
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch {
            args: vec!["nonsense".into()],
            ..sleeper(dir.path())
        };
        let ended = launch.start().unwrap().ended().await;
        assert_eq!(ended, Ended::Status(1));
        assert!(
            std::fs::read_to_string(&launch.log)
                .unwrap()
                .contains("nonsense")
        );
    }

    #[test]
    fn a_missing_program_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch {
            program: "/nonexistent/qemu".into(),
            ..sleeper(dir.path())
        };
        let problem = launch.start().unwrap_err();
        assert_eq!(problem.code, codes::QEMU_START);
        assert!(problem.message.contains("/nonexistent/qemu"));
    }
}
