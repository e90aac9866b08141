//! Runs a search and tells what it found.

use std::time::{Duration, Instant};

use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};

use crate::cases::{Case, Seed};
use crate::{Action, Handoff, World, action, heal, unsettled};

/// What a search found.
#[derive(Debug)]
pub struct Found {
    /// Distinct states.
    pub states: usize,
    /// Steps taken; many lead to a state that was there before.
    pub steps: usize,
    /// The longest way to a new state.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// The properties that were broken, with a way there.
    pub broken: Vec<(&'static str, Path<World, Action>)>,
    /// What was found to be possible.
    pub possible: Vec<&'static str>,
}

/// In which order states are searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// However it is fastest.
    AnyFirst,
    /// Nearer states first: slower, and with more memory, but the way to a
    /// breach is one of the shortest.
    NearestFirst,
}

/// Searches every state; the first breach ends it.
pub fn search(case: &Case, order: Order) -> Found {
    run(&case.model, order, HasDiscoveries::AnyFailures)
}

/// Searches nearer states first, until the bug shows: the way there is one of
/// the shortest.
pub fn find(seed: &Seed) -> Found {
    let shown = HasDiscoveries::AnyOf([seed.breaks].into());
    run(&seed.model, Order::NearestFirst, shown)
}

fn run(model: &Handoff, order: Order, until: HasDiscoveries) -> Found {
    let begin = Instant::now();
    let checker = model.clone().checker().finish_when(until);
    match order {
        Order::AnyFirst => found(begin, &checker.spawn_dfs().join()),
        Order::NearestFirst => found(begin, &checker.spawn_bfs().join()),
    }
}

fn found(begin: Instant, checker: &impl Checker<Handoff>) -> Found {
    let mut found = Found {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        took: begin.elapsed(),
        broken: Vec::new(),
        possible: Vec::new(),
    };
    for property in checker.model().properties() {
        let Some(path) = checker.discovery(property.name) else {
            continue;
        };
        match property.expectation {
            Expectation::Sometimes => found.possible.push(property.name),
            _ => found.broken.push((property.name, path)),
        }
    }
    found
}

impl Found {
    /// The numbers, in one line.
    pub fn numbers(&self) -> String {
        format!(
            "{} states, {} steps, depth {}, {:.1} s",
            self.states,
            self.steps,
            self.depth,
            self.took.as_secs_f64()
        )
    }

    /// The way to a breach; none, where that property holds.
    pub fn way_to(&self, breach: &str) -> Option<&Path<World, Action>> {
        let found = self.broken.iter().find(|(name, _)| *name == breach);
        found.map(|(_, way)| way)
    }
}

/// A way as people read it: one step a line, and what is wrong at its end.
pub fn told(model: &Handoff, way: &Path<World, Action>) -> String {
    let actions = way.clone().into_actions();
    let mut lines: Vec<String> = actions
        .iter()
        .map(|action| format!("  {action:?}"))
        .collect();
    let last = way.last_state();
    if action::is_quiet(model, last) {
        lines.extend(unsettled(model, last).map(|what| format!("  => {what}")));
    } else {
        // What would come next if nothing else went wrong, in short.
        let next = heal::way(model, last);
        lines.extend(
            next.iter()
                .take(60)
                .map(|action| format!("  ... {action:?}")),
        );
    }
    lines.join("\n")
}
