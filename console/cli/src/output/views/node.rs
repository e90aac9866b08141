//! Nodes.

use godwit_shared::api::{NodeHealth, NodeView};
use godwit_shared::model::UnixMillis;
use godwit_shared::model::capacity::EmulatorFacts;

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
    let reason = node
        .reason
        .as_deref()
        .filter(|_| node.health != NodeHealth::Up);
    let parts: Vec<&str> = cordoned.into_iter().chain(reason).collect();
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
        sheet.push(("Labels", labels(&self.labels)));
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
        }
        sheet
    }
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
