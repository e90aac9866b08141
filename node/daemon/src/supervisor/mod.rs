//! The supervisor: every domain of the node, and who may take how much of it.
//!
//! It starts domain actors, spread over a few threads, and finds them by VM. It
//! never waits for one of them inside a handler, so a domain that hangs delays
//! nobody else; and one record that cannot be read keeps no other domain from
//! being taken over.

mod incoming;
pub mod ledger;
pub mod messages;
mod restore;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use actix::prelude::*;
use godwit_node_logic::domain::Domain;
use godwit_node_logic::handoff::HandoffRecord;
use godwit_node_logic::qemu::facts::Emulator;
use godwit_shared::model::{
    Capacity, DomainReport, Epoch, Problem, UnixMillis, VmId, VmSpec, codes,
};
use tokio::sync::oneshot;

use self::ledger::Ledger;
use self::messages::{AttachConsole, Command, Console, Define, Lookup, ReadLog};
use crate::bus::NodeBus;
use crate::domain::messages::{Attach, DiscardIncoming, Lifecycle, Redefine, TailLog};
use crate::domain::{DomainActor, NodeContext, Origin};
use crate::guard::Guard;
use crate::host::NodePaths;
use crate::journal::{Journal, Record};

/// Threads that domain actors share. They only wait and pass on.
const THREADS: usize = 4;
/// Messages that may wait for the supervisor.
const MAILBOX: usize = 1024;

/// What a supervisor is started with.
#[derive(Debug, Clone)]
pub struct SupervisorContext {
    /// Where files are. The directories exist.
    pub paths: NodePaths,
    /// Where reports go.
    pub bus: NodeBus,
    /// The host's boot id.
    pub boot_id: String,
    /// The QEMUs of this host, as probed.
    pub emulators: Vec<Emulator>,
    /// What the node offers to guests.
    pub capacity: Capacity,
    /// Who ends protected VMs with the node's lease.
    pub guard: Guard,
}

/// Spawns and restores domain actors, and finds them by VM.
pub struct Supervisor {
    node: Arc<NodeContext>,
    domains: HashMap<VmId, Addr<DomainActor>>,
    arbiters: Vec<Arbiter>,
    next_arbiter: usize,
    restored: Option<Vec<(VmId, HandoffRecord)>>,
    restore_waiters: Vec<oneshot::Sender<Vec<(VmId, HandoffRecord)>>>,
}

/// From a domain's actor: nothing of it is left.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub(crate) struct Forget {
    /// The VM.
    pub(crate) vm: VmId,
}

impl Supervisor {
    /// A supervisor; it restores the domains of an earlier daemon when it is
    /// started.
    pub fn new(context: SupervisorContext) -> Self {
        let SupervisorContext {
            paths,
            bus,
            boot_id,
            emulators,
            capacity,
            guard,
        } = context;
        Self {
            node: Arc::new(NodeContext {
                paths,
                bus,
                boot_id,
                emulators,
                ledger: Ledger::new(capacity),
                guard,
            }),
            domains: HashMap::new(),
            arbiters: Vec::new(),
            next_arbiter: 0,
            restored: None,
            restore_waiters: Vec::new(),
        }
    }

    fn adopt(&mut self, origin: Origin, vm: VmId, ctx: &Context<Self>) -> Addr<DomainActor> {
        let (node, supervisor) = (Arc::clone(&self.node), ctx.address().downgrade());
        let make = move |_: &mut Context<DomainActor>| DomainActor::new(node, supervisor, origin);
        let index = self.next_arbiter % self.arbiters.len().max(1);
        self.next_arbiter += 1;
        let addr = match self.arbiters.get(index) {
            Some(arbiter) => DomainActor::start_in_arbiter(&arbiter.handle(), make),
            None => DomainActor::create(make),
        };
        self.domains.insert(vm, addr.clone());
        addr
    }

    /// The domain's actor, or a new one for a domain that is not known here.
    /// The second tells which.
    fn find_or_make(
        &mut self,
        vm: VmId,
        spec: &VmSpec,
        epoch: Epoch,
        machine: Option<&String>,
        ctx: &Context<Self>,
    ) -> (Addr<DomainActor>, bool) {
        if let Ok(known) = self.known(vm, ctx) {
            return (known, false);
        }
        let state = Domain::new(UnixMillis::now(), epoch, spec.agent).saved();
        let record = Record::new(vm, spec.clone(), machine.cloned(), state);
        (self.adopt(Origin::New(record), vm, ctx), true)
    }

