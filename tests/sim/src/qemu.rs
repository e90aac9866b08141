//! A QEMU, as far as a cluster depends on it. `tests/model/src/qemu.rs` has the
//! states and their source in full; here they take time.

use godwit_node_logic::domain::{Action, Event, Happening};
use godwit_node_logic::handoff::QemuMigration;
use godwit_node_logic::qmp::status::RunStatus;
use godwit_shared::model::{MigrationId, Problem, VmId, codes};

use crate::agenda::{N, News, ToNode, ToQemu, What};
use crate::sim::Sim;

/// A process.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// Whose.
    pub vm: VmId,
    /// MiB.
    pub memory: u64,
    /// The CPUs run.
    pub running: bool,
    /// They go on by themselves when a migration fails.
    pub resumes: bool,
    /// The CPUs have run since its start.
    pub fresh: bool,
    /// Which of the guest's moments its memory holds.
    pub moment: u64,
    /// What it does.
    pub phase: Phase,
    /// When it last said something: words come in order.
    pub said: u64,
    /// When it last was told something.
    pub told: u64,
}

/// What a QEMU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No migration.
    Idle,
    /// It connects.
    Setup(MigrationId, u64),
    /// It sends memory.
    Active(MigrationId, u64),
    /// The CPUs stand still until it is told to go on.
    PreSwitchover(MigrationId, u64),
    /// It sends the rest.
    Device(MigrationId, u64),
    /// It was told to cancel.
    Cancelling,
    /// All was sent and loaded.
    Completed,
    /// It could not be.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// Started to receive.
    Waiting(MigrationId),
    /// It listens.
    Listening(MigrationId, u64),
    /// It has everything.
    Loaded,
    /// The guest powered itself off.
    Off,
}

impl Qemu {
    /// One that was just started.
    pub const fn new(vm: VmId, memory: u64, incoming: Option<MigrationId>) -> Self {
        Self {
            vm,
            memory,
            running: false,
            resumes: false,
            fresh: true,
            moment: 0,
            phase: match incoming {
                Some(migration) => Phase::Waiting(migration),
                None => Phase::Idle,
            },
            said: 0,
            told: 0,
        }
    }

    /// `query-status`.
    pub const fn status(&self) -> RunStatus {
        match self.phase {
            _ if self.running => RunStatus::Running,
            Phase::Waiting(_) | Phase::Listening(..) => RunStatus::InMigrate,
            Phase::Completed => RunStatus::PostMigrate,
            Phase::PreSwitchover(..) | Phase::Device(..) => RunStatus::FinishMigrate,
            Phase::Off => RunStatus::Shutdown,
            Phase::Idle if self.fresh => RunStatus::Prelaunch,
            _ => RunStatus::Paused,
        }
    }

    /// Whether it sends.
    pub const fn sends(&self) -> Option<(MigrationId, u64)> {
        match self.phase {
            Phase::Setup(m, link)
            | Phase::Active(m, link)
            | Phase::PreSwitchover(m, link)
            | Phase::Device(m, link) => Some((m, link)),
            _ => None,
        }
    }

    /// `query-migrate`, as the daemon reads it.
    pub fn look(&self) -> Option<QemuMigration> {
        Some(match self.phase {
            Phase::Setup(..) => QemuMigration::Connecting,
            Phase::Active(..) => QemuMigration::Active,
            Phase::PreSwitchover(..) => QemuMigration::PreSwitchover,
            Phase::Completed | Phase::Loaded => QemuMigration::Completed,
            Phase::Failed => QemuMigration::Failed(String::new()),
            Phase::Cancelled => QemuMigration::Cancelled,
            Phase::Idle => QemuMigration::Idle,
            _ => return None,
        })
    }
}

fn happened(what: Happening) -> Event {
    Event::Happened(what)
}

impl Sim {
    /// Tells a QEMU something, after everything that it was told before.
    pub(crate) fn tell_qemu(&mut self, n: N, pid: u64, what: ToQemu) {
        let takes = self.lag(n, 1, 15);
        let Some(qemu) = self.nodes[n].qemus.get_mut(&pid) else {
            return;
        };
        qemu.told = qemu.told.max(self.now + takes);
        let at = qemu.told;
        self.agenda.add(at, What::Qemu(n, pid, what));
    }

    fn later_qemu(&mut self, n: N, pid: u64, (low, high): (u64, u64), what: ToQemu) {
        let takes = self.lag(n, low, high);
        self.agenda.add(self.now + takes, What::Qemu(n, pid, what));
    }

    /// It says something: the daemon that lives now may hear it.
    pub(crate) fn qemu_says(&mut self, n: N, pid: u64, news: News) {
        let takes = self.lag(n, 1, 10);
        let life = self.nodes[n].life;
        let up = self.nodes[n].up;
        let Some(qemu) = self.nodes[n].qemus.get_mut(&pid) else {
            return;
        };
        qemu.said = qemu.said.max(self.now + takes);
        let (at, vm) = (qemu.said, qemu.vm);
        if up {
            let news = ToNode::News(vm, pid, news);
            self.agenda.add(at, What::Node(n, life, news));
        }
    }

