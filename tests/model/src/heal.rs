//! Whether every state heals.
//!
//! `stateright` looks for the end of each way, and takes one that runs into a
//! state it has seen for one that has not ended: its `eventually` would miss a
//! circle in which nothing ever gets better. So the model asks two things that
//! need no ways, only states:
//!
//! * a state in which nothing more can happen without another fault is settled
//!   ([`crate::judge::SETTLES`]);
//! * from every state there is a way without faults to such a one. It is looked
//!   for by taking, in each state, the first thing that gets on. A state that
//!   was found to heal is remembered, so this costs one more step a state.
//!
//! With the daemons fair (whatever can be done is done at some time), and the
//! states finite, that is: in the end it settles.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::world::World;
use crate::{Action, Handoff, action, step};

/// No way to an end is longer than this: a longer one runs in a circle.
const LONGEST: usize = 400;

/// The states that were found to heal.
#[derive(Default, Clone)]
pub struct Healed(Arc<Mutex<HashSet<u64, ahash::RandomState>>>);

impl fmt::Debug for Healed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Healed")
    }
}

/// The way to an end that [`heals`] looks for, as far as it gets.
pub fn way(model: &Handoff, world: &World) -> Vec<Action> {
    let mut way = Vec::new();
    let mut now = world.clone();
    while way.len() < LONGEST {
        let next = |action| Some((action, step::next(model, &now, action)?));
        let Some((action, next)) = action::gets_on(model, &now).find_map(next) else {
            break;
        };
        way.push(action);
        now = next;
    }
    way
}

/// Whether an end is reached without another fault.
pub fn heals(model: &Handoff, world: &World) -> bool {
    let mut healed = model
        .healed
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let name = ahash::RandomState::with_seeds(3, 5, 7, 9);
    let mut way = vec![name.hash_one(world)];
    let mut now = world.clone();
    while !healed.contains(&way[way.len() - 1]) {
        match action::gets_on(model, &now).find_map(|action| step::next(model, &now, action)) {
            Some(next) if way.len() < LONGEST => now = next,
            Some(_) => return false,
            None => break,
        }
        way.push(name.hash_one(&now));
    }
    healed.extend(way);
    true
}
