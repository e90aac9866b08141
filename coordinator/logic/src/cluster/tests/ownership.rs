//! Who may run a VM: the six rules of the module's page.

use super::*;
use godwit_shared::model::codes;

/// `web` on node-1 and nothing else, node-2 beside it.
fn web() -> (Bench, VmId, VmView) {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-1");
    let view = bench.vm(vm);
    (bench, vm, view)
}

#[test]
fn a_higher_epoch_is_believed() {
    let (mut bench, vm, view) = web();
    bench.disconnect("node-1");
    let moved = report(&view, DomainState::Running, 2);
    bench.connect("node-2", 1024, vec![moved]);
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-2".into()), 2)
    );
    assert!(bench.kinds().contains(&"vm.owner"));
}

#[test]
fn a_lower_epoch_is_not_believed() {
    let (mut bench, vm, view) = web();
    bench.say(
        "node-2",
        NodeMessage::Domain(report(&view, DomainState::Paused, 0)),
    );
    assert_eq!(wants(&bench, vm).1.as_deref(), Some("node-1"));
}

#[test]
fn a_stale_runner_is_stopped_once_the_owner_has_confirmed() {
    let (mut bench, vm, view) = web();
    bench.disconnect("node-1");
    bench.connect("node-2", 1024, vec![report(&view, DomainState::Running, 2)]);
    // The partition heals while the owner is away: its guest may be the only one.
    bench.disconnect("node-2");
    let stale = report(&view, DomainState::Running, 1);
    bench.connect("node-1", 1024, vec![stale.clone()]);
    assert!(bench.sent.is_empty());
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-2".into()), 2)
    );
    let problem = bench.vm(vm).problem.unwrap();
    assert_eq!(problem.code, codes::STATE_CONFLICT);

    bench.connect("node-2", 1024, vec![report(&view, DomainState::Running, 2)]);
    let asked = bench.asked();
    assert_eq!(asked.node, node("node-1"));
    assert_eq!(command_of(&asked), (LifecycleCommand::Stop, Epoch(1)));
    bench.say("node-1", NodeMessage::Domain(stale));
    assert!(bench.sent.is_empty(), "it is told once at a time");

    bench.domain(&asked, exited(&view, 1, ExitReason::Stopped));
    bench.say(
        "node-1",
        NodeMessage::Domain(exited(&view, 1, ExitReason::Stopped)),
    );
    let asked = bench.asked();
    assert_eq!(command_of(&asked), (LifecycleCommand::Delete, Epoch(1)));
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-2".into()), 2)
    );
}

#[test]
fn the_only_runner_is_the_owner_even_at_a_lower_epoch() {
    let (mut bench, vm, view) = web();
    bench.disconnect("node-1");
    bench.connect("node-2", 1024, vec![report(&view, DomainState::Running, 2)]);
    bench.connect("node-2", 1024, vec![]);
    assert_eq!(wants(&bench, vm).1.as_deref(), Some("node-2"));
    bench.connect("node-1", 1024, vec![report(&view, DomainState::Running, 1)]);
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-1".into()), 2),
        "the epoch does not go down"
    );
    bench.command(vm, LifecycleCommand::Pause).unwrap();
    let asked = bench.asked();
    assert_eq!(
        command_of(&asked),
        (LifecycleCommand::Pause, Epoch(1)),
        "its guest's epoch"
    );
}

#[test]
fn a_runner_in_a_migration_is_not_taken_for_the_only_one() {
    let (mut bench, vm, view) = web();
    bench.disconnect("node-1");
    bench.connect("node-2", 1024, vec![report(&view, DomainState::Running, 2)]);
    bench.connect("node-2", 1024, vec![]);
    let moving = DomainReport {
        migration: Some(MigrationId::from_u128(77)),
        ..report(&view, DomainState::Running, 1)
    };
    bench.connect("node-1", 1024, vec![moving]);
    assert_eq!(wants(&bench, vm).1.as_deref(), Some("node-2"));
}

#[test]
fn the_holder_of_the_records_epoch_is_believed_over_an_owner_that_denies_it() {
    let (mut bench, vm, view) = web();
    bench.disconnect("node-1");
    bench.connect("node-2", 1024, vec![report(&view, DomainState::Running, 2)]);
    bench.connect("node-2", 1024, vec![]);
    bench.connect("node-1", 1024, vec![report(&view, DomainState::Running, 1)]);
    assert_eq!(wants(&bench, vm).1.as_deref(), Some("node-1"));
    bench.say(
        "node-2",
        NodeMessage::Domain(report(&view, DomainState::Running, 2)),
    );
    assert_eq!(wants(&bench, vm).1.as_deref(), Some("node-2"));
}

