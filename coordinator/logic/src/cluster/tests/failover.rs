//! Leases and what follows their ends.
use godwit_shared::api::{FencedBy, LeaseState};
use godwit_shared::wire::lease::{LeaseGrant, LeaseRequest};
use godwit_shared::wire::uplink::{Verdict, VerdictQuery};
use serde_json::Value;

use super::*;

const LEASE: Millis = Millis(20_000);
const MARGIN: Millis = Millis(5_000);

fn protected(name: &str, more: &Value) -> VmSpec {
    let mut spec = json!({ "name": name, "memory": 256, "protection": "restart" });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    VmSpec::from_value(spec).unwrap()
}

impl Bench {
    /// The node renews its lease, by its own session or through a peer.
    fn renew(&mut self, name: &str, through: Option<&str>) -> Option<LeaseGrant> {
        let of = through.map(|_| node(name));
        let sender = through.unwrap_or(name);
        let circle = self.cluster.records.leases.get(&node(name));
        let request = LeaseRequest {
            number: self.now.0,
            circle: circle.map_or(0, |record| record.circle.version),
        };
        self.told.clear();
        self.say(
            sender,
            NodeMessage::RenewLease {
                of: of.clone(),
                request,
            },
        );
        let mut told = self.told.drain(..);
        told.find_map(|(to, message)| match message {
            CoordinatorMessage::Lease { of: whose, grant } if whose == of && to == node(sender) => {
                Some(grant)
            }
            _ => None,
        })
    }

    /// Three nodes with leases.
    fn three(&mut self) {
        for name in ["a", "b", "c"] {
            self.join(name).unwrap();
            self.connect(name, 1024, vec![]);
        }
        for name in ["a", "b", "c"] {
            self.renew(name, None).unwrap();
        }
    }

    fn guarded(&mut self, spec: VmSpec, on: &str) -> VmId {
        let (vm, _) = self.create(spec, true, Some(on)).unwrap();
        self.finish_start(vm);
        vm
    }

    /// Answers the definition and the start that were sent for it.
    fn finish_start(&mut self, vm: VmId) -> String {
        let define = self.asked();
        let view = self.vm(vm);
        let before = define_epoch(&define).0;
        self.domain(&define, report(&view, DomainState::Stopped, before));
        let start = self.asked();
        let (command, epoch) = command_of(&start);
        assert_eq!((command, epoch), (LifecycleCommand::Start, view.epoch));
        self.domain(&start, report(&view, DomainState::Running, epoch.0));
        start.node.to_string()
    }

    /// Takes the requests to vouch no more and answers them.
    fn withhold(&mut self, left: u64) -> Vec<String> {
        let (asks, rest): (Vec<Sent>, Vec<Sent>) = self
            .sent
            .drain(..)
            .partition(|sent| matches!(sent.body, NodeRequest::WithholdVouch { .. }));
        self.sent.extend(rest);
        let left = Millis(left);
        for ask in &asks {
            self.reply(ask, Ok(NodeReply::Withheld { left }));
        }
        asks.iter().map(|ask| ask.node.to_string()).collect()
    }

    fn lease_of(&self, name: &str) -> LeaseState {
        let view = self.cluster.node(&node(name)).unwrap();
        view.lease.unwrap().state
    }
}

/// Three nodes with leases.
fn three() -> Bench {
    let mut bench = Bench::new();
    bench.three();
    bench
}

/// Lets the lease of `a` end and the margin pass.
fn lose(bench: &mut Bench, name: &str) {
    bench.disconnect(name);
    bench.pass(LEASE);
    assert_eq!(bench.withhold(0).len(), 2, "the others are asked");
    bench.pass(MARGIN);
}

#[test]
fn a_grant_names_length_margin_and_circle() {
    let mut bench = Bench::of(&["a", "b", "c", "d", "e", "f"]);
    let grant = bench.renew("e", None).unwrap();
    assert_eq!(
        (grant.number, grant.length, grant.margin),
        (bench.now.0, LEASE, MARGIN)
    );
    let names: Vec<&str> = grant.circle.members.iter().map(NodeId::as_str).collect();
    assert_eq!(names, ["e", "f", "a", "b", "c"]);
    assert_eq!(grant.circle.version, 1);
}

