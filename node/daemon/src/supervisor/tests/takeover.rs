//! Daemons end and come back; guests go on.

use godwit_shared::model::{DomainState, ExitReason, LifecycleCommand as C};
use rustix::process::Signal;

use super::*;
use crate::domain::DomainActor;
use crate::migration::ended_before;
use crate::supervisor::messages::Lookup;

#[actix::test]
async fn domains_run_on_under_the_next_daemon() {
    let mut node = Node::new().await;
    let (a, b, stopped) = (
        node.running(1).await,
        node.running(2).await,
        node.define(3, "").await,
    );
    node.ask(b, C::Pause).await.unwrap();
    let before = [a, b, stopped].map(|vm| node.bus.domain(vm).unwrap());
    node.restart().await;
    let after = [a, b, stopped].map(|vm| node.bus.domain(vm).unwrap());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(
            (after.pid, after.state, after.since, after.owner),
            (before.pid, before.state, before.since, before.owner),
            "the same process, in the same state since the same time"
        );
    }
    // They obey, and their ends are seen.
    node.ask(b, C::Resume).await.unwrap();
    node.ask(a, C::Pause).await.unwrap();
    signal(&after[0], Signal::KILL);
    let Some(ExitReason::Crashed { .. }) = node.stopped(a).await.exit else {
        panic!();
    };
    assert_eq!(
        node.ask(b, C::Stop).await.unwrap().exit,
        Some(ExitReason::Stopped)
    );
}

#[actix::test]
async fn what_ended_meanwhile_is_told_apart() {
    let mut node = Node::new().await;
    let vm = node.running(1).await;
    let report = node.bus.domain(vm).unwrap();
    node.supervisor.send(End).await.unwrap();
    kill(&report);
    node.restart_after_end().await;
    // A migration that follows it from here on hears of no end any more: it asks.
    assert!(ended_before(&node.domain(vm).await).await.is_some());
    let Some(ExitReason::Crashed { detail }) = node.bus.domain(vm).unwrap().exit else {
        panic!();
    };
    assert!(detail.contains("not running"), "{detail}");
    // Another boot: the process id in the record means nothing any more.
    node.ask(vm, C::Start).await.unwrap();
    assert_eq!(ended_before(&node.domain(vm).await).await, None);
    let report = node.bus.domain(vm).unwrap();
    node.supervisor.send(End).await.unwrap();
    let file = node
        .folder
        .path()
        .join(format!("s/domains/{vm}/record.json"));
    let boot = crate::host::boot_id().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&boot, "another-boot")).unwrap();
    node.restart_after_end().await;
    assert_eq!(
        node.bus.domain(vm).unwrap().exit,
        Some(ExitReason::HostReboot)
    );
    signal(&report, Signal::KILL);
}

#[actix::test]
async fn a_start_that_was_cut_short_is_finished() {
    let mut node = Node::new().await;
    let vm = node.running(1).await;
    let pid = node.bus.domain(vm).unwrap().pid;
    node.supervisor.send(End).await.unwrap();
    // As if the daemon had ended between starting QEMU and writing its id down.
    let file = node
        .folder
        .path()
        .join(format!("s/domains/{vm}/record.json"));
    let text = std::fs::read_to_string(&file).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    record["run"]["process"] = serde_json::Value::Null;
    std::fs::write(&file, record.to_string()).unwrap();
    node.restart_after_end().await;
    let report = node.bus.domain(vm).unwrap();
    assert_eq!((report.pid, report.state), (pid, DomainState::Running));
    node.ask(vm, C::Stop).await.unwrap();
}

#[actix::test]
async fn a_damaged_record_stops_no_other_domain() {
    let mut node = Node::new().await;
    let (bad, good) = (node.define(1, "").await, node.running(2).await);
    let file = |name: &str| node.folder.path().join(format!("s/domains/{bad}/{name}"));
    std::fs::write(file("record.json"), "{\"layout\": 1, \"vm\":").unwrap();
    let aside = file("record.json.corrupt");
    node.restart().await;
    assert_eq!(node.bus.domain(good).unwrap().state, DomainState::Running);
    assert_eq!(node.bus.domain(bad), None);
    assert!(aside.exists());
    node.ask(good, C::Stop).await.unwrap();
}

#[actix::test]
async fn a_silent_qemu_holds_up_no_takeover() {
    let mut node = Node::new().await;
    let (hung, good) = (node.running(1).await, node.running(2).await);
    let report = node.bus.domain(hung).unwrap();
    signal(&report, Signal::STOP);
    node.restart().await;
    assert_eq!(node.bus.domain(good).unwrap().state, DomainState::Running);
    assert_eq!(
        node.bus.domain(hung).unwrap().state,
        DomainState::Unresponsive
    );
    signal(&report, Signal::CONT);
    node.until(hung, |report| report.state == DomainState::Running)
        .await;
    node.ask(hung, C::Stop).await.unwrap();
    node.ask(good, C::Stop).await.unwrap();
}

#[actix::test]
async fn an_actor_that_a_fault_ended_is_replaced() {
    let node = Node::new().await;
    let vm = node.running(1).await;
    let pid = node.bus.domain(vm).unwrap().pid;
    let lookup = crate::supervisor::messages::Lookup { vm };
    let actor = node.supervisor.send(lookup).await.unwrap().unwrap();
    actor.send(crate::domain::Vanish).await.unwrap();
    while actor.connected() {
        tokio::task::yield_now().await;
    }
    node.ask(vm, C::Pause).await.unwrap_err();
    let report = node
        .until(vm, |report| report.state == DomainState::Running)
        .await;
    assert_eq!(report.pid, pid);
    node.ask(vm, C::Stop).await.unwrap();
}

impl Node {
    async fn restart_after_end(&mut self) {
        self.bus = NodeBus::new();
        self.supervisor = Self::supervisor(&self.folder, &self.bus).await;
        self.supervisor.send(Restored).await.unwrap();
    }
}

impl Node {
    async fn domain(&self, vm: VmId) -> Addr<DomainActor> {
        let found = self.supervisor.send(Lookup { vm }).await;
        found.unwrap().unwrap()
    }
}
