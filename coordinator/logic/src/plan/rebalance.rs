//! Evening the load out with few moves.
//!
//! 1. *Descend*: of all moves of one VM take the one that lowers the imbalance
//!    most, until none gains [`Policy::min_gain`], as `hbal` does.
//! 2. *Polish*, with no more VMs moved: another target for a VM that moves;
//!    another VM instead of one that moves; two that move change their targets.
//! 3. *Prune*: a VM whose staying costs less than the least gain stays.
//!
//! Again from 1 until nothing changes. A VM that moved twice on the way counts
//! once, since only its end is carried out.
//!
//! # No ping-pong
//!
//! The search ends where no single move gains `min_gain`; so planning again
//! from there finds nothing. It begins only where some move gains
//! [`Policy::first_gain`], which is more: loads that shift by so little that no
//! move's gain changes by the difference of the two move nothing. And a plan
//! whose whole gain is below [`Policy::threshold`] is not made at all.
//! A cool-down is the caller's: a VM that moved lately is given as not movable.

use super::{Balance, Metric, Model, Move};

/// Rounds of descend, polish and prune.
const ROUNDS: usize = 12;
/// Sums of floats are no more exact than this.
const NOISE: f64 = 1e-9;

/// When to move, and how much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// What is measured.
    pub metric: Metric,
    /// The least that a whole plan gains.
    pub threshold: f64,
    /// The least that some single move gains, for a plan to be begun.
    pub first_gain: f64,
    /// The least that each move of a plan gains.
    pub min_gain: f64,
    /// At most so many moves.
    pub max_moves: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            metric: Metric::GODWIT,
            threshold: 0.05,
            first_gain: 0.01,
            min_gain: 0.005,
            max_moves: 50,
        }
    }
}

/// The moves that are worth it; none when the gain is not.
pub fn rebalance(model: &Model, policy: &Policy) -> Vec<Move> {
    let before = Balance::of(model, &policy.metric);
    let mut search = Search {
        model,
        policy,
        now: before.clone(),
    };
    search.run();
    let gained = before.score() - search.now.score();
    if gained + NOISE < policy.threshold || gained <= NOISE {
        return Vec::new();
    }
    search.now.moves()
}

struct Search<'a> {
    model: &'a Model,
    policy: &'a Policy,
    now: Balance<'a>,
}

