//! Writes the seeds of the `frame` target: one stream for each message that a
//! fuzzer would take long to come by. `scripts/fuzz --seeds` runs it after a
//! change of the messages.

use std::path::Path;

use godwit_shared::model::{
    Epoch, LifecycleCommand, MigrationId, MigrationPolicy, NodeId, Problem, VmId, VmName, codes,
};
use godwit_shared::wire::codec::encode;
use godwit_shared::wire::document::Document;
use godwit_shared::wire::frame::frame;
use godwit_shared::wire::peer::{Prepare, SourceMessage, TargetMessage};
use godwit_shared::wire::roster::RosterMark;
use godwit_shared::wire::uplink::{
    ConsoleOpen, CoordinatorMessage, JoinRequest, Member, NodeHello, NodeMessage, NodeReply,
    NodeRequest, Verdict,
};
use godwit_shared::wire::version::{Answer, Offer, ProtocolVersion, Role};
use serde::Serialize;

const MIGRATION: MigrationId = MigrationId::from_u128(1);
const VM: VmId = VmId::from_u128(2);

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let seeds = std::env::args().nth(1).ok_or("name the seeds folder")?;
    let folder = Path::new(&seeds).join("frame");
    std::fs::create_dir_all(&folder)?;
    for (name, messages) in streams()? {
        // The input's first byte: pieces of seven bytes.
        let mut input = vec![7];
        for payload in messages {
            input.extend_from_slice(&frame(&payload)?);
        }
        std::fs::write(folder.join(name), input)?;
    }
    Ok(())
}

fn streams() -> Outcome<Vec<(&'static str, Vec<Vec<u8>>)>> {
    Ok(vec![
        ("opening", opening()?),
        ("node", node()?),
        ("coordinator", coordinator()?),
        ("source", source()?),
        ("target", target()?),
    ])
}

fn opening() -> Outcome<Vec<Vec<u8>>> {
    Ok(vec![
        bytes(&Offer::current(Role::Node, "godwit-node 0.1.0"))?,
        bytes(&Answer::Accepted(ProtocolVersion(1)))?,
        bytes(&JoinRequest {
            token: "t1".into(),
            secret: vec![1; 16],
            node: node_id("n1")?,
            csr: "-----BEGIN CERTIFICATE REQUEST-----".into(),
            address: "127.0.0.1:7441".into(),
        })?,
    ])
}

fn node() -> Outcome<Vec<Vec<u8>>> {
    Ok(vec![
        bytes(&NodeMessage::Hello(NodeHello {
            facts: document()?,
            domains: Vec::new(),
            migrations: Vec::new(),
        }))?,
        bytes(&NodeMessage::DomainGone(VM))?,
        bytes(&NodeMessage::Reply {
            request: 300,
            outcome: Ok(NodeReply::Rehearsal {
                blockers: vec![problem()],
                forecast: None,
            }),
        })?,
        bytes(&NodeMessage::Reply {
            request: 1,
            outcome: Err(problem()),
        })?,
    ])
}

fn coordinator() -> Outcome<Vec<Vec<u8>>> {
    let member = Member {
        node: node_id("n2")?,
        incarnation: 1,
        address: "[::1]:7441".into(),
    };
    Ok(vec![
        bytes(&CoordinatorMessage::Welcome {
            cluster: "godwit".into(),
            members: RosterMark::of(std::slice::from_ref(&member)),
        })?,
        request(NodeRequest::Define {
            vm: VM,
            spec: document()?,
            epoch: Epoch(1),
            machine: Some("pc-q35-7.2".into()),
        })?,
        request(NodeRequest::Command {
            vm: VM,
            command: LifecycleCommand::Start,
            epoch: Epoch(70_000),
        })?,
        request(NodeRequest::Migrate {
            migration: MIGRATION,
            vm: VM,
            target: member,
            policy: MigrationPolicy::default(),
            dry_run: false,
        })?,
        bytes(&ConsoleOpen {
            vm: VM,
            name: "web".parse::<VmName>().map_err(|error| error.message)?,
            scrollback: 4096,
        })?,
    ])
}

fn source() -> Outcome<Vec<Vec<u8>>> {
    Ok(vec![
        bytes(&SourceMessage::Prepare(Prepare {
            migration: MIGRATION,
            vm: VM,
            spec: document()?,
            epoch: Epoch(3),
            policy: MigrationPolicy::default(),
            dry_run: true,
            machine: "pc-q35-10.0".into(),
            accelerator: "tcg".into(),
            cpu_model: "qemu64".into(),
            qemu_version: "10.0.2".into(),
        }))?,
        bytes(&SourceMessage::Grant {
            migration: MIGRATION,
            epoch: Epoch(4),
            run: true,
        })?,
        bytes(&SourceMessage::Cancel {
            migration: MIGRATION,
            reason: problem(),
        })?,
    ])
}

fn target() -> Outcome<Vec<Vec<u8>>> {
    Ok(vec![
        bytes(&TargetMessage::Blocked {
            migration: MIGRATION,
            blockers: vec![problem(), problem()],
        })?,
        bytes(&TargetMessage::Verdict {
            migration: MIGRATION,
            verdict: Verdict::Granted { running: true },
        })?,
    ])
}

fn request(body: NodeRequest) -> Outcome<Vec<u8>> {
    bytes(&CoordinatorMessage::Request { request: 5, body })
}

fn bytes<T: Serialize>(message: &T) -> Outcome<Vec<u8>> {
    Ok(encode(message)?)
}

fn document() -> Outcome<Document> {
    let value = serde_json::json!({"name": "web", "memory": "256MiB"});
    Ok(Document::of(&value).map_err(|error| error.message)?)
}

fn node_id(name: &str) -> Outcome<NodeId> {
    Ok(name.parse::<NodeId>().map_err(|error| error.message)?)
}

fn problem() -> Problem {
    Problem::new(codes::BUSY, "another action is under way")
        .field("name")
        .value("web")
        .remedy("wait for it")
}