    fn says_migration(&mut self, n: N, pid: u64, change: QemuMigration, events: Vec<Event>) {
        self.qemu_says(n, pid, News::Migration(change, events));
    }

    pub(crate) fn on_qemu(&mut self, n: N, pid: u64, what: ToQemu) {
        let Some(qemu) = self.nodes[n].qemus.get(&pid) else {
            return;
        };
        let phase = qemu.phase;
        match (what, phase) {
            (ToQemu::Do(action), _) => self.obey(n, pid, action),
            (ToQemu::Look, _) => {
                let (run, migrating) = (qemu.status(), qemu.sends().is_some());
                self.qemu_says(n, pid, News::Domain(Event::Status { run, migrating }));
            }
            (ToQemu::Migrate(m, link), _) => self.migrate_qemu(n, pid, m, link),
            (ToQemu::Connected, Phase::Setup(m, link)) => self.connect_streams(n, pid, m, link),
            (ToQemu::Stopped, Phase::Active(m, link)) => {
                let ran = std::mem::take(&mut self.qemu(n, pid).running);
                self.qemu(n, pid).resumes = ran;
                self.qemu(n, pid).phase = Phase::PreSwitchover(m, link);
                let stop = vec![happened(Happening::Stop)];
                self.says_migration(n, pid, QemuMigration::PreSwitchover, stop);
            }
            (ToQemu::Continue, Phase::PreSwitchover(m, link)) => {
                self.qemu(n, pid).phase = Phase::Device(m, link);
                self.later_qemu(n, pid, (2, 60), ToQemu::Sent);
            }
            (ToQemu::Continue, _) => self.qemu_says(n, pid, News::Refused),
            (ToQemu::Sent, Phase::Device(m, link)) => self.load_at_target(n, pid, m, link),
            (ToQemu::Acknowledged, Phase::Device(..)) => {
                self.qemu(n, pid).phase = Phase::Completed;
                let over = vec![happened(Happening::MigrationOver)];
                self.says_migration(n, pid, QemuMigration::Completed, over);
            }
            (ToQemu::CancelMigration, _) => self.cancel_in_qemu(n, pid),
            (ToQemu::Cancelled, Phase::Cancelling) => {
                let events = self.end_migration(n, pid, Phase::Cancelled);
                self.says_migration(n, pid, QemuMigration::Cancelled, events);
            }
            (ToQemu::Broken(link), _) => self.break_stream(n, pid, link),
            (ToQemu::PowerOff, _) if qemu.running => {
                self.qemu(n, pid).running = false;
                self.qemu(n, pid).phase = Phase::Off;
                let reason = "guest-shutdown".to_owned();
                let off = Happening::Shutdown {
                    guest: true,
                    reason,
                };
                self.qemu_says(n, pid, News::Domain(happened(off)));
            }
            (ToQemu::Kill, _) => self.end_qemu(n, pid),
            _ => {}
        }
    }

    fn qemu(&mut self, n: N, pid: u64) -> &mut Qemu {
        self.nodes[n]
            .qemus
            .entry(pid)
            .or_insert_with(|| Qemu::new(VmId::from_u128(0), 0, None))
    }

    /// The process ends. The daemon that lives hears of it.
    pub(crate) fn end_qemu(&mut self, n: N, pid: u64) {
        self.qemu_says(n, pid, News::Ended);
        self.nodes[n].qemus.remove(&pid);
        let broken: Vec<u64> = self.links.of_qemu(n, pid);
        for link in broken {
            self.break_streams(link);
        }
    }

    fn obey(&mut self, n: N, pid: u64, action: Action) {
        let replied = |outcome| Event::Replied { action, outcome };
        let fine = || replied(Ok(()));
        match action {
            Action::Cont => {
                let off = self.nodes[n]
                    .qemus
                    .get(&pid)
                    .is_some_and(|q| q.phase == Phase::Off);
                if !off && self.start_cpus(n, pid) {
                    self.qemu_says(n, pid, News::Domain(happened(Happening::Resume)));
                }
                self.qemu_says(n, pid, News::Domain(fine()));
            }
            Action::Stop => {
                if std::mem::take(&mut self.qemu(n, pid).running) {
                    self.qemu_says(n, pid, News::Domain(happened(Happening::Stop)));
                }
                self.qemu_says(n, pid, News::Domain(fine()));
            }
            Action::Reset => {
                self.qemu_says(n, pid, News::Domain(fine()));
                self.qemu_says(n, pid, News::Domain(happened(Happening::Reset)));
            }
            Action::Powerdown => {
                self.qemu_says(n, pid, News::Domain(fine()));
                self.later_qemu(n, pid, (200, 4_000), ToQemu::PowerOff);
            }
            Action::Quit => {
                self.qemu_says(n, pid, News::Domain(fine()));
                self.end_qemu(n, pid);
            }
            Action::CancelMigration => {
                self.cancel_in_qemu(n, pid);
                self.qemu_says(n, pid, News::Domain(fine()));
            }
        }
    }

