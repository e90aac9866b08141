//! Creating VMs and the lifecycle commands.

use super::*;
use godwit_shared::model::codes;
use proptest::prelude::*;

#[test]
fn a_vm_is_placed_claimed_defined_and_started_in_that_order() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 256), true, None).unwrap();
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-1".into()), 1)
    );
    let stored = String::from_utf8(bench.store[&Key::Vm(vm).to_string()].clone()).unwrap();
    assert!(stored.contains(r#""owner":"node-1","epoch":1"#), "{stored}");

    let define = bench.asked();
    assert_eq!(
        define_epoch(&define),
        Epoch(0),
        "the epoch before that of the start"
    );
    assert!(bench.sent.is_empty(), "the start waits for the definition");
    let view = bench.vm(vm);
    bench.domain(&define, report(&view, DomainState::Stopped, 0));
    let start = bench.asked();
    assert_eq!(command_of(&start), (LifecycleCommand::Start, Epoch(1)));
    assert_eq!(bench.task(task).message, "starting it on node-1");
    bench.domain(&start, report(&view, DomainState::Running, 1));

    let task = bench.task(task);
    assert_eq!(
        (task.state, task.percent),
        (TaskState::Succeeded, Some(100))
    );
    let view = bench.vm(vm);
    assert_eq!(view.state, DomainState::Running);
    assert_eq!(
        view.machine.as_deref(),
        Some("pc-q35-10.0"),
        "pinned by its first run"
    );
    assert_eq!(
        bench.kinds()[2..],
        ["vm.created", "task.began", "vm.state", "task.ended"]
    );
}

#[test]
fn a_vm_that_is_only_defined_is_nowhere_until_it_is_started() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 256), false, None).unwrap();
    assert_eq!(bench.task(task).state, TaskState::Succeeded);
    assert_eq!(wants(&bench, vm), (RunState::Stopped, None, 0));
    assert!(bench.sent.is_empty());
    let refused = bench.command(vm, LifecycleCommand::Shutdown).unwrap_err();
    assert_eq!(refused.code, codes::STATE_CONFLICT);
    bench.command(vm, LifecycleCommand::Start).unwrap();
    assert_eq!(define_epoch(&bench.asked()), Epoch(0));
}

#[test]
fn a_vm_can_be_defined_on_a_node_without_being_started() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let (vm, task) = bench
        .create(spec("web", 256), false, Some("node-2"))
        .unwrap();
    let define = bench.asked();
    assert_eq!(define.node, node("node-2"));
    let view = bench.vm(vm);
    bench.domain(&define, report(&view, DomainState::Stopped, 0));
    assert_eq!(bench.task(task).message, "defined on node-2");
    assert_eq!(
        wants(&bench, vm),
        (RunState::Stopped, Some("node-2".into()), 0)
    );
    assert!(bench.sent.is_empty());
}

#[test]
fn creating_is_refused_with_its_reason() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    bench.running("web", "node-1");
    let taken = bench.create(spec("web", 256), true, None).unwrap_err();
    assert_eq!(taken.code, codes::ALREADY_EXISTS);
    let mut odd = spec("odd", 256);
    odd.placement.profile = Some("gold".into());
    let unknown = bench.create(odd, false, None).unwrap_err();
    assert_eq!(unknown.code, codes::SPEC_INVALID);
    assert_eq!(unknown.field.as_deref(), Some("placement.profile"));
    let large = bench.create(spec("db", 2048), true, None).unwrap_err();
    assert_eq!(large.code, codes::NO_NODE_FITS);
    assert_eq!(large.also.len(), 2, "one reason for each node");
    assert!(
        large.also[0]
            .message
            .starts_with("node-1 lacks 1.2 GiB of memory")
    );
    let named = bench
        .create(spec("db", 1024), true, Some("node-1"))
        .unwrap_err();
    assert_eq!(named.message, "db does not fit on node-1");
    assert_eq!(named.also.len(), 1, "{named:?}");
    let nowhere = bench
        .create(spec("db", 256), true, Some("node-9"))
        .unwrap_err();
    assert_eq!(nowhere.code, codes::NOT_FOUND);
    let none = Bench::new()
        .create(spec("db", 256), true, None)
        .unwrap_err();
    assert!(none.remedy.unwrap().contains("godwit node token"));
}

