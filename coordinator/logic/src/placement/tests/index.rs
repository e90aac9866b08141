//! The index chooses as the full scan does, after whatever has happened.

use godwit_shared::model::capacity::{NumaNode, StorageFacts};
use godwit_shared::model::spec::{Hugepages, Taint, TaintEffect};

use super::*;

/// Numbers from one seed, so that a case is one number.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn one_in(&mut self, end: u64) -> bool {
        self.below(end) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

struct Host {
    name: NodeId,
    connected: bool,
    cordoned: bool,
    facts: Option<NodeFacts>,
    vms: Vec<VmSpec>,
}

/// The nodes as they are, and an index that was told of every change.
struct World {
    dice: Dice,
    hosts: Vec<Host>,
    index: Index,
    made: u64,
}

impl World {
    fn facts(&mut self) -> NodeFacts {
        let dice = &mut self.dice;
        let mut facts = facts(
            dice.pick(&[4, 8, 8, 16]),
            dice.pick(&[0, 2048, 4096, 4099, 8192]),
        );
        facts.labels = BTreeMap::from([("zone".into(), dice.pick(&["a", "b"]).into())]);
        if !dice.one_in(5) {
            let rack = format!("r{}", dice.below(12));
            facts.labels.insert("rack".into(), rack);
        }
        let effect = dice.pick(&[TaintEffect::NoSchedule, TaintEffect::PreferNoSchedule]);
        if dice.one_in(6) {
            facts.taints.push(Taint {
                key: "old".into(),
                value: None,
                effect,
            });
        }
        if dice.one_in(5) {
            facts.emulators[0].architecture = Architecture::Aarch64;
        }
        if dice.one_in(3) {
            let path = dice.pick(&["/vms", "/vms/fast/", "/"]).into();
            facts.storage = Some(vec![StorageFacts { path, shared: true }]);
        }
        if dice.one_in(3) {
            facts.images = vec!["/vms/a.img".into()];
        }
        if dice.one_in(2) {
            facts.numa = vec![NumaNode {
                id: 0,
                cpus: vec![0, 1, 2, 3],
                memory: MiB(2048),
                hugepages: BTreeMap::from([(Hugepages::Mib2, 512)]),
            }];
        }
        facts
    }

    fn vm(&mut self) -> VmSpec {
        self.made += 1;
        let own = self.dice.pick(&["a", "b", "c"]);
        let dice = &mut self.dice;
        let mut vm = json!({
            "name": format!("vm-{}", self.made),
            "labels": { "app": own, "tier": dice.pick(&["x", "y"]) },
            "memory": dice.pick(&[16, 256, 512, 1024]),
            "cpu": { "count": dice.pick(&[1, 1, 2, 4]) },
        });
        if dice.one_in(3) {
            vm["placement"] = self.placement(own);
        }
        let dice = &mut self.dice;
        match dice.below(12) {
            0 => vm["architecture"] = json!("aarch64"),
            1 => vm["memory_backing"] = json!({ "numa_fit": "preferred" }),
            2 => vm["memory_backing"] = json!({ "numa_fit": "required" }),
            3 => vm["memory_backing"] = json!({ "hugepages": "2MiB" }),
            4 => vm["disks"] = json!([{ "path": "/vms/a.img" }]),
            5 => vm["disks"] = json!([{ "path": "/vms/fast/b.img", "shared": true }]),
            _ => {}
        }
        VmSpec::from_value(vm).unwrap()
    }

    fn placement(&mut self, own: &str) -> Value {
        let vms = self.made;
        let dice = &mut self.dice;
        let mode = dice.pick(&["required", "preferred"]);
        let topology = dice.pick(&["host", "zone", "rack", "none"]);
        let app = dice.pick(&["a", "b", "c", own]);
        let group = match dice.below(3) {
            0 => json!({ "app": app, "tier": "x" }),
            _ => json!({ "app": app }),
        };
        let rule = json!({ "name": "one", "group": group, "topology": topology, "mode": mode });
        match dice.below(10) {
            0 => json!({ "spread_by": "app" }),
            1..3 => json!({ "anti_affinity": [rule] }),
            3..5 => json!({ "affinity": [rule] }),
            5..7 => {
                let mut even = rule;
                even["max_skew"] = json!(1 + dice.below(2));
                json!({ "spread_by": "tier", "topology_spread": [even] })
            }
            7 => {
                let vm = format!("vm-{}", 1 + dice.below(vms + 1));
                let rule = json!({ "name": "it", "vm": vm, "topology": topology, "mode": mode });
                let key = dice.pick(&["affinity", "anti_affinity"]);
                json!({ key: [rule] })
            }
            8 => json!({ "node_labels": { "rack": format!("r{}", dice.below(13)) } }),
            _ => json!({ "node_labels": { "zone": "a" }, "tolerations": [{ "key": "old" }] }),
        }
    }

    fn weights(&mut self) -> Weights {
        let some = Weights::default();
        let dice = &mut self.dice;
        match dice.below(6) {
            0..3 => some,
            3 => Weights {
                pack: 3,
                memory: 0,
                cpu: 0,
                ..some
            },
            4 => Weights {
                balance: 2,
                headroom: 3,
                images: 4,
                ..some
            },
            _ => Weights {
                memory: u32::try_from(dice.below(4)).unwrap(),
                cpu: u32::try_from(dice.below(4)).unwrap(),
                spread: 0,
                taints: 0,
                ..some
            },
        }
    }

    fn tell(&mut self, host: usize) {
        let host = &self.hosts[host];
        let facts = host.facts.as_ref();
        self.index
            .set_node(&host.name, host.connected, host.cordoned, facts);
    }

