//! Drains, returns and rebalances, asked for and carried out.

use std::collections::BTreeSet;

use godwit_shared::api::{
    AbortRequest, DrainRequest, PlanLimits, PlanState, PlanView, RebalanceRequest, StepState,
};
use godwit_shared::model::{PlanId, codes};

use super::*;
use crate::cluster::RebalanceMode;
use crate::input::{Survey, Surveyed};

fn plan_of(output: Output) -> PlanView {
    match output {
        Output::Plan(view) => view,
        other => panic!("a plan was expected, not {other:?}"),
    }
}

fn drain(bench: &mut Bench, name: &str, request: DrainRequest) -> Result<PlanView, Problem> {
    drain_after(bench, name, request, Survey::new())
}

/// A drain of which the nodes have said that before.
fn drain_after(
    bench: &mut Bench,
    name: &str,
    request: DrainRequest,
    survey: Survey,
) -> Result<PlanView, Problem> {
    let plan = PlanId::from_u128(bench.id());
    let node = node(name);
    let input = Input::Drain {
        node,
        plan,
        request,
        survey,
    };
    bench.step(input).map(plan_of)
}

fn one_by_one() -> DrainRequest {
    let limits = PlanLimits {
        parallel: 1,
        ..PlanLimits::default()
    };
    DrainRequest {
        limits,
        ..DrainRequest::default()
    }
}

fn rebalance(bench: &mut Bench, request: RebalanceRequest) -> Result<PlanView, Problem> {
    let plan = PlanId::from_u128(bench.id());
    bench.step(Input::Rebalance { plan, request }).map(plan_of)
}

fn now(bench: &Bench, plan: &PlanView) -> PlanView {
    bench.cluster.plan(plan.id).unwrap()
}

fn states(bench: &Bench, plan: &PlanView) -> Vec<StepState> {
    let plan = now(bench, plan);
    plan.progress.iter().map(|step| step.state).collect()
}

/// The nodes carry a migration out and tell of it.
fn carry_out(bench: &mut Bench, id: MigrationId) {
    let record = bench.cluster.records.migrations[&id].clone();
    let epoch = record.epoch.next().0;
    let runs = report(&bench.vm(record.vm), DomainState::Running, epoch);
    let done = bench.moving(id, MigrationPhase::Completed, epoch);
    bench.say(record.source.as_str(), NodeMessage::Migration(done));
    bench.say(record.target.as_str(), NodeMessage::Domain(runs));
    bench.say(record.source.as_str(), NodeMessage::DomainGone(record.vm));
}

fn carry_all_out(bench: &mut Bench) {
    loop {
        let ids = begun(bench);
        if ids.is_empty() {
            return;
        }
        for id in ids {
            carry_out(bench, id);
        }
    }
}

fn on(bench: &Bench, name: &str) -> usize {
    let node = node(name);
    let vms = bench.cluster.vms();
    vms.iter()
        .filter(|vm| vm.node.as_ref() == Some(&node))
        .count()
}

/// Three nodes of 1 GiB; three VMs of 256 MiB on the first, one on the second.
fn three() -> (Bench, Vec<VmId>) {
    let mut bench = Bench::of(&["node-1", "node-2", "node-3"]);
    let mut vms: Vec<VmId> = ["a", "b", "c"]
        .map(|name| bench.running(name, "node-1"))
        .into();
    vms.push(bench.running("d", "node-2"));
    (bench, vms)
}

#[test]
fn a_dry_run_changes_nothing_and_shows_every_step() {
    let (mut bench, _) = three();
    let request = DrainRequest {
        dry_run: true,
        ..DrainRequest::default()
    };
    let plan = drain(&mut bench, "node-1", request).unwrap();
    assert_eq!(plan.state, PlanState::Proposed);
    assert_eq!(plan.steps.len(), 3);
    let targets: Vec<_> = plan.steps.iter().map(|s| s.target.to_string()).collect();
    assert_eq!(targets, ["node-3", "node-2", "node-3"], "the emptier first");
    // 256 MiB at 110 MiB/s each, all at once.
    assert_eq!(plan.estimate, Millis(2327));
    assert!(bench.cluster.plans().is_empty());
    assert!(!bench.cluster.node(&node("node-1")).unwrap().cordoned);
    assert_eq!(begun(&mut bench), []);
}

