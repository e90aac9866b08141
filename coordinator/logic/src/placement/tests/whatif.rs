//! What-if answers like real decisions would, and touches nothing.

use super::*;

fn what<'a>(
    vms: &'a [VmSpec],
    lost: &'a BTreeSet<NodeId>,
    added: &'a BTreeMap<NodeId, NodeFacts>,
    profiles: &'a Profiles,
) -> What<'a> {
    What {
        vms,
        lost,
        added,
        room_for: Some(Usage {
            vcpus: 2,
            memory: MiB(512),
        }),
        profiles,
    }
}

#[test]
fn lost_vms_go_elsewhere_first_and_what_does_not_fit_is_explained() {
    let (a, b) = (name("node-1"), name("node-2"));
    let facts = facts(16, 2048);
    let big = spec(json!({ "name": "big", "memory": 1536 }));
    let small = spec(json!({ "name": "small", "memory": 256 }));
    let on_a = Candidate {
        vms: vec![&small, &big],
        ..candidate(&a, &facts, 1792)
    };
    let snapshot = Snapshot {
        nodes: vec![on_a, candidate(&b, &facts, 0)],
        weights: Weights::default(),
    };
    let new = [spec(json!({ "name": "new", "memory": 1024 }))];
    let (lost, profiles) = (BTreeSet::from([a.clone()]), Profiles::default());
    let none = BTreeMap::new();
    let view = simulate(&snapshot, &what(&new, &lost, &none, &profiles));
    let placed: Vec<_> = view
        .placed
        .iter()
        .map(|p| (p.vm.as_str(), &p.from))
        .collect();
    assert_eq!(
        placed,
        [("big", &Some(a.clone())), ("small", &Some(a.clone()))]
    );
    let unplaced = &view.unplaced[0];
    assert_eq!(
        (unplaced.vm.as_str(), unplaced.nearest.as_ref()),
        ("new", Some(&b))
    );
    assert_eq!(unplaced.changes[0].to_string(), "with 768 MiB less");
    assert_eq!((view.left.memory, view.more), (MiB(256), Some(0)));
    assert_eq!(snapshot.nodes.len(), 2);

    let c = name("node-3");
    let added = BTreeMap::from([(c.clone(), facts.clone())]);
    let view = simulate(&snapshot, &what(&new, &lost, &added, &profiles));
    assert!(view.unplaced.is_empty());
    let room: Vec<_> = view.room.iter().map(|room| room.node.as_str()).collect();
    assert_eq!(room, ["node-2", "node-3"]);
    assert_eq!(view.left.memory, MiB(4096 - 1792 - 1024));
    assert_eq!(view.more, view.room.iter().map(|room| room.more).sum());
}
