//! Searches by hand: the cases of the tests, the larger ones, the seeded bugs,
//! and bounds of one's own.
#![allow(clippy::print_stdout, reason = "a program that prints what it found")]

use std::process::ExitCode;

use godwit_model::cases::{self, Case, Seed};
use godwit_model::run::{self, Order};

const USAGE: &str = "\
usage: scripts/model [--deep] [--near] [--seeds] [NAME...] [BOUND=NUMBER...]

Searches the handoff's states, and prints how many there were and the way to
whatever was found broken.

  --deep    the larger cases: minutes, and some GiB
  --near    nearer states first: the shortest way to a breach, for more memory
  --seeds   the seeded bugs, and the way to each
  NAME      only the cases, or bugs, of that name
  BOUND     bounds of your own: how many faults in all (total=2), and how many
            of each kind: cuts crashes kills reboots writes cancels lates losses
            repeats strays refusals silences resolves outages jobs; second=1 there and
            back, second=2 on to a third node; coordinator=1; paused=1; postcopy=1;
            disks=1";

fn main() -> ExitCode {
    let (flags, words): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .partition(|word| word.starts_with('-'));
    let (bounds, names): (Vec<String>, Vec<String>) =
        words.into_iter().partition(|word| word.contains('='));
    let known = |flag: &String| matches!(flag.as_str(), "--deep" | "--seeds" | "--near");
    let own = cases::bounded(&bounds);
    if !flags.iter().all(known) || own.is_none() {
        println!("{USAGE}");
        return ExitCode::from(2);
    }
    let given = |flag: &str| flags.iter().any(|f| f == flag);
    let order = if given("--near") {
        Order::NearestFirst
    } else {
        Order::AnyFirst
    };
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
    let fine = match own {
        Some(case) if !bounds.is_empty() => search(&case, order),
        _ if given("--seeds") => {
            let mut all = cases::seeds();
            all.retain(|seed| wanted(&format!("{:?}", seed.mutant)));
            all.iter().filter(|seed| !find(seed)).count() == 0
        }
        _ => {
            let mut all = if given("--deep") {
                cases::deep()
            } else {
                cases::quick()
            };
            all.retain(|case| wanted(case.name));
            all.iter().filter(|case| !search(case, order)).count() == 0
        }
    };
    if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether nothing was broken, and everything that has to be possible is.
fn search(case: &Case, order: Order) -> bool {
    let found = run::search(case, order);
    println!("{}: {} ({})", case.name, found.numbers(), case.what);
    for (name, way) in &found.broken {
        println!("BROKEN: {name}\n{}", run::told(&case.model, way));
    }
    let mut missing = case.possible.to_vec();
    missing.retain(|name| !found.possible.contains(name));
    for name in &missing {
        println!("NEVER: {name}");
    }
    found.broken.is_empty() && missing.is_empty()
}

/// Whether the bug was found.
fn find(seed: &Seed) -> bool {
    let found = run::find(seed);
    println!("{:?}: {}", seed.mutant, found.numbers());
    let Some(way) = found.way_to(seed.breaks) else {
        println!("NOT FOUND: {}", seed.breaks);
        return false;
    };
    println!("{}\n{}", seed.breaks, run::told(&seed.model, way));
    true
}
