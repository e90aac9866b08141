//! Plain data that every part of Godwit agrees on.
//!
//! Nothing here does I/O, reads a clock or knows of a protocol. Values are
//! checked where they enter (`FromStr`, `TryFrom`, [`spec::VmSpec::parse`]), so
//! that whoever holds one need not check it again.

pub mod capacity;
pub mod id;
pub mod label;
pub mod migration;
pub mod problem;
pub mod spec;
pub mod state;
pub mod units;

pub use capacity::{Capacity, NodeFacts, Usage};
pub use id::{Epoch, MigrationId, NodeId, PlanId, TaskId, VmId, VmName};
pub use migration::{
    DiskCopy, DoubtDecision, Fit, Forecast, MigrationFailure, MigrationFigures, MigrationPhase,
    MigrationPolicy, MigrationProgress, MigrationTuning, Postcopy, Span, TimeoutAction,
};
pub use problem::{Problem, codes};
pub use spec::VmSpec;
pub use state::{
    AgentState, DomainReport, DomainState, DomainUsage, ExitReason, LifecycleCommand, RunState,
};
pub use units::{BootMillis, Bytes, BytesPerSec, MiB, Millis, UnixMillis};
