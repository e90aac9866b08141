//! The change that is proposed is enough, and nothing less is.

use godwit_shared::api::Change;
use godwit_shared::model::capacity::{CpuFacts, NumaNode, StorageFacts};
use godwit_shared::model::spec::{Hugepages, NumaFit, Taint, TaintEffect, Toleration};

use super::*;

/// Everything that a decision is made of, owned, so that it can be changed.
#[derive(Debug, Clone)]
struct World {
    nodes: Vec<Host>,
    spec: VmSpec,
    machine: Option<String>,
    accelerator: Accelerator,
    only: Option<NodeId>,
    exclude: Option<NodeId>,
}

#[derive(Debug, Clone)]
struct Host {
    name: NodeId,
    connected: bool,
    cordoned: bool,
    facts: NodeFacts,
    used: Usage,
    vms: Vec<VmSpec>,
}

impl World {
    fn verdict(&self, node: &NodeId) -> NodeVerdict {
        let nodes = self.nodes.iter().map(|host| Candidate {
            node: &host.name,
            connected: host.connected,
            cordoned: host.cordoned,
            facts: Some(&host.facts),
            used: host.used,
            vms: host.vms.iter().collect(),
        });
        let snapshot = Snapshot {
            nodes: nodes.collect(),
            weights: Weights::default(),
        };
        let request = Request {
            spec: &self.spec,
            machine: self.machine.as_deref(),
            accelerator: self.accelerator,
            only: self.only.as_ref(),
            exclude: self.exclude.as_ref(),
        };
        let mut nodes = place_explained(&snapshot, &request).nodes.into_iter();
        nodes.find(|verdict| verdict.node == *node).unwrap()
    }

    /// As an operator would carry the changes out.
    fn changed(&self, node: &NodeId, changes: &[Change]) -> Self {
        let mut world = self.clone();
        let gone = |what: fn(&Change) -> Option<u32>| -> Vec<usize> {
            let all = changes.iter().filter_map(what);
            all.map(|index| index as usize).collect()
        };
        let disks = gone(|change| match change {
            Change::WithoutDisk { index } => Some(*index),
            _ => None,
        });
        let nics = gone(|change| match change {
            Change::WithoutNic { index } => Some(*index),
            _ => None,
        });
        keep(&mut world.spec.disks, &disks);
        keep(&mut world.spec.nics, &nics);
        for change in changes {
            world.change(node, change);
        }
        world
    }

    fn change(&mut self, node: &NodeId, change: &Change) {
        let host = self.nodes.iter_mut().find(|host| host.name == *node);
        let host = host.unwrap();
        let spec = &mut self.spec;
        match change {
            Change::LessMemory { by } => {
                assert!(spec.memory.0 >= by.0 + 16, "a VM keeps some memory");
                spec.memory = spec.memory - *by;
            }
            Change::FewerVcpus { by } => spec.cpu.count -= by,
            Change::FreeMemory { by } => host.used.memory = MiB(host.used.memory.0 - by.0),
            Change::FreeVcpus { by } => host.used.vcpus -= by,
            Change::OfferMemory { by } => {
                host.facts.capacity.memory = host.facts.capacity.memory + *by;
            }
            Change::OfferVcpus { by } => host.facts.capacity.vcpus += by,
            Change::WithoutRule { name, vm: None } => {
                let placement = &mut spec.placement;
                placement.affinity.retain(|rule| rule.name != *name);
                placement.anti_affinity.retain(|rule| rule.name != *name);
                placement.topology_spread.retain(|rule| rule.name != *name);
            }
            Change::WithoutRule { name, vm: Some(vm) } => {
                let vms = self.nodes.iter_mut().flat_map(|host| &mut host.vms);
                for other in vms.filter(|other| other.name == *vm) {
                    other
                        .placement
                        .anti_affinity
                        .retain(|rule| rule.name != *name);
                }
            }
            Change::WithoutNodeLabel { key } => {
                spec.placement.node_labels.remove(key);
            }
            Change::Tolerate { taint } => spec.placement.tolerations.push(Toleration {
                key: taint.key.clone(),
                value: taint.value.clone(),
                effect: None,
            }),
            Change::Uncordon => host.cordoned = false,
            Change::Connect => host.connected = true,
            Change::AskForNode => self.only = Some(node.clone()),
            Change::LeaveNode => self.exclude = None,
            Change::InstallQemu => {
                host.facts.emulators = facts(0, 0).emulators;
                for emulator in &mut host.facts.emulators {
                    emulator.accelerators.push(Accelerator::Kvm);
                    emulator.machines.extend(self.machine.clone());
                }
            }
            Change::UseAccelerator { accelerator } => self.accelerator = *accelerator,
            Change::UseMachine { machine } => self.machine = Some(machine.clone()),
            Change::WithoutCpuModel => spec.cpu.model = None,
            Change::WithoutCpuFeature { feature } => {
                spec.placement.cpu_features.retain(|own| own != feature);
            }
            Change::WithoutDisk { .. } | Change::WithoutNic { .. } => {}
            Change::WithoutHugepages => spec.memory_backing.hugepages = Hugepages::None,
            Change::WithoutNumaFit => spec.memory_backing.numa_fit = NumaFit::None,
        }
    }
}

