#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use proptest::prelude::*;

use super::hbal::HbalCluster;
use super::*;

fn host(name: &str, memory: u64) -> Host {
    let capacity = [memory, memory / 256, 0, 1];
    Host {
        name: name.into(),
        capacity,
        limit: [capacity[0], capacity[1], u64::MAX, u64::MAX],
        used: [0; KINDS],
        open: true,
    }
}

/// Hosts of 4 GiB and more, and guests on them where they fit.
fn model(sizes: &[u64], guests: &[(u64, u64, usize)]) -> Model {
    let hosts = sizes.iter().enumerate();
    let mut model = Model {
        hosts: hosts
            .map(|(n, size)| host(&format!("n{n}"), *size))
            .collect(),
        guests: Vec::new(),
    };
    for (memory, vcpus, at) in guests {
        let (takes, host) = ([*memory, *vcpus, 0, 1], at % sizes.len());
        if !model.hosts[host].has_room(&takes) {
            continue;
        }
        add(&mut model.hosts[host].used, &takes);
        let name = format!("g{}", model.guests.len());
        model.guests.push(Guest {
            name,
            host,
            takes,
            movable: true,
            hosts: None,
        });
    }
    model
}

fn models() -> impl Strategy<Value = Model> {
    let sizes = prop::collection::vec(prop_oneof![Just(8192_u64), Just(4096), Just(16384)], 2..7);
    let memory = prop_oneof![Just(256_u64), Just(512), Just(1024), Just(2048)];
    let guest = (memory, 1_u64..4, prop_oneof![Just(0_usize), 0_usize..7]);
    (sizes, prop::collection::vec(guest, 0..40)).prop_map(|(sizes, guests)| model(&sizes, &guests))
}

fn applied(model: &Model, moves: &[Move]) -> Model {
    let mut after = model.clone();
    for one in moves {
        let takes = after.guests[one.guest].takes;
        take(&mut after.hosts[one.from].used, &takes);
        add(&mut after.hosts[one.to].used, &takes);
        after.guests[one.guest].host = one.to;
    }
    after
}

fn score(model: &Model, metric: &Metric) -> f64 {
    Balance::of(model, metric).score()
}

fn many() -> Policy {
    Policy {
        max_moves: usize::MAX,
        ..Policy::default()
    }
}

#[test]
fn a_full_and_an_empty_node_share() {
    let guests: Vec<_> = (0..8).map(|_| (512, 1, 0)).collect();
    let before = model(&[8192, 8192], &guests);
    let moves = rebalance(&before, &Policy::default());
    assert_eq!(moves.len(), 4);
    assert!(moves.iter().all(|one| one.to == 1));
    assert!(score(&applied(&before, &moves), &Metric::GODWIT) < 1e-6);
}

#[test]
fn the_few_large_ones_move_rather_than_the_many_small() {
    let mut guests: Vec<_> = (0..8).map(|_| (256, 0, 0)).collect();
    guests.push((2048, 0, 0));
    let before = model(&[8192, 8192], &guests);
    let moves = rebalance(&before, &Policy::default());
    assert_eq!(moves.len(), 1);
    assert_eq!(before.guests[moves[0].guest].takes[0], 2048);
}

#[test]
fn a_closed_node_and_a_pinned_vm_are_left_alone() {
    let guests: Vec<_> = (0..8).map(|_| (512, 1, 0)).collect();
    let mut before = model(&[8192, 8192, 8192], &guests);
    before.hosts[1].open = false;
    before.guests[3].movable = false;
    before.guests[4].hosts = Some(vec![true, true, false]);
    let moves = rebalance(&before, &Policy::default());
    assert_eq!(moves.len(), 4);
    assert!(
        moves
            .iter()
            .all(|one| one.to == 2 && ![3, 4].contains(&one.guest))
    );
}

