//! Post-copy and time limits, step by step.

use super::*;

/// A source that sends memory, and may switch to post-copy.
fn sending(postcopy: Postcopy, effects: &mut Vec<SourceEffect>) -> Source {
    let terms = Terms {
        plan: Plan {
            postcopy,
            ..TERMS.plan
        },
        ..TERMS
    };
    let mut source = Source::begin(terms, effects);
    for event in [
        SourceEvent::Prepared,
        SourceEvent::Qemu(QemuMigration::Active),
    ] {
        source.step(event, effects).unwrap();
    }
    effects.clear();
    source
}

fn steps(source: &mut Source, events: impl IntoIterator<Item = SourceEvent>) -> Vec<SourceEffect> {
    let mut effects = Vec::new();
    for event in events {
        source.step(event, &mut effects).unwrap();
    }
    effects
}

fn pass(number: u32) -> SourceEvent {
    SourceEvent::Pass {
        number,
        remaining: Bytes(1 << 30),
    }
}

/// QEMU has no way back once the device state is sent: until the target holds
/// the grant, QEMU is not told to go on.
#[test]
fn in_post_copy_the_right_goes_before_the_device_state() {
    let mut effects = Vec::new();
    let mut source = sending(Postcopy::Always, &mut effects);
    assert_eq!(steps(&mut source, [pass(1)]), []);
    let asked = steps(&mut source, [pass(2)]);
    assert_eq!(asked, [SourceEffect::StartPostcopy]);
    let left = steps(
        &mut source,
        [
            SourceEvent::StoppedForPostcopy,
            SourceEvent::Qemu(QemuMigration::PreSwitchover),
        ],
    );
    assert!(left.contains(&SourceEffect::Journal(OutgoingStage::GrantedEarly)));
    let granted = steps(
        &mut source,
        [SourceEvent::Journaled(OutgoingStage::GrantedEarly)],
    );
    assert!(!granted.contains(&SourceEffect::ContinueMigration));
    let taken = steps(&mut source, [SourceEvent::Taken(EPOCH.next())]);
    assert_eq!(taken, [SourceEffect::ContinueMigration]);
    let running = steps(
        &mut source,
        [
            SourceEvent::Qemu(QemuMigration::PostcopyActive),
            SourceEvent::Activated(EPOCH.next()),
        ],
    );
    let retired = |effects: &[SourceEffect]| {
        let retire = |effect: &SourceEffect| matches!(effect, SourceEffect::Retire { .. });
        effects.iter().any(retire)
    };
    assert!(!retired(&running), "the target still needs its pages");
    let mut ignored = Vec::new();
    assert!(source.step(SourceEvent::Cancel, &mut ignored).is_err());
    let lost = steps(&mut source, [SourceEvent::LinkLost(lost())]);
    assert!(lost.contains(&SourceEffect::Reconnect));
    let again = steps(
        &mut source,
        [
            SourceEvent::ResumeReady,
            SourceEvent::Qemu(QemuMigration::PostcopyActive),
        ],
    );
    assert!(again.contains(&SourceEffect::ResumeMigration));
    let done = steps(&mut source, [SourceEvent::Qemu(QemuMigration::Completed)]);
    assert!(retired(&done));
}

/// A guest that QEMU had stopped by itself is one that QEMU may resume by
/// itself: it is moved as in pre-copy, the right last.
#[test]
fn a_switchover_that_came_first_is_no_post_copy() {
    let mut effects = Vec::new();
    let mut source = sending(Postcopy::Always, &mut effects);
    let asked = steps(
        &mut source,
        [pass(2), SourceEvent::Qemu(QemuMigration::PreSwitchover)],
    );
    assert!(asked.contains(&SourceEffect::ContinueMigration));
    assert!(!source.is_granted());
}

