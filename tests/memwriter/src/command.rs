//! Commands from the console, a line each.

use std::io::{self, BufRead};
use std::process::Command as Process;
use std::sync::mpsc::Sender;

use crate::console;
use crate::options::{self, BytesPerSec, Privileges};

/// What the writer is told to do between two batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Check every page now.
    Check,
    /// Check every page and end.
    ExitCheck,
    /// Change the rate.
    Rate(BytesPerSec),
    /// Damage a page on purpose.
    Corrupt(usize),
}

/// What becomes of the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Crash,
    Poweroff,
    Reboot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Order(Order),
    Fate(Fate),
}

/// Reads commands until the console ends.
pub(crate) fn serve(orders: &Sender<Order>, privileges: Privileges) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        match parse(line) {
            Some(Command::Order(order)) => {
                if orders.send(order).is_err() {
                    return;
                }
            }
            Some(Command::Fate(fate)) => meet(fate, privileges),
            None => console::line(&format!("unknown command: {line}")),
        }
    }
}

fn parse(line: &str) -> Option<Command> {
    let mut words = line.split_whitespace();
    let (name, argument) = (words.next()?, words.next());
    if words.next().is_some() {
        return None;
    }
    Some(match (name, argument) {
        ("check", None) => Command::Order(Order::Check),
        ("exit-check", None) => Command::Order(Order::ExitCheck),
        ("rate", Some(size)) => Command::Order(Order::Rate(BytesPerSec(options::size(size)?.0))),
        ("corrupt", Some(place)) => Command::Order(Order::Corrupt(place.parse().ok()?)),
        ("crash", None) => Command::Fate(Fate::Crash),
        ("poweroff", None) => Command::Fate(Fate::Poweroff),
        ("reboot", None) => Command::Fate(Fate::Reboot),
        _ => return None,
    })
}

/// Ends the machine, where that machine is a test guest.
fn meet(fate: Fate, privileges: Privileges) {
    if privileges == Privileges::Program {
        console::line("only as PID 1's child in a guest (--guest)");
        return;
    }
    let outcome = match fate {
        Fate::Crash => std::fs::write("/proc/sysrq-trigger", "c"),
        Fate::Poweroff => Process::new("poweroff").arg("-f").status().map(drop),
        Fate::Reboot => Process::new("reboot").arg("-f").status().map(drop),
    };
    if let Err(error) = outcome {
        console::line(&format!("{fate:?} failed: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_understood() {
        let order = |order| Some(Command::Order(order));
        let fate = |fate| Some(Command::Fate(fate));
        assert_eq!(parse("check"), order(Order::Check));
        assert_eq!(parse("exit-check"), order(Order::ExitCheck));
        assert_eq!(parse("rate 2M"), order(Order::Rate(BytesPerSec(2 << 20))));
        assert_eq!(parse("corrupt 12"), order(Order::Corrupt(12)));
        assert_eq!(parse("crash"), fate(Fate::Crash));
        assert_eq!(parse("poweroff"), fate(Fate::Poweroff));
        assert_eq!(parse("reboot"), fate(Fate::Reboot));
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            "",
            "Crash",
            "check now",
            "rate",
            "rate x",
            "corrupt -1",
            "corrupt 1 2",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