#[test]
fn a_drain_says_what_has_no_place() {
    let before = model(&[8192, 4096], &[(2048, 1, 0), (2048, 1, 0), (1024, 1, 0)]);
    let found = drain(&before, 0, &Metric::GODWIT);
    assert_eq!(found.moves.len(), 2);
    assert_eq!(found.stuck, [2]);
}

/// The way that is most even leaves no place for the last; the tightest does.
#[test]
fn a_drain_packs_when_it_has_to() {
    let there = [(2048, 0, 1), (4096, 0, 2)];
    let leaving = [(4096, 0, 0), (3072, 0, 0), (3072, 0, 0)];
    let before = model(&[16384, 8192, 8192], &[&there[..], &leaving].concat());
    let found = drain(&before, 0, &Metric::GODWIT);
    assert!(found.stuck.is_empty(), "{found:?}");
    let targets: Vec<usize> = found.moves.iter().map(|one| one.to).collect();
    assert_eq!(targets, [2, 1, 1]);
}

#[test]
fn two_that_want_each_others_place_stay() {
    let mut before = model(&[1024, 1024], &[(1024, 1, 0), (1024, 1, 1)]);
    before.guests[0].name = "a".into();
    let moves = [(0, 0, 1), (1, 1, 0)].map(|(guest, from, to)| Move { guest, from, to });
    assert_eq!(order::steps(&before, &moves), []);
}

#[test]
fn a_step_waits_for_the_room_that_it_needs() {
    let before = model(&[2048, 2048, 2048], &[(2048, 1, 0), (2048, 1, 1)]);
    let moves = [(0, 0, 1), (1, 1, 2)].map(|(guest, from, to)| Move { guest, from, to });
    let steps = order::steps(&before, &moves);
    assert_eq!(steps[0].moving.guest, 1);
    assert_eq!((steps[1].moving.guest, &steps[1].after[..]), (0, &[0][..]));
}

#[test]
fn time_runs_in_lanes_and_waits_for_what_comes_before() {
    let each = [
        (Millis(10), vec![]),
        (Millis(4), vec![]),
        (Millis(3), vec![0]),
    ];
    assert_eq!(total_time(&each, 2), Millis(13));
    assert_eq!(total_time(&each, 1), Millis(17));
    assert_eq!(total_time(&[], 1), Millis(0));
    assert_eq!(time_of(MiB(100), BytesPerSec(50 << 20)), Millis(2000));
}

const TEXT: &str = "g|u|preferred||\n\nn1|4096|0|2048|9|9|8|M|u|1||N|0|1|1.0\nn2|4096|0|4096|9|9|8|N|u|1||N|0|1|1.0\n\nvm-a|1024|9|1|running|Y|n1||ext||1|1|N\nvm-b|1024|9|1|running|Y|n1||ext||1|1|N\n\n\n|s|b|ext|4.0|32.0\ng|s|b|ext|4.0|32.0\n";

#[test]
fn the_text_of_htools_goes_in_and_out() {
    let cluster = HbalCluster::read(TEXT).unwrap();
    assert_eq!(cluster.write(&[]), TEXT);
    assert_eq!(cluster.model.hosts[0].used, [2048, 3, 0, 2]);
    assert_eq!(cluster.model.hosts[0].limit[1], 32);
    let moves = rebalance(
        &cluster.model,
        &Policy {
            metric: Metric::HBAL,
            ..Policy::default()
        },
    );
    let text = cluster.write(&moves);
    assert!(
        text.contains("n1|4096|0|3072|") && text.contains("n2|4096|0|3072|"),
        "{text}"
    );
    let after = HbalCluster::read(&text).unwrap();
    assert_eq!(cluster.moves_to(&after), moves);
    for wrong in ["x\n\nn|a|", "x\n\n\nvm|1|1|1|up|Y|gone||ext", "x\n\n\nvm|1"] {
        assert!(HbalCluster::read(wrong).is_err(), "{wrong:?}");
    }
}

