//! What a simulated node says of itself: as much as a real one.

use std::collections::BTreeMap;

use anyhow::Result;
use godwit_shared::model::capacity::EmulatorFacts;
use godwit_shared::model::spec::{Accelerator, Architecture};
use godwit_shared::model::{Capacity, MiB, NodeFacts};
use godwit_shared::wire::document::Document;

/// Nodes in a rack, and racks in a zone.
const RACK: usize = 20;
const ZONE: usize = 500;

/// The facts of the node with that number.
pub(super) fn of(index: usize, address: &str) -> Result<Document> {
    let facts = NodeFacts {
        software: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: format!("host-{index}.example"),
        boot_id: format!("7c1f4a52-0000-4000-8000-{index:012}"),
        kernel: "6.1.0-31-amd64".to_owned(),
        capacity: Capacity {
            vcpus: 192,
            memory: MiB(512 << 10),
        },
        emulators: vec![emulator()],
        labels: BTreeMap::from([
            ("rack".to_owned(), format!("r{}", index / RACK)),
            ("zone".to_owned(), format!("z{}", index / ZONE)),
        ]),
        address: address.to_owned(),
        ..NodeFacts::default()
    };
    Ok(Document::of(&facts)?)
}

/// QEMU 10.0 with the machine types of its last ten years.
fn emulator() -> EmulatorFacts {
    let versions = (4..=9)
        .flat_map(|major| (0..=2).map(move |minor| format!("{major}.{minor}")))
        .chain(["10.0".to_owned()]);
    let machines = versions
        .flat_map(|version| [format!("pc-q35-{version}"), format!("pc-i440fx-{version}")])
        .collect();
    EmulatorFacts {
        architecture: Architecture::X86_64,
        path: "/usr/bin/qemu-system-x86_64".to_owned(),
        version: "10.0.2".to_owned(),
        accelerators: vec![Accelerator::Kvm, Accelerator::Tcg],
        machines,
        machine_aliases: BTreeMap::from([
            ("pc".to_owned(), "pc-i440fx-10.0".to_owned()),
            ("q35".to_owned(), "pc-q35-10.0".to_owned()),
        ]),
        ..EmulatorFacts::default()
    }
}
