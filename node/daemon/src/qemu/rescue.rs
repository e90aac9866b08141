//! A QMP session that outlives the daemon.
//!
//! In a broken post-copy QEMU's main loop may hang in a page that has not come.
//! It greets nobody then, so a daemon that was restarted gets no session of its
//! own, and cannot say `migrate-recover`. What still works is a session that was
//! negotiated before: its commands out of band are carried out by a thread
//! beside the main loop (QEMU's docs/devel/qapi-code-gen, `allow-oob`).
//!
//! A QEMU that receives therefore gets a second monitor, on one end of a socket
//! pair, and inherits the other end too, which it never touches: that end lives
//! as long as QEMU. Each daemon takes a copy of it (pidfd_getfd(2)). The first
//! one negotiates; those after it go on where their predecessor was killed.
//!
//! # Invariants
//! * Only commands that overtake are sent here; for all else there is the
//!   ordinary session, as for events: those that come here are thrown away.
//! * While no daemon runs nobody reads. The socket fills, and QEMU then keeps
//!   what it has to say in memory: its events, of which the frequent ones are
//!   limited to one a second by QEMU itself.

use std::io;
use std::os::unix::net::UnixStream as Blocking;

use command_fds::FdMapping;
use godwit_node_logic::qemu::rescue;
use godwit_shared::model::{Problem, codes};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::process::Qemu;
use super::session::{Session, SessionEvent};

/// Whose session it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// QEMU was just started, and greets.
    Now,
    /// A daemon before this one has negotiated.
    Before,
}

/// Both ends, for a QEMU with these arguments; none for one that has no use for
/// them.
pub(super) fn ends(args: &[String]) -> io::Result<Vec<FdMapping>> {
    if !args.contains(&rescue::device()) {
        return Ok(Vec::new());
    }
    let (monitor, idle) = Blocking::pair()?;
    let ends = [(monitor, rescue::MONITOR), (idle, rescue::IDLE)];
    let mapped = ends.map(|(end, child_fd)| FdMapping {
        parent_fd: end.into(),
        child_fd,
    });
    Ok(mapped.into())
}

/// Opens the session; none where QEMU has no second monitor, as one that was
/// started cold or by an earlier release.
pub async fn open(qemu: Qemu, begun: Begun) -> Result<Option<Session>, Problem> {
    let taken = tokio::task::spawn_blocking(move || take(&qemu)).await;
    let end = taken
        .unwrap_or_else(|e| Err(io::Error::other(e)))
        .and_then(|end| end.map(UnixStream::from_std).transpose())
        .map_err(|e| refused(&e))?;
    let Some(end) = end else {
        return Ok(None);
    };
    let (session, events) = match begun {
        Begun::Now => {
            let (session, _, events) = Session::over(end).await?;
            (session, events)
        }
        Begun::Before => Session::go_on(end),
    };
    tokio::spawn(throw_away(events));
    Ok(Some(session))
}

async fn throw_away(mut events: mpsc::Receiver<SessionEvent>) {
    while events.recv().await.is_some() {}
}

/// A copy of the idle end. Blocks.
fn take(qemu: &Qemu) -> io::Result<Option<Blocking>> {
    let line = std::fs::read(format!("/proc/{}/cmdline", qemu.id().pid))?;
    let device = rescue::device();
    if !line
        .split(|byte| *byte == 0)
        .any(|arg| arg == device.as_bytes())
    {
        return Ok(None);
    }
    let end = pidfd_getfd(qemu.pidfd(), rescue::IDLE, PidfdGetfdFlags::empty())?;
    let end = Blocking::from(end);
    end.set_nonblocking(true)?;
    Ok(Some(end))
}

fn refused(error: &io::Error) -> Problem {
    let text = format!("QEMU's second QMP session cannot be taken: {error}");
    Problem::new(codes::HOST_IO, text)
        .remedy("run godwit-node as root, or with CAP_SYS_PTRACE, as kernel.yama.ptrace_scope asks")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;
    use std::time::Duration;

    use godwit_node_logic::qmp::Command;

    use super::super::process::Launch;
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn launch(dir: &Path, program: &str, args: &str) -> Qemu {
        let launch = Launch {
            program: program.into(),
            args: args.split_whitespace().map(str::to_owned).collect(),
            qmp: dir.join("qmp.sock"),
            log: dir.join("qemu.log"),
        };
        launch.start().unwrap()
    }

    /// A QEMU that has its one QMP monitor there.
    fn receiving(dir: &Path) -> Qemu {
        let args = format!(
            "-machine none -nodefaults -display none -S -chardev {} -mon chardev=rescue,mode=control",
            rescue::device()
        );
        launch(dir, "qemu-system-x86_64", &args)
    }

    /// One life of a daemon: what is open at its end is closed.
    fn live(qemu: &Qemu, begun: Begun) -> Problem {
        let life = tokio::runtime::Runtime::new().unwrap();
        life.block_on(async {
            let session = open(qemu.clone(), begun).await.unwrap().unwrap();
            let pause = Command::plain("migrate-pause");
            session.execute(&pause, SOON).await.unwrap_err()
        })
    }

    #[test]
    fn the_next_daemon_goes_on_with_the_session() {
        let dir = tempfile::tempdir().unwrap();
        let qemu = receiving(dir.path());
        let refusals = [Begun::Now, Begun::Before].map(|begun| live(&qemu, begun));
        qemu.kill();
        for refusal in refusals {
            assert_eq!(refusal.code, codes::QEMU_COMMAND, "{refusal}");
            assert!(refusal.message.contains("postcopy"), "{refusal}");
        }
    }

    #[tokio::test]
    async fn a_qemu_without_a_second_monitor_has_no_session() {
        let dir = tempfile::tempdir().unwrap();
        let qemu = launch(dir.path(), "/bin/sleep", "60");
        assert!(open(qemu.clone(), Begun::Before).await.unwrap().is_none());
        qemu.kill();
        qemu.ended().await;
        assert!(ends(&["-S".to_owned()]).unwrap().is_empty());
    }
}
