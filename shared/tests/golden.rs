//! The bytes of every message, pinned.
//!
//! Daemons of two releases have to understand each other, and the format knows
//! fields and variants by position alone. So one value of every kind of message
//! is encoded here and compared with the bytes that the first release sent
//! (`snapshots/`). When a line changes, the protocol has changed: raise the
//! protocol version and keep the old form readable, never just accept the
//! snapshot. A new kind at the end of an enum adds a line and changes none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Debug;

use godwit_shared::model::spec::DiskFormat;
use godwit_shared::model::{
    AgentState, Bytes, BytesPerSec, Capacity, DiskCopy, DomainReport, DomainState, DomainUsage,
    DoubtDecision, Epoch, ExitReason, Forecast, LifecycleCommand, MiB, MigrationFailure,
    MigrationFigures, MigrationId, MigrationPhase, MigrationPolicy, MigrationProgress,
    MigrationTuning, Millis, NodeFacts, Postcopy, Problem, Span, TimeoutAction, UnixMillis, VmId,
    VmSpec, codes,
};
use godwit_shared::wire::codec::{decode, encode};
use godwit_shared::wire::document::Document;
use godwit_shared::wire::frame::MAX_FRAME;
use godwit_shared::wire::lease::{Circle, LeaseAnswer, LeaseAsk, LeaseGrant, LeaseRequest};
use godwit_shared::wire::peer::{DiskPlan, Prepare, SourceMessage, TargetMessage};
use godwit_shared::wire::roster::RosterMark;
use godwit_shared::wire::uplink::{
    ConsoleAnswer, ConsoleOpen, CoordinatorMessage, JoinAnswer, JoinRequest, LogKind, Member,
    MigrationReport, NodeHello, NodeMessage, NodeReply, NodeRequest, Verdict, VerdictQuery,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[test]
fn uplink_messages_keep_their_bytes() {
    let mut lines = Lines::default();
    for message in node_messages() {
        lines.pin(node_message_kind(&message), &message);
    }
    for message in coordinator_messages() {
        lines.pin(coordinator_message_kind(&message), &message);
    }
    insta::assert_snapshot!("uplink", lines.0);
}

#[test]
fn the_parts_of_uplink_messages_keep_their_bytes() {
    let mut lines = Lines::default();
    for request in node_requests() {
        lines.pin(node_request_kind(&request), &request);
    }
    for reply in node_replies() {
        lines.pin(node_reply_kind(&reply), &reply);
    }
    for state in DOMAIN_STATES {
        lines.pin(state.as_str(), &state);
    }
    for phase in PHASES {
        lines.pin(phase.as_str(), &phase);
    }
    for command in COMMANDS {
        lines.pin(command.as_str(), &command);
    }
    for exit in exit_reasons() {
        lines.pin(exit_kind(&exit), &exit);
    }
    insta::assert_snapshot!("uplink_parts", lines.0);
}

#[test]
fn console_and_join_messages_keep_their_bytes() {
    let mut lines = Lines::default();
    lines.pin(
        "ConsoleOpen",
        &ConsoleOpen {
            vm: vm(),
            name: "web-1".parse().unwrap(),
            scrollback: 65_536,
        },
    );
    for answer in [ConsoleAnswer::Open, ConsoleAnswer::Refused(problem())] {
        let kind = match &answer {
            ConsoleAnswer::Open => "ConsoleAnswer::Open",
            ConsoleAnswer::Refused(_) => "ConsoleAnswer::Refused",
        };
        lines.pin(kind, &answer);
    }
    lines.pin(
        "JoinRequest",
        &JoinRequest {
            token: "t1".into(),
            secret: vec![0, 127, 255],
            node: "node-1".parse().unwrap(),
            csr: "CSR".into(),
            address: "10.0.0.1:7441".into(),
        },
    );
    let joined = JoinAnswer::Joined {
        incarnation: 2,
        chain: "PEM".into(),
        cluster: "godwit".into(),
    };
    for answer in [joined, JoinAnswer::Refused(problem())] {
        let kind = match &answer {
            JoinAnswer::Joined { .. } => "JoinAnswer::Joined",
            JoinAnswer::Refused(_) => "JoinAnswer::Refused",
        };
        lines.pin(kind, &answer);
    }
    insta::assert_snapshot!("console_and_join", lines.0);
}

#[test]
fn peer_messages_keep_their_bytes() {
    let mut lines = Lines::default();
    for message in source_messages() {
        lines.pin(source_message_kind(&message), &message);
        assert_eq!(message.migration(), migration());
    }
    for message in target_messages() {
        lines.pin(target_message_kind(&message), &message);
        assert_eq!(message.migration(), migration());
    }
    insta::assert_snapshot!("peer", lines.0);
}

#[test]
fn lease_messages_keep_their_bytes() {
    let mut lines = Lines::default();
    let ask = LeaseAsk {
        request: lease_request(),
        length: Millis(20_000),
        margin: Millis(5_000),
    };
    lines.pin("LeaseAsk", &ask);
    for answer in [
        LeaseAnswer::Granted(lease_grant()),
        LeaseAnswer::Vouched { number: 7 },
        LeaseAnswer::Refused,
    ] {
        let kind = match &answer {
            LeaseAnswer::Granted(_) => "LeaseAnswer::Granted",
            LeaseAnswer::Vouched { .. } => "LeaseAnswer::Vouched",
            LeaseAnswer::Refused => "LeaseAnswer::Refused",
        };
        lines.pin(kind, &answer);
    }
    insta::assert_snapshot!("lease", lines.0);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        decode_everything(&bytes);
    }

    /// Bytes that are almost right get further into the decoder than noise.
    #[test]
    fn damaged_messages_are_refused_without_a_panic(
        which: prop::sample::Index,
        at: prop::sample::Index,
        with: u8,
        cut: prop::sample::Index,
    ) {
        let messages = encoded_messages();
        let mut bytes = which.get(&messages).clone();
        let position = at.index(bytes.len());
        bytes[position] = with;
        decode_everything(&bytes);
        bytes.truncate(cut.index(bytes.len() + 1));
        decode_everything(&bytes);
    }
}

