//! What the daemon has to do after a step, in this order.
//!
//! A step that changes records gives [`Effect::Persist`] first. The daemon
//! commits it before it does anything that follows, and before it answers the
//! operator with the step's output: whatever was said or done can then be
//! found again after a crash. When the commit fails, the state in memory is
//! ahead of the store; the daemon has to end, and to start again from the store.

use godwit_shared::api::{DryRun, Event, MigrationView, TaskView};
use godwit_shared::model::{Millis, NodeId, Problem, TaskId, UnixMillis, VmId};
use godwit_shared::wire::uplink::{CoordinatorMessage, NodeRequest};
use serde::{Deserialize, Serialize};

use crate::input::{SessionId, Ticket};
use crate::record::Write;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(clippy::large_enum_variant, reason = "effects live for one step")]
pub enum Effect {
    /// Commit these as one transaction, durably. At most one a step, the first.
    Persist(Vec<Write>),
    /// Send a message on that session; nothing is to be done when it has gone.
    Send {
        /// The node.
        node: NodeId,
        /// Its session.
        session: SessionId,
        /// What to send; never a request.
        message: CoordinatorMessage,
    },
    /// Send a request on that session. The node's reply comes back as
    /// [`crate::input::Input::Message`]. When there is none within `deadline`,
    /// feed [`crate::input::Input::Unanswered`]; when the session ends,
    /// [`crate::input::Input::SessionClosed`] is enough.
    Request {
        /// The node.
        node: NodeId,
        /// Its session.
        session: SessionId,
        /// The number that goes into the frame: unique and growing for as long
        /// as this coordinator runs.
        request: u64,
        /// What to ask.
        body: NodeRequest,
        /// How long to wait for the reply.
        deadline: Millis,
    },
    /// End that session: send `Refused` with the problem, then close. The
    /// cluster has forgotten the session already.
    CloseSession {
        /// The node.
        node: NodeId,
        /// Its session.
        session: SessionId,
        /// Why.
        problem: Problem,
    },
    /// Hand the event to those who listen. It is persisted by now.
    Emit(Event),
    /// The task changed, or ended: wake those who wait for it.
    TaskChanged(TaskView),
    /// The answer to an input that gave [`crate::input::Output::Waiting`].
    Answer {
        /// Who asked.
        ticket: Ticket,
        /// What came of it.
        outcome: Result<Answer, Problem>,
    },
    /// Run the fence agent of that node, and feed
    /// [`crate::input::Input::FenceEnded`] with what came of it.
    Fence(NodeId),
    /// Feed [`crate::input::Input::Timer`] with this at that time. A timer that
    /// is no longer needed is ignored when it fires; arming one again replaces it.
    Arm {
        /// Which.
        timer: Timer,
        /// When.
        at: UnixMillis,
    },
}

/// An answer that came later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(clippy::large_enum_variant, reason = "answers live for one step")]
pub enum Answer {
    /// The end of a log.
    Log(String),
    /// What stands against a migration.
    DryRun(DryRun),
    /// The migration after a change.
    Migration(MigrationView),
}

/// Something that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Timer {
    /// The end of a task's patience.
    Task(TaskId),
    /// Another look at a second runner of a VM that did not stop.
    Leftover(VmId),
    /// News of the members that waited for more of their kind.
    Members,
    /// A look at how even the load is.
    Rebalance,
    /// Another look at the plans: nodes that have not come back will not.
    Plans,
    /// The end of some lease.
    Leases,
    /// A VM that lost its node may be started again.
    Failover,
}
