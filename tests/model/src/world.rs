//! The state of the model: two or three hosts, up to two migrations of one VM,
//! and what lies between them.
//!
//! Everything is here because something may come to depend on it. What only
//! people read (texts, progress, times) is left out or brought to one form.

use godwit_node_logic::domain::{Action as Command, Domain, Saved};
use godwit_node_logic::handoff::{
    IncomingStage, Outcome, OutgoingStage, Plan, Source, Target, TombstoneVerdict,
};
use godwit_shared::model::{Epoch, MigrationId, MigrationPhase, UnixMillis, VmId};
use godwit_shared::wire::uplink::Verdict;

use crate::coordinator::Coordinator;
use crate::disk::{Image, Watched};
use crate::fault::Budget;
use crate::judge::Judge;
use crate::link::Link;
use crate::part::Part;
use crate::qemu::{News, Qemu};

/// The one VM.
pub const VM: VmId = VmId::from_u128(1);
/// Time stands still: deadlines are events of their own.
pub const NOW: UnixMillis = UnixMillis(1);
/// The epoch at which the VM runs at first.
pub const FIRST: Epoch = Epoch(1);
/// How many hosts there are. The last has a part in few cases.
pub const HOSTS: usize = 3;
/// How many migrations there can be.
pub const MOVES: usize = 2;

/// A host, by its place in [`World::hosts`].
pub type Host = usize;
/// A migration, by its place in [`World::moves`].
pub type Move = usize;

/// The id of a migration.
pub const fn id_of(m: Move) -> MigrationId {
    MigrationId::from_u128(0x100 + m as u128)
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// The hosts.
    pub hosts: [Part<HostState>; HOSTS],
    /// The migrations.
    pub moves: [Part<MoveState>; MOVES],
    /// The coordinator; idle in cases that leave it out.
    pub coordinator: Part<Coordinator>,
    /// The faults that may still happen.
    pub left: Budget,
    /// What an observer who sees everything has noted.
    pub judge: Judge,
}

/// A host: its daemon, its disk, its QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct HostState {
    /// The daemon runs.
    pub up: bool,
    /// What outlives the daemon.
    pub disk: Disk,
    /// What certainly outlives the host: the disk at the last write that was
    /// waited for.
    pub synced: Disk,
    /// Its image of the VM's disk; none in cases in which that is shared.
    pub image: Option<Image>,
    /// The VM's QEMU process.
    pub qemu: Option<Qemu>,
    /// The actor of the VM's domain.
    pub domain: Option<DomainActor>,
    /// What QEMU has said and the daemon has not read.
    pub news: Vec<News>,
}

/// A node's files, as far as they concern the VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Disk {
    /// The domain's record.
    pub record: Option<Record>,
    /// The word on each migration.
    pub stones: [Option<TombstoneVerdict>; MOVES],
}

/// The domain's record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// The domain's own part.
    pub saved: Saved,
    /// The QEMU that it tells of.
    pub run: Run,
    /// The migration in hand.
    pub handoff: Option<Handoff>,
}

/// What a record says of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Run {
    /// There is none.
    #[default]
    None,
    /// One was started.
    ThisBoot,
    /// One was started before the host was booted anew.
    FormerBoot,
}

impl Run {
    /// The same after the host was booted anew.
    #[must_use]
    pub const fn former(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::ThisBoot | Self::FormerBoot => Self::FormerBoot,
        }
    }
}

/// [`HandoffRecord`](godwit_node_logic::handoff::HandoffRecord), without names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Handoff {
    /// As a source.
    Outgoing {
        /// Which migration.
        m: Move,
        /// How far.
        stage: OutgoingStage,
        /// The source's epoch.
        epoch: Epoch,
        /// Whether the CPUs shall run.
        run: bool,
        /// On which terms.
        plan: Plan,
        /// The image here goes when the guest runs at the target.
        images: bool,
    },
    /// As a target.
    Incoming {
        /// Which migration.
        m: Move,
        /// How far.
        stage: IncomingStage,
        /// The epoch that a grant carries.
        epoch: Epoch,
        /// The image here goes when the guest does not arrive.
        images: bool,
    },
}

