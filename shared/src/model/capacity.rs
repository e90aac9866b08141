//! What a node is, has, and has given away.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::{Accelerator, Architecture, VmSpec};
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
    /// The QEMUs found, by guest architecture.
    pub emulators: Vec<EmulatorFacts>,
    /// Labels from the node's configuration.
    pub labels: BTreeMap<String, String>,
    /// Where peers reach the node: `host:port`.
    pub address: String,
}

/// One QEMU of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
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
}
