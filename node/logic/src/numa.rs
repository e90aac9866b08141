//! What the kernel tells of the host's memory, read.
//!
//! Reference: `Documentation/ABI/stable/sysfs-devices-node` (`cpulist`,
//! `meminfo`, `hugepages/hugepages-*kB/nr_hugepages`) and
//! `Documentation/admin-guide/mm/hugetlbpage.rst` of the kernel. What cannot be
//! read counts as not there: a host that tells nothing is asked for nothing.

use godwit_shared::model::MiB;
use godwit_shared::model::spec::Hugepages;

/// No machine has more; a file that names more is not believed.
const MAX_CPU: u32 = 65_535;

/// A list such as `0-3,8,10-11`; none when it is not one.
pub fn cpu_list(text: &str) -> Option<Vec<u32>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > MAX_CPU {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// A field of `meminfo`, of a node (`Node 0 MemTotal: 1024 kB`) or of the host
/// (`MemTotal: 1024 kB`).
pub fn meminfo(text: &str, field: &str) -> Option<MiB> {
    let value = text.lines().find_map(|line| {
        let (before, value) = line.split_once(':')?;
        (before.split_whitespace().next_back()? == field).then_some(value)
    })?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(MiB(kib >> 10))
}

/// The size of pages that a folder such as `hugepages-2048kB` is about.
pub fn page_size(folder: &str) -> Option<Hugepages> {
    let kib = folder.strip_prefix("hugepages-")?.strip_suffix("kB")?;
    match kib.parse::<u64>().ok()? {
        2_048 => Some(Hugepages::Mib2),
        1_048_576 => Some(Hugepages::Gib1),
        _ => None,
    }
}

/// The number of a folder such as `node3`.
pub fn node_number(folder: &str) -> Option<u32> {
    folder.strip_prefix("node")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read_or_refused_whole() {
        assert_eq!(cpu_list("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(cpu_list("\n"), Some(vec![]), "a node of memory alone");
        for wrong in ["a", "3-1", "1-", "0-4294967295", "1,,2"] {
            assert_eq!(cpu_list(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn memory_is_read_from_either_form() {
        let node = "Node 1 MemTotal:       65970696 kB\nNode 1 MemFree:   2048 kB\n";
        assert_eq!(meminfo(node, "MemTotal"), Some(MiB(64_424)));
        assert_eq!(meminfo("MemTotal: 2048 kB\n", "MemTotal"), Some(MiB(2)));
        assert_eq!(meminfo(node, "Total"), None);
        assert_eq!(meminfo("MemTotal: lots\n", "MemTotal"), None);
    }

    #[test]
    fn folders_tell_sizes_and_numbers() {
        assert_eq!(page_size("hugepages-2048kB"), Some(Hugepages::Mib2));
        assert_eq!(page_size("hugepages-1048576kB"), Some(Hugepages::Gib1));
        assert_eq!(page_size("hugepages-64kB"), None);
        assert_eq!(node_number("node12"), Some(12));
        assert_eq!(node_number("node"), None);
        assert_eq!(node_number("has_cpu"), None);
    }
}
