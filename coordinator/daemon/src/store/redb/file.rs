//! The file: made whole, opened with care, and told apart from what it is not.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ::redb::backends::FileBackend;
use ::redb::{Builder, Database, DatabaseError, ReadableDatabase as _, TableError};
use godwit_shared::model::{Problem, codes};

use super::{META, RECORDS};
use crate::state_dir::sync_parent;
use crate::store::{Entry, Revision};

/// The layout of the tables.
const FORMAT: u64 = 1;
/// The records are small and the coordinator holds them in memory anyway.
const CACHE: usize = 8 << 20;

/// An empty store.
pub(super) fn create(path: &Path) -> Result<(), Problem> {
    write(path, Revision(0), &[])
}

/// A store with these records, made whole beside its place and renamed.
pub(super) fn write(path: &Path, revision: Revision, entries: &[Entry]) -> Result<(), Problem> {
    let fresh = PathBuf::from(format!("{}.new", path.display()));
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600);
    let file = options
        .open(&fresh)
        .map_err(|e| refused(path, "create", &e))?;
    let backend = FileBackend::new(file).map_err(|e| explain(path, &e))?;
    let made = builder()
        .create_with_backend(backend)
        .map_err(|e| explain(path, &e))?;
    let begun = (|| -> Result<(), ::redb::Error> {
        let transaction = made.begin_write()?;
        let mut records = transaction.open_table(RECORDS)?;
        for entry in entries {
            records.insert(entry.key.as_str(), (entry.revision.0, entry.value.as_ref()))?;
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("revision", revision.0)?;
        drop((records, meta));
        transaction.commit()?;
        Ok(())
    })();
    begun.map_err(|e| refused(path, "create", &e))?;
    drop(made);
    std::fs::rename(&fresh, path).map_err(|e| refused(path, "create", &e))?;
    sync_parent(path).map_err(|e| refused(path, "create", &e))
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    // A damaged file is an error of the operator's world, never a panic.
    builder
        .set_cache_size(CACHE)
        .set_check_integrity_on_open(true);
    builder
}

pub(super) fn open(path: &Path) -> Result<Database, Problem> {
    builder().open(path).map_err(|e| explain(path, &e))
}

fn explain(path: &Path, error: &DatabaseError) -> Problem {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            Problem::new(codes::STORE, format!("{} is in use", path.display()))
                .remedy("another coordinator runs on this state directory; stop it first")
        }
        DatabaseError::UpgradeRequired(version) => {
            let what = format!("{} has the old file format {version}", path.display());
            Problem::new(codes::STORE, what).remedy("open it with the release that wrote it")
        }
        DatabaseError::Storage(::redb::StorageError::Io(io))
            if io.kind() != std::io::ErrorKind::InvalidData
                && io.kind() != std::io::ErrorKind::UnexpectedEof =>
        {
            refused(path, "open", io)
        }
        other => damaged(path, other),
    }
    .field("state_dir")
    .value(path.display().to_string())
}

fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Problem {
    Problem::new(
        codes::STORE_DAMAGED,
        format!("{} is damaged: {why}", path.display()),
    )
    .field("state_dir")
    .value(path.display().to_string())
    .remedy("restore a backup: `godwit-coordinator restore FILE`; it keeps this file aside. VMs go on running meanwhile")
}

pub(super) fn refused(path: &Path, doing: &str, error: &dyn std::fmt::Display) -> Problem {
    Problem::new(
        codes::STORE,
        format!("cannot {doing} {}: {error}", path.display()),
    )
    .field("state_dir")
    .value(path.display().to_string())
    .remedy("check the directory's owner, its mode and the free space")
}

/// The revision of the last commit, once the file is known to be one of ours.
pub(super) fn check(database: &Database, path: &Path) -> Result<Revision, Problem> {
    let read = || -> Result<(u64, u64), ::redb::Error> {
        let transaction = database.begin_read()?;
        let meta = match transaction.open_table(META) {
            Err(TableError::TableDoesNotExist(_)) => return Ok((0, 0)),
            meta => meta?,
        };
        transaction.open_table(RECORDS)?;
        let number = |key| Ok::<_, ::redb::Error>(meta.get(key)?.map_or(0, |v| v.value()));
        Ok((number("format")?, number("revision")?))
    };
    match read().map_err(|e| damaged(path, &e))? {
        (FORMAT, revision) => Ok(Revision(revision)),
        (0, _) => Err(damaged(path, &"it is not the store of a coordinator")),
        (other, _) => {
            let what = format!(
                "{} has format {other}; this release reads {FORMAT}",
                path.display()
            );
            Err(Problem::new(codes::STORE, what)
                .field("state_dir")
                .value(path.display().to_string())
                .remedy("run the release that wrote it, or a newer one"))
        }
    }
}
