//! `godwit-coordinator restore`: a backup becomes the store of the next start.
//!
//! It needs the state directory's lock, so it never happens under a running
//! coordinator; it needs the CA of the backup's cluster there, since no node
//! would trust another; and it needs the cluster's name, typed. The new store
//! is made whole beside the old one, which keeps its content under a name of
//! its own, and takes its place in one step.
//!
//! What the records become is decided by
//! [`godwit_coordinator_logic::restored`].

use std::path::{Path, PathBuf};

use bytes::Bytes;
use godwit_coordinator_logic::restored::prepare;
use godwit_shared::backup::BackupHeader;
use godwit_shared::model::{Problem, UnixMillis, codes};
use godwit_shared::pki::ClusterCa;
use godwit_shared::prompt::typed_name;

use super::read;
use crate::state_dir::{StateDir, refused, sync_parent};
use crate::store::{Entry, RedbStore, Revision, Store as _};

/// What is to be restored, and over what: checked, and nothing done yet.
#[derive(Debug)]
pub struct Restore {
    dir: StateDir,
    header: BackupHeader,
    entries: Vec<Entry>,
    present: Present,
}

/// The store that is there now.
#[derive(Debug)]
enum Present {
    None,
    At(Revision),
    Unusable(Problem),
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Where the former store is now; none when there was none.
    pub aside: Option<PathBuf>,
}

impl Restore {
    /// Reads and checks the backup, and looks at the state directory.
    pub async fn prepare(file: &Path, state_dir: &Path) -> Result<Self, Problem> {
        let bytes = std::fs::read(file).map_err(|error| refused("read", file, &error))?;
        let (header, entries) = read(&bytes)?;
        if !state_dir.is_dir() {
            return Err(no_directory(state_dir));
        }
        let dir = StateDir::acquire(state_dir)?;
        check_ca(&dir, &header)?;
        let present = present(&dir.store()).await;
        Ok(Self {
            dir,
            header,
            entries,
            present,
        })
    }

    /// What is about to happen, for a person.
    pub fn describe(&self) -> String {
        let header = &self.header;
        let now = match &self.present {
            Present::None => "there is none".to_owned(),
            Present::At(Revision(at)) if *at > header.revision => format!(
                "sound, and {} commits ahead: they are lost",
                at - header.revision
            ),
            Present::At(Revision(at)) => format!("sound, at revision {at}"),
            Present::Unusable(problem) => problem.message.clone(),
        };
        format!(
            "backup:  cluster {}, taken {}, revision {}, {} nodes, {} VMs\n\
             store:   {now}\n\
             After the restore no VM is started or deleted before every node has connected\n\
             and said what it runs. Join tokens have to be made anew; nodes that joined\n\
             after the backup have to join again, and nodes removed after it have to be\n\
             removed again.",
            header.cluster, header.taken, header.revision, header.nodes, header.vms
        )
    }

    /// Asks for the cluster's name, unless it was given.
    pub fn confirm(&self, given: Option<&str>) -> Result<(), Problem> {
        let name = &self.header.cluster;
        let typed = match given {
            Some(given) => given.to_owned(),
            None => ask(name)?,
        };
        if typed == *name {
            return Ok(());
        }
        let what = format!("the backup is of cluster `{name}`, and `{typed}` was given");
        Err(Problem::new(codes::CONFIRMATION_NEEDED, what)
            .field("--i-have-checked")
            .value(typed)
            .remedy("look whether this is the backup that you mean, then type its cluster's name"))
    }