#[test]
fn room_is_reserved_from_the_decision_on() {
    let mut bench = Bench::of(&["node-1"]);
    bench.create(spec("a", 768), true, None).unwrap();
    let refused = bench.create(spec("b", 512), true, None).unwrap_err();
    assert_eq!(refused.also[0].code, codes::INSUFFICIENT_RESOURCES);
    bench.create(spec("c", 256), true, None).unwrap();
}

#[test]
fn a_start_that_the_node_refuses_gives_its_room_back() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 768), true, None).unwrap();
    let view = bench.vm(vm);
    let define = bench.asked();
    bench.domain(&define, report(&view, DomainState::Stopped, 0));
    let start = bench.asked();
    let problem = Problem::new(codes::QEMU_START, "no such file");
    bench.reply(&start, Err(problem.clone()));
    let task = bench.task(task);
    assert_eq!(
        (task.state, task.problem),
        (TaskState::Failed, Some(problem))
    );
    assert_eq!(
        wants(&bench, vm),
        (RunState::Stopped, Some("node-1".into()), 1)
    );
    bench.create(spec("other", 768), true, None).unwrap();
    // The next start has an epoch of its own.
    let (_, task) = (bench.asked(), bench.command(vm, LifecycleCommand::Start));
    assert_eq!(
        task.unwrap_err().code,
        codes::NO_NODE_FITS,
        "its room is taken now"
    );
}

#[test]
fn a_vm_that_its_node_refuses_to_define_is_nobodys() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, _) = bench.create(spec("web", 256), true, None).unwrap();
    let define = bench.asked();
    bench.reply(&define, Err(Problem::new(codes::HOST_IO, "disk full")));
    assert_eq!(wants(&bench, vm), (RunState::Stopped, None, 1));
    let task = bench.command(vm, LifecycleCommand::Delete).unwrap();
    assert_eq!(
        bench.task(task).state,
        TaskState::Succeeded,
        "no node has to be asked"
    );
    assert!(bench.cluster.find_vm("web").is_err());
}

#[test]
fn a_start_ends_with_the_reason_when_qemu_does_not_stay_up() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 256), true, None).unwrap();
    let view = bench.vm(vm);
    let define = bench.asked();
    bench.domain(&define, report(&view, DomainState::Stopped, 0));
    let start = bench.asked();
    bench.domain(&start, report(&view, DomainState::Starting, 1));
    assert_eq!(bench.task(task).state, TaskState::Running);
    let error = "bad kernel".to_owned();
    let failed = exited(&view, 1, ExitReason::FailedToStart { error });
    bench.say("node-1", NodeMessage::Domain(failed));
    let task = bench.task(task);
    assert_eq!(task.problem.unwrap().code, codes::QEMU_START);
    assert_eq!(bench.vm(vm).desired, RunState::Stopped);
}

#[test]
fn a_start_without_an_answer_fails_and_keeps_its_room_until_the_node_speaks() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 768), true, None).unwrap();
    let view = bench.vm(vm);
    let define = bench.asked();
    bench.domain(&define, report(&view, DomainState::Stopped, 0));
    let start = bench.asked();
    bench
        .step(Input::Unanswered {
            request: start.request,
        })
        .unwrap();
    assert_eq!(bench.task(task).problem.unwrap().code, codes::TIMEOUT);
    bench.domain(&start, report(&view, DomainState::Running, 1));
    assert_eq!(
        bench.vm(vm).state,
        DomainState::Stopped,
        "late replies are not believed"
    );
    let running = report(&view, DomainState::Running, 1);
    bench.say("node-1", NodeMessage::Domain(running));
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-1".into()), 1)
    );
}

#[test]
fn one_command_at_a_time() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    bench.command(vm, LifecycleCommand::Pause).unwrap();
    for command in [LifecycleCommand::Reset, LifecycleCommand::Stop] {
        let refused = bench.command(vm, command).unwrap_err();
        assert_eq!(refused.code, codes::BUSY);
    }
    assert_eq!(bench.migrate(vm, None).unwrap_err().code, codes::BUSY);
    let pause = bench.asked();
    let view = bench.vm(vm);
    bench.domain(&pause, report(&view, DomainState::Paused, 1));
    let resume = bench.command(vm, LifecycleCommand::Resume).unwrap();
    let asked = bench.asked();
    bench.domain(&asked, report(&view, DomainState::Running, 1));
    assert_eq!(bench.task(resume).state, TaskState::Succeeded);
}

