//! Migrations: asking, following, ending, and questions of sources in doubt.

use super::*;
use godwit_shared::api::DryRun;
use godwit_shared::model::{MigrationFailure, codes};
use godwit_shared::wire::uplink::{Verdict, VerdictQuery};

/// `web` running on node-1, on its way to node-2.
fn moving() -> (Bench, VmId, MigrationId, TaskId) {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-1");
    let (migration, task) = bench.migrate(vm, None).unwrap();
    (bench, vm, migration, task)
}

pub(super) fn accepted() -> (Bench, VmId, MigrationId, TaskId) {
    let (mut bench, vm, migration, task) = moving();
    let asked = bench.asked();
    bench.reply(&asked, Ok(NodeReply::Done));
    (bench, vm, migration, task)
}

pub(super) fn phase(bench: &mut Bench, id: MigrationId, phase: MigrationPhase) {
    let report = bench.moving(id, phase, 1);
    bench.say("node-1", NodeMessage::Migration(report));
}

#[test]
fn a_migration_is_recorded_before_its_source_is_asked() {
    let (mut bench, vm, migration, task) = moving();
    let asked = bench.asked();
    assert_eq!(asked.node, node("node-1"));
    let NodeRequest::Migrate {
        target, dry_run, ..
    } = &asked.body
    else {
        panic!("{asked:?}");
    };
    assert_eq!((&target.node, *dry_run), (&node("node-2"), false));
    assert!(
        bench
            .store
            .contains_key(&Key::Migration(migration).to_string())
    );
    assert_eq!(bench.vm(vm).migration, Some(migration));
    assert_eq!(bench.task(task).migration, Some(migration));
    let used = |bench: &Bench| bench.cluster.node(&node("node-2")).unwrap().used.memory;
    assert_eq!(used(&bench), MiB(256), "room is kept on the target");
    assert_eq!(
        bench.command(vm, LifecycleCommand::Pause).unwrap_err().code,
        codes::BUSY
    );
}

#[test]
fn the_sources_reports_drive_record_task_and_events() {
    let (mut bench, vm, migration, task) = accepted();
    phase(&mut bench, migration, MigrationPhase::Preparing);
    let mut report = bench.moving(migration, MigrationPhase::Precopy, 1);
    report.progress.transferred.0 = 300;
    report.progress.remaining.0 = 100;
    let writes = bench.store.clone();
    bench.say("node-1", NodeMessage::Migration(report.clone()));
    assert_ne!(bench.store, writes, "a new phase is persisted");
    assert_eq!(bench.task(task).percent, Some(75));
    assert!(
        bench
            .task(task)
            .message
            .starts_with("sending memory, pass 0")
    );
    let writes = bench.store.clone();
    report.progress.remaining.0 = 0;
    bench.say("node-1", NodeMessage::Migration(report));
    assert_eq!(bench.store, writes, "a sample is not");
    assert_eq!(bench.task(task).percent, Some(99));

    let report = bench.moving(migration, MigrationPhase::Completed, 2);
    bench.say("node-1", NodeMessage::Migration(report));
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-2".into()), 2)
    );
    let task = bench.task(task);
    assert_eq!(
        (task.state, &*task.message),
        (TaskState::Succeeded, "on node-2, paused for 23 ms")
    );
    let view = bench.cluster.migration(migration).unwrap();
    assert_eq!(
        (view.phase, view.blackout),
        (MigrationPhase::Completed, Some(Millis(23)))
    );
    assert_eq!(view.ended, Some(bench.now));
    let phases = bench
        .kinds()
        .iter()
        .filter(|kind| **kind == "migration.phase")
        .count();
    assert_eq!(phases, 4, "queued, preparing, precopy, completed");
}

#[test]
fn the_targets_word_moves_the_owner_and_the_sources_word_ends_it() {
    let (mut bench, vm, migration, task) = accepted();
    let view = bench.vm(vm);
    bench.say(
        "node-2",
        NodeMessage::Domain(report(&view, DomainState::Running, 2)),
    );
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-2".into()), 2)
    );
    assert_eq!(
        bench.task(task).state,
        TaskState::Running,
        "the pause is not known yet"
    );
    let report = bench.moving(migration, MigrationPhase::Completed, 2);
    bench.say("node-1", NodeMessage::Migration(report));
    assert_eq!(bench.task(task).state, TaskState::Succeeded);
}