#[test]
fn a_drain_empties_a_node_and_a_return_fills_it_again() {
    let (mut bench, vms) = three();
    let plan = drain(&mut bench, "node-1", DrainRequest::default()).unwrap();
    assert!(bench.cluster.node(&node("node-1")).unwrap().cordoned);
    carry_all_out(&mut bench);
    let ended = now(&bench, &plan);
    assert_eq!(ended.state, PlanState::Done);
    assert_eq!(ended.message, "3 of 3 moved; no VM runs on node-1");
    assert_eq!(on(&bench, "node-1"), 0);
    // One is stopped meanwhile: it stays where it is.
    let off = exited(&bench.vm(vms[0]), 2, ExitReason::GuestShutdown);
    let at = bench.vm(vms[0]).node.unwrap();
    bench.say(at.as_str(), NodeMessage::Domain(off));
    let back = bench.step(Input::Return {
        node: node("node-1"),
        plan: PlanId::from_u128(777),
        request: DrainRequest::default(),
    });
    let back = plan_of(back.unwrap());
    assert_eq!((back.steps.len(), back.stopped.len()), (2, 1));
    carry_all_out(&mut bench);
    assert_eq!(now(&bench, &back).state, PlanState::Done);
    assert_eq!(on(&bench, "node-1"), 2);
    assert!(!bench.cluster.node(&node("node-1")).unwrap().cordoned);
    let again = bench.step(Input::Return {
        node: node("node-1"),
        plan: PlanId::from_u128(778),
        request: DrainRequest::default(),
    });
    assert_eq!(again.unwrap_err().code, codes::STATE_CONFLICT);
}

#[test]
fn uncordoning_brings_them_back_when_the_drain_says_so() {
    let (mut bench, _) = three();
    let request = DrainRequest {
        and_return: true,
        ..DrainRequest::default()
    };
    drain(&mut bench, "node-1", request).unwrap();
    carry_all_out(&mut bench);
    assert_eq!(on(&bench, "node-1"), 0);
    let open = Input::Cordon {
        node: node("node-1"),
        cordoned: false,
    };
    bench.step(open).unwrap();
    carry_all_out(&mut bench);
    let last = bench.cluster.plans().pop().unwrap();
    assert_eq!(
        (last.state, last.steps.len()),
        (PlanState::Done, 3),
        "{last:#?}"
    );
    assert_eq!(on(&bench, "node-1"), 3);
    assert!(
        bench
            .cluster
            .plans()
            .iter()
            .all(|p| p.state == PlanState::Done)
    );
}

#[test]
fn it_goes_on_after_a_crash_at_any_step() {
    for crash in 0..3 {
        let (mut bench, _) = three();
        let plan = drain(&mut bench, "node-1", one_by_one()).unwrap();
        for step in 0..3 {
            let ids = begun(&mut bench);
            assert_eq!(ids.len(), 1, "one at once: {:?}", states(&bench, &plan));
            if step == crash {
                let told = bench.moving(ids[0], MigrationPhase::Precopy, 1);
                back_up(&mut bench, &told);
                assert_eq!(begun(&mut bench), [], "it is under way already");
            }
            carry_out(&mut bench, ids[0]);
        }
        assert_eq!(now(&bench, &plan).state, PlanState::Done);
        assert_eq!(on(&bench, "node-1"), 0);
    }
}

