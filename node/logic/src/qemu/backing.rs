//! What a guest's memory is made of on this host.
//!
//! Huge pages come from a memfd (`memory-backend-memfd`, `hugetlb`), so no
//! hugetlbfs has to be mounted; the kernel reserves them when QEMU maps them, or
//! QEMU does not start. A guest that shall lie in one NUMA node gets its memory
//! bound there (`host-nodes`, `policy=bind`): the kernel's NUMA balancing then
//! brings its vCPUs near. Bound huge pages are touched at once (`prealloc`),
//! since the reservation is the host's and not the node's, and a page that is
//! missing later would end the guest.
//!
//! Both sides of a migration read the same spec, so they have the same pages:
//! post-copy needs that. The NUMA node is chosen anew on each.

use godwit_shared::model::capacity::NumaNode;
use godwit_shared::model::spec::{Hugepages, NumaFit};
use godwit_shared::model::{MiB, Problem, VmSpec};
use serde_json::{Value, json};

/// What was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backing {
    /// The size of the pages.
    pub pages: Hugepages,
    /// The NUMA node that the memory is bound to.
    pub node: Option<u32>,
}

/// Memory that this host cannot give a guest now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackingError {
    /// The host keeps no pages of that size.
    #[error("this host has no huge pages of {size}")]
    NoPages {
        /// The size asked for.
        size: Hugepages,
    },
    /// It keeps too few, or others use them.
    #[error("{needed} huge pages of {size} are needed, and {free} are free on this host")]
    FewPages {
        /// The size asked for.
        size: Hugepages,
        /// How many are needed.
        needed: u64,
        /// How many nobody uses.
        free: u64,
    },
    /// No NUMA node holds the whole guest.
    #[error("no NUMA node of this host holds {vcpus} vCPUs and {memory}")]
    NoNode {
        /// The guest's vCPUs.
        vcpus: u32,
        /// Its memory.
        memory: MiB,
    },
}

impl BackingError {
    /// The error as an operator sees it.
    pub fn problem(&self, code: &'static str) -> Problem {
        let (field, remedy) = match self {
            Self::NoPages { size } | Self::FewPages { size, .. } => (
                "memory_backing.hugepages",
                format!(
                    "let the host keep more pages of {size} (vm.nr_hugepages, or the kernel's command line), or choose another node"
                ),
            ),
            Self::NoNode { .. } => (
                "memory_backing.numa_fit",
                "ask for `preferred`, for a smaller guest, or for another node".to_owned(),
            ),
        };
        Problem::new(code, self.to_string())
            .field(field)
            .remedy(remedy)
    }
}

/// Chooses for that spec. `all` is what the host has, `free` what nobody uses.
pub fn choose(spec: &VmSpec, all: &[NumaNode], free: &[NumaNode]) -> Result<Backing, BackingError> {
    let pages = spec.memory_backing.hugepages;
    check_pages(spec, free)?;
    let anywhere = Backing { pages, node: None };
    if spec.memory_backing.numa_fit == NumaFit::None {
        return Ok(anywhere);
    }
    let fitting = all.iter().filter(|node| holds(node, free, spec));
    let best = fitting.max_by_key(|node| (free_memory(node.id, free, pages), node.id));
    match (best, spec.memory_backing.numa_fit) {
        (Some(node), _) => Ok(Backing {
            node: Some(node.id),
            ..anywhere
        }),
        (None, NumaFit::Required) => Err(BackingError::NoNode {
            vcpus: spec.cpu.count,
            memory: spec.memory,
        }),
        (None, _) => Ok(anywhere),
    }
}

/// How many pages of its size the guest takes; none when they are ordinary.
fn needed(spec: &VmSpec) -> Option<u64> {
    let size = spec.memory_backing.hugepages.size()?;
    Some(spec.memory.0.div_ceil(size.0))
}

fn check_pages(spec: &VmSpec, free: &[NumaNode]) -> Result<(), BackingError> {
    let size = spec.memory_backing.hugepages;
    let Some(needed) = needed(spec) else {
        return Ok(());
    };
    let counts = free.iter().filter_map(|node| node.hugepages.get(&size));
    let (known, sum) = counts.fold((false, 0_u64), |(_, sum), n| (true, sum.saturating_add(*n)));
    match (known, sum) {
        (false, _) => Err(BackingError::NoPages { size }),
        (true, free) if free < needed => Err(BackingError::FewPages { size, needed, free }),
        _ => Ok(()),
    }
}

/// Huge pages have to be free; of ordinary memory the kernel frees what it needs.
fn holds(node: &NumaNode, free: &[NumaNode], spec: &VmSpec) -> bool {
    let cpus = u32::try_from(node.cpus.len()).unwrap_or(u32::MAX);
    let size = spec.memory_backing.hugepages;
    let memory = match needed(spec) {
        None => node.memory >= spec.memory,
        Some(needed) => pages_of(node.id, free, size) >= needed,
    };
    memory && cpus >= spec.cpu.count
}

