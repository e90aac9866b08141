//! Backups as files: whole, private, never over something else unasked.

use std::os::unix::fs::PermissionsExt as _;

use godwit_shared::backup::{BackupHeader, seal};
use godwit_shared::model::UnixMillis;
use serde_json::{Value, json};

use super::coordinator::{Answer, Coordinator};
use super::process::godwit;

fn sealed() -> Vec<u8> {
    let header = BackupHeader {
        cluster: "godwit".into(),
        ca_fingerprint: "ab".repeat(32),
        software: "0.1.0".into(),
        taken: UnixMillis(1_700_000_000_000),
        revision: 42,
        records: 0,
        nodes: 2,
        vms: 3,
    };
    seal(&header, b"records").unwrap()
}

#[test]
fn a_backup_is_written_whole_and_for_its_owner_alone() {
    let coordinator = Coordinator::start(|_| Answer::File(sealed()));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    let line = format!("cluster backup {}", path.display());
    let run = godwit(&coordinator.credential, &line);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(
        run.out.contains("revision 42, 2 nodes, 3 VMs"),
        "{}",
        run.out
    );
    assert_eq!(std::fs::read(&path).unwrap(), sealed());
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = godwit(&coordinator.credential, &line);
    assert_eq!(again.code, 5, "{}", again.err);
    let forced = godwit(&coordinator.credential, &format!("{line} --force -o json"));
    let header: Value = serde_json::from_str(&forced.out).unwrap();
    assert_eq!(header["vms"], 3);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_download_that_is_not_whole_is_not_kept() {
    let mut bytes = sealed();
    bytes.pop();
    let coordinator = Coordinator::start(move |_| Answer::File(bytes.clone()));
    let dir = tempfile::tempdir().unwrap();
    let line = format!("cluster backup {}/backup -o json", dir.path().display());
    let run = godwit(&coordinator.credential, &line);
    assert_eq!(
        (run.code, &run.problem()["code"]),
        (1, &json!("backup_invalid"))
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_is_looked_at_without_a_coordinator() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    std::fs::write(&path, sealed()).unwrap();
    let nobody = dir.path().join("no-credential");
    let line = format!("cluster restore --check {} -o json", path.display());
    let run = godwit(&nobody, &line);
    assert_eq!(run.code, 0, "{}", run.err);
    std::fs::write(&path, &sealed()[1..]).unwrap();
    let run = godwit(&nobody, &line);
    assert_eq!(
        (run.code, &run.problem()["code"]),
        (1, &json!("backup_invalid"))
    );
}
