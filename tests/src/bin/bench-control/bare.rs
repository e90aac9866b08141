//! QEMU without a manager: the same arguments, driven over its QMP.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Arguments of a QEMU that a node started, made fit for a folder of our own.
pub(crate) struct Recipe {
    program: String,
    args: Vec<String>,
    from: [String; 2],
}

impl Recipe {
    /// Those of a running process; `dirs` are the folders that it names.
    pub(crate) fn of(pid: u32, dirs: [&Path; 2]) -> Result<Self> {
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

    /// Runs it in `dir` until its CPUs run; returns how long that took from
    /// the exec on.
    pub(crate) async fn run(&self, dir: &Path) -> Result<Duration> {
        let here = dir.display().to_string();
        let args = self.args.iter().map(|arg| {
            let arg = arg.replace(&self.from[0], &here);
            arg.replace(&self.from[1], &here)
        });
        let socket = dir.join("qmp.sock");
        let listener = UnixListener::bind(&socket)?;
        let begun = Instant::now();
        let child = Command::new(&self.program)
            .args(args)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let _ended = Ended(child);
        let running = resume(&socket);
        let running = tokio::time::timeout(Duration::from_secs(30), running).await;
        running.context("bare QEMU did not run")??;
        Ok(begun.elapsed())
    }
}

/// Connects, negotiates, continues, and waits for `RESUME`.
async fn resume(socket: &Path) -> Result<()> {
    let (reader, mut writer) = UnixStream::connect(socket).await?.into_split();
    let mut lines = BufReader::new(reader).lines();
    until(&mut lines, "QMP").await?;
    say(&mut writer, "qmp_capabilities").await?;
    until(&mut lines, "return").await?;
    say(&mut writer, "cont").await?;
    loop {
        let message = until(&mut lines, "event").await?;
        if message["event"] == "RESUME" {
            return Ok(());
        }
    }
}

async fn say(writer: &mut OwnedWriteHalf, command: &str) -> Result<()> {
    let line = format!("{{\"execute\":\"{command}\"}}\n");
    Ok(writer.write_all(line.as_bytes()).await?)
}

async fn until(lines: &mut Lines<BufReader<OwnedReadHalf>>, key: &str) -> Result<Value> {
    while let Some(line) = lines.next_line().await? {
        let message: Value = serde_json::from_str(&line)?;
        if message.get("error").is_some() {
            bail!("QEMU refused: {message}");
        }
        if message.get(key).is_some() {
            return Ok(message);
        }
    }
    bail!("QEMU ended")
}

/// Ends the process whatever happened.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
