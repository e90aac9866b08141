//! Reasons why a node cannot take a VM, one small function each.
//!
//! A reason names what is lacking and the smallest change that would help.
//! The filters that read a node's facts are silent while it has none; that it
//! never connected is then the reason.

use godwit_shared::model::capacity::EmulatorFacts;
use godwit_shared::model::spec::Accelerator;
use godwit_shared::model::{MiB, NodeFacts, Problem, Usage, codes};

use super::{Candidate, Request};

/// Everything that stands against the node; empty when it can take the VM.
pub(super) fn refusals(candidate: &Candidate<'_>, request: &Request<'_>) -> Vec<Problem> {
    let mut found: Vec<Problem> = [
        not_asked_for(candidate, request),
        excluded(candidate, request),
        disconnected(candidate),
        cordoned(candidate),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(facts) = candidate.facts {
        found.extend(emulator(candidate, facts, request));
        found.extend(labels(candidate, facts, request));
        found.extend(memory(candidate, facts, request));
        found.extend(vcpus(candidate, facts, request));
    }
    found
}

fn not_asked_for(candidate: &Candidate<'_>, request: &Request<'_>) -> Option<Problem> {
    let only = request.only.filter(|only| *only != candidate.node)?;
    Some(
        Problem::new(
            codes::NO_NODE_FITS,
            format!("the request names {only}, not {}", candidate.node),
        )
        .remedy("leave the node out of the request"),
    )
}

fn excluded(candidate: &Candidate<'_>, request: &Request<'_>) -> Option<Problem> {
    request.exclude.filter(|node| *node == candidate.node)?;
    Some(
        Problem::new(
            codes::STATE_CONFLICT,
            format!("the VM is on {} already", candidate.node),
        )
        .remedy("name another node"),
    )
}

fn disconnected(candidate: &Candidate<'_>) -> Option<Problem> {
    let node = candidate.node;
    if candidate.connected && candidate.facts.is_some() {
        return None;
    }
    let message = match candidate.facts {
        Some(_) => format!("{node} is not connected"),
        None => format!("{node} has not connected since it joined"),
    };
    Some(
        Problem::new(codes::NODE_UNREACHABLE, message).remedy(format!(
            "see that godwit-node runs on {node} and reaches the coordinator"
        )),
    )
}

fn cordoned(candidate: &Candidate<'_>) -> Option<Problem> {
    let node = candidate.node;
    candidate.cordoned.then(|| {
        Problem::new(codes::STATE_CONFLICT, format!("{node} is cordoned"))
            .remedy(format!("`godwit node uncordon {node}` opens it again"))
    })
}

/// The architecture's emulator, then what it must be able to do.
fn emulator(candidate: &Candidate<'_>, facts: &NodeFacts, request: &Request<'_>) -> Vec<Problem> {
    let (node, architecture) = (candidate.node, request.spec.architecture);
    let found = facts
        .emulators
        .iter()
        .find(|emulator| emulator.architecture == architecture);
    let Some(emulator) = found else {
        return vec![
            Problem::new(
                codes::NO_NODE_FITS,
                format!("{node} has no QEMU for {architecture}"),
            )
            .field("architecture")
            .value(architecture.to_string())
            .remedy(format!(
                "install qemu-system-{architecture} on {node} and restart godwit-node there"
            )),
        ];
    };
    [
        accelerator(candidate, emulator, request),
        machine(candidate, emulator, request),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn accelerator(
    candidate: &Candidate<'_>,
    emulator: &EmulatorFacts,
    request: &Request<'_>,
) -> Option<Problem> {
    let wanted = request.accelerator;
    let has = match wanted {
        Accelerator::Auto => !emulator.accelerators.is_empty(),
        named => emulator.accelerators.contains(&named),
    };
    let remedy = match wanted {
        Accelerator::Kvm => "switch virtualization on in the host's firmware, or use `auto`",
        Accelerator::Auto | Accelerator::Tcg => "install a QEMU that is built with TCG",
    };
    (!has).then(|| {
        Problem::new(
            codes::NO_NODE_FITS,
            format!(
                "{} on {} has no working accelerator for `{wanted}`",
                emulator.path, candidate.node
            ),
        )
        .field("accelerator")
        .value(wanted.to_string())
        .remedy(remedy)
    })
}

fn machine(
    candidate: &Candidate<'_>,
    emulator: &EmulatorFacts,
    request: &Request<'_>,
) -> Option<Problem> {
    let wanted = request
        .machine
        .unwrap_or(request.spec.architecture.default_machine());
    let has = emulator.machine_aliases.contains_key(wanted)
        || emulator.machines.iter().any(|machine| machine == wanted);
    (!has).then(|| {
        Problem::new(
            codes::NO_NODE_FITS,
            format!(
                "QEMU {} on {} does not have the machine type {wanted}",
                emulator.version, candidate.node
            ),
        )
        .field("machine")
        .value(wanted)
        .remedy(format!(
            "install a QEMU on {} that lists it under `-machine help`",
            candidate.node
        ))
    })
}

fn labels(candidate: &Candidate<'_>, facts: &NodeFacts, request: &Request<'_>) -> Vec<Problem> {
    let node = candidate.node;
    let lacking = request
        .spec
        .placement
        .node_labels
        .iter()
        .filter(|(key, value)| facts.labels.get(*key) != Some(*value));
    lacking
        .map(|(key, value)| {
            let message = match facts.labels.get(key) {
                Some(other) => format!("{node} has the label {key}={other}, not {value}"),
                None => format!("{node} lacks the label {key}={value}"),
            };
            Problem::new(codes::NO_NODE_FITS, message)
                .field(format!("placement.node_labels.{key}"))
                .value(value.clone())
                .remedy(format!("set the label in {node}'s configuration"))
        })
        .collect()
}

fn memory(candidate: &Candidate<'_>, facts: &NodeFacts, request: &Request<'_>) -> Option<Problem> {
    let free = facts.capacity.memory - candidate.used.memory;
    let wanted = Usage::of(request.spec).memory;
    let lacks = wanted - free;
    let node = candidate.node;
    (lacks > MiB::ZERO).then(|| {
        Problem::new(
            codes::INSUFFICIENT_RESOURCES,
            format!("{node} lacks {lacks} of memory: {wanted} wanted, {free} free"),
        )
        .field("memory")
        .value(wanted.to_string())
        .remedy(smallest(&lacks.to_string(), node, &free))
    })
}

fn vcpus(candidate: &Candidate<'_>, facts: &NodeFacts, request: &Request<'_>) -> Option<Problem> {
    let free = facts.capacity.vcpus.saturating_sub(candidate.used.vcpus);
    let wanted = Usage::of(request.spec).vcpus;
    let lacks = wanted.saturating_sub(free);
    let node = candidate.node;
    (lacks > 0).then(|| {
        let amount = format!("{lacks} vCPU{}", if lacks == 1 { "" } else { "s" });
        Problem::new(
            codes::INSUFFICIENT_RESOURCES,
            format!("{node} lacks {amount}: {wanted} wanted, {free} free"),
        )
        .field("cpu.count")
        .value(wanted.to_string())
        .remedy(smallest(&amount, node, &free))
    })
}

/// The smallest change that makes room; what is free may be nothing.
fn smallest<T: PartialEq + Default + std::fmt::Display>(
    amount: &str,
    node: &godwit_shared::model::NodeId,
    free: &T,
) -> String {
    if *free == T::default() {
        format!("free {amount} on {node}")
    } else {
        format!("free {amount} on {node}, or give the VM at most {free}")
    }
}
