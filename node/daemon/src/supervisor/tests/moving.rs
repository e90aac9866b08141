//! What a migration does with domains, over a unix socket between two nodes.

use godwit_node_logic::handoff::{HandoffRecord, IncomingRecord, IncomingStage};
use godwit_shared::model::{DomainState, ExitReason, LifecycleCommand as C, MigrationId, codes};
use serde_json::json;

use super::*;
use crate::domain::DomainActor;
use crate::domain::messages::{
    Activate, BeginOutgoing, DiscardIncoming, DomainSignal, EndOutgoing, MarkInHandoff,
    OutgoingEnd, OutgoingFacts, RecordHandoff, Subscribe,
};
use crate::supervisor::messages::{CheckIncoming, IncomingRequest, Lookup, StartIncoming};

const MIGRATION: MigrationId = MigrationId::from_u128(77);

fn request(vm: VmId, facts: OutgoingFacts) -> IncomingRequest {
    IncomingRequest {
        migration: MIGRATION,
        source: "source".parse().unwrap(),
        vm,
        spec: facts.spec,
        epoch: facts.epoch,
        machine: facts.machine,
        accelerator: facts.accelerator,
        cpu_model: facts.cpu_model,
        images: Vec::new(),
    }
}

struct Move {
    vm: VmId,
    source: Node,
    target: Node,
    leaving: Addr<DomainActor>,
    arriving: Addr<DomainActor>,
}

/// Both sides stand, and everything of the guest has arrived.
async fn loaded() -> Move {
    let (source, target) = (Node::new().await, Node::new().await);
    let vm = source.running(1).await;
    let leaving = source
        .supervisor
        .send(Lookup { vm })
        .await
        .unwrap()
        .unwrap();
    let migration = MIGRATION;
    let facts = leaving
        .send(BeginOutgoing { migration })
        .await
        .unwrap()
        .unwrap();
    assert!(facts.run);
    assert_eq!(
        source.ask(vm, C::Pause).await.unwrap_err().code,
        codes::BUSY
    );
    let request = request(vm, facts);
    let check = CheckIncoming(request.clone());
    assert_eq!(target.supervisor.send(check).await.unwrap(), []);
    let arriving = target
        .supervisor
        .send(StartIncoming(request))
        .await
        .unwrap()
        .unwrap();
    let report = target.bus.domain(vm).unwrap();
    assert_eq!((report.state, report.owner), (DomainState::Incoming, false));
    assert_eq!(report.migration, Some(MIGRATION));
    let (mut sent, mut got) = (
        leaving.send(Subscribe).await.unwrap(),
        arriving.send(Subscribe).await.unwrap(),
    );
    let events = json!({"capabilities": [{"capability": "events", "state": true}]});
    execute(&leaving, "migrate-set-capabilities", events.clone()).await;
    execute(&arriving, "migrate-set-capabilities", events).await;
    let uri = json!({"uri": format!("unix:{}", target.folder.path().join("m").display())});
    execute(&arriving, "migrate-incoming", uri.clone()).await;
    execute(&leaving, "migrate", uri).await;
    migration_is(&mut sent, "completed").await;
    migration_is(&mut got, "completed").await;
    Move {
        vm,
        source,
        target,
        leaving,
        arriving,
    }
}

#[actix::test]
async fn a_guest_moves_and_nothing_of_it_stays() {
    let moved = loaded().await;
    let vm = moved.vm;
    moved.leaving.send(MarkInHandoff).await.unwrap().unwrap();
    let report = moved.source.bus.domain(vm).unwrap();
    assert_eq!(
        (report.state, report.owner),
        (DomainState::InHandoff, false)
    );
    let epoch = Epoch(2);
    let activate = Activate { epoch, run: true };
    moved.arriving.send(activate).await.unwrap().unwrap();
    moved.arriving.send(activate).await.unwrap().unwrap();
    let report = moved.target.bus.domain(vm).unwrap();
    assert_eq!((report.state, report.epoch), (DomainState::Running, epoch));
    assert!(report.owner);
    let mut signals = moved.leaving.send(Subscribe).await.unwrap();
    let retire = EndOutgoing(OutgoingEnd::Retire { epoch });
    moved.leaving.send(retire).await.unwrap().unwrap();
    let mut last = None;
    while let Some(signal) = signals.recv().await {
        last = Some(signal);
    }
    assert_eq!(last, Some(DomainSignal::Exited(ExitReason::Migrated)));
    assert_eq!(moved.source.bus.domain(vm), None);
    assert!(moved.source.files("r").is_empty());
    assert!(moved.source.files("s/domains").is_empty());
    // It is an ordinary domain now, and may come back as soon as its record has
    // no need to tell of the arrival any more.
    moved.target.ask(vm, C::Pause).await.unwrap();
    let arriving = moved.arriving.clone();
    let migration = MigrationId::from_u128(78);
    let early = arriving.send(BeginOutgoing { migration }).await.unwrap();
    assert_eq!(early.unwrap_err().code, codes::BUSY);
    let arrival = IncomingRecord {
        migration: MIGRATION,
        source: "source".parse().unwrap(),
        epoch,
        images: Vec::new(),
        stage: IncomingStage::Running { complete: true },
    };
    let marked = RecordHandoff {
        migration: MIGRATION,
        record: Some(HandoffRecord::Incoming(arrival)),
        durable: false,
    };
    arriving.send(marked).await.unwrap().unwrap();
    let facts = arriving
        .send(BeginOutgoing { migration })
        .await
        .unwrap()
        .unwrap();
    assert!(!facts.run, "its operator paused it");
    let back = StartIncoming(request(vm, facts));
    let back = moved.source.supervisor.send(back).await.unwrap().unwrap();
    back.send(DiscardIncoming).await.unwrap().unwrap();
    assert!(moved.source.files("s/domains").is_empty());
    let stay = EndOutgoing(OutgoingEnd::Stay { epoch });
    arriving.send(stay).await.unwrap().unwrap();
    moved.target.ask(vm, C::Stop).await.unwrap();
}

