//! The ordinary lives of domains, and what goes wrong in them.

use godwit_shared::model::{
    AgentState, DomainState as S, Epoch, ExitReason, LifecycleCommand as C, MigrationId, codes,
};

use super::super::*;
use super::world::{MIGRATION, World, trouble};
use crate::handoff::{
    HandoffRecord, IncomingRecord, IncomingStage, OutgoingRecord, OutgoingStage, Plan,
};
use crate::qmp::status::RunStatus;

fn exited(detail: &str, words: &str) -> Event {
    Event::Exited {
        detail: detail.into(),
        last_words: words.into(),
        rebooted: false,
    }
}

#[test]
fn a_start_is_answered_when_the_cpus_run() {
    let mut world = World::new();
    world.command(C::Start).unwrap();
    assert_eq!(world.domain.state(), S::Starting);
    assert!(world.answers.is_empty());
    world.settle();
    assert_eq!(world.domain.state(), S::Running);
    assert_eq!(world.answers, [(Request::Command(C::Start), Ok(()))]);
    assert!(world.timers.is_empty(), "{:?}", world.timers);
}

#[test]
fn pause_and_resume_wait_for_the_events() {
    let mut world = World::started();
    world.command(C::Pause).unwrap();
    assert_eq!(world.domain.state(), S::Running);
    world.settle();
    assert_eq!(world.domain.state(), S::Paused);
    assert!(!world.journal.wanted);
    world.command(C::Resume).unwrap();
    world.settle();
    assert_eq!(world.domain.state(), S::Running);
    assert_eq!(world.answers.len(), 2);
    assert!(world.answers.iter().all(|(_, outcome)| outcome.is_ok()));
}

#[test]
fn what_is_so_already_is_answered_at_once() {
    let mut world = World::started();
    world.command(C::Start).unwrap();
    world.command(C::Resume).unwrap();
    assert_eq!(world.answers.len(), 2);
    assert!(world.actions.is_empty());
}

#[test]
fn the_same_command_again_shares_the_answer() {
    let mut world = World::started();
    world.command(C::Pause).unwrap();
    world.command(C::Pause).unwrap();
    assert_eq!(world.command(C::Reset).unwrap_err().0.code, codes::BUSY);
    world.settle();
    assert_eq!(world.answers.len(), 1);
    assert_eq!(world.actions, [Action::Stop]);
}

#[test]
fn a_guest_that_powers_off_takes_qemu_with_it() {
    let mut world = World::started();
    world.command(C::Shutdown).unwrap();
    world.settle();
    assert_eq!(world.domain.state(), S::ShuttingDown);
    assert_eq!(world.actions, [Action::Powerdown]);
    let off = Happening::Shutdown {
        guest: true,
        reason: "guest-shutdown".into(),
    };
    world.feed(Event::Happened(off)).unwrap();
    world.settle();
    assert_eq!(world.domain.state(), S::Stopped);
    assert_eq!(world.domain.view().exit, Some(ExitReason::GuestShutdown));
    assert_eq!(world.journal.exit, Some(ExitReason::GuestShutdown));
}

#[test]
fn a_guest_that_ignores_the_button_runs_on_with_a_problem() {
    let mut world = World::started();
    world.command(C::Shutdown).unwrap();
    world.settle();
    world.exhaust();
    assert_eq!(world.domain.state(), S::Running);
    assert_eq!(world.domain.view().problem.unwrap().code, codes::TIMEOUT);
}

#[test]
fn the_agent_is_asked_first_and_acpi_when_it_fails() {
    let mut world = World::started();
    world
        .feed(Event::Happened(Happening::Agent { open: true }))
        .unwrap();
    assert_eq!(world.domain.view().agent, AgentState::Connected);
    world.command(C::Shutdown).unwrap();
    world.settle();
    assert!(world.actions.is_empty());
    assert_eq!(world.answers.len(), 1);

    let mut world = World::started();
    world
        .feed(Event::Happened(Happening::Agent { open: true }))
        .unwrap();
    world.hangs = true;
    world.command(C::Shutdown).unwrap();
    world.hangs = false;
    world.settle();
    assert_eq!(world.actions, [Action::Powerdown]);
}

