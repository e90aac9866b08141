//! A node's uplink against a scripted coordinator, with a stand-in for the
//! actors that serve its requests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod console;
mod requests;
mod sessions;

use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use godwit_shared::model::{
    DomainReport, DomainState, Epoch, LifecycleCommand, NodeFacts, Problem, VmId,
};
use godwit_shared::pki::{Identity, NODE_VALIDITY};
use godwit_shared::transport::{Endpoint, TransportOptions};
use godwit_shared::wire::uplink::{
    CoordinatorMessage, NodeMessage, NodeReply, NodeRequest, Verdict,
};
use tokio::sync::{mpsc, watch};

use super::*;
use crate::bus::NodeBus;
use crate::identity::IdentityStore;
use crate::migration::{
    CancelMigration, QueryVerdict, ResolveMigration, StartMigration, TuneMigration, WatchMigration,
};
use crate::supervisor::messages::{AttachConsole, Command, Console, Define, ReadLog};
use crate::testing::{TestCoordinator, domain, soon};

/// This VM's commands never end.
const HUNG: u128 = 13;

/// Stands in for the supervisor and the migration manager.
#[derive(Default)]
struct Stub {
    consoles: Option<mpsc::UnboundedSender<ConsoleEnds>>,
}

/// The guest's side of a console.
struct ConsoleEnds {
    output: mpsc::Sender<Bytes>,
    input: mpsc::Receiver<Bytes>,
}

impl Actor for Stub {
    type Context = Context<Self>;
}

macro_rules! stub {
    ($message:ty, $result:ty, |$stub:ident, $got:ident| $body:expr) => {
        impl Handler<$message> for Stub {
            type Result = $result;
            fn handle(&mut self, $got: $message, _: &mut Context<Self>) -> $result {
                let $stub = self;
                $body
            }
        }
    };
}

stub!(Define, Result<DomainReport, Problem>, |_s, got| Ok(DomainReport {
    name: got.spec.name.clone(),
    ..domain(1, DomainState::Stopped)
}));
stub!(
    Command,
    ResponseFuture<Result<DomainReport, Problem>>,
    |_s, got| Box::pin(async move {
        if got.vm == VmId::from_u128(HUNG) {
            std::future::pending::<()>().await;
        }
        Ok(domain(1, DomainState::Running))
    })
);
stub!(ReadLog, Result<String, Problem>, |_s, got| Ok("x".repeat(got.lines as usize)));
stub!(StartMigration, Result<NodeReply, Problem>, |_s, got| Err(Problem::not_found("VM", got.vm)));
stub!(CancelMigration, Result<(), Problem>, |_s, _got| Ok(()));
stub!(TuneMigration, Result<(), Problem>, |_s, _got| Ok(()));
stub!(ResolveMigration, Result<(), Problem>, |_s, _got| Ok(()));
stub!(WatchMigration, (), |_s, _got| ());
stub!(QueryVerdict, Option<Verdict>, |_s, _got| Some(
    Verdict::Refused
));
stub!(AttachConsole, Result<Console, Problem>, |stub, got| {
    let Some(consoles) = &stub.consoles else {
        return Err(Problem::not_found("VM", got.vm));
    };
    let (output, from_guest) = mpsc::channel(1);
    let (to_guest, input) = mpsc::channel(1);
    consoles.send(ConsoleEnds { output, input }).unwrap();
    let backlog = Bytes::from(format!("scrollback {}", got.scrollback));
    Ok(Console { backlog, output: from_guest, input: to_guest })
});

fn services(stub: &Addr<Stub>) -> Services {
    Services {
        define: stub.clone().recipient(),
        command: stub.clone().recipient(),
        console: stub.clone().recipient(),
        log: stub.clone().recipient(),
        migrate: stub.clone().recipient(),
        cancel: stub.clone().recipient(),
        tune: stub.clone().recipient(),
        resolve: stub.clone().recipient(),
        watch: stub.clone().recipient(),
        verdict: stub.clone().recipient(),
        withhold: None,
    }
}

/// A node that serves a coordinator.
struct TestNode {
    bus: NodeBus,
    handle: UplinkHandle,
    state: watch::Receiver<UplinkState>,
    identity: IdentityStore,
    dir: tempfile::TempDir,
    stub: Addr<Stub>,
}

impl TestNode {
    fn start(coordinator: &TestCoordinator) -> Self {
        let addresses = vec![HostPort::of(coordinator.address())];
        let (identity, _) = coordinator.node("n1", NODE_VALIDITY);
        Self::with(coordinator, addresses, identity, Stub::default())
    }

    fn with(
        coordinator: &TestCoordinator,
        addresses: Vec<HostPort>,
        identity: Identity,
        stub: Stub,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = TransportOptions::default();
        let any = "127.0.0.1:0".parse().unwrap();
        let endpoint = Endpoint::bind(&coordinator.runtime, any, &identity, options).unwrap();
        let me = godwit_shared::pki::NodeIdentity {
            node: "n1".parse().unwrap(),
            incarnation: 1,
        };
        let path = dir.path().join("node.pem");
        let identity = IdentityStore::new(path, identity, me, endpoint.clone());
        let bus = NodeBus::new();
        let uplink = Uplink::new(UplinkParams {
            endpoint,
            identity: identity.clone(),
            coordinator: addresses,
            facts: NodeFacts {
                hostname: "h1".into(),
                ..NodeFacts::default()
            },
            bus: bus.clone(),
            members_file: dir.path().join("members.json"),
            pace: Pace {
                first: Duration::from_millis(10),
                most: Duration::from_millis(50),
                refused: Duration::from_millis(100),
            },
            lease: None,
        });
        let state = uplink.state();
        let uplink = uplink.start();
        let stub = stub.start();
        let serve = uplink.send(Serve(services(&stub)));
        actix::spawn(async move { serve.await.unwrap().unwrap() });
        Self {
            bus,
            handle: UplinkHandle::from(&uplink),
            state,
            identity,
            dir,
            stub,
        }
    }

    async fn state(&mut self, wanted: impl FnMut(&UplinkState) -> bool) -> UplinkState {
        soon(self.state.wait_for(wanted)).await.unwrap().clone()
    }
}

fn command(request: u64, vm: u128) -> CoordinatorMessage {
    let body = NodeRequest::Command {
        vm: VmId::from_u128(vm),
        command: LifecycleCommand::Start,
        epoch: Epoch::FIRST,
    };
    CoordinatorMessage::Request { request, body }
}

fn reply(message: NodeMessage) -> (u64, Result<NodeReply, Problem>) {
    match message {
        NodeMessage::Reply { request, outcome } => (request, outcome),
        other => panic!("no reply but {other:?}"),
    }
}
