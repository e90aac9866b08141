//! Stopping a daemon between two steps of a migration: the test's side of
//! `godwit_node::fault`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::wait;

/// The folder of a cluster's fault points.
#[derive(Debug, Clone)]
pub struct Points {
    dir: PathBuf,
}

/// A point that is armed, or that a daemon waits at. It is let go when dropped.
#[derive(Debug)]
pub struct Armed {
    name: String,
    fifo: PathBuf,
    reached: PathBuf,
}

impl Points {
    pub(crate) fn new(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir(&dir)?;
        Ok(Self { dir })
    }

    /// What the daemons have to know: the name and the value of a variable.
    pub(crate) fn variable(&self) -> (String, String) {
        let dir = self.dir.display().to_string();
        ("GODWIT_FAULT_POINTS".to_owned(), dir)
    }

    /// The next daemon that comes to the point waits there.
    ///
    /// # Errors
    /// When the fifo cannot be made.
    pub fn arm(&self, name: &str) -> Result<Armed> {
        let armed = Armed {
            name: name.to_owned(),
            fifo: self.dir.join(name),
            reached: self.dir.join(format!("{name}.reached")),
        };
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, &armed.fifo, FileType::Fifo, mode, 0)
            .with_context(|| armed.fifo.display().to_string())?;
        Ok(armed)
    }
}

impl Armed {
    /// The point's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until a daemon is there.
    ///
    /// # Errors
    /// When none comes.
    pub async fn reached(&self, limit: Duration) -> Result<()> {
        let what = format!("a daemon at {}", self.name);
        let there = async || Ok(self.reached.exists().then_some(()));
        wait::until(&what, limit, there).await
    }

    /// Lets the daemon go on; nothing when it was killed meanwhile.
    pub fn let_go(&self) {
        let _ = std::fs::remove_file(&self.fifo);
        // It may be on the way between taking the fifo and opening it.
        wait::until_blocking(Duration::from_secs(1), || {
            let opened = rustix::fs::open(
                &self.reached,
                OFlags::WRONLY | OFlags::NONBLOCK,
                Mode::empty(),
            );
            opened.err() != Some(Errno::NXIO)
        });
        let _ = std::fs::remove_file(&self.reached);
    }

    /// The daemon that waited was killed: there is nobody to let go.
    pub fn forget(&self) {
        for path in [&self.fifo, &self.reached] {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        if self.fifo.exists() || self.reached.exists() {
            self.let_go();
        }
    }
}
