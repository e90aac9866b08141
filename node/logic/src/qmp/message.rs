//! What QEMU says: a greeting, replies and events.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The number by which a reply is matched to its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandId(pub u64);

/// One message from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first message of a session.
    Greeting(Greeting),
    /// The answer to a command.
    Reply(Reply),
    /// Something happened.
    Event(Event),
    /// Something that this release of Godwit does not know: kept, never an error.
    Unknown(Value),
}

/// What QEMU says of itself when a session begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Greeting {
    /// Major, minor and micro release.
    pub version: (u64, u64, u64),
    /// The packager's addition, for example `Debian 1:10.0.2+ds-2`.
    pub package: String,
    /// Capabilities that can be negotiated, for example `oob`.
    pub capabilities: Vec<String>,
}

impl Greeting {
    /// Whether commands may overtake others (`exec-oob`).
    pub fn offers_oob(&self) -> bool {
        self.capabilities.iter().any(|name| name == "oob")
    }

    /// The release as `10.0.2`.
    pub fn release(&self) -> String {
        let (major, minor, micro) = self.version;
        format!("{major}.{minor}.{micro}")
    }
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Of which command; none when QEMU could not even read the command.
    pub id: Option<CommandId>,
    /// What it returned, or why it was refused.
    pub outcome: Result<Value, QmpError>,
}

/// Why QEMU refused a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("QEMU refused it ({class}): {desc}")]
pub struct QmpError {
    /// The error's class, for example `GenericError` or `CommandNotFound`.
    pub class: String,
    /// QEMU's sentence for people.
    pub desc: String,
}

/// Something that happened in QEMU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The event's name, for example `STOP`.
    pub name: String,
    /// Its data; null when it has none.
    pub data: Value,
    /// When, by the host's clock, in microseconds since the Unix epoch; 0 when
    /// QEMU could not tell.
    pub timestamp: u64,
}

impl Event {
    /// A text field of the data.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.data.get(field)?.as_str()
    }

    /// A yes-or-no field of the data.
    pub fn flag(&self, field: &str) -> Option<bool> {
        self.data.get(field)?.as_bool()
    }

    /// Whether losing this event would lose track of the domain: lifecycle,
    /// migration, jobs and devices. Everything else is chatter, which may be
    /// dropped when a QEMU sends more of it than can be read.
    pub fn matters(&self) -> bool {
        const WHOLE: [&str; 18] = [
            "STOP",
            "RESUME",
            "SHUTDOWN",
            "RESET",
            "POWERDOWN",
            "SUSPEND",
            "SUSPEND_DISK",
            "WAKEUP",
            "WATCHDOG",
            "GUEST_PANICKED",
            "GUEST_CRASHLOADED",
            "BLOCK_IO_ERROR",
            "VSERPORT_CHANGE",
            "MEMORY_FAILURE",
            "MEMORY_DEVICE_SIZE_CHANGE",
            "DEVICE_DELETED",
            "DEVICE_UNPLUG_GUEST_ERROR",
            "COLO_EXIT",
        ];
        const BEGINNINGS: [&str; 4] = ["MIGRATION", "JOB_", "BLOCK_JOB_", "BLOCK_EXPORT_"];
        WHOLE.contains(&self.name.as_str()) || BEGINNINGS.iter().any(|b| self.name.starts_with(b))
    }
}

impl Message {
    /// Sorts a JSON object into what it is.
    pub(super) fn sort(mut object: Map<String, Value>) -> Self {
        if let Some(Value::Object(greeting)) = object.get("QMP") {
            return Self::Greeting(read_greeting(greeting));
        }
        if let Some(Value::String(name)) = object.get("event") {
            let name = name.clone();
            return Self::Event(Event {
                name,
                timestamp: object.get("timestamp").map_or(0, read_timestamp),
                data: object.remove("data").unwrap_or_default(),
            });
        }
        let id = object.get("id").and_then(Value::as_u64).map(CommandId);
        if let Some(value) = object.remove("return") {
            return Self::Reply(Reply {
                id,
                outcome: Ok(value),
            });
        }
        match object.get("error") {
            Some(error) => Self::Reply(Reply {
                id,
                outcome: Err(read_error(error)),
            }),
            None => Self::Unknown(Value::Object(object)),
        }
    }
}

fn read_greeting(greeting: &Map<String, Value>) -> Greeting {
    let version = greeting.get("version");
    let number = |field: &str| {
        version
            .and_then(|v| v.get("qemu")?.get(field)?.as_u64())
            .unwrap_or(0)
    };
    let package = version.and_then(|v| v.get("package")?.as_str());
    let capabilities = greeting.get("capabilities").and_then(Value::as_array);
    Greeting {
        version: (number("major"), number("minor"), number("micro")),
        package: package.unwrap_or_default().to_owned(),
        capabilities: capabilities
            .into_iter()
            .flatten()
            .filter_map(|c| c.as_str().map(str::to_owned))
            .collect(),
    }
}

/// Seconds and microseconds; QEMU puts -1 where it has no clock.
fn read_timestamp(stamp: &Value) -> u64 {
    let part = |field: &str| stamp.get(field).and_then(Value::as_u64);
    match (part("seconds"), part("microseconds")) {
        (Some(seconds), Some(micros)) => seconds.saturating_mul(1_000_000).saturating_add(micros),
        _ => 0,
    }
}

fn read_error(error: &Value) -> QmpError {
    let text = |field: &str| error.get(field).and_then(Value::as_str);
    QmpError {
        class: text("class").unwrap_or("GenericError").to_owned(),
        desc: text("desc").map_or_else(|| error.to_string(), str::to_owned),
    }
}
