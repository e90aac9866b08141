//! What the wishes about placement and memory backing have to satisfy.

use std::collections::{BTreeMap, BTreeSet};

use super::check::{check_labels, check_token, invalid};
use super::placement::{AffinityRule, HOST, MAX_WEIGHT, SpreadRule};
use super::{PlacementSpec, VmSpec};
use crate::model::label::{label_key, token};
use crate::model::problem::Problem;

const MAX_RULES: usize = 32;
const MAX_NAME: usize = 63;

impl VmSpec {
    pub(super) fn check_backing(&self, found: &mut Vec<Problem>) {
        let Some(page) = self.memory_backing.hugepages.size() else {
            return;
        };
        if !self.memory.0.is_multiple_of(page.0) {
            let remedy = format!("give a multiple of {page}, the size of the huge pages");
            found.push(invalid("memory", self.memory, remedy));
        }
    }

    pub(super) fn check_placement(&self, found: &mut Vec<Problem>) {
        let wish = &self.placement;
        check_labels("placement.node_labels", &wish.node_labels, found);
        for (index, feature) in wish.cpu_features.iter().enumerate() {
            check_token(&format!("placement.cpu_features[{index}]"), feature, found);
        }
        for (index, toleration) in wish.tolerations.iter().enumerate() {
            check_key(
                &format!("placement.tolerations[{index}].key"),
                &toleration.key,
                found,
            );
        }
        for (list, rules) in [
            ("affinity", &wish.affinity),
            ("anti_affinity", &wish.anti_affinity),
        ] {
            for (index, rule) in rules.iter().enumerate() {
                check_affinity(&format!("placement.{list}[{index}]"), rule, found);
            }
        }
        for (index, rule) in wish.topology_spread.iter().enumerate() {
            self.check_spread(&format!("placement.topology_spread[{index}]"), rule, found);
        }
        check_rules(wish, found);
        if let Some(profile) = &wish.profile {
            check_token("placement.profile", profile, found);
        }
    }

    fn check_spread(&self, field: &str, rule: &SpreadRule, found: &mut Vec<Problem>) {
        check_rule(field, &rule.name, &rule.topology, rule.weight, found);
        check_labels(&format!("{field}.group"), &rule.group, found);
        if rule.max_skew == 0 {
            found.push(invalid(
                format!("{field}.max_skew"),
                rule.max_skew,
                "give at least 1: the next VM always makes one domain the fullest",
            ));
        }
        let own = self.placement.spread_by.as_ref();
        if rule.group.is_empty() && own.is_none_or(|key| !self.labels.contains_key(key)) {
            found.push(invalid(
                format!("{field}.group"),
                "",
                "name labels, or a label of the VM's own in `placement.spread_by`",
            ));
        }
    }
}

fn check_affinity(field: &str, rule: &AffinityRule, found: &mut Vec<Problem>) {
    check_rule(field, &rule.name, &rule.topology, rule.weight, found);
    check_labels(&format!("{field}.group"), &rule.group, found);
    let remedy = match (&rule.vm, rule.group.is_empty()) {
        (None, true) => "say with which VMs: labels in `group`, or a name in `vm`",
        (Some(_), false) => "give either labels in `group` or a name in `vm`",
        _ => return,
    };
    found.push(invalid(
        format!("{field}.group"),
        labels(&rule.group),
        remedy,
    ));
}

fn labels(group: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = group.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(",")
}

fn check_rule(field: &str, name: &str, topology: &str, weight: u32, found: &mut Vec<Problem>) {
    if !token(name, MAX_NAME) {
        let remedy = format!("give 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`");
        found.push(invalid(format!("{field}.name"), name, remedy));
    }
    if topology != HOST {
        check_key(&format!("{field}.topology"), topology, found);
    }
    if !(1..=MAX_WEIGHT).contains(&weight) {
        let remedy = format!("give 1 to {MAX_WEIGHT}");
        found.push(invalid(format!("{field}.weight"), weight, remedy));
    }
}

fn check_key(field: &str, key: &str, found: &mut Vec<Problem>) {
    if !label_key(key) {
        found.push(invalid(
            field,
            key,
            "it is letters, digits, `-`, `_`, `.` and `/`",
        ));
    }
}

/// Explanations and changes name rules, so two of a name would be confused.
fn check_rules(wish: &PlacementSpec, found: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for name in wish.rule_names() {
        if !seen.insert(name) {
            found.push(invalid(
                "placement",
                name,
                "give every rule a name of its own",
            ));
        }
    }
    let count = wish.rule_names().count().max(wish.tolerations.len());
    if count > MAX_RULES {
        let remedy = format!("give at most {MAX_RULES} rules and {MAX_RULES} tolerations");
        found.push(invalid("placement", count, remedy));
    }
}