#[test]
fn commands_are_refused_in_states_where_they_make_no_sense() {
    use LifecycleCommand as C;
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    for command in [C::Start, C::Resume, C::Delete] {
        let refused = bench.command(vm, command).unwrap_err();
        assert_eq!(refused.code, codes::STATE_CONFLICT, "{command}");
    }
    let view = bench.vm(vm);
    bench.say(
        "node-1",
        NodeMessage::Domain(report(&view, DomainState::Paused, 1)),
    );
    for command in [C::Shutdown, C::Reboot, C::Pause] {
        let refused = bench.command(vm, command).unwrap_err();
        assert_eq!(
            refused.remedy.as_deref(),
            Some("resume it first"),
            "{command}"
        );
    }
    bench.disconnect("node-1");
    for command in [C::Shutdown, C::Stop, C::Resume] {
        let refused = bench.command(vm, command).unwrap_err();
        assert_eq!(refused.code, codes::NODE_UNREACHABLE, "{command}");
    }
    let stray = bench.command_on(vm, C::Stop, Some("node-1")).unwrap_err();
    assert_eq!(stray.field.as_deref(), Some("node"));
    let missing = bench.command(VmId::from_u128(99), C::Stop).unwrap_err();
    assert_eq!(missing.code, codes::NOT_FOUND);
}

#[test]
fn a_shutdown_ends_when_the_guest_is_off() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    let task = bench.command(vm, LifecycleCommand::Shutdown).unwrap();
    let asked = bench.asked();
    assert_eq!(command_of(&asked), (LifecycleCommand::Shutdown, Epoch(1)));
    let view = bench.vm(vm);
    bench.domain(&asked, report(&view, DomainState::ShuttingDown, 1));
    assert_eq!(bench.task(task).message, "the guest was asked to power off");
    assert!(bench.sent.is_empty(), "it is asked once");
    let off = exited(&view, 1, ExitReason::GuestShutdown);
    bench.say("node-1", NodeMessage::Domain(off));
    let task = bench.task(task);
    assert_eq!(
        (task.state, &*task.message),
        (TaskState::Succeeded, "the guest powered off")
    );
    assert_eq!(bench.vm(vm).desired, RunState::Stopped);
}

#[test]
fn a_guest_that_ignores_the_shutdown_stays_wanted() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    let task = bench.command(vm, LifecycleCommand::Shutdown).unwrap();
    let asked = bench.asked();
    let view = bench.vm(vm);
    bench.domain(&asked, report(&view, DomainState::ShuttingDown, 1));
    assert_eq!(bench.vm(vm).desired, RunState::Stopped);
    bench.pass(Limits::default().shutdown);
    let task = bench.task(task);
    assert_eq!(task.problem.unwrap().code, codes::TIMEOUT);
    assert_eq!(bench.vm(vm).desired, RunState::Running);
}

#[test]
fn a_shutdown_that_waits_can_be_cancelled_or_overtaken_by_a_stop() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    let view = bench.vm(vm);
    let first = bench.command(vm, LifecycleCommand::Shutdown).unwrap();
    let asked = bench.asked();
    bench.domain(&asked, report(&view, DomainState::ShuttingDown, 1));
    bench.step(Input::CancelTask { task: first }).unwrap();
    assert_eq!(bench.task(first).state, TaskState::Cancelled);
    assert_eq!(bench.vm(vm).desired, RunState::Running);
    let again = bench.step(Input::CancelTask { task: first }).unwrap_err();
    assert_eq!(again.code, codes::STATE_CONFLICT);

    let second = bench.command(vm, LifecycleCommand::Shutdown).unwrap();
    bench.asked();
    let stop = bench.command(vm, LifecycleCommand::Stop).unwrap();
    assert_eq!(bench.task(second).state, TaskState::Cancelled);
    let asked = bench.asked();
    assert_eq!(command_of(&asked).0, LifecycleCommand::Stop);
    bench.domain(&asked, exited(&view, 1, ExitReason::Stopped));
    assert_eq!(bench.task(stop).state, TaskState::Succeeded);
    assert_eq!(wants(&bench, vm).0, RunState::Stopped);
}

