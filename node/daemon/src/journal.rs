//! A domain's journal: one small JSON file, `record.json`, replaced as a whole.
//!
//! It has to outlive the daemon, not the host: a host that reboots has lost its
//! QEMUs anyway, which the boot id in the record tells. So a write is a new file
//! renamed over the old one, without waiting for the disk; [`Journal::sync`]
//! does that where a record has to outlive the host too.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use godwit_node_logic::domain::Saved;
use godwit_node_logic::handoff::HandoffRecord;
use godwit_shared::model::{Problem, VmId, VmSpec, codes};
use serde::{Deserialize, Serialize};

use crate::host::{refused, write_file};
use crate::qemu::process::ProcessId;

/// The layout of [`Record`]; a later one is not read.
const LAYOUT: u32 = 1;

/// What a daemon has to know of a domain that an earlier one ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    layout: u32,
    /// The VM.
    pub vm: VmId,
    /// Its spec.
    pub spec: VmSpec,
    /// The pinned machine type, once one was chosen.
    pub machine: Option<String>,
    /// Where its state machine stands.
    pub state: Saved,
    /// The QEMU that was last started.
    pub run: Option<RunRecord>,
    /// The migration in hand.
    pub handoff: Option<HandoffRecord>,
}

/// One run of QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its process; none while it is being started.
    pub process: Option<ProcessId>,
    /// The host's boot in which it runs.
    pub boot_id: String,
    /// The versioned machine type.
    pub machine: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// The CPU model.
    pub cpu_model: String,
    /// QEMU's version.
    pub qemu_version: String,
    /// Where its words begin in the QEMU log, in bytes.
    pub log_offset: u64,
}

impl Record {
    /// A record of a domain that was never run here.
    pub fn new(vm: VmId, spec: VmSpec, machine: Option<String>, state: Saved) -> Self {
        Self {
            layout: LAYOUT,
            vm,
            spec,
            machine,
            state,
            run: None,
            handoff: None,
        }
    }
}

/// A record that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is none.
    #[error("there is no record")]
    Missing,
    /// The host refuses it.
    #[error("the record cannot be read")]
    Io(#[source] io::Error),
    /// It is not a record of this release.
    #[error("the record is damaged or of a later release: {0}")]
    Damaged(String),
}

/// The disks that the records of a node's other domains name. None is known for
/// certain while one of the records cannot be read, or was put aside for that.
/// Blocks.
pub fn disks_of_others(domains: &Path, vm: VmId) -> Result<BTreeSet<String>, Problem> {
    let unknown = |error: io::Error| Problem::internal(error).field(domains.display().to_string());
    let mut disks = BTreeSet::new();
    for folder in std::fs::read_dir(domains).map_err(unknown)? {
        let folder = folder.map_err(unknown)?;
        let name = folder.file_name();
        let Some(other) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if other != vm {
            let journal = Journal::new(&folder.path());
            let named = journal.disks(other)?;
            disks.extend(named);
        }
    }
    Ok(disks)
}

/// The record file of one domain.
#[derive(Debug, Clone)]
pub struct Journal {
    file: PathBuf,
}

impl Journal {
    /// The journal in a domain's directory.
    pub fn new(dir: &Path) -> Self {
        Self {
            file: dir.join("record.json"),
        }
    }

