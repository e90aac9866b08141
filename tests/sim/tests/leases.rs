//! What is lost, and what becomes of protected VMs (docs/failover.md), over some
//! seeds each: the seed draws how long everything takes.
#![allow(clippy::panic, reason = "tests")]

use godwit_sim::Mutant;
use godwit_sim::scene::{COORDINATOR, Scene};

/// Of the simulator's settings, in milliseconds.
const LEASE: u64 = 6_000;
const MARGIN: u64 = 1_500;
/// Long after all has come to pass that will.
const LONG: u64 = 120_000;

fn each(case: impl Fn(&mut Scene)) {
    for seed in 0..20 {
        let mut scene = Scene::new(seed);
        assert_eq!(homes(&scene), at_home(), "seed {seed}: the beginning");
        case(&mut scene);
        assert_eq!(scene.breach(), None, "seed {seed}");
    }
}

fn homes(scene: &Scene) -> [Vec<usize>; 4] {
    [0, 1, 2, 3].map(|vm| scene.runners(vm))
}

fn at_home() -> [Vec<usize>; 4] {
    [0, 1, 2, 3].map(|n| vec![n])
}

#[test]
fn a_node_that_loses_only_the_coordinator_loses_nothing() {
    each(|scene| {
        scene.cut(COORDINATOR, 1);
        scene.wait(LONG);
        assert!(!scene.fenced(0));
        assert_eq!((scene.ended(), homes(scene)), (0, at_home()));
        scene.mend();
        scene.wait(LONG);
        assert_eq!((scene.ended(), homes(scene)), (0, at_home()));
    });
}

#[test]
fn a_coordinator_that_is_away_for_all_stops_nothing() {
    each(|scene| {
        scene.stop_coordinator();
        scene.wait(LONG);
        assert_eq!((scene.ended(), homes(scene)), (0, at_home()));
        scene.start_coordinator();
        scene.wait(LONG);
        assert!((0..4).all(|n| !scene.fenced(n)));
        assert_eq!((scene.ended(), homes(scene)), (0, at_home()));
    });
}

#[test]
fn a_node_that_is_cut_off_loses_its_vm_after_lease_and_margin() {
    each(|scene| {
        for host in [COORDINATOR, 2, 3, 4] {
            scene.cut(host, 1);
        }
        // It may have renewed up to a quarter of the lease before.
        scene.wait(LEASE / 2);
        assert_eq!((scene.ended(), homes(scene)), (0, at_home()));
        scene.wait(LEASE / 2 + MARGIN + 6_000);
        assert!(scene.fenced(0));
        let runners = scene.runners(0);
        assert!(runners.len() == 1 && runners != [0], "{runners:?}");
        assert_eq!(scene.ended(), 1, "and nobody else's");
        scene.mend();
        scene.wait(LONG);
        assert_eq!(scene.runners(0).len(), 1, "wherever a rebalance has it");
        assert!(!scene.fenced(0));
    });
}

#[test]
fn without_any_network_all_stop_and_come_back_with_it() {
    each(|scene| {
        for (a, b) in pairs(&[0, 1, 2, 3, 4], &[0, 1, 2, 3, 4]) {
            scene.cut(a, b);
        }
        scene.wait(LONG);
        assert_eq!(scene.ended(), 4);
        assert!((0..4).all(|vm| scene.runners(vm).is_empty()));
        assert!((0..4).all(|n| !scene.fenced(n)), "nobody has promised");
        scene.mend();
        scene.wait(LONG);
        assert!((0..4).all(|vm| scene.runners(vm).len() == 1));
    });
}

#[test]
fn a_cut_in_half_leaves_the_coordinators_half() {
    each(|scene| {
        for (a, b) in pairs(&[COORDINATOR, 1, 2], &[3, 4]) {
            scene.cut(a, b);
        }
        scene.wait(LONG);
        assert_eq!(scene.ended(), 2, "two of four are no majority");
        for vm in 0..4 {
            let runners = scene.runners(vm);
            assert!(runners == [0] || runners == [1], "{vm}: {runners:?}");
        }
    });
}

#[test]
fn a_majority_without_the_coordinator_runs_on() {
    each(|scene| {
        for (a, b) in pairs(&[COORDINATOR, 1], &[2, 3, 4]) {
            scene.cut(a, b);
        }
        scene.wait(LONG);
        assert_eq!((scene.ended(), homes(scene)), (0, at_home()));
        assert!((0..4).all(|n| !scene.fenced(n)));
    });
}

/// Node 3 vouches for node 1, promises the coordinator to do so no more, and is
/// asked again by node 1 while the coordinator is away from it.
fn one_who_has_promised_is_asked_again(seed: u64, mutant: Option<Mutant>) -> Scene {
    let mut scene = Scene::with(seed, mutant);
    for (a, b) in pairs(&[COORDINATOR, 4], &[1, 2, 3]) {
        scene.cut(a, b);
    }
    scene.wait(LONG);
    assert_eq!(
        (scene.ended(), homes(&scene)),
        (0, at_home()),
        "seed {seed}"
    );
    scene.cut(1, 3);
    scene.mend_between(COORDINATOR, 3);
    scene.wait(LEASE / 2);
    scene.cut(COORDINATOR, 3);
    scene.mend_between(1, 3);
    scene.wait(LONG);
    scene
}

#[test]
fn a_promise_to_vouch_no_more_is_kept() {
    let mut met = 0;
    for seed in 0..20 {
        let scene = one_who_has_promised_is_asked_again(seed, None);
        assert_eq!(scene.breach(), None, "seed {seed}");
        // Where the promise came in time, the coordinator's side has the VM.
        if scene.fenced(0) {
            met += 1;
            assert_eq!(scene.runners(0), [3], "seed {seed}");
        }
    }
    assert!(met > 0, "no promise was given in time");
}

#[test]
fn one_that_vouches_for_anybody_is_found() {
    let breach = (0..20).find_map(|seed| {
        let scene = one_who_has_promised_is_asked_again(seed, Some(Mutant::VouchForAll));
        scene.breach().map(str::to_owned)
    });
    assert!(breach.is_some_and(|breach| breach.contains("runs on node")));
}

fn pairs(some: &[usize], others: &[usize]) -> Vec<(usize, usize)> {
    let pair = |a: &usize| others.iter().map(|b| (*a, *b)).collect::<Vec<_>>();
    let all = some.iter().flat_map(pair);
    all.filter(|(a, b)| a != b).collect()
}
