//! What daemon and guardian say to each other: one line of JSON each way, one
//! question for each connection.

use godwit_shared::model::BootMillis;
use serde::{Deserialize, Serialize};

use crate::qemu::process::ProcessId;

/// The longest line of either.
pub(super) const MAX_LINE: u64 = 4096;

/// From the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Question {
    /// The daemon is that process now.
    Hello { daemon: ProcessId },
    /// The lease ends then.
    Extend { stop_at: BootMillis },
    /// That QEMU runs under the lease.
    Watch { process: ProcessId },
    /// Was it ended because of the lease?
    Fate { process: ProcessId },
}

/// From the guardian.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// It is so; the lease ends then, as far as the guardian knows.
    Done { stop_at: Option<BootMillis> },
    /// Yes or no: it may run; it was ended.
    Word(bool),
    /// The question makes no sense, or cannot be met.
    Refused(String),
}
