//! Where a VM would go, why, what would have to change, and what if.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::spec::{Accelerator, Taint};
use crate::model::{Capacity, MiB, NodeFacts, NodeId, Problem, Usage, VmName, VmSpec};

/// Where a VM would go, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct PlacementView {
    /// The node of choice; none when no node fits.
    pub node: Option<NodeId>,
    /// Every node, best first, those that do not fit last.
    pub nodes: Vec<NodeVerdict>,
}

/// What placement thinks of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct NodeVerdict {
    /// The node.
    pub node: NodeId,
    /// Why it does not fit; empty when it does.
    pub refused: Vec<Problem>,
    /// What would make it fit, all of it together; nothing of it can be left
    /// out, and no smaller amount would do.
    #[serde(default)]
    pub changes: Vec<Change>,
    /// Its score, 0 to 1000; the highest wins, then the name.
    pub score: Option<u32>,
    /// How the score came about.
    pub scores: Vec<ScorePart>,
}

/// One part of a score.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ScorePart {
    /// The scorer.
    pub name: String,
    /// Its points, 0 to 1000, before its weight.
    pub points: u32,
    /// Its weight.
    pub weight: u32,
}

/// A change of the VM, of the request or of the node with which the node fits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// The VM takes that much less memory.
    LessMemory {
        /// How much less.
        by: MiB,
    },
    /// The VM takes that many vCPUs less.
    FewerVcpus {
        /// How many less.
        by: u32,
    },
    /// Other VMs leave that much memory free on the node.
    FreeMemory {
        /// How much more has to be free.
        by: MiB,
    },
    /// Other VMs leave that many vCPUs free on the node.
    FreeVcpus {
        /// How many more have to be free.
        by: u32,
    },
    /// The node offers that much more memory, because its host gets more or by
    /// another overcommit ratio: it would be too small with nothing on it.
    OfferMemory {
        /// How much more.
        by: MiB,
    },
    /// The node offers that many vCPUs more, as with memory.
    OfferVcpus {
        /// How many more.
        by: u32,
    },
    /// The VM has no such rule.
    WithoutRule {
        /// The rule's name.
        name: String,
        /// The VM whose rule it is, when it is another's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vm: Option<VmName>,
    },
    /// The VM does not ask for that label of nodes.
    WithoutNodeLabel {
        /// The label.
        key: String,
    },
    /// The VM tolerates the node's taint.
    Tolerate {
        /// The taint.
        taint: Taint,
    },
    /// The node is opened for new VMs again.
    Uncordon,
    /// The node comes back, or connects for the first time.
    Connect,
    /// The request names no node, or this one.
    AskForNode,
    /// The VM is elsewhere, or the move is not asked for.
    LeaveNode,
    /// The node gets a QEMU for the VM's architecture that runs it.
    InstallQemu,
    /// The VM uses another accelerator.
    UseAccelerator {
        /// One that the node has.
        accelerator: Accelerator,
    },
    /// The VM uses another machine type.
    UseMachine {
        /// One that the node has.
        machine: String,
    },
    /// The VM asks for no CPU model of its own.
    WithoutCpuModel,
    /// The VM does not ask for that CPU feature.
    WithoutCpuFeature {
        /// The feature.
        feature: String,
    },
    /// The VM goes without a disk that the node does not reach.
    WithoutDisk {
        /// Which of its disks, from 0.
        index: u32,
    },
    /// The VM goes without a network card whose network the node does not reach.
    WithoutNic {
        /// Which of its cards, from 0.
        index: u32,
    },
    /// The VM's memory is made of ordinary pages.
    WithoutHugepages,
    /// The VM may lie across NUMA nodes.
    WithoutNumaFit,
}