fn keep<T>(list: &mut Vec<T>, gone: &[usize]) {
    let mut index = 0;
    list.retain(|_| {
        index += 1;
        !gone.contains(&(index - 1))
    });
}

/// The changes with one of them smaller by the least step, or left out.
fn less(changes: &[Change], at: usize, page: u64) -> Vec<Change> {
    let mut fewer = changes.to_vec();
    let smaller = match &changes[at] {
        Change::LessMemory { by } if by.0 > page => Some(Change::LessMemory {
            by: MiB(by.0 - page),
        }),
        Change::FreeMemory { by } if by.0 > 1 => Some(Change::FreeMemory { by: MiB(by.0 - 1) }),
        Change::OfferMemory { by } if by.0 > 1 => Some(Change::OfferMemory { by: MiB(by.0 - 1) }),
        Change::OfferVcpus { by } if *by > 1 => Some(Change::OfferVcpus { by: by - 1 }),
        Change::FewerVcpus { by } if *by > 1 => Some(Change::FewerVcpus { by: by - 1 }),
        Change::FreeVcpus { by } if *by > 1 => Some(Change::FreeVcpus { by: by - 1 }),
        _ => None,
    };
    match smaller {
        Some(smaller) => fewer[at] = smaller,
        None => {
            fewer.remove(at);
        }
    }
    fewer
}

type RawHost = (bool, bool, u8, u32, u64, u32, u64, Vec<u8>, u8);

fn raw_host() -> impl Strategy<Value = RawHost> {
    (
        prop::bool::weighted(0.85),
        prop::bool::weighted(0.15),
        0_u8..32,
        0_u32..32,
        0_u64..4096,
        0_u32..24,
        0_u64..3000,
        prop::collection::vec(0_u8..8, 0..3),
        0_u8..3,
    )
}

fn host(index: usize, raw: &RawHost) -> Host {
    let (connected, cordoned, bits, vcpus, memory, used_vcpus, used_memory, vms, zone) = raw;
    let mut facts = facts(*vcpus, *memory);
    facts.labels = match zone {
        0 => BTreeMap::new(),
        other => BTreeMap::from([("zone".into(), format!("z{other}"))]),
    };
    let bit = |n: u8| bits & (1 << n) != 0;
    if bit(0) {
        facts.taints.push(Taint {
            key: "gpu".into(),
            value: None,
            effect: TaintEffect::NoSchedule,
        });
    }
    if bit(1) {
        facts.storage = Some(vec![StorageFacts {
            path: "/srv".into(),
            shared: bit(2),
        }]);
        facts.networks = Some(Vec::new());
    }
    facts.numa = (0..2_u32)
        .map(|id| NumaNode {
            id,
            cpus: (0..vcpus / 2).collect(),
            memory: MiB(memory / 2),
            hugepages: BTreeMap::from([(Hugepages::Mib2, memory / 8)]),
        })
        .collect();
    if bit(3) {
        facts.emulators.clear();
    } else if bit(4) {
        facts.emulators[0].cpus = vec![CpuFacts {
            accelerator: Accelerator::Tcg,
            models: vec!["qemu64".into()],
            lacking: BTreeMap::from([("EPYC".into(), vec!["avx2".into()])]),
            features: vec!["sse2".into()],
        }];
    }
    Host {
        name: name(&format!("node-{index}")),
        connected: *connected,
        cordoned: *cordoned,
        facts,
        used: Usage {
            vcpus: *used_vcpus,
            memory: MiB(*used_memory),
        },
        vms: vms
            .iter()
            .enumerate()
            .map(|(n, bits)| neighbour(index, n, *bits))
            .collect(),
    }
}