#[test]
fn a_circle_stays_until_the_node_goes_by_the_next() {
    let mut bench = Bench::of(&["a", "b"]);
    bench.renew("a", None).unwrap();
    bench.join("c").unwrap();
    bench.connect("c", 1024, vec![]);
    let grant = bench.renew("a", None).unwrap();
    assert_eq!((grant.circle.version, grant.circle.members.len()), (2, 3));
    let record = &bench.cluster.records.leases[&node("a")];
    assert_eq!(record.former.as_ref().map(|circle| circle.version), Some(1));
    bench.renew("a", None).unwrap();
    let record = &bench.cluster.records.leases[&node("a")];
    assert_eq!(record.former, None, "it said that it goes by the second");
}

#[test]
fn a_lost_node_has_its_protected_vms_started_elsewhere_after_lease_and_margin() {
    let mut bench = three();
    let kept = bench.running("plain", "a");
    let vm = bench.guarded(protected("web", &json!({})), "a");
    let before = bench.vm(vm).epoch;
    bench.disconnect("a");
    bench.pass(Millis(LEASE.0 - 1));
    assert!(bench.sent.is_empty(), "the lease holds");
    bench.pass(Millis(1));
    assert_eq!(bench.lease_of("a"), LeaseState::Ending);
    assert_eq!(bench.withhold(0), ["b", "c"]);
    bench.pass(Millis(MARGIN.0 - 1));
    assert!(bench.sent.is_empty(), "the margin has not passed");
    bench.pass(Millis(1));
    assert_eq!(bench.lease_of("a"), LeaseState::Fenced);
    let place = bench.finish_start(vm);
    assert_ne!(place, "a");
    assert_eq!(bench.vm(vm).epoch.0, before.0 + 16);
    assert_eq!(bench.vm(vm).node.unwrap().as_str(), place);
    assert_eq!(bench.vm(kept).node.unwrap().as_str(), "a", "unprotected");
    let kinds = bench.kinds();
    for kind in ["node.lease_ended", "node.fenced", "vm.lost", "vm.restarted"] {
        assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
    }
}

#[test]
fn the_old_copy_never_gets_the_vm_back() {
    let mut bench = three();
    let vm = bench.guarded(protected("web", &json!({})), "a");
    let old = bench.vm(vm).epoch.0;
    lose(&mut bench, "a");
    let place = bench.finish_start(vm);
    let view = bench.vm(vm);
    let stale = exited(&view, old, ExitReason::LeaseLost);
    bench.connect("a", 1024, vec![stale]);
    assert_eq!(bench.vm(vm).node.unwrap().as_str(), place);
    let delete = bench.asked();
    assert_eq!(delete.node.as_str(), "a");
    assert_eq!(command_of(&delete).0, LifecycleCommand::Delete);
    assert!(bench.renew("a", None).is_some(), "it gets a lease anew");
    assert_eq!(bench.lease_of("a"), LeaseState::Held);
}

#[test]
fn a_node_that_renews_through_a_peer_is_not_lost() {
    let mut bench = three();
    bench.guarded(protected("web", &json!({})), "a");
    bench.disconnect("a");
    for _ in 0..8 {
        bench.pass(Millis(5_000));
        assert!(bench.renew("a", Some("b")).is_some());
    }
    assert!(bench.sent.is_empty());
    let lease = bench.cluster.node(&node("a")).unwrap().lease.unwrap();
    assert_eq!(lease.through, Some(node("b")));
    bench.pass(LEASE);
    assert_eq!(bench.withhold(0), ["b", "c"]);
    bench.pass(MARGIN);
    assert_eq!(bench.lease_of("a"), LeaseState::Fenced);
    assert!(
        bench.renew("a", Some("b")).is_none(),
        "it has to come itself"
    );
}

#[test]
fn nothing_is_started_while_a_majority_of_the_circle_may_vouch() {
    let mut bench = three();
    bench.guarded(protected("web", &json!({})), "a");
    for name in ["b", "c", "a"] {
        bench.disconnect(name);
    }
    bench.pass(Millis(600_000));
    assert_eq!(bench.lease_of("a"), LeaseState::Ending);
    // One of two others: it and the node would be a majority without it.
    bench.connect("b", 1024, vec![]);
    bench.renew("b", None);
    assert_eq!(bench.withhold(0), ["b"]);
    bench.pass(MARGIN);
    assert_eq!(
        bench.lease_of("a"),
        LeaseState::Ending,
        "a and c vouch for a"
    );
    bench.connect("c", 1024, vec![]);
    bench.renew("c", None);
    assert!(!bench.withhold(0).is_empty());
    bench.pass(MARGIN);
    assert_eq!(bench.lease_of("a"), LeaseState::Fenced);
}