/// Kills the coordinator; the nodes say hello again, the source first, and the
/// plan does nothing foolish before the others are there.
fn back_up(bench: &mut Bench, running: &MigrationReport) {
    let domains = |bench: &Bench, name: &str| -> Vec<DomainReport> {
        let state = &bench.cluster.observed.nodes[&node(name)];
        state.domains.values().cloned().collect()
    };
    let names = ["node-1", "node-2", "node-3"];
    let all = names.map(|name| (name, domains(bench, name)));
    bench.restart();
    for (name, domains) in all {
        let migrations = (name == "node-1").then(|| running.clone());
        let hello = NodeHello {
            facts: Document::of(&facts(1024)).unwrap(),
            domains,
            migrations: migrations.into_iter().collect(),
        };
        bench.hello(name, 1, hello).unwrap();
    }
}

#[test]
fn what_blocks_a_drain_is_told_before_it_begins() {
    let (mut bench, vms) = three();
    let apart = json!({ "anti_affinity": [{ "name": "apart", "group": { "app": "web" } }] });
    for (name, app, node) in [("f", "web", "node-2"), ("g", "web", "node-3")] {
        ruled(&mut bench, name, app, node, &json!({}));
    }
    ruled(&mut bench, "e", "db", "node-1", &apart);
    bench.migrate(vms[0], Some("node-3")).unwrap();
    bench
        .create(spec("off", 64), false, Some("node-1"))
        .unwrap();
    let refused = drain(&mut bench, "node-1", DrainRequest::default()).unwrap_err();
    assert_eq!(refused.code, codes::MIGRATION_BLOCKED);
    assert_eq!(refused.also.len(), 1, "{refused:?}");
    assert_eq!(refused.also[0].code, codes::NO_NODE_FITS);
    assert!(!bench.cluster.node(&node("node-1")).unwrap().cordoned);
    let request = DrainRequest {
        partial: true,
        ..DrainRequest::default()
    };
    let plan = drain(&mut bench, "node-1", request).unwrap();
    assert_eq!((plan.steps.len(), plan.blockers.len()), (2, 1));
}

#[test]
fn no_room_is_a_blocker() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let _ = ["a", "b", "c"].map(|name| bench.running(name, "node-1"));
    let _ = ["d", "e"].map(|name| bench.running(name, "node-2"));
    let refused = drain(&mut bench, "node-1", DrainRequest::default()).unwrap_err();
    assert_eq!(refused.also[0].code, codes::INSUFFICIENT_RESOURCES);
}

#[test]
fn several_plans_never_give_a_target_more_than_it_holds() {
    let mut bench = Bench::of(&["node-1", "node-2", "node-3"]);
    let _ = ["a", "b"].map(|name| bench.running(name, "node-1"));
    let _ = ["c", "d"].map(|name| bench.running(name, "node-2"));
    let first = drain(&mut bench, "node-1", one_by_one()).unwrap();
    // The bench checks the room after each step; the second drain has to see what
    // the first has not even begun.
    let second = drain(&mut bench, "node-2", one_by_one()).unwrap();
    let full = bench.create(spec("more", 512), true, None).unwrap_err();
    assert_eq!(full.code, codes::NO_NODE_FITS);
    carry_all_out(&mut bench);
    assert_eq!(now(&bench, &first).state, PlanState::Done);
    assert_eq!(now(&bench, &second).state, PlanState::Done);
    assert_eq!(on(&bench, "node-3"), 4);
}

#[test]
fn a_target_that_leaves_is_replaced_and_a_stopped_vm_is_skipped() {
    let (mut bench, vms) = three();
    let plan = drain(&mut bench, "node-1", one_by_one()).unwrap();
    bench.pass(Millis(61_000));
    let first = begun(&mut bench);
    assert_eq!(plan.steps[1].target, node("node-2"));
    assert_eq!(plan.steps[1].vm, vms[1]);
    bench.disconnect("node-2");
    carry_out(&mut bench, first[0]);
    let next = begun(&mut bench);
    let record = &bench.cluster.records.migrations[&next[0]];
    assert_eq!((record.vm, &record.target), (vms[1], &node("node-3")));
    let off = exited(&bench.vm(vms[2]), 1, ExitReason::GuestShutdown);
    bench.say("node-1", NodeMessage::Domain(off));
    carry_out(&mut bench, next[0]);
    let ended = now(&bench, &plan);
    assert_eq!(
        states(&bench, &plan),
        [StepState::Done, StepState::Done, StepState::Skipped]
    );
    assert_eq!(ended.progress[1].target, Some(node("node-3")));
    assert_eq!(
        ended.message,
        "2 of 3 moved, 1 not needed; no VM runs on node-1"
    );
}

