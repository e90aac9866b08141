//! Plans: what is asked of them.

use std::time::Duration;

use clap::{Args, Subcommand};
use godwit_shared::api::PlanLimits;
use godwit_shared::model::{BytesPerSec, NodeId};

use super::{WaitArgs, parse};

/// How much a plan does at once.
#[derive(Debug, Clone, Args)]
pub(crate) struct LimitArgs {
    /// Move at most so many VMs at once [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) parallel: Option<u32>,
    /// Send at most this much for each VM
    #[arg(long, value_name = "RATE", value_parser = parse::bandwidth)]
    pub(crate) bandwidth: Option<BytesPerSec>,
}

impl LimitArgs {
    /// As the API takes them.
    pub(crate) fn limits(&self) -> PlanLimits {
        let default = PlanLimits::default();
        PlanLimits {
            parallel: self.parallel.unwrap_or(default.parallel),
            bandwidth: self.bandwidth,
        }
    }
}

pub(super) const DRAIN_EXAMPLES: &str = "\
What blocks a drain is told before anything begins; --partial moves the rest
nevertheless. VMs that do not run stay.

Examples:
  godwit node drain node-1 --dry-run       every step, and how long it takes
  godwit node drain node-1 --return        they come back with `node uncordon`
  godwit node drain node-1 && ssh node-1 reboot";

/// `godwit node drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The node
    pub(crate) node: NodeId,
    /// Only show the plan
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Move what can be moved, although something blocks the rest
    #[arg(long)]
    pub(crate) partial: bool,
    /// Bring the same VMs back when the node is uncordoned
    #[arg(long = "return")]
    pub(crate) and_return: bool,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// `godwit node return`.
#[derive(Debug, Args)]
pub(crate) struct ReturnArgs {
    /// The node
    pub(crate) node: NodeId,
    /// Only show the plan
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Bring back what can be moved, although something blocks the rest
    #[arg(long)]
    pub(crate) partial: bool,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

pub(super) const REBALANCE_EXAMPLES: &str = "\
Nothing moves when the gain is below the threshold of the coordinator's file.

Examples:
  godwit rebalance --dry-run               every move, and the gain
  godwit rebalance --max-moves 5 --bandwidth 200MiB/s";

/// `godwit rebalance`.
#[derive(Debug, Args)]
pub(crate) struct RebalanceArgs {
    /// Only show the plan
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Move at most so many VMs [default: that of the coordinator's file]
    #[arg(long, value_name = "N")]
    pub(crate) max_moves: Option<u32>,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// `godwit plan`.
#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// List the plans, the newest last
    #[command(visible_alias = "ls")]
    List,
    /// Show every step of a plan
    Show {
        /// The end (or the whole) of its id
        plan: String,
    },
    /// Follow a plan until it has ended; fails as the plan fails
    Watch {
        /// The end (or the whole) of its id
        plan: String,
        /// Stop watching after this long (exit code 6); the plan goes on
        #[arg(long, value_name = "TIME", value_parser = parse::duration)]
        timeout: Option<Duration>,
    },
    /// Call a plan off: no further step begins, moves that run end as they would have
    Abort {
        /// The end (or the whole) of its id
        plan: String,
        /// Cancel the moves that run as well
        #[arg(long)]
        cancel_running: bool,
    },
}
