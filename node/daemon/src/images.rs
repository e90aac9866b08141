//! Disk images that are made for a guest that arrives, and removed when it does
//! not, or where it has left.
//!
//! An image is made under a name of its own and then linked to its path, because
//! linking never replaces a file that is there. The second name stays until the
//! guest has arrived: only what is the same file under both names was made by
//! this migration, and may be removed with it. `qemu-img create` makes the image
//! (formats are QEMU's business).

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use godwit_shared::model::spec::DiskFormat;
use godwit_shared::model::{Bytes, MigrationId, Problem, codes};

/// An image that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImage {
    /// The disk's index in the spec.
    pub index: u16,
    /// Where the guest's QEMU will look for it.
    pub path: String,
    /// Its format.
    pub format: DiskFormat,
    /// Whether the guest's QEMU opens it to read only.
    pub read_only: bool,
    /// What the guest sees of it.
    pub size: Bytes,
    /// What it takes on the source: room that has to be there.
    pub allocated: Bytes,
    /// The image below it, and its format.
    pub backing: Option<(String, DiskFormat)>,
}

impl NewImage {
    /// QEMU's driver for it.
    pub const fn driver(&self) -> &'static str {
        format_name(self.format)
    }
}

const fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Raw => "raw",
    }
}

/// The name that says whose an image is.
fn mark(path: &str, migration: MigrationId) -> PathBuf {
    let id = migration.as_uuid().simple().to_string();
    PathBuf::from(format!("{path}.{}.arriving", &id[id.len() - 12..]))
}

/// Makes the images, sparse. Blocks. What was made before a failure stays for
/// [`remove_arrived`].
///
/// # Errors
/// When a file is in the way, or one cannot be made.
pub fn make(images: &[NewImage], migration: MigrationId) -> Result<(), Problem> {
    images
        .iter()
        .try_for_each(|image| make_one(image, migration))
}

fn make_one(image: &NewImage, migration: MigrationId) -> Result<(), Problem> {
    let mark = mark(&image.path, migration);
    create(image, &mark)?;
    std::fs::hard_link(&mark, &image.path).map_err(|error| {
        let text = format!("the image `{}` cannot be made: {error}", image.path);
        at(image, text).remedy("move away what is at that path on the target")
    })
}

fn create(image: &NewImage, mark: &Path) -> Result<(), Problem> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", format_name(image.format)]);
    if let Some((backing, format)) = &image.backing {
        command.args(["-b", backing, "-F", format_name(*format)]);
    }
    command.arg(mark).arg(image.size.0.to_string());
    let output = command.output().map_err(|error| {
        at(image, format!("qemu-img cannot be run: {error}"))
            .remedy("install qemu-utils on the target")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let text = format!(
        "the image `{}` cannot be made: {}",
        image.path,
        words.trim()
    );
    Err(at(image, text).remedy("look at the folder and its room on the target"))
}

fn at(image: &NewImage, text: String) -> Problem {
    Problem::new(codes::HOST_IO, text)
        .field(format!("disks[{}].path", image.index))
        .value(&image.path)
}

/// The guest has arrived: the images are its own. Blocks.
pub fn keep(images: &[String], migration: MigrationId) {
    for path in images {
        remove(&mark(path, migration));
    }
}

/// The guest does not arrive: what was made for it goes. Blocks.
pub fn remove_arrived(images: &[String], migration: MigrationId) {
    for path in images {
        let mark = mark(path, migration);
        if same_file(Path::new(path), &mark) {
            remove(Path::new(path));
        }
        remove(&mark);
    }
}

/// The guest has left with its disks: its images here go, but for those that
/// another guest has too, as two may read the same one. Blocks.
pub fn remove_left(images: &[String], of_others: &BTreeSet<String>) {
    for path in images {
        if of_others.contains(path) {
            tracing::info!(path, "a disk image stays: it is another VM's as well");
        } else {
            remove(Path::new(path));
        }
    }
}

/// They all stay, since one of them may be a guest's whose record cannot be read.
pub fn keep_left(images: &[String], problem: &Problem) {
    for path in images {
        tracing::error!(path, %problem, "a disk image stays: another VM's disks are not known");
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| std::fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Ok(()) => tracing::info!(path = %path.display(), "a disk image was removed"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "a disk image cannot be removed");
        }
    }
}

