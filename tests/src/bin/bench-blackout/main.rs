//! Whether the blackout that Godwit reports is the one that somebody outside
//! sees: `scripts/bench-blackout`.
//!
//! A guest answers a datagram every millisecond, over a bridge that both ends of
//! its move plug it into. In each run the sides take turns: a move by Godwit,
//! one between two bare QEMUs, and a guest that is only stopped and run on. What
//! the first sees beyond its report and the second does not, Godwit leaves out;
//! what both see and the third does not is the guest's own warm-up in a new QEMU.

mod bare;
mod cases;
mod managed;
mod network;
mod probe;
mod sample;
mod watch;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
Measures whether reported blackouts are what a guest's peers see. Needs root.

Usage: bench-blackout [--json] [--runs N]

  --json     one JSON object on standard output
  --runs N   runs of each side that medians are taken of [default: 9]
";

fn main() -> ExitCode {
    let args = std::env::args().skip(1).collect();
    let done = network::build().and_then(|()| {
        // Its threads begin in this thread's namespace, and so do the daemons.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        runtime.block_on(until_stopped(args))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "bench-blackout: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A signal drops everything, and with it every process and the network.
async fn until_stopped(args: Vec<String>) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = run(args) => done,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

async fn run(args: Vec<String>) -> Result<()> {
    let (mut json, mut runs) = (false, 9);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = true,
            "--runs" => {
                let value = args.next().and_then(|value| value.parse().ok());
                runs = value.context("--runs takes a number")?;
            }
            "-h" | "--help" => return Ok(write!(std::io::stdout(), "{HELP}")?),
            other => bail!("`{other}` is not known; see --help"),
        }
    }
    let mut found = cases::run(runs).await?.to_json();
    if json {
        found["runs"] = json!(runs);
        writeln!(std::io::stdout(), "{found}")?;
    } else {
        show(&found)?;
    }
    Ok(())
}

fn show(found: &Value) -> Result<()> {
    let mut out = std::io::stdout();
    let none = serde_json::Map::new();
    for (side, numbers) in found["sides"].as_object().unwrap_or(&none) {
        writeln!(out, "{side}")?;
        for (key, value) in numbers.as_object().unwrap_or(&none) {
            writeln!(out, "  {key:30} {value}")?;
        }
    }
    for key in ["agreement_ms", "stop_cont_agreement_ms"] {
        writeln!(out, "{key:32} {}", found[key])?;
    }
    Ok(())
}
