//! From "these VMs go there" to steps in an order that always has room.
//!
//! Steps are taken one by one: any whose target has room once the steps before
//! it are over. When none is left that fits, two VMs wait for each other's place,
//! and the rest of them stays where it is: a plan never begins what it cannot end.
//!
//! Invariant: let every step of the list that has begun hold its target, and
//! every step that has not ended hold its source. As long as a step begins only
//! when all in its `after` have ended, no host holds more than its limit, in
//! whatever order and however overlapping the steps begin and end.

use super::{Model, Move, Room, Step, add, fits, take};

/// Orders the moves. Those that would wait for each other are left out.
pub fn steps(model: &Model, moves: &[Move]) -> Vec<Step> {
    let mut order: Vec<Step> = Vec::new();
    let mut left: Vec<Move> = moves.to_vec();
    let mut used: Vec<Room> = model.hosts.iter().map(|host| host.used).collect();
    while let Some(place) = next(model, &used, &left) {
        let moving = left.remove(place);
        let takes = &model.guests[moving.guest].takes;
        add(&mut used[moving.to], takes);
        take(&mut used[moving.from], takes);
        let after = needed(model, &order, &moving);
        order.push(Step { moving, after });
    }
    order
}

/// The first that has room now.
fn next(model: &Model, used: &[Room], left: &[Move]) -> Option<usize> {
    left.iter().position(|one| {
        let takes = &model.guests[one.guest].takes;
        fits(&used[one.to], takes, &model.hosts[one.to].limit)
    })
}

/// Which steps have to leave the target first, in the worst case: all before it
/// have arrived there and none has left.
fn needed(model: &Model, before: &[Step], moving: &Move) -> Vec<usize> {
    let host = &model.hosts[moving.to];
    let takes = |step: &Step| model.guests[step.moving.guest].takes;
    let mut used = host.used;
    for step in before.iter().filter(|step| step.moving.to == moving.to) {
        add(&mut used, &takes(step));
    }
    let own = &model.guests[moving.guest].takes;
    let mut after = Vec::new();
    let leaving = before.iter().enumerate();
    for (place, step) in leaving.filter(|(_, step)| step.moving.from == moving.to) {
        if fits(&used, own, &host.limit) {
            break;
        }
        take(&mut used, &takes(step));
        after.push(place);
    }
    after
}