    /// Puts the records into the store's place.
    pub fn carry_out(self) -> Result<Restored, Problem> {
        let (now, path) = (UnixMillis::now(), self.dir.store());
        let entries = records(self.entries, self.header.revision, now, self.header.taken)?;
        let fresh = path.with_extension("redb.restored");
        let revision = Revision(self.header.revision + 1);
        RedbStore::write_file(&fresh, revision, &entries)?;
        let aside = match self.present {
            Present::None => None,
            _ => Some(set_aside(&path, now)?),
        };
        // From here on the next start has the one or the other, whole.
        std::fs::rename(&fresh, &path).map_err(|error| refused("replace", &path, &error))?;
        sync_parent(&path).map_err(|error| refused("write", &path, &error))?;
        Ok(Restored { aside })
    }
}

/// The entries with the records as they shall be; what is changed is of the
/// commit that the restore is.
fn records(
    entries: Vec<Entry>,
    revision: u64,
    now: UnixMillis,
    taken: UnixMillis,
) -> Result<Vec<Entry>, Problem> {
    let former: std::collections::HashMap<String, (Bytes, Revision)> = entries
        .iter()
        .map(|entry| (entry.key.clone(), (entry.value.clone(), entry.revision)))
        .collect();
    let values = entries
        .into_iter()
        .map(|entry| (entry.key, entry.value.to_vec()));
    let entry = |(key, value): (String, Vec<u8>)| {
        let same = former.get(&key).filter(|(before, _)| *before == value);
        Entry {
            revision: same.map_or(Revision(revision + 1), |(_, revision)| *revision),
            value: Bytes::from(value),
            key,
        }
    };
    Ok(prepare(values, now, taken)?
        .into_iter()
        .map(entry)
        .collect())
}

/// A second name for the store's file, which keeps it when it is replaced.
fn set_aside(path: &Path, now: UnixMillis) -> Result<PathBuf, Problem> {
    let aside = path.with_extension(format!("redb.before-restore-{}", now.0));
    std::fs::hard_link(path, &aside).map_err(|error| refused("keep a copy of", path, &error))?;
    Ok(aside)
}

async fn present(path: &Path) -> Present {
    if !path.exists() {
        return Present::None;
    }
    let opened = match RedbStore::open(path) {
        Ok(store) => store,
        Err(problem) => return Present::Unusable(problem),
    };
    match opened.scan("coordinator/").await {
        Ok(scan) => Present::At(scan.revision),
        Err(error) => Present::Unusable(error.into()),
    }
}

fn check_ca(dir: &StateDir, header: &BackupHeader) -> Result<(), Problem> {
    let path = dir.ca();
    if !ClusterCa::exists(&path) {
        let what = format!("there is no CA in {}", path.display());
        return Err(ca_problem(what, &path).remedy(
            "put the cluster's own `ca` folder there first: without its key no node would trust the coordinator",
        ));
    }
    let ca = ClusterCa::load(&path).map_err(|error| ca_problem(error.to_string(), &path))?;
    if ca.fingerprint().to_string() == header.ca_fingerprint {
        return Ok(());
    }
    let what = format!(
        "the backup is of another cluster: its CA is {}, the one in {} is {}",
        header.ca_fingerprint,
        path.display(),
        ca.fingerprint()
    );
    Err(ca_problem(what, &path).remedy(
        "name a backup of this cluster, or the state directory of that one with --state-dir",
    ))
}

fn ca_problem(what: String, path: &Path) -> Problem {
    Problem::new(codes::CA_MISMATCH, what)
        .field("state_dir")
        .value(path.display().to_string())
}

fn no_directory(path: &Path) -> Problem {
    Problem::new(
        codes::HOST_IO,
        format!("there is no state directory {}", path.display()),
    )
    .field("state_dir")
    .value(path.display().to_string())
    .remedy("name the coordinator's with --state-dir or --config")
}

fn ask(name: &str) -> Result<String, Problem> {
    let what = "to restore the cluster's records takes a confirmation";
    let otherwise = Problem::new(codes::CONFIRMATION_NEEDED, what)
        .field("--i-have-checked")
        .remedy(format!(
            "read what is said above, then add --i-have-checked {name}"
        ));
    typed_name("Type the cluster's name to restore it: ", otherwise)
}
