//! The smallest change that would make a node fit.
//!
//! Every refusal names a change of its own. Taken together they can be too much
//! (one makes another superfluous) or too little (another accelerator brings
//! other CPU models), so they are applied to a copy and looked at again: what is
//! still lacking is added, and what can be left out is left out.

use godwit_shared::api::Change;
use godwit_shared::model::spec::{Hugepages, NumaFit, Taint, Toleration};
use godwit_shared::model::{MiB, NodeFacts, VmSpec};

use super::filter::{Refusal, refusals};
use super::request::{Candidate, Request};
use super::rules::Rules;

/// How often is looked again; one time does for nearly everything.
const ROUNDS: usize = 4;

/// What would make the node fit, beginning with what it has against it.
pub(super) fn changes(
    candidate: &Candidate<'_>,
    request: &Request<'_>,
    rules: &Rules<'_>,
    refused: &[Refusal],
) -> Vec<Change> {
    let mut found = Vec::new();
    add(&mut found, refused);
    if candidate.facts.is_none() {
        return found; // What else it would have against it is not known.
    }
    for _ in 0..ROUNDS {
        let still = applied(candidate, request, rules, &found);
        if still.is_empty() {
            break;
        }
        add(&mut found, &still);
    }
    leave_out(candidate, request, rules, &mut found);
    found
}

/// Adds one round's changes: of the same kind the largest of the round, on top
/// of earlier rounds. Others make room only for what the VM cannot give up.
fn add(found: &mut Vec<Change>, refused: &[Refusal]) {
    let less = |change: &Change| match change {
        Change::LessMemory { by } => Some(*by),
        _ => None,
    };
    let room = |change: &Change| {
        matches!(
            change,
            Change::FreeMemory { .. } | Change::OfferMemory { .. }
        )
    };
    let changes = || refused.iter().map(|refusal| &refusal.change);
    let shrinks = changes().filter_map(less).max();
    let mut round: Vec<Change> = Vec::new();
    for change in changes() {
        let change = match (shrinks, change) {
            (Some(by), Change::LessMemory { .. }) => Change::LessMemory { by },
            (Some(_), change) if room(change) => continue,
            (_, change) => change.clone(),
        };
        if !round.contains(&change) {
            round.push(change);
        }
    }
    for change in round {
        sum(found, change);
    }
}

fn sum(found: &mut Vec<Change>, change: Change) {
    for earlier in found.iter_mut() {
        match (earlier, &change) {
            (Change::LessMemory { by }, Change::LessMemory { by: more })
            | (Change::FreeMemory { by }, Change::FreeMemory { by: more })
            | (Change::OfferMemory { by }, Change::OfferMemory { by: more }) => {
                *by = *by + *more;
                return;
            }
            (Change::FewerVcpus { by }, Change::FewerVcpus { by: more })
            | (Change::FreeVcpus { by }, Change::FreeVcpus { by: more })
            | (Change::OfferVcpus { by }, Change::OfferVcpus { by: more }) => {
                *by += more;
                return;
            }
            (earlier, change) if *earlier == *change => return,
            _ => {}
        }
    }
    found.push(change);
}

fn leave_out(
    candidate: &Candidate<'_>,
    request: &Request<'_>,
    rules: &Rules<'_>,
    found: &mut Vec<Change>,
) {
    for index in (0..found.len()).rev() {
        let mut fewer = found.clone();
        fewer.remove(index);
        if applied(candidate, request, rules, &fewer).is_empty() {
            *found = fewer;
        }
    }
}

