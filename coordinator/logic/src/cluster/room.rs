//! What is taken on each node, and where there is room.
//!
//! A VM takes room on its owner while it is wanted running, on the node that a
//! task is putting it on, on the target of its migration, on that of a plan's step
//! for it, and wherever a node reports a process of it: so a reservation begins
//! with the decision that needs it and ends with the word that it is not needed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use godwit_shared::api::{CreateVm, Decision, DecisionReason, PlacementView};
use godwit_shared::model::{NodeId, Problem, RunState, UnixMillis, Usage, VmId, VmSpec, codes};

use super::Cluster;
use super::ledger::Share;
use crate::placement::{Candidate, Request, Snapshot, place_explained};
use crate::record::{TaskKind, VmRecord};

/// Reasons that a refusal gives.
const REASONS: usize = 64;

/// What is on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Load {
    pub(super) used: Usage,
    /// VMs that the node owns.
    pub(super) vms: u32,
}

impl Cluster {
    /// Where the VM of that request would go now, and why.
    pub fn place(&self, request: &CreateVm) -> PlacementView {
        place_explained(&self.snapshot_for(&request.spec, None), &wish(request))
    }

    pub(super) fn snapshot_for(&self, spec: &VmSpec, except: Option<VmId>) -> Snapshot<'_> {
        Snapshot {
            weights: self.settings.placement.weights_for(spec),
            ..self.snapshot(except)
        }
    }

    /// What placement sees of the nodes, `except` left out.
    pub fn snapshot(&self, except: Option<VmId>) -> Snapshot<'_> {
        self.snapshot_with(self.observed.ledger.all(), except)
    }

    /// The same with no more of the VMs than a decision for `spec` rests on: one
    /// without rules of its own goes by what is taken, and by those that keep
    /// others away.
    pub(super) fn snapshot_enough_for(&self, spec: &VmSpec, except: Option<VmId>) -> Snapshot<'_> {
        if minds_others(spec) {
            return self.snapshot_for(spec, except);
        }
        Snapshot {
            weights: self.settings.placement.weights_for(spec),
            ..self.snapshot_with(self.observed.ledger.apart(), except)
        }
    }

    fn snapshot_with<'a>(
        &'a self,
        vms: impl Iterator<Item = (VmId, &'a Share)>,
        except: Option<VmId>,
    ) -> Snapshot<'a> {
        let mut residents = self.residents(vms.filter(|(vm, _)| Some(*vm) != except));
        let mut planned = self.planned(except);
        let members = self.records.nodes.values().filter(|node| !node.revoked);
        let nodes = members.map(|record| {
            let mut vms = residents.remove(&record.name).unwrap_or_default();
            let coming = planned.remove(&record.name).unwrap_or_default();
            vms.extend(coming.vms);
            let used = self.observed.ledger.used(&record.name, except);
            Candidate {
                node: &record.name,
                connected: self.is_up(&record.name),
                cordoned: record.cordoned,
                facts: record.facts.as_ref(),
                used: used.plus(coming.takes),
                vms,
            }
        });
        Snapshot {
            nodes: nodes.collect(),
            weights: self.settings.placement.default,
        }
    }

    /// Which of the VMs take room on each node.
    fn residents<'a>(
        &'a self,
        vms: impl Iterator<Item = (VmId, &'a Share)>,
    ) -> BTreeMap<&'a NodeId, Vec<&'a VmSpec>> {
        let mut residents: BTreeMap<&NodeId, Vec<&VmSpec>> = BTreeMap::new();
        for (vm, share) in vms {
            let Some(record) = self.records.vms.get(&vm) else {
                continue;
            };
            for node in &share.places {
                residents.entry(node).or_default().push(&record.spec);
            }
        }
        residents
    }

    /// What is on every node that has anything.
    #[cfg(test)]
    pub(super) fn loads(&self) -> BTreeMap<&NodeId, Load> {
        let mut loads = self.observed.ledger.loads();
        for (node, coming) in self.planned(None) {
            let load = loads.entry(node).or_default();
            load.used = load.used.plus(coming.takes);
        }
        loads
    }

    /// The nodes where the VM takes room.
    pub(super) fn places_of<'a>(&'a self, record: &'a VmRecord) -> BTreeSet<&'a NodeId> {
        let wanted = record.desired == RunState::Running;
        let owner = record.owner.as_ref().filter(|_| wanted);
        let task = self.observed.busy.get(&record.id);
        let task = task.and_then(|id| self.records.tasks.get(id));
        let coming = task
            .filter(|task| task.kind.starts())
            .and_then(|task| task.node.as_ref());
        let migration = self.observed.moving.get(&record.id);
        let migration = migration.and_then(|id| self.records.migrations.get(id));
        let copies = self.copies(record.id);
        let processes = copies.filter(|(_, report)| report.state.has_process());
        owner
            .into_iter()
            .chain(coming)
            .chain(migration.map(|migration| &migration.target))
            .chain(processes.map(|(node, _)| node))
            .collect()
    }
}