    /// The CPUs begin to run. Whether they stood before.
    pub(crate) fn start_cpus(&mut self, n: N, pid: u64) -> bool {
        let Some(qemu) = self.nodes[n].qemus.get(&pid) else {
            return false;
        };
        if qemu.running || matches!(qemu.phase, Phase::Waiting(_) | Phase::Listening(..)) {
            return false;
        }
        let (vm, fresh, moment) = (qemu.vm, qemu.fresh, qemu.moment);
        let moment = self.judge_start(n, pid, vm, (!fresh).then_some(moment));
        let qemu = self.qemu(n, pid);
        (qemu.running, qemu.fresh, qemu.moment) = (true, false, moment);
        true
    }

    fn migrate_qemu(&mut self, n: N, pid: u64, m: MigrationId, link: u64) {
        let busy =
            self.qemu(n, pid).sends().is_some() || self.qemu(n, pid).phase == Phase::Cancelling;
        if busy {
            return self.qemu_says(n, pid, News::Refused);
        }
        self.qemu(n, pid).phase = Phase::Setup(m, link);
        self.later_qemu(n, pid, (2, 40), ToQemu::Connected);
    }

    fn connect_streams(&mut self, n: N, pid: u64, m: MigrationId, link: u64) {
        let there = self.links.target_qemu(link);
        let listens = there.and_then(|(t, p)| self.nodes[t].qemus.get(&p));
        let listens = listens.is_some_and(|q| q.phase == Phase::Listening(m, link));
        if !self.links.carries(link) || !listens {
            return self.break_stream(n, pid, link);
        }
        self.links.set_source_qemu(link, pid);
        self.qemu(n, pid).phase = Phase::Active(m, link);
        self.says_migration(n, pid, QemuMigration::Active, Vec::new());
        self.later_qemu(n, pid, (50, 3_000), ToQemu::Stopped);
    }

    fn load_at_target(&mut self, n: N, pid: u64, m: MigrationId, link: u64) {
        let Some((t, there)) = self
            .links
            .target_qemu(link)
            .filter(|_| self.links.carries(link))
        else {
            return self.break_stream(n, pid, link);
        };
        let moment = self.qemu(n, pid).moment;
        let Some(target) = self.nodes[t].qemus.get_mut(&there) else {
            return self.break_stream(n, pid, link);
        };
        if target.phase != Phase::Listening(m, link) {
            return;
        }
        (target.phase, target.moment, target.fresh) = (Phase::Loaded, moment, false);
        let over = vec![happened(Happening::MigrationOver)];
        self.says_migration(t, there, QemuMigration::Completed, over);
        self.later_qemu(n, pid, (1, 30), ToQemu::Acknowledged);
    }

    fn cancel_in_qemu(&mut self, n: N, pid: u64) {
        if self.qemu(n, pid).sends().is_some() {
            let link = self.qemu(n, pid).sends().map(|(_, link)| link);
            self.qemu(n, pid).phase = Phase::Cancelling;
            self.later_qemu(n, pid, (1, 40), ToQemu::Cancelled);
            if let Some(link) = link {
                self.break_streams(link);
            }
        }
    }

    fn break_stream(&mut self, n: N, pid: u64, link: u64) {
        let sends = self.qemu(n, pid).sends().is_some_and(|(_, of)| of == link);
        match self.qemu(n, pid).phase {
            // What waits to be told to go on finds out when it is.
            Phase::PreSwitchover(..) | Phase::Cancelling => {}
            Phase::Listening(_, of) if of == link => {
                self.says_migration(n, pid, QemuMigration::Failed(String::new()), Vec::new());
                self.end_qemu(n, pid);
            }
            _ if sends => {
                let events = self.end_migration(n, pid, Phase::Failed);
                self.says_migration(n, pid, QemuMigration::Failed(String::new()), events);
            }
            _ => {}
        }
    }

    /// A migration ended without success: the CPUs go on as before.
    fn end_migration(&mut self, n: N, pid: u64, phase: Phase) -> Vec<Event> {
        let resumes = std::mem::take(&mut self.qemu(n, pid).resumes);
        self.qemu(n, pid).phase = phase;
        let goes_on = resumes && self.start_cpus(n, pid);
        let resume = goes_on.then(|| happened(Happening::Resume));
        resume
            .into_iter()
            .chain([happened(Happening::MigrationOver)])
            .collect()
    }
}

/// QEMU's process is gone.
pub(crate) fn gone() -> Problem {
    Problem::new(codes::QEMU_GONE, "QEMU ended")
}
