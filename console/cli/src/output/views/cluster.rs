//! The cluster in a few numbers.

use std::collections::BTreeMap;

use godwit_shared::api::ClusterStatus;
use godwit_shared::model::{NodeId, UnixMillis};

use super::{Cell, Column, Listed, Shown};
use crate::output::human;
use crate::output::table::Kind;

impl Listed for ClusterStatus {
    const NOUN: &'static str = "clusters";
    const COLUMNS: &'static [Column] = &[Column("NAME", Kind::Whole)];

    fn row(&self, _now: UnixMillis) -> Vec<Cell> {
        vec![self.name.as_str().into()]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Shown for ClusterStatus {
    fn sheet(&self, now: UnixMillis) -> Vec<(&'static str, String)> {
        let up = human::age(self.started, now);
        let mut sheet = vec![
            ("Cluster", self.name.clone()),
            ("Coordinator", format!("{}, up {up}", self.software)),
            ("CA fingerprint", self.ca_fingerprint.clone()),
            ("Nodes", tally(&self.nodes)),
            ("VMs", tally(&self.vms)),
            ("Migrations", self.migrations.to_string()),
            (
                "vCPUs",
                share(
                    u64::from(self.used.vcpus),
                    u64::from(self.capacity.vcpus),
                    &format!("{} of {}", self.used.vcpus, self.capacity.vcpus),
                ),
            ),
            (
                "Memory",
                share(
                    self.used.memory.0,
                    self.capacity.memory.0,
                    &format!("{} of {}", self.used.memory, self.capacity.memory),
                ),
            ),
            ("Last event", self.last_event.to_string()),
        ];
        if !self.unheard.is_empty() {
            let names: Vec<&str> = self.unheard.iter().map(NodeId::as_str).collect();
            let text = format!(
                "the store was restored; starts wait for the word of {}",
                names.join(", ")
            );
            sheet.push(("Restored", text));
        }
        sheet
    }
}

fn share(part: u64, whole: u64, text: &str) -> String {
    format!("{text} ({}%)", human::percent(part, whole))
}

/// `3 (2 up, 1 down)`.
fn tally(counts: &BTreeMap<String, u32>) -> String {
    let all: u64 = counts.values().copied().map(u64::from).sum();
    let parts: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(word, count)| format!("{count} {}", word.replace('_', "-")))
        .collect();
    if parts.is_empty() {
        return all.to_string();
    }
    format!("{all} ({})", parts.join(", "))
}