impl TaskKind {
    /// Whether the task ends with a guest that runs where there was none.
    pub(crate) const fn starts(self) -> bool {
        matches!(
            self,
            Self::Create { start: true }
                | Self::Failover
                | Self::Command(godwit_shared::model::LifecycleCommand::Start)
        )
    }
}

/// Whether it matters to the VM which others are where, beyond what they take.
fn minds_others(spec: &VmSpec) -> bool {
    let placement = &spec.placement;
    placement.spread_by.is_some() || placement.rule_names().next().is_some()
}

/// What the request asks of placement.
pub(super) fn wish(request: &CreateVm) -> Request<'_> {
    Request {
        only: request.node.as_ref(),
        ..Request::new(&request.spec)
    }
}

/// What is kept of a decision.
pub(super) fn decision(
    view: &PlacementView,
    spec: &VmSpec,
    node: &NodeId,
    reason: DecisionReason,
    now: UnixMillis,
) -> Decision {
    Decision {
        profile: spec.placement.profile.clone(),
        ..Decision::of(view, node, reason, now)
    }
}

/// The choice, or why there is none.
pub(super) fn choice(
    view: PlacementView,
    spec: &VmSpec,
    only: Option<&NodeId>,
    now: UnixMillis,
) -> Result<Decision, Problem> {
    if let Some(node) = &view.node {
        let reason = match only {
            Some(_) => DecisionReason::Asked,
            None => DecisionReason::Best,
        };
        return Ok(decision(&view, spec, node, reason, now));
    }
    let name = &spec.name;
    let named = |node: &NodeId| only.is_none_or(|only| only == node);
    let refused = view
        .nodes
        .into_iter()
        .filter(|verdict| named(&verdict.node));
    let reasons: Vec<Problem> = refused.flat_map(|verdict| verdict.refused).collect();
    let message = match (only, &reasons[..]) {
        (_, []) => format!("there is no node that could take {name}"),
        (Some(node), _) => format!("{name} does not fit on {node}"),
        (None, _) => format!("no node can take {name}"),
    };
    let remedy = match reasons.first() {
        None => "add a node: `godwit node token` makes a token to join with".to_owned(),
        Some(first) => first
            .remedy
            .clone()
            .unwrap_or_else(|| first.message.clone()),
    };
    Err(Problem::new(codes::NO_NODE_FITS, message)
        .remedy(remedy)
        .and(the_first(reasons)))
}

/// No more of them than somebody reads.
fn the_first(mut reasons: Vec<Problem>) -> Vec<Problem> {
    let more = reasons.len().saturating_sub(REASONS);
    if more > 0 {
        reasons.truncate(REASONS);
        let text = format!("{more} more reasons stand against other nodes");
        let remedy = "see all of them: `godwit vm place --explain`";
        reasons.push(Problem::new(codes::NO_NODE_FITS, text).remedy(remedy));
    }
    reasons
}
