//! The guardian's process.
//!
//! One thread, one loop: it sleeps in `poll` until a question comes, a process
//! that it watches ends, or the lease does. The alarm is a timer on
//! `CLOCK_BOOTTIME`, which rings at once after the host was suspended. Its memory
//! is locked and it touches no file once it runs, so that a host without memory
//! or with a dead disk does not keep it from its task.
//!
//! It ends when its daemon is gone and it watches nobody.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use godwit_node_logic::lease::Guardian;
use godwit_shared::model::{BootMillis, Problem};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FlockOperation;
use rustix::mm::MlockAllFlags;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::protocol::{Answer, MAX_LINE, Question};
use super::watchdog::Watchdog;
use super::{boot_now, lock_file, socket};
use crate::host::{make_dir, refused};
use crate::qemu::process::{ProcessId, Qemu, listen};

/// How long a daemon may take over its line. Whoever is to be ended is ended
/// first.
const LINE: Duration = Duration::from_millis(50);
/// How often whoever does not end is killed again.
const AGAIN_MS: u64 = 100;
/// How often a watchdog is fed.
const FEED_MS: u64 = 1_000;

/// Serves until nobody needs it.
pub fn run(run_dir: &Path, watchdog: Option<&Path>) -> Result<(), Problem> {
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE;
    if let Err(error) = rustix::mm::mlockall(all) {
        say(&format!("its memory is not locked: {error}"));
    }
    serve(run_dir, watchdog, || {
        // Whoever waits for it reads no further.
        let _ = writeln!(io::stdout(), "ready");
    })
}

/// The same, in a process that does other things as well.
pub(super) fn serve(
    run_dir: &Path,
    watchdog: Option<&Path>,
    ready: impl FnOnce(),
) -> Result<(), Problem> {
    make_dir(run_dir)?;
    let Some(_lock) = only_one(run_dir)? else {
        return Ok(());
    };
    let path = socket(run_dir);
    let listener = listen(&path)?;
    let mut server = Server::new(listener, Watchdog::new(watchdog))
        .map_err(|error| refused("serve at", &path, &error))?;
    ready();
    server
        .serve()
        .map_err(|error| refused("serve at", &path, &error))?;
    // One that comes now finds nobody, and begins another one.
    let _ = std::fs::remove_file(&path);
    Ok(())
}

/// The lock of the one guardian of a node; none where another one has it.
fn only_one(run_dir: &Path) -> Result<Option<File>, Problem> {
    let path = lock_file(run_dir);
    let file = File::create(&path).map_err(|error| refused("create", &path, &error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(refused("lock", &path, &error.into())),
    }
}

struct Server {
    listener: UnixListener,
    alarm: OwnedFd,
    guardian: Guardian<ProcessId>,
    processes: BTreeMap<ProcessId, Qemu>,
    daemon: Option<Qemu>,
    watchdog: Watchdog,
}

impl Server {
    fn new(listener: UnixListener, watchdog: Watchdog) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            listener,
            alarm: timerfd_create(TimerfdClockId::Boottime, flags)?,
            guardian: Guardian::default(),
            processes: BTreeMap::new(),
            daemon: None,
            watchdog,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        // A daemon that began this one says so at once; if not, nobody will.
        let patience = boot_now().after(godwit_shared::model::Millis(10_000));
        loop {
            self.end_due();
            let unneeded = self.guardian.idle() && self.daemon.is_none();
            if unneeded && boot_now() >= patience {
                return Ok(());
            }
            self.set_alarm(unneeded.then_some(patience))?;
            self.sleep()?;
            self.end_due();
            self.bury();
            self.hear();
        }
    }

    /// Ends whoever outlived the lease, and feeds the watchdog unless somebody
    /// does not end.
    fn end_due(&mut self) {
        let now = boot_now();
        let due = self.guardian.due(now);
        for id in &due {
            if let Some(process) = self.processes.get(id) {
                process.kill();
            }
        }
        if due.is_empty() {
            self.watchdog.keep(!self.guardian.idle());
        } else {
            say(&format!("the lease is over: {} VMs are ended", due.len()));
        }
    }

    fn set_alarm(&self, patience: Option<BootMillis>) -> io::Result<()> {
        let now = boot_now();
        let doomed = self.guardian.all().any(|id| self.guardian.ended(id));
        let again = doomed.then(|| BootMillis(now.0 + AGAIN_MS));
        let feed = self.watchdog.armed().then(|| BootMillis(now.0 + FEED_MS));
        let stop = self.guardian.stop_at().filter(|at| *at > now);
        let next = [again, feed, stop, patience].into_iter().flatten().min();
        // A time that has passed rings at once; zero would be no alarm.
        let at = next.map_or(0, |at| at.0.max(1));
        let value = Timespec {
            tv_sec: i64::try_from(at / 1_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(at % 1_000).unwrap_or_default() * 1_000_000,
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: value,
        };
        timerfd_settime(&self.alarm, TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }

    fn sleep(&self) -> io::Result<()> {
        let processes = self.processes.values().chain(&self.daemon);
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.listener.as_fd(), self.alarm.as_fd()];
        fds.extend(processes.map(|process| process.pidfd().as_fd()));
        let wait = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds: Vec<PollFd<'_>> = fds.into_iter().map(wait).collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets processes that have ended.
    fn bury(&mut self) {
        let guardian = &mut self.guardian;
        self.processes.retain(|id, process| {
            let alive = !process.has_ended();
            if !alive {
                guardian.gone(id);
            }
            alive
        });
        self.daemon.take_if(|daemon| daemon.has_ended());
    }

    fn hear(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if let Err(error) = self.converse(&stream) {
                say(&format!("a daemon was not understood: {error}"));
            }
            self.end_due();
        }
    }

    fn converse(&mut self, stream: &UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LINE))?;
        stream.set_write_timeout(Some(LINE))?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_LINE)).read_line(&mut line)?;
        let answer = match serde_json::from_str(&line) {
            Ok(question) => self.answer(question),
            Err(error) => Answer::Refused(error.to_string()),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        let mut stream = stream;
        stream.write_all(&text)
    }

    fn answer(&mut self, question: Question) -> Answer {
        let now = boot_now();
        match question {
            Question::Hello { daemon } => {
                self.daemon = Qemu::adopt(daemon);
                self.done()
            }
            Question::Extend { stop_at } => {
                self.guardian.extend(now, stop_at);
                self.done()
            }
            Question::Watch { process } => {
                let Some(found) = Qemu::adopt(process) else {
                    return Answer::Refused("there is no such process".into());
                };
                self.processes.insert(process, found);
                Answer::Word(self.guardian.watch(now, process))
            }
            Question::Fate { process } => Answer::Word(self.guardian.ended(&process)),
        }
    }

    fn done(&self) -> Answer {
        Answer::Done {
            stop_at: self.guardian.stop_at(),
        }
    }
}

/// Into the daemon's log, if that is still read.
pub(super) fn say(what: &str) {
    let _ = writeln!(io::stderr(), "guardian: {what}");
}