#[test]
fn a_stop_while_qemu_is_being_started_wins() {
    let mut world = World::new();
    world.command(C::Start).unwrap();
    world.command(C::Stop).unwrap();
    world.settle();
    assert_eq!(world.domain.state(), S::Stopped);
    assert_eq!(world.domain.view().exit, Some(ExitReason::Stopped));
    let [(start, refused), (stop, done)] = &world.answers[..] else {
        panic!("{:?}", world.answers);
    };
    assert_eq!(
        (*start, *stop),
        (Request::Command(C::Start), Request::Command(C::Stop))
    );
    assert!(refused.is_err() && done.is_ok());
}

#[test]
fn a_qemu_that_hangs_at_stop_is_killed() {
    let mut world = World::started();
    world.hangs = true;
    world.command(C::Stop).unwrap();
    assert!(world.timers.contains(&Timer::Quit));
    world.exhaust();
    assert_eq!(world.domain.view().exit, Some(ExitReason::Stopped));
}

#[test]
fn a_qemu_that_never_greets_has_failed_to_start() {
    let mut world = World::new();
    world.hangs = true;
    world.command(C::Start).unwrap();
    world.exhaust();
    let Some(ExitReason::FailedToStart { error }) = world.domain.view().exit else {
        panic!();
    };
    assert!(error.contains("did not greet"), "{error}");
    assert_eq!(
        world.answers[0].1.as_ref().unwrap_err().code,
        codes::QEMU_START
    );
}

#[test]
fn a_qemu_that_ends_at_once_leaves_its_words() {
    let mut world = World::new();
    world.hangs = true;
    world.command(C::Start).unwrap();
    world.settle();
    world.alive = false;
    world
        .feed(exited("exit status 1", "unsupported machine type\n"))
        .unwrap();
    let error = "unsupported machine type".to_owned();
    assert_eq!(
        world.domain.view().exit,
        Some(ExitReason::FailedToStart { error })
    );
}

#[test]
fn a_killed_qemu_has_crashed_and_waiters_hear_of_it() {
    let mut world = World::started();
    world.hangs = true;
    world.command(C::Pause).unwrap();
    world.dies();
    world.settle();
    let detail = "killed by signal 9".to_owned();
    assert_eq!(
        world.domain.view().exit,
        Some(ExitReason::Crashed { detail })
    );
    assert_eq!(
        world.answers[0].1.as_ref().unwrap_err().code,
        codes::QEMU_GONE
    );
}

#[test]
fn who_ended_qemu_on_its_host_is_kept() {
    let mut world = World::started();
    let ended = Happening::Shutdown {
        guest: false,
        reason: "host-signal".into(),
    };
    world.feed(Event::Happened(ended)).unwrap();
    world.alive = false;
    world.feed(exited("exit status 0", "")).unwrap();
    let Some(ExitReason::Crashed { detail }) = world.domain.view().exit else {
        panic!();
    };
    assert!(detail.contains("host-signal"), "{detail}");
}

#[test]
fn a_panicked_guest_stays_for_a_look_and_resets() {
    let mut world = World::started();
    world.running = false;
    world.feed(Event::Happened(Happening::Panicked)).unwrap();
    world.feed(Event::Happened(Happening::Stop)).unwrap();
    assert_eq!(world.domain.state(), S::Crashed);
    assert_eq!(
        world.command(C::Resume).unwrap_err().0.code,
        codes::STATE_CONFLICT
    );
    world.command(C::Reset).unwrap();
    world.settle();
    assert_eq!(world.domain.state(), S::Running);
    assert_eq!(world.domain.view().problem, None);
    assert_eq!(world.actions, [Action::Reset, Action::Cont]);
}

#[test]
fn a_failed_disk_stops_and_a_resume_tries_again() {
    let mut world = World::started();
    world.running = false;
    let what = "write on disk0 failed: No space left".to_owned();
    world
        .feed(Event::Happened(Happening::IoError { what }))
        .unwrap();
    world.feed(Event::Happened(Happening::Stop)).unwrap();
    assert_eq!(world.domain.state(), S::IoError);
    world.command(C::Resume).unwrap();
    world.settle();
    assert_eq!(world.domain.state(), S::Running);
}

