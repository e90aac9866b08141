//! The guest that counts, and the proof that it never missed a number.
//!
//! `scripts/guest-image` builds it. Its serial console carries one
//! `count N ...` line for every tick, and `BADPAGE ...` when a page is not what
//! was last written there. What QEMU puts into the serial log of a node is, to
//! the byte, what the guest's UART sent while it ran there: the logs of all its
//! stays, put together in their order, are the guest's whole output. A byte
//! lost or repeated by a move breaks the count, or a line.

use std::fs::File;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use godwit_shared::model::{MiB, VmSpec};

/// The guest's kernel and initial RAM disk.
#[derive(Debug, Clone)]
pub struct Image {
    kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
}

impl Image {
    /// The one that `scripts/guest-image` built.
    ///
    /// # Errors
    /// When it was not built.
    pub fn find() -> Result<Self> {
        let dir = std::env::var_os("GODWIT_GUEST_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/guest/x86_64"),
            PathBuf::from,
        );
        let dir = dir
            .canonicalize()
            .context("the test guest is not there; run scripts/guest-image")?;
        let image = Self {
            kernel: dir.join("vmlinuz"),
            initrd: dir.join("initrd.img"),
        };
        for file in [&image.kernel, &image.initrd] {
            if !file.is_file() {
                bail!("{} is missing; run scripts/guest-image", file.display());
            }
        }
        Ok(image)
    }
}

/// The port at which a guest with an address sends datagrams back (RFC 862).
pub const ECHO: u16 = 7;

/// What the guest does.
#[derive(Debug, Clone)]
pub struct Work {
    /// Its memory.
    pub memory: MiB,
    /// Milliseconds between two counts.
    pub tick_ms: u32,
    /// Memory that it fills with checked pages.
    pub fill: MiB,
    /// How much of it is written anew each second.
    pub rate: MiB,
    /// What the pages hold: `random`, or what else `godwit.pattern` takes.
    pub pattern: String,
    /// Whether it runs the guest agent.
    pub agent: bool,
    /// Its disks, which it writes to and checks.
    pub disks: Vec<serde_json::Value>,
    /// Its address in a network of 24 bits, where it sends datagrams back.
    pub echo: Option<Ipv4Addr>,
    /// An initrd with more in it, instead of the image's own.
    pub initrd: Option<PathBuf>,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            memory: MiB(128),
            tick_ms: 20,
            fill: MiB(16),
            rate: MiB(4),
            pattern: "random".to_owned(),
            agent: false,
            disks: Vec::new(),
            echo: None,
            initrd: None,
        }
    }
}

/// A spec for such a guest.
///
/// # Errors
/// When the image is missing or the name is not one.
pub fn spec(name: &str, work: &Work) -> Result<VmSpec> {
    let image = Image::find()?;
    let initrd = work.initrd.as_ref().unwrap_or(&image.initrd);
    let mut cmdline = format!(
        "console=ttyS0 quiet godwit.count={}ms godwit.fill={}M godwit.rate={}M \
         godwit.pattern={} godwit.agent={} godwit.disks={}",
        work.tick_ms,
        work.fill.0,
        work.rate.0,
        work.pattern,
        u8::from(work.agent),
        u8::from(!work.disks.is_empty())
    );
    let mut nics = Vec::new();
    if let Some(address) = work.echo {
        cmdline += &format!(" godwit.net={address}/24 godwit.echo={ECHO}");
        nics.push(serde_json::json!({}));
    }
    let document = serde_json::json!({
        "name": name,
        "memory": work.memory.0,
        "accelerator": "tcg",
        "agent": work.agent,
        "disks": work.disks,
        "nics": nics,
        "boot": { "kernel": image.kernel, "initrd": initrd, "cmdline": cmdline },
    });
    Ok(VmSpec::from_value(document)?)
}

/// The highest number in a piece of serial output.
pub fn last_count(text: &str) -> Option<u64> {
    // The last line may be cut off, and a number in it too short.
    let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
    whole.lines().rev().find_map(parse_count)
}

fn parse_count(line: &str) -> Option<u64> {
    let mut words = line.trim_end_matches('\r').split(' ');
    if words.next() != Some("count") {
        return None;
    }
    words.next()?.parse().ok()
}

/// What a guest said of itself, and whether the count is unbroken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    /// The first number.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// Every break: lost or repeated numbers, and lines that are damaged.
    pub breaks: Vec<String>,
    /// `BADPAGE` and `BADTABLE` lines, and counts that tell of any.
    pub bad: Vec<String>,
    /// The longest time between two counts by the guest's own clock.
    pub longest_gap_ms: u64,
    rest: Vec<u8>,
    clock_us: u64,
}

