//! One daemon as a process that a test may stop, kill and start again.
//!
//! Being ready is the daemon's own word: `READY=1` on the socket that
//! `$NOTIFY_SOCKET` names, as systemd would hear it.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixDatagram;

use crate::wait;

/// Most that a daemon may take until it says that it is ready. It probes
/// emulators at its start, on a machine that may be busy with guests.
const READY: Duration = Duration::from_secs(30);
/// Most that a clean stop may take.
const STOP: Duration = Duration::from_secs(10);
/// How much of a log is shown when a test fails.
const LOG_TAIL: u64 = 24 * 1024;

/// A daemon.
#[derive(Debug)]
pub struct Daemon {
    /// Its name in messages: `coordinator`, `node-1`.
    pub name: String,
    program: PathBuf,
    /// Its arguments; a test may change them before a restart.
    pub args: Vec<String>,
    /// Variables added to its environment.
    pub env: Vec<(String, String)>,
    dir: PathBuf,
    child: Option<Child>,
    starts: u32,
}

impl Daemon {
    /// A daemon that is not started yet. Logs and sockets go to `dir`.
    pub fn new(name: &str, program: PathBuf, args: Vec<String>, dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program,
            args,
            env: Vec::new(),
            dir: dir.to_owned(),
            child: None,
            starts: 0,
        }
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it ends before, or says nothing; with the end of its log.
    pub async fn start(&mut self) -> Result<()> {
        let ready = self.spawn()?;
        let said = tokio::time::timeout(READY, self.hear_ready(&ready)).await;
        let said = said.unwrap_or_else(|_| bail!("it said nothing for {READY:?}"));
        said.with_context(|| format!("{} did not start; its log:\n{}", self.name, self.log_tail()))
    }

    /// Starts it and waits until it ends by itself: for starts that are refused.
    ///
    /// # Errors
    /// When it goes on running; it is killed then.
    pub async fn start_refused(&mut self) -> Result<(ExitStatus, String)> {
        let _ready = self.spawn()?;
        let ended = wait::until("its end", READY, || {
            let ended = self.ended();
            async move { ended }
        })
        .await;
        if ended.is_err() {
            self.kill();
        }
        Ok((ended?, self.log_tail()))
    }

    fn spawn(&mut self) -> Result<UnixDatagram> {
        if self.child.is_some() {
            bail!("{} runs already", self.name);
        }
        self.starts += 1;
        let socket = self.dir.join(format!("{}.{}", self.name, self.starts));
        let ready = UnixDatagram::bind(&socket).context("the ready socket")?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let child = Command::new(&self.program)
            .args(&self.args)
            .envs(self.env.iter().cloned())
            .env("NOTIFY_SOCKET", &socket)
            .env_remove("GODWIT_CREDENTIAL")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{}", self.program.display()))?;
        self.child = Some(child);
        Ok(ready)
    }

    async fn hear_ready(&mut self, ready: &UnixDatagram) -> Result<()> {
        let mut buffer = [0; 1024];
        loop {
            tokio::select! {
                received = ready.recv(&mut buffer) => {
                    let text = String::from_utf8_lossy(&buffer[..received?]).into_owned();
                    if text.lines().any(|line| line == "READY=1") {
                        return Ok(());
                    }
                }
                () = tokio::time::sleep(wait::STEP) => {
                    if let Some(status) = self.ended()? {
                        self.child = None;
                        bail!("it ended with {status}");
                    }
                }
            }
        }
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let child = self.child.as_mut().context("it was not started")?;
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Whether it was started and not ended by the test.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<u32> {
        let child = self.child.as_ref();
        child
            .map(Child::id)
            .with_context(|| format!("{} does not run", self.name))
    }

    /// `kill -9`; returns when the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// `SIGTERM`; returns its exit status.
    ///
    /// # Errors
    /// When it does not end in time; it is killed then.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let begun = Instant::now();
        while begun.elapsed() < STOP {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            tokio::time::sleep(wait::STEP).await;
        }
        self.kill();
        bail!("{} did not stop within {STOP:?} of SIGTERM", self.name)
    }

    /// Kills it and starts it again.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.start().await
    }

    /// Freezes the process: it keeps its sockets and answers nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Ends [`Daemon::freeze`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()?)?).context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Where its log is.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log_path()).unwrap_or_else(|e| format!("(no log: {e})"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
