#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod counterfactual;
mod index;
mod rules;
mod whatif;

use std::collections::{BTreeMap, BTreeSet};

use godwit_shared::model::capacity::EmulatorFacts;
use godwit_shared::model::spec::{Accelerator, Architecture};
use godwit_shared::model::{Capacity, MiB, NodeFacts, NodeId, Problem, Usage, VmSpec, codes};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn name(text: &str) -> NodeId {
    text.parse().unwrap()
}

fn facts(vcpus: u32, memory: u64) -> NodeFacts {
    NodeFacts {
        capacity: Capacity {
            vcpus,
            memory: MiB(memory),
        },
        emulators: vec![EmulatorFacts {
            architecture: Architecture::X86_64,
            path: "/usr/bin/qemu-system-x86_64".into(),
            version: "10.0.2".into(),
            accelerators: vec![Accelerator::Tcg],
            machines: vec!["pc-q35-10.0".into(), "pc-q35-7.2".into()],
            machine_aliases: BTreeMap::from([("q35".into(), "pc-q35-10.0".into())]),
            cpus: Vec::new(),
        }],
        labels: BTreeMap::from([("zone".into(), "a".into())]),
        ..NodeFacts::default()
    }
}

fn spec(more: Value) -> VmSpec {
    let mut spec = json!({ "name": "web", "memory": 512, "cpu": { "count": 2 } });
    let Value::Object(more) = more else {
        panic!("fields were expected");
    };
    for (key, value) in more {
        spec[key] = value;
    }
    VmSpec::from_value(spec).unwrap()
}

fn request(spec: &VmSpec) -> Request<'_> {
    Request {
        spec,
        machine: spec.machine.as_deref(),
        accelerator: spec.accelerator,
        only: None,
        exclude: None,
    }
}

fn candidate<'a>(node: &'a NodeId, facts: &'a NodeFacts, used: u64) -> Candidate<'a> {
    Candidate {
        node,
        connected: true,
        cordoned: false,
        facts: Some(facts),
        used: Usage {
            vcpus: 0,
            memory: MiB(used),
        },
        vms: Vec::new(),
    }
}

fn look(nodes: Vec<Candidate<'_>>, request: &Request<'_>) -> PlacementView {
    let snapshot = Snapshot {
        nodes,
        weights: Weights::default(),
    };
    place_explained(&snapshot, request)
}

/// What one node has against the request.
fn refused(candidate: Candidate<'_>, request: &Request<'_>) -> Vec<Problem> {
    let mut view = look(vec![candidate], request);
    assert_eq!(view.node.is_none(), !view.nodes[0].refused.is_empty());
    view.nodes.remove(0).refused
}

#[test]
fn the_emptiest_node_is_chosen_and_the_first_name_among_equals() {
    let (a, b, c) = (name("node-1"), name("node-2"), name("node-3"));
    let facts = facts(16, 4096);
    let spec = spec(json!({}));
    let nodes = |used: [u64; 3]| {
        let named = [&c, &a, &b].into_iter().zip(used);
        named
            .map(|(node, used)| candidate(node, &facts, used))
            .collect()
    };
    let order = |used| {
        let view = look(nodes(used), &request(&spec));
        let names = view.nodes.iter().map(|verdict| verdict.node.to_string());
        (view.node.unwrap().to_string(), names.collect::<Vec<_>>())
    };
    let all = |names: [&str; 3]| names.map(String::from).to_vec();
    assert_eq!(
        order([1024, 2048, 512]),
        ("node-2".into(), all(["node-2", "node-3", "node-1"]))
    );
    assert_eq!(
        order([0, 0, 0]),
        ("node-1".into(), all(["node-1", "node-2", "node-3"]))
    );
}

