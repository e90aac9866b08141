//! A small QEMU: what of a process the handoff depends on.
//!
//! Source: QEMU's `migration/migration.c` (10.0) and the `MIGRATION` event of
//! `qapi/migration.json`.
//!
//! ```text
//!  as a source   Idle --migrate--> Setup --> Active --> PreSwitchover (CPUs stopped)
//!                PreSwitchover --migrate-continue--> Device --> Completed (CPUs stopped)
//!                Setup, Active, Device, Package --stream broken--> Failed (CPUs as before)
//!                Active, PreSwitchover, Device --migrate_cancel--> Cancelling --> Cancelled
//!  in post-copy  PreSwitchover --migrate-continue--> Package --> Pulled --> Completed
//!                Pulled --stream broken, migrate-pause--> PullPaused
//!                PullPaused --migrate resume--> PullResuming --> Pulled
//!  as a target   Waiting --migrate-incoming--> Listening --> Loaded --cont--> Arrived
//!                Listening --stream broken--> it ends by itself
//!  in post-copy  Listening --> Pulling --> Loaded, or Arrived once the CPUs run
//!                Pulling --stream broken, migrate-pause--> PullBroken
//!                PullBroken --migrate-recover--> PullListening --> Pulling
//! ```
//!
//! * The CPUs go on by themselves when a migration fails or is cancelled, if it
//!   was the migration that stopped them: no daemon has a say in that. In
//!   post-copy that is so until the device state (the package) has left.
//! * The source is through when the target has acknowledged that everything is
//!   loaded. The acknowledgement may be lost: then one side has loaded
//!   everything and the other one has failed.
//! * Whether a target got the package is not known to the source's QEMU.
//! * Commands are obeyed at once; what QEMU says of them is read later.
//! * A daemon that is away hears nothing, and nothing is said again.
//!
//! [`newest`](Qemu::newest) is not QEMU's but an observer's: whether this
//! process holds the guest's newest memory. CPUs that run older memory would
//! do things twice, however few of them run at a time.

use godwit_node_logic::handoff::QemuMigration;
use godwit_node_logic::qmp::status::RunStatus;
use godwit_shared::model::Epoch;

use crate::disk::{self, Mirror};
use crate::step::Step;
use crate::world::{Host, Move, World};

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Qemu {
    /// The CPUs run.
    pub running: bool,
    /// They ran when a migration stopped them: they go on when it fails.
    pub resumes: bool,
    /// The right under which they were last started.
    pub epoch: Epoch,
    /// Its memory is the guest's newest.
    pub newest: bool,
    /// It has sent all memory once.
    pub passed: bool,
    /// It was told to switch to post-copy.
    pub postcopy: bool,
    /// What it is doing.
    pub phase: Phase,
    /// A source's mirror of its disk.
    pub mirror: Mirror,
    /// A target's disk can be written to from outside.
    pub exports: bool,
}

/// What a QEMU is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No migration.
    Idle,
    /// It connects.
    Setup(Move),
    /// It sends memory.
    Active(Move),
    /// The CPUs are stopped, and it waits to be told to go on.
    PreSwitchover(Move),
    /// It sends the rest.
    Device {
        /// For which migration.
        m: Move,
        /// The target has loaded everything and said so.
        acked: bool,
    },
    /// Post-copy: it sends the device state.
    Package {
        /// For which migration.
        m: Move,
        /// The target has got it.
        arrived: bool,
    },
    /// Post-copy: its memory is pulled (`postcopy-active`).
    Pulled {
        /// For which migration.
        m: Move,
        /// The target has got the device state.
        arrived: bool,
        /// The target has got everything.
        acked: bool,
    },
    /// Post-copy: the stream is broken (`postcopy-paused`).
    PullPaused(Move),
    /// Post-copy: it waits for the target over a new stream.
    PullResuming(Move),
    /// It was told to cancel.
    Cancelling(Move),
    /// Everything was sent and loaded.
    Completed,
    /// It could not be sent.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// Started to receive; it does not listen yet.
    Waiting(Move),
    /// It listens and loads.
    Listening(Move),
    /// It has loaded everything.
    Loaded(Move),
    /// It has loaded everything, and its CPUs have run.
    Arrived,
    /// Post-copy: it has the device state and pulls memory.
    Pulling(Move),
    /// Post-copy: the stream is broken.
    PullBroken(Move),
    /// Post-copy: it listens for a new stream.
    PullListening(Move),
}

