//! A UDP relay that can be cut: stands in front of a node for the demo, so that
//! it can show what a lost connection does without root.
//!
//! Prints the address that the node has to advertise, then obeys lines on
//! standard input: `aim HOST:PORT`, `cut`, `restore`. Ends with its input.
#![allow(clippy::print_stdout, reason = "the address is its output")]

use std::io::BufRead;

use anyhow::{Context, Result, bail};
use godwit_tests::relay::Relay;

fn main() -> Result<()> {
    let relay = Relay::start(1)?;
    println!("{}", relay.address());
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((line.trim(), "")) {
            ("aim", daemon) => relay.aim(daemon.trim().parse().context("aim takes HOST:PORT")?),
            ("cut", _) => relay.cut(),
            ("restore", _) => relay.restore(),
            _ => bail!("`{line}` is not one of aim HOST:PORT, cut, restore"),
        }
    }
    Ok(())
}
