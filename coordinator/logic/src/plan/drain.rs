//! Emptying one node.
//!
//! The largest VM first, each to the open node where it leaves the cluster most
//! even. When something does not fit that way, the tightest fit is tried, which
//! packs more; whichever places more VMs is taken.

use std::cmp::Reverse;

use super::{Balance, Metric, Model, Move, Room};

/// Where the VMs of a node go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drain {
    /// Those that have a place.
    pub moves: Vec<Move>,
    /// Guests, by index, that no node has room for.
    pub stuck: Vec<usize>,
}

/// Finds a place for every movable guest of the host. Sources give nothing
/// back meanwhile, and targets take all: so the moves need no order.
pub fn drain(model: &Model, host: usize, metric: &Metric) -> Drain {
    let even = pack(model, host, metric, |balance, guest, to| {
        let score = balance.score_with(guest, to);
        // Non-negative floats sort like their bits.
        score.max(0.0).to_bits()
    });
    if even.stuck.is_empty() {
        return even;
    }
    let tight = pack(model, host, metric, |balance, _, to| {
        let limit = &model.hosts[to].limit;
        left(limit, balance.used(to))
    });
    if tight.stuck.len() < even.stuck.len() {
        tight
    } else {
        even
    }
}

/// Memory first: it is what cannot be shared.
fn left(limit: &Room, used: &Room) -> u64 {
    limit[0].saturating_sub(used[0])
}

fn pack(
    model: &Model,
    host: usize,
    metric: &Metric,
    rank: impl Fn(&Balance<'_>, usize, usize) -> u64,
) -> Drain {
    let mut closed = model.clone();
    closed.hosts[host].open = false;
    let mut balance = Balance::of(&closed, metric);
    let guests = model.guests.iter().enumerate();
    let here = guests.filter(|(_, guest)| guest.host == host && guest.movable);
    let mut order: Vec<usize> = here.map(|(index, _)| index).collect();
    order.sort_by_key(|index| Reverse(model.guests[*index].takes));
    let mut drain = Drain::default();
    for guest in order {
        let open = (0..model.hosts.len()).filter(|to| *to != host && balance.takes(guest, *to));
        match open.min_by_key(|to| (rank(&balance, guest, *to), *to)) {
            Some(to) => {
                balance.put(guest, to);
                let from = host;
                drain.moves.push(Move { guest, from, to });
            }
            None => drain.stuck.push(guest),
        }
    }
    drain
}
