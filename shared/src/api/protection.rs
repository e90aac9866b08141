//! Leases and protected VMs as operators see them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{Millis, NodeId, UnixMillis};

/// How it is known that a node runs no protected VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FencedBy {
    /// Its lease and the margin have passed, and nobody can vouch for it.
    Lease,
    /// Its fence agent said that it is off.
    Agent,
}

/// How a node's lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// It holds.
    Held,
    /// It has ended, and the node may not have stopped its protected VMs yet.
    Ending,
    /// The node runs no protected VM.
    Fenced,
}

impl LeaseState {
    /// The word in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Ending => "ending",
            Self::Fenced => "fenced",
        }
    }
}

/// The lease under which a node runs protected VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct LeaseView {
    /// How it stands.
    pub state: LeaseState,
    /// When it was last renewed; none since the coordinator was started.
    pub renewed: Option<UnixMillis>,
    /// Through which other node, where the node itself had no session.
    pub through: Option<NodeId>,
    /// How much longer it holds.
    pub left: Millis,
    /// Its length from one renewal.
    pub length: Millis,
    /// How much longer the coordinator waits.
    pub margin: Millis,
    /// Who may vouch for the node while the coordinator is away.
    pub circle: Vec<NodeId>,
    /// How it is known that the node runs no protected VM.
    pub fenced: Option<FencedBy>,
    /// What will happen when, in one sentence.
    pub next: String,
}

/// What becomes of a protected VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ProtectionView {
    /// The node that it lost, while it waits to be started again.
    pub lost: Option<NodeId>,
    /// Since when it is known to have stopped there.
    pub since: Option<UnixMillis>,
    /// How it stands, and what will happen when, in one sentence.
    pub next: String,
}
