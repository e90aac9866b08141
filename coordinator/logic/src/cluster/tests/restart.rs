//! Sessions that end and coordinators that are killed in the middle.

use super::*;
use godwit_shared::model::codes;

#[test]
fn a_start_that_was_not_sent_is_sent_after_a_restart_with_the_same_epoch() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 256), true, None).unwrap();
    bench.restart();
    assert!(
        bench.sent.is_empty(),
        "nothing is sent before the node has spoken"
    );
    assert_eq!(bench.task(task).state, TaskState::Running);
    bench.connect("node-1", 1024, vec![]);
    let view = bench.vm(vm);
    let define = bench.asked();
    assert_eq!(define_epoch(&define), Epoch(0));
    bench.domain(&define, report(&view, DomainState::Stopped, 0));
    let start = bench.asked();
    assert_eq!(command_of(&start), (LifecycleCommand::Start, Epoch(1)));
    bench.domain(&start, report(&view, DomainState::Running, 1));
    assert_eq!(bench.task(task).state, TaskState::Succeeded);
}

#[test]
fn a_start_that_was_carried_out_is_not_sent_again() {
    for state in [DomainState::Running, DomainState::Paused] {
        let mut bench = Bench::of(&["node-1"]);
        let (vm, task) = bench.create(spec("web", 256), true, None).unwrap();
        let view = bench.vm(vm);
        bench.restart();
        bench.connect("node-1", 1024, vec![report(&view, state, 1)]);
        assert!(bench.sent.is_empty(), "no second start");
        assert_eq!(bench.task(task).state, TaskState::Succeeded);
        assert_eq!(bench.vm(vm).state, state);
    }
}

#[test]
fn a_guest_that_ran_and_ended_meanwhile_is_not_started_again() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 256), true, None).unwrap();
    let view = bench.vm(vm);
    bench.restart();
    let off = exited(&view, 1, ExitReason::GuestShutdown);
    bench.connect("node-1", 1024, vec![off]);
    assert!(bench.sent.is_empty());
    assert_eq!(bench.task(task).state, TaskState::Succeeded);
    assert_eq!(bench.vm(vm).desired, RunState::Stopped);
}

#[test]
fn a_start_that_is_under_way_is_waited_for() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 256), true, None).unwrap();
    let view = bench.vm(vm);
    bench.restart();
    bench.connect(
        "node-1",
        1024,
        vec![report(&view, DomainState::Starting, 1)],
    );
    assert!(bench.sent.is_empty());
    bench.say(
        "node-1",
        NodeMessage::Domain(report(&view, DomainState::Running, 1)),
    );
    assert_eq!(bench.task(task).state, TaskState::Succeeded);
}

#[test]
fn a_start_whose_qemu_hangs_ends_with_its_patience() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 256), true, None).unwrap();
    let view = bench.vm(vm);
    bench.restart();
    bench.connect(
        "node-1",
        1024,
        vec![report(&view, DomainState::Starting, 1)],
    );
    bench.pass(Limits::default().start);
    assert_eq!(bench.task(task).problem.unwrap().code, codes::TIMEOUT);
    assert_eq!(bench.vm(vm).desired, RunState::Running, "QEMU is there");
}

#[test]
fn a_task_waits_for_its_node_but_not_for_ever() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let (vm, task) = bench
        .create(spec("web", 256), true, Some("node-1"))
        .unwrap();
    bench.disconnect("node-1");
    assert_eq!(
        bench.task(task).message,
        "waiting for node-1, which is not connected"
    );
    assert_eq!(
        bench.command(vm, LifecycleCommand::Stop).unwrap_err().code,
        codes::BUSY
    );
    bench.pass(Limits::default().absence);
    let problem = bench.task(task).problem.unwrap();
    assert_eq!(problem.code, codes::NODE_UNREACHABLE);
    assert_eq!(problem.message, "node-1 did not come back in time");
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-1".into()), 1),
        "nobody knows whether it was started"
    );
    let view = bench.vm(vm);
    bench.connect("node-1", 1024, vec![report(&view, DomainState::Running, 1)]);
    assert_eq!(bench.vm(vm).state, DomainState::Running);
}

