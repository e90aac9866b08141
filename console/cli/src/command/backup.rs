//! `godwit cluster backup` and `godwit cluster restore`.
//!
//! A backup is fetched from the running coordinator, looked at (is it whole?)
//! and put in its place in one step, readable by its owner alone. A restore is
//! done by `godwit-coordinator restore` on the coordinator's own host, while it
//! is stopped: `cluster restore` looks at the file and runs that program.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use godwit_shared::backup::{BackupHeader, open};
use godwit_shared::model::{Problem, codes};

use crate::args::{BackupArgs, RestoreArgs};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::output::Ui;

/// What restores, on the coordinator's host.
const PROGRAM: &str = "godwit-coordinator";

/// Fetches a backup and writes it.
pub(super) async fn backup(args: &BackupArgs, client: &Client, ui: &Ui) -> Result<(), Failure> {
    if args.file.exists() && !args.force {
        return Err(exists(&args.file));
    }
    let bytes = client.bytes("/cluster/backup").await?;
    let (header, _) = open(&bytes)?;
    write(&args.file, &bytes).map_err(|error| unwritten(&args.file, &error))?;
    tell(&header, ui)?;
    ui.note("the CA is not in it: keep a copy of the `ca` folder of the coordinator's state directory, once");
    Ok(())
}

/// Looks at a backup, and has it restored.
pub(super) fn restore(args: &RestoreArgs, ui: &Ui) -> Result<(), Failure> {
    let bytes = std::fs::read(&args.file).map_err(|error| unread(&args.file, &error))?;
    let (header, _) = open(&bytes)?;
    if args.check {
        return tell(&header, ui);
    }
    let mut command = Command::new(program());
    command.arg("restore").arg(&args.file);
    let flags = [("--config", &args.config), ("--state-dir", &args.state_dir)];
    for (flag, value) in flags {
        if let Some(value) = value {
            command.arg(flag).arg(value);
        }
    }
    if let Some(name) = &args.i_have_checked {
        command.arg("--i-have-checked").arg(name);
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        // It has said why.
        Ok(_) => Err(Failure::silent(Exit::Failed)),
        Err(error) => Err(elsewhere(&args.file, &error)),
    }
}

fn tell(header: &BackupHeader, ui: &Ui) -> Result<(), Failure> {
    if !ui.is_table() {
        let value = serde_json::to_value(header).map_err(Problem::internal)?;
        return ui.value(&value);
    }
    ui.print(&format!(
        "a whole backup of cluster {}, taken {}: revision {}, {} nodes, {} VMs",
        header.cluster, header.taken, header.revision, header.nodes, header.vms
    ))
}

/// The coordinator's program: beside this one, or on the search path.
fn program() -> PathBuf {
    let beside = std::env::current_exe().ok();
    let beside = beside.and_then(|path| Some(path.parent()?.join(PROGRAM)));
    beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| PROGRAM.into())
}

/// Whole or not at all, for its owner alone.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let beside = path.with_file_name(name);
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

fn exists(path: &Path) -> Failure {
    Problem::new(
        codes::ALREADY_EXISTS,
        format!("{} is there already", path.display()),
    )
    .value(path.display().to_string())
    .remedy("give another name, or --force to replace it")
    .into()
}

fn unwritten(path: &Path, error: &io::Error) -> Failure {
    let what = format!("cannot write the backup to {}: {error}", path.display());
    Problem::new(codes::HOST_IO, what)
        .value(path.display().to_string())
        .remedy("name a file in a folder that may be written to and has space")
        .into()
}

fn unread(path: &Path, error: &io::Error) -> Failure {
    let what = format!("cannot read {}: {error}", path.display());
    Problem::new(codes::HOST_IO, what)
        .value(path.display().to_string())
        .remedy("name a file that `godwit cluster backup` has written")
        .into()
}

fn elsewhere(file: &Path, error: &io::Error) -> Failure {
    let what = format!("{PROGRAM} cannot be run here: {error}");
    Problem::new(codes::HOST_IO, what)
        .remedy(format!(
            "on the coordinator's host: stop the coordinator, run `{PROGRAM} restore {}`, start it again",
            file.display()
        ))
        .into()
}
