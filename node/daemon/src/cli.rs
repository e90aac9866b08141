//! The command line of `godwit-node`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Overrides;

/// The daemon of one host: runs its VMs and moves them to its peers.
#[derive(Parser)]
#[command(name = "godwit-node", version, max_term_width = 100)]
#[command(after_help = "\
A host becomes a node in two steps: `godwit node token` on the coordinator prints a
token, `godwit-node join TOKEN` here uses it. Then `godwit-node run` serves.")]
pub struct Cli {
    /// What to log: a level, or levels by module [default: info].
    #[arg(long, global = true, env = "GODWIT_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Serve as a node: run its VMs, and stay in touch with the coordinator.
    ///
    /// SIGTERM and SIGINT end the daemon and leave every VM running; the next
    /// start takes them over.
    Run(RunArgs),
    /// Make this host a node of a cluster, once.
    ///
    /// The token comes from `godwit node token`, is good for one use and names
    /// the cluster's certificate authority, so a foreign coordinator is refused
    /// before it learns anything.
    Join(JoinArgs),
    /// End the VMs that run under the node's lease when it ends (begun by `run`).
    #[command(hide = true)]
    Guard(GuardArgs),
}

/// Arguments of `guard`.
#[derive(Args)]
pub struct GuardArgs {
    /// Where its socket is.
    #[arg(long, value_name = "DIR")]
    pub run_dir: PathBuf,
    /// The watchdog that resets the host when it cannot end them.
    #[arg(long, value_name = "DEVICE")]
    pub watchdog: Option<PathBuf>,
}

/// Arguments of `run`.
#[derive(Args)]
pub struct RunArgs {
    /// Settings (TOML); see config/node.toml.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What has to survive the daemon [default: /var/lib/godwit/node].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Sockets [default: /run/godwit/node].
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// The UDP address to listen on [default: 0.0.0.0:7441].
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// Where peers reach this node, if not at the address that it listens on.
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
}

/// Arguments of `join`.
#[derive(Args)]
pub struct JoinArgs {
    /// The token that `godwit node token` printed.
    pub token: String,
    /// What has to survive the daemon [default: /var/lib/godwit/node].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The node's name [default: the first part of the host's name].
    #[arg(long, value_name = "NODE")]
    pub name: Option<String>,
    /// Where peers will reach this node [default: found out when it runs].
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
    /// Give up the identity that this host has already.
    #[arg(long)]
    pub force: bool,
}

impl RunArgs {
    /// What the flags say of the settings.
    pub fn overrides(&self, log: Option<String>) -> Overrides {
        Overrides {
            name: None,
            state_dir: self.state_dir.clone(),
            run_dir: self.run_dir.clone(),
            listen: self.listen.clone(),
            address: self.address.clone(),
            log,
        }
    }
}

impl JoinArgs {
    /// What the flags say of the settings.
    pub fn overrides(&self, log: Option<String>) -> Overrides {
        Overrides {
            name: self.name.clone(),
            state_dir: self.state_dir.clone(),
            address: self.address.clone(),
            log,
            ..Overrides::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_reach_the_settings() {
        let cli = Cli::try_parse_from([
            "godwit-node",
            "run",
            "--state-dir",
            "/s",
            "--listen",
            "127.0.0.1:0",
            "--log",
            "debug",
        ])
        .unwrap();
        let Command::Run(run) = cli.command else {
            unreachable!()
        };
        let flags = run.overrides(cli.log);
        assert_eq!(flags.state_dir.as_deref(), Some("/s".as_ref()));
        assert_eq!(flags.listen.as_deref(), Some("127.0.0.1:0"));
        assert_eq!(flags.log.as_deref(), Some("debug"));
    }
}