#[test]
fn a_task_that_waits_for_its_node_can_be_cancelled() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 256), true, None).unwrap();
    bench.disconnect("node-1");
    bench.step(Input::CancelTask { task }).unwrap();
    assert_eq!(bench.task(task).state, TaskState::Cancelled);
    bench.sent.clear();
    bench.connect("node-1", 1024, vec![]);
    assert!(bench.sent.is_empty());
    assert_eq!(bench.vm(vm).desired, RunState::Stopped, "it never ran");
}

#[test]
fn a_node_that_comes_back_in_time_has_its_patience_anew() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 256), true, None).unwrap();
    bench.disconnect("node-1");
    bench.pass(Millis(59_000));
    bench.connect("node-1", 1024, vec![]);
    bench.pass(Millis(2_000));
    assert_eq!(
        bench.task(task).state,
        TaskState::Running,
        "the old timer is void"
    );
    bench.disconnect("node-1");
    bench.pass(Millis(59_000));
    let view = bench.vm(vm);
    bench.connect("node-1", 1024, vec![report(&view, DomainState::Running, 1)]);
    assert_eq!(bench.task(task).state, TaskState::Succeeded);
}

#[test]
fn a_shutdown_is_asked_again_and_its_end_is_seen() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    let view = bench.vm(vm);
    let task = bench.command(vm, LifecycleCommand::Shutdown).unwrap();
    bench.restart();
    bench.connect("node-1", 1024, vec![report(&view, DomainState::Running, 1)]);
    assert_eq!(command_of(&bench.asked()).0, LifecycleCommand::Shutdown);
    bench.restart();
    let off = exited(&view, 1, ExitReason::GuestShutdown);
    bench.connect("node-1", 1024, vec![off]);
    assert_eq!(bench.task(task).state, TaskState::Succeeded);
}

#[test]
fn a_stop_is_asked_again_unless_it_is_done() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    let view = bench.vm(vm);
    let task = bench.command(vm, LifecycleCommand::Stop).unwrap();
    bench.disconnect("node-1");
    bench.sent.clear();
    bench.connect("node-1", 1024, vec![report(&view, DomainState::Running, 1)]);
    assert_eq!(command_of(&bench.asked()).0, LifecycleCommand::Stop);
    bench.disconnect("node-1");
    bench.connect("node-1", 1024, vec![exited(&view, 1, ExitReason::Stopped)]);
    assert_eq!(bench.task(task).message, "it is stopped");
    assert_eq!(bench.vm(vm).desired, RunState::Stopped);
}

#[test]
fn a_reset_whose_answer_was_lost_is_not_sent_again() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    let view = bench.vm(vm);
    let task = bench.command(vm, LifecycleCommand::Reset).unwrap();
    bench.sent.clear();
    bench.disconnect("node-1");
    assert_eq!(
        bench.task(task).problem.unwrap().code,
        codes::CONNECTION_LOST
    );

    bench.connect("node-1", 1024, vec![report(&view, DomainState::Running, 1)]);
    let task = bench.command(vm, LifecycleCommand::Reboot).unwrap();
    bench.restart();
    bench.connect("node-1", 1024, vec![report(&view, DomainState::Running, 1)]);
    assert!(bench.sent.is_empty());
    assert_eq!(
        bench.task(task).problem.unwrap().code,
        codes::CONNECTION_LOST
    );
    assert_eq!(bench.vm(vm).desired, RunState::Running);
}

#[test]
fn a_delete_is_taken_up_again() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    let view = bench.vm(vm);
    let off = exited(&view, 1, ExitReason::GuestShutdown);
    bench.say("node-1", NodeMessage::Domain(off.clone()));
    let task = bench.command(vm, LifecycleCommand::Delete).unwrap();
    bench.restart();
    bench.connect("node-1", 1024, vec![off]);
    let asked = bench.asked();
    assert_eq!(command_of(&asked).0, LifecycleCommand::Delete);
    bench.restart();
    bench.connect("node-1", 1024, vec![]);
    assert_eq!(bench.task(task).state, TaskState::Succeeded);
    assert!(bench.cluster.find_vm("web").is_err());
}

