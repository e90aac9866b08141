//! Running the program, with a deadline.

use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// No run takes longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code.
    pub(crate) code: i32,
    /// What it printed.
    pub(crate) out: String,
    /// What else it said.
    pub(crate) err: String,
}

impl Ended {
    /// stderr as one JSON value.
    pub(crate) fn problem(&self) -> serde_json::Value {
        serde_json::from_str(&self.err).unwrap_or_else(|e| panic!("{e}: {}", self.err))
    }
}

/// The program with an empty environment and these arguments.
pub(crate) fn command(credential: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command
        .args(line.split_whitespace())
        .env_clear()
        .env("GODWIT_CREDENTIAL", credential)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs it to its end.
pub(crate) fn godwit(credential: &Path, line: &str) -> Ended {
    Running::start(command(credential, line)).end()
}

/// A run under way.
pub(crate) struct Running {
    child: Child,
    out: Stream,
    err: Stream,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        Self {
            out: Stream::of(child.stdout.take()),
            err: Stream::of(child.stderr.take()),
            child,
        }
    }

    /// Types into its stdin.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let stdin = self.child.stdin.as_mut().expect("stdin is a pipe");
        stdin.write_all(bytes).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits until stdout holds `text`.
    pub(crate) fn await_out(&mut self, text: &str) {
        self.out.await_text(text);
    }

    /// Waits until stderr holds `text`.
    pub(crate) fn await_err(&mut self, text: &str) {
        self.err.await_text(text);
    }

    /// Sends it what Ctrl-C sends.
    pub(crate) fn interrupt(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        drop(self.child.stdin.take());
        self.finish()
    }

    /// Waits for its end with stdin left open.
    pub(crate) fn finish(mut self) -> Ended {
        let out = self.out.rest();
        let err = self.err.rest();
        let status = self.child.wait().unwrap();
        Ended {
            code: status.code().unwrap_or_else(|| panic!("{status}: {err}")),
            out,
            err,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What comes out of a pipe.
struct Stream {
    from: Receiver<Vec<u8>>,
    text: Vec<u8>,
}

impl Stream {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let (to, from) = channel();
        if let Some(mut pipe) = pipe {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                    if to.send(buffer[..read].to_vec()).is_err() {
                        return;
                    }
                }
            });
        }
        Self {
            from,
            text: Vec::new(),
        }
    }

    fn await_text(&mut self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !String::from_utf8_lossy(&self.text).contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.from.recv_timeout(left) {
                Ok(bytes) => self.text.extend(bytes),
                Err(why) => panic!(
                    "{why}: no `{text}` in `{}`",
                    String::from_utf8_lossy(&self.text)
                ),
            }
        }
    }

    fn rest(&mut self) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.from.recv_timeout(left) {
                Ok(bytes) => self.text.extend(bytes),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    panic!("no end after `{}`", String::from_utf8_lossy(&self.text))
                }
            }
        }
        String::from_utf8_lossy(&self.text).into_owned()
    }
}
