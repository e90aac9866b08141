//! Between a node and its coordinator.
//!
//! The node connects and sends [`NodeHello`]; the coordinator answers with
//! [`CoordinatorMessage::Welcome`] or refuses. From then on each side sends
//! what the other has to know; neither waits for the other. Requests of the
//! coordinator carry a number, and each gets exactly one
//! [`NodeMessage::Reply`] with that number; a session that ends takes its open
//! requests with it, and the coordinator reconciles from the next hello.
//!
//! A console or a log is a stream of its own (`StreamKind::Console`), opened by
//! the coordinator: a [`ConsoleOpen`] frame, a [`ConsoleAnswer`] frame, then
//! plain bytes both ways.

use serde::{Deserialize, Serialize};

use super::document::Document;
use super::lease::{LeaseGrant, LeaseRequest};
use super::roster::RosterMark;
use crate::model::{
    DomainReport, DoubtDecision, Epoch, Forecast, LifecycleCommand, MigrationFailure,
    MigrationFigures, MigrationId, MigrationPhase, MigrationPolicy, MigrationProgress,
    MigrationTuning, Millis, NodeId, Problem, UnixMillis, VmId, VmName,
};

/// A member of the cluster, as its peers need to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub node: NodeId,
    /// Which joining of that name: part of the certificate's name.
    pub incarnation: u32,
    /// Where its daemon listens: `host:port`.
    pub address: String,
}

/// A node's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHello {
    /// [`crate::model::NodeFacts`].
    pub facts: Document,
    /// Every domain on the node: a `Vec<DomainReport>`.
    pub domains: Vec<DomainReport>,
    /// Migrations in hand, and those that ended since the last session.
    pub migrations: Vec<MigrationReport>,
}

/// From a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "messages live for one send")]
pub enum NodeMessage {
    /// The first message of a session.
    Hello(NodeHello),
    /// A domain came or changed.
    Domain(DomainReport),
    /// A domain is no longer on the node.
    DomainGone(VmId),
    /// A migration that this node is the source of came or changed.
    Migration(MigrationReport),
    /// The facts changed.
    Facts(Document),
    /// The answer to the request of that number.
    Reply {
        /// The request's number.
        request: u64,
        /// What came of it.
        outcome: Result<NodeReply, Problem>,
    },
    /// A source in doubt asks what became of its grant.
    AskVerdict(VerdictQuery),
    /// The certificate nears its end: a CSR (PEM) for a new one.
    RenewCertificate {
        /// PKCS #10, PEM.
        csr: String,
    },
    /// Asks for a lease ([`super::lease`]).
    RenewLease {
        /// Who asks; none for the sender. A node without a session asks through
        /// its peers.
        of: Option<NodeId>,
        /// What it asks.
        request: LeaseRequest,
    },
    /// The members are not those of the welcome: what is different?
    AskMembers {
        /// The mark of those that the node knows.
        known: RosterMark,
    },
}

/// From the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "messages live for one send")]
pub enum CoordinatorMessage {
    /// The session stands.
    Welcome {
        /// The cluster's name.
        cluster: String,
        /// The mark of the list of members. A node that knows another list asks
        /// ([`NodeMessage::AskMembers`]): two thousand nodes that come back at
        /// once would otherwise be sent four million members that they know.
        members: RosterMark,
    },
    /// The session is refused; the connection is closed after this.
    Refused(Problem),
    /// Some members changed. Only those: a whole list for every change would
    /// cost the square of the nodes.
    MembersChanged {
        /// Those that joined or are elsewhere now.
        set: Vec<Member>,
        /// Those that were removed.
        gone: Vec<NodeId>,
    },
    /// Do something and reply.
    Request {
        /// Unique in the session, growing.
        request: u64,
        /// What to do.
        body: NodeRequest,
    },
    /// What became of a grant, as far as the coordinator could find out.
    Verdict {
        /// The migration asked about.
        migration: MigrationId,
        /// The target's word; none when the target cannot be reached and the
        /// coordinator knows no higher epoch.
        verdict: Option<Verdict>,
    },
    /// The renewed certificate: a PEM chain.
    Certificate {
        /// Leaf first, then the CA.
        chain: String,
    },
    /// A lease.
    Lease {
        /// Whose; none for the receiver.
        of: Option<NodeId>,
        /// The grant.
        grant: LeaseGrant,
    },
    /// Every member, the receiver included: for a node that knows a list of
    /// which the coordinator does not know what has changed since.
    Members(Vec<Member>),
    /// The answer to a hello at a coordinator that does not lead; the connection
    /// is closed after this.
    Elsewhere {
        /// Where the leader listens for nodes: `host:port`; none while nobody leads.
        leader: Option<String>,
    },
}

