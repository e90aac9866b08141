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
use godwit_tests::bench;
use serde_json::{Value, json};

const HELP: &str = "\
Measures whether reported blackouts are what a guest's peers see. Needs root.

Usage: bench-blackout [--json] [--runs N]

  --json     one JSON object on standard output
  --runs N   runs of each side that medians are taken of [default: 9]
";

fn main() -> ExitCode {
    let args = std::env::args().skip(1).collect();
    bench::program("bench-blackout", network::build, async || run(args).await)
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