#[test]
fn a_source_that_is_away_is_not_waited_for_once_the_target_runs() {
    let (mut bench, vm, migration, task) = accepted();
    let view = bench.vm(vm);
    bench.disconnect("node-1");
    assert_eq!(
        bench.task(task).state,
        TaskState::Running,
        "it goes on between the nodes"
    );
    bench.say(
        "node-2",
        NodeMessage::Domain(report(&view, DomainState::Running, 2)),
    );
    assert_eq!(bench.task(task).state, TaskState::Succeeded);
    assert_eq!(bench.cluster.migration(migration).unwrap().blackout, None);

    let late = bench.moving(migration, MigrationPhase::Completed, 2);
    let hello = NodeHello {
        facts: Document::of(&facts(1024)).unwrap(),
        domains: vec![],
        migrations: vec![late],
    };
    bench.hello("node-1", 1, hello).unwrap();
    let view = bench.cluster.migration(migration).unwrap();
    assert_eq!(view.blackout, Some(Millis(23)), "the rest is told later");
    assert!(bench.sent.is_empty());
}

#[test]
fn a_failure_leaves_the_owner_and_says_why() {
    let (mut bench, vm, migration, task) = accepted();
    let mut report = bench.moving(migration, MigrationPhase::Failed, 1);
    let problem = Problem::new(codes::CONNECTION_LOST, "nothing came for 600 ms");
    report.failure = Some(MigrationFailure {
        phase: MigrationPhase::Precopy,
        problem: problem.clone(),
        recovered_in: Some(Millis(640)),
    });
    bench.say("node-1", NodeMessage::Migration(report));
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-1".into()), 1)
    );
    let task = bench.task(task);
    assert_eq!(
        (task.state, task.problem),
        (TaskState::Failed, Some(problem))
    );
    let view = bench.cluster.migration(migration).unwrap();
    assert_eq!(view.failure.unwrap().recovered_in, Some(Millis(640)));
    bench.migrate(vm, None).unwrap();
}

#[test]
fn a_right_that_was_handed_back_comes_with_a_higher_epoch() {
    let (mut bench, vm, migration, _) = accepted();
    let view = bench.vm(vm);
    bench.say(
        "node-2",
        NodeMessage::Domain(report(&view, DomainState::Paused, 2)),
    );
    assert_eq!(wants(&bench, vm).1.as_deref(), Some("node-2"));
    bench.say("node-2", NodeMessage::DomainGone(vm));
    let report = bench.moving(migration, MigrationPhase::Failed, 3);
    bench.say("node-1", NodeMessage::Migration(report));
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-1".into()), 3)
    );
}

#[test]
fn a_source_that_refuses_ends_the_migration() {
    let (mut bench, _, migration, task) = moving();
    let asked = bench.asked();
    let blocked = Problem::new(codes::MIGRATION_BLOCKED, "no room").and(vec![Problem::new(
        codes::INSUFFICIENT_RESOURCES,
        "lacks 1 GiB",
    )]);
    bench.reply(&asked, Err(blocked.clone()));
    assert_eq!(bench.task(task).problem, Some(blocked));
    let view = bench.cluster.migration(migration).unwrap();
    assert_eq!(view.phase, MigrationPhase::Failed);
}

#[test]
fn a_migration_is_refused_where_it_makes_no_sense() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-1");
    let code = |bench: &mut Bench, target| bench.migrate(vm, target).unwrap_err().code;
    assert_eq!(code(&mut bench, Some("node-1")), codes::STATE_CONFLICT);
    assert_eq!(code(&mut bench, Some("node-9")), codes::NOT_FOUND);
    bench.running("large", "node-2");
    let view = bench.vm(vm);
    bench.say(
        "node-1",
        NodeMessage::Domain(report(&view, DomainState::Crashed, 1)),
    );
    assert_eq!(code(&mut bench, None), codes::STATE_CONFLICT);
    bench.say(
        "node-1",
        NodeMessage::Domain(report(&view, DomainState::Paused, 1)),
    );
    bench
        .create(spec("huge", 700), true, Some("node-2"))
        .unwrap();
    let blocked = bench.migrate(vm, Some("node-2")).unwrap_err();
    assert_eq!(blocked.code, codes::MIGRATION_BLOCKED);
    assert_eq!(blocked.also[0].code, codes::INSUFFICIENT_RESOURCES);
    let nowhere = bench.migrate(vm, None).unwrap_err();
    assert_eq!(nowhere.code, codes::NO_NODE_FITS);
    assert_eq!(nowhere.also[0].message, "the VM is on node-1 already");
    bench.disconnect("node-2");
    assert_eq!(code(&mut bench, Some("node-2")), codes::NODE_UNREACHABLE);
    bench.disconnect("node-1");
    assert_eq!(code(&mut bench, None), codes::NODE_UNREACHABLE);
}

