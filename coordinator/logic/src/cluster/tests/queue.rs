//! Migrations that wait for a place.

use godwit_shared::model::{MigrationPolicy, codes};
use proptest::prelude::*;

use super::*;

/// Three nodes that carry one migration each.
fn narrow() -> Bench {
    let mut bench = Bench::with(Settings {
        migrations: MigrationLimits {
            per_node: 1,
            ..MigrationLimits::default()
        },
        ..settings()
    });
    for name in ["node-1", "node-2", "node-3", "node-4"] {
        bench.join(name).unwrap();
        bench.connect(name, 64_000, Vec::new());
    }
    bench
}

/// Asks for a move with a priority; the id of the migration.
fn ask(bench: &mut Bench, vm: VmId, to: &str, priority: u8) -> MigrationId {
    let (migration, task) = (
        MigrationId::from_u128(bench.id()),
        TaskId::from_u128(bench.id()),
    );
    let request = MigrateRequest {
        target: Some(node(to)),
        policy: MigrationPolicy {
            priority,
            ..MigrationPolicy::default()
        },
        ..MigrateRequest::default()
    };
    let input = Input::Migrate {
        vm,
        migration,
        task,
        ticket: Ticket(0),
        request,
    };
    bench.step(input).unwrap();
    migration
}

fn ends(bench: &mut Bench, id: MigrationId, phase: MigrationPhase) {
    let source = bench.cluster.migration(id).unwrap().source;
    let report = bench.moving(id, phase, 1);
    bench.say(source.as_str(), NodeMessage::Migration(report));
}

#[test]
fn what_has_no_place_waits_and_says_why() {
    let mut bench = narrow();
    let (a, b) = (bench.running("a", "node-1"), bench.running("b", "node-1"));
    let first = ask(&mut bench, a, "node-2", 50);
    let second = ask(&mut bench, b, "node-3", 50);
    assert_eq!(begun(&mut bench), [first]);
    let view = bench.cluster.migration(second).unwrap();
    assert_eq!(view.phase, MigrationPhase::Queued);
    let queue = view.queue.unwrap();
    assert_eq!(queue.position, 1);
    assert_eq!(queue.reason, "node-1 carries its most: 1");
    assert_eq!(queue.estimated_start, None, "nothing is known of moves yet");
    assert_eq!(bench.cluster.migration(first).unwrap().queue, None);
    // It survives the coordinator.
    bench.restart();
    assert!(bench.cluster.migration(second).unwrap().queue.is_some());
}

#[test]
fn the_end_of_one_is_the_beginning_of_the_next() {
    let mut bench = narrow();
    let vms = ["a", "b", "c"].map(|name| bench.running(name, "node-1"));
    let first = ask(&mut bench, vms[0], "node-2", 50);
    let later = ask(&mut bench, vms[1], "node-2", 50);
    let urgent = ask(&mut bench, vms[2], "node-2", 60);
    assert_eq!(begun(&mut bench), [first]);
    ends(&mut bench, first, MigrationPhase::Failed);
    assert_eq!(begun(&mut bench), [urgent], "the higher priority");
    let left = bench.cluster.migration(later).unwrap();
    assert_eq!(left.queue.unwrap().position, 1);
    ends(&mut bench, urgent, MigrationPhase::Cancelled);
    assert_eq!(begun(&mut bench), [later]);
}

#[test]
fn a_low_priority_is_not_overtaken_for_ever() {
    let mut bench = narrow();
    let vms = ["a", "b", "c"].map(|name| bench.running(name, "node-1"));
    let first = ask(&mut bench, vms[0], "node-2", 50);
    let patient = ask(&mut bench, vms[1], "node-2", 40);
    bench.pass(Millis(11 * 60_000));
    let urgent = ask(&mut bench, vms[2], "node-2", 50);
    begun(&mut bench);
    ends(&mut bench, first, MigrationPhase::Failed);
    assert_eq!(
        begun(&mut bench),
        [patient],
        "eleven minutes are eleven points"
    );
    assert!(bench.cluster.migration(urgent).unwrap().queue.is_some());
}

/// A move that needs two busy nodes keeps its place at both, so that those
/// behind it, which need only one, do not starve it.
#[test]
fn one_that_waits_holds_its_places() {
    let mut bench = narrow();
    let on = [
        ("a", "node-1"),
        ("b", "node-3"),
        ("c", "node-3"),
        ("d", "node-4"),
    ];
    let vms = on.map(|(name, at)| bench.running(name, at));
    let busy = ask(&mut bench, vms[0], "node-2", 50);
    // Needs node-2, which is busy, and node-3, which is free.
    let waits = ask(&mut bench, vms[1], "node-2", 50);
    // Would fit between node-3 and node-4.
    let behind = ask(&mut bench, vms[3], "node-3", 50);
    assert_eq!(begun(&mut bench), [busy]);
    ends(&mut bench, busy, MigrationPhase::Failed);
    assert_eq!(begun(&mut bench), [waits]);
    ends(&mut bench, waits, MigrationPhase::Failed);
    assert_eq!(begun(&mut bench), [behind]);
}