#[test]
fn what_a_node_is_doing_cannot_be_cancelled() {
    let mut bench = Bench::of(&["node-1"]);
    let (_, task) = bench.create(spec("web", 256), true, None).unwrap();
    let refused = bench.step(Input::CancelTask { task }).unwrap_err();
    assert_eq!(refused.code, codes::STATE_CONFLICT);
    let unknown = Input::CancelTask {
        task: TaskId::from_u128(99),
    };
    assert_eq!(bench.step(unknown).unwrap_err().code, codes::NOT_FOUND);
}

#[test]
fn a_guest_that_ends_by_itself_is_not_wanted_any_more_but_a_crashed_one_is() {
    let mut bench = Bench::of(&["node-1"]);
    let (web, db) = (
        bench.running("web", "node-1"),
        bench.running("db", "node-1"),
    );
    let (web_view, db_view) = (bench.vm(web), bench.vm(db));
    let off = exited(&web_view, 1, ExitReason::GuestShutdown);
    bench.say("node-1", NodeMessage::Domain(off));
    assert_eq!(bench.vm(web).desired, RunState::Stopped);

    let detail = "signal 11".to_owned();
    let crash = exited(&db_view, 1, ExitReason::Crashed { detail });
    bench.say("node-1", NodeMessage::Domain(crash.clone()));
    let view = bench.vm(db);
    assert_eq!(
        (view.desired, view.state),
        (RunState::Running, DomainState::Stopped)
    );
    assert_eq!(view.exit, crash.exit);
    assert!(bench.sent.is_empty(), "nothing is restarted by itself");
    let last = &bench.events.last().unwrap().message;
    assert_eq!(
        last,
        "db is stopped on node-1: QEMU ended unexpectedly: signal 11"
    );

    let stop = bench.command(db, LifecycleCommand::Stop).unwrap();
    assert_eq!(bench.task(stop).message, "it is stopped");
    assert_eq!(bench.vm(db).desired, RunState::Stopped);
}

#[test]
fn a_start_after_a_stop_stays_on_its_node_with_a_higher_epoch() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-2");
    let view = bench.vm(vm);
    let off = exited(&view, 1, ExitReason::GuestShutdown);
    bench.say("node-2", NodeMessage::Domain(off));
    bench.command(vm, LifecycleCommand::Start).unwrap();
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-2".into()), 2)
    );
    assert_eq!(define_epoch(&bench.asked()), Epoch(1));
}

#[test]
fn a_start_elsewhere_takes_the_domain_off_its_node_first() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-1");
    let view = bench.vm(vm);
    let off = exited(&view, 1, ExitReason::GuestShutdown);
    bench.say("node-1", NodeMessage::Domain(off));
    let task = bench
        .command_on(vm, LifecycleCommand::Start, Some("node-2"))
        .unwrap();
    let release = bench.asked();
    assert_eq!(release.node, node("node-1"));
    assert_eq!(command_of(&release), (LifecycleCommand::Delete, Epoch(1)));
    assert_eq!(
        wants(&bench, vm).1.as_deref(),
        Some("node-1"),
        "still its node's"
    );
    bench.reply(&release, Ok(NodeReply::Done));
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-2".into()), 2)
    );
    let define = bench.asked();
    assert_eq!(define.node, node("node-2"));
    bench.reply(&define, Ok(NodeReply::Done));
    let start = bench.asked();
    bench.domain(&start, report(&view, DomainState::Running, 2));
    assert_eq!(bench.task(task).state, TaskState::Succeeded);
}

#[test]
fn a_stopped_vm_of_a_node_that_is_away_is_not_started_elsewhere() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-1");
    let view = bench.vm(vm);
    let off = exited(&view, 1, ExitReason::GuestShutdown);
    bench.say("node-1", NodeMessage::Domain(off));
    bench.disconnect("node-1");
    for on in [None, Some("node-2")] {
        let refused = bench
            .command_on(vm, LifecycleCommand::Start, on)
            .unwrap_err();
        assert_eq!(refused.code, codes::NODE_UNREACHABLE, "{on:?}");
    }
}

