//! What is left on a host's NUMA nodes and in its pools of huge pages.
//!
//! Only VMs that asked for a NUMA fit are bound to a node; which one they got is
//! not reported, so they are dealt out the way a careful host would: the largest
//! first, each to the node with the least room that still holds it.

use std::cmp::Reverse;

use godwit_shared::model::spec::{Hugepages, MemoryBacking, NumaFit};
use godwit_shared::model::{MiB, NodeFacts, Usage};

use super::request::Candidate;

/// What is free.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Numa {
    nodes: Vec<Free>,
    /// On all nodes together, by size.
    pages: [MiB; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Free {
    usage: Usage,
    pages: [MiB; 2],
}

impl Numa {
    /// What the VMs there leave.
    pub(super) fn on(candidate: &Candidate<'_>, facts: &NodeFacts) -> Self {
        let vms = candidate.vms.iter();
        let vms = vms.map(|vm| (Usage::of(vm), vm.memory_backing));
        Self::empty(facts).left_by(vms.filter(|(_, backing)| !backing.is_default()).collect())
    }

    /// What those VMs leave, each with what it asked its memory to be made of.
    pub(super) fn left_by(&self, mut vms: Vec<(Usage, MemoryBacking)>) -> Self {
        let mut numa = self.clone();
        vms.sort_by_key(|(usage, backing)| (Reverse(usage.memory), Reverse(usage.vcpus), *backing));
        for (usage, backing) in vms {
            numa.take(usage, backing);
        }
        numa
    }

    /// With nothing on it.
    pub(super) fn empty(facts: &NodeFacts) -> Self {
        let ratio = u64::from(facts.overcommit.cpu_percent);
        let nodes = facts.numa.iter().map(|node| {
            let pages = |size: Hugepages| {
                let count = node.hugepages.get(&size).copied().unwrap_or_default();
                let one = size.size().unwrap_or_default();
                MiB(count.saturating_mul(one.0))
            };
            let vcpus = (node.cpus.len() as u64).saturating_mul(ratio) / 100;
            Free {
                usage: Usage {
                    vcpus: u32::try_from(vcpus).unwrap_or(u32::MAX),
                    memory: node.memory,
                },
                pages: [pages(Hugepages::Mib2), pages(Hugepages::Gib1)],
            }
        });
        let nodes: Vec<Free> = nodes.collect();
        let pages = [0, 1].map(|size| nodes.iter().map(|node| node.pages[size]).sum());
        Self { nodes, pages }
    }

    fn take(&mut self, usage: Usage, backing: MemoryBacking) {
        let size = slot(backing.hugepages);
        if let Some(size) = size {
            self.pages[size] = self.pages[size] - usage.memory;
        }
        if backing.numa_fit == NumaFit::None {
            return;
        }
        let holding = self
            .nodes
            .iter_mut()
            .filter(|node| node.holds(usage, backing));
        if let Some(node) = holding.min_by_key(|node| (node.usage.memory, node.usage.vcpus)) {
            node.usage.memory = node.usage.memory - usage.memory;
            node.usage.vcpus -= usage.vcpus;
            if let Some(size) = size {
                node.pages[size] = node.pages[size] - usage.memory;
            }
        }
    }

    /// How much memory the free huge pages of that size are.
    pub(super) fn pages_free(&self, size: Hugepages) -> MiB {
        slot(size).map_or(MiB::ZERO, |size| self.pages[size])
    }

    /// Whether one NUMA node has room for all of it.
    pub(super) fn holds(&self, usage: Usage, backing: MemoryBacking) -> bool {
        self.nodes.iter().any(|node| node.holds(usage, backing))
    }
}

impl Free {
    fn holds(&self, usage: Usage, backing: MemoryBacking) -> bool {
        let pages = slot(backing.hugepages).is_none_or(|size| self.pages[size] >= usage.memory);
        pages && self.usage.memory >= usage.memory && self.usage.vcpus >= usage.vcpus
    }
}

const fn slot(size: Hugepages) -> Option<usize> {
    match size {
        Hugepages::None => None,
        Hugepages::Mib2 => Some(0),
        Hugepages::Gib1 => Some(1),
    }
}
