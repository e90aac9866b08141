//! The command line, as types. The help texts live here: they are written to
//! teach, so that `--help` is enough to get a first VM running and moved.
//!
//! What is a matter of one argument alone (a name, a size, a duration) is
//! checked here and refused with exit code 2; what needs the cluster is not.

mod cluster;
mod marks;
mod parse;
mod placement;
mod plan;
mod vm;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use godwit_shared::model::{BytesPerSec, Millis, NodeId, VmName};

pub(crate) use cluster::{BackupArgs, ClusterCommand, RestoreArgs};
pub(crate) use marks::{LabelArgs, LabelChange, TaintArgs, UntaintArgs};
pub(crate) use parse::{Label, LabelSelector, VmRef};
pub(crate) use placement::{PlacementCommand, SimulateArgs};
pub(crate) use plan::{DrainArgs, PlanCommand, RebalanceArgs, ReturnArgs};
pub(crate) use vm::{
    LifecycleArgs, LogsArgs, MigrateArgs, PlaceArgs, SpecArgs, SpecFlags, StartArgs, VmCommand,
    VmCreateArgs,
};

const ROOT_EXAMPLES: &str = "\
Examples:
  godwit cluster status                   how the cluster is
  godwit node token                       a token with which a new host joins
  godwit vm create -f web-1.yaml --start  define a VM and start it
  godwit vm list                          what runs where
  godwit vm console web-1                 its serial console; leave with Ctrl-]
  godwit vm migrate web-1 --to node-2     move it while it runs

Exit codes: 0 done, 1 refused or failed, 2 wrong arguments, 3 the coordinator
cannot be reached, 4 no such thing, 5 something else is in the way, 6 not in
time, 130 interrupted.";

/// Runs and moves virtual machines on a Godwit cluster
#[derive(Debug, Parser)]
#[command(
    name = "godwit",
    version,
    max_term_width = 100,
    after_help = ROOT_EXAMPLES,
    propagate_version = false,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The credential file [default: ~/.config/godwit/admin.toml, then the one of a coordinator on
    /// this host]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "GODWIT_CREDENTIAL",
        hide_env = true
    )]
    pub(crate) credential: Option<PathBuf>,

    /// Reach the coordinator here instead of where the credential says
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "GODWIT_ENDPOINT",
        hide_env = true
    )]
    pub(crate) endpoint: Option<String>,

    /// How to print: table, the API's own json or yaml, or just the names
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub(crate) output: Format,

    /// Colours: auto, always or never; auto heeds NO_COLOR and needs a terminal
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub(crate) color: When,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// The API's object, unchanged.
    Json,
    /// The same, as YAML.
    Yaml,
    /// One name (or id) a line.
    Name,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The cluster as a whole
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// The hosts that run VMs
    #[command(subcommand)]
    Node(NodeCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Where VMs would go, and what placement prefers
    #[command(subcommand)]
    Placement(PlacementCommand),
    /// Moves of running VMs between nodes
    #[command(subcommand)]
    Migration(MigrationCommand),
    /// Drains and rebalances: moves that belong together
    #[command(subcommand)]
    Plan(PlanCommand),
    /// Even the load out, with few moves
    #[command(after_help = plan::REBALANCE_EXAMPLES)]
    Rebalance(RebalanceArgs),
    /// Long actions and how they stand
    #[command(subcommand)]
    Task(TaskCommand),
    /// What happens in the cluster
    Events(EventsArgs),
    /// JSON Schemas, for editors and checkers
    #[command(subcommand)]
    Schema(SchemaCommand),
    /// Print a completion script for a shell
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        dir: PathBuf,
    },
}

const COMPLETION_EXAMPLES: &str = "\
Examples:
  godwit completion bash > /etc/bash_completion.d/godwit
  godwit completion zsh > \"${fpath[1]}/_godwit\"
  godwit completion fish > ~/.config/fish/completions/godwit.fish";

