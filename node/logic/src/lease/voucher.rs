//! This node's word for the leases of others.

use std::collections::BTreeMap;

use godwit_shared::model::{BootMillis, Millis, NodeId};
use godwit_shared::wire::lease::LeaseAsk;

/// This node's word for the leases of others.
///
/// Both promises live in memory: a daemon that may have forgotten one makes up
/// for it by its age. It vouches for nobody in its first two periods, which is as
/// long as a promise not to vouch holds; and in its first period it says that it
/// may have vouched just before it began.
#[derive(Debug, Clone)]
pub struct Voucher {
    began: BootMillis,
    vouched: BTreeMap<NodeId, BootMillis>,
    withheld: BTreeMap<NodeId, BootMillis>,
}

impl Voucher {
    /// A daemon that begins now.
    pub fn new(now: BootMillis) -> Self {
        Self {
            began: now,
            vouched: BTreeMap::new(),
            withheld: BTreeMap::new(),
        }
    }

    /// Whether this node vouches; `in_touch` while it has a session itself.
    pub fn vouch(
        &mut self,
        now: BootMillis,
        node: &NodeId,
        ask: &LeaseAsk,
        in_touch: bool,
    ) -> bool {
        let period = ask.length + ask.margin;
        let young = now < self.began.after(period + period);
        let promised = self.withheld.get(node).is_some_and(|until| now < *until);
        if in_touch || young || promised {
            return false;
        }
        let until = now.after(ask.length);
        let known = self.vouched.entry(node.clone()).or_default();
        *known = until.max(*known);
        true
    }

    /// Promises not to vouch for that node for twice the period. How long a lease
    /// may last that this node has vouched for already.
    pub fn withhold(&mut self, now: BootMillis, node: NodeId, period: Millis) -> Millis {
        let vouched = self.vouched.get(&node).map(|until| now.until(*until));
        let forgotten = now.until(self.began.after(period));
        self.withheld.insert(node, now.after(period + period));
        vouched.unwrap_or_default().max(forgotten)
    }
}
