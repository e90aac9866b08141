//! What goes wrong: drawn from the seed.

use crate::agenda::{ToQemu, What};
use crate::sim::{NODES, Sim, TROUBLED};

impl Sim {
    /// Whether faults may still happen.
    pub(crate) const fn troubled(&self) -> bool {
        self.now < TROUBLED && !self.calm
    }

    /// One fault, and the time of the next.
    pub(crate) fn make_trouble(&mut self) {
        if self.calm {
            return;
        }
        if !self.troubled() {
            return self.heal();
        }
        self.report.faults += 1;
        match self.rng.between(0, 100) {
            0..12 => {
                self.note("the coordinator is killed");
                if self.coordinator.cluster.is_some() {
                    self.crash_coordinator();
                }
            }
            12..32 => self.kill_daemon(false),
            32..38 => self.kill_daemon(true),
            38..60 => self.partition(),
            60..66 => self.split(),
            66..76 => self.lose_session(),
            76..86 => self.kill_qemu(),
            86..93 => self.power_off(),
            _ => {
                let n = self.any_node();
                let length = self.rng.between(500, 8_000);
                self.nodes[n].slow_until = self.now + length;
                self.note(&format!("node {} is slow for {length} ms", n + 1));
            }
        }
        let next = self.now + self.rng.between(200, 4_000);
        self.agenda.add(next, What::Trouble);
    }

    fn any_node(&mut self) -> usize {
        let all: Vec<usize> = (0..NODES).collect();
        self.rng.pick(&all).unwrap_or(0)
    }

    fn kill_daemon(&mut self, host: bool) {
        let n = self.any_node();
        if !self.nodes[n].up {
            return;
        }
        self.note(&format!("node {} ends; its host: {host}", n + 1));
        match host {
            true => self.reboot_node(n),
            false => self.crash_node(n),
        }
        let at = self.now + self.rng.between(100, 10_000);
        self.agenda.add(at, What::Start(n));
    }

    /// Two hosts do not reach each other for a while.
    fn partition(&mut self) {
        let (a, b) = (self.rng.between(0, 5), self.rng.between(0, 5));
        let (Ok(a), Ok(b)) = (usize::try_from(a.min(b)), usize::try_from(a.max(b))) else {
            return;
        };
        if a == b || !self.cut(a, b) {
            return;
        }
        let length = self.rng.between(100, 15_000);
        self.note(&format!("{a} and {b} are cut off for {length} ms"));
        self.agenda.add(self.now + length, What::Mend(a, b));
    }

    /// The hosts fall into two sides that do not reach each other for a while.
    fn split(&mut self) {
        let hosts = NODES as u64 + 1;
        let sides = self.rng.between(1, (1 << hosts) - 1);
        let length = self.rng.between(2_000, 25_000);
        self.note(&format!("sides {sides:05b} are cut off for {length} ms"));
        for (a, b) in (0..=NODES).flat_map(|b| (0..b).map(move |a| (a, b))) {
            if (sides >> a ^ sides >> b) & 1 == 1 && self.cut(a, b) {
                self.agenda.add(self.now + length, What::Mend(a, b));
            }
        }
    }

    /// Two hosts do not reach each other from now on, the lower number first.
    pub(crate) fn cut(&mut self, a: usize, b: usize) -> bool {
        if !self.cuts.insert((a, b)) {
            return false;
        }
        if a == 0 {
            if let Some(session) = self.nodes[b - 1].session {
                self.break_session(session);
            }
        } else {
            let between =
                |x: usize, y: usize| (x + 1 == a && y + 1 == b) || (x + 1 == b && y + 1 == a);
            for link in self.links.between(|l| between(l.source.0, l.target.0)) {
                self.cut_link(link);
            }
        }
        true
    }

    fn lose_session(&mut self) {
        let n = self.any_node();
        if let Some(session) = self.nodes[n].session {
            self.note(&format!("node {} loses its session", n + 1));
            self.break_session(session);
        }
    }

    fn some_qemu(&mut self) -> Option<(usize, u64)> {
        let pairs = self.nodes.iter().enumerate();
        let all: Vec<_> = pairs
            .flat_map(|(n, node)| node.qemus.keys().map(move |pid| (n, *pid)))
            .collect();
        self.rng.pick(&all)
    }

    fn kill_qemu(&mut self) {
        if let Some((n, pid)) = self.some_qemu()
            && let Some(qemu) = self.nodes[n].qemus.get(&pid).cloned()
        {
            self.note(&format!(
                "QEMU {pid} of {} on node {} is killed",
                qemu.vm,
                n + 1
            ));
            self.lost_guest(&qemu);
            self.end_qemu(n, pid);
        }
    }

    fn power_off(&mut self) {
        if let Some((n, pid)) = self.some_qemu() {
            self.on_qemu(n, pid, ToQemu::PowerOff);
        }
    }

    /// Everything comes back, and operators look after what only they can end.
    fn heal(&mut self) {
        self.note("all is healed");
        self.cuts.clear();
        for n in 0..NODES {
            self.nodes[n].slow_until = 0;
            self.agenda.add(self.now + 1 + n as u64, What::Start(n));
        }
        self.agenda.add(self.now + 1, What::StartCoordinator);
        self.agenda.add(self.now + 20_000, What::Rounds);
    }
}
