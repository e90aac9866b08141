//! Whether the node takes VMs now, this one, and bears the marks asked for.

use godwit_shared::api::Change;
use godwit_shared::model::spec::TaintEffect;
use godwit_shared::model::{NodeFacts, NodeId, Problem, codes};

use super::{Refusal, unfit};
use crate::placement::request::{Candidate, Request};

pub(super) fn refusals(candidate: &Candidate<'_>, request: &Request<'_>) -> Vec<Refusal> {
    [
        not_asked_for(candidate, request),
        excluded(candidate, request),
        disconnected(candidate),
        cordoned(candidate),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn not_asked_for(candidate: &Candidate<'_>, request: &Request<'_>) -> Option<Refusal> {
    let only = request.only.filter(|only| *only != candidate.node)?;
    let problem = unfit(format!("the request names {only}, not {}", candidate.node))
        .remedy("leave the node out of the request");
    Some(Refusal::new(problem, Change::AskForNode))
}

fn excluded(candidate: &Candidate<'_>, request: &Request<'_>) -> Option<Refusal> {
    request.exclude.filter(|node| *node == candidate.node)?;
    let problem = Problem::new(
        codes::STATE_CONFLICT,
        format!("the VM is on {} already", candidate.node),
    )
    .remedy("name another node");
    Some(Refusal::new(problem, Change::LeaveNode))
}

fn disconnected(candidate: &Candidate<'_>) -> Option<Refusal> {
    let node = candidate.node;
    if candidate.connected && candidate.facts.is_some() {
        return None;
    }
    let message = match candidate.facts {
        Some(_) => format!("{node} is not connected"),
        None => format!("{node} has not connected since it joined"),
    };
    let problem = Problem::new(codes::NODE_UNREACHABLE, message).remedy(format!(
        "see that godwit-node runs on {node} and reaches the coordinator"
    ));
    Some(Refusal::new(problem, Change::Connect))
}

fn cordoned(candidate: &Candidate<'_>) -> Option<Refusal> {
    let node = candidate.node;
    candidate.cordoned.then(|| {
        let problem = Problem::new(codes::STATE_CONFLICT, format!("{node} is cordoned"))
            .remedy(format!("`godwit node uncordon {node}` opens it again"));
        Refusal::new(problem, Change::Uncordon)
    })
}

pub(super) fn labels(node: &NodeId, facts: &NodeFacts, request: &Request<'_>) -> Vec<Refusal> {
    let wanted = request.spec.placement.node_labels.iter();
    let lacking = wanted.filter(|(key, value)| facts.labels.get(*key) != Some(*value));
    lacking
        .map(|(key, value)| {
            let message = match facts.labels.get(key) {
                Some(other) => format!("{node} has the label {key}={other}, not {value}"),
                None => format!("{node} lacks the label {key}={value}"),
            };
            let problem = unfit(message)
                .field(format!("placement.node_labels.{key}"))
                .value(value.clone())
                .remedy(format!("set the label in {node}'s configuration"));
            Refusal::new(problem, Change::WithoutNodeLabel { key: key.clone() })
        })
        .collect()
}

pub(super) fn taints(node: &NodeId, facts: &NodeFacts, request: &Request<'_>) -> Vec<Refusal> {
    let wish = &request.spec.placement;
    let hard = facts
        .taints
        .iter()
        .filter(|taint| taint.effect == TaintEffect::NoSchedule && !wish.tolerates(taint));
    hard.map(|taint| {
        let problem = unfit(format!("{node} has the taint {taint}"))
            .field("placement.tolerations")
            .value(taint.to_string())
            .remedy(format!(
                "let the VM tolerate {taint}, or take it from {node}"
            ));
        let taint = taint.clone();
        Refusal::new(problem, Change::Tolerate { taint })
    })
    .collect()
}