/// What a QEMU says, until its daemon reads it. An entry holds all that QEMU
/// sends at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum News {
    /// `MIGRATION` active.
    Active,
    /// `MIGRATION_PASS`: the second.
    Pass,
    /// `STOP`.
    Stopped,
    /// `MIGRATION` postcopy-active.
    PostcopyActive,
    /// `MIGRATION` postcopy-paused.
    PostcopyPaused,
    /// `STOP` and `MIGRATION` pre-switchover.
    PreSwitchover,
    /// `MIGRATION` completed, on either side.
    Completed,
    /// `MIGRATION` failed, and `RESUME` where the CPUs go on.
    Failed {
        /// They do.
        resumed: bool,
    },
    /// `MIGRATION` cancelled, and `RESUME` where the CPUs go on.
    Cancelled {
        /// They do.
        resumed: bool,
    },
    /// `BLOCK_JOB_READY`.
    MirrorReady,
    /// `BLOCK_JOB_COMPLETED`.
    MirrorEnded,
    /// `BLOCK_JOB_COMPLETED` with an error, `BLOCK_JOB_CANCELLED`.
    MirrorFailed,
    /// `RESUME`.
    Resumed,
    /// `RESUME` if the CPUs stood, and the answer to the domain's own `cont`.
    Continued,
    /// The domain's `cont` was refused.
    ContRefused,
    /// `STOP` if the CPUs ran, and the answer to the domain's own `stop`.
    Halted,
    /// The answers to a look that was asked for.
    Look,
}

/// What a QEMU does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Progress {
    /// The stream stands: `active`.
    Connect,
    /// All memory was sent once.
    Pass,
    /// Little is left: the CPUs are stopped.
    Stop,
    /// A target loads everything.
    Load,
    /// Post-copy: a target gets the device state.
    LoadPackage,
    /// Post-copy: the device state has left.
    Leave,
    /// Post-copy: a target gets the last of the memory.
    Pull,
    /// Post-copy: the two have found each other again.
    Rejoin,
    /// The target's acknowledgement has come: `completed`.
    Complete,
    /// The stream is broken.
    Break,
    /// A cancel is through.
    Cancel,
    /// A mirror has copied everything once.
    MirrorReady,
    /// A mirror has ended with both sides the same.
    MirrorEnd,
    /// A mirror's stream is broken.
    MirrorBreak,
}

impl Qemu {
    /// One that was started to receive a migration.
    pub const fn incoming(m: Move) -> Self {
        Self {
            running: false,
            resumes: false,
            epoch: Epoch(0),
            newest: false,
            passed: false,
            postcopy: false,
            phase: Phase::Waiting(m),
            mirror: Mirror::None,
            exports: false,
        }
    }

    /// One that runs the guest.
    pub const fn running(epoch: Epoch) -> Self {
        Self {
            running: true,
            resumes: false,
            epoch,
            newest: true,
            passed: false,
            postcopy: false,
            phase: Phase::Idle,
            mirror: Mirror::None,
            exports: false,
        }
    }

    /// `query-status`.
    pub const fn status(&self) -> RunStatus {
        match self.phase {
            _ if self.running => RunStatus::Running,
            Phase::Waiting(_) | Phase::Listening(_) => RunStatus::InMigrate,
            Phase::Completed => RunStatus::PostMigrate,
            Phase::PreSwitchover(_)
            | Phase::Device { .. }
            | Phase::Package { .. }
            | Phase::Pulled { .. }
            | Phase::PullPaused(_)
            | Phase::PullResuming(_) => RunStatus::FinishMigrate,
            _ => RunStatus::Paused,
        }
    }

    /// Post-copy: the device state is on its way or has left. There is no way
    /// back: QEMU refuses `cont` ("not finalized yet"), and does not cancel.
    pub const fn refuses(&self) -> bool {
        matches!(
            self.phase,
            Phase::Package { .. }
                | Phase::Pulled { .. }
                | Phase::PullPaused(_)
                | Phase::PullResuming(_)
        )
    }

    /// Whether `query-migrate` tells of a migration under way, on either side.
    pub const fn migrating(&self) -> bool {
        matches!(
            self.phase,
            Phase::Pulling(_) | Phase::PullBroken(_) | Phase::PullListening(_)
        ) || self.sends().is_some()
    }

