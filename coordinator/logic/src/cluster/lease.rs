//! The nodes' leases: who may still run protected VMs, and who has stopped them.
//!
//! ```text
//!            RenewLease                   the lease has ended,
//!   (none) ------------> held <--------+  nothing renewed it
//!                         |  RenewLease|
//!                         v            |
//!                       ending --------+
//!                         |  lease, vouchers and margin are over, or the fence
//!                         v  agent said that the node is off
//!                       fenced ---- RenewLease of the node's own session ---> held
//! ```
//!
//! What travels and why it is safe is told in [`godwit_shared::wire::lease`].
//! The clock here is `CLOCK_BOOTTIME` and comes with every step; wall clocks may
//! jump and measure nothing.
//!
//! # Invariants
//! * A node without a lease record has never held a lease, so it runs no protected
//!   VM, and nothing is ever concluded from its silence.
//! * After a start of this coordinator every lease is taken for a full one; after a
//!   restore of its store a node is fenced by its lease only once it goes by a
//!   circle that is younger ([`crate::restored`]).
//! * A circle that the node may go by is in its record before the node hears of
//!   it, and stays until the node has said that it goes by the next one.
//! * A node is fenced only while it has no session, when so many of each such
//!   circle have promised to vouch no more that the others are no majority, and
//!   when the lease, every lease vouched for and the margin are over. A promise
//!   counts for one period from when it was asked for; the member keeps it for two.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use godwit_shared::model::{BootMillis, Millis, NodeId, Problem, UnixMillis};
use godwit_shared::wire::lease::{Circle, LeaseGrant, LeaseRequest};
use godwit_shared::wire::uplink::{CoordinatorMessage, NodeReply, NodeRequest};
use serde::{Deserialize, Serialize};

use super::Cluster;
use super::failover::Waiting;
use super::state::Purpose;
use super::turn::{About, Turn};
use crate::effect::{Effect, Timer};
use crate::record::{Fenced, FencedBy, Key, LeaseRecord};
use godwit_shared::model::VmId;

/// How long after a failure a fence agent is run again.
const AGENT_AGAIN: Millis = Millis(30_000);

/// The nodes' leases, and what follows their ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProtectionRules {
    /// How long a lease holds: 2 s to 10 min.
    #[serde(rename = "lease_ms")]
    pub lease: Millis,
    /// How much longer is waited: 500 ms, or a twentieth of the lease, at least.
    #[serde(rename = "margin_ms")]
    pub margin: Millis,
    /// How many nodes, the holder included, make the circle that may vouch.
    pub circle: u32,
    /// How many VMs of lost nodes are started at once.
    pub restarts: u32,
    /// How long a node has not renewed its lease when its fence agent is run.
    #[serde(rename = "fence_after_ms")]
    pub fence_after: Millis,
}

impl Default for ProtectionRules {
    fn default() -> Self {
        Self {
            lease: Millis(20_000),
            margin: Millis(5_000),
            circle: 5,
            restarts: 8,
            fence_after: Millis(8_000),
        }
    }
}

/// What lives in memory of leases and of VMs that lost their nodes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Leases {
    /// When the last step was.
    pub(super) now: BootMillis,
    /// Every lease was taken for a full one then.
    began: bool,
    held: BTreeMap<NodeId, Held>,
    /// When they are looked at again.
    armed: Option<BootMillis>,
    /// Something happened that may change how these stand.
    look: BTreeSet<NodeId>,
    /// VMs that are to be started again.
    pub(super) waiting: BTreeMap<VmId, Waiting>,
    pub(super) failover_armed: Option<BootMillis>,
}

/// One lease.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) until: BootMillis,
    /// When it was last renewed, or assumed to be.
    since: BootMillis,
    pub(super) renewed: Option<UnixMillis>,
    pub(super) through: Option<NodeId>,
    /// Members of the circle that vouch no more.
    words: BTreeMap<NodeId, Word>,
    /// Its end was told.
    ended: bool,
    agent: Agent,
}

/// A promise to vouch no more.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Word {
    asked: BootMillis,
    /// The end of what was vouched for before.
    ends: BootMillis,
}

/// The fence agent of a node that is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Agent {
    Idle,
    Running,
    Failed { again: BootMillis },
}

impl Held {
    fn new(now: BootMillis, until: BootMillis) -> Self {
        Self {
            until,
            since: now,
            renewed: None,
            through: None,
            words: BTreeMap::new(),
            ended: false,
            agent: Agent::Idle,
        }
    }
}

