//! Images that are not shared: made with bytes on them that nobody writes to
//! again, and looked at from the host's side and from the guest's.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::harness::Cluster;
use crate::scene::{BOOT, Scene};
use crate::wait;

const MIB: u64 = 1 << 20;
/// How much of a disk the guest writes to at most, from its beginning: up to the
/// middle of a smaller one.
pub const WRITTEN: u64 = 16 * MIB;

/// A disk as the tests have it.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The image's name in the folder of images.
    pub name: Cow<'static, str>,
    /// Its format.
    pub format: &'static str,
    /// What the guest sees of it.
    pub size: u64,
    /// Random bytes that were on it before, behind what the guest writes to.
    pub cargo: u64,
    /// Where they begin.
    pub cargo_at: u64,
    /// The guest only reads it.
    pub read_only: bool,
}

impl Disk {
    /// Makes the image in `folder`, and keeps a copy of its cargo in `cargo`.
    ///
    /// # Errors
    /// When `qemu-img` or `qemu-io` fails.
    pub fn make(&self, folder: &Path, cargo: &Path) -> Result<()> {
        let image = folder.join(&*self.name);
        let (path, size) = (image.display().to_string(), self.size.to_string());
        run(
            "qemu-img",
            &["create", "-q", "-f", self.format, &path, &size],
        )?;
        std::fs::create_dir_all(cargo)?;
        self.load(&image, &cargo.join(&*self.name))
    }

    /// Puts random bytes on an image, and keeps them in `cargo`.
    ///
    /// # Errors
    /// When `qemu-io` fails.
    pub fn load(&self, image: &Path, cargo: &Path) -> Result<()> {
        let mut bytes = vec![0; usize::try_from(self.cargo)?];
        let mut random = std::fs::File::open("/dev/urandom")?;
        std::io::Read::read_exact(&mut random, &mut bytes)?;
        std::fs::write(cargo, bytes)?;
        let (source, at, length) = (cargo.display(), self.cargo_at, self.cargo);
        let copy = format!("write -s {source} {at} {length}");
        let image = image.display().to_string();
        run("qemu-io", &["-f", self.format, "-c", &copy, &image])
    }

    /// Checks that the image still has what is in `cargo`.
    ///
    /// # Errors
    /// When it has not.
    pub fn intact(&self, image: &Path, cargo: &Path) -> Result<()> {
        let raw = cargo.with_extension("check");
        let (image, out) = (image.display().to_string(), raw.display().to_string());
        let convert = [
            "convert",
            "-U",
            "-f",
            self.format,
            "-O",
            "raw",
            &image,
            &out,
        ];
        run("qemu-img", &convert)?;
        let bytes = std::fs::read(&raw)?;
        std::fs::remove_file(&raw)?;
        let begin = usize::try_from(self.cargo_at)?;
        let found = bytes.get(begin..begin + usize::try_from(self.cargo)?);
        if found.context(image.clone())? != std::fs::read(cargo)? {
            bail!("{image} has lost what was on it");
        }
        Ok(())
    }

    /// What the spec says of it.
    pub fn spec(&self, cluster: &Cluster) -> Value {
        json!({
            "path": cluster.disks().join(&*self.name),
            "format": self.format,
            "read_only": self.read_only,
        })
    }
}

/// Runs a program, and fails with its words when it does.
///
/// # Errors
/// When it cannot be run, or fails.
pub fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{program} {args:?}: {words}");
    }
    Ok(())
}

/// The images that a node has, in order.
///
/// # Errors
/// When its folder cannot be read.
pub fn files(cluster: &Cluster, node: usize) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(cluster.nodes[node].disks()?)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Every disk's cycles so far, by the console of where the guest is.
///
/// # Errors
/// When a block was not what the guest had written.
pub async fn cycles(scene: &Scene, guest: &str) -> Result<BTreeMap<String, u64>> {
    let log = scene.cluster.api.serial_log(guest, 400).await?;
    let mut last = BTreeMap::new();
    for line in log.lines() {
        let line = line.trim_end();
        if line.starts_with("BAD") {
            bail!("{guest} says: {line}");
        }
        let mut words = line.split(' ');
        if let (Some("disk"), Some(name), Some(cycle), Some("bad=0")) =
            (words.next(), words.next(), words.next(), words.next())
        {
            let number = cycle.strip_prefix("cycle=").unwrap_or("0").parse()?;
            last.insert(name.to_owned(), number);
        }
    }
    Ok(last)
}

/// Waits until the guest has written to every block of every disk from now on,
/// and found there what it had written.
///
/// # Errors
/// When it has not.
pub async fn checked(scene: &Scene, guest: &str) -> Result<()> {
    let begin = cycles(scene, guest).await?;
    let all = async || {
        let now = cycles(scene, guest).await?;
        let further = |(name, number): (&String, &u64)| match begin.get(name) {
            Some(before) if number >= before => *number >= before + 2,
            // The guest was booted meanwhile.
            _ => *number >= 1,
        };
        Ok((!now.is_empty() && now.len() >= begin.len() && now.iter().all(further)).then_some(()))
    };
    wait::until(&format!("two cycles of every disk of {guest}"), BOOT, all).await
}