#[test]
fn a_group_is_kept_apart_even_where_it_is_fuller() {
    let (a, b) = (name("node-1"), name("node-2"));
    let facts = facts(16, 4096);
    let spec = spec(json!({
        "labels": { "app": "web" },
        "placement": { "spread_by": "app" },
    }));
    let kin = Candidate {
        vms: vec![&spec],
        ..candidate(&a, &facts, 0)
    };
    let view = look(vec![kin, candidate(&b, &facts, 3000)], &request(&spec));
    assert_eq!(view.node, Some(b));
    let parts: Vec<(&str, u32)> = view.nodes[1]
        .scores
        .iter()
        .map(|part| (part.name.as_str(), part.points))
        .collect();
    assert_eq!(
        parts,
        [
            ("memory_balance", 875),
            ("cpu_balance", 875),
            ("spread", 500)
        ]
    );
    assert_eq!(view.nodes[1].score, Some((2 * 875 + 875 + 6 * 500) / 9));
}

#[test]
fn every_reason_names_what_is_lacking_and_the_smallest_change() {
    let node = name("node-2");
    let facts = facts(2, 1024);
    let large = spec(json!({ "cpu": { "count": 5 }, "memory": "1GiB" }));
    let reasons = refused(candidate(&node, &facts, 512), &request(&large));
    insta::assert_json_snapshot!(reasons, @r#"
    [
      {
        "code": "insufficient_resources",
        "message": "node-2 lacks 512 MiB of memory: 1 GiB wanted, 512 MiB free",
        "field": "memory",
        "value": "1 GiB",
        "remedy": "free 512 MiB on node-2, or give the VM at most 512 MiB",
        "also": []
      },
      {
        "code": "insufficient_resources",
        "message": "node-2 lacks 3 vCPUs: 5 wanted, 2 free",
        "field": "cpu.count",
        "value": "5",
        "remedy": "free 3 vCPUs on node-2, or give the VM at most 2",
        "also": []
      }
    ]
    "#);
    let full = refused(candidate(&node, &facts, 1024), &request(&spec(json!({}))));
    assert_eq!(full[0].remedy.as_deref(), Some("free 512 MiB on node-2"));
}

#[test]
fn each_filter_speaks() {
    let node = name("node-2");
    let facts = facts(16, 4096);
    let case = |more: Value| refused(candidate(&node, &facts, 0), &request(&spec(more)));
    let messages = |problems: Vec<Problem>| -> Vec<String> {
        assert!(problems.iter().all(|problem| problem.remedy.is_some()));
        problems
            .into_iter()
            .map(|problem| problem.message)
            .collect()
    };
    assert_eq!(case(json!({})), []);
    assert_eq!(
        messages(case(json!({ "architecture": "aarch64" }))),
        ["node-2 has no QEMU for aarch64"]
    );
    assert_eq!(
        messages(case(
            json!({ "accelerator": "kvm", "machine": "pc-q35-9.9" })
        )),
        [
            "/usr/bin/qemu-system-x86_64 on node-2 has no working accelerator for `kvm`",
            "QEMU 10.0.2 on node-2 does not have the machine type pc-q35-9.9",
        ]
    );
    assert_eq!(
        case(json!({ "accelerator": "tcg", "machine": "pc-q35-7.2" })),
        []
    );
    let labels = json!({ "placement": { "node_labels": { "zone": "b", "disk": "ssd" } } });
    assert_eq!(
        messages(case(labels)),
        [
            "node-2 lacks the label disk=ssd",
            "node-2 has the label zone=a, not b"
        ]
    );
}

#[test]
fn a_node_that_is_away_cordoned_or_not_meant_is_refused() {
    let (node, other) = (name("node-2"), name("node-1"));
    let facts = facts(16, 4096);
    let spec = spec(json!({}));
    let here = candidate(&node, &facts, 0);
    let codes_of = |candidate: Candidate<'_>, request: &Request<'_>| -> Vec<String> {
        let problems = refused(candidate, request).into_iter();
        problems.map(|problem| problem.code.into_owned()).collect()
    };
    let any = request(&spec);
    let away = Candidate {
        connected: false,
        ..here.clone()
    };
    assert_eq!(codes_of(away, &any), [codes::NODE_UNREACHABLE]);
    let new = Candidate {
        connected: false,
        facts: None,
        ..here.clone()
    };
    assert_eq!(codes_of(new, &any), [codes::NODE_UNREACHABLE]);
    let cordoned = Candidate {
        cordoned: true,
        ..here.clone()
    };
    assert_eq!(codes_of(cordoned, &any), [codes::STATE_CONFLICT]);
    let named = Request {
        only: Some(&other),
        ..any
    };
    assert_eq!(codes_of(here.clone(), &named), [codes::NO_NODE_FITS]);
    let leaving = Request {
        exclude: Some(&node),
        ..any
    };
    assert_eq!(codes_of(here, &leaving), [codes::STATE_CONFLICT]);
}

#[test]
fn weights_of_nothing_still_choose() {
    let node = name("node-1");
    let facts = facts(16, 4096);
    let spec = spec(json!({}));
    let snapshot = Snapshot {
        nodes: vec![candidate(&node, &facts, 0)],
        weights: Weights {
            memory: 0,
            cpu: 0,
            spread: 0,
            ..Weights::default()
        },
    };
    let view = place(&snapshot, &request(&spec));
    assert_eq!((view.node.is_some(), view.nodes[0].score), (true, Some(0)));
}

/// Nodes as they may be: (connected, cordoned, vCPUs, MiB, vCPUs used, MiB used, group).
type Raw = (bool, bool, u32, u64, u32, u64, u32);

fn raw() -> impl Strategy<Value = Raw> {
    (
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.1),
        0_u32..32,
        0_u64..8192,
        0_u32..32,
        0_u64..8192,
        0_u32..4,
    )
}