#[test]
fn a_stopped_copy_elsewhere_is_deleted_only_when_the_owner_has_the_domain() {
    let (mut bench, _, view) = web();
    bench.disconnect("node-1");
    let copy = exited(&view, 0, ExitReason::HostReboot);
    bench.connect("node-2", 1024, vec![copy]);
    assert!(bench.sent.is_empty(), "the owner has not spoken");
    bench.connect("node-1", 1024, vec![report(&view, DomainState::Running, 1)]);
    let asked = bench.asked();
    assert_eq!(asked.node, node("node-2"));
    assert_eq!(command_of(&asked), (LifecycleCommand::Delete, Epoch(0)));
    // The node's word that it is gone overtakes its reply.
    bench.say("node-2", NodeMessage::DomainGone(view.id));
    bench.domain(&asked, exited(&view, 0, ExitReason::HostReboot));
    bench.say(
        "node-1",
        NodeMessage::Domain(report(&view, DomainState::Paused, 1)),
    );
    assert!(bench.sent.is_empty(), "it is asked once");
}

#[test]
fn a_copy_that_is_older_than_the_owners_guest_goes_though_the_record_is_ahead() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let (vm, _) = bench
        .create(spec("web", 256), true, Some("node-1"))
        .unwrap();
    let view = bench.vm(vm);
    let define = bench.asked();
    bench.domain(&define, report(&view, DomainState::Stopped, 0));
    // Two starts without an answer, of which the first was carried out.
    for again in [true, false] {
        let request = bench.asked().request;
        bench.step(Input::Unanswered { request }).unwrap();
        if again {
            bench.command(vm, LifecycleCommand::Start).unwrap();
        }
    }
    let running = report(&view, DomainState::Running, 1);
    bench.say("node-1", NodeMessage::Domain(running));
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-1".into()), 2)
    );
    let copy = |epoch| NodeMessage::Domain(exited(&view, epoch, ExitReason::HostReboot));
    bench.say("node-2", copy(1));
    assert!(bench.sent.is_empty(), "as old as the guest");
    bench.say("node-2", copy(0));
    let asked = bench.asked();
    assert_eq!(asked.node, node("node-2"));
    assert_eq!(command_of(&asked), (LifecycleCommand::Delete, Epoch(0)));
}

#[test]
fn a_leftover_that_is_not_deleted_is_not_asked_for_at_every_report() {
    let (mut bench, _, view) = web();
    let copy = exited(&view, 0, ExitReason::HostReboot);
    bench.say("node-2", NodeMessage::Domain(copy.clone()));
    let asked = bench.asked();
    bench.reply(&asked, Err(Problem::new(codes::HOST_IO, "read-only")));
    let running = report(&view, DomainState::Running, 1);
    bench.say("node-1", NodeMessage::Domain(running));
    assert!(bench.sent.is_empty());
    bench.connect("node-2", 1024, vec![copy]);
    assert_eq!(command_of(&bench.asked()).0, LifecycleCommand::Delete);
}

#[test]
fn nothing_is_started_while_another_node_has_a_process_of_it() {
    let (mut bench, vm, view) = web();
    bench.say(
        "node-1",
        NodeMessage::Domain(exited(&view, 1, ExitReason::GuestShutdown)),
    );
    let incoming = report(&view, DomainState::Incoming, 1);
    bench.say("node-2", NodeMessage::Domain(incoming));
    let refused = bench.command(vm, LifecycleCommand::Start).unwrap_err();
    assert_eq!(refused.code, codes::STATE_CONFLICT);
    assert!(refused.message.contains("node-2"));
    let refused = bench.command(vm, LifecycleCommand::Delete).unwrap_err();
    assert_eq!(refused.code, codes::STATE_CONFLICT);
}

#[test]
fn a_node_that_is_away_keeps_its_vms() {
    let (mut bench, vm, view) = web();
    bench.disconnect("node-1");
    let shown = bench.vm(vm);
    assert_eq!((shown.state, shown.node_up), (DomainState::Running, false));
    assert_eq!(shown.node, Some(node("node-1")));
    assert!(bench.sent.is_empty());
    bench.pass(Millis(3_600_000));
    assert!(bench.sent.is_empty(), "nothing is started elsewhere, ever");
    bench.connect("node-1", 1024, vec![report(&view, DomainState::Running, 1)]);
    assert_eq!((bench.vm(vm).node_up, bench.vm(vm).epoch), (true, Epoch(1)));
}