    /// `query-migrate`, as the daemon reads it.
    pub fn look(&self) -> Option<QemuMigration> {
        Some(match self.phase {
            Phase::Active(_) => QemuMigration::Active,
            Phase::PreSwitchover(_) => QemuMigration::PreSwitchover,
            Phase::Pulled { .. } | Phase::Pulling(_) => QemuMigration::PostcopyActive,
            // `postcopy-recover-setup` is taken for paused on a target.
            Phase::PullPaused(_) | Phase::PullBroken(_) | Phase::PullListening(_) => {
                QemuMigration::PostcopyPaused
            }
            Phase::Completed | Phase::Loaded(_) | Phase::Arrived => QemuMigration::Completed,
            Phase::Failed => QemuMigration::Failed(String::new()),
            Phase::Cancelled => QemuMigration::Cancelled,
            Phase::Idle => QemuMigration::Idle,
            // `setup`, `device`, `cancelling` and the like say nothing.
            Phase::Setup(_)
            | Phase::Device { .. }
            | Phase::Package { .. }
            | Phase::PullResuming(_)
            | Phase::Cancelling(_)
            | Phase::Waiting(_)
            | Phase::Listening(_) => return None,
        })
    }

    /// The migration that it sends.
    pub const fn sends(&self) -> Option<Move> {
        match self.phase {
            Phase::Setup(m)
            | Phase::Active(m)
            | Phase::PreSwitchover(m)
            | Phase::Device { m, .. }
            | Phase::Package { m, .. }
            | Phase::Pulled { m, .. }
            | Phase::PullPaused(m)
            | Phase::PullResuming(m)
            | Phase::Cancelling(m) => Some(m),
            _ => None,
        }
    }
}

/// What the QEMU of a host may do next by itself.
pub fn progress(world: &World, n: Host) -> Vec<Progress> {
    let Some(qemu) = &world.hosts[n].qemu else {
        return Vec::new();
    };
    let mut all = Vec::new();
    let mut add = |can: bool, what| {
        if can {
            all.push(what);
        }
    };
    disk::progress(world, qemu, &mut add);
    let broken = |m| breaks_for_source(world, m);
    match qemu.phase {
        Phase::Setup(m) => {
            add(broken(m), Progress::Break);
            add(!broken(m), Progress::Connect);
        }
        Phase::Active(m) => {
            add(broken(m), Progress::Break);
            add(!broken(m), Progress::Stop);
            let plans = world.moves[m].outgoing.as_ref();
            let counts = plans.is_some_and(|o| o.plan.allows_postcopy());
            add(!broken(m) && counts && !qemu.passed, Progress::Pass);
        }
        Phase::Device { m, acked } => {
            add(acked, Progress::Complete);
            add(broken(m), Progress::Break);
        }
        Phase::Package { m, .. } => {
            add(true, Progress::Leave);
            add(broken(m), Progress::Break);
        }
        Phase::Pulled { m, acked, .. } => {
            add(acked, Progress::Complete);
            add(!acked && broken(m), Progress::Break);
        }
        Phase::PullResuming(m) => {
            let meets = target_qemu(world, m, |q| q.phase == Phase::PullListening(m));
            let up = world.moves[m].link.is_up();
            add(up && meets, Progress::Rejoin);
            add(!up || !meets, Progress::Break);
        }
        Phase::Cancelling(_) => add(true, Progress::Cancel),
        Phase::Listening(m) => {
            let breaks = breaks_for_target(world, m);
            add(breaks, Progress::Break);
            add(!breaks && is_sent(world, m), Progress::Load);
            add(!breaks && is_packed(world, m), Progress::LoadPackage);
        }
        Phase::Pulling(m) => {
            let breaks = breaks_for_target(world, m);
            add(breaks, Progress::Break);
            add(!breaks && is_pulled(world, m), Progress::Pull);
        }
        _ => {}
    }
    all
}

fn source_qemu(world: &World, m: Move) -> Option<&Qemu> {
    let qemu = world.hosts[world.source_of(m)?].qemu.as_ref()?;
    (qemu.sends() == Some(m)).then_some(qemu)
}

fn target_qemu(world: &World, m: Move, is: impl Fn(&Qemu) -> bool) -> bool {
    let target = world.target_of(m).map(|n| &world.hosts[n]);
    target.is_some_and(|host| host.qemu.as_ref().is_some_and(is))
}

fn is_sent(world: &World, m: Move) -> bool {
    source_qemu(world, m).is_some_and(|q| matches!(q.phase, Phase::Device { acked: false, .. }))
}

fn is_packed(world: &World, m: Move) -> bool {
    source_qemu(world, m).is_some_and(|q| {
        matches!(
            q.phase,
            Phase::Package { arrived: false, .. } | Phase::Pulled { arrived: false, .. }
        )
    })
}

fn is_pulled(world: &World, m: Move) -> bool {
    source_qemu(world, m).is_some_and(|q| matches!(q.phase, Phase::Pulled { acked: false, .. }))
}

