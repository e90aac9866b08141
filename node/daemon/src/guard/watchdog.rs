//! A watchdog that resets the host when the guardian is gone or cannot end a VM.
//!
//! The kernel's interface (`Documentation/watchdog/watchdog-api.rst`): opening the
//! device arms it, every write feeds it, and the letter `V` before it is closed
//! disarms it. It is open only while there are protected VMs. Its time is the
//! device's own (`/sys/class/watchdog/*/timeout`), and has to be shorter than the
//! lease: the daemon renews the lease only while the guardian answers, so the host
//! is reset before the lease ends.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::server::say;

/// Where the kernel says what watchdogs there are.
pub(super) const CLASS: &str = "/sys/class/watchdog";

/// How long that watchdog waits before it resets the host, by the kernel's word;
/// none where it says nothing of it.
pub(super) fn patience(class: &Path, device: &Path) -> Option<Duration> {
    let name = device.file_name()?.to_str()?;
    // The one without a number is the first one.
    let name = if name == "watchdog" {
        "watchdog0"
    } else {
        name
    };
    let text = std::fs::read_to_string(class.join(name).join("timeout")).ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// The watchdog of the host, if there is one.
#[derive(Debug)]
pub(super) struct Watchdog {
    path: Option<PathBuf>,
    open: Option<File>,
}

impl Watchdog {
    /// One that is not armed yet.
    pub(super) fn new(path: Option<&Path>) -> Self {
        Self {
            path: path.map(Path::to_owned),
            open: None,
        }
    }

    /// Feeds it while there is something to guard; disarms it otherwise.
    pub(super) fn keep(&mut self, needed: bool) {
        if needed {
            self.arm();
            self.write(b".");
        } else {
            // The letter that says that the end is meant.
            self.write(b"V");
            self.open = None;
        }
    }

    pub(super) fn armed(&self) -> bool {
        self.open.is_some()
    }

    fn arm(&mut self) {
        let Some(path) = self.path.as_ref().filter(|_| self.open.is_none()) else {
            return;
        };
        match OpenOptions::new().write(true).open(path) {
            Ok(file) => self.open = Some(file),
            Err(error) => {
                say(&format!("no watchdog: `{}`: {error}", path.display()));
                self.path = None;
            }
        }
    }

    fn write(&mut self, what: &[u8]) {
        if let Some(Err(error)) = self.open.as_mut().map(|file| file.write_all(what)) {
            say(&format!("the watchdog is not fed: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_is_armed_while_it_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        std::fs::write(&device, "").unwrap();
        let mut watchdog = Watchdog::new(Some(&device));
        watchdog.keep(false);
        assert!(!watchdog.armed(), "nothing to guard");
        watchdog.keep(true);
        watchdog.keep(true);
        assert!(watchdog.armed());
        watchdog.keep(false);
        assert!(!watchdog.armed());
        assert_eq!(std::fs::read_to_string(&device).unwrap(), "..V");
    }

    #[test]
    fn the_kernel_says_how_long_it_waits() {
        let class = tempfile::tempdir().unwrap();
        let of = |device| patience(class.path(), Path::new(device));
        assert_eq!(of("/dev/watchdog0"), None);
        std::fs::create_dir(class.path().join("watchdog0")).unwrap();
        std::fs::write(class.path().join("watchdog0/timeout"), "15\n").unwrap();
        assert_eq!(of("/dev/watchdog0"), Some(Duration::from_secs(15)));
        assert_eq!(of("/dev/watchdog"), Some(Duration::from_secs(15)));
        assert_eq!(of("/dev/watchdog1"), None);
    }

    #[test]
    fn a_host_without_one_does_without() {
        let mut watchdog = Watchdog::new(Some(Path::new("/nonexistent/watchdog")));
        watchdog.keep(true);
        assert!(!watchdog.armed());
        Watchdog::new(None).keep(true);
    }
}
