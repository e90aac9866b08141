//! Finding and ending the processes that a cluster's nodes started.
//!
//! A QEMU outlives its daemon, so the daemon's end does not end it. Every QEMU
//! of a test has the cluster's private folder in its arguments (the paths of
//! its sockets), and nothing else on the machine has: that is the mark.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::wait;

/// A process with the mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// Its id.
    pub pid: u32,
    /// Its arguments.
    pub args: Vec<String>,
}

impl Marked {
    /// Whether it is an emulator (a daemon carries the mark as well).
    pub fn is_qemu(&self) -> bool {
        self.args
            .first()
            .is_some_and(|program| program.contains("qemu"))
    }

    /// Whether `text` is in any of its arguments.
    pub fn mentions(&self, text: &str) -> bool {
        self.args.iter().any(|arg| arg.contains(text))
    }
}

/// Every living process whose arguments name `dir`. Zombies have no arguments
/// and do not count: they hold nothing but their number.
pub fn processes(dir: &Path) -> Vec<Marked> {
    let mark = format!("{}/", dir.display());
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id())
        .filter_map(|pid| {
            let args = arguments(pid)?;
            args.iter()
                .any(|arg| arg.contains(&mark))
                .then_some(Marked { pid, args })
        })
        .collect()
}

/// The emulators among them.
pub fn qemus(dir: &Path) -> Vec<Marked> {
    processes(dir).into_iter().filter(Marked::is_qemu).collect()
}

fn arguments(pid: u32) -> Option<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let parts = bytes.split(|b| *b == 0);
    let args: Vec<String> = parts
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect();
    Some(args)
}

/// Kills a process of the folder. The mark is checked again behind the pidfd,
/// so that a number used anew is never hit.
pub fn kill(dir: &Path, pid: u32, signal: Signal) -> bool {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    let Ok(handle) = pidfd_open(raw, PidfdFlags::empty()) else {
        return false;
    };
    let mark = format!("{}/", dir.display());
    let ours = arguments(pid).is_some_and(|args| args.iter().any(|arg| arg.contains(&mark)));
    ours && pidfd_send_signal(handle, signal).is_ok()
}

/// Kills every process of the folder and waits until they are gone. Returns
/// those that are not.
pub fn end_all(dir: &Path) -> Vec<Marked> {
    let gone = wait::until_blocking(Duration::from_secs(10), || {
        let left = processes(dir);
        for process in &left {
            kill(dir, process.pid, Signal::KILL);
        }
        left.is_empty()
    });
    if gone { Vec::new() } else { processes(dir) }
}

/// Every path below `dir`, itself excluded; empty when it does not exist.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}
