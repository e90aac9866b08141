//! The settings of leases and of fence agents.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use godwit_coordinator_logic::cluster::ProtectionRules;
use godwit_shared::model::{Millis, NodeId, Problem};
use serde::Deserialize;

use super::invalid;
use crate::fence::FenceAgent;

/// The shortest lease: a few round trips and their delays on a busy host.
const MIN_LEASE: Millis = Millis(2_000);
/// The longest: so long nothing of a lost node is started elsewhere.
const MAX_LEASE: Millis = Millis(600_000);
const MIN_MARGIN: Millis = Millis(500);
/// Clocks may run apart by a twentieth, which no clock of a host does.
const DRIFT: u64 = 20;
/// More than this many nodes need not vouch for one.
const MAX_CIRCLE: u32 = 15;
const AGENT_TIMEOUT_MS: u64 = 60_000;

/// `[fence.NODE]` as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFence {
    agent: PathBuf,
    #[serde(default)]
    options: BTreeMap<String, String>,
    timeout_ms: Option<u64>,
}

pub(super) fn rules(rules: ProtectionRules, found: &mut Vec<Problem>) -> ProtectionRules {
    if rules.lease < MIN_LEASE || rules.lease > MAX_LEASE {
        let remedy = "give 2000 to 600000: a short lease stops VMs after a short cut, a long one leaves those of a lost node down for long";
        found.push(invalid("protection.lease_ms", rules.lease.0, remedy));
    }
    if rules.margin < MIN_MARGIN || rules.margin.0 < rules.lease.0 / DRIFT {
        let remedy = "give at least 500, and a twentieth of `lease_ms`: clocks differ";
        found.push(invalid("protection.margin_ms", rules.margin.0, remedy));
    }
    if rules.circle == 0 || rules.circle > MAX_CIRCLE {
        let remedy = "give 1 to 15; an odd number from 3 on lets a node lose some of its vouchers";
        found.push(invalid("protection.circle", rules.circle, remedy));
    }
    if rules.restarts == 0 {
        let remedy = "give at least 1; `protection: none` keeps a VM from being started again";
        found.push(invalid("protection.restarts", rules.restarts, remedy));
    }
    rules
}

pub(super) fn agents(
    raw: BTreeMap<String, RawFence>,
    found: &mut Vec<Problem>,
) -> BTreeMap<NodeId, FenceAgent> {
    let mut agents = BTreeMap::new();
    for (name, fence) in raw {
        if !fence.agent.is_absolute() {
            let field = format!("fence.{name}.agent");
            let remedy = "give the absolute path of a fence agent, such as /usr/sbin/fence_ipmilan";
            found.push(invalid(&field, fence.agent.display(), remedy));
        }
        let broken = |(key, value): (&String, &String)| {
            key.is_empty() || key.contains(['=', '\n']) || value.contains('\n') || key == "action"
        };
        if fence.options.iter().any(broken) {
            let field = format!("fence.{name}.options");
            let remedy =
                "give names without `=`, one line each; `action` is set by the coordinator";
            found.push(invalid(&field, "its options", remedy));
        }
        let timeout = Duration::from_millis(fence.timeout_ms.unwrap_or(AGENT_TIMEOUT_MS));
        match name.parse::<NodeId>() {
            Ok(node) => {
                let agent = FenceAgent {
                    agent: fence.agent,
                    options: fence.options,
                    timeout,
                };
                agents.insert(node, agent);
            }
            Err(problem) => found.push(problem.field(format!("fence.{name}"))),
        }
    }
    agents
}
