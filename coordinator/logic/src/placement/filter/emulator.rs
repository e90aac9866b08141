//! The architecture's QEMU, and what it must be able to do.

use godwit_shared::api::Change;
use godwit_shared::model::capacity::{CpuFacts, EmulatorFacts};
use godwit_shared::model::spec::Accelerator;
use godwit_shared::model::{NodeFacts, NodeId};

use super::{Refusal, unfit};
use crate::placement::request::Request;

pub(super) fn refusals(node: &NodeId, facts: &NodeFacts, request: &Request<'_>) -> Vec<Refusal> {
    let architecture = request.spec.architecture;
    let mut emulators = facts.emulators.iter();
    let Some(emulator) = emulators.find(|found| found.architecture == architecture) else {
        let problem = unfit(format!("{node} has no QEMU for {architecture}"))
            .field("architecture")
            .value(architecture.to_string())
            .remedy(format!(
                "install qemu-system-{architecture} on {node} and restart godwit-node there"
            ));
        return vec![Refusal::new(problem, Change::InstallQemu)];
    };
    let mut found: Vec<Refusal> = accelerator(node, emulator, request).into_iter().collect();
    found.extend(machine(node, emulator, request));
    if let Some(cpus) = cpus(emulator, request.accelerator) {
        found.extend(model(node, cpus, request));
        found.extend(features(node, cpus, request));
    }
    found
}

fn accelerator(node: &NodeId, emulator: &EmulatorFacts, request: &Request<'_>) -> Option<Refusal> {
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
        let problem = unfit(format!(
            "{} on {node} has no working accelerator for `{wanted}`",
            emulator.path
        ))
        .field("accelerator")
        .value(wanted.to_string())
        .remedy(remedy);
        let change = match emulator.accelerators.first() {
            Some(other) => Change::UseAccelerator {
                accelerator: *other,
            },
            None => Change::InstallQemu,
        };
        Refusal::new(problem, change)
    })
}

fn machine(node: &NodeId, emulator: &EmulatorFacts, request: &Request<'_>) -> Option<Refusal> {
    let wanted = request.machine();
    let has = emulator.machine_aliases.contains_key(wanted)
        || emulator.machines.iter().any(|machine| machine == wanted);
    (!has).then(|| {
        let problem = unfit(format!(
            "QEMU {} on {node} does not have the machine type {wanted}",
            emulator.version
        ))
        .field("machine")
        .value(wanted)
        .remedy(format!(
            "install a QEMU on {node} that lists it under `-machine help`"
        ));
        let change = match other_machine(emulator, request) {
            Some(machine) => Change::UseMachine { machine },
            None => Change::InstallQemu,
        };
        Refusal::new(problem, change)
    })
}

/// The nearest machine type that is there: the architecture's default, or any.
fn other_machine(emulator: &EmulatorFacts, request: &Request<'_>) -> Option<String> {
    let default = request.spec.architecture.default_machine();
    if emulator.machine_aliases.contains_key(default) {
        return Some(default.to_owned());
    }
    emulator.machines.first().cloned()
}

/// The CPUs with the accelerator that would be used.
fn cpus(emulator: &EmulatorFacts, wanted: Accelerator) -> Option<&CpuFacts> {
    let used = match wanted {
        Accelerator::Auto => *emulator.accelerators.first()?,
        named => named,
    };
    emulator.cpus.iter().find(|cpus| cpus.accelerator == used)
}

fn model(node: &NodeId, cpus: &CpuFacts, request: &Request<'_>) -> Option<Refusal> {
    let wanted = request.spec.cpu.model.as_deref()?;
    if cpus.models.is_empty() || cpus.models.iter().any(|model| model == wanted) {
        return None;
    }
    let message = match cpus.lacking.get(wanted) {
        Some(missing) => format!(
            "{node} does not have the CPU model {wanted} in full: it lacks {}",
            missing.join(", ")
        ),
        None => format!("QEMU on {node} does not know the CPU model {wanted}"),
    };
    let problem = unfit(message)
        .field("cpu.model")
        .value(wanted)
        .remedy("give the VM a model that all its nodes have");
    Some(Refusal::new(problem, Change::WithoutCpuModel))
}

fn features(node: &NodeId, cpus: &CpuFacts, request: &Request<'_>) -> Vec<Refusal> {
    let wanted = request.spec.placement.cpu_features.iter();
    let missing = wanted.filter(|feature| {
        let known = !cpus.features.is_empty();
        known && !cpus.features.contains(feature)
    });
    missing
        .map(|feature| {
            let problem = unfit(format!("the CPUs of {node} lack {feature}"))
                .field("placement.cpu_features")
                .value(feature.clone())
                .remedy("leave the feature out, or name nodes that have it");
            let feature = feature.clone();
            Refusal::new(problem, Change::WithoutCpuFeature { feature })
        })
        .collect()
}
