//! What is asked of placement, and of which nodes.

use godwit_shared::model::spec::Accelerator;
use godwit_shared::model::spec::placement::HOST;
use godwit_shared::model::{NodeFacts, NodeId, Usage, VmSpec};

use super::profile::Weights;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The VM.
    pub spec: &'a VmSpec,
    /// The machine type it needs: pinned by its first run, else that of the
    /// spec, else none for the architecture's default.
    pub machine: Option<&'a str>,
    /// The accelerator it needs: that in use when it moves, else that of the spec.
    pub accelerator: Accelerator,
    /// Only this node will do.
    pub only: Option<&'a NodeId>,
    /// Not this node: a migration's source.
    pub exclude: Option<&'a NodeId>,
}

impl<'a> Request<'a> {
    /// A new VM of that spec, anywhere.
    pub fn new(spec: &'a VmSpec) -> Self {
        Self {
            spec,
            machine: spec.machine.as_deref(),
            accelerator: spec.accelerator,
            only: None,
            exclude: None,
        }
    }

    /// The machine type, the architecture's default where there is none.
    pub(super) fn machine(&self) -> &'a str {
        self.machine
            .unwrap_or(self.spec.architecture.default_machine())
    }
}

/// The nodes at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot<'a> {
    /// Every member.
    pub nodes: Vec<Candidate<'a>>,
    /// What the scorers weigh.
    pub weights: Weights,
}

/// One node at that moment.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// It is connected.
    pub connected: bool,
    /// No new VMs are to be placed on it.
    pub cordoned: bool,
    /// What it said of itself.
    pub facts: Option<&'a NodeFacts>,
    /// What other VMs take there, reservations included.
    pub used: Usage,
    /// Those VMs.
    pub vms: Vec<&'a VmSpec>,
}

impl<'a> Candidate<'a> {
    /// The domain of a topology that the node is in; none without the label.
    pub fn domain(&self, topology: &str) -> Option<&'a str> {
        if topology == HOST {
            return Some(self.node.as_str());
        }
        self.facts?.labels.get(topology).map(String::as_str)
    }

    /// Whether it may get VMs at all.
    pub(super) fn live(&self) -> bool {
        self.connected && !self.cordoned && self.facts.is_some()
    }
}
