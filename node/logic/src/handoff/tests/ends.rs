//! What a target says last, and when it may end.

use super::*;

const RUNNING: IncomingStage = IncomingStage::Running { complete: true };

/// A target that has come as far as being asked to grant.
fn loaded_target() -> Target {
    let mut effects = Vec::new();
    let mut target = Target::begin(ID, EPOCH, false, &mut effects);
    for event in [
        TargetEvent::Checked(Vec::new()),
        TargetEvent::Started,
        TargetEvent::Loaded,
    ] {
        target.step(event, &mut effects).unwrap();
    }
    target
}

/// What was said stands, so it is written first, also where nothing has been
/// begun yet.
#[test]
fn a_question_that_comes_early_is_refused_for_good() {
    let mut effects = Vec::new();
    let mut target = Target::begin(ID, EPOCH, false, &mut effects);
    effects.clear();
    target.step(TargetEvent::Query, &mut effects).unwrap();
    let word = TombstoneVerdict::Refused;
    assert_eq!(effects, [TargetEffect::Discard(word)]);
    let checked = TargetEvent::Checked(Vec::new());
    assert!(target.step(checked, &mut effects).is_err());
    target.step(TargetEvent::Discarded, &mut effects).unwrap();
    assert!(effects.contains(&TargetEffect::Answer(Verdict::Refused)));

    effects.clear();
    target.step(TargetEvent::Query, &mut effects).unwrap();
    assert_eq!(effects, [], "from here on the tombstone answers");
}

/// Whoever asks after the end is answered from the tombstone: without it the
/// grant would be refused while the guest runs here.
#[test]
fn a_target_does_not_end_before_its_word_is_written() {
    let written = TargetEvent::Journaled(RUNNING);
    let finish = TargetEffect::Finish(TargetOutcome::Received);
    let orders = [
        [TargetEvent::SourceDone, written.clone()],
        [written, TargetEvent::SourceDone],
    ];
    for [first, second] in orders {
        for restarted in [false, true] {
            let mut effects = Vec::new();
            let mut target = loaded_target();
            if restarted {
                let stage = RUNNING;
                target = Target::recover(ID, EPOCH.next(), stage, &mut effects);
            } else {
                let (epoch, run, early) = (EPOCH.next(), true, false);
                let stage = IncomingStage::Granted { run, early };
                for event in [
                    TargetEvent::Grant { epoch, run, early },
                    TargetEvent::Journaled(stage),
                    TargetEvent::Activated,
                ] {
                    target.step(event, &mut effects).unwrap();
                }
            }
            let writes = TargetEffect::Journal(RUNNING);
            assert!(effects.contains(&writes));
            target.step(first.clone(), &mut effects).unwrap();
            assert!(!effects.contains(&finish), "{first:?} alone");
            target.step(second.clone(), &mut effects).unwrap();
            assert!(effects.contains(&finish), "{first:?}, {second:?}");
        }
    }
}

/// QEMU sends a guest that stands still without a stop in between, and nobody
/// finishes its mirrors then: whichever side's word comes first.
#[test]
fn a_guest_whose_disks_are_not_complete_is_not_granted() {
    let qemu = || SourceEvent::Qemu(QemuMigration::Completed);
    for order in [[SourceEvent::Loaded, qemu()], [qemu(), SourceEvent::Loaded]] {
        let mut terms = TERMS;
        terms.plan.mirrors = true;
        let mut effects = Vec::new();
        let mut source = Source::begin(terms, &mut effects);
        let ready = [SourceEvent::Prepared, SourceEvent::MirrorsReady];
        for event in ready.into_iter().chain(order) {
            source.step(event, &mut effects).unwrap();
        }
        let granted = |effect: &SourceEffect| matches!(effect, SourceEffect::Journal(_));
        assert!(!effects.iter().any(granted), "{effects:?}");
        assert!(effects.contains(&SourceEffect::Stay { epoch: EPOCH }));
    }
}