impl Handoff {
    /// Which migration it is of.
    pub const fn m(self) -> Move {
        match self {
            Self::Outgoing { m, .. } | Self::Incoming { m, .. } => m,
        }
    }
}

/// The daemon's `DomainActor`: the production state machine and what the actor
/// holds beside it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DomainActor {
    /// The production state machine.
    pub machine: Domain,
    /// The record's migration, as it is in memory.
    pub handoff: Option<Handoff>,
    /// The record's QEMU, as it is in memory.
    pub run: Run,
    /// Commands to QEMU that it has not obeyed yet, in order.
    pub commands: Vec<Command>,
}

/// A migration: its two actors, and what lies between them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct MoveState {
    /// From where to where; none before it is asked for.
    pub route: Option<(Host, Host)>,
    /// The source's actor.
    pub outgoing: Option<Outgoing>,
    /// The target's actor.
    pub incoming: Option<Incoming>,
    /// The target's actor has ended, and the record is not the domain's own yet.
    pub closing: bool,
    /// The connection between the two.
    pub link: Link,
    /// Answers on their way to a source in doubt, one for each [`Way`].
    pub answers: [Option<Verdict>; 2],
    /// Its source has told that the guest was lost in post-copy.
    pub lost: bool,
    /// How it ended and at which epoch, as its source's daemon tells for as
    /// long as it lives.
    pub end: Option<(End, Epoch)>,
}

/// [`Outcome`], without its texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The guest is the target's.
    Completed,
    /// It is the source's.
    Failed,
    /// It is the source's, as an operator wanted.
    Cancelled,
}

impl From<&Outcome> for End {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Completed => Self::Completed,
            Outcome::Failed { .. } => Self::Failed,
            Outcome::Cancelled => Self::Cancelled,
        }
    }
}

/// The ways on which a source asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// The target itself.
    Direct,
    /// Through the coordinator.
    Relayed,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Relayed];
}

/// The daemon's `Outgoing`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outgoing {
    /// The production state machine.
    pub source: Source,
    /// What runs beside the actor.
    pub tasks: Vec<OutTask>,
    /// The timers that are armed, a bit for each.
    pub timers: u8,
    /// The phase last shown.
    pub phase: MigrationPhase,
    /// An alarm was shown.
    pub alarmed: bool,
    /// Post-copy: an attempt to connect anew is under way.
    pub reconnecting: bool,
    /// Whether the CPUs shall run.
    pub run: bool,
    /// On which terms.
    pub plan: Plan,
    /// The epoch at which the source ran the domain.
    pub epoch: Epoch,
    /// The epoch that its last report will name.
    pub told_epoch: Epoch,
    /// What of the mirrors is waited for.
    pub watched: Watched,
    /// The image here goes when the guest runs at the target.
    pub images: bool,
    /// An operator has decided about the grant.
    pub resolved: bool,
}

/// One thing that runs beside an [`Outgoing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OutTask {
    /// Dial the target and send `Prepare`.
    Connect,
    /// QMP `blockdev-mirror`.
    StartMirror,
    /// QMP `block-job-cancel`.
    FinishMirror,
    /// QMP `blockdev-del`.
    LetGo,
    /// Wait until the target's export is no more.
    Released,
    /// QMP `migrate`.
    Start,
    /// QMP `stop`, then a look: does QEMU still send memory?
    StopForPostcopy {
        /// The guest was stopped.
        stopped: bool,
    },
    /// QMP `migrate-start-postcopy`.
    StartPostcopy,
    /// QMP `stop`.
    Stop,
    /// QMP `migrate-continue`.
    Continue,
    /// Post-copy: a look at QEMU, before it is connected anew.
    Reconnect,
    /// Post-copy: dial the target and send `Resume`.
    Redial,
    /// Post-copy: QMP `migrate` with `resume`.
    Resume,
    /// QMP `migrate_cancel`.
    Cancel,
    /// Write the stage down.
    Journal(OutgoingStage),
    /// Show the domain as in the handoff.
    Mark,
    /// Keep the domain.
    Stay {
        /// At this epoch.
        epoch: Epoch,
        /// What comes next.
        step: StayStep,
        /// Something of it failed.
        failed: bool,
    },
    /// End QEMU: it is the target's.
    Retire {
        /// The target's epoch.
        epoch: Epoch,
        /// The domain was told.
        told: bool,
    },
    /// The domain is gone.
    Retired,
}

