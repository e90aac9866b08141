//! What is kept of the VMs' shares is what a count would give (every step of
//! every test compares the two), and is enough to decide by.

use super::*;
use crate::placement::{Request, place};

fn labelled(name: &str, placement: &serde_json::Value) -> VmSpec {
    let labels = json!({ "app": name });
    let all = json!({ "name": name, "memory": 256, "labels": labels, "placement": placement });
    VmSpec::from_value(all).unwrap()
}

/// Every node, the best first, and how many reasons stand against it. A decision
/// that looks at few VMs is the one that looks at all.
#[track_caller]
fn verdicts(bench: &Bench, spec: &VmSpec) -> Vec<(String, usize)> {
    let wish = Request::new(spec);
    let all = bench.cluster.snapshot(None);
    let seen = bench.cluster.rate(&wish, None);
    assert_eq!(seen, place(&all, &wish));
    let nodes = seen.nodes.into_iter();
    nodes
        .map(|one| (one.node.to_string(), one.refused.len()))
        .collect()
}

fn ranked(nodes: [(&str, usize); 2]) -> Vec<(String, usize)> {
    nodes
        .map(|(node, refused)| (node.to_owned(), refused))
        .to_vec()
}

#[test]
fn a_vm_without_rules_is_kept_from_one_that_keeps_it_away() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let rule = json!({ "name": "alone", "group": { "app": "web" } });
    let alone = labelled("alone", &json!({ "anti_affinity": [rule] }));
    bench.create(alone, true, Some("node-1")).unwrap();
    bench.running("other", "node-2");
    let found = verdicts(&bench, &labelled("web", &json!({})));
    assert_eq!(found, ranked([("node-2", 0), ("node-1", 1)]));
}

#[test]
fn a_vm_with_rules_is_placed_by_all_that_are_there() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    bench.running("other", "node-1");
    bench
        .create(labelled("web", &json!({})), true, Some("node-2"))
        .unwrap();
    let rule = json!({ "name": "near", "group": { "app": "web" } });
    let near = labelled("cache", &json!({ "affinity": [rule] }));
    let found = verdicts(&bench, &near);
    assert_eq!(found, ranked([("node-2", 0), ("node-1", 1)]));
    let other = labelled("other-2", &json!({ "spread_by": "app" }));
    verdicts(&bench, &other);
}

#[test]
fn what_is_left_out_of_a_decision_is_left_out_of_what_is_taken() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    let used = |bench: &Bench, except| bench.cluster.snapshot(except).nodes[0].used.memory;
    assert_eq!(used(&bench, None), MiB(256));
    assert_eq!(used(&bench, Some(vm)), MiB(0));
    let (other, _) = bench.create(spec("other", 128), false, None).unwrap();
    assert_eq!(used(&bench, Some(other)), MiB(256));
}

/// A VM whose node went away without a word on it is in its last known state.
#[test]
fn states_follow_the_coming_and_going_of_nodes() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    let states = |bench: &Bench| bench.cluster.status().vms;
    assert_eq!(states(&bench)["running"], 1);
    bench.restart();
    assert_eq!(states(&bench)["running"], 1, "by what was seen of it");
    bench.connect("node-1", 1024, vec![]);
    assert_eq!(states(&bench)["stopped"], 1, "the node has it no more");
    bench.disconnect("node-1");
    let counted = states(&bench);
    let shown = bench.vm(vm).state.as_str().to_owned();
    assert_eq!(counted, BTreeMap::from([(shown, 1)]));
}
