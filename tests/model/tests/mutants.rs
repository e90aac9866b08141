//! Seeded bugs are found: the search can fail.
#![allow(
    clippy::print_stdout,
    clippy::panic,
    clippy::expect_used,
    reason = "tests that print their numbers"
)]

use godwit_model::run;
use godwit_model::{Mutant, cases};

fn is_found(mutant: Mutant) {
    let seed = cases::seeds()
        .into_iter()
        .find(|seed| seed.mutant == mutant);
    let seed = seed.expect("that bug is looked for nowhere");
    let found = run::find(&seed);
    println!("{mutant:?}: {}", found.numbers());
    let way = found
        .way_to(seed.breaks)
        .expect("the seeded bug is not found");
    let steps = run::told(&seed.model, way);
    println!(
        "{}, by {} steps:\n{steps}",
        seed.breaks,
        way.clone().into_actions().len()
    );

    // It is the bug that breaks it, not the bounds.
    let mut sound = seed;
    sound.model.mutant = None;
    let found = run::find(&sound);
    assert!(found.broken.is_empty(), "broken without the bug: {found:?}");
}

macro_rules! mutants {
    ($($name:ident = $mutant:ident)*) => {
        $(
            #[test]
            fn $name() {
                is_found(Mutant::$mutant);
            }
        )*

        #[test]
        fn none_is_left_out() {
            assert_eq!(Mutant::ALL.as_slice(), [$(Mutant::$mutant),*]);
        }
    };
}

mutants! {
    a_resume_on_timeout = ResumeOnTimeout
    a_grant_sent_before_it_is_journaled = GrantBeforeJournal
    cpus_that_run_before_the_grant_is_journaled = RunBeforeJournal
    a_grant_taken_after_a_refusal = GrantAfterRefusal
    a_refusal_said_before_its_tombstone = RefusalBeforeTombstone
    a_source_that_retires_without_the_word = RetireWithoutWord
    a_guest_taken_back_at_its_old_epoch = TakeBackAtOldEpoch
    a_refusal_that_is_not_written = UnwrittenRefusal
    a_recovery_that_forgets_the_grant = RecoverForgetsGrant
    a_reboot_that_refuses = RebootRefuses
    an_unclear_activation_handed_back = UnclearHandsBack
    a_word_that_is_tried_once = WordNotTried
    a_guest_that_leaves_before_it_has_arrived = LeaveBeforeArrived
    a_relay_that_refuses_for_the_absent = RelayRefusesForAbsent
    a_relay_that_takes_the_owner_for_a_runner = RelayTakesOwnerForRunner
    a_guest_that_runs_while_it_switches_to_post_copy = PostcopyUnstopped
    a_post_copy_taken_back_without_a_word = PostcopyTakesBackUnasked
    a_recovery_that_forgets_the_grant_of_a_post_copy = RecoverForgetsEarlyGrant
    a_source_that_retires_while_its_memory_is_needed = RetireBeforeComplete
    a_disk_given_up_before_the_guest_runs_elsewhere = DiskGivenUpEarly
    a_mirror_finished_while_the_guest_runs = MirrorFinishedEarly
    a_switchover_before_the_export_is_released = FinishedBeforeReleased
    a_target_that_keeps_its_disk = TargetKeepsDisk
    a_source_that_leaves_its_mirror = StayLeavesMirror
    a_reboot_that_drops_the_disk = RebootDropsDisk
    a_grant_that_is_not_written_through = GrantNotWrittenThrough
}
