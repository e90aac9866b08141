//! The index beside the ledger decides as the full scan does, whatever happened
//! before: nodes that come, go and are marked, VMs that come, move and go, plans.

use godwit_shared::api::{DrainRequest, MarkRequest};
use godwit_shared::model::PlanId;
use proptest::prelude::*;

use super::*;
use crate::cluster::decide::Rating;
use crate::input::Survey;
use crate::placement::{Request, place};

const NODES: [&str; 5] = ["node-1", "node-2", "node-3", "node-4", "node-5"];

#[derive(Debug, Clone, Copy)]
enum Act {
    Create { rules: u8, memory: u64, on: u8 },
    Answer,
    Leave { node: u8 },
    Come { node: u8, memory: u64 },
    Cordon { node: u8, cordoned: bool },
    Label { node: u8, zone: u8 },
    Drain { node: u8 },
    Migrate { vm: u8 },
    Command { vm: u8, stop: bool },
    Remove { node: u8 },
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let node = || 0..5_u8;
    let memory = || prop::sample::select(vec![128_u64, 256, 300]);
    prop_oneof![
        9 => (any::<u8>(), memory(), any::<u8>())
            .prop_map(|(rules, memory, on)| Act::Create { rules, memory, on }),
        9 => Just(Act::Answer),
        1 => node().prop_map(|node| Act::Leave { node }),
        2 => (node(), prop::sample::select(vec![1024_u64, 2048]))
            .prop_map(|(node, memory)| Act::Come { node, memory }),
        2 => (node(), any::<bool>()).prop_map(|(node, cordoned)| Act::Cordon { node, cordoned }),
        2 => (node(), any::<u8>()).prop_map(|(node, zone)| Act::Label { node, zone }),
        2 => node().prop_map(|node| Act::Drain { node }),
        3 => any::<u8>().prop_map(|vm| Act::Migrate { vm }),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(vm, stop)| Act::Command { vm, stop }),
        1 => node().prop_map(|node| Act::Remove { node }),
        1 => Just(Act::Restart),
    ]
}

fn ruled(number: u128, rules: u8, memory: u64) -> VmSpec {
    let app = ["a", "b"][usize::from(rules) % 2];
    let rule = |topology: &str, mode: &str| json!([{ "name": "one", "group": { "app": app }, "topology": topology, "mode": mode }]);
    let placement = match rules / 2 % 7 {
        0 => json!({ "spread_by": "app" }),
        1 => json!({ "anti_affinity": rule("host", "required") }),
        2 => json!({ "affinity": rule("zone", "preferred") }),
        3 => json!({ "affinity": rule("host", "required") }),
        4 => json!({ "topology_spread": [
            { "name": "even", "topology": "zone", "max_skew": 1, "group": { "app": app } },
        ] }),
        _ => json!({}),
    };
    let backing = match rules % 11 {
        0 => json!({ "numa_fit": "preferred" }),
        _ => json!({}),
    };
    VmSpec::from_value(json!({
        "name": format!("vm-{number}"),
        "labels": { "app": app },
        "memory": memory,
        "placement": placement,
        "memory_backing": backing,
    }))
    .unwrap()
}

fn vm_of(bench: &Bench, number: u8) -> Option<VmId> {
    let mut vms = bench.cluster.records.vms.keys().copied();
    vms.nth(usize::from(number) % bench.cluster.records.vms.len().max(1))
}

fn perform(bench: &mut Bench, act: Act) {
    let named = |number: u8| NODES[usize::from(number)];
    match act {
        Act::Create { rules, memory, on } => {
            let spec = ruled(bench.id(), rules, memory);
            let on = (on % 3 == 0).then(|| named(on % 5));
            let _ = bench.create(spec, true, on);
        }
        Act::Answer => answer(bench),
        Act::Leave { node: name } => {
            if bench.cluster.is_up(&node(named(name))) {
                bench.disconnect(named(name));
            }
        }
        Act::Come { node: name, memory } => {
            if bench.cluster.member(&node(named(name))).is_ok() {
                bench.connect(named(name), memory, vec![]);
            }
        }
        Act::Cordon {
            node: name,
            cordoned,
        } => {
            let node = node(named(name));
            let _ = bench.step(Input::Cordon { node, cordoned });
        }
        Act::Label { node: name, zone } => {
            let zone = ["x", "y"][usize::from(zone) % 2].to_owned();
            let request = MarkRequest {
                label: [("zone".to_owned(), zone)].into(),
                ..MarkRequest::default()
            };
            let node = node(named(name));
            let _ = bench.step(Input::Mark { node, request });
        }
        Act::Drain { node: name } => {
            let plan = PlanId::from_u128(bench.id());
            let request = DrainRequest {
                partial: true,
                ..DrainRequest::default()
            };
            let node = node(named(name));
            let _ = bench.step(Input::Drain {
                node,
                plan,
                request,
                survey: Survey::new(),
            });
        }
        Act::Migrate { vm } => {
            if let Some(vm) = vm_of(bench, vm) {
                let _ = bench.migrate(vm, None);
            }
        }
        Act::Command { vm, stop } => {
            let command = if stop {
                LifecycleCommand::Stop
            } else {
                LifecycleCommand::Start
            };
            if let Some(vm) = vm_of(bench, vm) {
                let _ = bench.command(vm, command);
            }
        }
        Act::Remove { node: name } => {
            let node = node(named(name));
            let _ = bench.step(Input::RemoveNode { node });
        }
        Act::Restart => bench.restart(),
    }
}

