//! The keeper of this node's lease: renews it, and vouches for others.
//!
//! ```text
//!   uplink session -- Session, Granted --> LeaseKeeper -- Extend --> guardian
//!   coordinator ----- Withhold ----------->  |   ^
//!   peers ----------- PeerAsks ----------->  |   '-- Answered -- peers that were asked
//!                                            '--> RenewLease (session, peers)
//! ```
//!
//! The decisions are those of [`godwit_node_logic::lease`]; what travels is told in
//! [`godwit_shared::wire::lease`], and who ends the VMs in [`crate::guard`].
//!
//! # Invariants
//! * The actor has a thread of its own: no domain and no migration holds it up.
//! * Nothing is asked for while the guardian does not answer.

mod peers;
mod terms;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use actix::prelude::*;
use godwit_node_logic::lease::{Holder, Voucher};
use godwit_shared::model::{BootMillis, Millis, NodeId};
use godwit_shared::transport::Endpoint;
use godwit_shared::wire::lease::{LeaseAnswer, LeaseAsk, LeaseGrant, LeaseRequest};
use godwit_shared::wire::uplink::{Member, NodeMessage};
use tokio::sync::{mpsc, oneshot, watch};

use crate::guard::{Guard, boot_now};

pub use peers::answer_peer;

/// Messages that may wait for the keeper.
const MAILBOX: usize = 256;
/// How long the coordinator may take over what was carried to it for a peer.
const CARRY: Duration = Duration::from_secs(2);
/// Requests of peers that are carried at once.
const CARRIED: usize = 64;

/// What a keeper needs.
#[derive(Debug)]
pub struct LeaseParams {
    /// This node.
    pub node: NodeId,
    /// Who ends the VMs.
    pub guard: Guard,
    /// The node's endpoint, for its peers.
    pub endpoint: Endpoint,
    /// Where peers are.
    pub members: watch::Receiver<Vec<Member>>,
    /// Where the terms of the last grant are kept.
    pub file: PathBuf,
}

/// The actor; see the module.
#[derive(Debug)]
pub struct LeaseKeeper {
    holder: Holder,
    voucher: Voucher,
    guard: Guard,
    endpoint: Endpoint,
    members: watch::Receiver<Vec<Member>>,
    file: PathBuf,
    session: Option<mpsc::Sender<NodeMessage>>,
    granted: Option<BootMillis>,
    carried: HashMap<(NodeId, u64), oneshot::Sender<LeaseGrant>>,
    /// The guardian answered last time.
    guarded: bool,
    /// Whether the lease held when it was last looked at.
    held: bool,
    tick: Option<SpawnHandle>,
}

impl LeaseKeeper {
    /// The keeper of a daemon that begins now; `stop_at` is what its guardian
    /// knows of an earlier daemon's lease.
    pub fn new(params: LeaseParams, stop_at: Option<BootMillis>) -> Self {
        let holder = match terms::load(&params.file) {
            Some(saved) => Holder::restored(params.node, saved, stop_at),
            None => Holder::new(params.node),
        };
        let now = boot_now();
        Self {
            held: holder.holds(now),
            holder,
            voucher: Voucher::new(now),
            guard: params.guard,
            endpoint: params.endpoint,
            members: params.members,
            file: params.file,
            session: None,
            granted: None,
            carried: HashMap::new(),
            guarded: true,
            tick: None,
        }
    }

    /// Asks for more of the lease, and for the next time.
    fn renew(&mut self, ctx: &mut Context<Self>) {
        if let Some(tick) = self.tick.take() {
            ctx.cancel_future(tick);
        }
        let pace = self.holder.pace().duration();
        self.tick = Some(ctx.run_later(pace, Self::renew));
        self.tell_state();
        if !self.is_guarded() {
            return;
        }
        let request = self.holder.ask(boot_now());
        let sent = self.ask_coordinator(&request);
        if !sent || self.is_overdue() {
            self.ask_peers(&request, ctx);
        }
        if self.session.is_none() {
            self.holder.alone(boot_now());
            self.pass_on();
        }
    }

    fn is_guarded(&mut self) -> bool {
        if self.guarded {
            return true;
        }
        match self.guard.begin() {
            Ok(_) => self.guarded = true,
            Err(problem) => tracing::error!(%problem, "the lease is not renewed"),
        }
        self.guarded
    }

    fn ask_coordinator(&self, request: &LeaseRequest) -> bool {
        let message = NodeMessage::RenewLease {
            of: None,
            request: request.clone(),
        };
        let session = self.session.as_ref();
        session.is_some_and(|session| session.try_send(message).is_ok())
    }

    /// A session that stands, and over which no grant has come for a while.
    fn is_overdue(&self) -> bool {
        let patience = Millis(self.holder.pace().0 * 2);
        self.granted
            .is_none_or(|at| boot_now() > at.after(patience))
    }

    fn ask_peers(&self, request: &LeaseRequest, ctx: &Context<Self>) {
        let Some((ask, peers)) = self.holder.ask_peers(request) else {
            return;
        };
        let members = self.members.borrow();
        let wanted = members.iter().filter(|m| peers.contains(&m.node));
        for member in wanted.cloned() {
            let (endpoint, ask) = (self.endpoint.clone(), ask.clone());
            let (keeper, node) = (ctx.address(), member.node.clone());
            actix::spawn(async move {
                match peers::ask(&endpoint, &member, &ask).await {
                    Ok(answer) => drop(keeper.try_send(Answered { node, answer })),
                    Err(error) => tracing::debug!(%node, error, "a peer does not answer"),
                }
            });
        }
    }