/// `godwit node`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the nodes
    #[command(visible_alias = "ls")]
    List,
    /// Show everything about a node
    Show {
        /// The node
        #[arg(required = true)]
        nodes: Vec<NodeId>,
    },
    /// Make a one-time token with which a new host joins
    #[command(after_help = TOKEN_EXAMPLES)]
    Token {
        /// How long the token is good for, at most a week [default: 1h]
        #[arg(long, value_name = "TIME", value_parser = parse::duration)]
        valid: Option<Duration>,
    },
    /// Place no new VMs on a node; those on it stay
    Cordon {
        /// The node
        #[arg(required = true)]
        nodes: Vec<NodeId>,
    },
    /// Let new VMs be placed on a node again
    Uncordon {
        /// The node
        #[arg(required = true)]
        nodes: Vec<NodeId>,
    },
    /// Empty a node: cordon it, and move its VMs to other nodes
    #[command(after_help = plan::DRAIN_EXAMPLES)]
    Drain(DrainArgs),
    /// Bring the VMs of a node's last drain back, and uncordon it
    #[command(visible_alias = "undrain")]
    Return(ReturnArgs),
    /// Keep VMs away that do not tolerate it
    #[command(after_help = marks::TAINT_EXAMPLES)]
    Taint(TaintArgs),
    /// Take taints away again
    Untaint(UntaintArgs),
    /// Give a node labels, or take them away
    #[command(after_help = marks::LABEL_EXAMPLES)]
    Label(LabelArgs),
    /// Count on a node to run nothing that did not come back since the store was restored
    #[command(after_help = ABSENT_HELP)]
    Absent {
        /// The node
        node: NodeId,
        /// The node's name, instead of being asked to type it
        #[arg(long, value_name = "NODE")]
        i_have_checked: Option<NodeId>,
    },
    /// Take an empty node out of the cluster for good; its certificate is revoked
    Remove {
        /// The node
        #[arg(required = true)]
        nodes: Vec<NodeId>,
    },
}

const ABSENT_HELP: &str = "\
After `godwit cluster restore` no VM is started or deleted before every node has said what
it runs. This says it for a node that will not come back. If a VM runs there after all, a
start elsewhere runs it twice, on the same disks. It is written down.";

const TOKEN_EXAMPLES: &str = "\
The token is the only thing on stdout. It can be used once.

Examples:
  godwit node token                      then, on the new host:
  godwit-node join TOKEN                 and
  godwit-node run
  godwit node token --valid 10m | ssh node-3 'xargs godwit-node join'";

/// `godwit migration`.
#[derive(Debug, Subcommand)]
pub(crate) enum MigrationCommand {
    /// List the migrations, the newest last
    #[command(visible_alias = "ls")]
    List,
    /// Show everything about a migration
    Show {
        /// The end (or the whole) of its id, or a VM's name for that VM's newest
        migration: String,
    },
    /// Show how often migrations went as foretold
    Calibration,
    /// Follow a migration until it has ended
    Watch {
        /// The end (or the whole) of its id, or a VM's name for that VM's newest
        migration: String,
        /// Stop watching after this long (exit code 6); the migration goes on
        #[arg(long, value_name = "TIME", value_parser = parse::duration)]
        timeout: Option<Duration>,
    },
    /// Call a migration off; the guest goes on on its source
    Cancel {
        /// The end (or the whole) of its id, or a VM's name for that VM's newest
        migration: String,
    },
    /// Change a migration while it sends memory
    #[command(after_help = SET_EXAMPLES)]
    Set(SetArgs),
    /// Decide about a guest whose grant is in doubt, when its target cannot be asked
    #[command(after_help = RESOLVE_HELP)]
    Resolve(ResolveArgs),
}

const SET_EXAMPLES: &str = "\
Examples:
  godwit migration set web-1 --bandwidth 100MiB/s
  godwit migration set web-1 --bandwidth 0          as fast as the link goes
  godwit migration set web-1 --postcopy             it was begun with --postcopy fallback";

