//! `godwit vm`: the arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use godwit_shared::model::{
    BytesPerSec, DiskCopy, MiB, Millis, NodeId, Postcopy, TimeoutAction, VmName,
};

use super::WaitArgs;
use super::parse::{self, DiskFlag, Label, LabelSelector, NicFlag, VmRef};

/// `godwit vm`.
#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Define a VM, from a file or from flags
    Create(Box<VmCreateArgs>),
    /// List the VMs
    #[command(visible_alias = "ls")]
    List {
        /// Those with this label only: `k=v`, `k!=v` or `k`; several mean all of them
        #[arg(short = 'l', long, value_name = "LABEL", value_delimiter = ',')]
        selector: Vec<LabelSelector>,
    },
    /// Show everything about a VM
    Show {
        /// Say of every node why it could have the VM now, or could not
        #[arg(long)]
        explain: bool,
        /// The VM's name or id
        #[arg(required = true, value_name = "VM")]
        vms: Vec<VmRef>,
    },
    /// Start VMs where they fit best
    Start(StartArgs),
    /// Ask guests to power off, through their agent or ACPI
    Shutdown(LifecycleArgs),
    /// Ask guests to reboot
    Reboot(LifecycleArgs),
    /// Reset VMs at once, as the reset button does
    Reset(LifecycleArgs),
    /// End VMs at once, as pulling the plug does
    Stop(LifecycleArgs),
    /// Stop the guests' CPUs; their memory stays
    Pause(LifecycleArgs),
    /// Run the CPUs of paused VMs again
    Resume(LifecycleArgs),
    /// Forget stopped VMs; their disk images stay
    #[command(visible_alias = "rm")]
    Delete(LifecycleArgs),
    /// Talk to a VM's serial console
    #[command(after_help = CONSOLE_HELP)]
    Console {
        /// The VM's name or id
        vm: VmRef,
        /// How much of what the guest wrote before to show first, in KiB
        #[arg(long, value_name = "KIB", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=1024))]
        scrollback: u32,
    },
    /// Print what a guest wrote to its serial console, or what its QEMU printed
    Logs(LogsArgs),
    /// Move running VMs to another node
    Migrate(MigrateArgs),
    /// Say where a VM would be placed, and why, without creating it
    Place(Box<PlaceArgs>),
}

const CONSOLE_HELP: &str = "\
Leave with Ctrl-]. The console stays with the VM when it is moved to another
node. With stdin or stdout in a pipe it copies bytes; the end of stdin does not
end it, the byte 0x1d (Ctrl-]) does.

Examples:
  godwit vm console web-1
  printf 'uptime\\n' | timeout 5 godwit vm console web-1";

const CREATE_EXAMPLES: &str = "\
A spec in YAML (or TOML, in a file that ends in .toml):

  name: web-1
  memory: 2GiB
  cpu: { count: 2 }
  disks:
  - path: /srv/images/web-1.qcow2
    shared: true
  nics:
  - network: user

`godwit schema vm` prints every field; editors complete and check with it.

Examples:
  godwit vm create -f web-1.yaml --start
  generate | godwit vm create -f - --start
  godwit vm create --name tiny --memory 256M --kernel /srv/vmlinuz \\
      --initrd /srv/initrd.img --cmdline console=ttyS0 --start
  godwit vm create --name db --memory 8G --cpus 4 --disk /srv/db.qcow2,shared";

/// `godwit vm create`.
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(crate) struct VmCreateArgs {
    // Before the others, whose headings would go on over these.
    /// Start it at once
    #[arg(long)]
    pub(crate) start: bool,
    /// Put it on this node, if it fits there
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<NodeId>,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// Where a spec comes from.
#[derive(Debug, Args)]
pub(crate) struct SpecArgs {
    /// Read the spec from this file; `-` is stdin
    #[arg(
        short,
        long,
        value_name = "FILE",
        required_unless_present = "name",
        conflicts_with = "SpecFlags"
    )]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) flags: SpecFlags,
}

