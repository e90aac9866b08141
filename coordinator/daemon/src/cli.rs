//! The command line of `godwit-coordinator`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Overrides;

/// The control plane of a Godwit cluster: its state, placement and API.
#[derive(Debug, Parser)]
#[command(name = "godwit-coordinator", version, max_term_width = 100)]
#[command(after_help = "\
The first start makes the cluster: its CA, its store and the credential with which the
local `godwit` command is let in. `godwit node token` then prints what a host needs to join.")]
pub struct Cli {
    /// What to log: a level, or levels by module [default: info].
    #[arg(long, global = true, env = "GODWIT_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the cluster.
    ///
    /// SIGTERM and SIGINT end the daemon. Nodes, VMs and running migrations go on
    /// without it; the next start takes the cluster up where it is then.
    Run(RunArgs),
    /// Make a backup's records those of the next start.
    ///
    /// The coordinator must not run. The former store is kept beside the new one.
    #[command(after_help = RESTORE_HELP)]
    Restore(RestoreArgs),
}

const RESTORE_HELP: &str = "\
What the nodes know better than the backup (where a VM runs, at which epoch) comes back
with them: until every node of the backup has connected, no VM is started or deleted.

Example:
  systemctl stop godwit-coordinator
  godwit-coordinator restore /var/backups/godwit-2026-11-25
  systemctl start godwit-coordinator";

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// A file that `godwit cluster backup` has written.
    pub file: PathBuf,
    /// Settings (TOML); see config/coordinator.toml.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// CA, store and credential [default: /var/lib/godwit/coordinator].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The cluster's name, instead of being asked to type it.
    #[arg(long, value_name = "CLUSTER")]
    pub i_have_checked: Option<String>,
}

impl RestoreArgs {
    /// What the flags say of the settings.
    pub fn overrides(&self, log: Option<String>) -> Overrides {
        Overrides {
            state_dir: self.state_dir.clone(),
            log,
            ..Overrides::default()
        }
    }
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Settings (TOML); see config/coordinator.toml.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// CA, store and credential [default: /var/lib/godwit/coordinator].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The UDP address for nodes [default: 0.0.0.0:7440].
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// The TCP address of the API [default: 127.0.0.1:7443].
    #[arg(long, value_name = "IP:PORT")]
    pub api: Option<String>,
    /// Where nodes reach this coordinator, if not at the address that it listens on.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub advertise: Option<String>,
    /// The cluster's name [default: godwit].
    #[arg(long, value_name = "CLUSTER")]
    pub name: Option<String>,
}

impl RunArgs {
    /// What the flags say of the settings.
    pub fn overrides(&self, log: Option<String>) -> Overrides {
        Overrides {
            name: self.name.clone(),
            state_dir: self.state_dir.clone(),
            listen: self.listen.clone(),
            api: self.api.clone(),
            advertise: self.advertise.clone(),
            log,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_reach_the_settings() {
        let line = "godwit-coordinator run --state-dir /s --api 127.0.0.1:0 --log debug";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Run(run) = cli.command else {
            panic!("{cli:?}");
        };
        let flags = run.overrides(cli.log);
        assert_eq!(flags.state_dir.as_deref(), Some("/s".as_ref()));
        assert_eq!(flags.api.as_deref(), Some("127.0.0.1:0"));
        assert_eq!(flags.log.as_deref(), Some("debug"));
    }
}
