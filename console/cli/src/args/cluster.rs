//! `godwit cluster`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `godwit cluster`.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Nodes, VMs and capacity in a few numbers
    Status,
    /// Write a backup of the cluster's records to a file
    #[command(after_help = BACKUP_HELP)]
    Backup(BackupArgs),
    /// Restore a backup, on the coordinator's host and while it is stopped
    #[command(after_help = RESTORE_HELP)]
    Restore(RestoreArgs),
}

const BACKUP_HELP: &str = "\
The coordinator goes on meanwhile. The file is readable by its owner alone. It does not
hold the CA: keep a copy of the `ca` folder of the coordinator's state directory, once.

Examples:
  godwit cluster backup /var/backups/godwit-$(date +%F)
  godwit cluster restore --check /var/backups/godwit-2026-11-25    is it whole?";

/// `godwit cluster backup`.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// The file to write
    pub(crate) file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    pub(crate) force: bool,
}

const RESTORE_HELP: &str = "\
Runs `godwit-coordinator restore`, which asks for the cluster's name, keeps the store that
is there, and refuses while the coordinator runs. VMs go on running all the time. After the
next start no VM is started or deleted before every node has connected and said what it runs.

Examples:
  godwit cluster restore --check FILE
  systemctl stop godwit-coordinator
  godwit cluster restore FILE
  systemctl start godwit-coordinator";

/// `godwit cluster restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// A file that `godwit cluster backup` has written
    pub(crate) file: PathBuf,
    /// Only say whether the file is a whole backup, and of what
    #[arg(long)]
    pub(crate) check: bool,
    /// The coordinator's settings (TOML), if it has some
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The coordinator's state directory [default: /var/lib/godwit/coordinator]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// The cluster's name, instead of being asked to type it
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) i_have_checked: Option<String>,
}
