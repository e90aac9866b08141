//! The uplink: keeps this node in touch with its coordinator.
//!
//! ```text
//!                 Serve
//!   Uplink actor ------> keeper task: connect -> session -> wait -> connect ...
//!     ^    ^                             |
//!     |    +--- SessionUp/Down, Verdict -+
//!     +-------- AskVerdict (migration manager, through UplinkHandle)
//! ```
//!
//! The actor owns the questions that wait for a verdict; the task beside it owns
//! the connection. It tries for ever, because guests run on without a
//! coordinator: every 100 ms at first and every 5 s in the long run, and every
//! 30 s after a refusal, which only a person can put right.
//!
//! Invariants:
//! * nothing that the node does waits for the coordinator;
//! * a session begins with a full snapshot, so a lost one loses nothing;
//! * a question is open until its verdict comes or its asker gives up, over any
//!   number of sessions.

mod backoff;
pub(crate) mod connect;
mod console;
mod fit;
mod handle;
mod keeper;
mod places;
mod services;
mod session;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;

use actix::{Actor, Addr, AsyncContext as _, Context, Handler, Message, ResponseFuture};
use godwit_shared::model::{MigrationId, NodeFacts, Problem};
use godwit_shared::transport::Endpoint;
use godwit_shared::wire::uplink::{NodeMessage, Verdict, VerdictQuery};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::bus::NodeBus;
use crate::config::HostPort;
use crate::identity::IdentityStore;
use crate::lease::{self, LeaseKeeper};

pub use backoff::{Backoff, Pace, chance};
pub use handle::{AskVerdict, UplinkHandle};
pub use services::Services;

/// Messages that may wait for the actor; each is handled in no time.
const MAILBOX: usize = 256;

/// What an uplink needs.
#[derive(Debug)]
pub struct UplinkParams {
    /// The node's endpoint; sessions go out from the port that peers know.
    pub endpoint: Endpoint,
    /// Who this node is.
    pub identity: IdentityStore,
    /// The coordinators' addresses, tried in turn.
    pub coordinator: Vec<HostPort>,
    /// What the node says of itself.
    pub facts: NodeFacts,
    /// Where its state is published.
    pub bus: NodeBus,
    /// Where the member list is kept.
    pub members_file: PathBuf,
    /// How long to wait between attempts.
    pub pace: Pace,
    /// Who keeps the node's lease.
    pub lease: Option<Addr<LeaseKeeper>>,
}

/// Whether the node is in touch with its coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UplinkState {
    /// Not yet, or no longer.
    Down {
        /// Why, once something has gone wrong.
        reason: Option<String>,
    },
    /// A session stands.
    Up {
        /// The cluster's name.
        cluster: String,
    },
    /// The coordinator refuses this node.
    Refused(Problem),
}

/// The actor; see the module.
#[derive(Debug)]
pub struct Uplink {
    /// Taken when the uplink begins to serve.
    params: Option<UplinkParams>,
    lease: Option<Addr<LeaseKeeper>>,
    state: watch::Sender<UplinkState>,
    keeper: Option<AbortHandle>,
    ending: CancellationToken,
    session: Option<mpsc::Sender<NodeMessage>>,
    questions: HashMap<MigrationId, Question>,
}

/// A question without an answer yet.
#[derive(Debug)]
struct Question {
    query: VerdictQuery,
    askers: Vec<oneshot::Sender<Option<Verdict>>>,
}

impl Uplink {
    /// An uplink that does nothing until it is told to [`Serve`].
    pub fn new(params: UplinkParams) -> Self {
        Self {
            lease: params.lease.clone(),
            params: Some(params),
            state: watch::Sender::new(UplinkState::Down { reason: None }),
            keeper: None,
            ending: CancellationToken::new(),
            session: None,
            questions: HashMap::new(),
        }
    }

    /// Whether it is in touch with the coordinator, now and from now on.
    pub fn state(&self) -> watch::Receiver<UplinkState> {
        self.state.subscribe()
    }