/// The daemon comes back after an early grant: the target has the guest, and
/// only this side has the rest of its memory.
#[test]
fn a_daemon_that_comes_back_goes_on_with_the_post_copy() {
    let mut effects = Vec::new();
    let early = OutgoingStage::GrantedEarly;
    let mut source = Source::recover(TERMS, early, &mut effects);
    let running = SourceEvent::Verdict(Verdict::Granted { running: true });
    assert!(steps(&mut source, [running]).contains(&SourceEffect::Reconnect));
    // And one whose grant was refused takes it back, QEMU's migration first.
    let mut source = Source::recover(TERMS, early, &mut effects);
    let refused = steps(
        &mut source,
        [
            SourceEvent::Verdict(Verdict::Refused),
            SourceEvent::Journaled(OutgoingStage::TakenBack),
        ],
    );
    assert!(refused.contains(&SourceEffect::CancelMigration));
    let cancelled = SourceEvent::Qemu(QemuMigration::Cancelled);
    let epoch = EPOCH.next().next();
    assert!(steps(&mut source, [cancelled]).contains(&SourceEffect::Stay { epoch }));
}

#[test]
fn a_time_limit_is_kept_until_it_can_be_acted_on() {
    let mut effects = Vec::new();
    let terms = Terms {
        plan: Plan {
            timeout: Some(Millis(5)),
            timeout_action: TimeoutAction::Force,
            ..TERMS.plan
        },
        ..TERMS
    };
    let mut source = Source::begin(terms, &mut effects);
    assert!(effects.contains(&SourceEffect::Arm(Timer::Limit, Millis(5))));
    let early = steps(
        &mut source,
        [SourceEvent::Timeout(Timer::Limit), SourceEvent::Prepared],
    );
    assert!(!early.contains(&SourceEffect::HurryUp));
    let active = SourceEvent::Qemu(QemuMigration::Active);
    assert_eq!(steps(&mut source, [active]), [SourceEffect::HurryUp]);
}

/// In post-copy the target takes a grant before it has loaded anything, and
/// runs the CPUs when it has the device state.
#[test]
fn a_target_takes_an_early_grant_and_waits() {
    let mut effects = Vec::new();
    let mut target = Target::begin(ID, EPOCH, false, &mut effects);
    let grant = TargetEvent::Grant {
        epoch: EPOCH.next(),
        run: true,
        early: true,
    };
    let stage = IncomingStage::Granted {
        run: true,
        early: true,
    };
    for event in [
        TargetEvent::Checked(Vec::new()),
        TargetEvent::Started,
        grant,
        TargetEvent::Journaled(stage),
    ] {
        target.step(event, &mut effects).unwrap();
    }
    let activates = |effects: &[TargetEffect]| {
        let activate = |effect: &TargetEffect| matches!(effect, TargetEffect::Activate { .. });
        effects.iter().any(activate)
    };
    assert!(!activates(&effects));
    // The path is lost, and QEMU ends because it never gets the device state:
    // the right goes back.
    let mut unlucky = target.clone();
    for event in [TargetEvent::LinkLost(lost()), TargetEvent::QemuGone(lost())] {
        unlucky.step(event, &mut effects).unwrap();
    }
    let refused = TargetEffect::Discard(TombstoneVerdict::Refused);
    assert_eq!(effects.pop(), Some(refused));
    target.step(TargetEvent::Listening, &mut effects).unwrap();
    assert!(activates(&effects));
    effects.clear();
    for event in [
        TargetEvent::Activated,
        TargetEvent::LinkLost(lost()),
        TargetEvent::Resume,
        TargetEvent::Loaded,
    ] {
        target.step(event, &mut effects).unwrap();
    }
    let expected = [TargetEffect::Recover, TargetEffect::AwaitSource];
    assert!(expected.iter().all(|effect| effects.contains(effect)));
}

/// A source that has granted early and waits for the target's word.
fn granted_early(effects: &mut Vec<SourceEffect>) -> Source {
    let mut source = sending(Postcopy::Always, effects);
    let granted = [
        pass(2),
        SourceEvent::StoppedForPostcopy,
        SourceEvent::Qemu(QemuMigration::PreSwitchover),
        SourceEvent::Journaled(OutgoingStage::GrantedEarly),
    ];
    effects.extend(steps(&mut source, granted));
    source
}