fn pages_of(id: u32, nodes: &[NumaNode], size: Hugepages) -> u64 {
    let node = nodes.iter().find(|node| node.id == id);
    let pages = node.and_then(|node| node.hugepages.get(&size));
    pages.copied().unwrap_or_default()
}

fn free_memory(id: u32, free: &[NumaNode], pages: Hugepages) -> MiB {
    match pages.size() {
        Some(MiB(size)) => MiB(pages_of(id, free, pages).saturating_mul(size)),
        None => {
            let node = free.iter().find(|node| node.id == id);
            node.map(|node| node.memory).unwrap_or_default()
        }
    }
}

impl Backing {
    /// QEMU's object for that much memory.
    pub fn object(&self, id: &str, memory: MiB) -> Value {
        let size = memory.bytes().0;
        let mut object = match self.pages.size() {
            None => json!({"qom-type": "memory-backend-ram", "id": id, "size": size}),
            Some(page) => json!({
                "qom-type": "memory-backend-memfd",
                "id": id,
                "size": size,
                "hugetlb": true,
                "hugetlbsize": page.bytes().0,
                "prealloc": self.node.is_some(),
            }),
        };
        if let Some(node) = self.node {
            object["host-nodes"] = json!([node]);
            object["policy"] = json!("bind");
        }
        object
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use godwit_shared::model::codes;
    use godwit_shared::model::spec::SpecFormat;

    use super::*;

    fn spec(text: &str) -> VmSpec {
        let text = format!("name: a\nmemory: 64\n{text}");
        VmSpec::parse(&text, SpecFormat::Yaml).unwrap()
    }

    fn node(id: u32, cpus: u32, memory: u64, pages: u64) -> NumaNode {
        NumaNode {
            id,
            cpus: (0..cpus).collect(),
            memory: MiB(memory),
            hugepages: [(Hugepages::Mib2, pages)].into(),
        }
    }

    #[test]
    fn ordinary_memory_asks_for_nothing() {
        let chosen = choose(&spec(""), &[], &[]).unwrap();
        assert_eq!(chosen, Backing::default());
        let object = chosen.object("mem0", MiB(64));
        assert_eq!(object["qom-type"], "memory-backend-ram");
        assert_eq!(object.as_object().unwrap().len(), 3);
    }

    #[test]
    fn huge_pages_have_to_be_there_and_free() {
        let spec = spec("memory_backing: {hugepages: 2MiB}\n");
        let all = [node(0, 2, 1024, 64), node(1, 2, 1024, 0)];
        let chosen = choose(&spec, &all, &all).unwrap();
        assert_eq!((chosen.pages, chosen.node), (Hugepages::Mib2, None));
        let object = chosen.object("mem0", MiB(64));
        assert_eq!(object["hugetlbsize"], 2 << 20);
        assert_eq!(object["prealloc"], false);
        let short = choose(&spec, &all, &[node(0, 2, 1024, 15), node(1, 2, 1024, 16)]);
        let problem = short.unwrap_err().problem(codes::QEMU_START);
        assert!(
            problem.message.contains("32 huge pages of 2MiB"),
            "{problem}"
        );
        assert_eq!(problem.field.as_deref(), Some("memory_backing.hugepages"));
        let mut foreign = all.clone();
        for node in &mut foreign {
            node.hugepages.clear();
        }
        let size = Hugepages::Mib2;
        assert_eq!(
            choose(&spec, &foreign, &foreign),
            Err(BackingError::NoPages { size })
        );
    }

    #[test]
    fn the_node_with_the_most_room_holds_all_of_it() {
        let spec = spec("cpu: {count: 2}\nmemory_backing: {numa_fit: required}\n");
        let all = [node(0, 2, 512, 0), node(1, 2, 512, 0), node(2, 1, 4096, 0)];
        let free = [node(0, 2, 100, 0), node(1, 2, 200, 0), node(2, 1, 4000, 0)];
        assert_eq!(choose(&spec, &all, &free).unwrap().node, Some(1));
        let object = choose(&spec, &all, &free).unwrap().object("m", MiB(64));
        assert_eq!(object["host-nodes"], json!([1]));
        assert_eq!(object["policy"], "bind");
        let small = [node(2, 1, 4096, 0)];
        let refused = choose(&spec, &small, &small).unwrap_err();
        let problem = refused.problem(codes::MIGRATION_BLOCKED);
        assert_eq!(problem.field.as_deref(), Some("memory_backing.numa_fit"));
    }

    #[test]
    fn a_preferred_fit_falls_back() {
        let spec = spec("memory_backing: {numa_fit: preferred, hugepages: 2MiB}\n");
        let split = [node(0, 2, 512, 16), node(1, 2, 512, 16)];
        assert_eq!(choose(&spec, &split, &split).unwrap().node, None);
        let whole = [node(0, 2, 512, 16), node(1, 2, 512, 32)];
        let chosen = choose(&spec, &whole, &whole).unwrap();
        assert_eq!(chosen.node, Some(1));
        assert_eq!(chosen.object("m", MiB(64))["prealloc"], true);
    }
}