    /// Puts a question into the session's queue. One that finds no room is
    /// asked again by its asker.
    fn send(&self, query: &VerdictQuery) {
        if let Some(session) = &self.session
            && let Err(error) = session.try_send(NodeMessage::AskVerdict(query.clone()))
        {
            tracing::debug!(%error, migration = %query.migration, "a question has to wait");
        }
    }

    fn tell_keeper(&self) {
        let session = lease::Session(self.session.clone());
        if let Some(Err(error)) = self.lease.as_ref().map(|keeper| keeper.try_send(session)) {
            tracing::error!(%error, "the keeper of the lease is not told of the session");
        }
    }

    /// Forgets questions that nobody waits for any more.
    fn prune(&mut self) {
        self.questions.retain(|_, question| {
            question.askers.retain(|asker| !asker.is_closed());
            !question.askers.is_empty()
        });
    }
}

impl Actor for Uplink {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
        }
    }
}

/// Begin to serve the coordinator: once everything is there that it may ask for.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Problem>")]
pub struct Serve(pub Services);

impl Handler<Serve> for Uplink {
    type Result = Result<(), Problem>;

    fn handle(&mut self, Serve(services): Serve, context: &mut Self::Context) -> Self::Result {
        let params = self
            .params
            .take()
            .ok_or_else(|| Problem::internal("the uplink serves already"))?;
        let (state, ending) = (self.state.clone(), self.ending.clone());
        let keeper = keeper::Keeper::new(params, services, context.address(), state, ending)?;
        self.keeper = Some(actix::spawn(keeper.keep()).abort_handle());
        Ok(())
    }
}

/// The daemon ends: the session that stands is the last one. It goes on until
/// the endpoint is closed, so that the coordinator hears the reason.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct End;

impl Handler<End> for Uplink {
    type Result = ();

    fn handle(&mut self, _: End, _: &mut Self::Context) {
        self.ending.cancel();
    }
}

impl Handler<AskVerdict> for Uplink {
    type Result = ResponseFuture<Option<Verdict>>;

    fn handle(&mut self, AskVerdict(query): AskVerdict, _: &mut Self::Context) -> Self::Result {
        self.prune();
        let (asker, answer) = oneshot::channel();
        self.send(&query);
        self.questions
            .entry(query.migration)
            .or_insert_with(|| Question {
                query,
                askers: Vec::new(),
            })
            .askers
            .push(asker);
        Box::pin(async move { answer.await.ok().flatten() })
    }
}

/// A session stands; what it shall send goes there.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct SessionUp(mpsc::Sender<NodeMessage>);

impl Handler<SessionUp> for Uplink {
    type Result = ();

    fn handle(&mut self, SessionUp(outbox): SessionUp, _: &mut Self::Context) {
        self.session = Some(outbox);
        self.tell_keeper();
        self.prune();
        for question in self.questions.values() {
            self.send(&question.query);
        }
    }
}

/// The session has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct SessionDown;

impl Handler<SessionDown> for Uplink {
    type Result = ();

    fn handle(&mut self, _: SessionDown, _: &mut Self::Context) {
        self.session = None;
        self.tell_keeper();
    }
}

/// The coordinator's word on a migration.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct VerdictArrived {
    migration: MigrationId,
    verdict: Option<Verdict>,
}

impl Handler<VerdictArrived> for Uplink {
    type Result = ();

    fn handle(&mut self, arrived: VerdictArrived, _: &mut Self::Context) {
        let Some(question) = self.questions.remove(&arrived.migration) else {
            tracing::debug!(migration = %arrived.migration, "a verdict nobody waits for");
            return;
        };
        for asker in question.askers {
            // An asker that gave up is gone.
            let _ = asker.send(arrived.verdict);
        }
    }
}

/// The address of an uplink as the handle that others get.
impl From<&Addr<Uplink>> for UplinkHandle {
    fn from(uplink: &Addr<Uplink>) -> Self {
        Self::new(uplink.clone().recipient())
    }
}