#[test]
fn what_was_vouched_for_is_waited_for_and_old_promises_do_not_count() {
    let mut bench = three();
    bench.guarded(protected("web", &json!({})), "a");
    bench.disconnect("a");
    bench.pass(LEASE);
    assert_eq!(bench.withhold(12_000).len(), 2);
    bench.pass(Millis(16_999));
    assert_eq!(bench.lease_of("a"), LeaseState::Ending);
    bench.pass(Millis(1));
    assert_eq!(bench.lease_of("a"), LeaseState::Fenced);

    let mut bench = three();
    bench.guarded(protected("web", &json!({})), "a");
    bench.disconnect("a");
    bench.pass(LEASE);
    bench.withhold(60_000);
    bench.pass(Millis(60_000 + 5_000));
    assert_eq!(
        bench.lease_of("a"),
        LeaseState::Ending,
        "asked for too long ago"
    );
}

#[test]
fn a_coordinator_that_starts_takes_every_lease_for_a_full_one() {
    let mut bench = three();
    bench.guarded(protected("web", &json!({})), "a");
    bench.pass(Millis(3_600_000));
    bench.restart();
    bench.connect("b", 1024, vec![]);
    bench.connect("c", 1024, vec![]);
    assert_eq!(bench.lease_of("a"), LeaseState::Held);
    bench.pass(Millis(LEASE.0 - 1));
    assert!(bench.withhold(0).is_empty());
    bench.pass(Millis(1));
    assert_eq!(bench.withhold(0), ["b", "c"]);
    bench.pass(MARGIN);
    assert_eq!(bench.lease_of("a"), LeaseState::Fenced);
}

#[test]
fn a_restart_in_between_finishes_the_fail_over() {
    let mut bench = three();
    let vm = bench.guarded(protected("web", &json!({ "restart_delay": 10_000 })), "a");
    lose(&mut bench, "a");
    assert!(bench.sent.is_empty(), "the delay");
    bench.restart();
    bench.connect("b", 1024, vec![]);
    bench.connect("c", 1024, vec![]);
    assert_eq!(bench.lease_of("a"), LeaseState::Fenced);
    bench.pass(Millis(10_000));
    assert_ne!(bench.finish_start(vm), "a");
}

#[test]
fn the_most_urgent_come_first_and_so_many_at_once() {
    let mut settings = settings();
    settings.limits.protection.restarts = 1;
    let mut bench = Bench::with(settings);
    bench.three();
    let low = bench.guarded(protected("low", &json!({ "priority": -1 })), "a");
    let high = bench.guarded(protected("high", &json!({ "priority": 9 })), "a");
    lose(&mut bench, "a");
    assert_eq!(bench.sent.len(), 1);
    bench.finish_start(high);
    bench.pass(Millis(2_000));
    bench.finish_start(low);
}

#[test]
fn a_vm_that_fits_nowhere_waits_and_says_so() {
    let mut bench = three();
    let spec = protected("web", &json!({ "disks": [{ "path": "/own.qcow2" }] }));
    let vm = bench.guarded(spec, "a");
    lose(&mut bench, "a");
    assert!(bench.sent.is_empty());
    let protection = bench.vm(vm).protection.unwrap();
    assert_eq!(protection.lost, Some(node("a")));
    assert!(
        protection.next.contains("does not fit on a"),
        "{}",
        protection.next
    );
    let stale = exited(&bench.vm(vm), 1, ExitReason::LeaseLost);
    bench.connect("a", 1024, vec![stale]);
    bench.pass(Millis(2_000));
    assert_eq!(bench.finish_start(vm), "a");
}

#[test]
fn a_vm_that_its_node_stopped_with_its_lease_is_started_again() {
    for exit in [ExitReason::LeaseLost, ExitReason::HostReboot] {
        let mut bench = three();
        let vm = bench.guarded(protected("web", &json!({})), "a");
        let plain = bench.running("plain", "a");
        let (view, other) = (bench.vm(vm), bench.vm(plain));
        let epoch = view.epoch.0;
        bench.say(
            "a",
            NodeMessage::Domain(exited(&other, other.epoch.0, exit.clone())),
        );
        assert!(bench.sent.is_empty(), "it is not protected");
        bench.say("a", NodeMessage::Domain(exited(&view, epoch, exit)));
        assert_eq!(bench.finish_start(vm), "a");
        assert_eq!(bench.vm(vm).protection.unwrap().lost, None);
    }
}