/// What stands against making these images here. Blocks.
pub fn blockers(images: &[NewImage]) -> Vec<Problem> {
    let mut found: Vec<Problem> = images.iter().filter_map(blocker).collect();
    found.extend(room_blockers(images));
    found
}

fn blocker(image: &NewImage) -> Option<Problem> {
    let path = Path::new(&image.path);
    let blocked = |why: String| {
        let text = format!("`{}` cannot be received: {why}", image.path);
        Problem::new(codes::MIGRATION_BLOCKED, text)
            .field(format!("disks[{}].path", image.index))
            .value(&image.path)
    };
    if std::fs::symlink_metadata(path).is_ok() {
        return Some(blocked("a file is there on the target".to_owned()).remedy(
            "move it away; or set `shared: true` where it is the same file on both nodes",
        ));
    }
    if !path.parent().is_some_and(Path::is_dir) {
        let why = "its folder is not there on the target".to_owned();
        return Some(blocked(why).remedy("make the folder, or mount its storage, on the target"));
    }
    let (backing, _) = image.backing.as_ref()?;
    let error = std::fs::File::open(backing).err()?;
    Some(
        blocked(format!("its backing image `{backing}`: {error}"))
            .remedy("put the backing image there, or copy all of the disk (`disks: full`)"),
    )
}

/// Disks on one file system need room together.
fn room_blockers(images: &[NewImage]) -> Vec<Problem> {
    let mut needed = std::collections::BTreeMap::<u64, (u64, u64, &NewImage)>::new();
    for image in images {
        let folder = Path::new(&image.path).parent().unwrap_or(Path::new("/"));
        let (Ok(place), Ok(room)) = (std::fs::metadata(folder), rustix::fs::statvfs(folder)) else {
            continue;
        };
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        let entry = needed.entry(place.dev()).or_insert((0, free, image));
        entry.0 = entry.0.saturating_add(image.allocated.0);
    }
    let short = needed.into_values().filter(|(need, free, _)| need > free);
    short
        .map(|(need, free, image)| {
            let text = format!(
                "the disks take {} on the target, and {} are free",
                Bytes(need),
                Bytes(free)
            );
            Problem::new(codes::MIGRATION_BLOCKED, text)
                .field(format!("disks[{}].path", image.index))
                .value(&image.path)
                .remedy("make room on the target, or choose another")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn image(path: &Path) -> NewImage {
        NewImage {
            index: 0,
            path: path.display().to_string(),
            format: DiskFormat::Raw,
            read_only: false,
            size: Bytes(1 << 20),
            allocated: Bytes(0),
            backing: None,
        }
    }

    #[test]
    fn what_was_made_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("a.raw"), dir.path().join("b.raw"));
        std::fs::write(&theirs, "precious").unwrap();
        let migration = MigrationId::generate();
        let images = [image(&ours), image(&theirs)];
        let refused = make(&images, migration).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("disks[0].path"));
        assert_eq!(std::fs::metadata(&ours).unwrap().len(), 1 << 20);
        let paths = images.map(|image| image.path);
        remove_arrived(&paths, migration);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "precious");
    }

    #[test]
    fn what_is_kept_stays_when_the_removal_comes_late() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.raw");
        let migration = MigrationId::generate();
        make(&[image(&path)], migration).unwrap();
        let paths = [path.display().to_string()];
        keep(&paths, migration);
        remove_arrived(&paths, migration);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(path.exists());
    }

    #[test]
    fn what_another_guest_reads_stays_when_one_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let [own, common] = ["own.raw", "common.raw"].map(|name| dir.path().join(name));
        for path in [&own, &common] {
            std::fs::write(path, "bytes").unwrap();
        }
        let images = [&own, &common].map(|path| path.display().to_string());
        remove_left(&images, &[images[1].clone()].into());
        assert!(!own.exists() && common.exists());
    }

    #[test]
    fn a_file_in_the_way_and_a_lack_of_room_are_blockers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.raw");
        assert_eq!(blockers(&[image(&path)]), []);
        let mut large = image(&path);
        large.allocated = Bytes(u64::MAX / 2);
        assert_eq!(blockers(&[large]).len(), 1);
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(blockers(&[image(&path)]).len(), 1);
        let mut based = image(&dir.path().join("b.qcow2"));
        based.backing = Some(("/nowhere/base.qcow2".into(), DiskFormat::Qcow2));
        assert_eq!(blockers(&[based]).len(), 1);
        assert_eq!(blockers(&[image(Path::new("/nowhere/a.raw"))]).len(), 1);
    }
}