#[test]
fn a_dry_run_joins_what_placement_and_the_nodes_have_against_it() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-1");
    let cordon = Input::Cordon {
        node: node("node-2"),
        cordoned: true,
    };
    bench.step(cordon).unwrap();
    let before = bench.cluster.records.clone();
    let dry = Input::Migrate {
        vm,
        migration: MigrationId::from_u128(50),
        task: TaskId::from_u128(51),
        ticket: Ticket(9),
        request: MigrateRequest {
            target: Some(node("node-2")),
            dry_run: true,
            ..MigrateRequest::default()
        },
    };
    assert_eq!(bench.step(dry), Ok(Output::Waiting));
    assert_eq!(bench.cluster.records, before, "nothing is written down");
    let asked = bench.asked();
    assert!(matches!(
        asked.body,
        NodeRequest::Migrate { dry_run: true, .. }
    ));
    let blocker =
        Problem::new(codes::MIGRATION_BLOCKED, "the disk is not shared").field("disks[0]");
    bench.reply(
        &asked,
        Ok(NodeReply::Rehearsal {
            blockers: vec![blocker.clone()],
            forecast: None,
        }),
    );
    let (ticket, outcome) = bench.answers.remove(0);
    let Ok(Answer::DryRun(DryRun {
        target, blockers, ..
    })) = outcome
    else {
        panic!("{outcome:?}");
    };
    assert_eq!((ticket, target), (Ticket(9), node("node-2")));
    assert_eq!(blockers[0].message, "node-2 is cordoned");
    assert_eq!(blockers[1..], [blocker]);
}

#[test]
fn a_migration_is_called_off_by_its_source() {
    let (mut bench, vm, migration, task) = accepted();
    phase(&mut bench, migration, MigrationPhase::Precopy);
    bench.step(Input::CancelTask { task }).unwrap();
    assert_eq!(bench.task(task).state, TaskState::Cancelling);
    let asked = bench.asked();
    assert!(matches!(asked.body, NodeRequest::CancelMigration { .. }));
    bench.step(Input::CancelMigration { migration }).unwrap();
    assert!(bench.sent.is_empty(), "once is enough");
    bench.reply(&asked, Ok(NodeReply::Done));
    phase(&mut bench, migration, MigrationPhase::Cancelled);
    let task = bench.task(task);
    assert_eq!(
        (task.state, &*task.message),
        (TaskState::Cancelled, "web stays on node-1")
    );
    assert_eq!(wants(&bench, vm).1.as_deref(), Some("node-1"));
    let again = bench
        .step(Input::CancelMigration { migration })
        .unwrap_err();
    assert_eq!(again.code, codes::STATE_CONFLICT);
}

#[test]
fn a_cancel_that_overtakes_its_migration_is_sent_after_it() {
    let (mut bench, _, migration, task) = moving();
    let asked = bench.asked();
    bench.step(Input::CancelMigration { migration }).unwrap();
    assert!(bench.sent.is_empty(), "the source does not know it yet");
    bench.reply(&asked, Ok(NodeReply::Done));
    let cancel = bench.asked();
    assert!(matches!(cancel.body, NodeRequest::CancelMigration { .. }));
    let late = Problem::new(codes::STATE_CONFLICT, "the right was granted");
    bench.reply(&cancel, Err(late));
    assert_eq!(bench.task(task).state, TaskState::Running, "it goes on");
}

