//! What moving a guest costs: `scripts/bench-migrate`.
//!
//! Two network namespaces on one machine, joined by a veth pair; in each run the
//! sides take turns: bare QEMU over TCP, bare QEMU with its own TLS on two
//! multifd channels, and Godwit with real daemons. Every guest stays alive and
//! goes back and forth. Medians are told, and the ratios that have targets.

mod bare;
mod cases;
mod corpus;
mod lab;
mod managed;
mod sample;
mod tls;
mod warm;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use godwit_tests::{bench, netns};
use serde_json::{Value, json};

use cases::Wish;
use lab::Lab;

const HELP: &str = "\
Measures migrations: Godwit beside bare QEMU, over a link between two network
namespaces. Needs root, two cores and 12 GiB of free memory.

Usage: bench-migrate [--json] [--runs N] [--only CASE]... [--alone]
                     [--channels N]

  --json           one JSON object on standard output
  --runs N         runs of each side that medians are taken of [default: 7]
  --only CASE      only cases with this in their name; may be given again
  --alone          only Godwit's side
  --channels N     multifd channels of Godwit's moves [default: its own]
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [touch, mib] = args.as_slice()
        && touch == warm::TOUCH
    {
        warm::touch(mib.parse().unwrap_or(0));
        return ExitCode::SUCCESS;
    }
    bench::program("bench-migrate", netns::leave, async || run(args).await)
}

async fn run(args: Vec<String>) -> Result<()> {
    let mut json = false;
    let mut wish = Wish {
        runs: 7,
        only: Vec::new(),
        policy: godwit_shared::model::MigrationPolicy::default(),
        alone: false,
    };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} takes a value"));
        match arg.as_str() {
            "--json" => json = true,
            "--alone" => wish.alone = true,
            "--runs" => wish.runs = value()?.parse().context("--runs takes a number")?,
            "--only" => wish.only.push(value()?),
            "--channels" => {
                wish.policy.channels = value()?.parse().context("--channels takes a number")?;
            }
            "-h" | "--help" => {
                let names = cases::names().join("\n  ");
                write!(std::io::stdout(), "{HELP}\nCases:\n  {names}\n")?;
                return Ok(());
            }
            other => bail!("`{other}` is not known; see --help"),
        }
    }
    let lab = Lab::build()?;
    let found = cases::run(&lab, &wish).await?;
    if json {
        let mut whole = found.to_json();
        whole["runs"] = json!(wish.runs);
        writeln!(std::io::stdout(), "{whole}")?;
    } else {
        show(&found.to_json())?;
    }
    Ok(())
}

fn show(found: &Value) -> Result<()> {
    let mut out = std::io::stdout();
    let none = serde_json::Map::new();
    for (case, sides) in found["cases"].as_object().unwrap_or(&none) {
        writeln!(out, "{case}")?;
        for (side, numbers) in sides.as_object().unwrap_or(&none) {
            let text = numbers.to_string();
            writeln!(out, "  {side:18} {}", text.trim_matches(['{', '}']))?;
        }
    }
    for (key, value) in found["ratios"].as_object().unwrap_or(&none) {
        writeln!(out, "{key:40} {value}")?;
    }
    Ok(())
}
