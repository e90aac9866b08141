//! A scripted coordinator on loopback, for tests: a real endpoint with a CA of
//! its own, whose every word the test chooses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::Duration;

use godwit_shared::model::{AgentState, DomainReport, DomainState, Epoch, UnixMillis, VmId};
use godwit_shared::pki::{
    COORDINATOR_VALIDITY, ClusterCa, Identity, JoinSecret, JoinToken, KeyAndCsr, NODE_VALIDITY,
    NodeIdentity,
};
use godwit_shared::transport::{
    Connection, Endpoint, MessageReceiver, MessageSender, StreamKind, TransportOptions,
    TransportRuntime,
};
use godwit_shared::wire::roster::RosterMark;
use godwit_shared::wire::uplink::{CoordinatorMessage, Member, NodeHello, NodeMessage};

/// Longer than anything that goes well takes, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for something that has to happen.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it did not happen in time")
}

pub(crate) struct TestCoordinator {
    pub(crate) ca: ClusterCa,
    pub(crate) runtime: TransportRuntime,
    pub(crate) endpoint: Endpoint,
}

impl TestCoordinator {
    pub(crate) fn start() -> Self {
        let ca = ClusterCa::create().unwrap();
        let runtime = TransportRuntime::start(1).unwrap();
        let endpoint = open(&ca, &runtime, "127.0.0.1:0".parse().unwrap());
        Self {
            ca,
            runtime,
            endpoint,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    /// Closes and opens again at the same address, as a restarted daemon would.
    pub(crate) async fn restart(&mut self) {
        let address = self.address();
        self.endpoint.close().await;
        let unbound = Endpoint::joining(&self.runtime, options()).unwrap();
        self.endpoint = unbound;
        // The old socket closes when quinn's last task has ended.
        self.endpoint = soon(async {
            loop {
                let identity = issue(&self.ca);
                match Endpoint::bind(&self.runtime, address, &identity, options()) {
                    Ok(endpoint) => break endpoint,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await;
    }

    /// An identity for a node, good for so long.
    pub(crate) fn node(&self, name: &str, valid: Duration) -> (Identity, NodeIdentity) {
        let me = NodeIdentity {
            node: name.parse().unwrap(),
            incarnation: 1,
        };
        let key = KeyAndCsr::generate(&me.node).unwrap();
        let signed = self.ca.sign_node_csr(key.csr_pem(), &me, valid).unwrap();
        let identity = key
            .into_identity(&signed.certificate_pem, self.ca.certificate_pem())
            .unwrap();
        (identity, me)
    }

    /// The chain that answers a request of a node.
    pub(crate) fn sign(&self, csr: &str, me: &NodeIdentity) -> String {
        let signed = self.ca.sign_node_csr(csr, me, NODE_VALIDITY).unwrap();
        signed.certificate_pem + self.ca.certificate_pem()
    }

    pub(crate) fn token(&self, coordinator: Vec<String>) -> JoinToken {
        JoinToken {
            coordinator,
            ca: self.ca.fingerprint(),
            id: "t1".into(),
            secret: JoinSecret::generate().unwrap(),
        }
    }

    /// The next session that a node opens, with its hello.
    pub(crate) async fn session(&self) -> Script {
        let connection = soon(self.endpoint.accept()).await.unwrap();
        let (kind, sender, receiver) = soon(connection.accept()).await.unwrap();
        assert_eq!(kind, StreamKind::Control);
        let mut receiver = receiver.into_messages();
        let hello = match soon(receiver.recv()).await.unwrap().unwrap() {
            NodeMessage::Hello(hello) => hello,
            other => panic!("no hello but {other:?}"),
        };
        Script {
            connection,
            sender: sender.into_messages(),
            receiver,
            hello,
        }
    }

    /// The next session, welcomed.
    pub(crate) async fn welcomed(&self) -> Script {
        let mut script = self.session().await;
        script.say(welcome(&[])).await;
        script
    }
}

/// One session, as the coordinator sees it.
pub(crate) struct Script {
    pub(crate) connection: Connection,
    pub(crate) sender: MessageSender<CoordinatorMessage>,
    pub(crate) receiver: MessageReceiver<NodeMessage>,
    pub(crate) hello: NodeHello,
}

impl Script {
    pub(crate) async fn say(&mut self, message: CoordinatorMessage) {
        soon(self.sender.send(&message)).await.unwrap();
    }

    pub(crate) async fn hear(&mut self) -> NodeMessage {
        soon(self.receiver.recv()).await.unwrap().unwrap()
    }
}

pub(crate) fn welcome(members: &[Member]) -> CoordinatorMessage {
    CoordinatorMessage::Welcome {
        cluster: "test".into(),
        members: RosterMark::of(members),
    }
}

pub(crate) fn domain(vm: u128, state: DomainState) -> DomainReport {
    DomainReport {
        vm: VmId::from_u128(vm),
        name: "a".parse().unwrap(),
        epoch: Epoch::FIRST,
        owner: true,
        state,
        since: UnixMillis(1),
        exit: None,
        problem: None,
        agent: AgentState::Absent,
        pid: None,
        migration: None,
        machine: None,
        accelerator: None,
        usage: None,
    }
}

pub(crate) fn options() -> TransportOptions {
    TransportOptions {
        accept_join: true,
        ..TransportOptions::default()
    }
}

fn open(ca: &ClusterCa, runtime: &TransportRuntime, address: SocketAddr) -> Endpoint {
    Endpoint::bind(runtime, address, &issue(ca), options()).unwrap()
}

fn issue(ca: &ClusterCa) -> Identity {
    ca.issue_coordinator(&[], COORDINATOR_VALIDITY).unwrap()
}
