//! The lease under which a node runs protected VMs.
//!
//! ```text
//!   node                                      coordinator
//!    | RenewLease (number n, sent at t) -------> |  counts `length` from its arrival
//!    | <--------------- Lease (n, length, ...)   |
//!    | counts `length` from t
//! ```
//!
//! Lengths travel and times never do: each side counts on a clock of its own.
//! The node counts from when it asked and the coordinator from when it heard, so
//! the node's lease ends first, by as much as the way took; the margin is for
//! clocks that run at different rates.
//!
//! A node without a session asks the members of its *circle*, each on a stream
//! of its own ([`LeaseAsk`], [`LeaseAnswer`]). One that has a session carries the
//! request on; one that has none vouches: for a lease's length it knows of no
//! coordinator that could start the asker's VMs elsewhere. Vouchers that make a
//! majority of the circle, the asker included, renew the lease. Before the
//! coordinator takes a node for lost, so many members of its circle have to
//! promise to vouch no more that the rest is no majority
//! (`NodeRequest::WithholdVouch`).

use serde::{Deserialize, Serialize};

use crate::model::{Millis, NodeId};

/// Asks for a lease, or for more of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Growing; the answer repeats it.
    pub number: u64,
    /// The version of the circle that the node goes by; 0 before its first grant.
    pub circle: u64,
}

/// Who may vouch for a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Circle {
    /// Grows with every change; the first is 1.
    pub version: u64,
    /// The members, the node itself included.
    pub members: Vec<NodeId>,
}

impl Circle {
    /// How many of the members are a majority.
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// The request's number.
    pub number: u64,
    /// How long it holds, from when the request was sent.
    pub length: Millis,
    /// How much longer the coordinator waits.
    pub margin: Millis,
    /// Who may vouch for the node from now on.
    pub circle: Circle,
}

impl LeaseGrant {
    /// How long after its last renewal nothing is started elsewhere, at least.
    pub fn period(&self) -> Millis {
        self.length + self.margin
    }
}

/// From a node without a session to a member of its circle: the one message of
/// a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAsk {
    /// What it would ask of the coordinator.
    pub request: LeaseRequest,
    /// The length of its last grant.
    pub length: Millis,
    /// The margin of its last grant.
    pub margin: Millis,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseAnswer {
    /// The coordinator's own word.
    Granted(LeaseGrant),
    /// This node has no session either, and vouches.
    Vouched {
        /// The request's number.
        number: u64,
    },
    /// Neither.
    Refused,
}
