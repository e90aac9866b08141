//! Runs inside Godwit's test guests: counts on the console, dirties memory at a
//! rate, and checks what it wrote.
//!
//! A migration is right when three things hold that only the guest can see: no
//! count is lost, no page is lost, and no page is older than its last write.
//! Two threads share the work so that neither hides the other's trouble: the
//! counter ([`counter`]) prints a line every tick, the writer ([`writer`])
//! checks and rewrites pages; a third reads commands from the console, each disk
//! may have one of its own ([`disk`]), and one answers datagrams ([`echo`]).
//!
//! Every line on the console starts with its kind: `count`, `gap`, `filled`,
//! `check`, `BADPAGE`, `BADTABLE`; `scripts/guest-image --help` lists them.
//!
//! Invariants: one `write` call for each line, so that lines never mix; every
//! page is checked before it is rewritten, so that damage cannot be painted
//! over; a page that was reported is rewritten and not reported again.

mod command;
mod console;
mod counter;
mod disk;
mod echo;
mod memory;
mod options;
mod page;
mod writer;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use crate::memory::Tally;
use crate::options::Options;

/// A command line that says nothing sensible.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            console::line(&format!("memwriter: {error}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let tally = Arc::new(Tally::default());
    let (orders, inbox) = mpsc::channel();
    let privileges = options.privileges;
    thread::spawn(move || command::serve(&orders, privileges));
    if let Some(port) = options.echo {
        thread::spawn(move || echo::serve(port));
    }
    let (tick, counted) = (options.tick, Arc::clone(&tally));
    thread::spawn(move || counter::run(tick, &counted));
    if options.disks {
        disk::run_all();
    }
    writer::run(&options, &tally, &inbox)
}