proptest! {
    #[test]
    fn placement_keeps_its_promises(
        nodes in prop::collection::vec(raw(), 0..12),
        memory in 16_u64..4096,
        count in 1_u32..16,
        spread in any::<bool>(),
        weights in (0_u32..10, 0_u32..10, 0_u32..10),
    ) {
        let mut wish = json!({ "name": "web", "memory": memory, "cpu": { "count": count } });
        if spread {
            wish["placement"] = json!({ "spread_by": "app" });
            wish["labels"] = json!({ "app": "web" });
        }
        let spec = VmSpec::from_value(wish).unwrap();
        let names: Vec<NodeId> = (0..nodes.len()).map(|n| name(&format!("node-{n}"))).collect();
        let facts: Vec<NodeFacts> = nodes.iter().map(|raw| facts(raw.2, raw.3)).collect();
        let candidates = names.iter().zip(&facts).zip(&nodes).map(|((node, facts), raw)| Candidate {
            node,
            connected: raw.0,
            cordoned: raw.1,
            facts: Some(facts),
            used: Usage { vcpus: raw.4, memory: MiB(raw.5) },
            vms: vec![&spec; raw.6 as usize],
        });
        let snapshot = Snapshot {
            nodes: candidates.collect(),
            weights: Weights { memory: weights.0, cpu: weights.1, spread: weights.2, ..Weights::default() },
        };
        let view = place(&snapshot, &request(&spec));

        let told: BTreeSet<&NodeId> = view.nodes.iter().map(|verdict| &verdict.node).collect();
        prop_assert_eq!(told.len(), names.len(), "every node is explained, once");
        for verdict in &view.nodes {
            prop_assert_eq!(verdict.score.is_some(), verdict.refused.is_empty());
            prop_assert!(verdict.refused.iter().all(|problem| problem.remedy.is_some()));
            prop_assert!(verdict.score.is_none_or(|score| score <= 1000));
            let raw = &nodes[names.iter().position(|name| *name == verdict.node).unwrap()];
            let fits = raw.0 && !raw.1
                && raw.4 + count <= raw.2
                && raw.5 + memory <= raw.3;
            prop_assert_eq!(verdict.score.is_some(), fits, "never more than there is, never less");
        }
        let best = view.nodes.iter().filter_map(|v| v.score).max();
        let chosen = view.node.as_ref().map(|node| {
            view.nodes.iter().find(|verdict| verdict.node == *node).unwrap()
        });
        prop_assert_eq!(chosen.and_then(|verdict| verdict.score), best);
        if let Some(chosen) = chosen {
            let first = view.nodes.iter().filter(|v| v.score == best).map(|v| &v.node).min();
            prop_assert_eq!(Some(&chosen.node), first, "equal scores go to the first name");
        }
        let mut turned = snapshot.clone();
        turned.nodes.reverse();
        prop_assert_eq!(place(&turned, &request(&spec)), view, "order makes no difference");
    }
}