impl Cluster {
    /// A node asks for its lease: by its own session, or through `sender`.
    pub(super) fn on_renew_lease(
        &mut self,
        turn: &mut Turn,
        sender: &NodeId,
        of: Option<NodeId>,
        request: &LeaseRequest,
    ) {
        let through = of.is_some().then(|| sender.clone());
        let node = of.clone().unwrap_or_else(|| sender.clone());
        // One that was fenced has to come itself and say what it has.
        if self.member(&node).is_err() || (through.is_some() && self.is_fenced(&node)) {
            return;
        }
        let grant = self.grant(turn, &node, request);
        let now = self.observed.leases.now;
        let until = now.after(grant.length);
        let leases = &mut self.observed.leases;
        if !leases.held.contains_key(&node) {
            leases.look.insert(node.clone());
        }
        let held = leases
            .held
            .entry(node)
            .or_insert_with(|| Held::new(now, until));
        held.until = held.until.max(until);
        held.since = now;
        held.renewed = Some(turn.now);
        held.through = through;
        held.words.clear();
        held.ended = false;
        self.tell(turn, sender, CoordinatorMessage::Lease { of, grant });
    }

    /// The terms of a grant; what a later coordinator has to know of them is
    /// persisted before they are sent.
    fn grant(&mut self, turn: &mut Turn, node: &NodeId, request: &LeaseRequest) -> LeaseGrant {
        let rules = self.settings.limits.protection;
        let members = self.circle_of(node);
        let record = self
            .records
            .leases
            .entry(node.clone())
            .or_insert_with(|| LeaseRecord {
                node: node.clone(),
                length: Millis::ZERO,
                margin: Millis::ZERO,
                circle: Circle::default(),
                former: None,
                fenced: None,
            });
        let before = record.clone();
        record.length = record.length.max(rules.lease);
        record.margin = record.margin.max(rules.margin);
        record.fenced = None;
        if request.circle >= record.circle.version {
            record.former = None;
        }
        if record.former.is_none() && record.circle.members != members {
            let version = record.circle.version + 1;
            let next = Circle { version, members };
            let former = std::mem::replace(&mut record.circle, next);
            record.former = Some(former).filter(|circle| circle.version > 0);
        }
        let grant = LeaseGrant {
            number: request.number,
            length: rules.lease,
            margin: rules.margin,
            circle: record.circle.clone(),
        };
        if *record != before {
            turn.touch(Key::Lease(node.clone()));
        }
        grant
    }

    /// The node and those that follow it in the round of names.
    fn circle_of(&self, node: &NodeId) -> Vec<NodeId> {
        let size = usize::try_from(self.settings.limits.protection.circle).unwrap_or(usize::MAX);
        let members = |range| {
            let nodes = self.observed.nodes.range::<NodeId, _>(range);
            nodes.map(|(name, _)| name.clone())
        };
        let after = members((Excluded(node), Unbounded));
        let others = after.chain(members((Unbounded, Excluded(node))));
        let mut circle = vec![node.clone()];
        circle.extend(others.take(size.saturating_sub(1)));
        circle
    }

    /// Whether the node is known to run no protected VM.
    pub(super) fn is_fenced(&self, node: &NodeId) -> bool {
        let record = self.records.leases.get(node);
        record.is_some_and(|record| record.fenced.is_some())
    }

    /// Whether the node may run protected VMs now.
    pub(super) fn holds_lease(&self, node: &NodeId) -> bool {
        let held = self.observed.leases.held.get(node);
        let holds = held.is_some_and(|held| self.observed.leases.now < held.until);
        holds && !self.is_fenced(node)
    }

    /// The node was removed: it runs nothing.
    pub(super) fn forget_lease(&mut self, turn: &mut Turn, node: &NodeId) {
        self.observed.leases.held.remove(node);
        if self.records.leases.remove(node).is_some() {
            turn.touch(Key::Lease(node.clone()));
        }
    }

    pub(super) fn lease(&self, node: &NodeId) -> Option<(&LeaseRecord, Option<&Held>)> {
        let record = self.records.leases.get(node)?;
        Some((record, self.observed.leases.held.get(node)))
    }