fn decode_everything(bytes: &[u8]) {
    let _ = decode::<NodeMessage>(bytes, MAX_FRAME);
    let _ = decode::<CoordinatorMessage>(bytes, MAX_FRAME);
    let _ = decode::<ConsoleOpen>(bytes, MAX_FRAME);
    let _ = decode::<ConsoleAnswer>(bytes, MAX_FRAME);
    let _ = decode::<JoinRequest>(bytes, MAX_FRAME);
    let _ = decode::<JoinAnswer>(bytes, MAX_FRAME);
    let _ = decode::<SourceMessage>(bytes, MAX_FRAME);
    let _ = decode::<TargetMessage>(bytes, MAX_FRAME);
}

fn encoded_messages() -> Vec<Vec<u8>> {
    let uplink = node_messages().into_iter().map(|m| encode(&m).unwrap());
    let down = coordinator_messages()
        .into_iter()
        .map(|m| encode(&m).unwrap());
    let source = source_messages().into_iter().map(|m| encode(&m).unwrap());
    let target = target_messages().into_iter().map(|m| encode(&m).unwrap());
    uplink.chain(down).chain(source).chain(target).collect()
}

/// One line for each pinned value: its kind and its bytes in hexadecimal.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn pin<T>(&mut self, kind: &str, value: &T)
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug,
    {
        let bytes = encode(value).unwrap();
        assert_eq!(&decode::<T>(&bytes, MAX_FRAME).unwrap(), value, "{kind}");
        let hex = bytes
            .iter()
            .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        self.0.push_str(&format!("{kind} {hex}\n"));
    }
}

// --- one value of every kind -------------------------------------------------
//
// The `*_kind` functions have no wildcard: a new kind does not compile until it
// is named here, and then its value is missing from the snapshot.

fn node_messages() -> Vec<NodeMessage> {
    vec![
        NodeMessage::Hello(NodeHello {
            facts: facts(),
            domains: vec![domain()],
            migrations: vec![migration_report()],
        }),
        NodeMessage::Domain(domain()),
        NodeMessage::DomainGone(vm()),
        NodeMessage::Migration(migration_report()),
        NodeMessage::Facts(facts()),
        NodeMessage::Reply {
            request: 300,
            outcome: Ok(NodeReply::Done),
        },
        NodeMessage::Reply {
            request: 301,
            outcome: Err(problem()),
        },
        NodeMessage::AskVerdict(verdict_query()),
        NodeMessage::RenewCertificate { csr: "CSR".into() },
        NodeMessage::RenewLease {
            of: None,
            request: lease_request(),
        },
        NodeMessage::RenewLease {
            of: Some("node-2".parse().unwrap()),
            request: lease_request(),
        },
        NodeMessage::AskMembers {
            known: RosterMark::of(&[]),
        },
    ]
}