#[test]
fn an_abort_stops_what_has_not_begun_and_what_runs_as_asked() {
    for cancel_running in [false, true] {
        let (mut bench, _) = three();
        let plan = drain(&mut bench, "node-1", one_by_one()).unwrap();
        let ids = begun(&mut bench);
        let running = bench.moving(ids[0], MigrationPhase::Precopy, 1);
        bench.say("node-1", NodeMessage::Migration(running));
        let abort = Input::AbortPlan {
            plan: plan.id,
            request: AbortRequest { cancel_running },
        };
        let shown = plan_of(bench.step(abort.clone()).unwrap());
        assert_eq!(shown.state, PlanState::Aborting);
        let asked = bench.sent.drain(..);
        let cancels = asked.filter(|s| matches!(s.body, NodeRequest::CancelMigration { .. }));
        assert_eq!(cancels.count(), usize::from(cancel_running));
        if cancel_running {
            let told = bench.moving(ids[0], MigrationPhase::Cancelled, 1);
            bench.say("node-1", NodeMessage::Migration(told));
        } else {
            carry_out(&mut bench, ids[0]);
        }
        assert_eq!(now(&bench, &plan).state, PlanState::Aborted);
        assert_eq!(on(&bench, "node-1"), if cancel_running { 3 } else { 2 });
        assert_eq!(begun(&mut bench), []);
        assert_eq!(bench.step(abort).unwrap_err().code, codes::STATE_CONFLICT);
    }
}

#[test]
fn a_rebalance_evens_out_and_then_rests() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let _ = ["a", "b", "c", "d"].map(|name| bench.running(name, "node-1"));
    let plan = rebalance(&mut bench, RebalanceRequest::default()).unwrap();
    assert_eq!(plan.steps.len(), 2);
    let imbalance = plan.imbalance.unwrap();
    assert!(
        imbalance.before > 600_000 && imbalance.after == 0,
        "{imbalance:?}"
    );
    let busy = rebalance(&mut bench, RebalanceRequest::default()).unwrap_err();
    assert_eq!(busy.code, codes::BUSY);
    carry_all_out(&mut bench);
    assert_eq!((on(&bench, "node-1"), on(&bench, "node-2")), (2, 2));
    let again = rebalance(&mut bench, RebalanceRequest::default()).unwrap();
    assert_eq!((again.state, again.steps.len()), (PlanState::Proposed, 0));
}

/// A step that fails ends a rebalance: what was computed does not hold any more.
#[test]
fn a_failure_ends_a_rebalance() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let _ = ["a", "b", "c", "d"].map(|name| bench.running(name, "node-1"));
    let request = RebalanceRequest {
        limits: one_by_one().limits,
        ..RebalanceRequest::default()
    };
    let plan = rebalance(&mut bench, request).unwrap();
    let ids = begun(&mut bench);
    let failed = bench.moving(ids[0], MigrationPhase::Failed, 1);
    bench.say("node-1", NodeMessage::Migration(failed));
    assert_eq!(
        states(&bench, &plan),
        [StepState::Failed, StepState::Aborted]
    );
    assert_eq!(now(&bench, &plan).state, PlanState::Failed);
    assert_eq!(begun(&mut bench), []);
}

/// Two nodes whose load is evened out by itself, with VMs on the first one.
fn continuous(vms: &[&str]) -> Bench {
    let mut settings = settings();
    settings.rebalance.mode = RebalanceMode::Continuous;
    let mut bench = Bench::of_with(settings, &["node-1", "node-2"]);
    for name in vms {
        bench.running(name, "node-1");
    }
    bench.restart_connected(&["node-1", "node-2"]);
    bench
}