#[test]
fn a_granted_right_is_not_called_off() {
    for granted in [MigrationPhase::Handoff, MigrationPhase::InDoubt] {
        let (mut bench, _, migration, _) = accepted();
        phase(&mut bench, migration, granted);
        let refused = bench
            .step(Input::CancelMigration { migration })
            .unwrap_err();
        assert_eq!(refused.code, codes::STATE_CONFLICT);
    }
}

#[test]
fn watching_is_passed_on_to_the_source_and_again_when_it_comes_back() {
    let (mut bench, vm, migration, _) = accepted();
    let watch = Input::WatchMigration {
        migration,
        watch: true,
    };
    bench.step(watch.clone()).unwrap();
    bench.step(watch).unwrap();
    let is_watch =
        |sent: &Sent| matches!(sent.body, NodeRequest::WatchMigration { watch: true, .. });
    assert!(is_watch(&bench.asked()) && bench.sent.is_empty());
    let view = bench.vm(vm);
    bench.disconnect("node-1");
    let hello = NodeHello {
        facts: Document::of(&facts(1024)).unwrap(),
        domains: vec![report(&view, DomainState::Running, 1)],
        migrations: vec![bench.moving(migration, MigrationPhase::Precopy, 1)],
    };
    bench.hello("node-1", 1, hello).unwrap();
    assert!(is_watch(&bench.asked()));
}

#[test]
fn a_restarted_coordinator_follows_on() {
    let (mut bench, vm, migration, task) = accepted();
    phase(&mut bench, migration, MigrationPhase::Precopy);
    let view = bench.vm(vm);
    bench.restart();
    assert_eq!(bench.vm(vm).migration, Some(migration));
    bench.connect(
        "node-2",
        1024,
        vec![report(&view, DomainState::Incoming, 1)],
    );
    let hello = NodeHello {
        facts: Document::of(&facts(1024)).unwrap(),
        domains: vec![report(&view, DomainState::Running, 1)],
        migrations: vec![bench.moving(migration, MigrationPhase::Switchover, 1)],
    };
    bench.hello("node-1", 1, hello).unwrap();
    let report = bench.moving(migration, MigrationPhase::Completed, 2);
    bench.say("node-1", NodeMessage::Migration(report));
    assert_eq!(bench.task(task).state, TaskState::Succeeded);
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-2".into()), 2)
    );
}

#[test]
fn a_migration_that_completed_while_the_coordinator_was_down_is_found() {
    let (mut bench, vm, migration, task) = accepted();
    let view = bench.vm(vm);
    bench.restart();
    bench.connect("node-2", 1024, vec![report(&view, DomainState::Running, 2)]);
    assert_eq!(
        bench.task(task).state,
        TaskState::Succeeded,
        "its source is away"
    );
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-2".into()), 2)
    );
    let hello = NodeHello {
        facts: Document::of(&facts(1024)).unwrap(),
        domains: vec![],
        migrations: vec![bench.moving(migration, MigrationPhase::Completed, 2)],
    };
    bench.hello("node-1", 1, hello).unwrap();
    assert_eq!(
        bench.cluster.migration(migration).unwrap().blackout,
        Some(Millis(23))
    );
}

#[test]
fn a_migration_that_its_source_does_not_know_has_failed() {
    let (mut bench, vm, migration, task) = moving();
    let view = bench.vm(vm);
    bench.restart();
    bench.connect("node-1", 1024, vec![report(&view, DomainState::Running, 1)]);
    let failure = bench.cluster.migration(migration).unwrap().failure.unwrap();
    assert_eq!(failure.problem.code, codes::MIGRATION_FAILED);
    assert_eq!(bench.task(task).state, TaskState::Failed);
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-1".into()), 1)
    );
}

