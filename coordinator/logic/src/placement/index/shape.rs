//! Requests that ask the same of a node's equipment, and which nodes have it.
//!
//! Architecture, accelerator, machine type, CPU, disks, networks and tolerations
//! are checked by the filters themselves, once for each kind of request and each
//! kind of equipment, and remembered.

use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};

use godwit_shared::model::spec::{Accelerator, Architecture, Toleration};
use godwit_shared::model::{NodeFacts, NodeId, VmSpec};

use super::labels::number;
use super::quick::Quick;
use crate::placement::request::Request;
use crate::placement::{filter, score};

/// How many kinds of requests are remembered.
const MOST: usize = 4096;

/// A node's equipment: what the filters of this module read, and nothing else.
#[derive(Debug, Clone)]
struct Equipment {
    /// The first node that has it.
    node: NodeId,
    facts: NodeFacts,
}

/// What a kind of request asks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ask {
    architecture: Architecture,
    machine: String,
    accelerator: Accelerator,
    model: Option<String>,
    features: Vec<String>,
    tolerations: Vec<Toleration>,
    /// Which known folders each disk is in, and whether it is shared.
    disks: BTreeSet<(Vec<u32>, bool)>,
    networks: BTreeSet<&'static str>,
}

#[derive(Debug, Clone)]
pub(super) struct Shape {
    ask: Ask,
    /// By equipment: none where it is refused, else the points for its taints.
    pub(super) verdicts: Vec<Option<u32>>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Shapes {
    equipment: Vec<Equipment>,
    by_text: HashMap<String, u32>,
    folders: HashMap<String, u32>,
    all: Vec<Shape>,
    by_hash: HashMap<u64, Vec<u32>>,
}

impl Shapes {
    pub(super) fn shape(&self, shape: u32) -> &Shape {
        &self.all[shape as usize]
    }

    /// The number of a node's equipment.
    pub(super) fn equipment(&mut self, node: &NodeId, facts: &NodeFacts) -> u32 {
        let mut emulators = facts.emulators.clone();
        for emulator in &mut emulators {
            emulator.path.clear();
            emulator.version.clear();
        }
        let text = format!(
            "{:?}",
            (&emulators, &facts.taints, &facts.storage, &facts.networks)
        );
        if let Some(known) = self.by_text.get(&text) {
            return *known;
        }
        for storage in facts.storage.iter().flatten() {
            let next = number(self.folders.len());
            let folder = storage.path.trim_end_matches('/').to_owned();
            self.folders.entry(folder).or_insert(next);
        }
        let new = number(self.equipment.len());
        self.by_text.insert(text, new);
        self.equipment.push(Equipment {
            node: node.clone(),
            facts: NodeFacts {
                emulators,
                taints: facts.taints.clone(),
                storage: facts.storage.clone(),
                networks: facts.networks.clone(),
                ..NodeFacts::default()
            },
        });
        self.clear();
        new
    }

    fn clear(&mut self) {
        self.all.clear();
        self.by_hash.clear();
    }

    /// The kind of that request.
    pub(super) fn find(&mut self, request: &Request<'_>) -> u32 {
        let disks = self.disks(request.spec);
        let hash = hash(request, &disks);
        let same = |shape: &&u32| self.all[**shape as usize].ask.is(request, &disks);
        if let Some(known) = self
            .by_hash
            .get(&hash)
            .and_then(|all| all.iter().find(same))
        {
            return *known;
        }
        if self.all.len() >= MOST {
            self.clear();
        }
        let verdicts = self.equipment.iter().map(|one| {
            let fits = filter::equipped(&one.node, &one.facts, request);
            fits.then(|| score::taints(&one.facts, request.spec))
        });
        let shape = Shape {
            verdicts: verdicts.collect(),
            ask: Ask::of(request, disks),
        };
        let new = number(self.all.len());
        self.all.push(shape);
        self.by_hash.entry(hash).or_default().push(new);
        new
    }

    /// Disks in the same folders are alike, whatever their names.
    fn disks(&self, spec: &VmSpec) -> BTreeSet<(Vec<u32>, bool)> {
        let folders = |path: &str| {
            let ends = path.match_indices('/').map(|(end, _)| &path[..end]);
            let known = ends.filter_map(|folder| self.folders.get(folder));
            known.copied().collect()
        };
        let disks = spec.disks.iter();
        disks
            .map(|disk| (folders(&disk.path), disk.shared))
            .collect()
    }
}

impl Ask {
    fn of(request: &Request<'_>, disks: BTreeSet<(Vec<u32>, bool)>) -> Self {
        let spec = request.spec;
        Self {
            architecture: spec.architecture,
            machine: request.machine().to_owned(),
            accelerator: request.accelerator,
            model: spec.cpu.model.clone(),
            features: spec.placement.cpu_features.clone(),
            tolerations: spec.placement.tolerations.clone(),
            networks: networks(spec),
            disks,
        }
    }

    fn is(&self, request: &Request<'_>, disks: &BTreeSet<(Vec<u32>, bool)>) -> bool {
        let spec = request.spec;
        self.architecture == spec.architecture
            && self.accelerator == request.accelerator
            && self.machine == request.machine()
            && self.model == spec.cpu.model
            && self.features == spec.placement.cpu_features
            && self.tolerations == spec.placement.tolerations
            && self.disks == *disks
            && self.is_on(spec)
    }
}

impl Ask {
    /// Whether the VM has cards on these networks and no others.
    fn is_on(&self, spec: &VmSpec) -> bool {
        let mut wanted = spec.nics.iter().map(|nic| nic.network.name());
        let here = |name: &&str| spec.nics.iter().any(|nic| nic.network.name() == *name);
        wanted.all(|name| self.networks.contains(name)) && self.networks.iter().all(here)
    }
}

fn networks(spec: &VmSpec) -> BTreeSet<&'static str> {
    spec.nics.iter().map(|nic| nic.network.name()).collect()
}

fn hash(request: &Request<'_>, disks: &BTreeSet<(Vec<u32>, bool)>) -> u64 {
    let mut state = Quick::default();
    let spec = request.spec;
    (spec.architecture, request.machine(), &spec.cpu.model).hash(&mut state);
    (&spec.placement.cpu_features, disks).hash(&mut state);
    state.finish()
}
