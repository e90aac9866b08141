//! What a coordinator costs at scale: `scripts/bench-scale`.
//!
//! Everything shares one machine: the coordinator, the simulated nodes
//! ([`godwit_tests::swarm`]) and the watchers. The coordinator's memory and CPU
//! time are its own process's; every time that is told includes what the
//! generator itself needs, so they are upper bounds.

mod cases;
mod options;
mod watchers;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use options::Options;
use serde_json::{Map, Value};

fn main() -> ExitCode {
    godwit_tests::bench::program("bench-scale", || Ok(()), run)
}

async fn run() -> Result<()> {
    let Some(options) = Options::read(std::env::args().skip(1))? else {
        write!(std::io::stdout(), "{}", options::HELP)?;
        return Ok(());
    };
    let mut found = Map::new();
    cases::all(&options, &mut found).await?;
    if options.json {
        writeln!(std::io::stdout(), "{}", Value::Object(found))?;
    } else {
        for (key, value) in &found {
            writeln!(std::io::stdout(), "{key:32} {value}")?;
        }
    }
    Ok(())
}
