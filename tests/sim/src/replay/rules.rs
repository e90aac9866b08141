//! What the coordinator's decisions have to keep to.

use std::collections::{BTreeMap, BTreeSet};

use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::effect::Effect;
use godwit_coordinator_logic::input::Input;
use godwit_coordinator_logic::record::{Key, Write};
use godwit_coordinator_logic::recording::replay::Played;
use godwit_shared::model::{Epoch, LifecycleCommand, MiB, NodeId, VmId};
use godwit_shared::wire::uplink::NodeRequest;

use crate::check;

/// What is known of the steps so far.
pub(super) struct Rules {
    epochs: BTreeMap<VmId, Epoch>,
    /// Their deletion was asked for.
    deleted: BTreeSet<VmId>,
    /// The last start of each: at which epoch, and where.
    starts: BTreeMap<VmId, (Epoch, NodeId)>,
    given: BTreeMap<NodeId, MiB>,
}

impl Rules {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let tasks = cluster.tasks().into_iter();
        let going = tasks.filter(|task| task.kind == "vm.delete");
        Self {
            deleted: going.filter_map(|task| task.vm).collect(),
            epochs: cluster.vms().iter().map(|vm| (vm.id, vm.epoch)).collect(),
            starts: BTreeMap::new(),
            given: used(cluster),
        }
    }

    /// The rule that a step has broken.
    pub(super) fn broken(&mut self, cluster: &Cluster, played: &Played) -> Option<String> {
        if let Some(Input::Command {
            vm,
            command: LifecycleCommand::Delete,
            ..
        }) = played.input
        {
            self.deleted.insert(vm);
        }
        let mut effects = played.effects.iter();
        let one = effects.find_map(|effect| self.effect(cluster, effect));
        one.or_else(|| self.overcommit(cluster, &played.effects))
    }

    fn effect(&mut self, cluster: &Cluster, effect: &Effect) -> Option<String> {
        match effect {
            Effect::Persist(writes) => writes.iter().find_map(|write| self.write(cluster, write)),
            Effect::Request {
                node,
                body:
                    NodeRequest::Command {
                        vm,
                        command: LifecycleCommand::Start,
                        epoch,
                    },
                ..
            } => self.start(*vm, *epoch, node),
            _ => None,
        }
    }

    fn write(&mut self, cluster: &Cluster, write: &Write) -> Option<String> {
        match write {
            Write::Put {
                key: Key::Vm(vm), ..
            } => {
                let epoch = cluster.vm(*vm).ok()?.epoch;
                let before = self.epochs.insert(*vm, epoch)?;
                (epoch < before)
                    .then(|| format!("the epoch of {vm} went down, from {before} to {epoch}"))
            }
            Write::Delete { key: Key::Vm(vm) } => {
                self.epochs.remove(vm);
                (!self.deleted.contains(vm)).then(|| format!("{vm} is lost"))
            }
            _ => None,
        }
    }

    fn start(&mut self, vm: VmId, epoch: Epoch, node: &NodeId) -> Option<String> {
        let before = self.starts.insert(vm, (epoch, node.clone()));
        let (last, at) = before?;
        let twice = epoch < last || (epoch == last && at != *node);
        twice.then(|| {
            format!("{vm} is started on {node} at epoch {epoch}, after {at} at epoch {last}")
        })
    }

    /// Only what a step gives away counts: a node may come back smaller than it was.
    fn overcommit(&mut self, cluster: &Cluster, effects: &[Effect]) -> Option<String> {
        if !matches!(effects.first(), Some(Effect::Persist(_))) {
            return None;
        }
        let before = std::mem::replace(&mut self.given, used(cluster));
        let mut nodes = cluster.snapshot(None).nodes.into_iter();
        nodes.find_map(|node| {
            let has = node.facts?.capacity.memory;
            let then = before.get(node.node).copied().unwrap_or_default();
            if node.used.memory <= has.max(then) {
                return None;
            }
            let given = check::given(cluster, &node);
            (given > has.max(then))
                .then(|| format!("{} has {has}, and {given} are given away", node.node))
        })
    }
}

fn used(cluster: &Cluster) -> BTreeMap<NodeId, MiB> {
    let nodes = cluster.snapshot(None).nodes.into_iter();
    nodes
        .map(|node| (node.node.clone(), node.used.memory))
        .collect()
}
