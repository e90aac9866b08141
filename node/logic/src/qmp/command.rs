//! Commands to QEMU: a name and its arguments.

use serde_json::{Value, json};

use super::message::CommandId;

/// One command.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The command's name, for example `query-status`.
    pub name: &'static str,
    /// Its arguments: an object, or null for none.
    pub arguments: Value,
}

impl Command {
    /// A command with arguments.
    pub const fn new(name: &'static str, arguments: Value) -> Self {
        Self { name, arguments }
    }

    /// A command without arguments.
    pub const fn plain(name: &'static str) -> Self {
        Self::new(name, Value::Null)
    }

    /// Ends the negotiation; without it QEMU takes no other command. `oob` asks
    /// for commands that overtake others.
    pub fn capabilities(oob: bool) -> Self {
        if oob {
            Self::new("qmp_capabilities", json!({ "enable": ["oob"] }))
        } else {
            Self::plain("qmp_capabilities")
        }
    }

    /// Whether QEMU can carry it out while its main loop hangs (`allow-oob` in
    /// its schema). In a broken post-copy it does: it waits for a page that only
    /// these commands can bring.
    pub fn may_overtake(&self) -> bool {
        matches!(self.name, "migrate-recover" | "migrate-pause")
    }

    /// Run the CPUs.
    pub const fn cont() -> Self {
        Self::plain("cont")
    }

    /// Stop the CPUs.
    pub const fn stop() -> Self {
        Self::plain("stop")
    }

    /// End QEMU.
    pub const fn quit() -> Self {
        Self::plain("quit")
    }

    /// Pull the reset line.
    pub const fn system_reset() -> Self {
        Self::plain("system_reset")
    }

    /// Press the power button (ACPI, or what the machine has).
    pub const fn system_powerdown() -> Self {
        Self::plain("system_powerdown")
    }

    /// Whether the CPUs run, and why not.
    pub const fn query_status() -> Self {
        Self::plain("query-status")
    }

    /// The character devices, and which of them the guest has open.
    pub const fn query_chardev() -> Self {
        Self::plain("query-chardev")
    }

    /// Where a migration is.
    pub const fn query_migrate() -> Self {
        Self::plain("query-migrate")
    }

    /// Give a migration up.
    pub const fn migrate_cancel() -> Self {
        Self::plain("migrate_cancel")
    }

    /// The line that goes to QEMU, its end included. `oob` says whether the
    /// session may send commands out of band.
    pub fn line(&self, id: CommandId, oob: bool) -> Vec<u8> {
        let verb = if oob && self.may_overtake() {
            "exec-oob"
        } else {
            "execute"
        };
        let message = if self.arguments.is_null() {
            json!({ verb: self.name, "id": id })
        } else {
            json!({ verb: self.name, "arguments": self.arguments, "id": id })
        };
        let mut line = message.to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_command_is_one_line() {
        let line = |c: Command| String::from_utf8(c.line(CommandId(4), true)).unwrap();
        assert_eq!(line(Command::cont()), "{\"execute\":\"cont\",\"id\":4}\n");
        assert_eq!(
            line(Command::new("x", json!({"text": "a\nb"}))),
            "{\"execute\":\"x\",\"arguments\":{\"text\":\"a\\nb\"},\"id\":4}\n"
        );
    }

    #[test]
    fn what_repairs_a_post_copy_overtakes() {
        let line = |oob| {
            let line = Command::plain("migrate-pause").line(CommandId(4), oob);
            String::from_utf8(line).unwrap()
        };
        assert_eq!(line(true), "{\"exec-oob\":\"migrate-pause\",\"id\":4}\n");
        assert_eq!(line(false), "{\"execute\":\"migrate-pause\",\"id\":4}\n");
    }
}