#[test]
fn a_source_without_the_guest_decides_nothing_while_the_target_is_away() {
    let (mut bench, vm, migration, task) = accepted();
    let view = bench.vm(vm);
    bench.restart();
    // The source's host was rebooted: it has neither the guest nor the migration.
    bench.connect(
        "node-1",
        1024,
        vec![exited(&view, 1, ExitReason::HostReboot)],
    );
    assert_eq!(
        bench.task(task).state,
        TaskState::Running,
        "the target may run it"
    );
    assert_eq!(
        bench.command(vm, LifecycleCommand::Start).unwrap_err().code,
        codes::BUSY
    );
    let mut other = bench;
    let (runs, lacks) = (report(&view, DomainState::Running, 2), vec![]);
    other.connect("node-2", 1024, vec![runs]);
    assert_eq!(
        other.cluster.migration(migration).unwrap().phase,
        MigrationPhase::Completed
    );
    assert_eq!(wants(&other, vm).1.as_deref(), Some("node-2"));
    assert_eq!(
        command_of(&other.asked()).0,
        LifecycleCommand::Delete,
        "the old copy"
    );

    let (mut bench, vm, migration, _) = accepted();
    let view = bench.vm(vm);
    bench.restart();
    bench.connect(
        "node-1",
        1024,
        vec![exited(&view, 1, ExitReason::HostReboot)],
    );
    bench.connect("node-2", 1024, lacks);
    assert_eq!(
        bench.cluster.migration(migration).unwrap().phase,
        MigrationPhase::Failed
    );
    bench.command(vm, LifecycleCommand::Start).unwrap();
}

#[test]
fn a_migration_without_a_record_is_taken_up() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-1");
    let id = MigrationId::from_u128(70);
    let report = MigrationReport {
        migration: id,
        vm,
        source: node("node-1"),
        target: node("node-2"),
        phase: MigrationPhase::Precopy,
        since: bench.now,
        started: bench.now,
        progress: MigrationProgress::default(),
        blackout: None,
        figures: MigrationFigures::default(),
        failure: None,
        epoch: Epoch(1),
    };
    let stray = MigrationReport {
        source: node("node-2"),
        target: node("node-1"),
        ..report.clone()
    };
    bench.say("node-1", NodeMessage::Migration(stray));
    assert!(
        bench.cluster.migrations().is_empty(),
        "only its source is heard"
    );
    bench.say("node-1", NodeMessage::Migration(report));
    assert_eq!(bench.vm(vm).migration, Some(id));
    let refused = bench.command(vm, LifecycleCommand::Stop).unwrap_err();
    assert_eq!(refused.code, codes::BUSY);
}

fn ask(bench: &mut Bench, vm: VmId, migration: MigrationId) {
    bench.told.clear();
    let query = VerdictQuery {
        migration,
        vm,
        target: node("node-2"),
        epoch: Epoch(2),
    };
    bench.say("node-1", NodeMessage::AskVerdict(query));
}

fn told(bench: &mut Bench) -> Option<Verdict> {
    match bench.told.pop() {
        Some((to, CoordinatorMessage::Verdict { verdict, .. })) => {
            assert_eq!(to, node("node-1"));
            verdict
        }
        other => panic!("a verdict was expected, not {other:?}"),
    }
}

#[test]
fn a_source_in_doubt_is_told_what_the_target_says() {
    let words = [
        Verdict::Refused,
        Verdict::Granted { running: false },
        Verdict::Lost,
    ];
    for word in words {
        let (mut bench, vm, migration, _) = accepted();
        ask(&mut bench, vm, migration);
        let asked = bench.asked();
        assert_eq!(asked.node, node("node-2"));
        assert!(bench.told.is_empty());
        bench.reply(&asked, Ok(NodeReply::Verdict(word)));
        assert_eq!(told(&mut bench), Some(word));
    }
}

#[test]
fn a_source_in_doubt_is_told_nothing_when_the_target_cannot_say() {
    let (mut bench, vm, migration, _) = accepted();
    ask(&mut bench, vm, migration);
    let asked = bench.asked();
    bench
        .step(Input::Unanswered {
            request: asked.request,
        })
        .unwrap();
    assert_eq!(told(&mut bench), None);

    ask(&mut bench, vm, migration);
    bench.disconnect("node-2");
    assert_eq!(told(&mut bench), None);
    ask(&mut bench, vm, migration);
    assert_eq!(told(&mut bench), None, "it is away");
}

