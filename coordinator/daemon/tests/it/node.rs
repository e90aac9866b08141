//! A node that a test plays: it joins, says hello, and answers as it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use godwit_shared::model::capacity::EmulatorFacts;
use godwit_shared::model::spec::{Accelerator, Architecture};
use godwit_shared::model::{
    AgentState, Capacity, DomainReport, DomainState, Epoch, LifecycleCommand, MiB, NodeFacts,
    NodeId, Problem, UnixMillis, VmId,
};
use godwit_shared::pki::{Identity, JoinToken, KeyAndCsr, PeerIdentity};
use godwit_shared::transport::{
    CloseCode, Connection, Endpoint, MessageReceiver, MessageSender, StreamKind, TransportOptions,
    TransportRuntime,
};
use godwit_shared::wire::document::Document;
use godwit_shared::wire::uplink::{
    CoordinatorMessage, JoinAnswer, JoinRequest, NodeHello, NodeMessage, NodeReply, NodeRequest,
};

use super::running::{PATIENCE, Running};

/// Sends a join request and gives the answer.
pub async fn join_request(
    token: &JoinToken,
    node: &str,
) -> (KeyAndCsr, Result<JoinAnswer, String>) {
    let node: NodeId = node.parse().unwrap();
    let key = KeyAndCsr::generate(&node).unwrap();
    let request = JoinRequest {
        token: token.id.clone(),
        secret: token.secret.reveal().to_vec(),
        node,
        csr: key.csr_pem().to_owned(),
        address: "127.0.0.1:7441".into(),
    };
    let answer = send_join(token, &request).await;
    (key, answer)
}

pub async fn send_join(token: &JoinToken, request: &JoinRequest) -> Result<JoinAnswer, String> {
    let runtime = TransportRuntime::start(1).unwrap();
    let endpoint = Endpoint::joining(&runtime, TransportOptions::default()).unwrap();
    let address: SocketAddr = token.coordinator[0].parse().unwrap();
    let connection = endpoint
        .connect_join(address, token.ca)
        .await
        .map_err(|error| error.to_string())?;
    let (sender, receiver) = connection.open(StreamKind::Control).await.unwrap();
    let mut sender = sender.into_messages::<JoinRequest>();
    sender
        .send(request)
        .await
        .map_err(|error| error.to_string())?;
    let answer = receiver.into_messages::<JoinAnswer>().recv().await;
    answer
        .map_err(|error| error.to_string())?
        .ok_or_else(|| "no answer".into())
}

/// Joins and gives the identity.
pub async fn join(cluster: &Running, node: &str) -> Identity {
    let token = cluster.token().await;
    let (key, answer) = join_request(&token, node).await;
    let JoinAnswer::Joined { chain, .. } = answer.unwrap() else {
        panic!("refused")
    };
    let (leaf, ca) = chain.split_at(chain.rfind("-----BEGIN").unwrap());
    key.into_identity(leaf, ca).unwrap()
}

/// A node with a session.
pub struct Node {
    pub connection: Connection,
    sender: MessageSender<NodeMessage>,
    receiver: MessageReceiver<CoordinatorMessage>,
    endpoint: Endpoint,
    _runtime: TransportRuntime,
}

impl Node {
    /// Joins, connects and is welcomed.
    pub async fn join(cluster: &Running, name: &str) -> (Self, Identity) {
        let identity = join(cluster, name).await;
        let node = Self::connect(cluster, &identity, Vec::new()).await;
        (node, identity)
    }

    /// Connects with those domains and is welcomed.
    pub async fn connect(
        cluster: &Running,
        identity: &Identity,
        domains: Vec<DomainReport>,
    ) -> Self {
        let address = cluster.coordinator.as_ref().unwrap().cluster;
        let mut node = Self::open(address, identity, hello(domains)).await;
        assert!(matches!(
            node.next().await,
            CoordinatorMessage::Welcome { .. }
        ));
        node
    }

