//! Generated clusters: nodes of a few kinds in racks and zones, and apps whose
//! VMs are alike and tied to one another by rules.

use std::collections::BTreeMap;

use anyhow::Result;
use godwit_shared::model::capacity::{CpuFacts, EmulatorFacts, NumaNode, Overcommit, StorageFacts};
use godwit_shared::model::spec::{Accelerator, Architecture, Taint, TaintEffect};
use godwit_shared::model::{Capacity, MiB, NodeFacts, NodeId, VmSpec};
use serde_json::{Value, json};

use crate::rng::Rng;

/// Nodes in one rack.
const RACK: usize = 40;
const ZONES: [&str; 3] = ["a", "b", "c"];
/// CPUs, GiB, and the CPU model of a generation of hosts.
const HARDWARE: [(u32, u64, &str); 3] = [
    (64, 256, "Cascadelake-Server"),
    (96, 384, "Icelake-Server"),
    (128, 512, "SapphireRapids"),
];
/// vCPUs and MiB of a VM.
const SIZES: [(u32, u64); 11] = [
    (1, 1024),
    (1, 2048),
    (2, 4096),
    (2, 4096),
    (2, 8192),
    (4, 8192),
    (4, 8192),
    (4, 16384),
    (8, 16384),
    (8, 32768),
    (16, 32768),
];

/// A node's name and what it says of itself.
pub(crate) fn node(number: usize, rng: &mut Rng) -> Result<(NodeId, NodeFacts)> {
    let (cpus, gib, model) = *rng.pick(&HARDWARE);
    let rack = number / RACK;
    let zone = ZONES[rack % ZONES.len()];
    // Firmware and kernel keep a little, not the same on every host.
    let memory = gib * 1024 - 2048 - 8 * (rng.below(16) as u64);
    let arm = rng.chance(4);
    let labels = [
        ("zone", zone.to_owned()),
        ("rack", format!("rack-{rack}")),
        ("host", format!("host-{number}")),
        ("disk", rng.pick(&["ssd", "ssd", "hdd"]).to_string()),
    ];
    let facts = NodeFacts {
        capacity: Capacity {
            vcpus: cpus * 2,
            memory: MiB(memory),
        },
        physical: Capacity {
            vcpus: cpus,
            memory: MiB(memory),
        },
        overcommit: Overcommit {
            cpu_percent: 200,
            memory_percent: 100,
        },
        emulators: vec![emulator(arm, model)],
        labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
        taints: taints(rng),
        numa: numa(cpus, memory),
        storage: Some(vec![StorageFacts {
            path: "/vms".to_owned(),
            shared: true,
        }]),
        networks: Some(vec!["user".to_owned()]),
        ..NodeFacts::default()
    };
    Ok((format!("node-{number:06}").parse()?, facts))
}

fn emulator(arm: bool, model: &str) -> EmulatorFacts {
    let architecture = if arm {
        Architecture::Aarch64
    } else {
        Architecture::X86_64
    };
    let default = architecture.default_machine();
    let newest = format!("pc-{default}-10.0");
    EmulatorFacts {
        architecture,
        path: format!("/usr/bin/qemu-system-{architecture}"),
        version: "10.0.2".to_owned(),
        accelerators: vec![Accelerator::Kvm, Accelerator::Tcg],
        machines: vec![newest.clone(), format!("pc-{default}-7.2")],
        machine_aliases: BTreeMap::from([(default.to_owned(), newest)]),
        cpus: vec![CpuFacts {
            accelerator: Accelerator::Kvm,
            models: vec!["host".to_owned(), "x86-64-v3".to_owned(), model.to_owned()],
            ..CpuFacts::default()
        }],
    }
}

fn taints(rng: &mut Rng) -> Vec<Taint> {
    let taint = |key: &str, effect| Taint {
        key: key.to_owned(),
        value: None,
        effect,
    };
    match rng.below(100) {
        0..3 => vec![taint("gpu", TaintEffect::NoSchedule)],
        3..6 => vec![taint("old", TaintEffect::PreferNoSchedule)],
        _ => Vec::new(),
    }
}

fn numa(cpus: u32, memory: u64) -> Vec<NumaNode> {
    let half = cpus / 2;
    [0, 1]
        .map(|id| NumaNode {
            id,
            cpus: (id * half..(id + 1) * half).collect(),
            memory: MiB(memory / 2),
            ..NumaNode::default()
        })
        .into()
}

/// An app's VM, and how many of them it has.
pub(crate) fn app(number: usize, rng: &mut Rng) -> Result<(VmSpec, usize)> {
    let (vcpus, memory) = *rng.pick(&SIZES);
    let own = format!("app-{number}");
    let mut spec = json!({
        "name": own,
        "memory": memory,
        "cpu": { "count": vcpus },
        "labels": { "app": own, "env": rng.pick(&["prod", "prod", "test"]) },
        "disks": [{ "path": format!("/vms/{own}.qcow2"), "shared": true }],
        "nics": [{ "network": "user" }],
        "placement": placement(number, &own, rng),
    });
    match rng.below(20) {
        0 => spec["architecture"] = json!("aarch64"),
        1 => spec["cpu"]["model"] = json!("Icelake-Server"),
        2 => spec["memory_backing"] = json!({ "numa_fit": "preferred" }),
        _ => {}
    }
    let size = match rng.below(10) {
        0..3 => 1,
        3..8 => 2 + rng.below(10),
        _ => 10 + rng.below(30),
    };
    Ok((VmSpec::from_value(spec)?, size))
}

/// Nine of ten apps have rules.
fn placement(number: usize, own: &str, rng: &mut Rng) -> Value {
    let group = json!({ "app": own });
    match rng.below(20) {
        0..6 => json!({ "spread_by": "app" }),
        6..10 => json!({ "anti_affinity": [{ "name": "apart", "group": group }] }),
        10..13 => json!({ "topology_spread": [
            { "name": "even", "topology": "zone", "max_skew": 1, "group": group, "mode": "preferred" },
        ] }),
        13 => json!({ "topology_spread": [
            { "name": "even", "topology": "zone", "max_skew": 2, "group": group },
        ] }),
        14 => json!({ "anti_affinity": [
            { "name": "racks", "group": group, "topology": "rack", "mode": "preferred" },
        ] }),
        15 => {
            let other = format!("app-{}", rng.below(number + 1));
            json!({ "affinity": [
                { "name": "near", "group": { "app": other }, "topology": "rack", "mode": "preferred" },
            ] })
        }
        16 => json!({ "affinity": [{ "name": "zone", "group": group, "topology": "zone" }] }),
        17 => json!({ "spread_by": "app", "node_labels": { "disk": "ssd" } }),
        _ => json!({}),
    }
}
