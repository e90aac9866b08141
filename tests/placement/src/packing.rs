//! How full nodes become, beside best fit: the classic rule for it, which puts each
//! VM on the node where the least is left.

use anyhow::Result;
use godwit_coordinator_logic::placement::{Index, Request, place};
use godwit_shared::model::{NodeId, Usage, VmSpec};

use crate::world::{World, packing};

/// So much memory is asked for, in percent of what there is.
const ASKED: u64 = 110;

/// The memory of the VMs that were placed by the weights that pack, divided by
/// that of those that best fit placed. Both see the same VMs in the same order
/// and keep their rules.
pub(crate) fn compare(nodes: usize, seed: u64) -> Result<f64> {
    let world = World::empty(nodes, seed)?;
    let mut index = Index::of(&world.snapshot(packing()));
    let packed = fill(nodes, seed, |_, spec| {
        let chosen = index.place(&Request::new(spec), &packing());
        chosen.map(|chosen| chosen.node)
    })?;
    let best_fit = fill(nodes, seed, best_fit)?;
    Ok(packed as f64 / best_fit as f64)
}

fn fill(
    nodes: usize,
    seed: u64,
    mut choose: impl FnMut(&World, &VmSpec) -> Option<NodeId>,
) -> Result<u64> {
    let mut world = World::empty(nodes, seed)?;
    let capacity = world.hosts.iter().map(|host| host.facts.capacity.memory.0);
    let enough = capacity.sum::<u64>() * ASKED / 100;
    let (mut asked, mut placed) = (0, 0);
    while asked < enough {
        let (app, size) = world.new_app()?;
        for _ in 0..size {
            let memory = world.apps[app].memory.0;
            asked += memory;
            if let Some(node) = choose(&world, &world.apps[app]) {
                placed += memory;
                let host = world.number(&node);
                world.put(app, host);
            }
        }
    }
    Ok(placed)
}

fn best_fit(world: &World, spec: &VmSpec) -> Option<NodeId> {
    let view = place(&world.snapshot(packing()), &Request::new(spec));
    let fitting = view.nodes.iter().filter(|verdict| verdict.score.is_some());
    let left = |node: &NodeId| {
        let host = &world.hosts[world.number(node)];
        let after = host.used.plus(Usage::of(spec));
        let capacity = host.facts.capacity;
        let memory = (capacity.memory - after.memory).0 as f64 / capacity.memory.0 as f64;
        let vcpus = capacity.vcpus.saturating_sub(after.vcpus);
        memory + f64::from(vcpus) / f64::from(capacity.vcpus)
    };
    let best = fitting.min_by(|a, b| left(&a.node).total_cmp(&left(&b.node)));
    best.map(|verdict| verdict.node.clone())
}