fn node_message_kind(message: &NodeMessage) -> &'static str {
    match message {
        NodeMessage::Hello(_) => "Hello",
        NodeMessage::Domain(_) => "Domain",
        NodeMessage::DomainGone(_) => "DomainGone",
        NodeMessage::Migration(_) => "Migration",
        NodeMessage::Facts(_) => "Facts",
        NodeMessage::Reply { outcome: Ok(_), .. } => "Reply::Ok",
        NodeMessage::Reply { .. } => "Reply::Err",
        NodeMessage::AskVerdict(_) => "AskVerdict",
        NodeMessage::RenewCertificate { .. } => "RenewCertificate",
        NodeMessage::RenewLease { of: None, .. } => "RenewLease",
        NodeMessage::RenewLease { .. } => "RenewLease::Of",
        NodeMessage::AskMembers { .. } => "AskMembers",
    }
}

fn coordinator_messages() -> Vec<CoordinatorMessage> {
    vec![
        CoordinatorMessage::Welcome {
            cluster: "godwit".into(),
            members: RosterMark::of(&[member()]),
        },
        CoordinatorMessage::Refused(problem()),
        CoordinatorMessage::MembersChanged {
            set: vec![member(), member()],
            gone: vec![member().node],
        },
        CoordinatorMessage::Request {
            request: 70_000,
            body: NodeRequest::CancelMigration {
                migration: migration(),
            },
        },
        CoordinatorMessage::Verdict {
            migration: migration(),
            verdict: Some(Verdict::Granted { running: true }),
        },
        CoordinatorMessage::Certificate {
            chain: "PEM".into(),
        },
        CoordinatorMessage::Lease {
            of: None,
            grant: lease_grant(),
        },
        CoordinatorMessage::Members(vec![member()]),
        CoordinatorMessage::Elsewhere {
            leader: Some("c2:7440".into()),
        },
    ]
}

fn coordinator_message_kind(message: &CoordinatorMessage) -> &'static str {
    match message {
        CoordinatorMessage::Welcome { .. } => "Welcome",
        CoordinatorMessage::Refused(_) => "Refused",
        CoordinatorMessage::MembersChanged { .. } => "MembersChanged",
        CoordinatorMessage::Request { .. } => "Request",
        CoordinatorMessage::Verdict { .. } => "Verdict",
        CoordinatorMessage::Certificate { .. } => "Certificate",
        CoordinatorMessage::Lease { .. } => "Lease",
        CoordinatorMessage::Members(_) => "Members",
        CoordinatorMessage::Elsewhere { .. } => "Elsewhere",
    }
}

fn node_requests() -> Vec<NodeRequest> {
    vec![
        NodeRequest::Define {
            vm: vm(),
            spec: spec(),
            epoch: Epoch(1),
            machine: Some("pc-q35-7.2".into()),
        },
        NodeRequest::Command {
            vm: vm(),
            command: LifecycleCommand::Start,
            epoch: Epoch(2),
        },
        NodeRequest::Migrate {
            migration: migration(),
            vm: vm(),
            target: member(),
            policy: policy(),
            dry_run: false,
        },
        NodeRequest::CancelMigration {
            migration: migration(),
        },
        NodeRequest::TuneMigration {
            migration: migration(),
            tuning: MigrationTuning {
                bandwidth: Some(BytesPerSec(1 << 28)),
                downtime: None,
                postcopy: true,
            },
        },
        NodeRequest::ResolveMigration {
            migration: migration(),
            decision: DoubtDecision::RunOnSource,
        },
        NodeRequest::WatchMigration {
            migration: migration(),
            watch: true,
        },
        NodeRequest::Verdict(verdict_query()),
        NodeRequest::Log {
            vm: vm(),
            kind: LogKind::Qemu,
            lines: 100,
        },
        NodeRequest::WithholdVouch {
            node: "node-2".parse().unwrap(),
            period: Millis(25_000),
        },
    ]
}

