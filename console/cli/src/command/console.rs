//! `godwit vm console`: a terminal, or a pipe, on a guest's serial line.
//!
//! The line itself, with its way back after a move, is [`SerialLine`].
//!
//! The terminal is raw while attached, so that every key reaches the guest; it
//! is put back on every way out ([`RawTerminal`]), signals included.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use godwit_shared::model::Problem;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::serial::{Again, SerialLine};
use crate::args::VmRef;
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::output::Ui;

/// Ctrl-]: leaves.
const ESCAPE: u8 = 0x1d;

/// Why copying stopped.
enum End {
    /// The operator left.
    Left,
    /// A signal.
    Killed,
    /// The line was cut, for a reason where one was given.
    Closed(Option<Problem>),
}

pub(super) async fn run(
    vm: &VmRef,
    scrollback: u32,
    client: &Client,
    ui: &Ui,
) -> Result<(), Failure> {
    let mut line = SerialLine::attach(client, vm, scrollback).await?;
    let stdin_is_terminal = io::stdin().is_terminal();
    if stdin_is_terminal {
        ui.note(&format!("the serial console of {vm}; leave with Ctrl-]"));
    }
    let terminal = stdin_is_terminal.then(RawTerminal::enter).transpose()?;
    let mut input = read_stdin();
    loop {
        match copy(&mut line, &mut input).await? {
            End::Left => {
                line.close().await;
                drop(terminal);
                if stdin_is_terminal {
                    ui.note(&format!("\nleft the console of {vm}; it goes on"));
                }
                return Ok(());
            }
            End::Killed => return Err(Failure::silent(Exit::Interrupted)),
            End::Closed(reason) => {
                if let Again::Off(why) = line.again(reason).await? {
                    drop(terminal);
                    ui.note(&format!("\n{vm} {why}"));
                    return Ok(());
                }
            }
        }
    }
}

/// Copies both ways until one side ends it.
async fn copy(
    line: &mut SerialLine<'_>,
    input: &mut mpsc::Receiver<Vec<u8>>,
) -> Result<End, Failure> {
    let mut term = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut open = true;
    loop {
        tokio::select! {
            output = line.next() => match output {
                Ok(bytes) => write(&bytes)?,
                Err(reason) => return Ok(End::Closed(reason)),
            },
            typed = input.recv(), if open => match typed {
                None => open = false,
                Some(bytes) => {
                    let (before, left) = up_to_escape(bytes);
                    if !before.is_empty() && !line.send(before).await {
                        return Ok(End::Closed(None));
                    }
                    if left {
                        return Ok(End::Left);
                    }
                }
            },
            _ = term.recv() => return Ok(End::Killed),
            _ = hangup.recv() => return Ok(End::Killed),
            _ = interrupt.recv() => return Ok(End::Killed),
        }
    }
}

/// What comes before the escape, and whether it is there.
fn up_to_escape(mut bytes: Vec<u8>) -> (Vec<u8>, bool) {
    match bytes.iter().position(|byte| *byte == ESCAPE) {
        Some(at) => {
            bytes.truncate(at);
            (bytes, true)
        }
        None => (bytes, false),
    }
}

/// Guest bytes to stdout, as they are.
pub(super) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}

/// Reads stdin on a thread of its own: such a read cannot be given up, and the
/// thread ends with the process.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (to, from) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => {
                    if to.blocking_send(buffer[..read].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    from
}

/// The terminal in raw mode; as it was before when this is dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_ends_what_is_sent() {
        assert_eq!(up_to_escape(b"ab\x1dcd".to_vec()), (b"ab".to_vec(), true));
        assert_eq!(up_to_escape(b"ab".to_vec()), (b"ab".to_vec(), false));
        assert_eq!(up_to_escape(b"\x1d".to_vec()), (Vec::new(), true));
    }
}
