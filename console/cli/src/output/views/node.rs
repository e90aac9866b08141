//! Nodes.

use godwit_shared::api::{LeaseState, LeaseView, NodeHealth, NodeView};
use godwit_shared::model::capacity::{EmulatorFacts, NodeFacts, NumaNode};
use godwit_shared::model::spec::Taint;
use godwit_shared::model::{NodeId, UnixMillis};

use super::{Cell, Column, Listed, Shown, labels};
use crate::output::human;
use crate::output::table::{Kind, Tone};

impl Listed for NodeView {
    const NOUN: &'static str = "nodes";
    const COLUMNS: &'static [Column] = &[
        Column("NAME", Kind::Whole),
        Column("HEALTH", Kind::Whole),
        Column("SINCE", Kind::Number),
        Column("VMS", Kind::Number),
        Column("VCPUS", Kind::Number),
        Column("MEMORY", Kind::Number),
        Column("QEMU", Kind::Whole),
        Column("NOTE", Kind::Shrinks),
    ];

    fn row(&self, now: UnixMillis) -> Vec<Cell> {
        let tone = match self.health {
            NodeHealth::Up => Tone::Good,
            NodeHealth::Down => Tone::Bad,
            NodeHealth::New => Tone::Busy,
        };
        vec![
            self.name.as_str().into(),
            Cell::toned(self.health.as_str(), tone),
            human::age(self.since, now).into(),
            self.vms.to_string().into(),
            format!("{}/{}", self.used.vcpus, self.capacity.vcpus).into(),
            format!("{} / {}", self.used.memory, self.capacity.memory).into(),
            newest_qemu(self).unwrap_or("-").into(),
            note(self).into(),
        ]
    }

    fn name(&self) -> String {
        self.name.to_string()
    }
}

fn newest_qemu(node: &NodeView) -> Option<&str> {
    let emulators = &node.facts.as_ref()?.emulators;
    emulators.first().map(|emulator| emulator.version.as_str())
}

fn note(node: &NodeView) -> String {
    let cordoned = node.cordoned.then_some("cordoned");
    let taints = taints(node).map(|taints| format!("tainted {taints}"));
    let reason = node
        .reason
        .as_deref()
        .filter(|_| node.health != NodeHealth::Up);
    let parts: Vec<&str> = cordoned
        .into_iter()
        .chain(taints.as_deref())
        .chain(reason)
        .collect();
    parts.join("; ")
}

impl Shown for NodeView {
    fn sheet(&self, now: UnixMillis) -> Vec<(&'static str, String)> {
        let health = self.health.as_str();
        let mut sheet = vec![
            ("Name", self.name.to_string()),
            (
                "Health",
                format!("{health} for {}", human::age(self.since, now)),
            ),
        ];
        if let Some(reason) = &self.reason {
            sheet.push(("Reason", reason.clone()));
        }
        sheet.push((
            "Cordoned",
            if self.cordoned { "yes" } else { "no" }.to_owned(),
        ));
        sheet.push((
            "Joined",
            format!(
                "{}, incarnation {}",
                human::moment(self.joined, now),
                self.incarnation
            ),
        ));
        if let Some(lease) = &self.lease {
            sheet.push(("Lease", self::lease(lease, now)));
            sheet.push(("Circle", names(&lease.circle)));
        }
        sheet.push(("Labels", labels(&self.labels)));
        if let Some(taints) = taints(self) {
            sheet.push(("Taints", taints));
        }
        sheet.push(("VMs", self.vms.to_string()));
        sheet.push((
            "vCPUs",
            format!("{} of {}", self.used.vcpus, self.capacity.vcpus),
        ));
        sheet.push((
            "Memory",
            format!("{} of {}", self.used.memory, self.capacity.memory),
        ));
        if let Some(facts) = &self.facts {
            sheet.push(("Address", facts.address.clone()));
            sheet.push((
                "Host",
                format!("{}, kernel {}", facts.hostname, facts.kernel),
            ));
            sheet.push(("Boot id", facts.boot_id.clone()));
            sheet.push(("Software", facts.software.clone()));
            let emulators: Vec<String> = facts.emulators.iter().map(emulator).collect();
            sheet.push(("QEMU", emulators.join("\n")));
            facts_of_host(facts, &mut sheet);
        }
        sheet
    }
}

/// The taints that hold.
pub(crate) fn taints(node: &NodeView) -> Option<String> {
    let told = node.facts.as_ref().map(|facts| &facts.taints);
    let taints: Vec<String> = told
        .unwrap_or(&node.marks.taints)
        .iter()
        .map(Taint::text)
        .collect();
    (!taints.is_empty()).then(|| taints.join(", "))
}

fn facts_of_host(facts: &NodeFacts, sheet: &mut Vec<(&'static str, String)>) {
    let numa: Vec<String> = facts.numa.iter().map(numa_node).collect();
    let storage = facts.storage.iter().flatten().map(|storage| {
        let kind = if storage.shared { "shared" } else { "its own" };
        format!("{} ({kind})", storage.path)
    });
    let storage: Vec<String> = storage.collect();
    let networks = facts.networks.clone().unwrap_or_default();
    for (name, lines) in [("NUMA", numa), ("Storage", storage)] {
        if !lines.is_empty() {
            sheet.push((name, lines.join("\n")));
        }
    }
    if !networks.is_empty() {
        sheet.push(("Networks", networks.join(", ")));
    }
    if !facts.images.is_empty() {
        sheet.push(("Images", facts.images.len().to_string()));
    }
}

/// `0: 16 CPUs, 64 GiB, 512 pages of 2MiB`.
fn numa_node(node: &NumaNode) -> String {
    let pages = node.hugepages.iter().filter(|(_, count)| **count > 0);
    let pages: String = pages
        .map(|(size, count)| format!(", {count} pages of {size}"))
        .collect();
    format!(
        "{}: {} CPUs, {}{pages}",
        node.id,
        node.cpus.len(),
        node.memory
    )
}

/// `held for 18 s more, renewed 2 s ago: ...`.
fn lease(lease: &LeaseView, now: UnixMillis) -> String {
    let state = match lease.state {
        LeaseState::Held => format!("held for {} more", lease.left),
        other => other.as_str().to_owned(),
    };
    let renewed = lease
        .renewed
        .map(|at| format!(", renewed {} ago", human::age(at, now)));
    let renewed = renewed.unwrap_or_default();
    format!("{state}{renewed}: {}", lease.next)
}

fn names(nodes: &[NodeId]) -> String {
    let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
    names.join(", ")
}

/// `x86_64 10.0.2, tcg (/usr/bin/qemu-system-x86_64)`.
fn emulator(facts: &EmulatorFacts) -> String {
    let accelerators: Vec<String> = facts.accelerators.iter().map(ToString::to_string).collect();
    format!(
        "{} {}, {} ({})",
        facts.architecture,
        facts.version,
        accelerators.join(" and "),
        facts.path
    )
}
