//! What a coordinator recorded is replayed, file by file; damage and another
//! logic are told.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use godwit_sim::recorded;
use godwit_sim::replay::{Bug, Failed, Outcome, Wanted, replay};

/// The first file of a run.
fn first() -> Vec<u8> {
    recorded(0).recordings.swap_remove(0)
}

fn played(file: &[u8], wanted: Wanted) -> Result<Outcome, Failed> {
    replay(file, wanted, &mut |_| {})
}

/// Also those that begin in the middle of a daemon's life.
#[test]
fn each_file_is_replayed_alone() {
    let files: Vec<_> = (0..30).flat_map(|seed| recorded(seed).recordings).collect();
    let mut steps = 0;
    for (at, file) in files.iter().enumerate() {
        let outcome = played(file, Wanted::default()).unwrap();
        if let Some(wrong) = outcome.wrong {
            panic!("file {at}: {wrong}");
        }
        assert_eq!(outcome.cut_off, 0);
        steps += outcome.steps;
    }
    let middle = |file: &&Vec<u8>| String::from_utf8_lossy(file).contains("{\"observed\":");
    let middles = files.iter().filter(middle).count();
    println!(
        "{steps} steps in {} files, {middles} from the middle",
        files.len()
    );
    assert!(middles > 100 && files.len() > middles + 30);
}

#[test]
fn a_cut_off_end_is_told_and_the_rest_replayed() {
    let file = &first();
    let whole = played(file, Wanted::default()).unwrap();
    let cut = played(&file[..file.len() - 40], Wanted::default()).unwrap();
    assert!(cut.cut_off > 0 && cut.wrong.is_none());
    assert_eq!(cut.steps, whole.steps - 1);
}

#[test]
fn a_flipped_byte_is_found_wherever_it_is() {
    let file = &first();
    // Without its newline the last line is one that was cut off.
    for at in (0..file.len() - 1).step_by(file.len() / 40) {
        let mut other = file.clone();
        other[at] ^= 1;
        let found = played(&other, Wanted::default());
        // A newline that is none any more makes one line of two.
        assert!(found.is_err(), "byte {at}: {found:?}");
    }
}

#[test]
fn another_logic_is_told_with_the_step_and_both_effects() {
    let buggy = Wanted {
        bug: Some(Bug::StaleEpoch),
        ..Wanted::default()
    };
    let wrong = played(&first(), buggy).unwrap().wrong.unwrap();
    let parts = [
        "step ",
        "is another",
        "recorded: {\"Request\"",
        "replayed: {\"Request\"",
    ];
    for part in parts {
        assert!(wrong.contains(part), "no `{part}` in {wrong}");
    }
}

#[test]
fn a_range_of_steps_is_shown() {
    let wanted = Wanted {
        from: 10,
        to: 12,
        trace: true,
        ..Wanted::default()
    };
    let mut lines = Vec::new();
    let outcome = replay(&first(), wanted, &mut |line| lines.push(line.to_owned())).unwrap();
    assert_eq!(outcome.last, 12);
    let heads = lines.iter().filter(|line| line.starts_with("step "));
    assert_eq!(heads.count(), 3, "{lines:#?}");
}
