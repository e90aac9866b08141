//! The host's NUMA nodes and huge pages, as sysfs shows them.
//!
//! `/sys/devices/system/node` where the kernel knows NUMA nodes; a kernel
//! without them shows its huge pages in `/sys/kernel/mm/hugepages` and counts as
//! one node. Hosts may take CPUs and pages away while they run, so what is told
//! to the coordinator is of the daemon's start, and a VM's start looks again
//! ([`free`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use godwit_node_logic::numa::{cpu_list, meminfo, node_number, page_size};
use godwit_node_logic::qemu::backing::{Backing, BackingError, choose};
use godwit_shared::model::VmSpec;
use godwit_shared::model::capacity::NumaNode;
use godwit_shared::model::spec::Hugepages;

/// Where sysfs and procfs are: a folder of its own in tests.
#[derive(Debug, Clone)]
pub struct Roots {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            proc: "/proc".into(),
        }
    }
}

/// Which of a node's pages are counted.
#[derive(Debug, Clone, Copy)]
enum Count {
    /// All that there are.
    All,
    /// Those that nobody uses.
    Free,
}

impl Count {
    const fn memory(self) -> &'static str {
        match self {
            Self::All => "MemTotal",
            Self::Free => "MemFree",
        }
    }

    const fn pages(self) -> &'static str {
        match self {
            Self::All => "nr_hugepages",
            Self::Free => "free_hugepages",
        }
    }
}

/// What there is, by the nodes' numbers.
pub fn read(roots: &Roots) -> Vec<NumaNode> {
    look(roots, Count::All)
}

/// What is free now.
pub fn free(roots: &Roots) -> Vec<NumaNode> {
    look(roots, Count::Free)
}

/// What the memory of that guest is made of here, as things stand. Blocks for
/// as long as a few files of sysfs take.
pub fn backing(spec: &VmSpec) -> Result<Backing, BackingError> {
    if spec.memory_backing.is_default() {
        return Ok(Backing::default());
    }
    let roots = Roots::default();
    choose(spec, &read(&roots), &free(&roots))
}

fn look(roots: &Roots, count: Count) -> Vec<NumaNode> {
    let nodes = roots.sys.join("devices/system/node");
    let mut found: Vec<NumaNode> = names(&nodes)
        .filter_map(|name| Some((node_number(&name)?, nodes.join(&name))))
        .filter_map(|(id, dir)| node(id, &dir, count))
        .collect();
    found.sort_by_key(|node| node.id);
    if found.is_empty() {
        found.extend(whole_host(roots, count));
    }
    found
}

fn node(id: u32, dir: &Path, count: Count) -> Option<NumaNode> {
    Some(NumaNode {
        id,
        cpus: cpu_list(&text(&dir.join("cpulist"))?)?,
        memory: meminfo(&text(&dir.join("meminfo"))?, count.memory())?,
        hugepages: pages(&dir.join("hugepages"), count),
    })
}

/// A kernel without NUMA.
fn whole_host(roots: &Roots, count: Count) -> Option<NumaNode> {
    let cpus = text(&roots.sys.join("devices/system/cpu/online"))?;
    Some(NumaNode {
        id: 0,
        cpus: cpu_list(&cpus)?,
        memory: meminfo(&text(&roots.proc.join("meminfo"))?, count.memory())?,
        hugepages: pages(&roots.sys.join("kernel/mm/hugepages"), count),
    })
}

/// The host's sizes of huge pages, also those of which it keeps none.
fn pages(dir: &Path, count: Count) -> BTreeMap<Hugepages, u64> {
    names(dir)
        .filter_map(|name| {
            let number = text(&dir.join(&name).join(count.pages()))?;
            Some((page_size(&name)?, number.trim().parse().ok()?))
        })
        .collect()
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use godwit_shared::model::MiB;

    use super::*;

    fn put(root: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }

    fn roots(dir: &Path) -> Roots {
        Roots {
            sys: dir.join("sys"),
            proc: dir.join("proc"),
        }
    }

    const TWO_NODES: &[(&str, &str)] = &[
        ("sys/devices/system/node/online", "0-1\n"),
        ("sys/devices/system/node/node0/cpulist", "0-1,4-5\n"),
        (
            "sys/devices/system/node/node0/meminfo",
            "Node 0 MemTotal: 4194304 kB\nNode 0 MemFree: 1048576 kB\n",
        ),
        (
            "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages",
            "512\n",
        ),
        (
            "sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages",
            "100\n",
        ),
        (
            "sys/devices/system/node/node0/hugepages/hugepages-64kB/nr_hugepages",
            "3\n",
        ),
        ("sys/devices/system/node/node1/cpulist", "2-3\n"),
        (
            "sys/devices/system/node/node1/meminfo",
            "Node 1 MemTotal: 2097152 kB\nNode 1 MemFree: 2048 kB\n",
        ),
        ("sys/devices/system/node/node2/cpulist", "broken"),
    ];

    #[test]
    fn nodes_are_read_by_number_and_broken_ones_left_out() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), TWO_NODES);
        let nodes = read(&roots(dir.path()));
        assert_eq!(nodes.len(), 2, "{nodes:?}");
        assert_eq!((nodes[0].id, nodes[1].id), (0, 1));
        assert_eq!(nodes[0].cpus, [0, 1, 4, 5]);
        assert_eq!(nodes[0].memory, MiB(4096));
        assert_eq!(nodes[0].hugepages, [(Hugepages::Mib2, 512)].into());
        assert!(nodes[1].hugepages.is_empty());
        let free = free(&roots(dir.path()));
        assert_eq!((free[0].memory, free[1].memory), (MiB(1024), MiB(2)));
        assert_eq!(free[0].hugepages[&Hugepages::Mib2], 100);
    }

    #[test]
    fn a_kernel_without_numa_is_one_node() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("sys/devices/system/cpu/online", "0-1\n"),
            ("proc/meminfo", "MemTotal: 8192 kB\nMemFree: 4096 kB\n"),
            (
                "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
                "2",
            ),
        ];
        put(dir.path(), &files);
        let nodes = read(&roots(dir.path()));
        assert_eq!(nodes.len(), 1);
        assert_eq!((nodes[0].cpus.len(), nodes[0].memory), (2, MiB(8)));
        assert_eq!(nodes[0].hugepages, [(Hugepages::Gib1, 2)].into());
    }

    #[test]
    fn a_host_that_tells_nothing_has_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(&roots(dir.path())), []);
    }
}
