//! Answers that every domain needs: `query-status`, `query-chardev`,
//! `query-migrate`.

use serde_json::Value;

/// QEMU's run state, as far as a decision hangs on it (QAPI `RunState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunStatus {
    /// The CPUs run.
    Running,
    /// The guest suspended itself to RAM; it wakes by itself.
    Suspended,
    /// The CPUs stand still and nothing more is known.
    Paused,
    /// The CPUs have not run since QEMU's start or a reset (`-S`).
    Prelaunch,
    /// Waits for, or receives, a migration.
    InMigrate,
    /// The rest of an outgoing migration is being sent.
    FinishMigrate,
    /// Everything was sent to a migration's target.
    PostMigrate,
    /// The guest powered off (`-no-shutdown`).
    Shutdown,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// A disk failed.
    IoError,
    /// QEMU cannot go on with this guest.
    InternalError,
    /// The watchdog's action stopped the CPUs.
    Watchdog,
}

impl RunStatus {
    /// Reads the answer to `query-status`. A state of a later QEMU counts as
    /// running or paused, as its `running` says.
    pub fn read(answer: &Value) -> Option<Self> {
        let running = answer.get("running")?.as_bool()?;
        let status = answer.get("status")?.as_str()?;
        Some(match status {
            "running" => Self::Running,
            "suspended" => Self::Suspended,
            "prelaunch" => Self::Prelaunch,
            "inmigrate" => Self::InMigrate,
            "finish-migrate" => Self::FinishMigrate,
            "postmigrate" => Self::PostMigrate,
            "shutdown" => Self::Shutdown,
            "guest-panicked" => Self::GuestPanicked,
            "io-error" => Self::IoError,
            "internal-error" => Self::InternalError,
            "watchdog" => Self::Watchdog,
            _ if running => Self::Running,
            _ => Self::Paused,
        })
    }
}

/// Whether the guest has the character device `label` open; none when there is
/// no such device.
pub fn frontend_open(answer: &Value, label: &str) -> Option<bool> {
    let devices = answer.as_array()?;
    let device = devices
        .iter()
        .find(|device| device.get("label").and_then(Value::as_str) == Some(label))?;
    device.get("frontend-open")?.as_bool()
}

/// Whether `query-migrate` tells of a migration that is not over.
pub fn migration_active(answer: &Value) -> bool {
    let status = answer.get("status").and_then(Value::as_str);
    !matches!(
        status,
        None | Some("none" | "completed" | "failed" | "cancelled")
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn run_states_are_read_and_new_ones_survive() {
        let read = |status: &str, running: bool| {
            RunStatus::read(&json!({"status": status, "running": running, "singlestep": false}))
        };
        assert_eq!(read("running", true), Some(RunStatus::Running));
        assert_eq!(read("shutdown", false), Some(RunStatus::Shutdown));
        assert_eq!(read("colo", false), Some(RunStatus::Paused));
        assert_eq!(read("turbo", true), Some(RunStatus::Running));
        assert_eq!(RunStatus::read(&json!({"status": 1})), None);
        assert_eq!(RunStatus::read(&json!([])), None);
    }

    #[test]
    fn the_agents_channel_is_found() {
        let answer = json!([
            {"label": "qmp", "filename": "unix", "frontend-open": true},
            {"label": "agent0", "filename": "unix", "frontend-open": false},
        ]);
        assert_eq!(frontend_open(&answer, "agent0"), Some(false));
        assert_eq!(frontend_open(&answer, "other"), None);
    }

    #[test]
    fn only_a_migration_in_hand_is_active() {
        assert!(!migration_active(&json!({})));
        assert!(!migration_active(&json!({"status": "cancelled"})));
        assert!(migration_active(&json!({"status": "pre-switchover"})));
        assert!(migration_active(
            &json!({"status": "postcopy-recover-setup"})
        ));
    }
}