#[test]
fn a_start_elsewhere_is_taken_up_where_it_was() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-1");
    let view = bench.vm(vm);
    let off = exited(&view, 1, ExitReason::GuestShutdown);
    bench.say("node-1", NodeMessage::Domain(off.clone()));
    let start = LifecycleCommand::Start;
    let task = bench.command_on(vm, start, Some("node-2")).unwrap();
    bench.restart();
    bench.connect("node-2", 1024, vec![]);
    assert!(bench.sent.is_empty(), "the former owner has not spoken");
    bench.connect("node-1", 1024, vec![off]);
    let release = bench.asked();
    assert_eq!(command_of(&release).0, LifecycleCommand::Delete);
    bench.reply(&release, Err(Problem::not_found("VM", vm)));
    assert_eq!(define_epoch(&bench.asked()), Epoch(1));
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-2".into()), 2)
    );
    assert_eq!(bench.task(task).state, TaskState::Running);
}

#[test]
fn the_last_state_seen_survives_a_restart_for_display() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    bench.restart();
    let view = bench.vm(vm);
    assert_eq!((view.state, view.node_up), (DomainState::Running, false));
    assert_eq!(bench.cluster.nodes()[0].health.as_str(), "down");
}

#[test]
fn the_same_start_may_arrive_twice() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 256), true, None).unwrap();
    let view = bench.vm(vm);
    let define = bench.asked();
    bench.reply(&define, Ok(NodeReply::Done));
    bench.asked();
    // The first start is on its way through the node when its session ends.
    bench.connect("node-1", 1024, vec![report(&view, DomainState::Stopped, 0)]);
    let define = bench.asked();
    bench.reply(&define, Ok(NodeReply::Done));
    let start = bench.asked();
    bench.say(
        "node-1",
        NodeMessage::Domain(report(&view, DomainState::Running, 1)),
    );
    let already = Problem::new(codes::STATE_CONFLICT, "it is running");
    bench.reply(&start, Err(already));
    assert_eq!(bench.task(task).state, TaskState::Succeeded);
}

#[test]
fn a_start_is_not_taken_up_while_another_node_has_a_process() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let (vm, task) = bench
        .create(spec("web", 256), true, Some("node-1"))
        .unwrap();
    let view = bench.vm(vm);
    bench.restart();
    let stray = DomainReport {
        owner: false,
        ..report(&view, DomainState::Paused, 0)
    };
    bench.connect("node-2", 1024, vec![stray]);
    bench.connect("node-1", 1024, vec![]);
    assert!(bench.sent.is_empty());
    let problem = bench.task(task).problem.unwrap();
    assert_eq!(problem.code, codes::STATE_CONFLICT);
    assert_eq!(problem.message, "web is paused on node-2");
}

#[test]
fn a_store_that_cannot_be_read_is_refused() {
    let load = |key: &str, value: &str| {
        let records = [(key.to_owned(), value.as_bytes().to_vec())];
        let now = UnixMillis(0);
        Cluster::load(settings(), now, records, &mut Vec::new()).unwrap_err()
    };
    for key in [
        "cluster/pod/a",
        "cluster/vm/web",
        "vm/a",
        "cluster/event/-1",
    ] {
        assert!(
            load(key, "{}").to_string().contains("does not know"),
            "{key}"
        );
    }
    let damaged = load("cluster/node/node-1", "{\"name\":3}").to_string();
    assert!(damaged.contains("`cluster/node/node-1`"), "{damaged}");
}

#[test]
fn keys_are_read_as_they_are_written_and_events_sort_by_number() {
    let keys = [
        Key::Node(node("node-1")),
        Key::Token("a/b".into()),
        Key::Vm(VmId::from_u128(1)),
        Key::Migration(MigrationId::from_u128(2)),
        Key::Task(TaskId::from_u128(3)),
        Key::Event(9),
    ];
    for key in keys {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
    assert!(Key::Event(9).to_string() < Key::Event(10).to_string());
}

#[test]
fn a_start_whose_guest_stands_still_has_failed_and_one_that_hangs_is_waited_for() {
    for (state, ended) in [
        (DomainState::Crashed, TaskState::Failed),
        (DomainState::IoError, TaskState::Failed),
        (DomainState::Unresponsive, TaskState::Running),
        (DomainState::Incoming, TaskState::Running),
        (DomainState::InHandoff, TaskState::Running),
    ] {
        let mut bench = Bench::of(&["node-1"]);
        let (vm, task) = bench.create(spec("web", 256), true, None).unwrap();
        let view = bench.vm(vm);
        bench.restart();
        bench.connect("node-1", 1024, vec![report(&view, state, 1)]);
        assert!(bench.sent.is_empty(), "no second start");
        assert_eq!(bench.task(task).state, ended, "{state}");
    }
}