#[test]
fn a_continuous_rebalance_begins_by_itself_and_leaves_alone_what_moved() {
    let mut bench = continuous(&["a", "b", "c", "d"]);
    begun(&mut bench);
    bench.pass(Millis(300_000));
    carry_all_out(&mut bench);
    assert_eq!((on(&bench, "node-1"), on(&bench, "node-2")), (2, 2));
    // Those that stayed are stopped: what moved would have to move back.
    let first: Vec<VmView> = bench.cluster.vms();
    let stayed = first.iter().filter(|vm| vm.node == Some(node("node-1")));
    for vm in stayed {
        let off = exited(vm, 1, ExitReason::GuestShutdown);
        bench.say("node-1", NodeMessage::Domain(off));
    }
    bench.pass(Millis(300_000));
    assert_eq!(begun(&mut bench), [], "within the cool-down");
    bench.pass(Millis(3_600_000));
    assert_eq!(begun(&mut bench).len(), 1);
}

#[test]
fn a_continuous_rebalance_does_not_try_again_and_again_what_fails() {
    let mut bench = continuous(&["a", "b"]);
    let mut tried = BTreeSet::new();
    for _ in 0..10 {
        begun(&mut bench);
        bench.pass(Millis(300_000));
        for id in begun(&mut bench) {
            tried.insert(bench.cluster.records.migrations[&id].vm);
            let failed = bench.moving(id, MigrationPhase::Failed, 1);
            bench.say("node-1", NodeMessage::Migration(failed));
        }
    }
    assert_eq!(tried.len(), 2, "another one instead, each once an hour");
    assert_eq!(bench.cluster.plans().len(), 2);
}

#[test]
fn rebalancing_can_be_switched_off() {
    let mut settings = settings();
    settings.rebalance.mode = RebalanceMode::Off;
    let mut bench = Bench::with(settings);
    let refused = rebalance(&mut bench, RebalanceRequest::default()).unwrap_err();
    assert_eq!(refused.code, codes::STATE_CONFLICT);
    assert!(bench.timers.is_empty());
}

#[test]
fn wrong_limits_and_nodes_are_refused() {
    let (mut bench, _) = three();
    let mut request = one_by_one();
    request.limits.parallel = 0;
    let refused = drain(&mut bench, "node-1", request).unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("limits.parallel"));
    let refused = drain(&mut bench, "node-9", one_by_one()).unwrap_err();
    assert_eq!(refused.code, codes::NOT_FOUND);
    drain(&mut bench, "node-1", one_by_one()).unwrap();
    let refused = drain(&mut bench, "node-1", one_by_one()).unwrap_err();
    assert_eq!(refused.code, codes::BUSY);
    bench.disconnect("node-2");
    let refused = drain(&mut bench, "node-2", one_by_one()).unwrap_err();
    assert_eq!(refused.code, codes::NODE_UNREACHABLE);
}

fn ruled(bench: &mut Bench, name: &str, app: &str, node: &str, placement: &serde_json::Value) {
    let form = json!({
        "name": name, "memory": 128, "labels": { "app": app }, "placement": placement,
    });
    bench.running_as(VmSpec::from_value(form).unwrap(), node);
}

/// A VM that has to be beside another one that leaves goes where that one went,
/// whichever of them is the larger.
#[test]
fn a_drain_keeps_together_what_belongs_together() {
    for (first, second) in [("web", "cache"), ("cache", "web")] {
        let mut bench = Bench::of(&["node-1", "node-2", "node-3"]);
        let near = json!({ "affinity": [{ "name": "near-web", "group": { "app": "web" } }] });
        ruled(&mut bench, "x", "web", "node-1", &json!({}));
        for (name, app) in [("a", first), ("b", second)] {
            let rules = if app == "cache" {
                near.clone()
            } else {
                json!({})
            };
            ruled(&mut bench, name, app, "node-1", &rules);
        }
        let plan = drain(&mut bench, "node-1", DrainRequest::default()).unwrap();
        assert_eq!(plan.steps.len(), 3);
        carry_all_out(&mut bench);
        assert_eq!(now(&bench, &plan).state, PlanState::Done);
        let at = |app: &str| -> Vec<NodeId> {
            let vms = bench.cluster.vms().into_iter();
            let those = vms.filter(|vm| vm.spec.labels.get("app").unwrap() == app);
            those.filter_map(|vm| vm.node).collect()
        };
        assert!(at("web").contains(&at("cache")[0]), "{:?}", at("web"));
    }
}