#[test]
fn silence_shows_and_goes() {
    let mut world = World::started();
    world.hangs = true;
    world.command(C::Pause).unwrap();
    world.exhaust();
    assert_eq!(world.domain.state(), S::Unresponsive);
    assert_eq!(
        world.answers[0].1.as_ref().unwrap_err().code,
        codes::QEMU_TIMEOUT
    );
    world.hangs = false;
    world.running = false;
    world.feed(Event::Heard).unwrap();
    world.settle();
    assert_eq!(world.domain.state(), S::Paused);
    assert_eq!(world.domain.view().problem, None);
}

#[test]
fn a_journal_that_cannot_be_written_refuses_the_start() {
    let mut world = World::new();
    world.failing_writes = 1;
    world.command(C::Start).unwrap();
    assert!(!world.alive);
    assert_eq!(world.domain.state(), S::Stopped);
    assert_eq!(
        world.answers[0].1.as_ref().unwrap_err().code,
        codes::HOST_IO
    );
    world.command(C::Start).unwrap();
    world.settle();
    assert_eq!(world.domain.state(), S::Running);
}

#[test]
fn older_epochs_are_refused_and_newer_ones_run_nothing() {
    let mut world = World::started();
    let ask = |world: &mut World, command, epoch| {
        world.feed(Event::Command {
            command,
            epoch: Epoch(epoch),
        })
    };
    assert!(ask(&mut world, C::Stop, 0).is_err());
    assert!(ask(&mut world, C::Reset, 2).is_err());
    assert!(ask(&mut world, C::Stop, 2).is_ok());
    world.settle();
    assert!(ask(&mut world, C::Start, 2).is_ok());
    assert_eq!(world.domain.view().epoch, Epoch(2));
}

#[test]
fn a_domain_that_ran_on_is_taken_over() {
    let mut world = World::started();
    let again = Domain::restored(world.journal.clone(), None, true, true);
    world = World::with(again);
    world.running = true;
    world.feed(Event::Ready).unwrap();
    world.settle();
    assert_eq!(world.domain.state(), S::Running);
    assert!(world.actions.is_empty(), "{:?}", world.actions);
}

#[test]
fn a_start_that_was_cut_short_goes_on() {
    let world = World::started();
    let again = Domain::restored(world.journal.clone(), None, true, true);
    let mut world = World::with(again);
    world.feed(Event::Ready).unwrap();
    world.inbox.clear();
    world
        .feed(Event::Status {
            run: RunStatus::Prelaunch,
            migrating: false,
        })
        .unwrap();
    world.settle();
    assert_eq!(world.actions, [Action::Cont]);
    assert_eq!(world.domain.state(), S::Running);
}

#[test]
fn a_migration_that_nobody_knows_of_is_cancelled() {
    let world = World::started();
    let again = Domain::restored(world.journal.clone(), None, true, true);
    let mut world = World::with(again);
    world.feed(Event::Ready).unwrap();
    world.inbox.clear();
    let run = RunStatus::FinishMigrate;
    world
        .feed(Event::Status {
            run,
            migrating: true,
        })
        .unwrap();
    assert_eq!(world.actions, [Action::CancelMigration]);
    world
        .feed(Event::Happened(Happening::MigrationOver))
        .unwrap();
    world.settle();
    assert_eq!(world.actions, [Action::CancelMigration, Action::Cont]);
    assert_eq!(world.domain.state(), S::Running);
}

/// A refusal is an answer: the domain is not called unresponsive later.
#[test]
fn a_cont_that_qemu_refuses_is_told_with_its_words() {
    let world = World::started();
    let again = Domain::restored(world.journal.clone(), None, true, true);
    let mut world = World::with(again);
    world.feed(Event::Ready).unwrap();
    world.inbox.clear();
    let (run, migrating) = (RunStatus::FinishMigrate, false);
    world.feed(Event::Status { run, migrating }).unwrap();
    assert_eq!(world.actions, [Action::Cont]);
    assert!(world.timers.contains(&Timer::Confirm));
    world.inbox.clear();
    let (action, outcome) = (Action::Cont, Err(trouble()));
    world.feed(Event::Replied { action, outcome }).unwrap();
    assert!(!world.timers.contains(&Timer::Confirm));
    assert_eq!(world.domain.state(), S::Paused);
    assert_eq!(world.domain.view().problem, Some(trouble()));
}

