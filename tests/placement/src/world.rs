//! A generated cluster with VMs on it, as the full scan sees it.

use std::collections::BTreeSet;

use anyhow::Result;
use godwit_coordinator_logic::placement::{Candidate, Profiles, Request, Snapshot, Weights, place};
use godwit_shared::model::{NodeFacts, NodeId, Usage, VmSpec};

use crate::rng::Rng;
use crate::workload;

/// How often a VM looks for a node by chance before it is given up.
const TRIES: usize = 50;

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: NodeId,
    pub(crate) facts: NodeFacts,
    pub(crate) used: Usage,
    /// By number of the app.
    pub(crate) vms: Vec<usize>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) hosts: Vec<Host>,
    pub(crate) apps: Vec<VmSpec>,
    /// Which app has a VM on which host.
    pub(crate) vms: Vec<(usize, usize)>,
    pub(crate) rng: Rng,
}

impl World {
    /// Nodes without VMs.
    pub(crate) fn empty(nodes: usize, seed: u64) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let host = |number| {
            let (name, facts) = workload::node(number, &mut rng)?;
            Ok(Host {
                name,
                facts,
                used: Usage::default(),
                vms: Vec::new(),
            })
        };
        let hosts = (0..nodes).map(host).collect::<Result<_>>()?;
        Ok(Self {
            hosts,
            apps: Vec::new(),
            vms: Vec::new(),
            rng,
        })
    }

    /// The same with `vms` VMs on them, each on the emptier of two nodes that
    /// chance names, none beside another of its app.
    pub(crate) fn filled(nodes: usize, vms: usize, seed: u64) -> Result<Self> {
        let mut world = Self::empty(nodes, seed)?;
        while world.vms.len() < vms {
            let (app, size) = world.new_app()?;
            let mut taken = BTreeSet::new();
            for _ in 0..size.min(vms - world.vms.len()) {
                if let Some(host) = world.by_chance(app, &taken) {
                    taken.insert(host);
                    world.put(app, host);
                }
            }
        }
        Ok(world)
    }

    pub(crate) fn new_app(&mut self) -> Result<(usize, usize)> {
        let number = self.apps.len();
        let (spec, size) = workload::app(number, &mut self.rng)?;
        self.apps.push(spec);
        Ok((number, size))
    }

    fn by_chance(&mut self, app: usize, taken: &BTreeSet<usize>) -> Option<usize> {
        let spec = &self.apps[app];
        let emulator = |host: &Host| host.facts.emulators[0].architecture == spec.architecture;
        let fits = |host: &Host| {
            let after = host.used.plus(Usage::of(spec));
            emulator(host) && after.fits(host.facts.capacity)
        };
        let mut found: Option<usize> = None;
        for _ in 0..TRIES {
            let host = self.rng.below(self.hosts.len());
            if taken.contains(&host) || !fits(&self.hosts[host]) {
                continue;
            }
            match found {
                None => found = Some(host),
                Some(other) => {
                    let used = |host: usize| self.hosts[host].used.memory;
                    return Some(if used(host) < used(other) {
                        host
                    } else {
                        other
                    });
                }
            }
        }
        found
    }

    pub(crate) fn put(&mut self, app: usize, host: usize) {
        let there = &mut self.hosts[host];
        there.used = there.used.plus(Usage::of(&self.apps[app]));
        there.vms.push(app);
        self.vms.push((app, host));
    }

    /// Takes one VM away, by chance: its app and its host.
    pub(crate) fn lose_one(&mut self) -> (usize, usize) {
        let index = self.rng.below(self.vms.len());
        let (app, host) = self.vms.swap_remove(index);
        let there = &mut self.hosts[host];
        let gone = Usage::of(&self.apps[app]);
        there.used.memory = there.used.memory - gone.memory;
        there.used.vcpus = there.used.vcpus.saturating_sub(gone.vcpus);
        if let Some(at) = there.vms.iter().position(|one| *one == app) {
            there.vms.swap_remove(at);
        }
        (app, host)
    }

    pub(crate) fn candidate<'a>(&'a self, host: &'a Host) -> Candidate<'a> {
        Candidate {
            node: &host.name,
            connected: true,
            cordoned: false,
            facts: Some(&host.facts),
            used: host.used,
            vms: host.vms.iter().map(|app| &self.apps[*app]).collect(),
        }
    }

    /// The host of that name; names are in the order of the numbers.
    pub(crate) fn number(&self, name: &NodeId) -> usize {
        let found = self.hosts.binary_search_by(|host| host.name.cmp(name));
        found.unwrap_or_default()
    }

    pub(crate) fn snapshot(&self, weights: Weights) -> Snapshot<'_> {
        Snapshot {
            nodes: self.hosts.iter().map(|host| self.candidate(host)).collect(),
            weights,
        }
    }

    /// What the full scan says: the host and its score.
    pub(crate) fn scan(snapshot: &Snapshot<'_>, spec: &VmSpec) -> Option<(NodeId, u32)> {
        let view = place(snapshot, &Request::new(spec));
        let score = view.nodes.first().and_then(|best| best.score)?;
        Some((view.node?, score))
    }
}

/// The weights of a VM that names no profile.
pub(crate) fn weights() -> Weights {
    Profiles::default().default
}

/// Weights with which nodes are filled one after the other.
pub(crate) fn packing() -> Weights {
    Weights {
        memory: 0,
        cpu: 0,
        pack: 1,
        ..Weights::default()
    }
}