fn node_request_kind(request: &NodeRequest) -> &'static str {
    match request {
        NodeRequest::Define { .. } => "NodeRequest::Define",
        NodeRequest::Command { .. } => "NodeRequest::Command",
        NodeRequest::Migrate { .. } => "NodeRequest::Migrate",
        NodeRequest::CancelMigration { .. } => "NodeRequest::CancelMigration",
        NodeRequest::TuneMigration { .. } => "NodeRequest::TuneMigration",
        NodeRequest::ResolveMigration { .. } => "NodeRequest::ResolveMigration",
        NodeRequest::WatchMigration { .. } => "NodeRequest::WatchMigration",
        NodeRequest::Verdict(_) => "NodeRequest::Verdict",
        NodeRequest::Log { .. } => "NodeRequest::Log",
        NodeRequest::WithholdVouch { .. } => "NodeRequest::WithholdVouch",
    }
}

fn node_replies() -> Vec<NodeReply> {
    vec![
        NodeReply::Done,
        NodeReply::Domain(domain()),
        NodeReply::Log("count 1\n".into()),
        NodeReply::Verdict(Verdict::Granted { running: false }),
        NodeReply::Verdict(Verdict::Refused),
        NodeReply::Verdict(Verdict::Lost),
        NodeReply::Rehearsal {
            blockers: vec![problem()],
            forecast: Some(forecast()),
        },
        NodeReply::Withheld {
            left: Millis(3_000),
        },
    ]
}

fn node_reply_kind(reply: &NodeReply) -> &'static str {
    match reply {
        NodeReply::Done => "NodeReply::Done",
        NodeReply::Domain(_) => "NodeReply::Domain",
        NodeReply::Log(_) => "NodeReply::Log",
        NodeReply::Verdict(Verdict::Granted { .. }) => "NodeReply::Verdict(Granted)",
        NodeReply::Verdict(Verdict::Refused) => "NodeReply::Verdict(Refused)",
        NodeReply::Verdict(Verdict::Lost) => "NodeReply::Verdict(Lost)",
        NodeReply::Rehearsal { .. } => "NodeReply::Rehearsal",
        NodeReply::Withheld { .. } => "NodeReply::Withheld",
    }
}

fn source_messages() -> Vec<SourceMessage> {
    let migration = migration();
    vec![
        SourceMessage::Prepare(Prepare {
            migration,
            vm: vm(),
            spec: spec(),
            epoch: Epoch(7),
            policy: policy(),
            dry_run: true,
            machine: "pc-q35-10.0".into(),
            accelerator: "tcg".into(),
            cpu_model: "qemu64".into(),
            qemu_version: "10.0.2".into(),
            disks: vec![DiskPlan {
                index: 1,
                size: Bytes(1 << 33),
                allocated: Bytes(1 << 30),
                backing: Some(("/base.qcow2".into(), DiskFormat::Qcow2)),
            }],
        }),
        SourceMessage::Cancel {
            migration,
            reason: problem(),
        },
        SourceMessage::Grant {
            migration,
            epoch: Epoch(8),
            run: true,
            postcopy: false,
        },
        SourceMessage::Query {
            migration,
            vm: vm(),
            epoch: Epoch(8),
        },
        SourceMessage::Resume { migration },
        SourceMessage::AskTime {
            migration,
            sent_us: 1_700_000_000_000_000,
        },
        SourceMessage::Retired { migration },
        SourceMessage::TakenBack {
            migration,
            epoch: Epoch(9),
        },
    ]
}

fn source_message_kind(message: &SourceMessage) -> &'static str {
    match message {
        SourceMessage::Prepare(_) => "Prepare",
        SourceMessage::Cancel { .. } => "Cancel",
        SourceMessage::Grant { .. } => "Grant",
        SourceMessage::Query { .. } => "Query",
        SourceMessage::Resume { .. } => "Resume",
        SourceMessage::AskTime { .. } => "AskTime",
        SourceMessage::Retired { .. } => "Retired",
        SourceMessage::TakenBack { .. } => "TakenBack",
    }
}

fn target_messages() -> Vec<TargetMessage> {
    let migration = migration();
    vec![
        TargetMessage::Prepared { migration },
        TargetMessage::Blocked {
            migration,
            blockers: vec![problem()],
        },
        TargetMessage::Loaded { migration },
        TargetMessage::Failed {
            migration,
            reason: problem(),
        },
        TargetMessage::Taken {
            migration,
            epoch: Epoch(8),
        },
        TargetMessage::Activated {
            migration,
            epoch: Epoch(8),
            resumed_us: Some(1_700_000_000_000_100),
        },
        TargetMessage::Time {
            migration,
            sent_us: 1_700_000_000_000_000,
            here_us: 1_700_000_000_000_050,
        },
        TargetMessage::ResumeReady { migration },
        TargetMessage::Complete { migration },
        TargetMessage::HandBack {
            migration,
            epoch: Epoch(9),
            reason: problem(),
        },
        TargetMessage::Verdict {
            migration,
            verdict: Verdict::Refused,
        },
    ]
}