impl Search<'_> {
    fn run(&mut self) {
        if self.best(false, self.policy.first_gain).is_none() {
            return;
        }
        self.descend();
        for _ in 0..ROUNDS {
            let polished = self.polish();
            let pruned = self.prune();
            let descended = self.descend();
            if !(polished || pruned || descended) {
                return;
            }
        }
    }

    fn moved(&self) -> Vec<usize> {
        let guests = self.model.guests.iter().zip(&self.now.place).enumerate();
        let moved = guests.filter(|(_, (guest, place))| guest.host != **place);
        moved.map(|(index, _)| index).collect()
    }

    /// Whether the guest is free to move: it may, and its node is looked at.
    fn free(&self, guest: usize) -> bool {
        let guest = &self.model.guests[guest];
        guest.movable && self.model.hosts[guest.host].open
    }

    fn descend(&mut self) -> bool {
        let mut any = false;
        // Each step lowers the imbalance by `least`, so it ends; the bound is
        // for a `min_gain` of nothing.
        for _ in 0..self.policy.max_moves.saturating_mul(4).max(16) {
            let full = self.moved().len() >= self.policy.max_moves;
            let Some((guest, to)) = self.best(full, self.policy.min_gain) else {
                break;
            };
            self.now.put(guest, to);
            any = true;
        }
        any
    }

    /// The best move of one guest that gains more than `least`. When `full`, only
    /// of one that moves already.
    fn best(&self, full: bool, least: f64) -> Option<(usize, usize)> {
        let mut best = (self.now.score() - least.max(NOISE), None);
        let mut seen = std::collections::HashSet::new();
        for (guest, was) in self.model.guests.iter().enumerate() {
            let place = self.now.place[guest];
            let moves = was.host != place;
            if !self.free(guest) || (full && !moves) {
                continue;
            }
            // Guests that are alike need one look.
            if was.hosts.is_some() || seen.insert((place, was.takes)) {
                self.best_of(guest, &mut best);
            }
        }
        best.1
    }

    fn best_of(&self, guest: usize, best: &mut (f64, Option<(usize, usize)>)) {
        let place = self.now.place[guest];
        for to in (0..self.model.hosts.len()).filter(|to| *to != place) {
            if self.now.takes(guest, to) {
                let score = self.now.score_with(guest, to);
                if score < best.0 {
                    *best = (score, Some((guest, to)));
                }
            }
        }
    }

    /// Improves without moving more VMs.
    fn polish(&mut self) -> bool {
        let mut any = false;
        for guest in self.moved() {
            any |= self.retarget(guest) || self.replace(guest);
        }
        any | self.exchange()
    }

    fn retarget(&mut self, guest: usize) -> bool {
        let mut best = (self.now.score() - NOISE, None);
        self.best_of(guest, &mut best);
        let found = best
            .1
            .filter(|(_, to)| *to != self.model.guests[guest].host);
        if let Some((guest, to)) = found {
            self.now.put(guest, to);
        }
        found.is_some()
    }

    /// Another guest of the same host instead, where that is better.
    fn replace(&mut self, guest: usize) -> bool {
        let (home, to) = (self.model.guests[guest].host, self.now.place[guest]);
        if to == home || !self.now.takes(guest, home) {
            return false;
        }
        let before = self.now.score();
        self.now.put(guest, home);
        let mut best = (before - NOISE, None);
        for other in 0..self.model.guests.len() {
            let stays = self.now.place[other] == self.model.guests[other].host;
            if other != guest && stays && self.free(other) && self.now.place[other] == home {
                self.best_of(other, &mut best);
            }
        }
        let (who, place) = best.1.unwrap_or((guest, to));
        self.now.put(who, place);
        best.1.is_some()
    }

    /// Two that move change their targets, or the one takes the other's.
    fn exchange(&mut self) -> bool {
        let moved = self.moved();
        let mut any = false;
        for (at, &a) in moved.iter().enumerate() {
            for &b in &moved[at + 1..] {
                any |= self.exchange_pair(a, b);
            }
        }
        any
    }

    fn exchange_pair(&mut self, a: usize, b: usize) -> bool {
        let (to_a, to_b) = (self.now.place[a], self.now.place[b]);
        let home = |guest: usize| self.model.guests[guest].host;
        if to_a == to_b || to_a == home(b) || to_b == home(a) {
            return false;
        }
        let before = self.now.score();
        if !self.swap_places(a, b) {
            return false;
        }
        if self.now.score() < before - NOISE {
            return true;
        }
        self.now.put(a, to_a);
        self.now.put(b, to_b);
        false
    }

    /// Puts each where the other is, when both fit in the end.
    fn swap_places(&mut self, a: usize, b: usize) -> bool {
        let (to_a, to_b) = (self.now.place[a], self.now.place[b]);
        // Out of the way, then back: the room of both is free for both.
        let (home_a, home_b) = (self.model.guests[a].host, self.model.guests[b].host);
        self.now.put(a, home_a);
        self.now.put(b, home_b);
        let fits = self.now.takes(a, to_b) && self.now.takes(b, to_a);
        if fits {
            self.now.put(a, to_b);
            self.now.put(b, to_a);
        } else {
            self.now.put(a, to_a);
            self.now.put(b, to_b);
        }
        fits
    }

    /// Leaves where they are those whose move is not worth it any more.
    fn prune(&mut self) -> bool {
        let mut any = false;
        for guest in self.moved() {
            let home = self.model.guests[guest].host;
            let cost = self.now.score_with(guest, home) - self.now.score();
            if cost < self.policy.min_gain - NOISE && self.now.takes(guest, home) {
                self.now.put(guest, home);
                any = true;
            }
        }
        any
    }
}