#[test]
fn one_that_waits_is_cancelled_at_once_and_fails_when_it_no_longer_can() {
    let mut bench = narrow();
    let vms = ["a", "b", "c"].map(|name| bench.running(name, "node-1"));
    let first = ask(&mut bench, vms[0], "node-2", 50);
    let unwanted = ask(&mut bench, vms[1], "node-2", 50);
    let stale = ask(&mut bench, vms[2], "node-2", 50);
    let cancel = Input::CancelMigration {
        migration: unwanted,
    };
    bench.step(cancel).unwrap();
    let view = bench.cluster.migration(unwanted).unwrap();
    assert_eq!((view.phase, view.queue), (MigrationPhase::Cancelled, None));
    // Its guest powers off while it waits.
    let off = exited(&bench.vm(vms[2]), 1, ExitReason::GuestShutdown);
    bench.say("node-1", NodeMessage::Domain(off));
    begun(&mut bench);
    ends(&mut bench, first, MigrationPhase::Failed);
    assert_eq!(begun(&mut bench), []);
    let view = bench.cluster.migration(stale).unwrap();
    assert_eq!(view.phase, MigrationPhase::Failed);
    assert_eq!(view.failure.unwrap().problem.code, codes::STATE_CONFLICT);
}

/// Those that wait behind a busy node take nothing from the others.
#[test]
fn a_busy_node_does_not_block_the_cluster() {
    let mut bench = Bench::with(Settings {
        migrations: MigrationLimits {
            per_node: 2,
            per_link: 2,
            cluster: 4,
        },
        ..settings()
    });
    for name in ["node-1", "node-2", "node-3", "node-4"] {
        bench.join(name).unwrap();
        bench.connect(name, 64_000, Vec::new());
    }
    let mut begins = 0;
    for number in 0..8 {
        let vm = bench.running(&format!("a{number}"), "node-1");
        ask(&mut bench, vm, "node-2", 50);
        begins += begun(&mut bench).len();
    }
    assert_eq!(begins, 2);
    let vm = bench.running("b", "node-3");
    let other = ask(&mut bench, vm, "node-4", 50);
    assert_eq!(begun(&mut bench), [other]);
}

#[test]
fn a_source_that_is_away_is_kept_no_place() {
    let mut bench = narrow();
    let (a, b, c) = (
        bench.running("a", "node-1"),
        bench.running("b", "node-3"),
        bench.running("c", "node-4"),
    );
    let first = ask(&mut bench, a, "node-2", 50);
    let away = ask(&mut bench, b, "node-2", 60);
    bench.disconnect("node-3");
    let next = ask(&mut bench, c, "node-2", 50);
    begun(&mut bench);
    ends(&mut bench, first, MigrationPhase::Failed);
    assert_eq!(begun(&mut bench), [next]);
    let queue = bench.cluster.migration(away).unwrap().queue.unwrap();
    assert_eq!(queue.reason, "node-3 is not connected");
}

/// The events of that kind that are kept.
fn told(bench: &Bench, kind: &str) -> Vec<String> {
    let events = bench.events.iter().filter(|event| event.kind == kind);
    events.map(|event| event.message.clone()).collect()
}

/// The guest powers off.
fn powers_off(bench: &mut Bench, vm: VmId, on: &str) {
    let view = bench.vm(vm);
    let off = report(&view, DomainState::Stopped, view.epoch.0);
    bench.say(on, NodeMessage::Domain(off));
}

#[test]
fn a_guest_that_powers_off_leaves_the_queue_at_once() {
    let mut bench = narrow();
    let (a, b) = (bench.running("a", "node-1"), bench.running("b", "node-1"));
    ask(&mut bench, a, "node-2", 50);
    let waiting = ask(&mut bench, b, "node-2", 50);
    assert!(bench.cluster.migration(waiting).unwrap().queue.is_some());
    powers_off(&mut bench, b, "node-1");
    let view = bench.cluster.migration(waiting).unwrap();
    assert_eq!(view.phase, MigrationPhase::Failed, "before its turn");
    let failure = view.failure.unwrap();
    assert_eq!(failure.phase, MigrationPhase::Queued);
    assert_eq!(failure.problem.code, codes::STATE_CONFLICT);
}

/// A node says hello, with its running guests and a move under way.
fn come_back(bench: &mut Bench, name: &str, vms: &[VmId], moves: MigrationId) {
    let running = vms.iter().map(|vm| {
        let view = bench.vm(*vm);
        report(&view, DomainState::Running, view.epoch.0)
    });
    let hello = NodeHello {
        facts: Document::of(&facts(64_000)).unwrap(),
        domains: running.collect(),
        migrations: vec![bench.moving(moves, MigrationPhase::Precopy, 1)],
    };
    bench.hello(name, 1, hello).unwrap();
}