/// The nodes do as they are told; a move has gone well.
fn answer(bench: &mut Bench) {
    let Some(sent) = bench.sent.pop_front() else {
        return;
    };
    if bench.cluster.session(&sent.node) != Some(sent.session) {
        return;
    }
    let (vm, state, epoch) = match &sent.body {
        NodeRequest::Define { vm, epoch, .. } => (*vm, DomainState::Stopped, *epoch),
        NodeRequest::Command { vm, command, epoch } => {
            let state = match command {
                LifecycleCommand::Start => DomainState::Running,
                _ => DomainState::Stopped,
            };
            (*vm, state, *epoch)
        }
        NodeRequest::Migrate { migration, .. } => return moved(bench, *migration),
        _ => return,
    };
    if bench.cluster.vm(vm).is_ok() {
        let said = report(&bench.vm(vm), state, epoch.0);
        bench.domain(&sent, said);
    }
}

fn moved(bench: &mut Bench, id: MigrationId) {
    let record = bench.cluster.records.migrations[&id].clone();
    let epoch = record.epoch.next().0;
    let runs = report(&bench.vm(record.vm), DomainState::Running, epoch);
    let done = bench.moving(id, MigrationPhase::Completed, epoch);
    for (node, message) in [
        (&record.source, NodeMessage::Migration(done)),
        (&record.target, NodeMessage::Domain(runs)),
        (&record.source, NodeMessage::DomainGone(record.vm)),
    ] {
        if bench.cluster.is_up(node) {
            bench.say(node.as_str(), message);
        }
    }
}

/// What a VM of that spec, or that VM, is decided to go to.
fn compare(bench: &mut Bench, spec: &VmSpec, vm: Option<VmId>) {
    let now = bench.now;
    let wish = Request::new(spec);
    let scanned = {
        let snapshot = bench.cluster.snapshot_for(spec, vm);
        place(&snapshot, &wish)
    };
    let found = bench.cluster.with_live(|cluster, live| {
        let rating = Rating {
            cluster,
            live,
            wish,
            vm,
            now,
        };
        rating.best()
    });
    let found = found.ok().map(|made| (made.node, made.score, made.scores));
    let best = scanned.nodes.into_iter().find(|one| one.score.is_some());
    let scanned = best.map(|best| (best.node, best.score, best.scores));
    assert_eq!(found, scanned);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn live_decisions_are_the_full_scans(acts in prop::collection::vec(act(), 1..80)) {
        let limits = Limits { explained: 2, ..Limits::default() };
        let mut bench = Bench::of_with(Settings { limits, ..settings() }, &NODES);
        bench.strict = false;
        for (number, act) in (0..).zip(acts) {
            perform(&mut bench, act);
            compare(&mut bench, &ruled(number, u8::try_from(number % 97).unwrap(), 200), None);
            if let Some(vm) = vm_of(&bench, u8::try_from(number % 251).unwrap()) {
                let spec = bench.cluster.records.vms[&vm].spec.clone();
                compare(&mut bench, &spec, Some(vm));
            }
        }
    }
}

#[test]
fn where_there_are_many_nodes_a_decision_keeps_its_own_scores_alone() {
    let limits = Limits {
        explained: 2,
        ..Limits::default()
    };
    let settings = Settings {
        limits,
        ..settings()
    };
    let mut bench = Bench::of_with(settings, &["node-1", "node-2", "node-3"]);
    let vm = bench.running("web", "node-1");
    let (other, _) = bench.create(spec("db", 256), true, None).unwrap();
    let made = bench.vm(other).decision.unwrap();
    assert_eq!(made.node, node("node-2"));
    assert!(made.score.is_some() && !made.scores.is_empty());
    assert_eq!(
        (made.fitting, made.refused, made.runner_up),
        (None, None, None)
    );
    // Whoever asks is told of every node.
    let now = bench.cluster.explain(vm).unwrap();
    assert_eq!(now.nodes.len(), 3);
    // What does not fit is refused with the reasons of every node.
    let refused = bench.create(spec("huge", 4096), true, None).unwrap_err();
    assert_eq!(refused.also.len(), 3);
}