    /// The record. It has to be that of `vm`.
    pub fn read(&self, vm: VmId) -> Result<Record, ReadError> {
        let text = std::fs::read(&self.file).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => ReadError::Missing,
            _ => ReadError::Io(e),
        })?;
        let record: Record =
            serde_json::from_slice(&text).map_err(|e| ReadError::Damaged(e.to_string()))?;
        if record.layout != LAYOUT {
            let layout = record.layout;
            return Err(ReadError::Damaged(format!("its layout is {layout}")));
        }
        if record.vm != vm {
            let other = record.vm;
            return Err(ReadError::Damaged(format!("it is the record of {other}")));
        }
        Ok(record)
    }

    /// The disks that the record names; none before there is one.
    fn disks(&self, vm: VmId) -> Result<Vec<String>, Problem> {
        let unreadable = |why: &ReadError| {
            let file = self.file.display();
            Problem::new(codes::HOST_IO, format!("`{file}`: {why}"))
                .remedy("restore the record, or remove its folder when its VM is gone for good")
        };
        match self.read(vm) {
            Ok(record) => Ok(record
                .spec
                .disks
                .into_iter()
                .map(|disk| disk.path)
                .collect()),
            Err(ReadError::Missing) if !self.aside().exists() => Ok(Vec::new()),
            Err(why) => Err(unreadable(&why)),
        }
    }

    /// Where a record that cannot be read is put.
    fn aside(&self) -> PathBuf {
        self.file.with_extension("json.corrupt")
    }

    /// Replaces the record. A daemon that is killed meanwhile leaves the old
    /// record or the new one.
    pub fn write(&self, record: &Record) -> Result<(), Problem> {
        let text = serde_json::to_vec_pretty(record).map_err(Problem::internal)?;
        write_file(&self.file, &text)
    }

    /// Writes what is there through to the disk. Blocks.
    pub fn sync(&self) -> Result<(), Problem> {
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        let domains = dir.parent().unwrap_or(dir);
        [self.file.as_path(), dir, domains]
            .iter()
            .try_for_each(|path| File::open(path)?.sync_all())
            .map_err(|e| refused("write through", &self.file, &e))
    }

    /// Puts a damaged record aside for a look at it, and says what happened.
    pub fn put_aside(&self, why: &ReadError) -> Problem {
        let aside = self.aside();
        let moved = std::fs::rename(&self.file, &aside);
        let remedy = match moved {
            Ok(()) => format!(
                "look at `{}`; a QEMU of that VM may still run on this host",
                aside.display()
            ),
            Err(error) => format!("it cannot be put aside either: {error}"),
        };
        Problem::new(codes::HOST_IO, format!("`{}`: {why}", self.file.display())).remedy(remedy)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use godwit_node_logic::domain::Domain;
    use godwit_shared::model::spec::SpecFormat;
    use godwit_shared::model::{Epoch, UnixMillis};

    use super::*;

    fn record(vm: VmId) -> Record {
        let spec = VmSpec::parse(
            "name: a\nmemory: 64\ndisks: [{path: /d}]\n",
            SpecFormat::Yaml,
        );
        let state = Domain::new(UnixMillis(5), Epoch(3), true).saved();
        let mut record = Record::new(vm, spec.unwrap(), Some("pc-q35-10.0".into()), state);
        record.run = Some(RunRecord {
            process: Some(ProcessId {
                pid: 7,
                start_time: 9,
            }),
            boot_id: "b".into(),
            machine: "pc-q35-10.0".into(),
            accelerator: "tcg".into(),
            cpu_model: "qemu64".into(),
            qemu_version: "10.0.2".into(),
            log_offset: 4,
        });
        record
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (vm, journal) = (VmId::from_u128(1), Journal::new(dir.path()));
        assert!(matches!(journal.read(vm), Err(ReadError::Missing)));
        journal.write(&record(vm)).unwrap();
        journal.sync().unwrap();
        assert_eq!(journal.read(vm).unwrap(), record(vm));
        assert!(matches!(
            journal.read(VmId::from_u128(2)),
            Err(ReadError::Damaged(_))
        ));
    }

    #[test]
    fn a_damaged_record_is_put_aside_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let (vm, journal) = (VmId::from_u128(1), Journal::new(dir.path()));
        for damage in ["", "{", "[]", "{\"layout\": 1}"] {
            std::fs::write(dir.path().join("record.json"), damage).unwrap();
            let error = journal.read(vm).unwrap_err();
            assert!(matches!(error, ReadError::Damaged(_)), "{damage}");
            let problem = journal.put_aside(&error);
            assert!(problem.remedy.unwrap().contains("record.json.corrupt"));
            assert!(matches!(journal.read(vm), Err(ReadError::Missing)));
        }
        let mut later = record(vm);
        later.layout = 2;
        journal.write(&later).unwrap();
        assert!(matches!(journal.read(vm), Err(ReadError::Damaged(_))));
    }

    #[test]
    fn the_disks_of_others_are_those_of_all_other_records() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two, damaged] = [1, 2, 3].map(VmId::from_u128);
        for vm in [one, two, damaged] {
            let folder = dir.path().join(vm.to_string());
            std::fs::create_dir(&folder).unwrap();
            let mut record = record(vm);
            record.spec.disks[0].path = format!("/{vm}");
            Journal::new(&folder).write(&record).unwrap();
        }
        std::fs::write(dir.path().join("stray"), "").unwrap();
        std::fs::create_dir(dir.path().join(VmId::from_u128(4).to_string())).unwrap();
        let found = disks_of_others(dir.path(), one).unwrap();
        let others = [two, damaged].map(|vm| format!("/{vm}"));
        assert_eq!(found, others.into());

        let folder = dir.path().join(damaged.to_string());
        std::fs::write(folder.join("record.json"), "{").unwrap();
        let problem = disks_of_others(dir.path(), one).unwrap_err();
        assert!(problem.message.contains("record.json"), "{problem}");
        let journal = Journal::new(&folder);
        journal.put_aside(&journal.read(damaged).unwrap_err());
        assert!(disks_of_others(dir.path(), one).is_err(), "put aside");
        assert!(disks_of_others(&dir.path().join("gone"), one).is_err());
    }

    #[test]
    fn a_directory_that_is_gone_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(&dir.path().join("gone"));
        let problem = journal.write(&record(VmId::from_u128(1))).unwrap_err();
        assert_eq!(problem.code, codes::HOST_IO);
    }
}
