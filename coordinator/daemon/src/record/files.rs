//! The files of a recording: `START-NUMBER.recording`, START being when the
//! daemon started (milliseconds since 1970), so that names sort by age.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::recording::{Began, Entry, Taken, frozen, line, loaded, records};
use godwit_shared::model::UnixMillis;

use super::{RecordSettings, Start};

const ENDING: &str = ".recording";

/// The one that is written, and where the others are.
pub(super) struct Files {
    dir: PathBuf,
    started: UnixMillis,
    number: u32,
    keep: usize,
    limit: u64,
    file: BufWriter<File>,
    /// Bytes of steps in it.
    steps: u64,
}

impl Files {
    /// The first file, empty.
    pub(super) fn open(settings: &RecordSettings, started: UnixMillis) -> io::Result<Self> {
        let dir = settings.dir.clone();
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let file = create(&dir, started, 1)?;
        Ok(Self {
            dir,
            started,
            number: 1,
            keep: settings.keep,
            limit: settings.file_bytes,
            file,
            steps: 0,
        })
    }

    pub(super) const fn is_full(&self) -> bool {
        self.steps >= self.limit
    }

    /// Which file of this daemon's life it is, from 1.
    pub(super) const fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    pub(super) fn start(&mut self, start: Start) -> io::Result<()> {
        self.forget_old()?;
        let settings = start.settings;
        self.put(&Entry::Began(Began { settings, steps: 0 }))?;
        for entry in records(start.records) {
            self.put(&entry?)?;
        }
        self.put(&loaded(start.now, start.effects)?)
    }

    pub(super) fn step(&mut self, number: u64, taken: Taken) -> io::Result<()> {
        let line = line::of(&taken.entry(number)?)?;
        self.steps += u64::try_from(line.len()).unwrap_or(u64::MAX);
        self.file.write_all(&line)
    }

    /// A new file, from that state on.
    pub(super) fn state(&mut self, steps: u64, cluster: &Cluster) -> io::Result<()> {
        self.file.flush()?;
        self.number += 1;
        self.file = create(&self.dir, self.started, self.number)?;
        self.steps = 0;
        self.forget_old()?;
        for entry in frozen(cluster, steps) {
            self.put(&entry.map_err(io::Error::other)?)?;
        }
        Ok(())
    }

    fn put(&mut self, entry: &Entry) -> io::Result<()> {
        self.file.write_all(&line::of(entry)?)
    }

    /// Removes the oldest, so that no more are there than are kept.
    fn forget_old(&self) -> io::Result<()> {
        let mut names = Vec::new();
        for found in std::fs::read_dir(&self.dir)? {
            let name = found?.file_name();
            names.extend(
                name.to_str()
                    .filter(|name| is_ours(name))
                    .map(str::to_owned),
            );
        }
        names.sort_unstable();
        let over = names.len().saturating_sub(self.keep);
        for name in names.iter().take(over) {
            std::fs::remove_file(self.dir.join(name))?;
        }
        Ok(())
    }
}

fn create(dir: &Path, started: UnixMillis, number: u32) -> io::Result<BufWriter<File>> {
    let path = dir.join(format!("{:015}-{number:06}{ENDING}", started.0));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = BufWriter::new(options.open(path)?);
    file.write_all(line::FIRST.as_bytes())?;
    Ok(file)
}

fn is_ours(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let stem = name.strip_suffix(ENDING);
    let parts = stem.and_then(|stem| stem.split_once('-'));
    parts.is_some_and(|(start, number)| digits(start) && digits(number))
}