#[test]
fn a_reason_is_told_once_also_over_a_restart_and_so_is_another() {
    let mut bench = narrow();
    let vms = ["a", "b"].map(|name| bench.running(name, "node-1"));
    let other = bench.running("c", "node-3");
    let first = ask(&mut bench, vms[0], "node-2", 50);
    let beside = ask(&mut bench, other, "node-4", 50);
    let waiting = ask(&mut bench, vms[1], "node-3", 50);
    let reason = "the move of b waits: node-1 carries its most: 1";
    assert_eq!(told(&bench, "migration.queued"), [reason]);
    bench.restart();
    come_back(&mut bench, "node-1", &vms, first);
    come_back(&mut bench, "node-3", &[other], beside);
    let view = bench.cluster.migration(waiting).unwrap();
    assert_eq!(view.queue.unwrap().reason, "node-1 carries its most: 1");
    assert_eq!(told(&bench, "migration.queued"), [reason], "not again");
    ends(&mut bench, first, MigrationPhase::Failed);
    let view = bench.cluster.migration(waiting).unwrap();
    assert_eq!(view.queue.unwrap().reason, "node-3 carries its most: 1");
    assert_eq!(told(&bench, "migration.queued"), [reason]);
    assert_eq!(
        told(&bench, "migration.waits"),
        ["the move of b waits: node-3 carries its most: 1"]
    );
}

#[test]
fn a_target_that_placement_chose_is_chosen_anew() {
    let mut bench = narrow();
    let (a, b) = (bench.running("a", "node-1"), bench.running("b", "node-1"));
    let first = ask(&mut bench, a, "node-2", 50);
    let (placed, _) = bench.migrate(b, None).unwrap();
    let chosen = bench.cluster.migration(placed).unwrap().target;
    bench
        .step(Input::Cordon {
            node: chosen.clone(),
            cordoned: true,
        })
        .unwrap();
    begun(&mut bench);
    ends(&mut bench, first, MigrationPhase::Failed);
    assert_eq!(begun(&mut bench), [placed]);
    let view = bench.cluster.migration(placed).unwrap();
    assert_ne!(view.target, chosen);
    assert_eq!(
        bench.task(view.task.unwrap()).node,
        Some(view.target.clone())
    );
    assert_eq!(told(&bench, "migration.target").len(), 1);
}

#[test]
fn a_target_that_was_named_is_not_replaced() {
    let mut bench = narrow();
    let (a, b) = (bench.running("a", "node-1"), bench.running("b", "node-1"));
    let first = ask(&mut bench, a, "node-2", 50);
    let named = ask(&mut bench, b, "node-3", 50);
    let cordon = Input::Cordon {
        node: node("node-3"),
        cordoned: true,
    };
    bench.step(cordon).unwrap();
    ends(&mut bench, first, MigrationPhase::Failed);
    let view = bench.cluster.migration(named).unwrap();
    assert_eq!(
        (view.phase, view.target),
        (MigrationPhase::Failed, node("node-3"))
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is asked for and however it ends: never over a limit, and in
    /// the end nothing waits.
    #[test]
    fn the_limits_hold_and_all_end(
        moves in prop::collection::vec((0_usize..4, 1_usize..4, 0_u8..=100), 1..12),
        per_node in 1_u32..4,
        cluster in 1_u32..4,
    ) {
        let nodes = ["node-1", "node-2", "node-3", "node-4"];
        let mut bench = Bench::with(Settings {
            migrations: MigrationLimits { per_node, per_link: 2, cluster },
            ..settings()
        });
        for name in nodes {
            bench.join(name).unwrap();
            bench.connect(name, 64_000, Vec::new());
        }
        let mut open = Vec::new();
        for (number, (from, distance, priority)) in moves.iter().enumerate() {
            let vm = bench.running(&format!("v{number}"), nodes[*from]);
            open.push(ask(&mut bench, vm, nodes[(from + distance) % 4], *priority));
            begun(&mut bench);
        }
        while !open.is_empty() {
            let running: Vec<MigrationId> = open
                .iter()
                .copied()
                .filter(|id| bench.cluster.migration(*id).unwrap().queue.is_none())
                .collect();
            prop_assert!(!running.is_empty(), "all of them wait");
            prop_assert!(running.len() <= cluster as usize);
            for name in nodes {
                let here = running.iter().filter(|id| {
                    let view = bench.cluster.migration(**id).unwrap();
                    [view.source, view.target].contains(&node(name))
                });
                prop_assert!(here.count() <= per_node as usize);
            }
            ends(&mut bench, running[0], MigrationPhase::Failed);
            open.retain(|id| *id != running[0]);
        }
    }
}
