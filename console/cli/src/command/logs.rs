//! `godwit vm logs`: the end of a log, and what comes after it.
//!
//! A guest's output is followed through its console, which brings every byte
//! when it is written; after a lost connection or a move it goes on where it
//! was. QEMU's own few lines have no such stream; they are read
//! anew once a second while somebody follows them.

use std::time::Duration;

use godwit_shared::model::codes;
use tokio::time::sleep;

use super::console::write;
use super::serial::{Again, SerialLine};
use super::splice::Seen;
use crate::args::{LogsArgs, VmRef};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::output::Ui;
use crate::progress::ctrl_c;

/// How often QEMU's log is read anew.
const REREAD: Duration = Duration::from_secs(1);

/// Lines of QEMU's log that are read anew.
const REREAD_LINES: u32 = 1000;

pub(super) async fn run(args: LogsArgs, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let kind = if args.qemu { "qemu" } else { "serial" };
    if !args.follow {
        let text = client.text(&path(&args.vm, kind, args.lines)).await?;
        if text.is_empty() {
            ui.note("the log is empty");
        }
        return ui.print(&text);
    }
    // Something of the log is needed to know where its end is, even if nothing
    // of it shall be printed.
    let mut interrupt = ctrl_c()?;
    let lines = args.lines.max(1);
    let text = client.text(&path(&args.vm, kind, lines)).await?;
    let mut seen = Seen::default();
    seen.add(text.as_bytes());
    if args.lines > 0 {
        write(text.as_bytes())?;
    }
    let following = async {
        if args.qemu {
            reread(&args.vm, client, seen).await
        } else {
            follow(&args.vm, client, ui, seen).await
        }
    };
    tokio::select! {
        end = following => end,
        _ = interrupt.recv() => Err(Failure::silent(Exit::Interrupted)),
    }
}

fn path(vm: &VmRef, kind: &str, lines: u32) -> String {
    format!("/vms/{vm}/logs?kind={kind}&lines={lines}")
}

/// Prints what the guest writes, until the VM is off.
async fn follow(vm: &VmRef, client: &Client, ui: &Ui, seen: Seen) -> Result<(), Failure> {
    let mut line = match SerialLine::attach_behind(client, vm, seen).await {
        // It has no line now (the VM is off, say), and the log is all there is.
        Err(failure) if failure.code() == Some(codes::STATE_CONFLICT) => {
            ui.note(failure.message().unwrap_or_default());
            return Ok(());
        }
        line => line?,
    };
    loop {
        match line.next().await {
            Ok(bytes) => write(&bytes)?,
            Err(reason) => {
                if let Again::Off(why) = line.again(reason).await? {
                    ui.note(&format!("{vm} {why}"));
                    return Ok(());
                }
            }
        }
    }
}

/// Prints what is new in QEMU's log, once a second.
async fn reread(vm: &VmRef, client: &Client, mut seen: Seen) -> Result<(), Failure> {
    loop {
        sleep(REREAD).await;
        match client.text(&path(vm, "qemu", REREAD_LINES)).await {
            Ok(text) => write(seen.news(text.as_bytes()))?,
            Err(failure) if failure.is_unreachable() => {}
            Err(failure) => return Err(failure),
        }
    }
}
