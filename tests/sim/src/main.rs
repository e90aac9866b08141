//! Runs seeds by hand, and shows what happened in one.
#![allow(clippy::print_stdout, reason = "a program that prints what it found")]

use std::process::ExitCode;

use godwit_sim::{Mutant, Report, run, trace};

const USAGE: &str = "\
usage: godwit-sim [--seed N] [--seeds N] [--trace] [--mutant NAME]

Runs a whole cluster in virtual time, with everything that can go wrong, from
one seed; the same seed is the same run.

  --seed N       that seed (default: 1)
  --seeds N      so many, from --seed on
  --trace        every step of it
  --mutant NAME  with a seeded bug";

struct Wanted {
    seed: u64,
    count: u64,
    trace: bool,
    mutant: Option<Mutant>,
}

fn main() -> ExitCode {
    let Some(wanted) = read(std::env::args().skip(1)) else {
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
