//! The machine that there is not: its run state and its events.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Events that wait for a monitor which does not read. QEMU throttles its own.
const PENDING: usize = 4_096;

/// How it misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// It does not.
    Good,
    /// Never greets.
    Hang,
    /// Ends with an error before it greets.
    Die,
    /// Answers nothing after `cont`.
    Mute,
    /// Sends events after `cont` without end.
    Flood,
    /// Aborts after `cont`.
    Crash,
    /// Sends what is no JSON after `cont`.
    Garbage,
    /// Ignores `quit` and `system_powerdown`.
    Stubborn,
}

impl Behaviour {
    /// By the guest's name up to its first `-`.
    pub(crate) fn of(guest: &str) -> Self {
        match guest.split('-').next().unwrap_or_default() {
            "hang" => Self::Hang,
            "die" => Self::Die,
            "mute" => Self::Mute,
            "flood" => Self::Flood,
            "crash" => Self::Crash,
            "garbage" => Self::Garbage,
            "stubborn" => Self::Stubborn,
            _ => Self::Good,
        }
    }
}

/// QMP's `RunState`, the ones that occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    Prelaunch,
    Inmigrate,
    Running,
    Paused,
    Shutdown,
}

impl Run {
    fn as_str(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Inmigrate => "inmigrate",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) behaviour: Behaviour,
    run: Mutex<Run>,
    sockets: Vec<String>,
    ended: AtomicBool,
    monitor: Mutex<Option<SyncSender<String>>>,
}

impl Machine {
    pub(crate) fn new(behaviour: Behaviour, incoming: bool, sockets: Vec<String>) -> Self {
        let run = if incoming {
            Run::Inmigrate
        } else {
            Run::Prelaunch
        };
        Self {
            behaviour,
            run: Mutex::new(run),
            sockets,
            ended: AtomicBool::new(false),
            monitor: Mutex::new(None),
        }
    }

    /// A monitor came: what it shall be sent.
    pub(crate) fn monitor_came(&self) -> Receiver<String> {
        let (to, from) = sync_channel(PENDING);
        *lock(&self.monitor) = Some(to);
        from
    }

    /// The monitor left.
    pub(crate) fn monitor_left(&self) {
        *lock(&self.monitor) = None;
    }

    /// Sends a line to the monitor. False when there is none any more.
    pub(crate) fn send(&self, line: String) -> bool {
        let Some(monitor) = lock(&self.monitor).clone() else {
            return false;
        };
        monitor.send(line).is_ok()
    }

    /// Sends an event; drops it when the monitor does not read.
    pub(crate) fn event(&self, name: &str, data: Value) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut event = json!({
            "timestamp": { "seconds": now.as_secs(), "microseconds": now.subsec_micros() },
            "event": name,
        });
        if !data.is_null() {
            event["data"] = data;
        }
        let monitor = lock(&self.monitor).clone();
        monitor.is_some_and(|monitor| {
            !matches!(
                monitor.try_send(event.to_string()),
                Err(TrySendError::Disconnected(_))
            )
        })
    }

    /// `query-status`.
    pub(crate) fn status(&self) -> Value {
        let run = *lock(&self.run);
        json!({ "status": run.as_str(), "running": run == Run::Running })
    }

    /// Whether its CPUs were told to run.
    pub(crate) fn has_run(&self) -> bool {
        *lock(&self.run) == Run::Running
    }

    /// Goes to a state, and says so when it is another one.
    pub(crate) fn go(&self, to: Run, event: &str) {
        let from = std::mem::replace(&mut *lock(&self.run), to);
        if from != to {
            self.event(event, Value::Null);
        }
    }

    /// The guest powered itself off: QEMU stays, by `-no-shutdown`.
    pub(crate) fn guest_powered_off(&self) {
        self.event("POWERDOWN", Value::Null);
        let reason = json!({ "guest": true, "reason": "guest-shutdown" });
        self.event("SHUTDOWN", reason);
        self.go(Run::Shutdown, "STOP");
    }

    /// Whether it was told to quit.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// What QEMU does at its end: its sockets are gone with it.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
