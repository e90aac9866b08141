//! What this host reaches: networks, storage, and the images that it holds.
//!
//! The settings have the last word; what they leave out is looked for once, at
//! the daemon's start. Storage that is not there is left out of what is told,
//! with the reason in the log: placing a VM on it would only fail later.

use std::path::{Path, PathBuf};

use godwit_shared::model::capacity::StorageFacts;
use godwit_shared::model::spec::NicNetwork;

/// So many images are told at most: a folder of more is no folder of images.
const MAX_IMAGES: usize = 1024;

/// The networks that NICs can be plugged into: QEMU's own, and the host's
/// bridges (`/sys/class/net/*/bridge`), by name.
pub fn networks(sys: &Path) -> Vec<String> {
    let mut bridges: Vec<String> = entries(&sys.join("class/net"))
        .filter(|path| path.join("bridge").is_dir())
        .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
        .collect();
    bridges.sort();
    bridges.insert(0, NicNetwork::User.name().to_owned());
    bridges
}

/// The storage of the settings that is there.
pub fn storage(configured: &[StorageFacts]) -> Vec<StorageFacts> {
    let there = |storage: &&StorageFacts| {
        let is_dir = Path::new(&storage.path).is_dir();
        if !is_dir {
            tracing::warn!(path = storage.path, "storage is not there, and left out");
        }
        is_dir
    };
    configured.iter().filter(there).cloned().collect()
}

/// The files right inside of those folders, by path.
pub fn images(folders: &[PathBuf]) -> Vec<String> {
    let files = folders.iter().flat_map(|folder| entries(folder));
    let files = files.filter(|path| path.is_file());
    let mut found: Vec<String> = files
        .filter_map(|path| path.to_str().map(str::to_owned))
        .collect();
    found.sort();
    found.dedup();
    if found.len() > MAX_IMAGES {
        tracing::warn!(
            images = found.len(),
            told = MAX_IMAGES,
            "there are more images than are told to the coordinator"
        );
        found.truncate(MAX_IMAGES);
    }
    found
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bridges_are_networks_and_other_cards_are_not() {
        let dir = tempfile::tempdir().unwrap();
        for card in ["br1/bridge", "br0/bridge", "eth0"] {
            std::fs::create_dir_all(dir.path().join("class/net").join(card)).unwrap();
        }
        assert_eq!(networks(dir.path()), ["user", "br0", "br1"]);
        assert_eq!(networks(&dir.path().join("none")), ["user"]);
    }

    #[test]
    fn storage_that_is_not_there_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &Path| StorageFacts {
            path: path.display().to_string(),
            shared: true,
        };
        let configured = [at(dir.path()), at(&dir.path().join("none"))];
        assert_eq!(storage(&configured), configured[..1]);
    }

    #[test]
    fn images_are_the_files_of_their_folders() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b.raw", "a.qcow2", "sub/c.raw"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let folder = dir.path().to_path_buf();
        let found = images(&[folder.clone(), folder]);
        let names: Vec<_> = found
            .iter()
            .map(|p| p.rsplit('/').next().unwrap())
            .collect();
        assert_eq!(names, ["a.qcow2", "b.raw"]);
    }
}