/// QEMU hung, and its migration was given up without its word: it goes on, and
/// would stop the CPUs with nobody there to run them again.
#[test]
fn a_migration_that_outlasts_its_end_is_cancelled() {
    let mut world = World::started();
    let migration = MIGRATION;
    world.feed(Event::BeginOutgoing { migration }).unwrap();
    world.feed(Event::Stay { epoch: Epoch(1) }).unwrap();
    world.inbox.clear();
    let (run, migrating) = (RunStatus::Running, true);
    world.feed(Event::Status { run, migrating }).unwrap();
    assert_eq!(world.answers, [(Request::Stay, Ok(()))]);
    assert_eq!(world.actions, [Action::CancelMigration]);
    let begin = Event::BeginOutgoing { migration };
    assert_eq!(world.feed(begin).unwrap_err().0.code, codes::BUSY);
    world.feed(Event::Happened(Happening::Stop)).unwrap();
    world.running = false;
    world
        .feed(Event::Happened(Happening::MigrationOver))
        .unwrap();
    world.settle();
    assert_eq!(world.actions, [Action::CancelMigration, Action::Cont]);
    assert_eq!(world.domain.state(), S::Running);
}

#[test]
fn what_was_granted_is_left_alone_after_a_restart() {
    let world = World::started();
    let record = HandoffRecord::Outgoing(OutgoingRecord {
        migration: MIGRATION,
        target: godwit_shared::wire::uplink::Member {
            node: "b".parse().unwrap(),
            incarnation: 1,
            address: "h:1".into(),
        },
        epoch: Epoch(1),
        run: true,
        plan: Plan::default(),
        images: Vec::new(),
        stage: OutgoingStage::Granted,
        started: godwit_shared::model::UnixMillis(1),
    });
    let again = Domain::restored(world.journal.clone(), Some(&record), true, true);
    let mut world = World::with(again);
    world.feed(Event::Ready).unwrap();
    world.settle();
    assert_eq!(world.domain.state(), S::InHandoff);
    assert!(!world.domain.owner());
    assert!(world.actions.is_empty());
    assert!(world.command(C::Stop).is_err());
    world.feed(Event::Retire { epoch: Epoch(2) }).unwrap();
    world.settle();
    assert!(world.forgotten);
}

#[test]
fn a_migrating_domain_takes_no_commands_and_may_power_off() {
    let mut world = World::started();
    let migration = MIGRATION;
    world.feed(Event::BeginOutgoing { migration }).unwrap();
    assert_eq!(world.command(C::Stop).unwrap_err().0.code, codes::BUSY);
    let off = Happening::Shutdown {
        guest: true,
        reason: "guest-shutdown".into(),
    };
    world.feed(Event::Happened(off)).unwrap();
    world.settle();
    assert_eq!(world.domain.view().exit, Some(ExitReason::GuestShutdown));
    world.feed(Event::Stay { epoch: Epoch(1) }).unwrap();
    assert_eq!(world.answers, [(Request::Stay, Ok(()))]);
    assert_eq!(world.domain.view().migration, None);
}

fn received() -> World {
    let mut world = World::new();
    let (migration, epoch) = (MIGRATION, Epoch(1));
    world.feed(Event::Receive { migration, epoch }).unwrap();
    world.settle();
    assert_eq!(world.answers, [(Request::Receive, Ok(()))]);
    assert_eq!(world.domain.state(), S::Incoming);
    assert!(!world.domain.owner());
    world.answers.clear();
    world
}

#[test]
fn what_was_received_runs_once_the_right_is_journaled() {
    let mut world = received();
    assert!(world.actions.is_empty());
    world
        .feed(Event::Activate {
            epoch: Epoch(2),
            run: true,
        })
        .unwrap();
    assert!(world.journal.owner && world.journal.epoch == Epoch(2));
    world.settle();
    assert_eq!(world.domain.state(), S::Running);
    assert_eq!(world.answers, [(Request::Activate, Ok(()))]);
    assert_eq!(world.journal.incoming, None);
    // Asked again, it says the same.
    let again = Event::Activate {
        epoch: Epoch(2),
        run: true,
    };
    world.feed(again).unwrap();
    world.settle();
    assert_eq!(world.answers.len(), 2);
    assert!(world.answers[1].1.is_ok());
}

