//! Telling every node who the members are.
//!
//! A node that is welcomed learns whether the list that it knows is the present
//! one ([`RosterMark`]). If not it asks, and is told what has changed since, as far
//! back as that is remembered, or everything. From then on it hears of what
//! changes. Changes wait a moment for more of their kind, so that a thousand
//! nodes that join at once cost each other a few messages and not a thousand.
//! Two things are told at once: a removal, since the removed node must be let
//! in nowhere any more, and what waits when a migration is about to be asked
//! for, since its ends have to know each other.

use std::collections::{BTreeSet, VecDeque};

use godwit_shared::model::{Millis, NodeId};
use godwit_shared::wire::roster::RosterMark;
use godwit_shared::wire::uplink::{CoordinatorMessage, Member};

use serde::{Deserialize, Serialize};

use super::Cluster;
use super::turn::Turn;
use crate::effect::{Effect, Timer};
use crate::record::NodeRecord;

/// How long a change waits for others. A node gives a peer that it does not
/// know two seconds (the node's `acceptor`).
const GATHER: Millis = Millis(200);

/// So many changes are remembered; beyond them a node is told everything.
const PAST: usize = 256;

/// What the nodes know of the members.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Roster {
    /// Members that the nodes have not been told of.
    untold: BTreeSet<NodeId>,
    /// The mark of the present list.
    pub(super) mark: RosterMark,
    /// The last changes, each with the mark before it; the newest at the end.
    past: VecDeque<(RosterMark, NodeId)>,
}

impl Roster {
    /// The member is another one; the list has that mark now.
    fn changed(&mut self, node: &NodeId, mark: RosterMark) {
        if self.past.len() >= PAST {
            self.past.pop_front();
        }
        let before = std::mem::replace(&mut self.mark, mark);
        self.past.push_back((before, node.clone()));
        self.untold.insert(node.clone());
    }

    /// Who has changed since the list had that mark.
    fn since(&self, known: RosterMark) -> Option<BTreeSet<NodeId>> {
        let at = self.past.iter().rposition(|(mark, _)| *mark == known)?;
        let later = self.past.range(at..);
        Some(later.map(|(_, node)| node.clone()).collect())
    }
}

impl Cluster {
    /// The members, as nodes need to know them.
    fn members(&self) -> Vec<Member> {
        let members = self.records.nodes.values().filter(|node| !node.revoked);
        members.map(NodeRecord::member).collect()
    }

    /// The mark of the list, counted.
    pub(super) fn count_mark(&self) -> RosterMark {
        let members = self.records.nodes.values().filter(|node| !node.revoked);
        let parts = members.map(|node| (&node.name, node.incarnation, node.address.as_str()));
        RosterMark::of_parts(parts)
    }

    pub(super) fn check_roster(&self) {
        let kept = self.observed.roster.mark;
        debug_assert_eq!(kept, self.count_mark(), "a change of members was not noted");
    }

    /// A node knows a list with that mark: what is different now.
    pub(super) fn on_ask_members(&self, turn: &mut Turn, node: &NodeId, known: RosterMark) {
        let roster = &self.observed.roster;
        let message = match roster.since(known) {
            Some(changed) => self.what_changed(changed),
            None if known == roster.mark => self.what_changed(BTreeSet::new()),
            None => CoordinatorMessage::Members(self.members()),
        };
        self.tell(turn, node, message);
    }

    fn what_changed(&self, nodes: BTreeSet<NodeId>) -> CoordinatorMessage {
        let (mut set, mut gone) = (Vec::new(), Vec::new());
        for node in nodes {
            match self.member(&node) {
                Ok(record) => set.push(record.member()),
                Err(_) => gone.push(node),
            }
        }
        CoordinatorMessage::MembersChanged { set, gone }
    }

    /// The member has joined or is elsewhere now; the others hear of it soon.
    pub(super) fn member_changed(&mut self, turn: &mut Turn, node: &NodeId) {
        if self.observed.roster.untold.is_empty() {
            turn.act(Effect::Arm {
                timer: Timer::Members,
                at: turn.now.after(GATHER),
            });
        }
        let mark = self.count_mark();
        self.observed.roster.changed(node, mark);
    }

    /// The member is none any more; the others hear of it now.
    pub(super) fn member_gone(&mut self, turn: &mut Turn, node: &NodeId) {
        let mark = self.count_mark();
        self.observed.roster.changed(node, mark);
        self.tell_members(turn);
    }

    /// Tells every connected node what has changed since it was last told.
    pub(super) fn tell_members(&mut self, turn: &mut Turn) {
        let changed = std::mem::take(&mut self.observed.roster.untold);
        if changed.is_empty() {
            return;
        }
        let message = self.what_changed(changed);
        for node in self.observed.nodes.keys() {
            self.tell(turn, node, message.clone());
        }
    }
}