impl Change {
    /// Changes that belong together, in words: `with 2 GiB less and once uncordoned`.
    pub fn together(changes: &[Self]) -> String {
        let words: Vec<String> = changes.iter().map(ToString::to_string).collect();
        words.join(" and ")
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LessMemory { by } => write!(f, "with {by} less"),
            Self::FewerVcpus { by } => write!(f, "with {} less", vcpus(*by)),
            Self::FreeMemory { by } => write!(f, "with {by} more free there"),
            Self::FreeVcpus { by } => write!(f, "with {} more free there", vcpus(*by)),
            Self::OfferMemory { by } => write!(f, "with {by} more offered by the node"),
            Self::OfferVcpus { by } => {
                write!(f, "with {} more offered by the node", vcpus(*by))
            }
            Self::WithoutRule { name, vm: None } => write!(f, "without rule {name}"),
            Self::WithoutRule { name, vm: Some(vm) } => write!(f, "without rule {name} of {vm}"),
            Self::WithoutNodeLabel { key } => write!(f, "without the wish for the label {key}"),
            Self::Tolerate { taint } => write!(f, "tolerating the taint {taint}"),
            Self::Uncordon => f.write_str("once uncordoned"),
            Self::Connect => f.write_str("once connected"),
            Self::AskForNode => f.write_str("when asked for"),
            Self::LeaveNode => f.write_str("once the VM is elsewhere"),
            Self::InstallQemu => f.write_str("with a QEMU for the architecture"),
            Self::UseAccelerator { accelerator } => write!(f, "with accelerator {accelerator}"),
            Self::UseMachine { machine } => write!(f, "with machine {machine}"),
            Self::WithoutCpuModel => f.write_str("without a CPU model of its own"),
            Self::WithoutCpuFeature { feature } => write!(f, "without CPU feature {feature}"),
            Self::WithoutDisk { index } => write!(f, "without disks[{index}]"),
            Self::WithoutNic { index } => write!(f, "without nics[{index}]"),
            Self::WithoutHugepages => f.write_str("without huge pages"),
            Self::WithoutNumaFit => f.write_str("without the fit to one NUMA node"),
        }
    }
}

fn vcpus(count: u32) -> String {
    format!("{count} vCPU{}", if count == 1 { "" } else { "s" })
}

/// What if: VMs to place on the cluster as it is, without some nodes and with
/// others. Nothing is touched.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SimulateRequest {
    /// VMs to place, in that order.
    pub vms: Vec<VmSpec>,
    /// Nodes that are gone: their VMs have to go elsewhere first.
    pub lost: Vec<NodeId>,
    /// Nodes that are there as well.
    pub added: Vec<AddedNode>,
    /// The size of VM for which the room left is counted.
    #[schema(value_type = Option<Usage>)]
    pub room_for: Option<Usage>,
}

/// A node that does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddedNode {
    /// Its name.
    pub name: NodeId,
    /// A node that it is like, empty.
    #[serde(default)]
    pub like: Option<NodeId>,
    /// What it would say of itself, instead.
    #[serde(default)]
    pub facts: Option<NodeFacts>,
}

/// What would become of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct SimulationView {
    /// Where each VM that fits would go, in the order in which they were placed.
    pub placed: Vec<Placed>,
    /// What would not fit, and why.
    pub unplaced: Vec<Unplaced>,
    /// How much room would be left, by node.
    pub room: Vec<Room>,
    /// What is left on all nodes together.
    pub left: Capacity,
    /// How many VMs of the size asked for would still fit.
    pub more: Option<u64>,
}

/// One VM's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Placed {
    /// The VM.
    pub vm: VmName,
    /// The node that it was lost with; none for a new VM.
    pub from: Option<NodeId>,
    /// Where it would go.
    pub node: NodeId,
    /// With which score.
    pub score: u32,
}

/// One VM without a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Unplaced {
    /// The VM.
    pub vm: VmName,
    /// The node that it was lost with; none for a new VM.
    pub from: Option<NodeId>,
    /// Why no node takes it, with every node's reasons behind it.
    pub problem: Problem,
    /// The node with the fewest changes to make.
    pub nearest: Option<NodeId>,
    /// What would make that node fit.
    pub changes: Vec<Change>,
}

/// What one node has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Room {
    /// The node.
    pub node: NodeId,
    /// What it offers.
    pub capacity: Capacity,
    /// What would be taken.
    pub used: Usage,
    /// How many VMs of the size asked for would still fit there.
    pub more: Option<u64>,
}