/// A target whose disk is slow takes the grant after its source has begun to
/// ask. It was taken all the same, and waits for the device state.
#[test]
fn a_late_word_that_the_grant_was_taken_is_as_good() {
    let source = granted_early(&mut Vec::new());
    let doubts = SourceEvent::Timeout(Timer::Activate);
    let taken = || SourceEvent::Taken(EPOCH.next());
    let continues = steps(&mut source.clone(), [doubts.clone(), taken()]);
    assert!(continues.contains(&SourceEffect::ContinueMigration));
    // Over a path that is gone the device state would not arrive.
    let lost = steps(
        &mut source.clone(),
        [SourceEvent::LinkLost(lost()), taken()],
    );
    assert!(!lost.contains(&SourceEffect::ContinueMigration));
}

/// An event of QEMU's from before the connection was lost is read when the new
/// one stands already: the answer to it counts all the same.
#[test]
fn an_old_event_does_not_stop_a_recovery() {
    let mut source = granted_early(&mut Vec::new());
    let recovers = [
        SourceEvent::Taken(EPOCH.next()),
        SourceEvent::Activated(EPOCH.next()),
        SourceEvent::LinkLost(lost()),
        SourceEvent::Qemu(QemuMigration::PostcopyActive),
        SourceEvent::ResumeReady,
    ];
    assert!(steps(&mut source, recovers).contains(&SourceEffect::ResumeMigration));
}

fn told(target: &mut Target, events: impl IntoIterator<Item = TargetEvent>) -> Vec<TargetEffect> {
    let mut effects = Vec::new();
    for event in events {
        target.step(event, &mut effects).unwrap();
    }
    effects
}

/// A target whose daemon came back with the grant of a post-copy in its journal.
fn recovered() -> Target {
    let (run, early) = (true, true);
    let stage = IncomingStage::Granted { run, early };
    Target::recover(ID, EPOCH.next(), stage, &mut Vec::new())
}

fn lost_guest() -> TargetEffect {
    TargetEffect::Send(TargetMessage::Failed {
        migration: ID,
        reason: lost(),
    })
}

/// QEMU ends while its CPUs are started: they may have run, so the source hears
/// that they did, and that the rest of the memory is of no use any more.
#[test]
fn a_post_copy_whose_qemu_ends_while_it_is_activated_is_told_to_be_lost() {
    let mut target = recovered();
    let ended = [
        TargetEvent::Listening,
        TargetEvent::QemuGone(lost()),
        TargetEvent::ActivateUnclear(lost()),
    ];
    assert!(told(&mut target, ended).contains(&lost_guest()));
    // Also the source that comes back later.
    assert_eq!(
        told(&mut target, [TargetEvent::Resume]),
        [lost_guest(), TargetEffect::AwaitSource]
    );
}

/// The daemon before may have run the CPUs: only the domain knows, and only when
/// it has seen QEMU's end. A refusal would let the source run them once more.
#[test]
fn a_recovered_target_refuses_nothing_that_may_have_run() {
    let mut target = recovered();
    assert_eq!(told(&mut target, [TargetEvent::LoadFailed(lost())]), []);
    let activate = TargetEffect::Activate {
        epoch: EPOCH.next(),
        run: true,
    };
    assert_eq!(
        told(&mut target, [TargetEvent::QemuGone(lost())]),
        [activate]
    );
    let refused = TargetEffect::Discard(TombstoneVerdict::Refused);
    let never_ran = TargetEvent::ActivateFailed(lost());
    assert_eq!(told(&mut target, [never_ran]), [refused]);
}

/// The source is back before the daemon that came back has looked at its QEMU.
#[test]
fn a_source_that_comes_back_too_early_is_not_forgotten() {
    let mut target = recovered();
    let early = [TargetEvent::Resume, TargetEvent::Listening];
    assert!(!told(&mut target, early).contains(&TargetEffect::Recover));
    let runs = told(&mut target.clone(), [TargetEvent::Activated]);
    assert!(runs.contains(&TargetEffect::Recover));
    // It is gone again, and will come anew.
    let lost = [TargetEvent::LinkLost(lost()), TargetEvent::Activated];
    assert!(!told(&mut target, lost).contains(&TargetEffect::Recover));
}