    fn step(&mut self) {
        let count = self.hosts.len() as u64;
        let host = usize::try_from(self.dice.below(count.max(1))).unwrap();
        match self.dice.below(16) {
            _ if count < 2 => self.add_host(),
            0 => self.add_host(),
            1 => self.hosts[host].cordoned ^= true,
            2 => self.hosts[host].connected ^= true,
            3 => self.hosts[host].facts = Some(self.facts()),
            4 if self.hosts[host].vms.is_empty() => {
                let gone = self.hosts.swap_remove(host);
                assert!(self.index.remove_node(&gone.name));
                return;
            }
            5..8 if !self.hosts[host].vms.is_empty() => {
                let gone = self.hosts[host].vms.swap_remove(0);
                self.index.remove_vm(&self.hosts[host].name, &gone);
                return;
            }
            8 => {
                let vm = self.vm();
                let there = self.index.add_vm(&self.hosts[host].name, &vm);
                let there = there.unwrap();
                assert!(self.index.is(&there, &vm));
                if self.dice.one_in(2) {
                    self.index.remove(&there);
                } else {
                    self.hosts[host].vms.push(vm);
                }
                return;
            }
            _ => return self.decide(),
        }
        let host = host.min(self.hosts.len() - 1);
        self.tell(host);
        self.tell(self.hosts.len() - 1);
    }

    fn add_host(&mut self) {
        self.made += 1;
        let number = self.dice.below(1000);
        let facts = Some(self.facts()).filter(|_| !self.dice.one_in(10));
        self.hosts.push(Host {
            name: name(&format!("node-{number}-{}", self.made)),
            connected: !self.dice.one_in(10),
            cordoned: self.dice.one_in(10),
            facts,
            vms: Vec::new(),
        });
    }

    fn snapshot(&self, weights: Weights) -> Snapshot<'_> {
        let nodes = self.hosts.iter().map(|host| Candidate {
            node: &host.name,
            connected: host.connected,
            cordoned: host.cordoned,
            facts: host.facts.as_ref(),
            used: host
                .vms
                .iter()
                .map(Usage::of)
                .fold(Usage::default(), Usage::plus),
            vms: host.vms.iter().collect(),
        });
        Snapshot {
            nodes: nodes.collect(),
            weights,
        }
    }

    /// The full scan, the index and a new index agree; the VM goes where they say.
    fn decide(&mut self) {
        let (vm, weights) = (self.vm(), self.weights());
        let host = usize::try_from(self.dice.below(self.hosts.len() as u64)).unwrap();
        let named = Some(self.hosts[host].name.clone());
        let (only, exclude) = match self.dice.below(12) {
            0 => (named, None),
            1 => (None, named),
            _ => (None, None),
        };
        let request = Request {
            only: only.as_ref(),
            exclude: exclude.as_ref(),
            ..Request::new(&vm)
        };
        let snapshot = self.snapshot(weights);
        let view = place(&snapshot, &request);
        let scanned = view.node.clone().map(|node| Chosen {
            node,
            score: view.nodes[0].score.unwrap(),
        });
        let fresh = Index::of(&snapshot).choose(&request, &weights);
        assert_eq!(fresh, scanned, "{vm:?} {weights:?}");
        let near = Index::of(&snapshot).nearly(2).choose(&request, &weights);
        assert_eq!(near.is_some(), scanned.is_some());
        if let (Some(near), Some(best)) = (near, &scanned) {
            let mut verdicts = view.nodes.iter();
            let verdict = verdicts.find(|verdict| verdict.node == near.node);
            assert_eq!(
                verdict.unwrap().score,
                Some(near.score),
                "it is no refused one"
            );
            assert!(near.score + 2 >= best.score);
        }
        if let Some(best) = &scanned {
            let scores = self.index.scores(&best.node, &request, &weights);
            assert_eq!(scores.as_ref(), Some(&view.nodes[0].scores));
        }
        let kept = self.index.place(&request, &weights);
        assert_eq!(kept, scanned, "{vm:?} {weights:?}");
        if let Some(chosen) = kept {
            let host = self.hosts.iter_mut().find(|host| host.name == chosen.node);
            host.unwrap().vms.push(vm);
        }
    }
}

proptest! {
    #[test]
    fn the_index_chooses_what_the_full_scan_chooses(seed in any::<u64>()) {
        let mut world = World {
            dice: Dice(seed),
            hosts: Vec::new(),
            index: Index::default(),
            made: 0,
        };
        for _ in 0..150 {
            world.step();
        }
    }
}

#[test]
fn a_batch_sees_what_it_has_placed() {
    let (a, b) = (name("node-1"), name("node-2"));
    let facts = facts(16, 1024);
    let snapshot = Snapshot {
        nodes: vec![candidate(&a, &facts, 0), candidate(&b, &facts, 0)],
        weights: Weights::default(),
    };
    let vms: Vec<VmSpec> = (0..5).map(|_| spec(json!({}))).collect();
    let all = vms.iter().map(|vm| (request(vm), Weights::default()));
    let mut index = Index::of(&snapshot);
    let placed = index.place_batch(all);
    let nodes = placed
        .iter()
        .map(|one| one.as_ref().map(|one| one.node.as_str()));
    let (one, two) = (Some("node-1"), Some("node-2"));
    assert_eq!(nodes.collect::<Vec<_>>(), [one, two, one, two, None]);
    assert!(!index.remove_node(&a), "a node with VMs stays");
    index.remove_vm(&a, &vms[0]);
    let again = index.place(&request(&vms[4]), &Weights::default());
    assert_eq!(again.map(|one| one.node), Some(a));
}
