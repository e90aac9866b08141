//! Labels and taints that operators give to nodes.

use godwit_shared::api::{MarkRequest, NodeView};
use godwit_shared::model::spec::{Taint, Toleration};
use godwit_shared::model::{NodeFacts, Problem, codes};
use godwit_shared::wire::document::Document;
use godwit_shared::wire::uplink::NodeMessage;

use super::{Bench, facts, node, spec};
use crate::input::{Input, Output};

fn mark(bench: &mut Bench, request: MarkRequest) -> Result<NodeView, Problem> {
    match bench.step(Input::Mark {
        node: node("node-1"),
        request,
    })? {
        Output::Node(view) => Ok(view),
        other => panic!("{other:?}"),
    }
}

fn taint(text: &str) -> MarkRequest {
    MarkRequest {
        taint: vec![text.parse::<Taint>().unwrap()],
        ..MarkRequest::default()
    }
}

fn untaint(key: &str) -> MarkRequest {
    let key = key.to_owned();
    MarkRequest {
        untaint: vec![Toleration {
            key,
            ..Toleration::default()
        }],
        ..MarkRequest::default()
    }
}

fn label(key: &str, value: &str) -> MarkRequest {
    MarkRequest {
        label: [(key.to_owned(), value.to_owned())].into(),
        ..MarkRequest::default()
    }
}

fn unlabel(key: &str) -> MarkRequest {
    MarkRequest {
        unlabel: [key.to_owned()].into(),
        ..MarkRequest::default()
    }
}

/// The node tells labels and taints of its settings.
fn tell(bench: &mut Bench, taints: &[&str], labels: &[(&str, &str)]) {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let told = NodeFacts {
        taints: taints.iter().map(|text| text.parse().unwrap()).collect(),
        labels: labels.iter().map(own).collect(),
        ..facts(1024)
    };
    bench.say("node-1", NodeMessage::Facts(Document::of(&told).unwrap()));
}

fn texts(view: &NodeView) -> Vec<String> {
    let facts = view.facts.as_ref().unwrap();
    facts.taints.iter().map(Taint::text).collect()
}

#[test]
fn an_operators_marks_lie_over_the_settings_and_outlive_restarts() {
    let mut bench = Bench::of(&["node-1"]);
    tell(&mut bench, &["disk"], &[("zone", "a"), ("rack", "1")]);
    mark(&mut bench, taint("gpu=a100")).unwrap();
    let view = mark(&mut bench, label("zone", "b")).unwrap();
    assert_eq!(texts(&view), ["disk:no_schedule", "gpu=a100:no_schedule"]);
    assert_eq!(
        (&view.labels["zone"], &view.labels["rack"]),
        (&"b".into(), &"1".into())
    );
    assert_eq!(
        view.marks.labels.len(),
        1,
        "the operators' own are told apart"
    );
    // The node comes back with others, and the coordinator restarts.
    bench.restart();
    bench.connect("node-1", 1024, vec![]);
    tell(&mut bench, &[], &[("zone", "c")]);
    let view = bench.cluster.node(&node("node-1")).unwrap();
    assert_eq!(texts(&view), ["gpu=a100:no_schedule"]);
    assert_eq!(view.labels["zone"], "b");
    // Without them the settings hold again.
    mark(&mut bench, untaint("gpu")).unwrap();
    let view = mark(&mut bench, unlabel("zone")).unwrap();
    assert!(texts(&view).is_empty() && view.marks.is_empty());
    assert_eq!(view.labels["zone"], "c");
    let marked = bench
        .kinds()
        .iter()
        .filter(|k| **k == "node.marked")
        .count();
    assert_eq!(marked, 4);
}

#[test]
fn the_same_mark_twice_is_one() {
    let mut bench = Bench::of(&["node-1"]);
    mark(&mut bench, taint("a")).unwrap();
    mark(&mut bench, taint("a")).unwrap();
    let marked = bench
        .kinds()
        .iter()
        .filter(|k| **k == "node.marked")
        .count();
    assert_eq!(marked, 1);
}

#[test]
fn what_is_not_there_or_not_ones_own_cannot_be_taken_away() {
    let mut bench = Bench::of(&["node-1"]);
    tell(&mut bench, &["disk"], &[("zone", "a")]);
    for request in [untaint("disk"), unlabel("zone")] {
        let refused = mark(&mut bench, request).unwrap_err();
        assert_eq!(refused.code, codes::STATE_CONFLICT);
        assert!(refused.remedy.unwrap().contains("node.toml"));
    }
    for request in [untaint("gpu"), unlabel("rack")] {
        assert_eq!(
            mark(&mut bench, request).unwrap_err().code,
            codes::NOT_FOUND
        );
    }
    for request in [label("a b", "c"), label("a", "\n")] {
        assert_eq!(
            mark(&mut bench, request).unwrap_err().code,
            codes::BODY_INVALID
        );
    }
    let bad = MarkRequest {
        taint: vec![Taint::default()],
        ..label("fine", "too")
    };
    assert_eq!(mark(&mut bench, bad).unwrap_err().field.unwrap(), "taint");
    let view = bench.cluster.node(&node("node-1")).unwrap();
    assert!(view.marks.is_empty(), "all of it or nothing");
}

#[test]
fn a_label_set_at_run_time_draws_vms() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let mut wish = spec("web", 64);
    wish.placement.node_labels = [("zone".to_owned(), "b".to_owned())].into();
    assert!(bench.create(wish.clone(), true, None).is_err());
    mark(&mut bench, label("zone", "b")).unwrap();
    let (_, task) = bench.create(wish, true, None).unwrap();
    assert_eq!(bench.task(task).node, Some(node("node-1")));
}