    /// Connects and says hello.
    pub async fn open(address: SocketAddr, identity: &Identity, hello: NodeHello) -> Self {
        let runtime = TransportRuntime::start(1).unwrap();
        let endpoint = Endpoint::client(&runtime, identity, TransportOptions::default()).unwrap();
        let connection = endpoint
            .connect(address, &PeerIdentity::Coordinator)
            .await
            .unwrap();
        let (sender, receiver) = connection.open(StreamKind::Control).await.unwrap();
        let (mut sender, receiver) = (sender.into_messages(), receiver.into_messages());
        sender.send(&NodeMessage::Hello(hello)).await.unwrap();
        Self {
            connection,
            sender,
            receiver,
            endpoint,
            _runtime: runtime,
        }
    }

    /// The next message.
    pub async fn next(&mut self) -> CoordinatorMessage {
        let message = tokio::time::timeout(PATIENCE, self.receiver.recv()).await;
        message
            .expect("a message in time")
            .unwrap()
            .expect("a message")
    }

    /// The next request; what is told between is passed over.
    pub async fn request(&mut self) -> (u64, NodeRequest) {
        loop {
            if let CoordinatorMessage::Request { request, body } = self.next().await {
                return (request, body);
            }
        }
    }

    pub async fn say(&mut self, message: NodeMessage) {
        self.sender.send(&message).await.unwrap();
    }

    pub async fn reply(&mut self, request: u64, outcome: Result<NodeReply, Problem>) {
        self.say(NodeMessage::Reply { request, outcome }).await;
    }

    /// Takes the definition and the start of a VM, and gives what runs then.
    pub async fn start_one(&mut self) -> DomainReport {
        let mut report = self.define_one().await;
        let (request, body) = self.request().await;
        let NodeRequest::Command {
            vm,
            command: LifecycleCommand::Start,
            epoch,
        } = body
        else {
            panic!("{body:?}");
        };
        assert_eq!(vm, report.vm);
        report = DomainReport {
            state: DomainState::Running,
            epoch,
            pid: Some(4242),
            ..report
        };
        self.reply(request, Ok(NodeReply::Domain(report.clone())))
            .await;
        report
    }

    /// Takes the definition of a VM.
    pub async fn define_one(&mut self) -> DomainReport {
        let (request, body) = self.request().await;
        let NodeRequest::Define {
            vm, spec, epoch, ..
        } = body
        else {
            panic!("{body:?}")
        };
        let spec: godwit_shared::model::VmSpec = spec.read("spec").unwrap();
        let report = stopped(vm, spec.name.as_str(), epoch);
        self.reply(request, Ok(NodeReply::Domain(report.clone())))
            .await;
        report
    }

    /// Goes away as a killed process does: without a word.
    pub async fn leave(self) {
        self.connection.close(CloseCode::SHUTDOWN, "bye");
        self.endpoint.close().await;
    }
}

pub fn hello(domains: Vec<DomainReport>) -> NodeHello {
    NodeHello {
        facts: Document::of(&facts()).unwrap(),
        domains,
        migrations: Vec::new(),
    }
}

fn facts() -> NodeFacts {
    let emulator = EmulatorFacts {
        architecture: Architecture::X86_64,
        path: "/usr/bin/qemu-system-x86_64".into(),
        version: "10.0.2".into(),
        accelerators: vec![Accelerator::Tcg],
        machines: vec!["pc-q35-10.0".into()],
        machine_aliases: BTreeMap::from([("q35".into(), "pc-q35-10.0".into())]),
        cpus: Vec::new(),
    };
    NodeFacts {
        software: "0.1.0".into(),
        hostname: "host".into(),
        boot_id: "boot".into(),
        kernel: "6.1".into(),
        capacity: Capacity {
            vcpus: 512,
            memory: MiB(1 << 20),
        },
        emulators: vec![emulator],
        labels: BTreeMap::new(),
        address: "127.0.0.1:7441".into(),
        ..NodeFacts::default()
    }
}

pub fn stopped(vm: VmId, name: &str, epoch: Epoch) -> DomainReport {
    DomainReport {
        vm,
        name: name.parse().unwrap(),
        epoch,
        owner: true,
        state: DomainState::Stopped,
        since: UnixMillis(1),
        exit: None,
        problem: None,
        agent: AgentState::Disconnected,
        pid: None,
        migration: None,
        machine: Some("pc-q35-10.0".into()),
        accelerator: Some("tcg".into()),
        usage: None,
    }
}