impl Count {
    /// Takes the next bytes of the console.
    pub fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            self.line(line.trim_end_matches(['\n', '\r']));
        }
    }

    fn line(&mut self, line: &str) {
        if line.starts_with("BAD") {
            self.bad.push(line.to_owned());
        } else if let Some(number) = parse_count(line) {
            self.number(number, line);
        } else if line.contains("count") || line.contains("mono_us") {
            self.breaks.push(format!("a damaged line: {line:?}"));
        }
    }

    fn number(&mut self, number: u64, line: &str) {
        if self.first == 0 {
            self.first = number;
        } else if number != self.last + 1 {
            self.breaks
                .push(format!("{} was followed by {number}", self.last));
        }
        let value = |key: &str| {
            let word = line.split(' ').find_map(|word| word.strip_prefix(key));
            word.and_then(|text| text.parse::<u64>().ok())
        };
        match (value("mono_us="), value("bad=")) {
            (Some(clock), Some(bad)) => {
                if self.last != 0 {
                    let gap = clock.saturating_sub(self.clock_us) / 1000;
                    self.longest_gap_ms = self.longest_gap_ms.max(gap);
                }
                self.clock_us = clock;
                if bad > 0 && self.bad.is_empty() {
                    self.bad.push(line.to_owned());
                }
            }
            _ => self.breaks.push(format!("a damaged line: {line:?}")),
        }
        self.last = number;
    }

    /// Forgets gaps so far: those of the boot, or of an earlier part of a case.
    pub fn forget_gaps(&mut self) {
        self.longest_gap_ms = 0;
    }

    /// Checks that every number came once and every page was intact.
    ///
    /// # Errors
    /// With the first few things that are wrong.
    pub fn check(&self) -> Result<()> {
        if self.first == 0 {
            bail!("the guest never counted");
        }
        let wrong: Vec<_> = self.breaks.iter().chain(&self.bad).take(5).collect();
        if !wrong.is_empty() {
            let all = self.breaks.len() + self.bad.len();
            bail!(
                "the count {}..{} has {all} faults: {wrong:?}",
                self.first,
                self.last
            );
        }
        Ok(())
    }
}

/// Follows a guest's serial logs from node to node.
///
/// The log of a stay is held open from the moment it is first seen, so that its
/// end can be read after the node has removed it.
#[derive(Debug, Default)]
pub struct Trail {
    stays: Vec<Stay>,
    count: Count,
    read: usize,
}

#[derive(Debug)]
struct Stay {
    inode: u64,
    file: File,
    path: PathBuf,
}

impl Trail {
    /// Takes hold of the log of the present stay, if it is a new one. Call it
    /// whenever the guest may have come to a node, before it can leave again.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn visit(&mut self, log: &Path) -> Result<()> {
        let file = File::open(log).with_context(|| format!("{}", log.display()))?;
        let inode = file.metadata()?.ino();
        if self
            .stays
            .last()
            .is_none_or(|stay| stay.inode != inode || stay.path != log)
        {
            self.stays.push(Stay {
                inode,
                file,
                path: log.to_owned(),
            });
        }
        Ok(())
    }

    /// Reads what there is. A stay is read to its end before the next one.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn count(&mut self) -> Result<&Count> {
        let last = self.stays.len();
        for (index, stay) in self.stays.iter_mut().enumerate().skip(self.read) {
            let mut bytes = Vec::new();
            stay.file.read_to_end(&mut bytes)?;
            self.count.push(&bytes);
            if index + 1 < last {
                self.read = index + 1;
            }
        }
        Ok(&self.count)
    }

    /// Forgets the gaps so far.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn forget_gaps(&mut self) -> Result<()> {
        self.count()?;
        self.count.forget_gaps();
        Ok(())
    }

    /// The guest has ended and will boot again: what it said so far is done with.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn begin_anew(&mut self) -> Result<()> {
        self.count()?;
        self.count = Count::default();
        Ok(())
    }

    /// How many stays there were.
    pub fn stays(&self) -> usize {
        self.stays.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    fn counted(text: &str) -> Count {
        let mut count = Count::default();
        count.push(text.as_bytes());
        count
    }

    #[test]
    fn an_unbroken_count_passes_whatever_the_pieces() {
        let text = "guest ready up=1.2\r\ncount 1 mono_us=10 pages=0 bad=0\r\n\
                    gap 70 ms\r\ncount 2 mono_us=20010 pages=5 bad=0\r\ncount 3 mono_";
        for size in 1..20 {
            let mut count = Count::default();
            for piece in text.as_bytes().chunks(size) {
                count.push(piece);
            }
            count.check().unwrap();
            assert_eq!((count.first, count.last, count.longest_gap_ms), (1, 2, 20));
        }
    }

    #[test]
    fn lost_repeated_and_damaged_numbers_are_found() {
        let line = |n: u32| format!("count {n} mono_us=1 pages=0 bad=0\n");
        for text in [
            line(1) + &line(3),
            line(1) + &line(1),
            line(2) + &line(1),
            line(1) + "count 2 mono_us=1 paes=0 bd=0\n",
            line(1) + "ount 2 mono_us=1 pages=0 bad=0\n",
            line(1) + "BADPAGE index=1 expected=2 found=1\n",
            line(1) + "count 2 mono_us=1 pages=1 bad=1\n",
            String::new(),
        ] {
            assert!(counted(&text).check().is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_that_is_cut_off_does_not_count() {
        let text = "count 17 mono_us=1 pages=0 bad=0\r\ncount 1";
        assert_eq!(last_count(text), Some(17));
        assert_eq!(last_count("count 17"), None);
    }

    #[test]
    fn a_trail_reads_removed_logs_to_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("a"), dir.path().join("b"));
        let mut log = File::create(&here).unwrap();
        log.write_all(b"count 1 mono_us=1 pages=0 bad=0\ncou")
            .unwrap();
        let mut trail = Trail::default();
        trail.visit(&here).unwrap();
        trail.visit(&here).unwrap();
        assert_eq!(trail.count().unwrap().last, 1);
        log.write_all(b"nt 2 mono_us=2 pages=0 bad=0\ncount 3 mo")
            .unwrap();
        std::fs::remove_file(&here).unwrap();
        std::fs::write(&there, b"no_us=3 pages=0 bad=0\n").unwrap();
        trail.visit(&there).unwrap();
        let count = trail.count().unwrap();
        count.check().unwrap();
        assert_eq!((count.last, trail.stays()), (3, 2));
    }
}
