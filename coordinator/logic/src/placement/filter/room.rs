//! Whether there is room: memory, vCPUs, huge pages, one NUMA node.

use godwit_shared::api::Change;
use godwit_shared::model::spec::{MemoryBacking, NumaFit};
use godwit_shared::model::{MiB, NodeFacts, NodeId, Problem, Usage, codes};

use super::{LEAST_MEMORY, Refusal};
use crate::placement::explain::in_pages;
use crate::placement::numa::Numa;
use crate::placement::request::{Candidate, Request};

pub(super) fn refusals(
    candidate: &Candidate<'_>,
    facts: &NodeFacts,
    request: &Request<'_>,
) -> Vec<Refusal> {
    let mut found: Vec<Refusal> = memory(candidate, facts, request).into_iter().collect();
    found.extend(vcpus(candidate, facts, request));
    if !request.spec.memory_backing.is_default() {
        let numa = Numa::on(candidate, facts);
        found.extend(hugepages(candidate.node, &numa, request));
        found.extend(one_numa_node(candidate.node, &numa, request));
    }
    found
}

fn memory(candidate: &Candidate<'_>, facts: &NodeFacts, request: &Request<'_>) -> Option<Refusal> {
    let free = facts.capacity.memory - candidate.used.memory;
    let wanted = Usage::of(request.spec).memory;
    let lacks = candidate.used.memory + wanted - facts.capacity.memory;
    let node = candidate.node;
    (lacks > MiB::ZERO).then(|| {
        let problem = lacking(
            node,
            &format!("{lacks} of memory"),
            &wanted,
            &free,
            &stretched(facts.physical.memory.0, facts.capacity.memory.0, "memory"),
        )
        .field("memory")
        .remedy(smallest(&lacks.to_string(), node, &free));
        Refusal::new(problem, less_memory(candidate, request, lacks))
    })
}

/// A VM keeps the least memory that one can have: beyond that others make room,
/// and where they have too little of it the node has to become larger.
fn less_memory(candidate: &Candidate<'_>, request: &Request<'_>, by: MiB) -> Change {
    let pages = in_pages(by, request.spec.memory_backing.hugepages);
    if request.spec.memory - pages >= MiB(LEAST_MEMORY) {
        Change::LessMemory { by: pages }
    } else if by <= candidate.used.memory {
        Change::FreeMemory { by }
    } else {
        Change::OfferMemory { by }
    }
}

fn vcpus(candidate: &Candidate<'_>, facts: &NodeFacts, request: &Request<'_>) -> Option<Refusal> {
    let free = facts.capacity.vcpus.saturating_sub(candidate.used.vcpus);
    let wanted = Usage::of(request.spec).vcpus;
    let after = candidate.used.vcpus.saturating_add(wanted);
    let by = after.saturating_sub(facts.capacity.vcpus);
    let node = candidate.node;
    (by > 0).then(|| {
        let amount = format!("{by} vCPU{}", if by == 1 { "" } else { "s" });
        let (has, offers) = (facts.physical.vcpus, facts.capacity.vcpus);
        let problem = lacking(
            node,
            &amount,
            &wanted,
            &free,
            &stretched(has.into(), offers.into(), "CPUs"),
        )
        .field("cpu.count")
        .remedy(smallest(&amount, node, &free));
        let change = if free > 0 {
            Change::FewerVcpus { by }
        } else if by <= candidate.used.vcpus {
            Change::FreeVcpus { by }
        } else {
            Change::OfferVcpus { by }
        };
        Refusal::new(problem, change)
    })
}

fn lacking<T: std::fmt::Display>(
    node: &NodeId,
    amount: &str,
    wanted: &T,
    free: &T,
    more: &str,
) -> Problem {
    Problem::new(
        codes::INSUFFICIENT_RESOURCES,
        format!("{node} lacks {amount}: {wanted} wanted, {free} free{more}"),
    )
    .value(wanted.to_string())
}

/// Says so where more is offered than the host has.
fn stretched(has: u64, offers: u64, what: &str) -> String {
    match (offers * 100).checked_div(has) {
        Some(percent) if percent > 100 => {
            format!(" ({percent}% of the host's {what} are given out)")
        }
        _ => String::new(),
    }
}

fn hugepages(node: &NodeId, numa: &Numa, request: &Request<'_>) -> Option<Refusal> {
    let backing = request.spec.memory_backing;
    let wanted = request.spec.memory;
    let by = pages_lacking(numa, wanted, backing);
    (by > MiB::ZERO).then(|| {
        let free = wanted - by;
        let problem = lacking(
            node,
            &format!("{by} in pages of {}", backing.hugepages),
            &wanted,
            &free,
            "",
        )
        .field("memory_backing.hugepages")
        .remedy("set more huge pages aside there, or let the VM do without");
        let change = if free >= MiB(LEAST_MEMORY) {
            Change::LessMemory { by }
        } else {
            Change::WithoutHugepages
        };
        Refusal::new(problem, change)
    })
}

fn pages_lacking(numa: &Numa, wanted: MiB, backing: MemoryBacking) -> MiB {
    match backing.hugepages.size() {
        None => MiB::ZERO,
        Some(_) => wanted - numa.pages_free(backing.hugepages),
    }
}

fn one_numa_node(node: &NodeId, numa: &Numa, request: &Request<'_>) -> Option<Refusal> {
    let backing = request.spec.memory_backing;
    let required = backing.numa_fit == NumaFit::Required;
    (required && !numa.holds(Usage::of(request.spec), backing)).then(|| {
        let problem = Problem::new(
            codes::INSUFFICIENT_RESOURCES,
            format!("no NUMA node of {node} has room for the whole VM"),
        )
        .field("memory_backing.numa_fit")
        .value("required")
        .remedy("make the VM smaller, or let it lie across NUMA nodes");
        Refusal::new(problem, Change::WithoutNumaFit)
    })
}

/// The smallest change that makes room; what is free may be nothing.
fn smallest<T: PartialEq + Default + std::fmt::Display>(
    amount: &str,
    node: &NodeId,
    free: &T,
) -> String {
    if *free == T::default() {
        format!("free {amount} on {node}")
    } else {
        format!("free {amount} on {node}, or give the VM at most {free}")
    }
}
