//! What the machine is told.

use godwit_shared::model::{Epoch, LifecycleCommand, MigrationId, Problem};

use super::effect::{Action, Request, Timer};
use crate::qemu::chardev;
use crate::qmp;
use crate::qmp::status::RunStatus;

/// One thing that is asked or has happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A lifecycle command.
    Command {
        /// Which.
        command: LifecycleCommand,
        /// The epoch that came with it.
        epoch: Epoch,
    },
    /// A migration takes the domain in hand as its source.
    BeginOutgoing {
        /// The migration.
        migration: MigrationId,
    },
    /// The right was granted away, and that is journaled.
    Granted,
    /// The migration ended and the domain stays, at this epoch.
    Stay {
        /// The epoch.
        epoch: Epoch,
    },
    /// The migration ended and the domain runs elsewhere, at this epoch.
    Retire {
        /// The epoch.
        epoch: Epoch,
    },
    /// Become the receiving side of a migration.
    Receive {
        /// The migration.
        migration: MigrationId,
        /// The source's epoch.
        epoch: Epoch,
    },
    /// The right was granted here.
    Activate {
        /// The epoch that comes with it.
        epoch: Epoch,
        /// Whether the CPUs shall run.
        run: bool,
    },
    /// Throw away what was received.
    Discard,

    /// An `Effect::Journal` failed.
    JournalFailed(Problem),
    /// An `Effect::Written` was reached.
    Written(Request),
    /// QEMU has been started.
    Spawned,
    /// It could not be.
    SpawnFailed(Problem),
    /// The QMP session stands.
    Ready,
    /// The QMP session ended while QEMU lives.
    SessionLost,
    /// The answer to an `Effect::Resync`.
    Status {
        /// QEMU's run state.
        run: RunStatus,
        /// Whether a migration is under way in it.
        migrating: bool,
    },
    /// The answer to an `Effect::Do`.
    Replied {
        /// What had been asked.
        action: Action,
        /// What QEMU said.
        outcome: Result<(), Problem>,
    },
    /// The answer to an `Effect::AskAgent`.
    AgentReplied(Result<(), Problem>),
    /// A QMP event that matters to the lifecycle.
    Happened(Happening),
    /// QEMU does not answer, and why that is believed.
    Silent(Problem),
    /// QEMU said something after it had been silent.
    Heard,
    /// The node's lease ended, and QEMU was ended for that; its end follows.
    LeaseLost,
    /// QEMU ended.
    Exited {
        /// The exit status or the signal, as far as it could be seen.
        detail: String,
        /// What it printed last, where it never came to run the guest.
        last_words: String,
        /// Whether the host was booted anew since it ran.
        rebooted: bool,
    },
    /// A timer ran out.
    Expired(Timer),
}

/// QMP events of the lifecycle (QAPI `run-state.json`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// `STOP`.
    Stop,
    /// `RESUME`.
    Resume,
    /// `RESET`.
    Reset,
    /// `SHUTDOWN`.
    Shutdown {
        /// Whether the guest did it, not somebody on the host.
        guest: bool,
        /// QEMU's reason, for example `guest-shutdown` or `host-signal`.
        reason: String,
    },
    /// `GUEST_PANICKED`.
    Panicked,
    /// `BLOCK_IO_ERROR` that stopped the CPUs.
    IoError {
        /// Which device, and what it said.
        what: String,
    },
    /// `WATCHDOG` that stopped the CPUs.
    Watchdog,
    /// `VSERPORT_CHANGE` of the agent's port.
    Agent {
        /// Whether the guest has it open.
        open: bool,
    },
    /// `MIGRATION` with a final status.
    MigrationOver,
}

impl Happening {
    /// What an event means to the lifecycle; nothing, for most.
    pub fn of(event: &qmp::Event) -> Option<Self> {
        Some(match event.name.as_str() {
            "STOP" => Self::Stop,
            "RESUME" => Self::Resume,
            "RESET" => Self::Reset,
            "SHUTDOWN" => Self::Shutdown {
                guest: event.flag("guest").unwrap_or(false),
                reason: event.text("reason").unwrap_or("unknown").to_owned(),
            },
            "GUEST_PANICKED" => Self::Panicked,
            "BLOCK_IO_ERROR" if event.text("action") == Some("stop") => Self::IoError {
                what: io_error(event),
            },
            "WATCHDOG" if event.text("action") == Some("pause") => Self::Watchdog,
            "VSERPORT_CHANGE" if event.text("id") == Some(chardev::AGENT) => Self::Agent {
                open: event.flag("open")?,
            },
            "MIGRATION" => match event.text("status")? {
                "completed" | "failed" | "cancelled" => Self::MigrationOver,
                _ => return None,
            },
            _ => return None,
        })
    }
}

fn io_error(event: &qmp::Event) -> String {
    let text = |field: &str| event.text(field).filter(|text| !text.is_empty());
    let device = text("node-name").or(text("device")).unwrap_or("a disk");
    let operation = text("operation").unwrap_or("access");
    let reason = text("reason").unwrap_or("no reason given");
    format!("{operation} on {device} failed: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(name: &str, data: Value) -> Option<Happening> {
        Happening::of(&qmp::Event {
            name: name.to_owned(),
            data,
            timestamp: 0,
        })
    }

    #[test]
    fn events_are_understood_or_left_alone() {
        assert_eq!(of("STOP", Value::Null), Some(Happening::Stop));
        assert_eq!(
            of(
                "SHUTDOWN",
                json!({"guest": true, "reason": "guest-shutdown"})
            ),
            Some(Happening::Shutdown {
                guest: true,
                reason: "guest-shutdown".into()
            })
        );
        assert_eq!(
            of("VSERPORT_CHANGE", json!({"id": "other", "open": true})),
            None
        );
        assert_eq!(
            of("BLOCK_IO_ERROR", json!({"action": "report", "device": "d"})),
            None
        );
        let failed = json!({"action": "stop", "device": "", "node-name": "disk0", "operation": "write", "reason": "No space left"});
        assert_eq!(
            of("BLOCK_IO_ERROR", failed),
            Some(Happening::IoError {
                what: "write on disk0 failed: No space left".into()
            })
        );
        assert_eq!(of("MIGRATION", json!({"status": "active"})), None);
        assert_eq!(of("RTC_CHANGE", json!({"offset": 1})), None);
    }
}