impl OutTask {
    /// Whether it is a command to QEMU.
    pub const fn is_command(self) -> bool {
        matches!(
            self,
            Self::StartMirror
                | Self::FinishMirror
                | Self::LetGo
                | Self::Start
                | Self::StopForPostcopy { .. }
                | Self::StartPostcopy
                | Self::Stop
                | Self::Continue
                | Self::Reconnect
                | Self::Resume
                | Self::Cancel
        )
    }
}

/// The steps of [`OutTask::Stay`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StayStep {
    /// Make sure that the CPUs run.
    Run,
    /// Break the mirrors off.
    Abort,
    /// Tell the domain.
    LetGo,
    /// The domain was told.
    Told,
    /// Take the migration out of the record.
    Clear,
}

/// The daemon's `Incoming`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Incoming {
    /// The production state machine.
    pub target: Target,
    /// What runs beside the actor.
    pub tasks: Vec<InTask>,
    /// QEMU's start is under way.
    pub starting: bool,
    /// A discard waits for that start.
    pub discard_waits: Option<TombstoneVerdict>,
    /// There is a domain to be discarded.
    pub has_domain: bool,
    /// Who waits for an answer, a flag for each [`Way`].
    pub open: [bool; 2],
    /// The epoch that a grant carries.
    pub epoch: Epoch,
    /// The record's stage, as it is in memory.
    pub stage: IncomingStage,
    /// The source's last word is waited for, but not for ever.
    pub waits_for_source: bool,
    /// QEMU has noticed that its channels are gone.
    pub broken: bool,
    /// It has to notice that first, before it waits for new ones.
    pub recovery_waits: bool,
}

/// One thing that runs beside an [`Incoming`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InTask {
    /// Find what stands against it.
    Check,
    /// Make a domain and start its QEMU.
    Start,
    /// Write the promise through to the disk and make QEMU listen.
    Promise,
    /// QMP `nbd-server-stop`.
    EndExports,
    /// Write the stage down.
    Journal(IncomingStage),
    /// A look at QEMU, after a restart of the daemon.
    Look,
    /// Post-copy: QMP `migrate-pause`.
    Pause,
    /// Post-copy: QMP `migrate-recover`.
    ListenAgain,
    /// Run the CPUs.
    Activate {
        /// At this epoch.
        epoch: Epoch,
        /// Whether they shall.
        run: bool,
        /// The domain was told.
        told: bool,
    },
    /// The domain's answer to that.
    Activated(Activation),
    /// Write the word down.
    Bury(TombstoneVerdict),
    /// Throw the domain away.
    Discard {
        /// The domain was told.
        told: bool,
    },
    /// All of it is gone.
    Discarded,
}

/// How an activation went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Activation {
    /// The CPUs run, if they shall.
    Done,
    /// They certainly never ran.
    NeverRan,
    /// They may have run.
    Unclear,
}

impl World {
    /// The hosts on which the VM's CPUs run.
    pub fn runners(&self) -> impl Iterator<Item = Host> + '_ {
        (0..HOSTS).filter(|n| self.hosts[*n].qemu.as_ref().is_some_and(|q| q.running))
    }

    /// The source of a migration that was asked for.
    pub fn source_of(&self, m: Move) -> Option<Host> {
        self.moves[m].route.map(|route| route.0)
    }

    /// Its target.
    pub fn target_of(&self, m: Move) -> Option<Host> {
        self.moves[m].route.map(|route| route.1)
    }

    /// Counts the hashes of what changed since `before`.
    pub fn seal(&mut self, before: &Self) {
        for (new, old) in self.hosts.iter_mut().zip(&before.hosts) {
            new.seal(old);
        }
        for (new, old) in self.moves.iter_mut().zip(&before.moves) {
            new.seal(old);
        }
        self.coordinator.seal(&before.coordinator);
    }
}
