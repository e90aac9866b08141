//! What if: the question is checked, and nothing is touched.

use godwit_shared::api::{AddedNode, SimulateRequest};
use godwit_shared::model::{MiB, Usage, codes};

use super::{Bench, node, spec};

#[test]
fn lost_and_added_nodes_are_played_through_without_a_trace() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    bench.running("a", "node-1");
    let (store, events) = (bench.store.clone(), bench.events.len());
    let mut request = SimulateRequest {
        vms: vec![spec("b", 800)],
        lost: vec![node("node-1")],
        room_for: Some(Usage {
            vcpus: 1,
            memory: MiB(256),
        }),
        ..SimulateRequest::default()
    };
    let view = bench.cluster.simulate(&request).unwrap();
    assert_eq!(view.placed.len(), 1);
    assert_eq!(view.placed[0].from, Some(node("node-1")));
    assert_eq!(view.unplaced[0].vm.as_str(), "b");
    assert_eq!(view.more, Some(3));
    request.added = vec![AddedNode {
        name: node("node-9"),
        like: Some(node("node-1")),
        facts: None,
    }];
    let view = bench.cluster.simulate(&request).unwrap();
    assert!(view.unplaced.is_empty(), "{view:?}");
    assert_eq!(view.placed[1].node, node("node-9"));
    assert_eq!((&bench.store, bench.events.len()), (&store, events));
}

#[test]
fn every_fault_of_a_question_is_told() {
    let mut bench = Bench::of(&["node-1"]);
    bench.running("a", "node-1");
    let request = SimulateRequest {
        vms: vec![spec("a", 64)],
        lost: vec![node("node-7")],
        added: vec![
            AddedNode {
                name: node("node-1"),
                like: Some(node("node-1")),
                facts: None,
            },
            AddedNode {
                name: node("node-2"),
                like: None,
                facts: None,
            },
        ],
        room_for: None,
    };
    let first = bench.cluster.simulate(&request).unwrap_err();
    assert_eq!(first.code, codes::ALREADY_EXISTS);
    let also: Vec<_> = first.also.iter().map(|p| p.code.as_ref()).collect();
    assert_eq!(
        also,
        [
            codes::NOT_FOUND,
            codes::NODE_NAME_TAKEN,
            codes::BODY_INVALID
        ]
    );
}

#[test]
fn profiles_tell_every_weight() {
    let bench = Bench::new();
    let profiles = bench.cluster.profiles();
    assert_eq!((profiles.len(), &profiles[0].name), (1, &None));
    assert!(profiles[0].weights["memory"] > 0);
}
