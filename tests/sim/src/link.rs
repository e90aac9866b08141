//! The connections of migrations: what is said over one comes in order and once,
//! up to the moment at which it ends; then a tail of it is lost, and each side
//! notices at a time of its own.

use std::collections::BTreeMap;

use godwit_shared::model::MigrationId;
use godwit_shared::wire::peer::{SourceMessage, TargetMessage};

use crate::agenda::{N, ToNode, ToQemu, What};
use crate::sim::Sim;

/// One of them.
#[derive(Debug, Clone)]
pub struct Link {
    /// Of which migration.
    pub migration: MigrationId,
    /// The source's node and its daemon's life.
    pub source: (N, u32),
    /// The target's.
    pub target: (N, u32),
    /// It stands.
    pub up: bool,
    /// When the last word arrives there.
    to_target: u64,
    /// When the last word arrives here.
    to_source: u64,
    source_qemu: Option<u64>,
    target_qemu: Option<u64>,
}

/// All of them, by number.
#[derive(Debug, Default)]
pub struct Links {
    all: BTreeMap<u64, Link>,
    last: u64,
}

impl Links {
    /// A new connection.
    pub fn open(&mut self, migration: MigrationId, source: (N, u32), target: (N, u32)) -> u64 {
        self.last += 1;
        let link = Link {
            migration,
            source,
            target,
            up: true,
            to_target: 0,
            to_source: 0,
            source_qemu: None,
            target_qemu: None,
        };
        self.all.insert(self.last, link);
        self.last
    }

    /// Whether it stands.
    pub fn carries(&self, link: u64) -> bool {
        self.all.get(&link).is_some_and(|link| link.up)
    }

    /// Where the target's QEMU listens.
    pub fn target_qemu(&self, link: u64) -> Option<(N, u64)> {
        let link = self.all.get(&link)?;
        Some((link.target.0, link.target_qemu?))
    }

    pub(crate) fn set_source_qemu(&mut self, link: u64, pid: u64) {
        if let Some(link) = self.all.get_mut(&link) {
            link.source_qemu = Some(pid);
        }
    }

    pub(crate) fn set_target_qemu(&mut self, link: u64, pid: u64) {
        if let Some(link) = self.all.get_mut(&link) {
            link.target_qemu = Some(pid);
        }
    }

    pub(crate) fn of_qemu(&self, n: N, pid: u64) -> Vec<u64> {
        let ours = |link: &Link| {
            (link.source.0 == n && link.source_qemu == Some(pid))
                || (link.target.0 == n && link.target_qemu == Some(pid))
        };
        let found = self.all.iter().filter(|(_, link)| ours(link));
        found.map(|(number, _)| *number).collect()
    }

    pub(crate) fn between(&self, of: impl Fn(&Link) -> bool) -> Vec<u64> {
        let found = self.all.iter().filter(|(_, link)| link.up && of(link));
        found.map(|(number, _)| *number).collect()
    }

    pub(crate) fn of(&self, link: u64) -> Option<&Link> {
        self.all.get(&link)
    }
}

impl Sim {
    /// Says something to the target.
    pub(crate) fn say_to_target(&mut self, link: u64, message: SourceMessage) {
        let Some(of) = self.links.of(link).filter(|link| link.up).cloned() else {
            return;
        };
        let at = of.to_target.max(self.now + self.lag(of.target.0, 1, 25));
        self.set_times(link, Some(at), None);
        let message = ToNode::FromSource(link, of.migration, Box::new(message));
        self.agenda
            .add(at, What::Node(of.target.0, of.target.1, message));
    }

    /// Says something to the source.
    pub(crate) fn say_to_source(&mut self, link: u64, message: TargetMessage) {
        let Some(of) = self.links.of(link).filter(|link| link.up).cloned() else {
            return;
        };
        let at = of.to_source.max(self.now + self.lag(of.source.0, 1, 25));
        self.set_times(link, None, Some(at));
        let message = ToNode::FromTarget(link, of.migration, Box::new(message));
        self.agenda
            .add(at, What::Node(of.source.0, of.source.1, message));
    }

    fn set_times(&mut self, link: u64, there: Option<u64>, here: Option<u64>) {
        if let Some(link) = self.links.all.get_mut(&link) {
            link.to_target = there.unwrap_or(link.to_target);
            link.to_source = here.unwrap_or(link.to_source);
        }
    }

    /// It is cut, and a tail of what was said over it is lost.
    pub(crate) fn cut_link(&mut self, link: u64) {
        let Some(of) = self.links.all.get_mut(&link).filter(|link| link.up) else {
            return;
        };
        of.up = false;
        let of = of.clone();
        for (side, lost) in [
            (of.source, ToNode::LinkLostHere(link, of.migration)),
            (of.target, ToNode::LinkLostThere(link, of.migration)),
        ] {
            let at = self.now + self.lag(side.0, 50, 1_500);
            self.agenda.add(at, What::Node(side.0, side.1, lost));
        }
        self.break_streams(link);
    }

    /// One side is through: the other reads what was said, then notices.
    pub(crate) fn close_link(&mut self, link: u64) {
        let Some(of) = self.links.of(link).filter(|link| link.up).cloned() else {
            return;
        };
        if let Some(link) = self.links.all.get_mut(&link) {
            link.up = false;
        }
        for (side, last, lost) in [
            (
                of.source,
                of.to_source,
                ToNode::LinkLostHere(link, of.migration),
            ),
            (
                of.target,
                of.to_target,
                ToNode::LinkLostThere(link, of.migration),
            ),
        ] {
            let at = last.max(self.now) + 1 + self.lag(side.0, 1, 25);
            self.agenda.add(at, What::Node(side.0, side.1, lost));
        }
        self.break_streams(link);
    }

    /// Both QEMUs find out, each in its own time.
    pub(crate) fn break_streams(&mut self, link: u64) {
        let Some(of) = self.links.of(link).cloned() else {
            return;
        };
        let ends = [
            of.source_qemu.map(|pid| (of.source.0, pid)),
            of.target_qemu.map(|pid| (of.target.0, pid)),
        ];
        for (n, pid) in ends.into_iter().flatten() {
            let at = self.now + self.lag(n, 1, 400);
            self.agenda
                .add(at, What::Qemu(n, pid, ToQemu::Broken(link)));
        }
    }
}
