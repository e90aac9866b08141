//! Where a VM would go and what stands against a move: explanations.

use std::fmt::Write as _;

use godwit_shared::api::{
    Change, Decision, DecisionReason, DryRun, NodeVerdict, PlacementView, ScorePart,
};
use godwit_shared::model::UnixMillis;

use super::{Cell, Column};
use crate::output::problem::paragraph;
use crate::output::table::{Kind, Tone, table};
use crate::output::{Ui, human};

const COLUMNS: &[Column] = &[
    Column("NODE", Kind::Whole),
    Column("FITS", Kind::Whole),
    Column("SCORE", Kind::Number),
    Column("WHY", Kind::Shrinks),
];

/// Every node with its reasons, then what would help those that do not fit.
pub(crate) fn explain(placement: &PlacementView, ui: &Ui) -> String {
    let rows = placement
        .nodes
        .iter()
        .map(|verdict| row(verdict, placement))
        .collect();
    let mut text = table(COLUMNS, rows, ui);
    for verdict in placement.nodes.iter().filter(|v| !v.refused.is_empty()) {
        let _ = writeln!(text, "\n{} does not fit:", verdict.node);
        for problem in &verdict.refused {
            paragraph(problem, "refused", 1, ui.colour, &mut text);
        }
        if !verdict.changes.is_empty() {
            let changes = Change::together(&verdict.changes);
            let _ = writeln!(text, "  {} fits {changes}", verdict.node);
        }
    }
    text
}

fn row(verdict: &NodeVerdict, placement: &PlacementView) -> Vec<Cell> {
    let fits = match (verdict.refused.is_empty(), &placement.node) {
        (true, Some(node)) if *node == verdict.node => Cell::toned("chosen", Tone::Good),
        (true, _) => Cell::new("yes"),
        (false, _) => Cell::toned("no", Tone::Bad),
    };
    vec![
        verdict.node.as_str().into(),
        fits,
        super::or_dash(verdict.score).into(),
        why(verdict).into(),
    ]
}

/// The parts of a score, or the first reason against.
fn why(verdict: &NodeVerdict) -> String {
    match verdict.refused.split_first() {
        Some((first, [])) => first.message.clone(),
        Some((first, rest)) => format!("{} (and {} more)", first.message, rest.len()),
        None => parts(&verdict.scores),
    }
}

fn parts(scores: &[ScorePart]) -> String {
    let parts: Vec<String> = scores
        .iter()
        .map(|part| format!("{} {}×{}", part.name, part.points, part.weight))
        .collect();
    parts.join(", ")
}

/// Why a VM is where it is.
pub(crate) fn decision(made: &Decision, now: UnixMillis) -> String {
    let reason = match (made.reason, made.fitting) {
        (DecisionReason::Best, Some(fitting)) => {
            let fitting = human::count(fitting.into(), "node");
            format!("best of {fitting} that fitted")
        }
        (DecisionReason::Best, None) => "the best node that fitted".to_owned(),
        (DecisionReason::Asked, _) => "the node was asked for".to_owned(),
        (DecisionReason::Stays, _) => "it was there before".to_owned(),
    };
    let mut text = format!("{} ago: {reason}", human::age(made.at, now));
    if let Some(refused) = made.refused.filter(|refused| *refused > 0) {
        let _ = write!(text, ", {refused} did not{}", reasons(made));
    }
    if let Some(profile) = &made.profile {
        let _ = write!(text, "; profile {profile}");
    }
    if let Some(score) = made.score {
        let _ = write!(text, "\nscore {score}: {}", parts(&made.scores));
    }
    if let (Some(node), Some(score)) = (&made.runner_up, made.runner_up_score) {
        let _ = write!(text, "\nthen {node} with {score}");
    }
    text
}

/// What stood against how many nodes.
fn reasons(made: &Decision) -> String {
    let counts = made.refusals.iter();
    let counts: Vec<String> = counts
        .map(|(code, nodes)| format!("{nodes} {code}"))
        .collect();
    if counts.is_empty() {
        return String::new();
    }
    format!(" ({})", counts.join(", "))
}

/// What a dry run found, and how the move would go.
pub(crate) fn rehearsal(name: &str, dry_run: &DryRun, ui: &Ui) -> String {
    let mut text = blockers(name, dry_run, ui);
    if let Some(forecast) = &dry_run.forecast {
        let (duration, blackout) = (forecast.duration, forecast.blackout);
        let _ = writeln!(
            text,
            "  forecast: {} to {} until it runs there, blackout {} to {}\n  \
             from:     {} to send at {}, dirtied at {}",
            human::span(duration.low),
            human::span(duration.high),
            blackout.low,
            blackout.high,
            forecast.memory,
            forecast.link_rate,
            forecast.dirty_rate
        );
        if !forecast.converges {
            text.push_str("  it dirties more than the link takes: see `--postcopy`\n");
        }
    }
    text
}

fn blockers(name: &str, dry_run: &DryRun, ui: &Ui) -> String {
    if dry_run.blockers.is_empty() {
        return format!(
            "nothing stands against moving {name} to {}\n",
            dry_run.target
        );
    }
    let mut text = format!("{name} cannot be moved to {}:\n", dry_run.target);
    for problem in &dry_run.blockers {
        paragraph(problem, "blocker", 1, ui.colour, &mut text);
    }
    text
}