/// What a rule forbids is told at the start, with the rule's name.
#[test]
fn a_rule_is_a_blocker_that_is_named() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let apart = json!({ "anti_affinity": [{ "name": "apart", "group": { "app": "web" } }] });
    ruled(&mut bench, "a", "web", "node-1", &apart);
    ruled(&mut bench, "b", "web", "node-2", &json!({}));
    let refused = drain(&mut bench, "node-1", DrainRequest::default()).unwrap_err();
    let blocked = &refused.also[0];
    assert_eq!(blocked.code, codes::NO_NODE_FITS);
    assert!(blocked.also[0].message.contains("apart"), "{blocked:?}");
}

/// Two that may not be together, and one node for each: the second of them finds
/// the other one.
#[test]
fn moves_of_one_plan_keep_the_rules_between_them() {
    let mut bench = Bench::of(&["node-1", "node-2", "node-3"]);
    let even = json!({ "topology_spread": [{ "name": "even", "topology": "host", "max_skew": 1, "group": { "app": "web" } }] });
    for (name, node) in [
        ("a", "node-1"),
        ("b", "node-2"),
        ("c", "node-3"),
        ("d", "node-1"),
    ] {
        ruled(&mut bench, name, "web", node, &even);
    }
    let plan = drain(&mut bench, "node-1", DrainRequest::default()).unwrap();
    let targets: BTreeSet<_> = plan.steps.iter().map(|s| &s.target).collect();
    assert_eq!(targets.len(), 2, "{targets:?}");
    carry_all_out(&mut bench);
    let ended = now(&bench, &plan);
    assert!(
        ended.progress.iter().all(|p| p.target.is_none()),
        "{ended:#?}"
    );
}

/// What only the nodes know of a move is a blocker like any other.
#[test]
fn what_the_nodes_have_against_a_move_is_told_before_it_begins() {
    let (mut bench, vms) = three();
    let device = Problem::new(codes::MIGRATION_BLOCKED, "a device of it cannot move");
    let said = |target: &str, found| Surveyed {
        target: node(target),
        found,
    };
    let away = Problem::new(codes::NODE_UNREACHABLE, "node-2 said nothing");
    let survey: Survey = [
        (vms[0], said("node-3", Ok(vec![device.field("devices")]))),
        (vms[1], said("node-2", Err(away))),
        (vms[2], said("node-3", Ok(Vec::new()))),
    ]
    .into();
    let whole = drain_after(&mut bench, "node-1", one_by_one(), survey.clone());
    let blocker = &whole.unwrap_err().also[0];
    assert_eq!(blocker.also[0].field.as_deref(), Some("devices"));
    let partial = DrainRequest {
        partial: true,
        dry_run: true,
        ..one_by_one()
    };
    let plan = drain_after(&mut bench, "node-1", partial, survey).unwrap();
    let there: BTreeSet<VmId> = plan.steps.iter().map(|step| step.vm).collect();
    assert_eq!(there, vms[1..3].iter().copied().collect());
    for (step, progress) in plan.steps.iter().zip(&plan.progress) {
        let note = progress.message.as_deref().unwrap_or_default();
        let unasked = step.vm == vms[1] || step.target != node("node-3");
        assert_eq!(note.contains("asked"), unasked, "{note}");
    }
}

