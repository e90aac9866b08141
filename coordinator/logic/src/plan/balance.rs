//! How uneven the load is, as one number.
//!
//! For every kind of room the load of a node is the share of its capacity that
//! is taken (VMs are counted as they are). Its *spread* is the standard
//! deviation over the open nodes, with the count of nodes as the divisor. The
//! imbalance is the weighted sum of the spreads: 0 when all nodes are alike.
//! Shares are between 0 and 1 (more with overcommit), so with Godwit's own
//! weights (memory 1, vCPUs 1) one node of two full and the other empty is 1.0.
//!
//! The measure is that of Ganeti's `hbal` (hbal(1), "Cluster scoring"), whose
//! weights for clusters without DRBD come to [`Metric::HBAL`].
//!
//! Sums of the loads and of their squares are kept, so a move is tried in a
//! time that does not depend on the size of the cluster.

use super::{Host, KINDS, Model, Move, Room, add, fits, take};

/// What the kinds of room weigh: memory, vCPUs, disk, count of VMs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric(pub [f64; KINDS]);

impl Metric {
    /// Godwit's own: disks are not a node's.
    pub const GODWIT: Self = Self([1.0, 1.0, 0.0, 0.0]);
    /// As hbal 3.0 scores instances that have one node each: free memory, free
    /// disk and vCPU ratio with 0.5 twice (now, and with what is forthcoming), four
    /// dynamic loads of 1 for each instance.
    pub const HBAL: Self = Self([1.0, 1.0, 1.0, 4.0]);
}

/// Where every guest is, what the hosts hold, and how even that is.
#[derive(Debug, Clone)]
pub struct Balance<'a> {
    model: &'a Model,
    weights: [f64; KINDS],
    /// Where each guest is.
    pub(super) place: Vec<usize>,
    used: Vec<Room>,
    loads: Vec<[f64; KINDS]>,
    sums: [f64; KINDS],
    squares: [f64; KINDS],
    open: f64,
}

#[allow(
    clippy::cast_precision_loss,
    reason = "MiB of one node stay below 2^53"
)]
fn load_of(host: &Host, used: &Room) -> [f64; KINDS] {
    let mut load = [0.0; KINDS];
    for (kind, load) in load.iter_mut().enumerate() {
        let (used, capacity) = (used[kind] as f64, host.capacity[kind] as f64);
        *load = if capacity > 0.0 { used / capacity } else { 0.0 };
    }
    load
}

impl<'a> Balance<'a> {
    /// The model as it is.
    pub fn of(model: &'a Model, metric: &Metric) -> Self {
        let mut balance = Self {
            model,
            weights: metric.0,
            place: model.guests.iter().map(|guest| guest.host).collect(),
            used: model.hosts.iter().map(|host| host.used).collect(),
            loads: Vec::new(),
            sums: [0.0; KINDS],
            squares: [0.0; KINDS],
            open: 0.0,
        };
        balance.measure();
        balance
    }

    #[allow(clippy::cast_precision_loss, reason = "a count of hosts")]
    fn measure(&mut self) {
        let hosts = self.model.hosts.iter().zip(&self.used);
        self.loads = hosts.map(|(host, used)| load_of(host, used)).collect();
        self.sums = [0.0; KINDS];
        self.squares = [0.0; KINDS];
        let open = self.model.hosts.iter().zip(&self.loads);
        let open: Vec<_> = open.filter(|(host, _)| host.open).collect();
        self.open = open.len() as f64;
        for (_, load) in open {
            for (kind, share) in load.iter().enumerate() {
                self.sums[kind] += share;
                self.squares[kind] += share * share;
            }
        }
    }

    /// The imbalance.
    pub fn score(&self) -> f64 {
        self.weigh(&self.sums, &self.squares)
    }

    fn weigh(&self, sums: &[f64; KINDS], squares: &[f64; KINDS]) -> f64 {
        if self.open < 1.0 {
            return 0.0;
        }
        let mut score = 0.0;
        for kind in 0..KINDS {
            if self.weights[kind] > 0.0 {
                let mean = sums[kind] / self.open;
                let variance = squares[kind] / self.open - mean * mean;
                score += self.weights[kind] * variance.max(0.0).sqrt();
            }
        }
        score
    }

    /// What is taken on a host.
    pub fn used(&self, host: usize) -> &Room {
        &self.used[host]
    }

    /// Whether the guest may go there now.
    pub fn takes(&self, guest: usize, to: usize) -> bool {
        let (host, guest) = (&self.model.hosts[to], &self.model.guests[guest]);
        host.open && guest.may_be_on(to) && fits(&self.used[to], &guest.takes, &host.limit)
    }

    /// The imbalance when that guest were there; nothing is changed.
    pub fn score_with(&self, guest: usize, to: usize) -> f64 {
        let takes = &self.model.guests[guest].takes;
        let from = self.place[guest];
        let (mut sums, mut squares) = (self.sums, self.squares);
        let mut source = self.used[from];
        take(&mut source, takes);
        self.shift(from, &source, &mut sums, &mut squares);
        let mut target = self.used[to];
        add(&mut target, takes);
        self.shift(to, &target, &mut sums, &mut squares);
        self.weigh(&sums, &squares)
    }

    fn shift(&self, host: usize, used: &Room, sums: &mut [f64; KINDS], squares: &mut [f64; KINDS]) {
        if !self.model.hosts[host].open {
            return;
        }
        let (before, after) = (&self.loads[host], load_of(&self.model.hosts[host], used));
        for kind in 0..KINDS {
            sums[kind] += after[kind] - before[kind];
            squares[kind] += after[kind] * after[kind] - before[kind] * before[kind];
        }
    }

    /// Puts the guest there.
    pub fn put(&mut self, guest: usize, to: usize) {
        let takes = &self.model.guests[guest].takes;
        let from = std::mem::replace(&mut self.place[guest], to);
        take(&mut self.used[from], takes);
        add(&mut self.used[to], takes);
        self.measure();
    }

    /// Room is taken that no guest of the model gives back.
    pub fn reserve(&mut self, host: usize, more: &Room) {
        add(&mut self.used[host], more);
        self.measure();
    }

    /// Every guest that is not where it was.
    pub fn moves(&self) -> Vec<Move> {
        let guests = self.model.guests.iter().zip(&self.place).enumerate();
        let moved = guests.filter(|(_, (guest, place))| guest.host != **place);
        let as_move = |(guest, (was, to)): (usize, (&super::Guest, &usize))| Move {
            guest,
            from: was.host,
            to: *to,
        };
        moved.map(as_move).collect()
    }
}
