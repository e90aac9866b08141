//! Plans: which VMs move where, in which order, and why not the others.
//!
//! A plan is computed by pure code from a [`Model`] of the cluster at one
//! moment, and never changes afterwards; whoever executes it only goes through it. There
//! are two searches: [`drain`] empties a node, [`rebalance`] evens the load out
//! ([`balance`] says what is measured). [`order`] turns "this VM from here to
//! there" into steps.
//!
//! # Two copies while a VM moves
//!
//! A migration takes room at its target from its beginning and gives room back
//! at its source only at its end. So a step that needs the room of a VM that is
//! to leave names that VM's step in [`Step::after`]. With that a target holds no
//! more than it can at any instant, however the steps that are free to begin
//! overlap: the invariant of [`order::steps`], and a property test's.
//!
//! # Rules
//!
//! * A VM has one step at most: a way over a third node is one move to its end.
//! * What cannot move is listed with its reason before anything begins.
//! * The same model gives the same plan.

mod balance;
mod drain;
pub mod hbal;
pub mod order;
mod rebalance;
#[cfg(test)]
mod tests;

use godwit_shared::model::{BytesPerSec, MiB, Millis, Usage};

pub use balance::{Balance, Metric};
pub use drain::{Drain, drain};
pub use rebalance::{Policy, rebalance};

/// How many kinds of room there are.
pub const KINDS: usize = 4;
/// Room by kind: memory in MiB, vCPUs, disk in MiB, and the count of VMs.
pub type Room = [u64; KINDS];

/// What a VM of that usage takes.
pub fn room_of(usage: Usage) -> Room {
    [usage.memory.0, u64::from(usage.vcpus), 0, 1]
}

/// The nodes and VMs at one moment. They are known by their index.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Model {
    /// The nodes.
    pub hosts: Vec<Host>,
    /// VMs that take room on them.
    pub guests: Vec<Guest>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// What its load is a share of.
    pub capacity: Room,
    /// What it can hold: the capacity, with overcommit where there is any.
    pub limit: Room,
    /// What is taken there, by the guests of this model and by anything else.
    pub used: Room,
    /// It may receive VMs, and its load is looked at.
    pub open: bool,
}

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub host: usize,
    /// What it takes.
    pub takes: Room,
    /// It may be moved.
    pub movable: bool,
    /// Where it may go, by host; anywhere when there is none.
    pub hosts: Option<Vec<bool>>,
}

impl Guest {
    /// Whether that host is one for it, room apart.
    pub fn may_be_on(&self, host: usize) -> bool {
        let named = |hosts: &Vec<bool>| hosts.get(host).copied().unwrap_or(false);
        self.hosts.as_ref().is_none_or(named)
    }
}

impl Host {
    /// Whether there is room for that much more.
    pub fn has_room(&self, more: &Room) -> bool {
        fits(&self.used, more, &self.limit)
    }
}

pub(crate) fn fits(used: &Room, more: &Room, limit: &Room) -> bool {
    used.iter()
        .zip(more)
        .zip(limit)
        .all(|((used, more), limit)| used.saturating_add(*more) <= *limit)
}

pub(crate) fn add(to: &mut Room, more: &Room) {
    for (to, more) in to.iter_mut().zip(more) {
        *to = to.saturating_add(*more);
    }
}

pub(crate) fn take(from: &mut Room, less: &Room) {
    for (from, less) in from.iter_mut().zip(less) {
        *from = from.saturating_sub(*less);
    }
}

/// A VM that is to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Move {
    /// The guest's index.
    pub guest: usize,
    /// From which host.
    pub from: usize,
    /// To which.
    pub to: usize,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What moves.
    pub moving: Move,
    /// Steps, by their place in the list, that have to have ended before.
    pub after: Vec<usize>,
}

/// How long moving so much memory takes at that rate.
pub fn time_of(memory: MiB, rate: BytesPerSec) -> Millis {
    let bytes = u128::from(memory.0) << 20;
    let millis = bytes * 1000 / u128::from(rate.0.max(1));
    Millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// When the last of them ends, when so many go at once: each begins as soon as
/// a place is free and what it waits for is over.
pub fn total_time(each: &[(Millis, Vec<usize>)], parallel: u32) -> Millis {
    let lanes = usize::try_from(parallel.max(1)).unwrap_or(1);
    let mut free = vec![0_u64; lanes.min(each.len().max(1))];
    let mut ends: Vec<u64> = Vec::with_capacity(each.len());
    for (takes, after) in each {
        let ready = after.iter().filter_map(|step| ends.get(*step)).max();
        let Some(lane) = free.iter_mut().min() else {
            break;
        };
        *lane = (*lane)
            .max(ready.copied().unwrap_or(0))
            .saturating_add(takes.0);
        ends.push(*lane);
    }
    Millis(ends.into_iter().max().unwrap_or(0))
}
