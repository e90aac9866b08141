//! States of domains, as nodes report them and operators see them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::id::{Epoch, MigrationId, VmId, VmName};
use super::problem::Problem;
use super::units::{Bytes, MiB, UnixMillis};

/// What an operator wants of a VM. The coordinator keeps it; nodes are asked to
/// bring it about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Defined, and not running anywhere.
    Stopped,
    /// Running, wherever it fits.
    Running,
}

/// A domain on its node.
///
/// ```text
///             start                 QMP ready, cont
///  Stopped ----------> Starting ----------------------> Running <----> Paused
///     ^                    |                            |  |  ^
///     |                    v                            |  |  | the handoff was refused
///     |<----------------- exit <---- ShuttingDown <-----+  |  |
///     |                                                    v  |
///     |                                      InHandoff (granted, not confirmed)
///     |                 activate
///  (none) --> Incoming ----------> Running
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DomainState {
    /// No QEMU.
    Stopped,
    /// QEMU has been started and its CPUs have not run yet.
    Starting,
    /// The CPUs run.
    Running,
    /// An operator stopped the CPUs.
    Paused,
    /// The guest was asked to shut down and its CPUs still run.
    ShuttingDown,
    /// The guest's kernel panicked; its CPUs stand still for a look at it.
    Crashed,
    /// QEMU stopped the CPUs because a disk failed.
    IoError,
    /// A QEMU that receives a migration; its CPUs have not run here.
    Incoming,
    /// The right to run was granted to another node and its word is awaited.
    InHandoff,
    /// QEMU runs but does not answer.
    Unresponsive,
}

impl DomainState {
    /// Whether a QEMU process belongs to the domain in this state.
    pub const fn has_process(self) -> bool {
        !matches!(self, Self::Stopped)
    }

    /// Whether the guest's CPUs may be executing.
    pub const fn executes(self) -> bool {
        matches!(self, Self::Running | Self::ShuttingDown)
    }

    /// The state's name in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::ShuttingDown => "shutting-down",
            Self::Crashed => "crashed",
            Self::IoError => "io-error",
            Self::Incoming => "incoming",
            Self::InHandoff => "in-handoff",
            Self::Unresponsive => "unresponsive",
        }
    }
}

impl std::fmt::Display for DomainState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a domain's QEMU ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered itself off (QMP `SHUTDOWN`, reason `guest-shutdown`).
    GuestShutdown,
    /// An operator stopped it.
    Stopped,
    /// It runs on another node now.
    Migrated,
    /// QEMU did not get as far as running the guest; its last words.
    FailedToStart {
        /// What QEMU printed, at most 4 KiB.
        error: String,
    },
    /// QEMU was killed by a signal, or ended by itself without a word.
    Crashed {
        /// The exit status or the signal, where the daemon could see it.
        detail: String,
    },
    /// The host was booted anew; its QEMUs ended with it.
    HostReboot,
    /// Its node's lease ended, so that it may be started elsewhere.
    LeaseLost,
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::GuestShutdown => f.write_str("the guest powered off"),
            Self::Stopped => f.write_str("stopped by an operator"),
            Self::Migrated => f.write_str("migrated away"),
            Self::FailedToStart { error } => write!(f, "QEMU did not start: {error}"),
            Self::Crashed { detail } => write!(f, "QEMU ended unexpectedly: {detail}"),
            Self::HostReboot => f.write_str("the host was rebooted"),
            Self::LeaseLost => f.write_str("stopped because its node's lease ended"),
        }
    }
}

/// The guest agent's channel.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// The VM has no channel for it.
    #[default]
    Absent,
    /// The guest has not opened the channel (QMP `VSERPORT_CHANGE`).
    Disconnected,
    /// The guest has it open.
    Connected,
}

/// What an operator may ask of one domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LifecycleCommand {
    /// Start QEMU and run the CPUs.
    Start,
    /// Ask the guest to power off: through its agent where there is one, else ACPI.
    Shutdown,
    /// Ask the guest to reboot: through its agent where there is one, else a reset.
    Reboot,
    /// Pull the reset line (QMP `system_reset`).
    Reset,
    /// End QEMU without asking the guest.
    Stop,
    /// Stop the CPUs (QMP `stop`).
    Pause,
    /// Run the CPUs (QMP `cont`).
    Resume,
    /// Forget the domain on this node; only when it is stopped.
    Delete,
}

impl LifecycleCommand {
    /// The verb, as on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Shutdown => "shutdown",
            Self::Reboot => "reboot",
            Self::Reset => "reset",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Delete => "delete",
        }
    }
}

impl std::fmt::Display for LifecycleCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One domain as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct DomainReport {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// The right to run that this node holds, or last held.
    pub epoch: Epoch,
    /// Whether this node holds the right to run it. False while incoming, and
    /// after the right was granted away.
    pub owner: bool,
    /// The state.
    pub state: DomainState,
    /// Since when it is in that state.
    pub since: UnixMillis,
    /// Why the last QEMU ended, if one did.
    pub exit: Option<ExitReason>,
    /// What last went wrong, if it has not been put right since.
    pub problem: Option<Problem>,
    /// The guest agent.
    pub agent: AgentState,
    /// QEMU's process id.
    pub pid: Option<u32>,
    /// The migration that the domain takes part in.
    pub migration: Option<MigrationId>,
    /// The versioned machine type it was started with.
    pub machine: Option<String>,
    /// The accelerator in use: `kvm` or `tcg`.
    pub accelerator: Option<String>,
    /// The last sample of what QEMU uses.
    pub usage: Option<DomainUsage>,
}

/// What one QEMU process uses.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub struct DomainUsage {
    /// CPU time used since it was started, in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory.
    pub resident: MiB,
    /// Bytes read by the process from storage.
    pub read: Bytes,
    /// Bytes written by the process to storage.
    pub written: Bytes,
    /// When this was sampled.
    pub at: UnixMillis,
}