#[test]
fn a_target_that_is_known_to_run_needs_no_asking() {
    let (mut bench, vm, migration, _) = accepted();
    let view = bench.vm(vm);
    // Taken, but not seen to run: only the target knows.
    let taken = DomainReport {
        owner: true,
        ..report(&view, DomainState::Incoming, 2)
    };
    bench.say("node-2", NodeMessage::Domain(taken));
    ask(&mut bench, vm, migration);
    assert!(bench.told.is_empty());
    bench.asked();

    bench.say(
        "node-2",
        NodeMessage::Domain(report(&view, DomainState::Running, 2)),
    );
    bench.disconnect("node-2");
    ask(&mut bench, vm, migration);
    assert_eq!(told(&mut bench), Some(Verdict::Granted { running: true }));
}

#[test]
fn a_target_that_took_the_right_and_never_ran_is_not_said_to_run() {
    let (mut bench, vm, migration, _) = accepted();
    phase(&mut bench, migration, MigrationPhase::Handoff);
    let view = bench.vm(vm);
    bench.disconnect("node-1");
    let taken = DomainReport {
        owner: true,
        migration: Some(migration),
        ..report(&view, DomainState::Incoming, 2)
    };
    bench.say("node-2", NodeMessage::Domain(taken.clone()));
    let hung = DomainReport {
        state: DomainState::Unresponsive,
        ..taken
    };
    bench.say("node-2", NodeMessage::Domain(hung));
    assert_eq!(wants(&bench, vm).1.as_deref(), Some("node-1"));
    assert!(!bench.cluster.migration(migration).unwrap().phase.is_final());
    // Its guest was refused its CPUs; it hands the right back, and node-1 asks.
    let hello = NodeHello {
        facts: Document::of(&facts(1024)).unwrap(),
        domains: vec![report(&view, DomainState::InHandoff, 1)],
        migrations: vec![bench.moving(migration, MigrationPhase::InDoubt, 1)],
    };
    bench.hello("node-1", 1, hello).unwrap();
    ask(&mut bench, vm, migration);
    assert!(bench.told.is_empty(), "only the target can say");
    assert!(matches!(bench.asked().body, NodeRequest::Verdict(_)));
}

#[test]
fn an_alarm_of_the_source_is_kept_shown_and_told_once() {
    let (mut bench, vm, migration, _) = accepted();
    let problem = Problem::new(codes::CONNECTION_LOST, "node-2 has not answered for 30 s");
    let mut doubt = bench.moving(migration, MigrationPhase::InDoubt, 1);
    doubt.failure = Some(MigrationFailure {
        phase: MigrationPhase::InDoubt,
        problem: problem.clone(),
        recovered_in: None,
    });
    bench.say("node-1", NodeMessage::Migration(doubt.clone()));
    bench.say("node-1", NodeMessage::Migration(doubt));
    let shown = bench.cluster.migration(migration).unwrap();
    assert_eq!(shown.failure.unwrap().problem, problem);
    assert_eq!(bench.vm(vm).problem, Some(problem));
    let alarms = |bench: &Bench| {
        let kinds = bench.kinds().into_iter();
        kinds.filter(|kind| *kind == "migration.alarm").count()
    };
    assert_eq!(alarms(&bench), 1);
    let done = bench.moving(migration, MigrationPhase::Completed, 2);
    bench.say("node-1", NodeMessage::Migration(done));
    assert_eq!(bench.cluster.migration(migration).unwrap().failure, None);
}

#[test]
fn a_completion_at_the_records_own_epoch_moves_the_vm() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-1");
    let view = bench.vm(vm);
    // The record took over a runner that it had left behind.
    bench.disconnect("node-1");
    bench.connect("node-2", 1024, vec![report(&view, DomainState::Running, 2)]);
    bench.connect("node-2", 1024, vec![]);
    bench.connect("node-1", 1024, vec![report(&view, DomainState::Running, 1)]);
    let (migration, _) = bench.migrate(vm, None).unwrap();
    assert_eq!(bench.cluster.records.migrations[&migration].epoch, Epoch(2));
    phase(&mut bench, migration, MigrationPhase::Precopy);
    assert_eq!(bench.cluster.records.migrations[&migration].epoch, Epoch(1));
    let done = bench.moving(migration, MigrationPhase::Completed, 2);
    bench.say("node-1", NodeMessage::Migration(done));
    let (_, owner, epoch) = wants(&bench, vm);
    assert_eq!((owner.as_deref(), epoch), (Some("node-2"), 2));
}