/// The stream runs over the migration's connection, from QEMU to QEMU. A source
/// finds it broken when the other end is gone;
fn breaks_for_source(world: &World, m: Move) -> bool {
    let receives = |q: &Qemu| matches!(q.phase, Phase::Listening(of) | Phase::Loaded(of) | Phase::Pulling(of) if of == m);
    let link = &world.moves[m].link;
    !link.is_up() || !link.carried || !target_qemu(world, m, receives)
}

/// a target when it had begun.
fn breaks_for_target(world: &World, m: Move) -> bool {
    let link = &world.moves[m].link;
    let sends = |q: &Qemu| !matches!(q.phase, Phase::PullPaused(_) | Phase::PullResuming(_));
    let source = source_qemu(world, m).is_some_and(sends);
    let pulls = target_qemu(world, m, |q| q.phase == Phase::Pulling(m));
    !link.is_up() || (link.carried && !source) || (pulls && !link.carried)
}

impl Step<'_> {
    /// The QEMU of a host does something by itself.
    pub(crate) fn qemu_progress(&mut self, n: Host, what: Progress) {
        match what {
            Progress::Connect => self.enter(n, Phase::Active, News::Active),
            Progress::Pass => {
                self.qemu_mut(n, |q| q.passed = true);
                self.qemu_says(n, News::Pass);
            }
            Progress::Stop => self.qemu_stops(n),
            Progress::Load => self.qemu_loads(n),
            Progress::LoadPackage => self.qemu_loads_package(n),
            Progress::Leave => self.qemu_leaves(n),
            Progress::Pull => self.qemu_pulls(n),
            Progress::Rejoin => self.qemu_rejoins(n),
            Progress::Complete => {
                self.qemu_mut(n, |q| q.phase = Phase::Completed);
                self.qemu_says(n, News::Completed);
            }
            Progress::Break => self.qemu_breaks(n),
            Progress::MirrorReady | Progress::MirrorEnd | Progress::MirrorBreak => {
                self.mirror_progress(n, what);
            }
            Progress::Cancel => {
                let resumed = self.qemu_resumes(n, Phase::Cancelled);
                self.qemu_says(n, News::Cancelled { resumed });
            }
        }
    }

    fn enter(&mut self, n: Host, phase: fn(Move) -> Phase, news: News) {
        self.qemu_mut(n, |q| {
            if let Some(m) = q.sends() {
                q.phase = phase(m);
            }
        });
        self.qemu_says(n, news);
    }

    /// A guest that was paused before is sent without a stop in between, unless
    /// it is for post-copy.
    fn qemu_stops(&mut self, n: Host) {
        let Some(qemu) = &self.world.hosts[n].qemu else {
            return;
        };
        let (ran, postcopy) = (qemu.running, qemu.postcopy);
        if ran || postcopy {
            self.qemu_mut(n, |q| (q.running, q.resumes) = (false, ran));
            return self.enter(n, Phase::PreSwitchover, News::PreSwitchover);
        }
        self.qemu_mut(n, |q| {
            if let Some(m) = q.sends() {
                q.phase = Phase::Device { m, acked: false };
            }
        });
    }

    fn qemu_loads(&mut self, n: Host) {
        let Some(Phase::Listening(m)) = self.phase_of(n) else {
            return;
        };
        let newest = self.sent_newest(m);
        if let Some(source) = self.world.source_of(m) {
            self.qemu_mut(source, |q| q.phase = Phase::Device { m, acked: true });
        }
        self.qemu_mut(n, |q| (q.phase, q.newest) = (Phase::Loaded(m), newest));
        self.qemu_says(n, News::Completed);
    }

    fn phase_of(&self, n: Host) -> Option<Phase> {
        self.world.hosts[n].qemu.as_ref().map(|q| q.phase)
    }

    fn sent_newest(&self, m: Move) -> bool {
        source_qemu(&self.world, m).is_some_and(|q| q.newest && !q.running)
    }

    /// Post-copy: from here on the CPUs can run on the target.
    fn qemu_loads_package(&mut self, n: Host) {
        let Some(Phase::Listening(m)) = self.phase_of(n) else {
            return;
        };
        let newest = self.sent_newest(m);
        if let Some(source) = self.world.source_of(m) {
            self.qemu_mut(source, |q| match &mut q.phase {
                Phase::Package { arrived, .. } | Phase::Pulled { arrived, .. } => *arrived = true,
                _ => {}
            });
        }
        self.qemu_mut(n, |q| (q.phase, q.newest) = (Phase::Pulling(m), newest));
        self.qemu_says(n, News::PostcopyActive);
    }

    fn qemu_leaves(&mut self, n: Host) {
        let Some(Phase::Package { m, arrived }) = self.phase_of(n) else {
            return;
        };
        let acked = false;
        self.qemu_mut(n, |q| q.phase = Phase::Pulled { m, arrived, acked });
        self.qemu_says(n, News::PostcopyActive);
    }

    fn qemu_pulls(&mut self, n: Host) {
        let Some(Phase::Pulling(m)) = self.phase_of(n) else {
            return;
        };
        if let Some(source) = self.world.source_of(m) {
            self.qemu_mut(source, |q| {
                if let Phase::Pulled { acked, .. } = &mut q.phase {
                    *acked = true;
                }
            });
        }
        self.qemu_mut(n, |q| {
            q.phase = if q.running {
                Phase::Arrived
            } else {
                Phase::Loaded(m)
            };
        });
        self.qemu_says(n, News::Completed);
    }

    fn qemu_rejoins(&mut self, n: Host) {
        let Some(Phase::PullResuming(m)) = self.phase_of(n) else {
            return;
        };
        let (arrived, acked) = (true, false);
        self.qemu_mut(n, |q| q.phase = Phase::Pulled { m, arrived, acked });
        self.qemu_says(n, News::PostcopyActive);
        if let Some(target) = self.world.target_of(m) {
            self.qemu_mut(target, |q| q.phase = Phase::Pulling(m));
            self.qemu_says(target, News::PostcopyActive);
        }
    }

    /// What a broken stream makes of it.
    fn qemu_breaks(&mut self, n: Host) {
        match self.phase_of(n) {
            Some(Phase::Listening(_)) => {
                self.qemu_says(n, News::Failed { resumed: false });
                self.world.hosts[n].edit().qemu = None;
            }
            Some(Phase::Pulling(_) | Phase::Pulled { .. } | Phase::PullResuming(_)) => {
                self.pause_pulling(n);
            }
            _ => {
                let resumed = self.qemu_resumes(n, Phase::Failed);
                self.qemu_says(n, News::Failed { resumed });
            }
        }
    }

    /// The stream is gone, or QEMU is told so (`migrate-pause`).
    pub(crate) fn pause_pulling(&mut self, n: Host) {
        let paused = match self.phase_of(n) {
            Some(Phase::Pulling(m)) => Phase::PullBroken(m),
            Some(Phase::Pulled { m, .. } | Phase::PullResuming(m)) => Phase::PullPaused(m),
            _ => return,
        };
        self.qemu_mut(n, |q| q.phase = paused);
        self.qemu_says(n, News::PostcopyPaused);
    }

    /// A migration ended without success: the CPUs go on as before.
    fn qemu_resumes(&mut self, n: Host, end: Phase) -> bool {
        let resumes = self.world.hosts[n].qemu.as_ref().is_some_and(|q| q.resumes);
        self.qemu_mut(n, |q| (q.phase, q.resumes) = (end, false));
        if resumes {
            let epoch = self.world.hosts[n].qemu.as_ref().map(|q| q.epoch);
            self.start_cpus(n, epoch.unwrap_or_default());
        }
        resumes
    }

    /// The daemon hears of it later; one that is away never does.
    pub(crate) fn qemu_says(&mut self, n: Host, news: News) {
        let host = self.world.hosts[n].edit();
        if host.up {
            host.news.push(news);
        }
    }

    pub(crate) fn qemu_mut(&mut self, n: Host, change: impl FnOnce(&mut Qemu)) {
        if let Some(qemu) = &mut self.world.hosts[n].edit().qemu {
            change(qemu);
        }
    }

    /// The CPUs begin to run, whoever wants it so. Whether they did.
    pub(crate) fn start_cpus(&mut self, n: Host, epoch: Epoch) -> bool {
        let Some(qemu) = &self.world.hosts[n].qemu else {
            return false;
        };
        if qemu.refuses() {
            return false;
        }
        if qemu.running {
            self.qemu_mut(n, |q| q.epoch = q.epoch.max(epoch));
            return false;
        }
        self.judge_start(n, epoch);
        self.judge_disks(n);
        self.qemu_mut(n, |q| {
            (q.running, q.epoch, q.newest) = (true, epoch, true);
            if matches!(q.phase, Phase::Loaded(_)) {
                q.phase = Phase::Arrived;
            }
        });
        for other in (0..self.world.hosts.len()).filter(|other| *other != n) {
            if self.world.hosts[other]
                .qemu
                .as_ref()
                .is_some_and(|q| q.newest)
            {
                self.qemu_mut(other, |q| q.newest = false);
            }
        }
        true
    }
}