/// Runs the steps in an order and with overlaps that `picks` choose, and checks
/// that no host ever holds more than it can.
fn run(model: &Model, steps: &[Step], picks: &[usize]) -> Result<(), TestCaseError> {
    let mut used: Vec<Room> = model.hosts.iter().map(|host| host.used).collect();
    let (mut begun, mut ended) = (vec![false; steps.len()], vec![false; steps.len()]);
    let mut picks = picks.iter().cycle();
    while ended.iter().any(|ended| !ended) {
        let may_begin = |n: &usize| !begun[*n] && steps[*n].after.iter().all(|a| ended[*a]);
        let may_end = |n: &usize| begun[*n] && !ended[*n];
        let all = 0..steps.len();
        let choices: Vec<(bool, usize)> = (all.clone().filter(may_begin).map(|n| (true, n)))
            .chain(all.filter(may_end).map(|n| (false, n)))
            .collect();
        let (begins, n) = choices[picks.next().unwrap() % choices.len()];
        let (takes, moving) = (model.guests[steps[n].moving.guest].takes, steps[n].moving);
        if begins {
            begun[n] = true;
            add(&mut used[moving.to], &takes);
            let limit = &model.hosts[moving.to].limit;
            prop_assert!(
                fits(&used[moving.to], &[0; 4], limit),
                "{moving:?} in {steps:?}"
            );
        } else {
            ended[n] = true;
            take(&mut used[moving.from], &takes);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_target_never_holds_more_than_it_can(
        model in models(),
        picks in prop::collection::vec(0_usize..64, 1..40),
    ) {
        let moves = rebalance(&model, &many());
        run(&model, &order::steps(&model, &moves), &picks)?;
        let found = drain(&model, 0, &Metric::GODWIT);
        let steps = order::steps(&model, &found.moves);
        prop_assert_eq!(steps.len(), found.moves.len());
        prop_assert!(steps.iter().all(|step| step.after.is_empty()));
        run(&model, &steps, &picks)?;
    }

    /// Any moves at all, also such as no search would find.
    #[test]
    fn the_order_is_safe_for_any_moves(
        model in models(),
        to in prop::collection::vec(0_usize..7, 40),
        picks in prop::collection::vec(0_usize..64, 1..40),
    ) {
        let guests = model.guests.iter().enumerate();
        let moves: Vec<Move> = guests
            .map(|(guest, was)| Move { guest, from: was.host, to: to[guest] % model.hosts.len() })
            .filter(|one| one.from != one.to)
            .collect();
        run(&model, &order::steps(&model, &moves), &picks)?;
    }

    #[test]
    fn planning_again_finds_nothing(model in models()) {
        let moves = rebalance(&model, &many());
        let after = applied(&model, &moves);
        prop_assert!(score(&after, &Metric::GODWIT) <= score(&model, &Metric::GODWIT));
        prop_assert_eq!(rebalance(&after, &many()), vec![]);
    }

    /// Nodes fill a little: no gain changes by as much as the hysteresis.
    #[test]
    fn noise_below_the_threshold_moves_nothing(
        model in models(),
        noise in prop::collection::vec(0_u64..8, 7),
    ) {
        let mut after = applied(&model, &rebalance(&model, &many()));
        for (host, noise) in after.hosts.iter_mut().zip(noise) {
            // At most 8 of 4096: a load shifts by 0.002, a gain by 0.004.
            host.used[0] += noise;
        }
        prop_assert_eq!(rebalance(&after, &many()), vec![]);
    }

    #[test]
    fn no_more_moves_than_asked_for(model in models(), most in 0_usize..6) {
        let policy = Policy { max_moves: most, ..Policy::default() };
        let moves = rebalance(&model, &policy);
        prop_assert!(moves.len() <= most);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[a-z0-9|.\n]{0,200}") {
        let _ = HbalCluster::read(&text);
    }
}