fn target_message_kind(message: &TargetMessage) -> &'static str {
    match message {
        TargetMessage::Prepared { .. } => "Prepared",
        TargetMessage::Blocked { .. } => "Blocked",
        TargetMessage::Loaded { .. } => "Loaded",
        TargetMessage::Failed { .. } => "Failed",
        TargetMessage::Taken { .. } => "Taken",
        TargetMessage::Activated { .. } => "Activated",
        TargetMessage::Time { .. } => "Time",
        TargetMessage::ResumeReady { .. } => "ResumeReady",
        TargetMessage::Complete { .. } => "Complete",
        TargetMessage::HandBack { .. } => "HandBack",
        TargetMessage::Verdict { .. } => "Verdict",
    }
}

const DOMAIN_STATES: [DomainState; 10] = [
    DomainState::Stopped,
    DomainState::Starting,
    DomainState::Running,
    DomainState::Paused,
    DomainState::ShuttingDown,
    DomainState::Crashed,
    DomainState::IoError,
    DomainState::Incoming,
    DomainState::InHandoff,
    DomainState::Unresponsive,
];

const PHASES: [MigrationPhase; 13] = [
    MigrationPhase::Queued,
    MigrationPhase::Preparing,
    MigrationPhase::Disks,
    MigrationPhase::Precopy,
    MigrationPhase::Switchover,
    MigrationPhase::Handoff,
    MigrationPhase::InDoubt,
    MigrationPhase::Postcopy,
    MigrationPhase::PostcopyPaused,
    MigrationPhase::Cancelling,
    MigrationPhase::Completed,
    MigrationPhase::Failed,
    MigrationPhase::Cancelled,
];

const COMMANDS: [LifecycleCommand; 8] = [
    LifecycleCommand::Start,
    LifecycleCommand::Shutdown,
    LifecycleCommand::Reboot,
    LifecycleCommand::Reset,
    LifecycleCommand::Stop,
    LifecycleCommand::Pause,
    LifecycleCommand::Resume,
    LifecycleCommand::Delete,
];

fn lease_request() -> LeaseRequest {
    LeaseRequest {
        number: 7,
        circle: 2,
    }
}

fn lease_grant() -> LeaseGrant {
    LeaseGrant {
        number: 7,
        length: Millis(20_000),
        margin: Millis(5_000),
        circle: Circle {
            version: 3,
            members: vec!["node-1".parse().unwrap(), "node-2".parse().unwrap()],
        },
    }
}

fn exit_reasons() -> Vec<ExitReason> {
    vec![
        ExitReason::GuestShutdown,
        ExitReason::Stopped,
        ExitReason::Migrated,
        ExitReason::FailedToStart { error: "no".into() },
        ExitReason::Crashed {
            detail: "signal 9".into(),
        },
        ExitReason::HostReboot,
        ExitReason::LeaseLost,
    ]
}

fn exit_kind(exit: &ExitReason) -> &'static str {
    match exit {
        ExitReason::GuestShutdown => "ExitReason::GuestShutdown",
        ExitReason::Stopped => "ExitReason::Stopped",
        ExitReason::Migrated => "ExitReason::Migrated",
        ExitReason::FailedToStart { .. } => "ExitReason::FailedToStart",
        ExitReason::Crashed { .. } => "ExitReason::Crashed",
        ExitReason::HostReboot => "ExitReason::HostReboot",
        ExitReason::LeaseLost => "ExitReason::LeaseLost",
    }
}

fn vm() -> VmId {
    VmId::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef)
}

fn migration() -> MigrationId {
    MigrationId::from_u128(0xfedc_ba98_7654_3210_fedc_ba98_7654_3210)
}

fn member() -> Member {
    Member {
        node: "node-2".parse().unwrap(),
        incarnation: 3,
        address: "10.0.0.2:7441".into(),
    }
}

