//! The daemons: what `node/daemon` does with the effects of the production state
//! machines, effect for effect.
//!
//! | here | there |
//! |---|---|
//! | [`outgoing`] | `migration/outgoing.rs`, the commands of `migration/qemu.rs` |
//! | [`incoming`] | `migration/incoming.rs`, `supervisor/incoming.rs` |
//! | [`manager`] | `migration/manager.rs`, `tombstones.rs`, `peer.rs` |
//! | [`domain`] | `domain/{handlers,perform,takeover}.rs`, `journal.rs` |
//!
//! What those await runs beside the actor here as well: a task is one step of
//! the model, or several where the daemon can be killed in between. What they do
//! without awaiting is done in the step that asks for it.

pub(crate) mod domain;
pub(crate) mod incoming;
pub(crate) mod manager;
pub(crate) mod outgoing;

/// Sets of a source's timers, a bit for each.
pub(crate) mod timers {
    use godwit_node_logic::handoff::Timer;
    use godwit_shared::model::MigrationPhase;

    const ALL: [Timer; 8] = [
        Timer::Prepare,
        Timer::Activate,
        Timer::Ask,
        Timer::Cancel,
        Timer::Switchover,
        Timer::Doubt,
        Timer::Limit,
        Timer::Reconnect,
    ];

    const fn bit(timer: Timer) -> u8 {
        1 << timer as u8
    }

    /// The set with one more.
    pub(crate) const fn with(set: u8, timer: Timer) -> u8 {
        set | bit(timer)
    }

    /// The set with one less.
    pub(crate) const fn without(set: u8, timer: Timer) -> u8 {
        set & !bit(timer)
    }

    /// Those in the set.
    pub(crate) fn armed(set: u8) -> impl Iterator<Item = Timer> {
        ALL.into_iter().filter(move |timer| set & bit(*timer) != 0)
    }

    /// The set without those that no phase from this one on listens to. (They
    /// still run, to no effect.)
    pub(crate) const fn relevant(set: u8, phase: MigrationPhase) -> u8 {
        let asks = bit(Timer::Ask) | bit(Timer::Doubt) | bit(Timer::Reconnect);
        let listens = match phase {
            MigrationPhase::Queued | MigrationPhase::Preparing => u8::MAX,
            MigrationPhase::Disks | MigrationPhase::Precopy | MigrationPhase::Switchover => {
                !(bit(Timer::Prepare))
            }
            MigrationPhase::Handoff => bit(Timer::Activate) | asks,
            MigrationPhase::InDoubt => asks,
            MigrationPhase::Postcopy | MigrationPhase::PostcopyPaused => {
                bit(Timer::Doubt) | bit(Timer::Reconnect)
            }
            MigrationPhase::Cancelling
            | MigrationPhase::Completed
            | MigrationPhase::Failed
            | MigrationPhase::Cancelled => bit(Timer::Cancel) | asks,
        };
        set & listens
    }
}

use godwit_shared::model::{Problem, codes};

/// A file could not be written.
pub(crate) fn unwritten() -> Problem {
    Problem::new(codes::HOST_IO, "")
}

/// The connection ended.
pub(crate) fn lost() -> Problem {
    Problem::new(codes::CONNECTION_LOST, "")
}

/// A QEMU ended.
pub(crate) fn gone() -> Problem {
    Problem::new(codes::QEMU_GONE, "")
}

/// QEMU refused a command.
pub(crate) fn refused() -> Problem {
    Problem::new(codes::QEMU_COMMAND, "")
}