/// A simple spec in flags.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "The VM, instead of a file")]
pub(crate) struct SpecFlags {
    /// Its name
    #[arg(long, requires = "memory")]
    pub(crate) name: Option<VmName>,
    /// Its memory, for example 512M or 4G
    #[arg(long, value_name = "SIZE", requires = "name")]
    pub(crate) memory: Option<MiB>,
    /// How many vCPUs
    #[arg(long, value_name = "N", requires = "name")]
    pub(crate) cpus: Option<u32>,
    /// QEMU's CPU model
    #[arg(long, value_name = "MODEL", requires = "name")]
    pub(crate) cpu_model: Option<String>,
    /// A disk image on the node: PATH[,format=raw][,interface=scsi|sata][,read-only][,shared]
    #[arg(long = "disk", value_name = "DISK", requires = "name")]
    pub(crate) disks: Vec<DiskFlag>,
    /// A network card: user[,model=e1000e][,mac=52:54:00:..]
    #[arg(long = "nic", value_name = "NIC", requires = "name")]
    pub(crate) nics: Vec<NicFlag>,
    /// A kernel on the node, for direct boot
    #[arg(long, value_name = "PATH", requires = "name")]
    pub(crate) kernel: Option<String>,
    /// Its initial RAM disk
    #[arg(long, value_name = "PATH", requires = "kernel")]
    pub(crate) initrd: Option<String>,
    /// Its command line
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    pub(crate) cmdline: Option<String>,
    /// The guest's architecture: x86_64, aarch64 or ppc64
    #[arg(long, value_name = "ARCH", requires = "name")]
    pub(crate) architecture: Option<String>,
    /// QEMU's machine type
    #[arg(long, value_name = "TYPE", requires = "name")]
    pub(crate) machine: Option<String>,
    /// auto, kvm or tcg
    #[arg(long, value_name = "ACCEL", requires = "name")]
    pub(crate) accelerator: Option<String>,
    /// A label of the VM; may be given several times
    #[arg(long = "label", value_name = "K=V", requires = "name")]
    pub(crate) labels: Vec<Label>,
    /// A label that its node has to carry; may be given several times
    #[arg(long = "node-label", value_name = "K=V", requires = "name")]
    pub(crate) node_labels: Vec<Label>,
    /// Keep it apart from VMs with the same value of this label
    #[arg(long, value_name = "LABEL", requires = "name")]
    pub(crate) spread_by: Option<String>,
    /// Start it again, elsewhere if need be, when its node is lost
    #[arg(long, requires = "name")]
    pub(crate) protected: bool,
    /// No serial console
    #[arg(long, requires = "name")]
    pub(crate) no_serial: bool,
    /// No channel for the guest agent
    #[arg(long, requires = "name")]
    pub(crate) no_agent: bool,
}

