//! Records of a backup, restored while the nodes have gone on.

use super::*;
use crate::restored::prepare;
use godwit_shared::model::codes;
use godwit_shared::wire::lease::LeaseRequest;

impl Bench {
    /// The records become those of a backup of now, and the coordinator starts on them.
    fn restore(&mut self) {
        let prepared = prepare(self.store.clone(), self.now, UnixMillis(500)).unwrap();
        self.store = prepared.into_iter().collect();
        self.restart();
        let restored = self.cluster.events_after(0).events;
        self.events.extend(restored.last().cloned());
    }
}

/// `web` is stopped on node-1 by the records; node-2 is there too.
fn restored() -> (Bench, VmView) {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let (vm, _) = bench
        .create(spec("web", 256), false, Some("node-1"))
        .unwrap();
    let define = bench.asked();
    bench.domain(&define, report(&bench.vm(vm), DomainState::Stopped, 0));
    let view = bench.vm(vm);
    bench.restore();
    assert_eq!(
        bench.cluster.status().unheard,
        [node("node-1"), node("node-2")]
    );
    let last = bench.events.last().unwrap();
    assert_eq!(last.kind, "cluster.restored");
    (bench, view)
}

#[test]
fn nothing_is_started_before_every_node_was_heard() {
    let (mut bench, web) = restored();
    bench.connect("node-1", 1024, vec![report(&web, DomainState::Stopped, 0)]);
    let task = bench.command(web.id, LifecycleCommand::Start).unwrap();
    assert!(bench.sent.is_empty());
    assert!(bench.task(task).message.contains("node-2"));
    // It was started there after the backup, and moved on, and runs.
    let runs = report(&web, DomainState::Running, 5);
    bench.connect("node-2", 1024, vec![runs]);
    assert!(
        !bench.sent.iter().any(|sent| matches!(
            &sent.body,
            NodeRequest::Command {
                command: LifecycleCommand::Start,
                ..
            }
        )),
        "{:?}",
        bench.sent
    );
    let view = bench.vm(web.id);
    assert_eq!((view.node, view.epoch), (Some(node("node-2")), Epoch(5)));
    assert_eq!(bench.task(task).state, TaskState::Failed);
    assert!(bench.cluster.status().unheard.is_empty());
}

#[test]
fn what_waited_goes_on_when_the_last_node_was_heard() {
    let (mut bench, web) = restored();
    bench.connect("node-1", 1024, vec![report(&web, DomainState::Stopped, 0)]);
    bench.command(web.id, LifecycleCommand::Start).unwrap();
    bench.connect("node-2", 1024, vec![]);
    assert_eq!(bench.asked().node, node("node-1"));
    assert_eq!(bench.vm(web.id).epoch, Epoch(1));
}

#[test]
fn a_node_that_does_not_come_back_is_declared_absent() {
    let (mut bench, web) = restored();
    bench.connect("node-1", 1024, vec![report(&web, DomainState::Stopped, 0)]);
    let task = bench.command(web.id, LifecycleCommand::Start).unwrap();
    bench.now = bench.now.after(Limits::default().absence);
    bench.step(Input::Timer(Timer::Task(task))).unwrap();
    let problem = bench.task(task).problem.unwrap();
    assert_eq!(problem.code, codes::NODE_UNREACHABLE);
    assert!(
        problem
            .remedy
            .unwrap()
            .contains("godwit node absent node-2")
    );
    let absent = |name| Input::NodeAbsent { node: node(name) };
    let refused = bench.step(absent("node-1")).unwrap_err();
    assert_eq!(refused.code, codes::STATE_CONFLICT);
    bench.step(absent("node-2")).unwrap();
    bench.command(web.id, LifecycleCommand::Start).unwrap();
    assert_eq!(bench.asked().node, node("node-1"));
}

#[test]
fn what_was_under_way_then_is_not_carried_on() {
    let mut bench = Bench::of(&["node-1"]);
    let (vm, task) = bench.create(spec("web", 256), true, None).unwrap();
    bench.restore();
    assert_eq!(bench.task(task).state, TaskState::Failed);
    bench.connect("node-1", 1024, vec![]);
    assert!(bench.sent.is_empty(), "{:?}", bench.sent);
    assert_eq!(
        bench.vm(vm).epoch,
        Epoch(1),
        "what was given out stays given out"
    );
}

#[test]
fn after_a_restore_no_lease_counts_before_its_node_was_heard() {
    let mut bench = Bench::of(&["a", "b", "c"]);
    let more = json!({ "name": "web", "memory": 256, "protection": "restart" });
    let (vm, _) = bench
        .create(VmSpec::from_value(more).unwrap(), true, Some("a"))
        .unwrap();
    let request = LeaseRequest {
        number: 1,
        circle: 0,
    };
    let renew = |request| NodeMessage::RenewLease { of: None, request };
    bench.say("a", renew(request.clone()));
    bench.restore();
    for name in ["b", "c"] {
        bench.connect(name, 1024, vec![]);
    }
    bench.sent.clear();
    let ask = |bench: &Bench| {
        let asks = bench.sent.iter();
        let mut asks = asks.map(|sent| &sent.body);
        asks.any(|body| matches!(body, NodeRequest::WithholdVouch { .. }))
    };
    bench.pass(Millis(60_000));
    assert!(ask(&bench), "its lease is over");
    let asked: Vec<_> = bench.sent.drain(..).collect();
    for ask in &asked {
        let left = Millis::ZERO;
        bench.reply(ask, Ok(NodeReply::Withheld { left }));
    }
    bench.pass(Millis(60_000));
    let record = &bench.cluster.records.leases[&node("a")];
    assert_eq!(
        record.fenced, None,
        "it may go by a circle that is not known"
    );
    assert!(record.circle.version > 1, "younger than any before");
    assert_eq!(bench.vm(vm).protection.unwrap().lost, None);
}