/// What the node has against it with those changes made.
fn applied(
    candidate: &Candidate<'_>,
    request: &Request<'_>,
    rules: &Rules<'_>,
    changes: &[Change],
) -> Vec<Refusal> {
    let mut spec = request.spec.clone();
    let mut machine = request.machine.map(str::to_owned);
    let mut wanted = *request;
    let larger = candidate.facts.and_then(|facts| larger(facts, changes));
    let mut there = candidate.clone();
    there.facts = larger.as_ref().or(candidate.facts);
    let mut rules = rules.clone();
    for change in changes.iter().rev() {
        change_spec(&mut spec, change);
        match change {
            Change::UseMachine { machine: other } => machine = Some(other.clone()),
            Change::UseAccelerator { accelerator } => wanted.accelerator = *accelerator,
            Change::AskForNode => wanted.only = None,
            Change::LeaveNode => wanted.exclude = None,
            _ => change_node(&mut there, &mut rules, change),
        }
    }
    if there.live() {
        rules.join(&there);
    }
    let altered = Request {
        spec: &spec,
        machine: machine.as_deref(),
        ..wanted
    };
    let lacks_qemu = changes.contains(&Change::InstallQemu);
    let mut still = refusals(&there, &altered, &rules);
    still.retain(|refusal| !(lacks_qemu && refusal.change == Change::InstallQemu));
    still
}

/// What the node would say of itself if it offered more; none when it need not.
fn larger(facts: &NodeFacts, changes: &[Change]) -> Option<NodeFacts> {
    let mut capacity = facts.capacity;
    for change in changes {
        match change {
            Change::OfferMemory { by } => capacity.memory = capacity.memory + *by,
            Change::OfferVcpus { by } => capacity.vcpus = capacity.vcpus.saturating_add(*by),
            _ => {}
        }
    }
    (capacity != facts.capacity).then(|| NodeFacts {
        capacity,
        ..facts.clone()
    })
}

fn change_node(there: &mut Candidate<'_>, rules: &mut Rules<'_>, change: &Change) {
    match change {
        Change::FreeMemory { by } => there.used.memory = there.used.memory - *by,
        Change::FreeVcpus { by } => there.used.vcpus = there.used.vcpus.saturating_sub(*by),
        Change::Uncordon => there.cordoned = false,
        Change::Connect => there.connected = true,
        Change::WithoutRule { name, vm: None } => {
            rules.own.retain(|rule| rule.wish.name != Some(name));
        }
        Change::WithoutRule { name, vm: Some(vm) } => {
            rules
                .foreign
                .retain(|rule| rule.name != name || rule.vm != vm);
        }
        _ => {}
    }
}

fn change_spec(spec: &mut VmSpec, change: &Change) {
    match change {
        Change::LessMemory { by } => spec.memory = spec.memory - *by,
        Change::FewerVcpus { by } => spec.cpu.count = spec.cpu.count.saturating_sub(*by),
        Change::WithoutNodeLabel { key } => {
            spec.placement.node_labels.remove(key);
        }
        Change::Tolerate { taint } => spec.placement.tolerations.push(tolerating(taint)),
        Change::WithoutCpuModel => spec.cpu.model = None,
        Change::WithoutCpuFeature { feature } => {
            spec.placement.cpu_features.retain(|own| own != feature);
        }
        Change::WithoutDisk { index } => remove(&mut spec.disks, *index),
        Change::WithoutNic { index } => remove(&mut spec.nics, *index),
        Change::WithoutHugepages => spec.memory_backing.hugepages = Hugepages::None,
        Change::WithoutNumaFit => spec.memory_backing.numa_fit = NumaFit::None,
        _ => {}
    }
}

fn tolerating(taint: &Taint) -> Toleration {
    Toleration {
        key: taint.key.clone(),
        value: taint.value.clone(),
        effect: Some(taint.effect),
    }
}

/// Changes are applied from the last to the first, so earlier numbers stay true.
fn remove<T>(list: &mut Vec<T>, index: u32) {
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    if index < list.len() {
        list.remove(index);
    }
}

/// Rounded up to whole pages, where the memory is made of such.
pub(super) fn in_pages(by: MiB, pages: Hugepages) -> MiB {
    let page = pages.size().map_or(1, |size| size.0);
    MiB(by.0.div_ceil(page).saturating_mul(page))
}