#[test]
fn what_was_received_paused_stays_paused() {
    let mut world = received();
    world
        .feed(Event::Activate {
            epoch: Epoch(2),
            run: false,
        })
        .unwrap();
    assert_eq!(world.domain.state(), S::Paused);
    assert!(world.actions.is_empty());
    assert_eq!(world.answers, [(Request::Activate, Ok(()))]);
}

#[test]
fn an_activation_that_fails_stands_still_and_can_be_discarded() {
    let mut world = received();
    world.refuses_cont = true;
    world
        .feed(Event::Activate {
            epoch: Epoch(2),
            run: true,
        })
        .unwrap();
    world.settle();
    assert!(world.answers[0].1.is_err());
    assert_eq!(world.actions, [Action::Cont, Action::Stop]);
    assert_eq!(world.domain.state(), S::Incoming);
    // Even a late RESUME does not make it an ordinary domain.
    world.feed(Event::Happened(Happening::Resume)).unwrap();
    assert_eq!(world.domain.state(), S::Incoming);
    world.feed(Event::Discard).unwrap();
    world.settle();
    assert!(world.forgotten);
}

/// What is left of one arrival is thrown away by whoever has it in hand; were
/// another one let in before, it would be thrown away in its place.
#[test]
fn one_arrival_at_a_time() {
    let mut world = received();
    world.dies();
    world.settle();
    assert!(!world.domain.has_process());
    let other = Event::Receive {
        migration: MigrationId::from_u128(10),
        epoch: Epoch(1),
    };
    assert_eq!(world.feed(other).unwrap_err().0.code, codes::BUSY);
    world.feed(Event::Discard).unwrap();
    assert!(world.forgotten);
}

/// The target's word decides over what is about to run, and nothing else.
#[test]
fn nothing_is_thrown_away_while_it_is_being_run() {
    let mut world = received();
    world.hangs = true;
    let (epoch, run) = (Epoch(2), true);
    world.feed(Event::Activate { epoch, run }).unwrap();
    assert_eq!(world.feed(Event::Discard).unwrap_err().0.code, codes::BUSY);
    world.hangs = false;
    world.feed(Event::Happened(Happening::Resume)).unwrap();
    assert_eq!(world.answers, [(Request::Activate, Ok(()))]);
}

/// It never ran here, so it is nobody's to keep: neither its QEMU's end nor a
/// restart of the daemon in between may get into the discard's way.
#[test]
fn an_activation_that_failed_leaves_nothing_to_keep() {
    let failed = || {
        let mut world = received();
        world.refuses_cont = true;
        let (epoch, run) = (Epoch(2), true);
        world.feed(Event::Activate { epoch, run }).unwrap();
        world.settle();
        assert!(!world.domain.owner() && !world.journal.owner);
        assert_eq!(world.journal.epoch, Epoch(1));
        world
    };
    let discards = |mut world: World| {
        world.feed(Event::Discard).unwrap();
        world.settle();
        assert!(world.forgotten);
    };
    let mut world = failed();
    world.dies();
    world.settle();
    discards(world);

    let world = failed();
    let stage = IncomingStage::Granted {
        run: true,
        early: false,
    };
    // The right was journaled, and that it went back was not.
    let journal = Saved {
        owner: true,
        epoch: Epoch(2),
        ..world.journal
    };
    let again = Domain::restored(journal, Some(&incoming(stage)), true, true);
    let mut world = World::with(again);
    world.dies();
    world.settle();
    discards(world);
}

/// A daemon that came back has the CPUs run, and QEMU ends before it was heard:
/// the guest may have run here, so it is nothing to throw away.
#[test]
fn an_activation_whose_qemu_ends_may_have_run_after_a_restart_too() {
    let granted = incoming(IncomingStage::Granted {
        run: true,
        early: false,
    });
    let found = Domain::restored(received().journal, Some(&granted), true, true);
    let mut world = World::with(found);
    world.feed(Event::Ready).unwrap();
    world.settle();
    world.hangs = true;
    let (epoch, run) = (Epoch(2), true);
    world.feed(Event::Activate { epoch, run }).unwrap();
    world.dies();
    world.settle();
    assert!(world.answers[0].1.is_err());
    assert!(world.journal.owner && world.journal.incoming.is_none());
    assert!(world.feed(Event::Discard).is_err());
}

