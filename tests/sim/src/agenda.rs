//! What will happen, and when, in virtual milliseconds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use godwit_coordinator_logic::effect::Timer as ClusterTimer;
use godwit_coordinator_logic::input::SessionId;
use godwit_node_logic::domain::{Action, Event, Timer as DomainTimer};
use godwit_node_logic::handoff::{
    IncomingStage, OutgoingStage, SourceEvent, TargetEvent, Timer as SourceTimer, TombstoneVerdict,
};
use godwit_shared::model::{Epoch, MigrationId, NodeId, VmId, VmSpec};
use godwit_shared::wire::lease::{LeaseAnswer, LeaseAsk};
use godwit_shared::wire::peer::{SourceMessage, TargetMessage};
use godwit_shared::wire::uplink::{CoordinatorMessage, NodeMessage, Verdict, VerdictQuery};

/// A node, by its place.
pub type N = usize;

/// One thing that happens.
#[derive(Debug, Clone)]
pub enum What {
    /// To the coordinator.
    Coordinator(ToCoordinator),
    /// To a node's daemon of that life; another one does not hear it.
    Node(N, u32, ToNode),
    /// To a QEMU, whatever becomes of daemons.
    Qemu(N, u64, ToQemu),
    /// The alarm of that boot's guardian.
    Guardian(N, u32),
    /// A daemon starts.
    Start(N),
    /// The coordinator starts.
    StartCoordinator,
    /// A path between two hosts works again; 0 is the coordinator's.
    Mend(usize, usize),
    /// Something goes wrong.
    Trouble,
    /// An operator does something.
    Operator,
    /// An operator looks at what only operators can end.
    Rounds,
}

/// Of one life of the coordinator's daemon.
#[derive(Debug, Clone)]
pub enum ToCoordinator {
    /// A timer.
    Timer(u32, ClusterTimer),
    /// A request got no reply.
    Unanswered(u32, u64),
    /// A node is at the door.
    Hello(u32, N, SessionId),
    /// A node said something.
    Message(SessionId, Box<NodeMessage>),
    /// It notices that a session ended.
    Lost(SessionId),
}

/// What a node's daemon takes in.
#[derive(Debug, Clone)]
pub enum ToNode {
    /// It tries to reach the coordinator.
    Dial,
    /// The coordinator said something.
    Told(SessionId, Box<CoordinatorMessage>),
    /// It notices that its session ended.
    SessionLost(SessionId),
    /// To a domain's machine.
    Domain(VmId, Box<Event>),
    /// A domain's timer; the number says which arming.
    DomainTimer(VmId, DomainTimer, u64),
    /// A QEMU said something.
    News(VmId, u64, News),
    /// To a migration that leaves.
    Source(MigrationId, Box<SourceEvent>),
    /// Its timer.
    SourceTimer(MigrationId, SourceTimer, u64),
    /// It does something.
    Out(MigrationId, OutTask),
    /// To a migration that comes.
    Target(MigrationId, Box<TargetEvent>),
    /// It does something.
    In(MigrationId, InTask),
    /// A source asks to send a guest.
    Prepare(u64, Box<Arrival>),
    /// A message over a migration's connection, to its target.
    FromSource(u64, MigrationId, Box<SourceMessage>),
    /// The same, to its source.
    FromTarget(u64, MigrationId, Box<TargetMessage>),
    /// The connection ended, for the one who sends.
    LinkLostHere(u64, MigrationId),
    /// For the one who receives.
    LinkLostThere(u64, MigrationId),
    /// Somebody asks about a grant.
    Query(Asker, VerdictQuery),
    /// The answer.
    Word(MigrationId, Verdict),
    /// It is time to renew the lease.
    Renew,
    /// A peer without a session asks for its lease.
    LeaseAsked(N, Box<LeaseAsk>),
    /// What a peer says to that.
    LeaseAnswered(N, Box<LeaseAnswer>),
}

/// What a source asks with.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The migration.
    pub migration: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// From where.
    pub source: N,
    /// The source's epoch.
    pub epoch: Epoch,
    /// What the VM is.
    pub shape: VmSpec,
}

/// Who waits for a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// The source's node.
    Source(N, u32),
    /// The coordinator, with its request.
    Coordinator(SessionId, u64),
}

/// What runs beside a source's actor.
#[derive(Debug, Clone, Copy)]
pub enum OutTask {
    /// Dial the target.
    Connect,
    /// Write the stage.
    Journal(OutgoingStage),
    /// Keep the domain.
    Stay(Epoch),
    /// Take the migration out of the record.
    Clear,
    /// End the domain.
    Retire(Epoch),
}

/// What runs beside a target's actor.
#[derive(Debug, Clone, Copy)]
pub enum InTask {
    /// What stands against it.
    Check,
    /// A domain and its QEMU.
    Start,
    /// The promise; then QEMU listens.
    Promise,
    /// Write the stage.
    Journal(IncomingStage),
    /// Run the CPUs.
    Activate(Epoch, bool),
    /// Write the word.
    Bury(TombstoneVerdict),
    /// Throw the domain away.
    Discard,
    /// The source's last word is not waited for any longer.
    Enough,
}

/// What a QEMU is told, and what it does by itself.
#[derive(Debug, Clone)]
pub enum ToQemu {
    /// The domain's command.
    Do(Action),
    /// A look was asked for.
    Look,
    /// Send it: the migration and its connection.
    Migrate(MigrationId, u64),
    /// `migrate-continue`.
    Continue,
    /// `migrate_cancel`.
    CancelMigration,
    /// SIGKILL.
    Kill,
    /// The stream stands.
    Connected,
    /// Little is left.
    Stopped,
    /// The rest was sent.
    Sent,
    /// The target has loaded all.
    Acknowledged,
    /// A cancel is through.
    Cancelled,
    /// The stream of that connection is broken.
    Broken(u64),
    /// The guest powers itself off.
    PowerOff,
}

/// What a QEMU says.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// The process started.
    Spawned,
    /// It greets.
    Greeting,
    /// Something of the lifecycle.
    Domain(Event),
    /// `MIGRATION`, with what the domain learns by it.
    Migration(godwit_node_logic::handoff::QemuMigration, Vec<Event>),
    /// A command of a migration was refused.
    Refused,
    /// The process ended.
    Ended,
}

/// The agenda.
#[derive(Debug, Default)]
pub struct Agenda {
    heap: BinaryHeap<Reverse<(u64, u64)>>,
    what: std::collections::HashMap<u64, What>,
    last: u64,
}

impl Agenda {
    /// The number of the entry that comes next: no other has it.
    pub const fn number(&self) -> u64 {
        self.last + 1
    }

    /// Puts something on it.
    pub fn add(&mut self, at: u64, what: What) {
        self.last += 1;
        self.heap.push(Reverse((at, self.last)));
        self.what.insert(self.last, what);
    }

    /// The next thing, and when.
    pub fn pop(&mut self) -> Option<(u64, What)> {
        let Reverse((at, number)) = self.heap.pop()?;
        Some((at, self.what.remove(&number)?))
    }
}

/// The name of a node.
pub fn node_id(n: N) -> NodeId {
    let name = format!("node-{}", n + 1);
    // The name is fine, so the second never comes to pass.
    name.parse().unwrap_or_else(|_| node_id(0))
}