/// One whose blocker is a matter of room, which the plan itself looks after.
#[test]
fn what_placement_has_against_a_move_by_now_is_not_counted_twice() {
    let (mut bench, vms) = three();
    bench
        .step(Input::Cordon {
            node: node("node-3"),
            cordoned: true,
        })
        .unwrap();
    let mine =
        bench
            .cluster
            .choose_target(vms[0], &node("node-1"), Some(&node("node-3")), bench.now);
    let found = match mine {
        Ok((_, found)) => found,
        Err(problem) => vec![problem],
    };
    assert!(!found.is_empty(), "placement has nothing against node-3");
    let said = Surveyed {
        target: node("node-3"),
        found: Ok(found),
    };
    let survey = Survey::from([(vms[0], said)]);
    let plan = drain_after(&mut bench, "node-1", one_by_one(), survey).unwrap();
    assert_eq!((plan.steps.len(), plan.blockers.len()), (3, 0));
}

/// One moves, one waits behind it, and their node never comes back.
#[test]
fn a_source_that_never_returns_ends_its_steps_but_not_those_of_others() {
    let (mut bench, _) = three();
    let plan = drain(&mut bench, "node-1", one_by_one()).unwrap();
    bench.pass(Millis(61_000));
    let ids = begun(&mut bench);
    let told = bench.moving(ids[0], MigrationPhase::Precopy, 1);
    bench.say("node-1", NodeMessage::Migration(told));
    bench.disconnect("node-1");
    bench.pass(Millis(599_000));
    let wait = [StepState::Moving, StepState::Pending, StepState::Pending];
    assert_eq!(states(&bench, &plan), wait, "it may come back yet");
    bench.pass(Millis(2_000));
    assert_eq!(states(&bench, &plan), [StepState::Failed; 3]);
    let ended = now(&bench, &plan);
    assert_eq!(ended.state, PlanState::Failed);
    let why = ended.progress[0].problem.as_ref().unwrap();
    assert_eq!(why.code, codes::NODE_UNREACHABLE);
    assert!(
        why.message.contains("10 min; the migration goes on"),
        "{why}"
    );
    assert!(
        !ended.progress[1]
            .problem
            .as_ref()
            .unwrap()
            .message
            .contains("migration")
    );
    assert!(!bench.cluster.records.migrations[&ids[0]].phase.is_final());
}

/// The VMs of two nodes come back to a third one, and one of the two is gone.
#[test]
fn the_steps_of_other_sources_go_on() {
    let (mut bench, _) = three();
    drain(&mut bench, "node-1", DrainRequest::default()).unwrap();
    carry_all_out(&mut bench);
    let plan = PlanId::from_u128(bench.id());
    let input = Input::Return {
        node: node("node-1"),
        plan,
        request: one_by_one(),
    };
    let plan = plan_of(bench.step(input).unwrap());
    bench.disconnect("node-2");
    for _ in 0..2 {
        bench.pass(Millis(601_000));
        for id in begun(&mut bench) {
            if bench.cluster.records.migrations[&id].source == node("node-3") {
                carry_out(&mut bench, id);
            }
        }
    }
    let ended = now(&bench, &plan);
    let parts = ended.steps.iter().zip(&ended.progress);
    for (step, progress) in parts {
        let gone = step.source == node("node-2");
        let state = if gone {
            StepState::Failed
        } else {
            StepState::Done
        };
        assert_eq!(progress.state, state, "{ended:#?}");
    }
    assert_eq!(ended.message, "2 of 3 moved, 1 failed");
}

/// A coordinator that is killed meanwhile waits anew, and ends it too.
#[test]
fn a_source_that_never_returns_is_given_up_after_a_restart_as_well() {
    let (mut bench, _) = three();
    let plan = drain(&mut bench, "node-1", one_by_one()).unwrap();
    bench.disconnect("node-1");
    bench.pass(Millis(300_000));
    bench.restart();
    bench.pass(Millis(599_000));
    assert!(!now(&bench, &plan).state.is_final());
    bench.pass(Millis(2_000));
    assert_eq!(now(&bench, &plan).state, PlanState::Failed);
}
