//! Telling every node who the members are.
//!
//! A node gets the whole list when it is welcomed, and from then on what has
//! changed. Changes wait a moment for more of their kind, so that a thousand
//! nodes that join at once cost each other a few messages and not a thousand.
//! Two things are told at once: a removal, since the removed node must be let
//! in nowhere any more, and what waits when a migration is about to be asked
//! for, since its ends have to know each other.

use godwit_shared::model::{Millis, NodeId};
use godwit_shared::wire::uplink::{CoordinatorMessage, Member};

use super::Cluster;
use super::turn::Turn;
use crate::effect::{Effect, Timer};
use crate::record::NodeRecord;

/// How long a change waits for others. A node gives a peer that it does not
/// know two seconds (the node's `acceptor`).
const GATHER: Millis = Millis(200);

impl Cluster {
    /// The members, as nodes need to know them.
    pub(super) fn members(&self) -> Vec<Member> {
        let members = self.records.nodes.values().filter(|node| !node.revoked);
        members.map(NodeRecord::member).collect()
    }

    /// The member has joined or is elsewhere now; the others hear of it soon.
    pub(super) fn member_changed(&mut self, turn: &mut Turn, node: &NodeId) {
        if self.observed.roster.is_empty() {
            turn.act(Effect::Arm {
                timer: Timer::Members,
                at: turn.now.after(GATHER),
            });
        }
        self.observed.roster.insert(node.clone());
    }

    /// The member is none any more; the others hear of it now.
    pub(super) fn member_gone(&mut self, turn: &mut Turn, node: &NodeId) {
        self.observed.roster.insert(node.clone());
        self.tell_members(turn);
    }

    /// Tells every connected node what has changed since it was last told.
    pub(super) fn tell_members(&mut self, turn: &mut Turn) {
        let changed = std::mem::take(&mut self.observed.roster);
        if changed.is_empty() {
            return;
        }
        let (mut set, mut gone) = (Vec::new(), Vec::new());
        for node in changed {
            match self.member(&node) {
                Ok(record) => set.push(record.member()),
                Err(_) => gone.push(node),
            }
        }
        for node in self.observed.nodes.keys() {
            let (set, gone) = (set.clone(), gone.clone());
            self.tell(turn, node, CoordinatorMessage::MembersChanged { set, gone });
        }
    }
}