fn neighbour(host: usize, number: usize, bits: u8) -> VmSpec {
    let mut wish = json!({
        "name": format!("vm-{host}-{number}"),
        "memory": 64,
        "labels": { "app": if bits & 1 == 0 { "web" } else { "db" } },
    });
    if bits & 2 != 0 {
        wish["placement"] = json!({ "anti_affinity": [
            { "name": "alone", "group": { "app": "web" }, "topology": if bits & 4 == 0 { "host" } else { "zone" } },
        ] });
    }
    VmSpec::from_value(wish).unwrap()
}

fn wanted(bits: u32, memory: u64, count: u32) -> VmSpec {
    let bit = |n: u32| bits & (1 << n) != 0;
    let mut placement = json!({ "spread_by": "app" });
    let mut lists = [Vec::new(), Vec::new(), Vec::new()];
    if bit(0) {
        lists[0].push(json!({ "name": "near-db", "group": { "app": "db" }, "topology": "zone" }));
    }
    if bit(1) {
        lists[1].push(json!({ "name": "web-apart", "group": { "app": "web" } }));
    }
    if bit(2) {
        lists[2].push(json!({ "name": "even", "topology": "zone" }));
    }
    if bit(3) {
        placement["node_labels"] = json!({ "zone": "z1", "disk": "ssd" });
    }
    if bit(4) {
        placement["cpu_features"] = json!(["avx2"]);
    }
    for (list, rules) in ["affinity", "anti_affinity", "topology_spread"]
        .iter()
        .zip(lists)
    {
        placement[list] = Value::Array(rules);
    }
    let mut wish = json!({
        "name": "web", "memory": memory * 2, "cpu": { "count": count },
        "labels": { "app": "web" }, "placement": placement,
    });
    if bit(5) {
        wish["disks"] =
            json!([{ "path": "/a" }, { "path": "/srv/b", "shared": true }, { "path": "/c" }]);
        wish["nics"] = json!([{}, {}]);
    }
    if bit(6) {
        wish["cpu"]["model"] = json!("EPYC");
    }
    let numa_fit = if bit(8) { "required" } else { "none" };
    let hugepages = if bit(7) { "2MiB" } else { "none" };
    wish["memory_backing"] = json!({ "hugepages": hugepages, "numa_fit": numa_fit });
    if bit(9) {
        wish["accelerator"] = json!("kvm");
    }
    if bit(10) {
        wish["machine"] = json!("pc-q35-9.9");
    }
    VmSpec::from_value(wish).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_proposed_changes_are_enough_and_nothing_less_is(
        hosts in prop::collection::vec(raw_host(), 1..5),
        bits in any::<u32>(),
        mask in any::<u32>(),
        memory in 8_u64..2048,
        count in 1_u32..24,
    ) {
        let spec = wanted(bits & mask, memory, count);
        let nodes: Vec<Host> = hosts.iter().enumerate().map(|(n, raw)| host(n, raw)).collect();
        let world = World {
            only: (bits & mask & (1 << 11) != 0).then(|| name("node-9")),
            exclude: (bits & mask & (1 << 12) != 0).then(|| name("node-0")),
            machine: spec.machine.clone(),
            accelerator: spec.accelerator,
            nodes,
            spec,
        };
        let page = world.spec.memory_backing.hugepages.size().map_or(1, |size| size.0);
        for host in &world.nodes {
            let verdict = world.verdict(&host.name);
            prop_assert_eq!(verdict.refused.is_empty(), verdict.changes.is_empty());
            let changed = world.changed(&host.name, &verdict.changes);
            let then = changed.verdict(&host.name);
            prop_assert!(then.refused.is_empty(), "{:?} do not do: {:?}", verdict.changes, then.refused);
            for at in 0..verdict.changes.len() {
                let fewer = less(&verdict.changes, at, page);
                let then = world.changed(&host.name, &fewer).verdict(&host.name);
                prop_assert!(!then.refused.is_empty(), "{:?} would do for {:?}", fewer, verdict.changes);
            }
        }
    }
}