#[actix::test]
async fn a_refused_grant_leaves_the_guest_at_its_source() {
    let moved = loaded().await;
    moved.leaving.send(MarkInHandoff).await.unwrap().unwrap();
    moved.arriving.send(DiscardIncoming).await.unwrap().unwrap();
    assert_eq!(moved.target.bus.domain(moved.vm), None);
    assert!(moved.target.files("s/domains").is_empty());
    assert!(moved.target.files("r").is_empty());
    execute(&moved.leaving, "cont", serde_json::Value::Null).await;
    let epoch = Epoch(3);
    let stay = EndOutgoing(OutgoingEnd::Stay { epoch });
    moved.leaving.send(stay).await.unwrap().unwrap();
    let report = moved.source.bus.domain(moved.vm).unwrap();
    assert_eq!((report.state, report.epoch), (DomainState::Running, epoch));
    assert!(report.owner && report.migration.is_none());
    moved.source.ask(moved.vm, C::Stop).await.unwrap();
}

#[actix::test]
async fn a_receiver_that_cannot_start_leaves_nothing() {
    let target = Node::new().await;
    let spec = VmSpec::parse(
        "name: a\nmemory: 32\nboot: {kernel: /nonexistent}\n",
        SpecFormat::Yaml,
    );
    let facts = OutgoingFacts {
        spec: spec.unwrap(),
        epoch: Epoch::FIRST,
        machine: "pc-q35-99.9".into(),
        accelerator: "tcg".into(),
        cpu_model: "qemu64".into(),
        qemu_version: "10.0.2".into(),
        run: true,
        disks: Vec::new(),
    };
    let vm = VmId::from_u128(5);
    let blockers = CheckIncoming(request(vm, facts.clone()));
    let blockers = target.supervisor.send(blockers).await.unwrap();
    assert_eq!(blockers.len(), 1, "{blockers:?}");
    assert_eq!(blockers[0].field.as_deref(), Some("boot.kernel"));
    let refused = target
        .supervisor
        .send(StartIncoming(request(vm, facts.clone())));
    let problem = refused.await.unwrap().unwrap_err();
    assert_eq!(problem.code, codes::QEMU_START);
    assert_eq!(target.bus.domain(vm), None);
    assert!(target.files("s/domains").is_empty());
    let mut large = facts;
    large.spec.memory = MiB(1 << 20);
    let refused = target.supervisor.send(StartIncoming(request(vm, large)));
    let problem = refused.await.unwrap().unwrap_err();
    assert_eq!(problem.code, codes::INSUFFICIENT_RESOURCES);
    assert!(target.files("s/domains").is_empty());
    assert!(
        target
            .supervisor
            .send(Lookup { vm })
            .await
            .unwrap()
            .is_none()
    );
}

#[actix::test]
async fn what_is_being_received_is_left_alone_after_a_restart() {
    let mut target = Node::new().await;
    let vm = VmId::from_u128(5);
    let source = Node::new().await;
    let running = source.running(5).await;
    let leaving = source
        .supervisor
        .send(Lookup { vm: running })
        .await
        .unwrap()
        .unwrap();
    let migration = MIGRATION;
    let facts = leaving
        .send(BeginOutgoing { migration })
        .await
        .unwrap()
        .unwrap();
    let start = StartIncoming(request(vm, facts));
    target.supervisor.send(start).await.unwrap().unwrap();
    let pid = target.bus.domain(vm).unwrap().pid;
    target.restart().await;
    let report = target.bus.domain(vm).unwrap();
    assert_eq!((report.state, report.pid), (DomainState::Incoming, pid));
    let found = target
        .supervisor
        .send(Lookup { vm })
        .await
        .unwrap()
        .unwrap();
    found.send(DiscardIncoming).await.unwrap().unwrap();
    assert!(target.files("s/domains").is_empty());
    let stay = EndOutgoing(OutgoingEnd::Stay {
        epoch: Epoch::FIRST,
    });
    leaving.send(stay).await.unwrap().unwrap();
    source.ask(running, C::Stop).await.unwrap();
}