/// A migration that was taken for lost while its source was at it.
fn assumed_lost() -> (Bench, VmId, MigrationId) {
    let (mut bench, vm, migration, _) = moving();
    let asked = bench.asked();
    let request = asked.request;
    let view = bench.vm(vm);
    bench.say(
        "node-1",
        NodeMessage::Domain(report(&view, DomainState::Running, 1)),
    );
    bench.step(Input::Unanswered { request }).unwrap();
    let shown = bench.cluster.migration(migration).unwrap();
    assert_eq!(shown.phase, MigrationPhase::Failed);
    (bench, vm, migration)
}

#[test]
fn a_migration_that_was_taken_for_lost_is_reopened_by_its_source() {
    let (mut bench, vm, migration) = assumed_lost();
    phase(&mut bench, migration, MigrationPhase::Precopy);
    let shown = bench.cluster.migration(migration).unwrap();
    assert_eq!(
        (shown.phase, shown.ended, shown.failure),
        (MigrationPhase::Precopy, None, None)
    );
    assert_eq!(bench.vm(vm).migration, Some(migration));
    let done = bench.moving(migration, MigrationPhase::Completed, 2);
    bench.say("node-1", NodeMessage::Migration(done));
    assert_eq!(bench.vm(vm).migration, None);
    assert_eq!(wants(&bench, vm).1.as_deref(), Some("node-2"));
}

#[test]
fn a_final_word_of_the_source_stands_above_an_assumed_end() {
    let (mut bench, vm, migration) = assumed_lost();
    let done = bench.moving(migration, MigrationPhase::Completed, 2);
    bench.say("node-1", NodeMessage::Migration(done));
    let shown = bench.cluster.migration(migration).unwrap();
    assert_eq!(
        (shown.phase, shown.failure, shown.blackout),
        (MigrationPhase::Completed, None, Some(Millis(23)))
    );
    assert_eq!(wants(&bench, vm).1.as_deref(), Some("node-2"));
}

#[test]
fn a_move_of_a_guest_that_an_earlier_one_took_elsewhere_has_failed() {
    let (mut bench, vm, first) = assumed_lost();
    bench.join("node-3").unwrap();
    bench.connect("node-3", 1024, vec![]);
    let target = Some("node-3");
    let (second, task) = bench.migrate(vm, target).unwrap();
    let view = bench.vm(vm);
    bench.restart();
    // The first was under way after all, and the second never came to its source.
    bench.connect("node-3", 1024, vec![]);
    bench.connect("node-2", 1024, vec![report(&view, DomainState::Running, 2)]);
    let hello = NodeHello {
        facts: Document::of(&facts(1024)).unwrap(),
        domains: vec![],
        migrations: vec![],
    };
    bench.hello("node-1", 1, hello).unwrap();
    assert_eq!(wants(&bench, vm).1.as_deref(), Some("node-2"));
    let failed = bench.cluster.migration(second).unwrap();
    assert_eq!(failed.phase, MigrationPhase::Failed);
    assert_eq!(bench.task(task).state, TaskState::Failed);
    assert!(bench.cluster.migration(first).unwrap().ended.is_some());
    assert_eq!(bench.vm(vm).migration, None);
}

#[test]
fn a_cancel_that_went_down_with_its_session_is_sent_again() {
    for restarted in [false, true] {
        let (mut bench, vm, migration, task) = accepted();
        phase(&mut bench, migration, MigrationPhase::Precopy);
        bench.step(Input::CancelMigration { migration }).unwrap();
        bench.asked();
        let view = bench.vm(vm);
        if restarted {
            bench.restart();
        } else {
            bench.disconnect("node-1");
        }
        assert_eq!(bench.task(task).state, TaskState::Cancelling);
        let hello = NodeHello {
            facts: Document::of(&facts(1024)).unwrap(),
            domains: vec![report(&view, DomainState::Running, 1)],
            migrations: vec![bench.moving(migration, MigrationPhase::Precopy, 1)],
        };
        bench.hello("node-1", 1, hello).unwrap();
        let asked = bench.asked();
        assert!(matches!(asked.body, NodeRequest::CancelMigration { .. }));
    }
}
