//! What managing a guest costs: `scripts/bench-control`.
//!
//! Every number is of this machine under this load: two cores, shared and
//! noisy. So comparisons alternate their sides in one run, and medians are told.

mod measure;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

const HELP: &str = "\
Measures the control plane: how long starting a guest takes beside bare QEMU,
twenty at once, a list of two hundred, and the daemons' memory.

Usage: bench-control [--json] [--repeats N]

  --json        one JSON object on standard output
  --repeats N   starts of each kind that the median is taken of [default: 9]
";

/// Fewer say nothing on a noisy machine.
const LEAST_REPEATS: usize = 7;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "bench-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let mut json = false;
    let mut repeats = 9;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = true,
            "--repeats" => {
                let number = args.next().and_then(|text| text.parse().ok());
                repeats = match number {
                    Some(number) if number >= LEAST_REPEATS => number,
                    _ => bail!("--repeats takes a number of at least {LEAST_REPEATS}"),
                };
            }
            "-h" | "--help" => {
                write!(std::io::stdout(), "{HELP}")?;
                return Ok(());
            }
            other => bail!("`{other}` is not known; see --help"),
        }
    }
    let mut found = Map::new();
    found.insert("repeats".to_owned(), json!(repeats));
    measure::starts_and_memory(repeats, &mut found).await?;
    measure::lists(&mut found).await?;
    if json {
        writeln!(std::io::stdout(), "{}", Value::Object(found))?;
    } else {
        show(&found)?;
    }
    Ok(())
}

fn show(found: &Map<String, Value>) -> Result<()> {
    let number = |key: &str| found.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let mut out = std::io::stdout();
    writeln!(
        out,
        "create to running        {:6.1} ms, bare QEMU {:.1} ms: {:.2} times",
        number("create_to_running_ms"),
        number("bare_ms"),
        number("create_to_running_vs_bare")
    )?;
    writeln!(
        out,
        "20 guests in parallel    {:6.2} s",
        number("parallel20_s")
    )?;
    writeln!(
        out,
        "`vm list` with 200 VMs   {:6.1} ms, of which the API {:.1} ms",
        number("list200_ms"),
        number("list200_api_ms")
    )?;
    writeln!(
        out,
        "memory of a node daemon  {:6.1} MiB with 0 VMs, {:.1} MiB with 20",
        number("node_rss_mib_0"),
        number("node_rss_mib_20")
    )?;
    writeln!(
        out,
        "memory of the coordinator{:6.1} MiB with 20 VMs",
        number("coordinator_rss_mib_20")
    )?;
    Ok(())
}