    /// Looks after leases that end, at the end of every step.
    pub(super) fn advance_leases(&mut self, turn: &mut Turn) {
        let leases = &mut self.observed.leases;
        if !leases.began {
            leases.began = true;
            leases.armed = Some(leases.now);
            for (node, record) in &self.records.leases {
                let until = leases.now.after(record.length);
                let held = Held::new(leases.now, until);
                leases.held.insert(node.clone(), held);
            }
            self.begin_failover();
        }
        let leases = &mut self.observed.leases;
        leases.armed.take_if(|at| *at <= leases.now);
        let mut nodes = std::mem::take(&mut leases.look);
        if leases.armed.is_none() {
            nodes.extend(leases.held.keys().cloned());
        }
        if !nodes.is_empty() {
            self.settle_ledger(turn);
            self.review_all(turn, &nodes);
        }
    }

    fn review_all(&mut self, turn: &mut Turn, nodes: &BTreeSet<NodeId>) {
        let before = self.observed.leases.armed;
        let again = nodes.iter().filter_map(|node| self.review(turn, node));
        let next = again.chain(before).min();
        self.observed.leases.armed = next;
        if let Some(next) = next.filter(|_| next != before) {
            let wait = self.observed.leases.now.until(next);
            turn.act(Effect::Arm {
                timer: Timer::Leases,
                at: turn.now.after(wait),
            });
        }
    }

    /// The node came or went; those whose leases are over may need its word.
    pub(super) fn look_at_lease(&mut self, node: &NodeId) {
        let leases = &mut self.observed.leases;
        let over = leases.held.iter().filter(|(_, held)| held.ended);
        leases.look.extend(over.map(|(node, _)| node.clone()));
        leases.look.insert(node.clone());
    }

    /// Does what one lease needs now. When to look again.
    fn review(&mut self, turn: &mut Turn, node: &NodeId) -> Option<BootMillis> {
        let now = self.observed.leases.now;
        let (record, held) = self.lease(node)?;
        let (until, period) = (held?.until, record.length + record.margin);
        if record.fenced.is_some() {
            return None;
        }
        if self.is_up(node) || !self.runs_protected(node) {
            return Some(if now < until {
                until
            } else {
                now.after(period)
            });
        }
        let agent = self.try_agent(turn, node);
        if now < until {
            return Some(agent.map_or(until, |agent| agent.min(until)));
        }
        self.tell_of_end(turn, node);
        self.ask_to_withhold(turn, node);
        let again = match self.stopped_at(node) {
            Some(at) if at <= now => {
                self.fence(turn, node, FencedBy::Lease);
                return None;
            }
            Some(at) => at,
            None => now.after(period),
        };
        Some(agent.map_or(again, |agent| agent.min(again)))
    }

    /// Whether a VM is wanted there that its end would concern.
    fn runs_protected(&self, node: &NodeId) -> bool {
        self.protected_on(node).next().is_some() || self.awaits_protected(node)
    }

    /// Whether one is on its way there, and may have come.
    fn awaits_protected(&self, node: &NodeId) -> bool {
        let protected = |vm| {
            let record = self.records.vms.get(vm);
            record.is_some_and(|record| record.spec.protected())
        };
        let mut moving = self.observed.moving.iter();
        moving.any(|(vm, id)| {
            let migration = self.records.migrations.get(id);
            migration.is_some_and(|m| m.target == *node) && protected(vm)
        })
    }

    fn tell_of_end(&mut self, turn: &mut Turn, node: &NodeId) {
        let held = self.observed.leases.held.get_mut(node);
        if held.is_some_and(|held| !std::mem::replace(&mut held.ended, true)) {
            let message = format!("the lease of {node} has ended; it stops its protected VMs");
            self.note(turn, "node.lease_ended", About::node(node), message);
        }
    }

    /// Members of every circle that the node may go by, without itself.
    fn circles(&self, node: &NodeId) -> Vec<Circle> {
        let record = self.records.leases.get(node);
        let former = record.and_then(|record| record.former.clone());
        let circle = record.map(|record| record.circle.clone());
        former.into_iter().chain(circle).collect()
    }

    fn ask_to_withhold(&mut self, turn: &mut Turn, node: &NodeId) {
        let Some((record, Some(held))) = self.lease(node) else {
            return;
        };
        let (now, period) = (self.observed.leases.now, record.length + record.margin);
        let fresh = |word: &Word| now < word.asked.after(period);
        let members = self.circles(node).into_iter().flat_map(|c| c.members);
        let mut open: Vec<NodeId> = members
            .filter(|member| member != node && !held.words.get(member).is_some_and(fresh))
            .collect();
        open.sort();
        open.dedup();
        for member in open {
            let asked = |pending: &super::state::Pending| {
                pending.node == member
                    && matches!(&pending.purpose, Purpose::Withhold { of, .. } if of == node)
            };
            if self.observed.requests.values().any(asked) {
                continue;
            }
            let purpose = Purpose::Withhold {
                of: node.clone(),
                at: now,
            };
            let body = NodeRequest::WithholdVouch {
                node: node.clone(),
                period,
            };
            let deadline = self.settings.limits.request;
            self.ask(turn, &member, purpose, body, deadline);
        }
    }

