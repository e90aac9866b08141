//! This node's own lease.

use std::collections::{BTreeMap, BTreeSet};

use godwit_shared::model::{BootMillis, Millis, NodeId};
use godwit_shared::wire::lease::{Circle, LeaseAnswer, LeaseAsk, LeaseGrant, LeaseRequest};
use serde::{Deserialize, Serialize};

use super::{renew_every, stop_early};

/// Requests whose answers still count. An older one could not move the end.
const OPEN: usize = 16;
/// How often a lease is asked for before the first grant.
const AT_FIRST: Millis = Millis(2_000);

/// What a later daemon has to know to be vouched for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLease {
    /// The length of the last grant.
    pub length: Millis,
    /// Its margin.
    pub margin: Millis,
    /// Who may vouch.
    pub circle: Circle,
}

/// How the lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// There has been none since the daemon began.
    Never,
    /// It holds.
    Held {
        /// Until then.
        until: BootMillis,
    },
    /// It has ended.
    Lapsed {
        /// Since then.
        since: BootMillis,
    },
}

/// This node's own lease.
#[derive(Debug, Clone)]
pub struct Holder {
    me: NodeId,
    terms: Option<SavedLease>,
    until: Option<BootMillis>,
    last: u64,
    /// Requests by number: when they were sent, and who has vouched since.
    open: BTreeMap<u64, Open>,
}

#[derive(Debug, Clone)]
struct Open {
    sent: BootMillis,
    vouchers: BTreeSet<NodeId>,
}

impl Holder {
    /// No lease yet.
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            terms: None,
            until: None,
            last: 0,
            open: BTreeMap::new(),
        }
    }

    /// The lease of the last daemon, which stops its VMs at `stop_at`.
    pub fn restored(me: NodeId, saved: SavedLease, stop_at: Option<BootMillis>) -> Self {
        let until = stop_at.map(|at| at.after(stop_early(saved.length)));
        Self {
            terms: Some(saved),
            until,
            ..Self::new(me)
        }
    }

    /// Begins a request: send it at once.
    pub fn ask(&mut self, now: BootMillis) -> LeaseRequest {
        // The clock makes the numbers of a later daemon higher than those before.
        self.last = self.last.saturating_add(1).max(now.0);
        let open = Open {
            sent: now,
            vouchers: BTreeSet::new(),
        };
        self.open.insert(self.last, open);
        while self.open.len() > OPEN {
            self.open.pop_first();
        }
        LeaseRequest {
            number: self.last,
            circle: self.terms.as_ref().map_or(0, |terms| terms.circle.version),
        }
    }

    /// The same request as its peers are asked; none before the first grant.
    pub fn ask_peers(&self, request: &LeaseRequest) -> Option<(LeaseAsk, Vec<NodeId>)> {
        let terms = self.terms.as_ref()?;
        let ask = LeaseAsk {
            request: request.clone(),
            length: terms.length,
            margin: terms.margin,
        };
        let others = terms.circle.members.iter().filter(|node| **node != self.me);
        Some((ask, others.cloned().collect()))
    }

    /// The coordinator's grant. Whether the terms are new: to be kept.
    pub fn on_grant(&mut self, grant: LeaseGrant) -> bool {
        let Some(open) = self.open.get(&grant.number) else {
            return false;
        };
        let sent = open.sent;
        self.extend(sent.after(grant.length));
        let known = self.terms.as_ref().map_or(0, |terms| terms.circle.version);
        if grant.circle.version < known {
            return false;
        }
        let terms = Some(SavedLease {
            length: grant.length,
            margin: grant.margin,
            circle: grant.circle,
        });
        let new = self.terms != terms;
        self.terms = terms;
        new
    }

    /// What a peer answered. Whether the terms are new.
    pub fn on_answer(&mut self, now: BootMillis, from: &NodeId, answer: LeaseAnswer) -> bool {
        match answer {
            LeaseAnswer::Granted(grant) => self.on_grant(grant),
            LeaseAnswer::Vouched { number } => {
                self.on_vouch(now, number, from);
                false
            }
            LeaseAnswer::Refused => false,
        }
    }

    fn on_vouch(&mut self, now: BootMillis, number: u64, from: &NodeId) {
        let member = |terms: &&SavedLease| terms.circle.members.contains(from);
        let Some(terms) = self.terms.as_ref().filter(member) else {
            return;
        };
        let (length, majority) = (terms.length, terms.circle.majority());
        let Some(open) = self.open.get_mut(&number) else {
            return;
        };
        open.vouchers.insert(from.clone());
        let sent = open.sent;
        if open.vouchers.len() + 1 >= majority && self.holds(now) {
            self.extend(sent.after(length));
        }
    }

    /// A node that is all of its circle needs nobody.
    pub fn alone(&mut self, now: BootMillis) {
        let Some(terms) = &self.terms else { return };
        if terms.circle.majority() == 1 && self.holds(now) {
            let end = now.after(terms.length);
            self.extend(end);
        }
    }

    fn extend(&mut self, until: BootMillis) {
        self.until = self.until.max(Some(until));
    }

    /// Whether protected VMs may run now.
    pub fn holds(&self, now: BootMillis) -> bool {
        self.stop_at().is_some_and(|stop| now < stop)
    }

    /// When protected VMs have to stop unless it is renewed.
    pub fn stop_at(&self) -> Option<BootMillis> {
        let early = stop_early(self.terms.as_ref()?.length);
        Some(self.until?.before(early))
    }

    /// How it stands.
    pub fn standing(&self, now: BootMillis) -> Standing {
        match self.stop_at() {
            None => Standing::Never,
            Some(until) if now < until => Standing::Held { until },
            Some(since) => Standing::Lapsed { since },
        }
    }

    /// How long until the next request.
    pub fn pace(&self) -> Millis {
        self.terms
            .as_ref()
            .map_or(AT_FIRST, |terms| renew_every(terms.length))
    }

    /// What a later daemon has to know.
    pub fn terms(&self) -> Option<&SavedLease> {
        self.terms.as_ref()
    }
}
