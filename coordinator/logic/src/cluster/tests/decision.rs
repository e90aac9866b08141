//! Why a VM is where it is.

use godwit_shared::api::DecisionReason;
use godwit_shared::model::{DomainState, LifecycleCommand, MigrationPhase};
use godwit_shared::wire::uplink::NodeMessage;

use super::{Bench, node, report, spec};

#[test]
fn a_new_vm_knows_why_it_went_where() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let (vm, _) = bench.create(spec("web", 256), true, None).unwrap();
    let made = bench.vm(vm).decision.unwrap();
    assert_eq!(made.reason, DecisionReason::Best);
    assert_eq!((made.node, made.at), (node("node-1"), bench.now));
    assert_eq!((made.fitting, made.refused), (Some(2), Some(0)));
    assert!(made.score.is_some() && !made.scores.is_empty());
    assert_eq!(made.runner_up, Some(node("node-2")));
    bench.restart();
    assert!(bench.vm(vm).decision.is_some(), "it is on record");
    bench.connect("node-2", 1024, vec![]);
    let (vm, _) = bench.create(spec("db", 900), true, Some("node-2")).unwrap();
    let made = bench.vm(vm).decision.unwrap();
    assert_eq!(made.reason, DecisionReason::Asked);
}

#[test]
fn a_vm_that_is_only_defined_has_no_place_to_explain() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, _) = bench.create(spec("web", 256), false, None).unwrap();
    assert_eq!(bench.vm(vm).decision, None);
}

#[test]
fn the_decision_of_a_move_counts_once_it_has_moved() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-1");
    let before = bench.vm(vm).decision.unwrap();
    let (migration, _) = bench.migrate(vm, None).unwrap();
    assert_eq!(bench.vm(vm).decision, Some(before));
    let view = bench.vm(vm);
    let there = report(&view, DomainState::Running, view.epoch.0 + 1);
    bench.say("node-2", NodeMessage::Domain(there));
    let done = bench.moving(migration, MigrationPhase::Completed, view.epoch.0 + 1);
    bench.say("node-1", NodeMessage::Migration(done));
    let made = bench.vm(vm).decision.unwrap();
    assert_eq!(made.node, node("node-2"));
    assert_eq!(made.reason, DecisionReason::Best);
}

#[test]
fn a_vm_that_is_started_again_stays() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-2");
    let view = bench.vm(vm);
    let stopped = report(&view, DomainState::Stopped, view.epoch.0);
    bench.say("node-2", NodeMessage::Domain(stopped));
    bench.command(vm, LifecycleCommand::Start).unwrap();
    let made = bench.vm(vm).decision.unwrap();
    assert_eq!(made.reason, DecisionReason::Stays);
    assert_eq!(made.node, node("node-2"));
}
