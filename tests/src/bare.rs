//! QEMU without a manager: the arguments of one that a node started, driven over
//! its QMP. What a managed guest is measured against.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::harness::Cluster;

/// Most that QEMU may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Arguments of a QEMU that a node started, made fit for a folder of our own.
#[derive(Debug, Clone)]
pub struct Recipe {
    program: String,
    args: Vec<String>,
    from: [String; 2],
}

impl Recipe {
    /// How the node of that number runs a guest.
    ///
    /// # Errors
    /// When it does not.
    pub async fn of_guest(cluster: &Cluster, node: usize, name: &str) -> Result<Self> {
        let view = cluster.api.vm(name).await?;
        let node = &cluster.nodes[node];
        let run = node.run.join(view.id.to_string());
        let state = node.domain_dir(view.id);
        Self::of(view.pid.context("its process")?, [&run, &state])
    }

    /// Those of a running process; `dirs` are the folders that it names.
    fn of(pid: u32, dirs: [&Path; 2]) -> Result<Self> {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        let mut words = bytes
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned());
        Ok(Self {
            program: words.next().context("a program")?,
            args: words.collect(),
            from: dirs.map(|dir| dir.display().to_string()),
        })
    }

    /// The same without an argument.
    #[must_use]
    pub fn without(mut self, arg: &str) -> Self {
        self.args.retain(|word| word != arg);
        self
    }

    /// The same with something else in the place of `from`, wherever it stands.
    #[must_use]
    pub fn with(mut self, from: &str, to: &str) -> Self {
        for word in &mut self.args {
            *word = word.replace(from, to);
        }
        self
    }

    /// Starts it in `dir`, with `more` arguments; `command` makes a command of a
    /// program, wherever that shall run. Resolves when its QMP answers.
    ///
    /// # Errors
    /// When it does not start, or says nothing.
    pub async fn start(
        &self,
        dir: &Path,
        more: &[&str],
        command: impl FnOnce(&str) -> Command,
    ) -> Result<Machine> {
        let here = dir.display().to_string();
        let args = self.args.iter().map(|arg| {
            let arg = arg.replace(&self.from[0], &here);
            arg.replace(&self.from[1], &here)
        });
        let socket = dir.join("qmp.sock");
        let listener = UnixListener::bind(&socket)?;
        let log = std::fs::File::create(dir.join("qemu.log"))?;
        let child = command(&self.program)
            .args(args)
            .args(more)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| self.program.clone())?;
        let child = Process(child);
        let qmp = tokio::time::timeout(ANSWER, Qmp::connect(&socket));
        let qmp = qmp.await.context("bare QEMU says nothing")?;
        Ok(Machine {
            qmp: qmp.with_context(|| log_of(dir))?,
            child,
        })
    }
}

fn log_of(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("qemu.log")).unwrap_or_default()
}

/// A running QEMU; it ends when this is dropped.
#[derive(Debug)]
pub struct Machine {
    /// Its QMP session.
    pub qmp: Qmp,
    child: Process,
}

impl Machine {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }
}

#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A QMP session that does one thing at a time and keeps every event.
#[derive(Debug)]
pub struct Qmp {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects to QEMU's `socket` and negotiates.
    ///
    /// # Errors
    /// When QEMU does not greet.
    pub async fn connect(socket: &Path) -> Result<Self> {
        Self::over(UnixStream::connect(socket).await?).await
    }

    /// Negotiates over a connection.
    ///
    /// # Errors
    /// When QEMU does not greet.
    pub async fn over(stream: UnixStream) -> Result<Self> {
        let (reader, writer) = stream.into_split();
        let mut qmp = Self {
            lines: BufReader::new(reader).lines(),
            writer,
            events: VecDeque::new(),
        };
        qmp.next().await?.get("QMP").context("a greeting")?;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Executes a command; what it returns.
    ///
    /// # Errors
    /// When QEMU refuses it, ends, or does not answer.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.writer
            .write_all(format!("{line}\n").as_bytes())
            .await?;
        let answer = async {
            loop {
                let message = self.next().await?;
                if let Some(value) = message.get("return") {
                    return Ok(value.clone());
                }
                if message.get("error").is_some() {
                    bail!("QEMU refused {command}: {message}");
                }
                self.events.push_back(message);
            }
        };
        let answer = tokio::time::timeout(ANSWER, answer).await;
        answer.with_context(|| format!("QEMU did not answer {command}"))?
    }

    /// The next event that `wanted` takes; those before it are dropped.
    ///
    /// # Errors
    /// When it does not come within `limit`.
    pub async fn event(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let event = async {
            loop {
                let event = match self.events.pop_front() {
                    Some(event) => event,
                    None => self.next().await?,
                };
                if wanted(&event) {
                    return Ok(event);
                }
            }
        };
        let event = tokio::time::timeout(limit, event).await;
        event.context("an event did not come")?
    }

    /// The event of a migration's end, which has to be a good one.
    ///
    /// # Errors
    /// When it failed or was cancelled, or does not end within `limit`.
    pub async fn migrated(&mut self, limit: Duration) -> Result<Value> {
        let has_ended = |event: &Value| {
            let status = event["data"]["status"].as_str().unwrap_or_default();
            event["event"] == "MIGRATION" && matches!(status, "completed" | "failed" | "cancelled")
        };
        let ended = self.event(limit, has_ended).await?;
        ensure!(ended["data"]["status"] == "completed", "{ended}");
        Ok(ended)
    }

    async fn next(&mut self) -> Result<Value> {
        let line = self.lines.next_line().await?.context("QEMU ended")?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// When an event happened, since the epoch, by QEMU's word.
pub fn time_of(event: &Value) -> Duration {
    let part = |key: &str| event["timestamp"][key].as_u64().unwrap_or(0);
    Duration::from_secs(part("seconds")) + Duration::from_micros(part("microseconds"))
}