/// `godwit vm start`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// The VMs' names or ids
    #[arg(required = true, value_name = "VM")]
    pub(crate) vms: Vec<VmRef>,
    /// Put them on this node, if they fit there
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<NodeId>,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// Every other lifecycle command.
#[derive(Debug, Args)]
pub(crate) struct LifecycleArgs {
    /// The VMs' names or ids
    #[arg(required = true, value_name = "VM")]
    pub(crate) vms: Vec<VmRef>,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

const LOGS_EXAMPLES: &str = "\
Examples:
  godwit vm logs web-1               the end of the guest's console
  godwit vm logs web-1 --follow      and all that it writes from now on
  godwit vm logs web-1 --qemu        what QEMU itself printed";

/// `godwit vm logs`.
#[derive(Debug, Args)]
#[command(after_help = LOGS_EXAMPLES)]
pub(crate) struct LogsArgs {
    /// The VM's name or id
    pub(crate) vm: VmRef,
    /// What QEMU printed, instead of the guest's serial console
    #[arg(long)]
    pub(crate) qemu: bool,
    /// The last N lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
    pub(crate) lines: u32,
    /// Go on with everything new until Ctrl-C, or until the VM is off
    #[arg(short, long)]
    pub(crate) follow: bool,
}

const MIGRATE_EXAMPLES: &str = "\
The guest runs on while its memory is sent and stands still only for the last
moment (the blackout). Whatever fails before that, it goes on on its source.
Ctrl-C leaves the migration going on; `godwit migration cancel VM` calls it off.

Examples:
  godwit vm migrate web-1                      wherever it fits best
  godwit vm migrate web-1 --to node-2
  godwit vm migrate web-1 --to node-2 --dry-run   what stands against it
  godwit vm migrate db-1 db-2 --bandwidth 200MiB/s --downtime 100
  godwit vm migrate db-1 --postcopy fallback      if it does not converge
  godwit vm migrate db-1 --timeout 5m --timeout-action suspend";

/// `godwit vm migrate`.
#[derive(Debug, Args)]
#[command(after_help = MIGRATE_EXAMPLES)]
pub(crate) struct MigrateArgs {
    /// The VMs' names or ids
    #[arg(required = true, value_name = "VM")]
    pub(crate) vms: Vec<VmRef>,
    /// The target; placement chooses when it is absent
    #[arg(long, value_name = "NODE")]
    pub(crate) to: Option<NodeId>,
    /// Only say what stands against it (exit code 1 when something does)
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Streams for memory beside the main one; 0 sends all over that one
    #[arg(long, value_name = "N")]
    pub(crate) channels: Option<u16>,
    /// Send at most this much, for example 100MiB/s or 1Gbit/s
    #[arg(long, value_name = "RATE", value_parser = parse::bandwidth)]
    pub(crate) bandwidth: Option<BytesPerSec>,
    /// Aim at a pause of at most this long, in milliseconds
    #[arg(long, value_name = "MS", value_parser = parse::millis)]
    pub(crate) downtime: Option<Millis>,
    /// Never slow the guest down, even if the migration cannot end otherwise
    #[arg(long)]
    pub(crate) no_auto_converge: bool,
    /// Let the guest run on the target before all of its memory is there: never,
    /// when pre-copy stalls, or always. A host that dies then takes the guest along
    #[arg(long, value_name = "WHEN", value_parser = parse::postcopy())]
    pub(crate) postcopy: Option<Postcopy>,
    /// How long it may take until the guest is switched over, for example 90s or 5m
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub(crate) timeout: Option<Duration>,
    /// What to do then
    #[arg(long, value_name = "ACTION", value_parser = parse::timeout_action(), requires = "timeout")]
    pub(crate) timeout_action: Option<TimeoutAction>,
    /// How disks that are not shared get there: all of each, only what is above
    /// the backing image that the target has, or all with every write of the
    /// guest going to both sides from the beginning [default: full]
    #[arg(long, value_name = "HOW", value_parser = parse::disk_copy())]
    pub(crate) disks: Option<DiskCopy>,
    /// Leave the images of those disks on the source afterwards
    #[arg(long)]
    pub(crate) keep_source_disks: bool,
    /// The place in the queue, 0 to 100: higher goes first [default: 50]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) priority: Option<u8>,
    /// Wait until it is done (this is the default)
    #[arg(long, conflicts_with = "detach", help_heading = "Waiting")]
    pub(crate) wait: bool,
    /// Do not wait: print the task's id
    #[arg(short, long, help_heading = "Waiting")]
    pub(crate) detach: bool,
    /// Stop waiting after this long (exit code 6); the migration goes on
    #[arg(
        long,
        value_name = "TIME",
        value_parser = parse::duration,
        conflicts_with = "detach",
        help_heading = "Waiting"
    )]
    pub(crate) wait_timeout: Option<Duration>,
}

impl MigrateArgs {
    /// How long to wait for its end.
    pub(crate) fn waiting(&self) -> WaitArgs {
        WaitArgs {
            wait: self.wait,
            detach: self.detach,
            timeout: self.wait_timeout,
        }
    }
}

const PLACE_EXAMPLES: &str = "\
Examples:
  godwit vm place -f web-1.yaml              the node of choice
  godwit vm place -f web-1.yaml --explain    every node with its reasons
  godwit vm place --name x --memory 64G --explain";

/// `godwit vm place`.
#[derive(Debug, Args)]
#[command(after_help = PLACE_EXAMPLES)]
pub(crate) struct PlaceArgs {
    /// Say of every node why it would be chosen or not
    #[arg(long)]
    pub(crate) explain: bool,
    /// Ask about this node only
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<NodeId>,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
}
