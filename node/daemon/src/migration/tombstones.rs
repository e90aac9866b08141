//! What this node, as a target, has said of migrations that it holds no domain
//! for any more: one small file for each, so that a late question gets the same
//! answer, also after a restart of the daemon.

use std::path::PathBuf;

use godwit_node_logic::handoff::{Tombstone, TombstoneVerdict};
use godwit_shared::model::{MigrationId, Problem, UnixMillis, VmId, codes};

/// How long a word is kept. A source asks every half second while it is in
/// doubt; one that has been away for longer than this has lost its guest.
const KEEP_MILLIS: u64 = 30 * 24 * 3_600_000;

/// The folder of tombstones.
#[derive(Debug, Clone)]
pub struct Tombstones {
    folder: PathBuf,
}

impl Tombstones {
    /// Opens the folder, makes it where it is missing, and drops what is too old.
    pub fn open(folder: PathBuf) -> Result<Self, Problem> {
        std::fs::create_dir_all(&folder).map_err(|e| failed(&folder, &e))?;
        let tombstones = Self { folder };
        tombstones.drop_old(UnixMillis::now());
        Ok(tombstones)
    }

    /// Writes a word down. The first word stands: a second, different one is
    /// refused with the first.
    pub fn write(
        &self,
        migration: MigrationId,
        vm: VmId,
        verdict: TombstoneVerdict,
    ) -> Result<TombstoneVerdict, Problem> {
        if let Some(before) = self.read(migration)? {
            return Ok(before.verdict);
        }
        let tombstone = Tombstone {
            migration,
            vm,
            verdict,
            at: UnixMillis::now(),
        };
        let text = serde_json::to_vec_pretty(&tombstone).map_err(Problem::internal)?;
        let path = self.path(migration);
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|e| failed(&path, &e))?;
        Ok(verdict)
    }

    /// The word given, if one was.
    pub fn read(&self, migration: MigrationId) -> Result<Option<Tombstone>, Problem> {
        let path = self.path(migration);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(&path, &e)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|e| {
            Problem::new(
                codes::HOST_IO,
                format!("`{}` is damaged: {e}", path.display()),
            )
            .remedy("find out where the VM runs, then remove the file")
        })
    }

    fn path(&self, migration: MigrationId) -> PathBuf {
        self.folder.join(format!("{migration}.json"))
    }

    fn drop_old(&self, now: UnixMillis) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let old = std::fs::read(entry.path())
                .ok()
                .and_then(|text| serde_json::from_slice::<Tombstone>(&text).ok())
                .is_some_and(|t| t.at.until(now).0 > KEEP_MILLIS);
            if old && let Err(error) = std::fs::remove_file(entry.path()) {
                tracing::warn!(%error, path = %entry.path().display(), "an old word stays");
            }
        }
    }
}

fn failed(path: &std::path::Path, error: &std::io::Error) -> Problem {
    Problem::new(codes::HOST_IO, format!("`{}`: {error}", path.display()))
        .remedy("make the state directory writable and give it room")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_word_stands_and_outlives_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let (id, vm) = (MigrationId::from_u128(1), VmId::from_u128(2));
        let stones = Tombstones::open(folder.path().join("migrations")).unwrap();
        assert_eq!(stones.read(id).unwrap(), None);
        assert_eq!(
            stones.write(id, vm, TombstoneVerdict::Refused).unwrap(),
            TombstoneVerdict::Refused
        );
        let again = Tombstones::open(folder.path().join("migrations")).unwrap();
        assert_eq!(
            again.write(id, vm, TombstoneVerdict::Granted).unwrap(),
            TombstoneVerdict::Refused
        );
        assert_eq!(
            again.read(id).unwrap().unwrap().verdict,
            TombstoneVerdict::Refused
        );
    }

    #[test]
    fn a_damaged_word_is_no_word() {
        let folder = tempfile::tempdir().unwrap();
        let stones = Tombstones::open(folder.path().to_owned()).unwrap();
        let id = MigrationId::from_u128(1);
        std::fs::write(stones.path(id), "{").unwrap();
        assert!(stones.read(id).is_err());
        assert!(
            stones
                .write(id, VmId::from_u128(2), TombstoneVerdict::Granted)
                .is_err()
        );
    }

    #[test]
    fn old_words_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let stones = Tombstones::open(folder.path().to_owned()).unwrap();
        let id = MigrationId::from_u128(1);
        stones
            .write(id, VmId::from_u128(2), TombstoneVerdict::Granted)
            .unwrap();
        stones.drop_old(UnixMillis::now());
        assert!(stones.read(id).unwrap().is_some());
        stones.drop_old(UnixMillis(UnixMillis::now().0 + KEEP_MILLIS + 1));
        assert!(stones.read(id).unwrap().is_none());
    }
}