#[test]
fn a_vm_with_disks_of_its_nodes_own_stays_there() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let mut bound = spec("web", 256);
    let disk = json!({ "path": "/images/web.qcow2" });
    bound.disks.push(serde_json::from_value(disk).unwrap());
    let (vm, _) = bench.create(bound, false, Some("node-1")).unwrap();
    let define = bench.asked();
    let view = bench.vm(vm);
    bench.domain(&define, report(&view, DomainState::Stopped, 0));
    let cordon = Input::Cordon {
        node: node("node-1"),
        cordoned: true,
    };
    bench.step(cordon).unwrap();
    let refused = bench.command(vm, LifecycleCommand::Start).unwrap_err();
    assert_eq!(refused.message, "web does not fit on node-1");
}

#[test]
fn deleting_asks_the_owner_first() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    let view = bench.vm(vm);
    bench.say(
        "node-1",
        NodeMessage::Domain(exited(&view, 1, ExitReason::GuestShutdown)),
    );
    let first = bench.command(vm, LifecycleCommand::Delete).unwrap();
    let asked = bench.asked();
    bench.reply(
        &asked,
        Err(Problem::new(codes::HOST_IO, "read-only file system")),
    );
    assert_eq!(bench.task(first).state, TaskState::Failed);
    assert!(!bench.cluster.records.vms[&vm].deleting);

    let second = bench.command(vm, LifecycleCommand::Delete).unwrap();
    let asked = bench.asked();
    assert!(bench.cluster.records.vms[&vm].deleting);
    bench.reply(&asked, Ok(NodeReply::Done));
    assert_eq!(bench.task(second).state, TaskState::Succeeded);
    assert!(bench.cluster.vm(vm).is_err());
    bench.create(spec("web", 256), true, None).unwrap();
}

#[test]
fn a_log_is_read_from_the_owner() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    let read = |ticket| Input::ReadLog {
        ticket: Ticket(ticket),
        vm,
        kind: godwit_shared::wire::uplink::LogKind::Serial,
        lines: 10,
    };
    assert_eq!(bench.step(read(1)), Ok(Output::Waiting));
    let asked = bench.asked();
    bench.reply(&asked, Ok(NodeReply::Log("login:".into())));
    assert_eq!(
        bench.answers.remove(0),
        (Ticket(1), Ok(Answer::Log("login:".into())))
    );
    bench.step(read(2)).unwrap();
    bench.disconnect("node-1");
    let (ticket, outcome) = bench.answers.remove(0);
    assert_eq!(ticket, Ticket(2));
    assert_eq!(outcome.unwrap_err().code, codes::NODE_UNREACHABLE);
    assert_eq!(
        bench.step(read(3)).unwrap_err().code,
        codes::NODE_UNREACHABLE
    );
}

#[test]
fn ended_tasks_are_kept_up_to_a_bound() {
    let limits = Limits {
        tasks: 2,
        ..Limits::default()
    };
    let mut bench = Bench::with(Settings {
        limits,
        ..settings()
    });
    for name in ["a", "b", "c"] {
        bench.create(spec(name, 256), false, None).unwrap();
    }
    let names = |bench: &Bench| -> Vec<String> {
        let tasks = bench.cluster.tasks().into_iter();
        tasks.map(|task| task.name.unwrap().to_string()).collect()
    };
    assert_eq!(names(&bench), ["b", "c"]);
    bench.restart();
    bench.create(spec("d", 256), false, None).unwrap();
    assert_eq!(names(&bench), ["c", "d"]);
}

proptest! {
    #[test]
    fn digests_are_equal_only_when_every_byte_is(a: [u8; 32], b: [u8; 32], place in 0_usize..32) {
        prop_assert_eq!(SecretDigest(a) == SecretDigest(b), a == b);
        let mut other = a;
        other[place] ^= 1;
        prop_assert_ne!(SecretDigest(a), SecretDigest(other));
    }
}