/// What a coordinator may ask of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeRequest {
    /// Make the domain known, or replace its spec while it is stopped. Idempotent.
    Define {
        /// The VM.
        vm: VmId,
        /// [`crate::model::VmSpec`].
        spec: Document,
        /// The right to run that comes with it.
        epoch: Epoch,
        /// The pinned machine type, once one was chosen.
        machine: Option<String>,
    },
    /// A lifecycle command. Replies when QEMU confirmed it; `Shutdown` and
    /// `Reboot` when the guest was asked.
    Command {
        /// The VM.
        vm: VmId,
        /// What to do.
        command: LifecycleCommand,
        /// For `Start`: the epoch of this run. For the others: what the
        /// coordinator believes; an older one than the node's is refused.
        epoch: Epoch,
    },
    /// Move the domain to a peer. Replies when it was accepted; the rest comes
    /// as [`NodeMessage::Migration`].
    Migrate {
        /// The migration.
        migration: MigrationId,
        /// The VM.
        vm: VmId,
        /// Where to.
        target: Member,
        /// How.
        policy: MigrationPolicy,
        /// Only find out what stands against it.
        dry_run: bool,
    },
    /// Call a migration off. Replies when it was told; the end comes as
    /// [`NodeMessage::Migration`].
    CancelMigration {
        /// The migration.
        migration: MigrationId,
    },
    /// Change a migration while it runs. Replies when QEMU took it.
    TuneMigration {
        /// The migration.
        migration: MigrationId,
        /// What to change.
        tuning: MigrationTuning,
    },
    /// An operator ends a source's doubt about its grant. Replies when it is
    /// written down; refused unless the migration is in doubt.
    ResolveMigration {
        /// The migration.
        migration: MigrationId,
        /// How.
        decision: DoubtDecision,
    },
    /// Send progress samples of a migration, or stop it.
    WatchMigration {
        /// The migration.
        migration: MigrationId,
        /// Whether somebody watches.
        watch: bool,
    },
    /// What became of that migration here, as its target.
    Verdict(VerdictQuery),
    /// The end of a log of the domain.
    Log {
        /// The VM.
        vm: VmId,
        /// Which log.
        kind: LogKind,
        /// At most so many lines from its end.
        lines: u32,
    },
    /// Vouch no more for that node's lease, for twice the period at least.
    WithholdVouch {
        /// The node.
        node: NodeId,
        /// Its lease's length and margin together.
        period: Millis,
    },
}

/// Logs of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogKind {
    /// What the guest wrote to its serial console.
    Serial,
    /// What QEMU printed.
    Qemu,
}

/// A node's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "messages live for one send")]
pub enum NodeReply {
    /// It was done.
    Done,
    /// Where the domain stands after the command.
    Domain(DomainReport),
    /// The end of a log, in at most 256 KiB.
    Log(String),
    /// The word on a migration.
    Verdict(Verdict),
    /// What a dry run found.
    Rehearsal {
        /// What stands against it; empty when nothing does.
        blockers: Vec<Problem>,
        /// How it would go; none when it could not be sampled.
        forecast: Option<Forecast>,
    },
    /// The word not to vouch.
    Withheld {
        /// How long a lease may still last that this node has vouched for.
        left: Millis,
    },
}

/// What became of a grant?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictQuery {
    /// The migration.
    pub migration: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// Who was granted the right.
    pub target: NodeId,
    /// The epoch that was granted.
    pub epoch: Epoch,
}

/// The target's word on a grant. It is durable: once given, it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// The grant was taken. Whether the CPUs are confirmed to run.
    Granted {
        /// The CPUs run, or have run.
        running: bool,
    },
    /// The grant was not taken and never will be.
    Refused,
    /// The target's host was booted anew after it had promised to take the
    /// grant, so nobody knows whether the guest ran there. An operator decides.
    Lost,
}

/// A migration as its source sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationReport {
    /// The migration.
    pub migration: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// From.
    pub source: NodeId,
    /// To.
    pub target: NodeId,
    /// Where it is.
    pub phase: MigrationPhase,
    /// Since when it is in that phase.
    pub since: UnixMillis,
    /// When it began.
    pub started: UnixMillis,
    /// The last sample.
    pub progress: MigrationProgress,
    /// The pause: from the guest's last instruction on the source to its first
    /// on the target.
    pub blackout: Option<Millis>,
    /// What was foretold, and what was measured beside it.
    pub figures: MigrationFigures,
    /// Why it did not succeed.
    pub failure: Option<MigrationFailure>,
    /// The epoch in force when this was written.
    pub epoch: Epoch,
}

/// The first frame of a console stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleOpen {
    /// The VM.
    pub vm: VmId,
    /// The VM's name, for messages.
    pub name: VmName,
    /// Send so many bytes of scrollback first.
    pub scrollback: u32,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleAnswer {
    /// Bytes follow.
    Open,
    /// It cannot be had.
    Refused(Problem),
}

/// The only exchange on a joining connection: the node's request ...
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's id.
    pub token: String,
    /// The token's secret.
    pub secret: Vec<u8>,
    /// The name that the node wants.
    pub node: NodeId,
    /// PKCS #10, PEM.
    pub csr: String,
    /// Where peers will reach it: `host:port`.
    pub address: String,
}

/// ... and the coordinator's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// The node is a member.
    Joined {
        /// Which joining of that name.
        incarnation: u32,
        /// Leaf first, then the CA: PEM.
        chain: String,
        /// The cluster's name.
        cluster: String,
    },
    /// It is not, and why.
    Refused(Problem),
}