fn verdict_query() -> VerdictQuery {
    VerdictQuery {
        migration: migration(),
        vm: vm(),
        target: "node-2".parse().unwrap(),
        epoch: Epoch(8),
    }
}

fn problem() -> Problem {
    Problem::new(codes::BUSY, "busy")
        .field("vm")
        .value("web-1")
        .remedy("wait")
        .and(vec![Problem::new(codes::TIMEOUT, "late")])
}

fn policy() -> MigrationPolicy {
    MigrationPolicy {
        channels: 4,
        bandwidth: Some(BytesPerSec(1 << 30)),
        downtime: Millis(200),
        auto_converge: false,
        postcopy: Postcopy::Fallback,
        timeout: Some(Millis(60_000)),
        timeout_action: TimeoutAction::Force,
        disks: DiskCopy::Top,
        keep_source_disks: true,
        priority: 70,
    }
}

/// Documents are pinned by their own, named fields: only that they are text.
fn spec() -> Document {
    Document::of(&serde_json::json!({ "name": "web-1", "memory": 64 })).unwrap()
}

fn facts() -> Document {
    Document::of(&serde_json::json!({ "hostname": "h1" })).unwrap()
}

fn domain() -> DomainReport {
    DomainReport {
        vm: vm(),
        name: "web-1".parse().unwrap(),
        epoch: Epoch(2),
        owner: true,
        state: DomainState::Running,
        since: UnixMillis(1_700_000_000_000),
        exit: Some(ExitReason::GuestShutdown),
        problem: Some(problem()),
        agent: AgentState::Connected,
        pid: Some(4_242),
        migration: Some(migration()),
        machine: Some("pc-q35-10.0".into()),
        accelerator: Some("tcg".into()),
        usage: Some(DomainUsage {
            cpu_ms: 1_500,
            resident: MiB(300),
            read: Bytes(1),
            written: Bytes(2),
            at: UnixMillis(1_700_000_000_001),
        }),
    }
}

fn forecast() -> Forecast {
    let span = |low, high| Span {
        low: Millis(low),
        high: Millis(high),
    };
    Forecast {
        duration: span(800, 1_400),
        blackout: span(20, 60),
        converges: true,
        memory: Bytes(1 << 30),
        dirty_rate: BytesPerSec(1 << 23),
        link_rate: BytesPerSec(1 << 29),
    }
}

fn migration_report() -> MigrationReport {
    MigrationReport {
        migration: migration(),
        vm: vm(),
        source: "node-1".parse().unwrap(),
        target: "node-2".parse().unwrap(),
        phase: MigrationPhase::Failed,
        since: UnixMillis(1_700_000_000_002),
        started: UnixMillis(1_700_000_000_000),
        progress: MigrationProgress {
            total: Bytes(1 << 30),
            transferred: Bytes(1 << 20),
            remaining: Bytes(1 << 10),
            rate: BytesPerSec(1 << 27),
            dirty_rate: BytesPerSec(1 << 24),
            iteration: 3,
            eta: Some(Millis(1_200)),
            throttle_percent: 20,
            elapsed: Millis(900),
            disks_total: Bytes(1 << 33),
            disks_done: Bytes(1 << 32),
            stalled: true,
        },
        blackout: Some(Millis(31)),
        figures: MigrationFigures {
            forecast: Some(forecast()),
            qemu_downtime: Some(Millis(29)),
            clock_error_us: Some(80),
            duration: Some(Millis(880)),
            postcopy: true,
        },
        failure: Some(MigrationFailure {
            phase: MigrationPhase::Precopy,
            problem: problem(),
            recovered_in: Some(Millis(12)),
        }),
        epoch: Epoch(2),
    }
}

/// Specs and facts travel as JSON: their field names are their wire format.
#[test]
fn documents_keep_their_field_names() {
    let spec = VmSpec::from_value(serde_json::json!({
        "name": "web-1", "memory": "2GiB",
        "disks": [{ "path": "/d.qcow2" }], "nics": [{}],
    }))
    .unwrap();
    insta::assert_json_snapshot!("spec_document", spec);
    let facts = NodeFacts {
        software: "0.1.0".into(),
        capacity: Capacity {
            vcpus: 8,
            memory: MiB(1024),
        },
        labels: BTreeMap::from([("rack".into(), "r1".into())]),
        ..NodeFacts::default()
    };
    insta::assert_json_snapshot!("facts_document", facts);
}