#[test]
fn a_start_that_fails_is_tried_again_later() {
    let mut bench = three();
    let vm = bench.guarded(protected("web", &json!({})), "a");
    lose(&mut bench, "a");
    let define = bench.asked();
    let refused = Problem::new(godwit_shared::model::codes::LEASE_LOST, "no lease");
    bench.reply(&define, Err(refused));
    assert!(bench.sent.is_empty());
    assert_eq!(bench.vm(vm).desired, RunState::Running);
    bench.pass(Millis(4_000));
    assert_ne!(bench.finish_start(vm), "a");
}

/// The source of a migration to `b` is lost in doubt: the VM, its migration, and
/// what is asked then.
fn lost_in_doubt(bench: &mut Bench) -> (VmId, MigrationId, Sent) {
    let spec = protected(
        "web",
        &json!({ "disks": [{ "path": "/s", "shared": true }] }),
    );
    let vm = bench.guarded(spec, "a");
    let (id, _) = bench.migrate(vm, Some("b")).unwrap();
    let migrate = bench.asked();
    bench.reply(&migrate, Ok(NodeReply::Done));
    let moving = bench.moving(id, MigrationPhase::InDoubt, 1);
    bench.say("a", NodeMessage::Migration(moving));
    lose(bench, "a");
    (vm, id, bench.asked())
}

#[test]
fn the_heir_of_a_migration_is_asked_before() {
    let mut bench = three();
    let (vm, id, question) = lost_in_doubt(&mut bench);
    assert_eq!(question.node, node("b"));
    assert!(matches!(&question.body, NodeRequest::Verdict(query) if query.epoch == Epoch(2)));
    assert!(
        bench.sent.is_empty(),
        "nothing is started before it has answered"
    );
    bench.reply(&question, Ok(NodeReply::Verdict(Verdict::Refused)));
    bench.finish_start(vm);
    let ended = bench.cluster.migration(id).unwrap();
    assert_eq!(ended.phase, MigrationPhase::Failed);
}

#[test]
fn an_heir_that_took_the_grant_has_the_vm() {
    let mut bench = three();
    let (vm, _, question) = lost_in_doubt(&mut bench);
    let view = bench.vm(vm);
    bench.reply(
        &question,
        Ok(NodeReply::Verdict(Verdict::Granted { running: true })),
    );
    bench.say(
        "b",
        NodeMessage::Domain(report(&view, DomainState::Running, 2)),
    );
    bench.pass(Millis(10_000));
    assert!(bench.sent.is_empty(), "{:?}", bench.sent);
    assert_eq!(bench.vm(vm).node.unwrap().as_str(), "b");
    assert_eq!(bench.vm(vm).protection.unwrap().lost, None);
}

fn with_agent() -> (Bench, VmId) {
    let mut settings = settings();
    settings.fence_agents.insert(node("a"));
    let mut bench = Bench::with(settings);
    bench.three();
    let vm = bench.guarded(protected("web", &json!({})), "a");
    bench.disconnect("a");
    bench.pass(Millis(7_999));
    assert!(bench.fencing.is_empty());
    bench.pass(Millis(1));
    assert_eq!(bench.fencing, [node("a")]);
    (bench, vm)
}

fn fenced(bench: &mut Bench, outcome: Result<(), Problem>) {
    let node = node("a");
    bench.step(Input::FenceEnded { node, outcome }).unwrap();
}

#[test]
fn a_fence_agents_word_is_faster_than_the_lease() {
    let (mut bench, vm) = with_agent();
    fenced(&mut bench, Ok(()));
    let lease = bench.cluster.node(&node("a")).unwrap().lease.unwrap();
    assert_eq!(lease.fenced, Some(FencedBy::Agent));
    assert_ne!(bench.finish_start(vm), "a");
}

