//! Runs seeds by hand, and shows what happened in one.
#![allow(clippy::print_stdout, reason = "a program that prints what it found")]

use std::process::ExitCode;

use godwit_sim::replay::{Bug, Outcome, Wanted as Steps, replay};
use godwit_sim::{Mutant, Report, run, trace};

const USAGE: &str = "\
usage: godwit-sim [--seed N] [--seeds N] [--trace] [--mutant NAME]
       godwit-sim replay FILE [--from N] [--to N] [--trace] [--mutant StaleEpoch]

Runs a whole cluster in virtual time, with everything that can go wrong, from
one seed; the same seed is the same run.

  --seed N       that seed (default: 1)
  --seeds N      so many, from --seed on
  --trace        every step of it
  --mutant NAME  with a seeded bug

replay gives a coordinator's recording ([record] in its settings) to the
production logic once more: it has to decide the same, and to keep its rules.

  --trace        every step and its effects
  --from N       from that step on only
  --to N         no further than that step";

struct Wanted {
    seed: u64,
    count: u64,
    trace: bool,
    mutant: Option<Mutant>,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if(|word| word == "replay").is_some() {
        return replayed(words);
    }
    let Some(wanted) = read(words) else {
        println!("{USAGE}");
        return ExitCode::from(2);
    };
    let mut broken = 0_u64;
    for seed in wanted.seed..wanted.seed.saturating_add(wanted.count) {
        let report = if wanted.trace {
            trace(seed, wanted.mutant)
        } else {
            run(seed, wanted.mutant)
        };
        broken += u64::from(report.breach.is_some());
        show(&report, wanted.count == 1);
    }
    println!("{} seeds, {broken} broken", wanted.count);
    if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn replayed(words: impl Iterator<Item = String>) -> ExitCode {
    let Some((path, steps)) = read_replay(words) else {
        println!("{USAGE}");
        return ExitCode::from(2);
    };
    let file = match std::fs::read(&path) {
        Ok(file) => file,
        Err(error) => return fails(&path, &error),
    };
    match replay(&file, steps, &mut |line| println!("{line}")) {
        Ok(outcome) => end(&path, &outcome),
        Err(error) => fails(&path, &error),
    }
}

fn fails(path: &str, error: &dyn std::error::Error) -> ExitCode {
    let cause = error.source().map(|cause| format!(": {cause}"));
    println!("{path}: {error}{}", cause.unwrap_or_default());
    ExitCode::from(2)
}

fn end(path: &str, outcome: &Outcome) -> ExitCode {
    if outcome.cut_off > 0 {
        let bytes = outcome.cut_off;
        println!(
            "{path}: its last {bytes} bytes are a line that was cut off, behind the last step"
        );
    }
    let (steps, last) = (outcome.steps, outcome.last);
    let Some(wrong) = &outcome.wrong else {
        println!("{path}: {steps} steps, up to step {last}: the same decisions");
        return ExitCode::SUCCESS;
    };
    println!("{wrong}");
    ExitCode::FAILURE
}

fn read_replay(mut words: impl Iterator<Item = String>) -> Option<(String, Steps)> {
    let (mut path, mut steps) = (None, Steps::default());
    while let Some(word) = words.next() {
        match word.as_str() {
            "--from" => steps.from = words.next()?.parse().ok()?,
            "--to" => steps.to = words.next()?.parse().ok()?,
            "--trace" => steps.trace = true,
            "--mutant" if words.next()? == "StaleEpoch" => steps.bug = Some(Bug::StaleEpoch),
            word if word.starts_with('-') => return None,
            _ if path.is_some() => return None,
            file => path = Some(file.to_owned()),
        }
    }
    Some((path?, steps))
}

fn show(report: &Report, alone: bool) {
    for line in &report.trace {
        println!("{line}");
    }
    if alone || report.breach.is_some() {
        println!(
            "seed {}: {} steps, {} faults, {} guests moved, print {:016x}: {}",
            report.seed,
            report.steps,
            report.faults,
            report.moved,
            report.print,
            report.breach.as_deref().unwrap_or("fine")
        );
    }
}

fn read(mut words: impl Iterator<Item = String>) -> Option<Wanted> {
    let mut wanted = Wanted {
        seed: 1,
        count: 1,
        trace: false,
        mutant: None,
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seed" => wanted.seed = words.next()?.parse().ok()?,
            "--seeds" => wanted.count = words.next()?.parse().ok()?,
            "--trace" => wanted.trace = true,
            "--mutant" => {
                let name = words.next()?;
                let known = Mutant::ALL.into_iter().find(|m| format!("{m:?}") == name);
                wanted.mutant = Some(known?);
            }
            _ => return None,
        }
    }
    Some(wanted)
}
