//! Whether the VM's hard rules are kept there, and those of the VMs there.

use godwit_shared::api::Change;
use godwit_shared::model::spec::RuleMode;

use super::{Refusal, unfit};
use crate::placement::request::Candidate;
use crate::placement::rules::{Count, Foreign, Kind, Rule, Rules};

pub(super) fn refusals(candidate: &Candidate<'_>, rules: &Rules<'_>) -> Vec<Refusal> {
    if candidate.facts.is_none() {
        return Vec::new();
    }
    let hard = rules
        .own
        .iter()
        .filter(|rule| rule.wish.mode == RuleMode::Required);
    let own = hard.filter_map(|rule| broken(candidate, rule));
    let mut found: Vec<Refusal> = own.collect();
    let here = rules
        .foreign
        .iter()
        .filter(|foreign| candidate.domain(foreign.topology) == Some(foreign.domain));
    found.extend(here.map(|foreign| disturbs(candidate, foreign)));
    found
}

fn broken(candidate: &Candidate<'_>, rule: &Rule<'_>) -> Option<Refusal> {
    let (wish, count) = (&rule.wish, rule.count(candidate));
    if !wish.kind.broken(count) {
        return None;
    }
    let name = wish.name?;
    let problem = unfit(message(candidate, rule, count))
        .field("placement")
        .value(name)
        .remedy(format!(
            "take the rule {name} from the VM, or make it `mode: preferred`"
        ));
    let change = Change::WithoutRule {
        name: name.to_owned(),
        vm: None,
    };
    Some(Refusal::new(problem, change))
}

fn message(candidate: &Candidate<'_>, rule: &Rule<'_>, count: Option<Count>) -> String {
    let (node, topology) = (candidate.node, rule.wish.topology);
    let name = rule.wish.name.unwrap_or_default();
    let Some(count) = count else {
        return format!("{node} has no label {topology}, which the rule {name} needs");
    };
    let place = match candidate.domain(topology) {
        Some(domain) if domain != node.as_str() => format!("{topology} {domain} of {node}"),
        _ => node.to_string(),
    };
    match rule.wish.kind {
        Kind::Near => format!("no VM that the rule {name} names is in {place}"),
        Kind::Apart => format!("{} that the rule {name} names in {place}", are(count.here)),
        Kind::Even { max_skew } => format!(
            "{} of the group of the rule {name} in {place} and {} where there are fewest, and one may have {max_skew} more",
            are(count.here),
            count.least.min(count.here),
        ),
    }
}

fn are(count: u32) -> String {
    if count == 1 {
        "1 VM is".to_owned()
    } else {
        format!("{count} VMs are")
    }
}

fn disturbs(candidate: &Candidate<'_>, foreign: &Foreign<'_>) -> Refusal {
    let Foreign { vm, name, .. } = foreign;
    let problem = unfit(format!(
        "the rule {name} of {vm} keeps the VM away from {}",
        candidate.node
    ))
    .field("labels")
    .value(*name)
    .remedy(format!("take the rule {name} from {vm}, or move {vm}"));
    let change = Change::WithoutRule {
        name: (*name).to_owned(),
        vm: Some((*vm).clone()),
    };
    Refusal::new(problem, change)
}