/// `godwit migration set`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub(crate) struct SetArgs {
    /// The end (or the whole) of its id, or a VM's name for that VM's newest
    pub(crate) migration: String,
    /// Send at most this much from now on; 0 lifts the limit
    #[arg(long, value_name = "RATE", value_parser = parse::bandwidth_or_none, group = "change")]
    pub(crate) bandwidth: Option<BytesPerSec>,
    /// Aim at a pause of at most this long from now on, in milliseconds
    #[arg(long, value_name = "MS", value_parser = parse::millis, group = "change")]
    pub(crate) downtime: Option<Millis>,
    /// Switch to post-copy now
    #[arg(long, group = "change")]
    pub(crate) postcopy: bool,
}

const RESOLVE_HELP: &str = "\
The source has granted the right to run the guest, and cannot learn whether the
target took it. Bring the target's daemon, or a path to it, back if you can: then
the nodes settle it by themselves. If the target's host is gone for good, or you
have made sure by hand of what runs there, decide here. A wrong decision runs the
guest twice, on the same disks, or ends it. It is written down.

Examples:
  godwit migration resolve web-1 --run-on-source    it certainly runs nowhere else
  godwit migration resolve web-1 --end-on-source    it runs on the target";

/// `godwit migration resolve`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("decision").required(true))]
pub(crate) struct ResolveArgs {
    /// The end (or the whole) of its id, or a VM's name for that VM's newest
    pub(crate) migration: String,
    /// The guest certainly does not run on the target: run it on its source
    #[arg(long, group = "decision")]
    pub(crate) run_on_source: bool,
    /// The guest runs on the target, or shall not run: end it on its source
    #[arg(long, group = "decision")]
    pub(crate) end_on_source: bool,
    /// The VM's name, instead of being asked to type it
    #[arg(long, value_name = "VM")]
    pub(crate) i_have_checked: Option<VmName>,
}

/// `godwit task`.
#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// List the tasks, the newest last
    #[command(visible_alias = "ls")]
    List {
        /// Those under way only
        #[arg(long)]
        running: bool,
    },
    /// Show everything about a task
    Show {
        /// The end (or the whole) of its id
        task: String,
    },
    /// Follow a task until it has ended; fails as the task fails
    Watch {
        /// The end (or the whole) of its id
        task: String,
        /// Stop watching after this long (exit code 6); the task goes on
        #[arg(long, value_name = "TIME", value_parser = parse::duration)]
        timeout: Option<Duration>,
    },
    /// Call a task off
    Cancel {
        /// The end (or the whole) of its id
        task: String,
    },
}

const EVENTS_EXAMPLES: &str = "\
With -o json every event is one line. A lost connection is taken up again where
it broke off, and no event is missed.

Examples:
  godwit events                   the last ones
  godwit events --follow          and every one from now on
  godwit events --after 1200      all after number 1200
  godwit events -f -o json | jq 'select(.kind == \"migration.phase\")'";

/// `godwit events`.
#[derive(Debug, Args)]
#[command(after_help = EVENTS_EXAMPLES)]
pub(crate) struct EventsArgs {
    /// Go on with every new event until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin after the event with this number
    #[arg(long, value_name = "N")]
    pub(crate) after: Option<u64>,
    /// Begin with the last N events
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "after")]
    pub(crate) last: Option<u64>,
}

/// `godwit schema`.
#[derive(Debug, Subcommand)]
pub(crate) enum SchemaCommand {
    /// The JSON Schema of a VM spec
    Vm,
}

/// Whether and how long to wait for a long action.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Waiting")]
pub(crate) struct WaitArgs {
    /// Wait until it is done (this is the default)
    #[arg(long, conflicts_with = "detach")]
    pub(crate) wait: bool,
    /// Do not wait: print the task's id
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Stop waiting after this long, for example 90s or 5m (exit code 6); the action goes on
    #[arg(long, value_name = "TIME", value_parser = parse::duration, conflicts_with = "detach")]
    pub(crate) timeout: Option<Duration>,
}