    /// The domain's actor. One that a fault of ours ended is replaced by
    /// another, from the journal: it takes over the QEMU like any next daemon.
    fn known(&mut self, vm: VmId, ctx: &Context<Self>) -> Result<Addr<DomainActor>, Problem> {
        match self.domains.get(&vm) {
            Some(domain) if domain.connected() => return Ok(domain.clone()),
            Some(_) => {}
            None => {
                return Err(Problem::not_found("VM", vm).remedy("define it on this node first"));
            }
        }
        tracing::error!(%vm, "the domain's actor has ended; another one takes over");
        self.domains.remove(&vm);
        let dir = self.node.paths.domains().join(vm.to_string());
        let record = Journal::new(&dir).read(vm).map_err(Problem::internal)?;
        Ok(self.adopt(Origin::Journal(record), vm, ctx))
    }

    /// Passes a message on to a domain; the future is only the wait.
    fn forward<M, T>(
        &mut self,
        vm: VmId,
        message: M,
        ctx: &Context<Self>,
    ) -> ResponseFuture<Result<T, Problem>>
    where
        M: Message<Result = Result<T, Problem>> + Send + 'static,
        T: Send + 'static,
        DomainActor: Handler<M>,
    {
        let sent = self.known(vm, ctx).map(|domain| domain.send(message));
        Box::pin(async move { sent?.await.unwrap_or_else(|_| Err(actor_gone())) })
    }
}

fn actor_gone() -> Problem {
    Problem::new(codes::NOT_FOUND, "the domain was removed meanwhile")
        .remedy("look at the VM's current state and try again")
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.arbiters = (0..cores.min(THREADS)).map(|_| Arbiter::new()).collect();
        self.restore(ctx);
    }

    /// Domain actors end with their supervisor; their QEMUs do not.
    fn stopped(&mut self, _ctx: &mut Self::Context) {
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
    }
}

impl Handler<Define> for Supervisor {
    type Result = ResponseFuture<Result<DomainReport, Problem>>;

    fn handle(&mut self, message: Define, ctx: &mut Self::Context) -> Self::Result {
        let Define {
            vm,
            spec,
            epoch,
            machine,
        } = message;
        let (domain, new) = self.find_or_make(vm, &spec, epoch, machine.as_ref(), ctx);
        let sent = domain.send(Redefine {
            spec,
            epoch,
            machine,
        });
        Box::pin(async move {
            let defined = sent.await.unwrap_or_else(|_| Err(actor_gone()));
            if new && defined.is_err() {
                let _ = domain.send(DiscardIncoming).await;
            }
            defined
        })
    }
}

impl Handler<Command> for Supervisor {
    type Result = ResponseFuture<Result<DomainReport, Problem>>;

    fn handle(&mut self, message: Command, ctx: &mut Self::Context) -> Self::Result {
        let Command { vm, command, epoch } = message;
        self.forward(vm, Lifecycle { command, epoch }, ctx)
    }
}

impl Handler<AttachConsole> for Supervisor {
    type Result = ResponseFuture<Result<Console, Problem>>;

    fn handle(&mut self, message: AttachConsole, ctx: &mut Self::Context) -> Self::Result {
        let AttachConsole { vm, scrollback } = message;
        self.forward(vm, Attach { scrollback }, ctx)
    }
}

impl Handler<ReadLog> for Supervisor {
    type Result = ResponseFuture<Result<String, Problem>>;

    fn handle(&mut self, message: ReadLog, ctx: &mut Self::Context) -> Self::Result {
        let ReadLog { vm, kind, lines } = message;
        self.forward(vm, TailLog { kind, lines }, ctx)
    }
}

impl Handler<Lookup> for Supervisor {
    type Result = Option<Addr<DomainActor>>;

    fn handle(&mut self, message: Lookup, ctx: &mut Self::Context) -> Self::Result {
        self.known(message.vm, ctx).ok()
    }
}

impl Handler<Forget> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: Forget, _ctx: &mut Self::Context) {
        self.domains.remove(&message.vm);
    }
}

/// Ends a supervisor as the end of its process would: nothing is told to QEMU.
#[cfg(test)]
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub(crate) struct End;

#[cfg(test)]
impl Handler<End> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: End, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