    /// A member of the circle promised to vouch no more for `of`.
    pub(super) fn on_withheld(
        &mut self,
        of: &NodeId,
        from: &NodeId,
        asked: BootMillis,
        reply: Option<&NodeReply>,
    ) {
        let leases = &mut self.observed.leases;
        let (Some(NodeReply::Withheld { left }), Some(held)) = (reply, leases.held.get_mut(of))
        else {
            return;
        };
        // A renewal since then has made the promise pointless.
        if held.since > asked {
            return;
        }
        let ends = leases.now.after(*left);
        held.words.insert(from.clone(), Word { asked, ends });
        leases.look.insert(of.clone());
    }

    /// When the node has stopped its protected VMs for certain; none while so
    /// many of a circle may vouch that they are a majority.
    fn stopped_at(&self, node: &NodeId) -> Option<BootMillis> {
        let (record, held) = self.lease(node)?;
        let held = held?;
        let (now, period) = (self.observed.leases.now, record.length + record.margin);
        let bound = |member: &&NodeId| {
            let word = held.words.get(*member);
            word.is_some_and(|word| now < word.asked.after(period))
        };
        for circle in self.circles(node) {
            // Before a restore the node may have gone by any.
            if circle.members.is_empty() {
                return None;
            }
            let bound = circle.members.iter().filter(bound).count();
            if circle.members.len() - bound >= circle.majority() {
                return None;
            }
        }
        let ends = held.words.values().map(|word| word.ends);
        let last = ends.chain([held.until]).max()?;
        Some(last.after(record.margin))
    }

    /// Runs the fence agent when it is time. When to look again.
    fn try_agent(&mut self, turn: &mut Turn, node: &NodeId) -> Option<BootMillis> {
        if !self.settings.fence_agents.contains(node) {
            return None;
        }
        let now = self.observed.leases.now;
        let wait = self.settings.limits.protection.fence_after;
        let held = self.observed.leases.held.get_mut(node)?;
        let due = match held.agent {
            Agent::Idle => held.since.after(wait),
            Agent::Running => return None,
            Agent::Failed { again } => again,
        };
        if now < due {
            return Some(due);
        }
        held.agent = Agent::Running;
        turn.act(Effect::Fence(node.clone()));
        let message = format!("{node} is silent; its fence agent is run");
        self.note(turn, "node.fencing", About::node(node), message);
        None
    }

    pub(super) fn on_fence_ended(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        outcome: Result<(), Problem>,
    ) {
        let now = self.observed.leases.now;
        let up = self.is_up(node);
        let Some(held) = self.observed.leases.held.get_mut(node) else {
            return;
        };
        held.agent = Agent::Failed {
            again: now.after(AGENT_AGAIN),
        };
        self.observed.leases.look.insert(node.clone());
        match outcome {
            Ok(()) if !up => {
                held.agent = Agent::Idle;
                self.fence(turn, node, FencedBy::Agent);
            }
            Ok(()) => {
                let message = format!("the fence agent says that {node} is off, and it is not");
                self.note(turn, "node.fence_failed", About::node(node), message);
            }
            Err(problem) => {
                let message = format!("{node} was not fenced: {}", problem.message);
                self.note(turn, "node.fence_failed", About::node(node), message);
            }
        }
    }

    /// From here on the node is known to run no protected VM.
    fn fence(&mut self, turn: &mut Turn, node: &NodeId, by: FencedBy) {
        let Some(record) = self.records.leases.get_mut(node) else {
            return;
        };
        record.fenced = Some(Fenced { at: turn.now, by });
        turn.touch(Key::Lease(node.clone()));
        let how = match by {
            FencedBy::Lease => "its lease is over, and nobody vouches for it",
            FencedBy::Agent => "its fence agent says that it is off",
        };
        let message = format!("{node} runs no protected VM any more: {how}");
        self.note(turn, "node.fenced", About::node(node), message);
        self.lose_protected(turn, node);
    }
}
