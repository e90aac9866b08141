//! The simulation: one agenda, one clock, one seed.

use std::collections::{BTreeMap, BTreeSet};

use godwit_shared::model::{UnixMillis, VmId};

use crate::agenda::{Agenda, N, What};
use crate::check::Truth;
use crate::coordinator::Coordinator;
use crate::link::Links;
use crate::mutant::Mutant;
use crate::node::Node;
use crate::record::Recorder;
use crate::rng::Rng;

/// How many nodes there are.
pub const NODES: usize = 4;
/// MiB that each offers.
pub const MEMORY: u64 = 1024;
/// How long things go wrong and operators want something.
pub const TROUBLED: u64 = 60_000;
/// How long it may take until all is well again: longer than a task's patience
/// and a few more looks at a leftover.
pub const HEALING: u64 = 1_200_000;

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Things that happened.
    pub steps: u64,
    /// What went wrong, and when.
    pub breach: Option<String>,
    /// How many guests were moved.
    pub moved: u64,
    /// How many plans were asked for and taken.
    pub plans: u64,
    /// How many VMs were ended with a lease.
    pub ended_by_lease: u64,
    /// How many faults there were.
    pub faults: u64,
    /// The coordinator's recordings, where they were wanted, oldest first.
    pub recordings: Vec<Vec<u8>>,
    /// What happened, where that was wanted.
    pub trace: Vec<String>,
    /// A number that two runs have in common when all of it was the same.
    pub print: u64,
}

/// A cluster.
pub struct Sim {
    /// Virtual milliseconds.
    pub now: u64,
    pub(crate) rng: Rng,
    pub(crate) agenda: Agenda,
    pub(crate) coordinator: Coordinator,
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: Links,
    /// Hosts that do not reach each other; 0 is the coordinator's.
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    pub(crate) truth: BTreeMap<VmId, Truth>,
    pub(crate) mutant: Option<Mutant>,
    /// The load is evened out without being asked.
    pub(crate) evens: bool,
    /// Nothing is drawn: neither faults nor operators.
    pub(crate) calm: bool,
    pub(crate) breach: Option<String>,
    pub(crate) ids: u128,
    pub(crate) recorder: Option<Recorder>,
    pub(crate) report: Report,
    tracing: bool,
}

impl Sim {
    /// The cluster of that seed.
    pub fn new(seed: u64, mutant: Option<Mutant>, tracing: bool) -> Self {
        let mut sim = Self {
            now: 0,
            rng: Rng::new(seed),
            agenda: Agenda::default(),
            coordinator: Coordinator::default(),
            nodes: (0..NODES).map(|_| Node::default()).collect(),
            links: Links::default(),
            cuts: BTreeSet::new(),
            truth: BTreeMap::new(),
            mutant,
            evens: seed.is_multiple_of(3),
            calm: false,
            breach: None,
            ids: 0,
            recorder: None,
            report: Report {
                seed,
                steps: 0,
                breach: None,
                moved: 0,
                plans: 0,
                ended_by_lease: 0,
                faults: 0,
                recordings: Vec::new(),
                trace: Vec::new(),
                print: 0,
            },
            tracing,
        };
        sim.coordinator.found();
        sim.agenda.add(0, What::StartCoordinator);
        for n in 0..NODES {
            sim.agenda.add(1 + n as u64, What::Start(n));
        }
        sim.agenda.add(500, What::Operator);
        sim.agenda.add(1_500, What::Trouble);
        sim
    }

    /// It records what its coordinator does.
    #[must_use]
    pub fn recorded(mut self) -> Self {
        self.recorder = Some(Recorder::default());
        self
    }

    /// Runs it to its end, or to the first breach.
    pub fn run(mut self) -> Report {
        while let Some((at, what)) = self.agenda.pop() {
            if at > TROUBLED + HEALING {
                self.check_end();
                break;
            }
            self.now = at;
            self.report.steps += 1;
            self.trace(&what);
            self.take(what);
            self.check_step();
            if self.breach.is_some() {
                break;
            }
        }
        self.report.breach = self.breach.take();
        self.report.recordings = self.recorder.take().map(|r| r.files).unwrap_or_default();
        self.report
    }

    pub(crate) fn take(&mut self, what: What) {
        match what {
            What::Coordinator(to) => self.on_coordinator(to),
            What::Node(n, life, to) => {
                if self.nodes[n].up && self.nodes[n].life == life {
                    self.on_node(n, to);
                }
            }
            What::Qemu(n, pid, to) => self.on_qemu(n, pid, to),
            What::Guardian(n, boot) => {
                if self.nodes[n].boot == boot {
                    self.watch_over(n);
                }
            }
            What::Start(n) => self.start_node(n),
            What::StartCoordinator => self.start_coordinator(),
            What::Mend(a, b) => drop(self.cuts.remove(&(a, b))),
            What::Trouble => self.make_trouble(),
            What::Operator => self.operate(),
            What::Rounds => self.make_rounds(),
        }
    }

    /// Every step goes into the print; into the trace where one is wanted.
    fn trace(&mut self, what: &What) {
        let drawn = self.rng.clone().next();
        let mixed = self.report.print ^ self.now ^ drawn;
        self.report.print = mixed.wrapping_mul(0x0100_0000_01b3);
        if self.tracing {
            self.report.trace.push(format!("{:>8} {what:?}", self.now));
        }
    }

    /// Notes something beside the steps.
    pub(crate) fn note(&mut self, text: &str) {
        if self.tracing {
            self.report.trace.push(format!("{:>8}   {text}", self.now));
        }
    }

    /// The rules are broken.
    pub(crate) fn breach(&mut self, text: &str) {
        self.note(&format!("BREACH: {text}"));
        let at = self.now;
        self.breach.get_or_insert(format!("at {at} ms: {text}"));
    }

    /// The clock as the daemons read it.
    pub(crate) const fn clock(&self) -> UnixMillis {
        UnixMillis(1_000_000 + self.now)
    }

    /// How long something takes on that host: more on a slow one.
    pub(crate) fn lag(&mut self, n: N, low: u64, high: u64) -> u64 {
        let takes = self.rng.between(low, high);
        match self
            .nodes
            .get(n)
            .is_some_and(|node| node.slow_until > self.now)
        {
            true => takes * 40,
            false => takes,
        }
    }

    /// Whether two hosts reach each other; 0 is the coordinator's.
    pub(crate) fn reach(&self, a: usize, b: usize) -> bool {
        !self.cuts.contains(&(a.min(b), a.max(b)))
    }

    /// An id that was never used.
    pub(crate) const fn fresh(&mut self) -> u128 {
        self.ids += 1;
        self.ids
    }

    pub(crate) fn mutates(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}