#[test]
fn a_fence_agent_that_fails_changes_nothing_and_is_run_again() {
    let (mut bench, _) = with_agent();
    let problem = Problem::internal("no route to the management board");
    fenced(&mut bench, Err(problem));
    assert!(bench.kinds().contains(&"node.fence_failed"));
    bench.pass(Millis(12_000));
    assert_eq!(bench.withhold(0).len(), 2, "the lease ends as without it");
    bench.pass(MARGIN);
    assert_eq!(bench.lease_of("a"), LeaseState::Fenced);
    assert_eq!(bench.fencing.len(), 1, "nothing is left to fence");

    let (mut bench, _) = with_agent();
    fenced(&mut bench, Err(Problem::internal("busy")));
    bench.withhold(0);
    bench.disconnect("b");
    bench.disconnect("c");
    bench.pass(Millis(30_000));
    assert_eq!(bench.fencing.len(), 2);
}

#[test]
fn an_agent_is_not_believed_of_a_node_that_is_connected() {
    let (mut bench, vm) = with_agent();
    let view = bench.vm(vm);
    bench.connect("a", 1024, vec![report(&view, DomainState::Running, 1)]);
    fenced(&mut bench, Ok(()));
    assert_eq!(bench.lease_of("a"), LeaseState::Held);
    assert!(bench.kinds().contains(&"node.fence_failed"));
}

#[test]
fn a_node_that_is_connected_without_a_lease_gets_no_protected_vm() {
    let mut bench = three();
    let vm = bench.guarded(protected("web", &json!({})), "a");
    let view = bench.vm(vm);
    bench.pass(LEASE);
    for name in ["b", "c"] {
        bench.renew(name, None).unwrap();
    }
    assert_eq!(bench.lease_of("a"), LeaseState::Ending);
    let lost = exited(&view, view.epoch.0, ExitReason::LeaseLost);
    bench.say("a", NodeMessage::Domain(lost));
    let release = bench.asked();
    assert_eq!(release.node, node("a"), "it gives the domain up");
    bench.reply(&release, Ok(NodeReply::Done));
    bench.say("a", NodeMessage::DomainGone(vm));
    assert_ne!(bench.finish_start(vm), "a");
}

#[test]
fn a_node_that_was_removed_has_no_lease() {
    let mut bench = three();
    let node = node("c");
    bench
        .step(Input::RemoveNode { node: node.clone() })
        .unwrap();
    assert!(!bench.cluster.records.leases.contains_key(&node));
    bench.pass(LEASE);
    assert!(bench.renew("a", None).is_some());
    let grant = bench.renew("a", None).unwrap();
    assert_eq!(grant.circle.members.len(), 2, "nor a voice");
}

#[test]
fn a_guest_that_may_have_ended_with_its_target_is_started_anew() {
    let mut bench = three();
    let shared = json!({ "disks": [{ "path": "/s", "shared": true }] });
    let vm = bench.guarded(protected("web", &shared), "a");
    let (id, _) = bench.migrate(vm, Some("b")).unwrap();
    let migrate = bench.asked();
    bench.reply(&migrate, Ok(NodeReply::Done));
    let moving = bench.moving(id, MigrationPhase::InDoubt, 1);
    bench.say("a", NodeMessage::Migration(moving));
    let query = VerdictQuery {
        migration: id,
        vm,
        target: node("b"),
        epoch: Epoch(2),
    };
    bench.disconnect("b");
    bench.told.clear();
    bench.say("a", NodeMessage::AskVerdict(query.clone()));
    assert_eq!(bench.verdicts(), [None], "nobody knows");
    bench.pass(LEASE);
    bench.renew("a", None).unwrap();
    assert_eq!(bench.withhold(0).len(), 2, "the others are asked");
    bench.pass(MARGIN);
    assert_eq!(bench.lease_of("b"), LeaseState::Fenced);
    bench.told.clear();
    bench.say("a", NodeMessage::AskVerdict(query));
    let granted = Some(Verdict::Granted { running: true });
    assert_eq!(bench.verdicts(), [granted], "it ends its own");
    let ended = bench.moving(id, MigrationPhase::Completed, 2);
    bench.say("a", NodeMessage::DomainGone(vm));
    bench.say("a", NodeMessage::Migration(ended));
    assert_ne!(bench.finish_start(vm), "b");
    assert!(bench.vm(vm).epoch > Epoch(2));
}

impl Bench {
    /// The verdicts that were told.
    fn verdicts(&self) -> Vec<Option<Verdict>> {
        let told = self.told.iter();
        told.filter_map(|(_, message)| match message {
            CoordinatorMessage::Verdict { verdict, .. } => Some(*verdict),
            _ => None,
        })
        .collect()
    }
}
