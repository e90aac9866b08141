//! What the machine wants done.

use godwit_shared::model::{LifecycleCommand, Millis, Problem};

/// One thing to do. Effects of one step are performed in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write the record. When that fails, drop the rest of this step's effects
    /// and feed `Event::JournalFailed`.
    Journal,
    /// Feed `Event::Written`: the journal stands, and nothing else is to do.
    Written(Request),
    /// Start QEMU; comes back as `Spawned` or `SpawnFailed`.
    Spawn,
    /// Ask something of QEMU; comes back as `Replied`.
    Do(Action),
    /// Ask something of the guest's agent; comes back as `AgentReplied`.
    AskAgent(AgentAction),
    /// Read QEMU's state anew; comes back as `Status`.
    Resync,
    /// SIGKILL; QEMU's end comes back as `Exited`.
    Kill,
    /// Feed `Expired` after that time, unless disarmed or armed anew.
    Arm(Timer, Millis),
    /// Forget that timer.
    Disarm(Timer),
    /// QEMU is gone: close its sockets, remove its runtime files, give back
    /// what it had reserved.
    CleanUp,
    /// Resolve everybody who made that request.
    Answer(Request, Result<(), Problem>),
    /// Remove every file of the domain, let the supervisor forget it, then
    /// resolve that request. The actor ends.
    Forget(Request),
}

/// QMP commands of the lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// `cont`.
    Cont,
    /// `stop`.
    Stop,
    /// `system_reset`.
    Reset,
    /// `system_powerdown`.
    Powerdown,
    /// `quit`.
    Quit,
    /// `migrate_cancel`.
    CancelMigration,
}

/// Requests to the guest's agent (`guest-shutdown`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AgentAction {
    /// Mode `powerdown`.
    Shutdown,
    /// Mode `reboot`.
    Reboot,
}

/// Timers, one of each kind at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timer {
    /// QEMU has to greet.
    Greeting,
    /// QEMU has to confirm the request in hand.
    Confirm,
    /// The guest has to power off.
    Guest,
    /// QEMU has to end after `quit`.
    Quit,
    /// QEMU has to end after SIGKILL.
    Kill,
}

impl Timer {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Greeting,
        Self::Confirm,
        Self::Guest,
        Self::Quit,
        Self::Kill,
    ];

    /// How long it runs.
    pub const fn length(self) -> Millis {
        match self {
            Self::Greeting => Millis(30_000),
            Self::Confirm | Self::Kill => Millis(10_000),
            Self::Guest => Millis(90_000),
            Self::Quit => Millis(5_000),
        }
    }
}

/// Requests that are answered later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// A lifecycle command.
    Command(LifecycleCommand),
    /// Become the receiving side of a migration.
    Receive,
    /// Run what was received.
    Activate,
    /// Throw away what was received.
    Discard,
    /// The migration ended here: the domain stays.
    Stay,
    /// The migration ended there: the domain goes.
    Retire,
}
