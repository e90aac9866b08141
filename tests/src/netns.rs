//! Network namespaces of a test's own, and links between them.
//!
//! [`leave`] moves the calling thread into a namespace of its own for good;
//! threads and processes that are started from there inherit it. [`Pair::build`]
//! makes a second one beside it, which is held by a descriptor. So all are gone,
//! with their links, when the test is, however it ends. Making them takes root.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

/// Moves this thread, before it has started anything, into a namespace of its own.
///
/// # Errors
/// Without root.
pub fn leave() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)
        .context("a network namespace of its own (this needs root)")?;
    ip("link set lo up").map(|_| ())
}

/// Runs `ip` in this thread's namespace.
///
/// # Errors
/// When it fails, with what it said.
pub fn ip(arguments: &str) -> Result<String> {
    run(Command::new("ip").args(arguments.split(' ')))
}

/// Two namespaces: the thread's own, and the other.
#[derive(Debug)]
pub struct Pair {
    other: File,
}

impl Pair {
    /// Moves this thread, before it has started anything, and makes the other.
    ///
    /// # Errors
    /// Without root.
    pub fn build() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let Ok(other) = made.join() else {
            bail!("the thread that makes a network namespace died");
        };
        let other = other.context("a network namespace of its own (this needs root)")?;
        leave()?;
        let pair = Self { other };
        pair.there("link set lo up")?;
        Ok(pair)
    }

    /// The other namespace as a path, good for as long as this process lives.
    pub fn path(&self) -> PathBuf {
        let (pid, fd) = (std::process::id(), self.other.as_raw_fd());
        PathBuf::from(format!("/proc/{pid}/fd/{fd}"))
    }

    /// A link between the two, with the same name in both, and its addresses.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn link(&self, name: &str, here: &str, there: &str) -> Result<()> {
        let other = self.path().display().to_string();
        let peer = format!("link add {name} type veth peer name {name} netns {other}");
        ip(&peer)?;
        ip(&format!("addr add {here} dev {name}"))?;
        self.there(&format!("addr add {there} dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        self.there(&format!("link set {name} up"))?;
        Ok(())
    }

    /// Runs `ip` in the other one.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn there(&self, arguments: &str) -> Result<String> {
        let enter = format!("--net={}", self.path().display());
        run(Command::new("nsenter")
            .arg(enter)
            .arg("ip")
            .args(arguments.split(' ')))
    }

    /// Bytes that have been sent over a link from here.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn sent(&self, link: &str) -> Result<u64> {
        let shown = ip(&format!("-j -s link show dev {link}"))?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        let bytes = shown.pointer("/0/stats64/tx/bytes");
        bytes
            .and_then(serde_json::Value::as_u64)
            .with_context(|| format!("no count of {link} in {shown}"))
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .context("ip (package iproute2) is needed")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