    /// Tells the guardian of the lease's end.
    fn pass_on(&mut self) {
        if let Some(stop_at) = self.holder.stop_at()
            && let Err(problem) = self.guard.extend(stop_at)
        {
            self.guarded = false;
            tracing::error!(%problem, "the guardian is not told of the lease");
        }
        self.tell_state();
    }

    fn keep_terms(&self, new: bool) {
        let Some(terms) = self.holder.terms().filter(|_| new) else {
            return;
        };
        if let Err(problem) = terms::save(&self.file, terms) {
            tracing::warn!(%problem, "the lease's terms are not kept");
        }
        let patience = self.guard.watchdog_patience();
        if let Some(patience) = patience.filter(|patience| *patience >= terms.length.duration()) {
            tracing::error!(
                watchdog_s = patience.as_secs(),
                lease_ms = terms.length.0,
                "the watchdog waits longer than the lease holds: it would reset this host too late; \
                 set a shorter time for it, or a longer lease"
            );
        }
    }

    fn tell_state(&mut self) {
        let holds = self.holder.holds(boot_now());
        if holds == std::mem::replace(&mut self.held, holds) {
            return;
        }
        if holds {
            tracing::info!("the node holds a lease: protected VMs may run");
        } else {
            tracing::error!("the node's lease has ended: its protected VMs are stopped");
        }
    }
}

impl Actor for LeaseKeeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        self.renew(ctx);
    }
}

/// A session stands, or has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Session(pub Option<mpsc::Sender<NodeMessage>>);

impl Handler<Session> for LeaseKeeper {
    type Result = ();

    fn handle(&mut self, Session(session): Session, ctx: &mut Self::Context) {
        self.session = session;
        self.carried.clear();
        self.renew(ctx);
    }
}

/// The coordinator's grant: to this node, or to one whose request was carried.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Granted {
    /// To whom; none for this node.
    pub of: Option<NodeId>,
    /// The grant.
    pub grant: LeaseGrant,
}

impl Handler<Granted> for LeaseKeeper {
    type Result = ();

    fn handle(&mut self, Granted { of, grant }: Granted, _: &mut Self::Context) {
        let Some(node) = of else {
            self.granted = Some(boot_now());
            let new = self.holder.on_grant(grant);
            self.keep_terms(new);
            return self.pass_on();
        };
        if let Some(asker) = self.carried.remove(&(node, grant.number)) {
            // An asker that gave up is gone.
            let _ = asker.send(grant);
        }
    }
}

/// A peer has answered.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Answered {
    node: NodeId,
    answer: LeaseAnswer,
}

impl Handler<Answered> for LeaseKeeper {
    type Result = ();

    fn handle(&mut self, Answered { node, answer }: Answered, _: &mut Self::Context) {
        let new = self.holder.on_answer(boot_now(), &node, answer);
        self.keep_terms(new);
        self.pass_on();
    }
}

/// The coordinator wants this node to vouch for that one no more. How long what
/// was vouched for may still last.
#[derive(Debug, Message)]
#[rtype(result = "Millis")]
pub struct Withhold {
    /// Whom not to vouch for.
    pub node: NodeId,
    /// Its lease's length and margin.
    pub period: Millis,
}

impl Handler<Withhold> for LeaseKeeper {
    type Result = MessageResult<Withhold>;

    fn handle(
        &mut self,
        Withhold { node, period }: Withhold,
        _: &mut Self::Context,
    ) -> Self::Result {
        MessageResult(self.voucher.withhold(boot_now(), node, period))
    }
}

/// A peer without a session asks for its lease.
#[derive(Debug, Message)]
#[rtype(result = "LeaseAnswer")]
pub struct PeerAsks {
    /// The peer.
    pub node: NodeId,
    /// What it asks.
    pub ask: LeaseAsk,
}

impl Handler<PeerAsks> for LeaseKeeper {
    type Result = ResponseFuture<LeaseAnswer>;

    fn handle(&mut self, PeerAsks { node, ask }: PeerAsks, _: &mut Self::Context) -> Self::Result {
        let number = ask.request.number;
        let Some(session) = self.session.clone() else {
            let vouched = self.voucher.vouch(boot_now(), &node, &ask, false);
            let answer = if vouched {
                LeaseAnswer::Vouched { number }
            } else {
                LeaseAnswer::Refused
            };
            return Box::pin(std::future::ready(answer));
        };
        self.carried.retain(|_, asker| !asker.is_closed());
        if self.carried.len() >= CARRIED {
            return Box::pin(std::future::ready(LeaseAnswer::Refused));
        }
        let (asker, granted) = oneshot::channel();
        self.carried.insert((node.clone(), number), asker);
        let message = NodeMessage::RenewLease {
            of: Some(node),
            request: ask.request,
        };
        Box::pin(async move {
            let carried = async {
                session.send(message).await.ok()?;
                granted.await.ok()
            };
            let granted = tokio::time::timeout(CARRY, carried).await;
            granted
                .ok()
                .flatten()
                .map_or(LeaseAnswer::Refused, LeaseAnswer::Granted)
        })
    }
}
