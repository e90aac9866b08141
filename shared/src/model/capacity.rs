//! What a node is, has, and has given away.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::{Accelerator, Architecture, Hugepages, Taint, VmSpec};
use super::units::MiB;

/// CPUs and memory that a node offers to guests.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub struct Capacity {
    /// vCPUs, overcommit included.
    pub vcpus: u32,
    /// Guest memory, overcommit included.
    pub memory: MiB,
}

/// CPUs and memory that guests take.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub struct Usage {
    /// vCPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: MiB,
}

impl Usage {
    /// What a VM of this spec takes.
    pub fn of(spec: &VmSpec) -> Self {
        Self {
            vcpus: spec.cpu.count,
            memory: spec.memory,
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory: self.memory + other.memory,
        }
    }

    /// Whether this much fits into `capacity`.
    pub fn fits(self, capacity: Capacity) -> bool {
        self.vcpus <= capacity.vcpus && self.memory <= capacity.memory
    }
}

/// What a node says of itself when it connects; detected, never configured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct NodeFacts {
    /// The version of `godwit-node`.
    pub software: String,
    /// The host's name.
    pub hostname: String,
    /// The kernel's boot id: it changes when the host is booted anew.
    pub boot_id: String,
    /// The running kernel, as `uname -r` prints it.
    pub kernel: String,
    /// What the node offers to guests.
    pub capacity: Capacity,
    /// What the host has; nothing when it was not told.
    #[serde(default)]
    pub physical: Capacity,
    /// How much of that is offered.
    #[serde(default)]
    pub overcommit: Overcommit,
    /// The QEMUs found, by guest architecture.
    pub emulators: Vec<EmulatorFacts>,
    /// Labels: those of the node's configuration, and on record its operators' over
    /// them.
    pub labels: BTreeMap<String, String>,
    /// Where peers reach the node: `host:port`.
    pub address: String,
    /// Marks that keep VMs away, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
    /// The host's NUMA nodes; none when they were not told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numa: Vec<NumaNode>,
    /// The storage that the node reaches; everything when it was not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Vec<StorageFacts>>,
    /// The networks that the node reaches, by name; all when it was not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<String>>,
    /// Files of images that the node holds itself, by path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
}

/// How much of a host's CPUs and memory a node offers, in percent: 400 is four
/// vCPUs for each core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Overcommit {
    /// vCPUs for 100 cores.
    pub cpu_percent: u32,
    /// Guest memory for 100 MiB that the host can spare.
    pub memory_percent: u32,
}

impl Default for Overcommit {
    fn default() -> Self {
        Self {
            cpu_percent: 100,
            memory_percent: 100,
        }
    }
}

/// One NUMA node of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct NumaNode {
    /// The kernel's number.
    pub id: u32,
    /// Its CPUs, by the kernel's numbers.
    pub cpus: Vec<u32>,
    /// Its memory.
    pub memory: MiB,
    /// Its huge pages, by size: how many the kernel keeps.
    #[serde(default)]
    pub hugepages: BTreeMap<Hugepages, u64>,
}

/// Storage that a node reaches.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct StorageFacts {
    /// The folder under which it is found.
    pub path: String,
    /// The same files are there on every node that names this storage.
    pub shared: bool,
}

/// The CPU models of one QEMU with one accelerator on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct CpuFacts {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Models that are there in full.
    pub models: Vec<String>,
    /// Models that QEMU knows, with the features that the host lacks for each.
    #[serde(default)]
    pub lacking: BTreeMap<String, Vec<String>>,
    /// Features that a guest can be given; none when they were not told.
    #[serde(default)]
    pub features: Vec<String>,
}

/// Major and minor of a QEMU's version such as `10.0.2`: a guest moves to the same
/// or a later release only. None where the text does not begin with both.
pub fn qemu_release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    });
    Some((parts.next()??, parts.next()??))
}

/// One QEMU of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct EmulatorFacts {
    /// The guest architecture that it runs.
    pub architecture: Architecture,
    /// The program's path.
    pub path: String,
    /// Its version, for example `10.0.2`.
    pub version: String,
    /// Accelerators that really work, best first.
    pub accelerators: Vec<Accelerator>,
    /// Machine types, without the deprecated ones.
    pub machines: Vec<String>,
    /// What `q35` and the like stand for here: `q35` to `pc-q35-10.0`.
    pub machine_aliases: BTreeMap<String, String>,
    /// Its CPU models, by accelerator; none when they were not told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<CpuFacts>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(qemu_release("9.2.0") < qemu_release("10.0.2"));
        assert_eq!(qemu_release("7.2.22 (Debian 1:7.2+dfsg-7)"), Some((7, 2)));
        assert_eq!(qemu_release("x"), None);
    }
}
