//! Whether the node reaches the VM's disks and networks.

use godwit_shared::api::Change;
use godwit_shared::model::capacity::StorageFacts;
use godwit_shared::model::spec::DiskSpec;
use godwit_shared::model::{NodeFacts, NodeId};

use super::{Refusal, unfit};
use crate::placement::request::Request;

pub(super) fn refusals(node: &NodeId, facts: &NodeFacts, request: &Request<'_>) -> Vec<Refusal> {
    let mut found = disks(node, facts, request);
    found.extend(nics(node, facts, request));
    found
}

fn disks(node: &NodeId, facts: &NodeFacts, request: &Request<'_>) -> Vec<Refusal> {
    let Some(storage) = &facts.storage else {
        return Vec::new();
    };
    let disks = request.spec.disks.iter().enumerate();
    let missing = disks.filter(|(_, disk)| !storage.iter().any(|one| holds(one, disk)));
    missing
        .map(|(index, disk)| {
            let what = if disk.shared {
                "shared storage"
            } else {
                "storage"
            };
            let problem = unfit(format!("{node} reaches no {what} with {}", disk.path))
                .field(format!("disks[{index}].path"))
                .value(disk.path.clone())
                .remedy(format!("mount it on {node}, or name nodes that reach it"));
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            Refusal::new(problem, Change::WithoutDisk { index })
        })
        .collect()
}

/// A shared disk needs storage that is the same everywhere.
fn holds(storage: &StorageFacts, disk: &DiskSpec) -> bool {
    let folder = storage.path.trim_end_matches('/');
    let under = disk
        .path
        .strip_prefix(folder)
        .is_some_and(|rest| rest.starts_with('/'));
    under && (storage.shared || !disk.shared)
}

fn nics(node: &NodeId, facts: &NodeFacts, request: &Request<'_>) -> Vec<Refusal> {
    let Some(networks) = &facts.networks else {
        return Vec::new();
    };
    let nics = request.spec.nics.iter().enumerate();
    let missing = nics.filter(|(_, nic)| !networks.iter().any(|one| one == nic.network.name()));
    missing
        .map(|(index, nic)| {
            let network = nic.network.name();
            let problem = unfit(format!("{node} does not reach the network {network}"))
                .field(format!("nics[{index}].network"))
                .value(network)
                .remedy(format!("connect {node} to it, or name nodes that reach it"));
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            Refusal::new(problem, Change::WithoutNic { index })
        })
        .collect()
}
