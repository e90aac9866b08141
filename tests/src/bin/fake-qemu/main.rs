//! A QEMU that speaks QMP and runs nothing.
//!
//! It takes QEMU's arguments as a node daemon writes them, answers the probe
//! and the lifecycle commands, and costs a megabyte, so that two hundred of it
//! fit where two real ones would. What it cannot do is a migration.
//!
//! Misbehaviour is asked for by the guest's name, up to its first `-`:
//!
//! | name | what it does |
//! |---|---|
//! | `hang-...` | takes the connection and never greets |
//! | `die-...` | prints an error and exits before it greets |
//! | `mute-...` | answers nothing after `cont` |
//! | `flood-...` | sends events after `cont` as fast as they are read |
//! | `crash-...` | aborts after `cont` was answered |
//! | `garbage-...` | sends what is no JSON after `cont` |
//! | `stubborn-...` | ignores `quit` and `system_powerdown` |

mod arguments;
mod machine;
mod qmp;
mod serial;

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;

use arguments::{Arguments, Chardev};
use machine::{Behaviour, Machine};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "qemu-system-x86_64: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let behaviour = Behaviour::of(&arguments.guest);
    if behaviour == Behaviour::Die {
        return Err("-device nonsense: 'nonsense' is not a valid device model name".to_owned());
    }
    let sockets = arguments.chardevs.iter().filter_map(Chardev::path);
    let sockets = sockets.map(ToOwned::to_owned).collect();
    let machine = Arc::new(Machine::new(behaviour, arguments.incoming, sockets));
    for chardev in &arguments.chardevs {
        let silent = matches!(chardev, Chardev::Fd { .. });
        if !silent && !arguments.is_monitor(chardev) {
            serial::serve(chardev)?;
        }
    }
    let monitor = arguments.monitor().ok_or("no QMP monitor was asked for")?;
    match monitor {
        Chardev::Stdio { .. } => {
            qmp::serve(std::io::stdin(), std::io::stdout(), &machine).map(|_| ())
        }
        Chardev::Fd { fd: 0, .. } => accept(&inherited()?, &machine),
        Chardev::Fd { fd, .. } => Err(format!("fd={fd}: only 0 is known here")),
        Chardev::Path { path, .. } => accept(&listen(path)?, &machine),
    }
}

/// The listening socket that the daemon handed over as standard input.
fn inherited() -> Result<UnixListener, String> {
    let fd = std::io::stdin().as_fd().try_clone_to_owned();
    fd.map(UnixListener::from)
        .map_err(|e| format!("standard input: {e}"))
}

fn listen(path: &str) -> Result<UnixListener, String> {
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).map_err(|e| format!("{path}: {e}"))
}

/// One monitor connection after the other, as QEMU does.
fn accept(listener: &UnixListener, machine: &Arc<Machine>) -> Result<(), String> {
    loop {
        let (socket, _) = listener.accept().map_err(|e| format!("accept: {e}"))?;
        let reader = socket.try_clone().map_err(|e| e.to_string())?;
        if !qmp::serve(reader, socket, machine)? {
            return Ok(());
        }
    }
}
