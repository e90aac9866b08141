//! The daemon's side of the guardian: begins it, and asks it things.
//!
//! Every call blocks for a moment: a guardian answers within milliseconds or not
//! at all. Call from a thread that may wait.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use godwit_shared::model::{BootMillis, Problem, codes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::protocol::{Answer, MAX_LINE, Question};
use super::{boot_now, socket, watchdog};
use crate::qemu::process::{ProcessId, Qemu};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// How long a guardian may take to come up.
const BEGIN: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// The daemon's side of the guardian. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Guard {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// None where nothing is guarded, so nothing protected runs.
    place: Option<Place>,
    /// The end of the lease as the guardian has it; 0 for none.
    stop_at: AtomicU64,
    /// Whoever was given to the guardian: a next one is told of them, too.
    watched: Mutex<BTreeSet<ProcessId>>,
}

#[derive(Debug)]
struct Place {
    run_dir: PathBuf,
    /// `godwit-node`.
    program: PathBuf,
    watchdog: Option<PathBuf>,
}

impl Guard {
    /// A guard that keeps its guardian's socket in `run_dir`. `program` is the
    /// daemon's own binary.
    pub fn new(run_dir: &Path, program: PathBuf, watchdog: Option<PathBuf>) -> Self {
        let place = Place {
            run_dir: run_dir.to_owned(),
            program,
            watchdog,
        };
        Self::of(Some(place))
    }

    /// One that guards nothing: no protected VM is started.
    pub fn none() -> Self {
        Self::of(None)
    }

    fn of(place: Option<Place>) -> Self {
        let shared = Shared {
            place,
            stop_at: AtomicU64::new(0),
            watched: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// How long the host's watchdog waits, where there is one.
    pub fn watchdog_patience(&self) -> Option<Duration> {
        let device = self.shared.place.as_ref()?.watchdog.as_ref()?;
        watchdog::patience(Path::new(watchdog::CLASS), device)
    }

    /// Makes sure that there is a guardian and that it knows this daemon. When
    /// protected VMs stop, if one of an earlier daemon knows.
    pub fn begin(&self) -> Result<Option<BootMillis>, Problem> {
        let daemon = Qemu::this().map_err(|error| unreachable(&error))?.id();
        let hello = Question::Hello { daemon };
        if let Ok(answer) = self.ask(hello) {
            return self.learn(&answer);
        }
        self.spawn()?;
        self.ask(hello).map_err(|error| unreachable(&error))?;
        self.hand_over()
    }

    /// A new guardian takes the place of one that was lost.
    fn hand_over(&self) -> Result<Option<BootMillis>, Problem> {
        let known = self.shared.stop_at.load(Ordering::Acquire);
        if known == 0 {
            return Ok(None);
        }
        self.extend(BootMillis(known))?;
        let watched = self.watched().clone();
        for process in watched {
            // One that has ended is told apart by its start time.
            if Qemu::adopt(process).is_none() {
                self.watched().remove(&process);
            } else {
                self.watch(process)?;
            }
        }
        Ok(Some(BootMillis(known)))
    }

    fn watched(&self) -> MutexGuard<'_, BTreeSet<ProcessId>> {
        let watched = &self.shared.watched;
        watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease ends then. Done when the guardian has it.
    pub fn extend(&self, stop_at: BootMillis) -> Result<(), Problem> {
        let answer = self.ask(Question::Extend { stop_at });
        self.learn(&answer.map_err(|error| unreachable(&error))?)?;
        Ok(())
    }

    /// A protected QEMU runs, or is about to: it ends with the lease from here on.
    pub fn watch(&self, process: ProcessId) -> Result<(), Problem> {
        match self.ask(Question::Watch { process }) {
            Ok(Answer::Word(true)) => {
                self.watched().insert(process);
                Ok(())
            }
            Ok(Answer::Word(false)) => Err(no_lease()),
            Ok(Answer::Refused(why)) => Err(Problem::internal(why)),
            Ok(Answer::Done { .. }) => Err(Problem::internal("the guardian's answer fits nothing")),
            Err(error) => Err(unreachable(&error)),
        }
    }

    /// Whether that QEMU was ended because the lease had ended.
    pub fn has_ended(&self, process: ProcessId) -> bool {
        self.watched().remove(&process);
        match self.ask(Question::Fate { process }) {
            Ok(answer) => answer == Answer::Word(true),
            // Without a guardian the clock is the only witness.
            Err(_) => !self.holds(),
        }
    }

    /// Whether a protected VM may be started now.
    pub fn check(&self) -> Result<(), Problem> {
        if self.holds() {
            Ok(())
        } else {
            Err(no_lease())
        }
    }

    fn holds(&self) -> bool {
        boot_now().0 < self.shared.stop_at.load(Ordering::Acquire)
    }

    fn learn(&self, answer: &Answer) -> Result<Option<BootMillis>, Problem> {
        let Answer::Done { stop_at } = answer else {
            return Err(Problem::internal("the guardian's answer fits nothing"));
        };
        let known = stop_at.map_or(0, |at| at.0);
        self.shared.stop_at.store(known, Ordering::Release);
        Ok(*stop_at)
    }

    fn ask(&self, question: Question) -> io::Result<Answer> {
        let place = self.shared.place.as_ref();
        let place = place.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        let mut stream = UnixStream::connect(socket(&place.run_dir))?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut line = serde_json::to_vec(&question)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream.take(MAX_LINE)).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    }

    fn spawn(&self) -> Result<(), Problem> {
        let Some(place) = &self.shared.place else {
            return Err(no_lease());
        };
        let mut command = Command::new(&place.program);
        command.arg("guard").arg("--run-dir").arg(&place.run_dir);
        if let Some(watchdog) = &place.watchdog {
            command.arg("--watchdog").arg(watchdog);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .env_remove("NOTIFY_SOCKET")
            .process_group(0)
            .spawn()
            .map_err(|error| unreachable(&error))?;
        await_word(&mut child).map_err(|error| unreachable(&error))?;
        // Whoever reaps it waits as long as it lives.
        let reaper = move || {
            let _ = child.wait();
        };
        std::thread::Builder::new()
            .name("guardian-end".into())
            .spawn(reaper)
            .map_err(|error| unreachable(&error))?;
        Ok(())
    }
}

/// Waits for the guardian's first word, which it says when it listens, or for its
/// end: then another one has begun meanwhile.
fn await_word(child: &mut Child) -> io::Result<()> {
    let Some(words) = child.stdout.take() else {
        return Ok(());
    };
    let mut fds = [PollFd::from_borrowed_fd(words.as_fd(), PollFlags::IN)];
    poll(&mut fds, Some(&BEGIN))?;
    Ok(())
}

/// The node holds no lease.
fn no_lease() -> Problem {
    Problem::new(
        codes::LEASE_LOST,
        "this node holds no lease, so it runs no protected VM",
    )
    .remedy("see that the node reaches the coordinator; `godwit node show NODE` tells of its lease")
}

fn unreachable(error: &io::Error) -> Problem {
    Problem::new(
        codes::HOST_IO,
        format!("the guardian of protected VMs does not answer: {error}"),
    )
    .remedy("look at the node's log; without a guardian no protected VM runs here")
}
