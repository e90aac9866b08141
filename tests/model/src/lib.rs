//! The handoff, searched state by state.
//!
//! [`Handoff`] is a model for [`stateright`]: hosts whose daemons run the
//! production state machines of `node/logic` and `coordinator/logic`, over a
//! network that loses and delays, with daemons, QEMUs and hosts that die at any
//! step.
#![allow(
    clippy::match_bool,
    reason = "what happens and what does not stand side by side, as in a table"
)]

pub mod action;
pub mod cases;
pub mod coordinator;
pub mod disk;
pub mod fault;
pub mod heal;
pub mod host;
pub mod judge;
pub mod link;
pub mod mutant;
pub mod part;
pub mod qemu;
pub mod run;
pub mod step;
pub mod world;

use godwit_node_logic::handoff::Plan;
use godwit_shared::model::NodeId;
use stateright::{Model, Property};

pub use action::{Action, Fault};
pub use fault::Budget;
pub use judge::{
    DISK_KEPT, HEALS, HIGHEST_EPOCH, NO_PAST, ONE_RUNNER, SETTLES, WHOLE_DISK, WORD_STANDS,
    WRITTEN_FIRST, ends, unsettled,
};
pub use mutant::Mutant;
pub use world::{End, Host, World};

/// What is searched: the production code, or a mutant of it, within bounds.
#[derive(Debug, Clone)]
pub struct Handoff {
    /// The faults that may happen.
    pub budget: Budget,
    /// The second migrations that may be asked for.
    pub seconds: &'static [(Host, Host)],
    /// The guest is paused by its operator.
    pub paused: bool,
    /// On which terms the guest is moved.
    pub plan: Plan,
    /// There is a coordinator.
    pub coordinator: bool,
    /// The bug that is seeded.
    pub mutant: Option<Mutant>,
    /// The states that were found to heal.
    pub healed: heal::Healed,
    /// The coordinator's steps that were taken before.
    pub memo: coordinator::Memo,
}

impl Handoff {
    /// The production code, with so many faults.
    pub fn with(budget: Budget) -> Self {
        Self {
            budget,
            seconds: &[],
            paused: false,
            plan: Plan::default(),
            coordinator: false,
            mutant: None,
            healed: heal::Healed::default(),
            memo: coordinator::Memo::default(),
        }
    }
}

/// The name of a host.
pub(crate) fn node_id(n: Host) -> NodeId {
    const NAMES: [&str; world::HOSTS] = ["node-a", "node-b", "node-c"];
    // The names are fine, so the second never comes to pass.
    NAMES[n].parse().unwrap_or_else(|_| node_id(0))
}

impl Model for Handoff {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![step::first(self)]
    }

    fn actions(&self, state: &World, actions: &mut Vec<Action>) {
        action::actions(self, state, actions);
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        step::next(self, last, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        judge::properties()
    }
}
