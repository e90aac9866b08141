//! Rules between VMs, hard and soft, and the marks of nodes.

use godwit_shared::model::spec::{Taint, TaintEffect};

use super::*;

fn zoned(zones: &[&str]) -> Vec<(NodeId, NodeFacts)> {
    let number = zones.iter().enumerate();
    number
        .map(|(n, zone)| {
            let mut facts = facts(16, 4096);
            facts.labels = BTreeMap::from([("zone".to_owned(), (*zone).to_owned())]);
            (name(&format!("node-{n}")), facts)
        })
        .collect()
}

fn of<'a>(nodes: &'a [(NodeId, NodeFacts)], vms: &[Vec<&'a VmSpec>]) -> Vec<Candidate<'a>> {
    let with = nodes.iter().zip(vms);
    with.map(|((node, facts), vms)| Candidate {
        vms: vms.clone(),
        ..candidate(node, facts, 0)
    })
    .collect()
}

fn fitting(view: &PlacementView) -> Vec<&str> {
    let fits = view.nodes.iter().filter(|verdict| verdict.score.is_some());
    let mut names: Vec<&str> = fits.map(|verdict| verdict.node.as_str()).collect();
    names.sort_unstable();
    names
}

fn labelled(vm: &str, app: &str, placement: Value) -> VmSpec {
    let mut document = json!({ "name": vm, "labels": { "app": app } });
    document["placement"] = placement;
    spec(document)
}

#[test]
fn a_hard_rule_keeps_apart_in_both_directions() {
    let nodes = zoned(&["a", "a", "b"]);
    let apart = json!({ "anti_affinity": [{ "name": "apart", "group": { "app": "web" }, "topology": "zone" }] });
    let (web, db) = (
        labelled("web-1", "web", json!({})),
        labelled("db-1", "db", apart),
    );
    let view = look(of(&nodes, &[vec![&web], vec![], vec![]]), &request(&db));
    assert_eq!(fitting(&view), ["node-2"]);
    let view = look(of(&nodes, &[vec![&db], vec![], vec![]]), &request(&web));
    assert_eq!(fitting(&view), ["node-2"]);
    let reason = &view.nodes[1].refused[0];
    assert!(
        reason.message.contains("the rule apart of db-1"),
        "{reason}"
    );
    assert_eq!(
        view.nodes[1].changes[0].to_string(),
        "without rule apart of db-1"
    );
}

#[test]
fn a_vm_goes_where_its_friends_are_and_the_first_anywhere() {
    let nodes = zoned(&["a", "b", "b"]);
    let near = |app: &str| json!({ "affinity": [{ "name": "near", "group": { "app": app }, "topology": "zone" }] });
    let (own, other) = (
        labelled("web-2", "web", near("web")),
        labelled("web-3", "web", near("db")),
    );
    let nobody = of(&nodes, &[vec![], vec![], vec![]]);
    assert_eq!(fitting(&look(nobody.clone(), &request(&own))).len(), 3);
    assert_eq!(fitting(&look(nobody, &request(&other))).len(), 0);
    let web = labelled("web-1", "web", json!({}));
    let view = look(of(&nodes, &[vec![], vec![&web], vec![]]), &request(&own));
    assert_eq!(fitting(&view), ["node-1", "node-2"]);
    let by_name = labelled(
        "x",
        "x",
        json!({ "affinity": [{ "name": "near", "vm": "web-1", "mode": "preferred" }] }),
    );
    let view = look(
        of(&nodes, &[vec![], vec![&web], vec![]]),
        &request(&by_name),
    );
    assert_eq!((view.nodes.len(), view.node), (3, Some(name("node-1"))));
}

#[test]
fn a_group_is_spread_evenly_over_live_zones() {
    let nodes = zoned(&["a", "b", "c"]);
    let even =
        json!({ "spread_by": "app", "topology_spread": [{ "name": "even", "topology": "zone" }] });
    let web = labelled("web-9", "web", even);
    let one = labelled("web-1", "web", json!({}));
    let mut there = of(&nodes, &[vec![&one], vec![&one], vec![]]);
    assert_eq!(fitting(&look(there.clone(), &request(&web))), ["node-2"]);
    there[2].connected = false;
    let view = look(there, &request(&web));
    assert_eq!(fitting(&view), ["node-0", "node-1"]);
    let outside = zoned(&["a"]);
    let other =
        json!({ "spread_by": "app", "topology_spread": [{ "name": "even", "topology": "rack" }] });
    let web = labelled("web-9", "web", other);
    let view = look(of(&outside, &[vec![]]), &request(&web));
    assert_eq!(
        view.nodes[0].refused[0].message,
        "node-0 has no label rack, which the rule even needs"
    );
}

#[test]
fn soft_taints_are_avoided_and_hard_ones_tolerated_by_name() {
    let mut nodes = zoned(&["a", "a", "a"]);
    let taint = |effect| Taint {
        key: "old".into(),
        value: None,
        effect,
    };
    nodes[0].1.taints.push(taint(TaintEffect::PreferNoSchedule));
    nodes[1].1.taints.push(taint(TaintEffect::NoSchedule));
    let empty = [vec![], vec![], vec![]];
    let plain = spec(json!({}));
    let view = look(of(&nodes, &empty), &request(&plain));
    assert_eq!(fitting(&view), ["node-0", "node-2"]);
    assert_eq!(view.node, Some(name("node-2")));
    let tolerant = spec(json!({ "placement": { "tolerations": [{ "key": "old" }] } }));
    let view = look(of(&nodes, &empty), &request(&tolerant));
    assert_eq!((fitting(&view).len(), view.node), (3, Some(name("node-0"))));
}

#[test]
fn the_packed_profile_fills_and_the_default_one_spreads() {
    let nodes = zoned(&["a", "a"]);
    let plain = spec(json!({}));
    let mut there = of(&nodes, &[vec![], vec![]]);
    there[1].used = Usage {
        vcpus: 4,
        memory: MiB(2048),
    };
    assert_eq!(
        look(there.clone(), &request(&plain)).node,
        Some(name("node-0"))
    );
    let packed = Snapshot {
        nodes: there,
        weights: Weights {
            memory: 0,
            cpu: 0,
            pack: 1,
            ..Weights::default()
        },
    };
    assert_eq!(place(&packed, &request(&plain)).node, Some(name("node-1")));
}

#[test]
fn profiles_lie_beside_the_weights_and_unknown_ones_are_refused() {
    let read = |value: Value| serde_json::from_value::<Profiles>(value);
    let profiles = read(json!({ "memory": 3, "profiles": { "packed": { "pack": 5 } } })).unwrap();
    assert_eq!((profiles.default.memory, profiles.default.cpu), (3, 1));
    let packed = profiles.of(Some("packed")).unwrap();
    assert_eq!((packed.pack, packed.memory), (5, 2));
    assert!(profiles.of(Some("other")).is_none());
    assert!(read(json!({ "memry": 3 })).is_err());
    assert!(read(json!({ "profiles": { "packed": { "pak": 5 } } })).is_err());
}