/// A daemon that comes back between the journal and the CPUs cannot know
/// whether they ran: refused once more, they are tried again, and then shown.
#[test]
fn a_refused_activation_of_a_right_taken_before_is_tried_again() {
    for refuses in [false, true] {
        let saved = Saved {
            owner: true,
            epoch: Epoch(2),
            ..received().journal
        };
        let granted = incoming(IncomingStage::Granted {
            run: true,
            early: false,
        });
        let mut world = World::with(Domain::restored(saved, Some(&granted), true, true));
        world.feed(Event::Ready).unwrap();
        world.settle();
        world.refuses_cont = true;
        let (epoch, run) = (Epoch(2), true);
        world.feed(Event::Activate { epoch, run }).unwrap();
        let refused = world.inbox.pop_front().unwrap();
        world.refuses_cont = refuses;
        world.feed(refused).unwrap();
        world.settle();
        assert!(world.answers[0].1.is_err());
        assert_eq!(world.actions, [Action::Cont, Action::Cont]);
        let view = world.domain.view();
        let shown = (view.state, view.problem.is_some());
        let expected = if refuses {
            (S::Paused, true)
        } else {
            (S::Running, false)
        };
        assert_eq!(shown, expected);
    }
}

/// A guest that ran here and stands still is looked after like any other,
/// though its source has not said its last word.
#[test]
fn a_received_guest_that_stands_still_is_run_again() {
    for (stage, actions) in [
        (
            IncomingStage::Running { complete: true },
            vec![Action::Cont],
        ),
        (
            IncomingStage::Granted {
                run: true,
                early: false,
            },
            vec![],
        ),
    ] {
        let saved = World::started().journal;
        let found = Domain::restored(saved, Some(&incoming(stage)), true, true);
        let mut world = World::with(found);
        world.feed(Event::Ready).unwrap();
        world.settle();
        assert_eq!(world.actions, actions);
    }
}

fn incoming(stage: IncomingStage) -> HandoffRecord {
    HandoffRecord::Incoming(IncomingRecord {
        images: Vec::new(),
        migration: MIGRATION,
        source: "a".parse().unwrap(),
        epoch: Epoch(2),
        stage,
    })
}

#[test]
fn an_activation_that_is_never_confirmed_may_have_run() {
    let mut world = received();
    world.hangs = true;
    world
        .feed(Event::Activate {
            epoch: Epoch(2),
            run: true,
        })
        .unwrap();
    world.exhaust();
    assert_eq!(
        world.answers[0].1.as_ref().unwrap_err().code,
        codes::QEMU_TIMEOUT
    );
    // The domain is this node's, and cannot be thrown away any more.
    assert_eq!(world.domain.state(), S::Unresponsive);
    assert!(world.journal.owner && world.journal.incoming.is_none());
    assert!(world.feed(Event::Discard).is_err());
    world.hangs = false;
    world.feed(Event::Heard).unwrap();
    world.settle();
    assert_eq!(world.domain.state(), S::Running);
    assert_eq!(world.actions, [Action::Cont, Action::Cont]);
}

#[test]
fn the_grant_needs_a_higher_epoch_and_a_received_domain() {
    let mut world = received();
    let run = true;
    assert!(
        world
            .feed(Event::Activate {
                epoch: Epoch(1),
                run
            })
            .is_err()
    );
    let mut world = World::started();
    assert!(
        world
            .feed(Event::Activate {
                epoch: Epoch(2),
                run
            })
            .is_err()
    );
    assert!(world.feed(Event::Discard).is_err());
}

#[test]
fn a_stopped_domain_can_be_deleted_and_a_running_one_not() {
    let mut world = World::started();
    assert!(world.command(C::Delete).is_err());
    world.command(C::Stop).unwrap();
    world.settle();
    world.command(C::Delete).unwrap();
    assert!(world.forgotten);
}