#[test]
fn a_domain_that_nobody_knows_is_left_alone() {
    let (mut bench, _, view) = web();
    let stranger = DomainReport {
        vm: VmId::from_u128(999),
        ..report(&view, DomainState::Running, 7)
    };
    bench.say("node-2", NodeMessage::Domain(stranger.clone()));
    assert!(bench.sent.is_empty());
    assert_eq!(bench.cluster.vms().len(), 1);
    let told = |bench: &Bench| {
        let strays = bench.events.iter();
        let strays = strays.filter(|event| event.kind == "node.stray_domain");
        strays
            .map(|event| event.message.clone())
            .collect::<Vec<_>>()
    };
    bench.say("node-2", NodeMessage::Domain(stranger.clone()));
    let [message] = &told(&bench)[..] else {
        panic!("once a session: {:?}", told(&bench));
    };
    let id = stranger.vm.to_string();
    for part in ["node-2", "web", id.as_str()] {
        assert!(message.contains(part), "{message}");
    }
    bench.connect("node-2", 1024, vec![stranger]);
    assert_eq!(told(&bench).len(), 2);
}

#[test]
fn a_node_that_forgot_its_vm_is_shown_and_the_vm_can_be_started_anew() {
    let (mut bench, vm, _) = web();
    bench.disconnect("node-1");
    bench.connect("node-1", 1024, vec![]);
    let shown = bench.vm(vm);
    assert_eq!(shown.state, DomainState::Stopped);
    assert_eq!(
        shown.problem.unwrap().message,
        "node-1 does not know this VM any more"
    );
    bench.command(vm, LifecycleCommand::Start).unwrap();
    assert_eq!(
        wants(&bench, vm),
        (RunState::Running, Some("node-1".into()), 2)
    );
}

#[test]
fn an_older_report_with_a_reply_does_not_overwrite_a_newer_one() {
    let (mut bench, vm, view) = web();
    bench.command(vm, LifecycleCommand::Reset).unwrap();
    let asked = bench.asked();
    let crashed = DomainReport {
        since: UnixMillis(20),
        ..report(&view, DomainState::Crashed, 1)
    };
    bench.say("node-1", NodeMessage::Domain(crashed));
    let older = DomainReport {
        since: UnixMillis(10),
        ..report(&view, DomainState::Running, 1)
    };
    bench.domain(&asked, older);
    assert_eq!(bench.vm(vm).state, DomainState::Crashed);
}

#[test]
fn a_second_runner_is_told_again_and_ever_more_seldom_and_makes_news() {
    let (mut bench, vm, view) = web();
    bench.disconnect("node-1");
    bench.connect("node-2", 1024, vec![report(&view, DomainState::Running, 2)]);
    let stale = report(&view, DomainState::Running, 1);
    bench.connect("node-1", 1024, vec![stale.clone()]);
    let news = |bench: &Bench| {
        let kinds = bench.kinds().into_iter();
        kinds.filter(|kind| *kind == "vm.two_runners").count()
    };
    assert_eq!(news(&bench), 1);

    let asked = bench.asked();
    bench.reply(&asked, Err(Problem::new(codes::BUSY, "not now")));
    bench.say("node-1", NodeMessage::Domain(stale));
    bench.pass(Millis(4_000));
    assert!(bench.sent.is_empty(), "not at once");
    bench.pass(Millis(1_000));
    let asked = bench.asked();
    assert_eq!(command_of(&asked), (LifecycleCommand::Stop, Epoch(1)));
    let request = asked.request;
    bench.step(Input::Unanswered { request }).unwrap();
    bench.pass(Millis(9_000));
    assert!(bench.sent.is_empty(), "later than the first time");
    bench.pass(Millis(1_000));
    assert_eq!(command_of(&bench.asked()).0, LifecycleCommand::Stop);
    assert_eq!(news(&bench), 1, "told once");

    let off = exited(&view, 1, ExitReason::Stopped);
    bench.say("node-1", NodeMessage::Domain(off));
    assert_eq!(wants(&bench, vm).1.as_deref(), Some("node-2"));
}
