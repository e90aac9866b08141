//! What a placement decision costs, on generated clusters: `scripts/bench-placement`.
//!
//! Every cluster comes from one seed. Its VMs were placed by chance; then single
//! VMs come and go until each was replaced once, as the default weights have it.
//! From then on decisions are timed, each with the change of the state that it
//! leaves behind, so that the next one sees it.

mod packing;
mod rng;
mod run;
mod workload;
mod world;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use run::Figures;

/// The cluster that the figures without a size are of.
const NODES: usize = 10_000;
const ALL: [usize; 4] = [100, 1_000, NODES, 100_000];
/// Nodes that are filled up to compare with best fit.
const PACKED: usize = 200;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "bench-placement: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (mut sizes, mut as_json, mut seed) = (ALL.to_vec(), false, 1);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().context("a number is missing");
        match arg.as_str() {
            "--json" => as_json = true,
            "--nodes" => sizes = vec![number()?.parse()?],
            "--seed" => seed = number()?.parse()?,
            other => bail!("unknown option {other}; see --help"),
        }
    }
    let mut measured = Vec::new();
    for nodes in sizes {
        let figures = run::measure(nodes, seed)?;
        if !as_json {
            writeln!(std::io::stdout(), "{figures}")?;
        }
        measured.push(figures);
    }
    let packed = packing::compare(PACKED, seed)?;
    if as_json {
        let all = serde_json::to_string_pretty(&report(&measured, packed)?)?;
        writeln!(std::io::stdout(), "{all}")?;
    } else {
        let text = format!("packed {packed:.3} of what best fit does, on {PACKED} nodes");
        writeln!(std::io::stdout(), "{text}")?;
    }
    Ok(())
}

fn report(measured: &[Figures], packed: f64) -> Result<Value> {
    let main = measured.iter().find(|one| one.nodes == NODES);
    let main = main.or(measured.last()).context("nothing was measured")?;
    Ok(json!({
        "decisions_per_second": main.decisions_per_second,
        "p50_us": main.p50_us,
        "p99_us": main.p99_us,
        "score_vs_full_scan": main.score_vs_full_scan,
        "packed_vs_best_fit": packed,
        "by_nodes": measured,
    }))
}
