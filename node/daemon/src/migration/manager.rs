//! The one place that knows which migrations this node has in hand.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use godwit_node_logic::handoff::{
    HandoffRecord, IncomingRecord, IncomingStage, OutgoingRecord, OutgoingStage, Plan,
    TombstoneVerdict,
};
use godwit_node_logic::qemu::facts::Emulator;
use godwit_shared::model::{
    DoubtDecision, ExitReason, MigrationId, MigrationPolicy, MigrationTuning, NodeId, Problem,
    UnixMillis, VmId, VmSpec, codes,
};
use godwit_shared::pki::Identity;
use godwit_shared::transport::{
    CloseCode, Connection, StreamKind, TransportOptions, TransportRuntime,
};
use godwit_shared::wire::peer::{SourceMessage, TargetMessage};
use godwit_shared::wire::uplink::{Member, NodeReply, Verdict, VerdictQuery};
use tokio::sync::{oneshot, watch};

use super::calls::record_handoff;
use super::incoming::{Arrival, Incoming, Question, Reunion};
use super::outgoing::{self, Departure, Outgoing};
use super::rehearsal::{Rehearsal, rehearse};
use super::tombstones::Tombstones;
use super::{mirror, peer, qemu};
use crate::bus::NodeBus;
use crate::domain::DomainActor;
use crate::domain::messages::{
    BeginOutgoing, DiscardIncoming, EndOutgoing, OutgoingEnd, OutgoingFacts,
};
use crate::images;
use crate::lease::{PeerAsks, answer_peer};
use crate::supervisor::Supervisor;
use crate::supervisor::messages::{Lookup, Restored};
use crate::uplink::UplinkHandle;

/// How long a peer that connected may take to say what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(5);

/// What migrations need of the rest of the node.
pub struct MigrationContext {
    /// Who knows the domains.
    pub supervisor: Addr<Supervisor>,
    /// Where reports go.
    pub bus: NodeBus,
    /// The way to the coordinator.
    pub uplink: UplinkHandle,
    /// The transport's threads.
    pub runtime: TransportRuntime,
    /// Who this node is; rotated while the daemon runs.
    pub identity: watch::Receiver<Identity>,
    /// How connections to peers behave.
    pub options: TransportOptions,
    /// This node's name.
    pub node: NodeId,
    /// The QEMUs of this node.
    pub emulators: Arc<Vec<Emulator>>,
    /// Where the domains' records live.
    pub domains: PathBuf,
    /// Where sockets live.
    pub run_dir: PathBuf,
    /// What was said of migrations that are over.
    pub tombstones: Tombstones,
    /// Who answers peers about leases.
    pub lease: Option<Recipient<PeerAsks>>,
}

impl MigrationContext {
    /// QEMU's end of a migration's relay. The last digits of the id are its
    /// random part; a socket's path has little room.
    pub(super) fn socket(&self, migration: MigrationId) -> PathBuf {
        let id = migration.as_uuid().simple().to_string();
        self.run_dir
            .join(format!("mig-{}.sock", &id[id.len() - 12..]))
    }

    /// Removes the sockets of an earlier daemon's migrations. A QEMU that still
    /// sends or receives is connected already and needs its path no more.
    fn remove_stale_sockets(&self) {
        let entries = std::fs::read_dir(&self.run_dir).into_iter().flatten();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let socket = path.extension().is_some_and(|ending| ending == "sock");
            let name = path.file_name().and_then(|name| name.to_str());
            let ours = socket && name.is_some_and(|name| name.starts_with("mig-"));
            if ours && let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a stale socket stays");
            }
        }
    }
}

/// The manager of a node's migrations.
pub struct MigrationManager {
    context: Arc<MigrationContext>,
    outgoing: HashMap<MigrationId, Addr<Outgoing>>,
    incoming: HashMap<MigrationId, Addr<Incoming>>,
    /// The domains that the last daemon left are known.
    restored: bool,
}

impl MigrationManager {
    /// A manager; it finds the migrations that an earlier daemon left when it
    /// is started.
    pub fn new(context: MigrationContext) -> Self {
        Self {
            context: Arc::new(context),
            outgoing: HashMap::new(),
            incoming: HashMap::new(),
            restored: false,
        }
    }

    fn recover(
        &mut self,
        found: Vec<(VmId, HandoffRecord, Addr<DomainActor>)>,
        ctx: &mut Context<Self>,
    ) {
        self.context.remove_stale_sockets();
        for (vm, record, domain) in found {
            let rebooted = self
                .context
                .bus
                .domain(vm)
                .is_some_and(|report| report.exit == Some(ExitReason::HostReboot));
            match record {
                HandoffRecord::Outgoing(record) => self.recover_outgoing(vm, record, domain, ctx),
                HandoffRecord::Incoming(record) if rebooted => {
                    self.bury(vm, &record, &domain);
                }
                HandoffRecord::Incoming(record) => self.recover_incoming(vm, record, domain, ctx),
            }
        }
    }

    fn recover_outgoing(
        &mut self,
        vm: VmId,
        record: OutgoingRecord,
        domain: Addr<DomainActor>,
        ctx: &mut Context<Self>,
    ) {
        tracing::info!(migration = %record.migration, stage = ?record.stage, "a migration was left in hand");
        let migration = record.migration;
        let departure = Departure {
            context: Arc::clone(&self.context),
            domain,
            vm,
            record,
            manager: ctx.address().recipient(),
        };
        self.outgoing
            .insert(migration, Outgoing::recover(departure).start());
    }

    fn recover_incoming(
        &mut self,
        vm: VmId,
        mut record: IncomingRecord,
        domain: Addr<DomainActor>,
        ctx: &mut Context<Self>,
    ) {
        tracing::info!(migration = %record.migration, stage = ?record.stage, "an arrival was left in hand");
        let migration = record.migration;
        // A refusal that was written before the domain was removed stands.
        if self.refused(migration) {
            record.stage = IncomingStage::Prepared;
        }
        let context = Arc::clone(&self.context);
        let manager = ctx.address().recipient();
        let incoming = Incoming::recover(context, manager, vm, record, domain);
        self.incoming.insert(migration, incoming.start());
    }

    /// The host was rebooted: its QEMUs are gone. A promise whose outcome was
    /// open then can be neither confirmed nor denied any more.
    fn bury(&self, vm: VmId, record: &IncomingRecord, domain: &Addr<DomainActor>) {
        let ran = matches!(record.stage, IncomingStage::Running { .. });
        let word = if ran {
            TombstoneVerdict::Granted
        } else {
            TombstoneVerdict::Lost
        };
        let migration = record.migration;
        // Where the right was taken the guest may have written to its disks:
        // they outlive the record.
        let keeps = matches!(record.stage, IncomingStage::Granted { .. });
        let kept = (keeps && !record.images.is_empty()).then(|| {
            tracing::error!(%migration, images = ?record.images, "the fate of a guest is unknown; its disk images stay");
            HandoffRecord::Incoming(IncomingRecord {
                images: Vec::new(),
                ..record.clone()
            })
        });
        if let Err(problem) = self.context.tombstones.write(record.migration, vm, word) {
            tracing::error!(%problem, "a word on a grant cannot be written down");
            return;
        }
        let domain = domain.clone();
        let images = kept.as_ref().map(|_| record.images.clone());
        actix::spawn(async move {
            if let Some(images) = images {
                let keep = move || images::keep(&images, migration);
                let _ = tokio::task::spawn_blocking(keep).await;
            }
            if kept.is_some()
                && record_handoff(&domain, migration, kept, false)
                    .await
                    .is_err()
            {
                return;
            }
            // Where the right was taken the domain stays, off, for its operator.
            let gone = !ran && matches!(domain.send(DiscardIncoming).await, Ok(Ok(())));
            if !gone {
                let _ = record_handoff(&domain, migration, None, false).await;
            }
        });
    }

    fn refused(&self, migration: MigrationId) -> bool {
        let word = self.context.tombstones.read(migration).ok().flatten();
        word.is_some_and(|stone| stone.verdict == TombstoneVerdict::Refused)
    }

    /// Whether this node may have something of the VM that it cannot read: then
    /// it has no word on it at all.
    fn blind_to(&self, vm: VmId) -> bool {
        let folder = self.context.domains.join(vm.to_string());
        !self.restored || (self.context.bus.domain(vm).is_none() && folder.exists())
    }

    /// The word on a migration that no actor has in hand. One that was never
    /// heard of is refused for good, so that it can never begin afterwards.
    fn settled_verdict(&self, query: &VerdictQuery) -> Option<Verdict> {
        let said = self.context.tombstones.read(query.migration);
        if matches!(said, Ok(None)) && self.blind_to(query.vm) {
            tracing::error!(vm = %query.vm, "a record of the VM cannot be read: no word on its grant");
            return None;
        }
        let word = TombstoneVerdict::Refused;
        match self
            .context
            .tombstones
            .write(query.migration, query.vm, word)
        {
            Ok(word) => Some(word.into()),
            Err(problem) => {
                tracing::error!(%problem, "a question about a grant cannot be answered");
                None
            }
        }
    }
}

impl Actor for MigrationManager {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(1024);
        let supervisor = self.context.supervisor.clone();
        let restored = async move {
            let mut found = Vec::new();
            let records = supervisor.send(Restored).await.ok()?;
            for (vm, record) in records {
                if let Ok(Some(domain)) = supervisor.send(Lookup { vm }).await {
                    found.push((vm, record, domain));
                }
            }
            Some(found)
        };
        // Nothing is answered before the past is known: a question about a
        // grant must not be taken for one about a stranger.
        ctx.wait(
            restored
                .into_actor(self)
                .map(|found: Option<_>, manager, ctx| {
                    manager.restored = found.is_some();
                    manager.recover(found.unwrap_or_default(), ctx);
                }),
        );
    }
}

/// Move a domain to a peer. Resolves when it was accepted, or with the blockers
/// of a dry run.
#[derive(Message)]
#[rtype(result = "Result<NodeReply, Problem>")]
pub struct StartMigration {
    /// The migration.
    pub migration: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// Where to.
    pub target: Member,
    /// How.
    pub policy: MigrationPolicy,
    /// Only find out what stands against it.
    pub dry_run: bool,
}

impl Handler<StartMigration> for MigrationManager {
    type Result = ResponseActFuture<Self, Result<NodeReply, Problem>>;

    fn handle(&mut self, request: StartMigration, ctx: &mut Context<Self>) -> Self::Result {
        if self.outgoing.contains_key(&request.migration) {
            return Box::pin(actix::fut::ready(Ok(NodeReply::Done)));
        }
        let context = Arc::clone(&self.context);
        let manager = ctx.address().recipient();
        let migration = request.migration;
        let work = async move { accept(context, manager, request).await };
        Box::pin(
            work.into_actor(self)
                .map(move |accepted, actor, _| match accepted? {
                    Accepted::Rehearsed(Rehearsal { blockers, forecast }) => {
                        Ok(NodeReply::Rehearsal { blockers, forecast })
                    }
                    Accepted::Begun(outgoing) => {
                        actor.outgoing.insert(migration, outgoing.start());
                        Ok(NodeReply::Done)
                    }
                }),
        )
    }
}

/// What the source decides on of a policy.
fn plan(policy: &MigrationPolicy, facts: &OutgoingFacts) -> Plan {
    Plan {
        mirrors: !facts.disks.is_empty(),
        postcopy: policy.postcopy,
        timeout: policy.timeout,
        timeout_action: policy.timeout_action,
    }
}

enum Accepted {
    Begun(Box<Outgoing>),
    Rehearsed(Rehearsal),
}

async fn accept(
    context: Arc<MigrationContext>,
    manager: Recipient<Ended>,
    request: StartMigration,
) -> Result<Accepted, Problem> {
    let StartMigration {
        migration,
        vm,
        target,
        policy,
        dry_run,
    } = request;
    if target.node == context.node {
        return Err(
            Problem::new(codes::STATE_CONFLICT, "the VM is on that node already")
                .value(target.node.to_string())
                .remedy("choose another target"),
        );
    }
    let found = context.supervisor.send(Lookup { vm }).await;
    let domain = found
        .map_err(|_| qemu::actor_gone())?
        .ok_or_else(|| Problem::not_found("VM", vm))?;
    let mut facts = domain
        .send(BeginOutgoing { migration })
        .await
        .unwrap_or_else(|_| Err(qemu::actor_gone()))?;
    match mirror::survey(&domain, &facts.spec, &policy).await {
        Ok(disks) => facts.disks = disks,
        Err(problem) => {
            release(&domain, &facts).await;
            return Err(problem);
        }
    }
    let record = OutgoingRecord {
        migration,
        target,
        epoch: facts.epoch,
        run: facts.run,
        plan: plan(&policy, &facts),
        images: images_to_leave(&facts, &policy),
        stage: OutgoingStage::Sending,
        started: UnixMillis::now(),
    };
    let departure = Departure {
        context: Arc::clone(&context),
        domain: domain.clone(),
        vm,
        record,
        manager,
    };
    if dry_run {
        let found = rehearse(&departure, &facts, &policy).await;
        release(&domain, &facts).await;
        return found.map(Accepted::Rehearsed);
    }
    let record = Some(HandoffRecord::Outgoing(departure.record.clone()));
    if let Err(problem) = record_handoff(&domain, migration, record, false).await {
        release(&domain, &facts).await;
        return Err(problem);
    }
    Ok(Accepted::Begun(Box::new(Outgoing::begin(
        departure, facts, policy,
    ))))
}

/// What is removed here when the guest runs at the target.
fn images_to_leave(facts: &OutgoingFacts, policy: &MigrationPolicy) -> Vec<String> {
    let moved = facts.disks.iter().filter(|_| !policy.keep_source_disks);
    let disks = moved.filter_map(|plan| facts.spec.disks.get(usize::from(plan.index)));
    disks.map(|disk| disk.path.clone()).collect()
}

async fn release(domain: &Addr<DomainActor>, facts: &OutgoingFacts) {
    let stay = OutgoingEnd::Stay { epoch: facts.epoch };
    if let Ok(Err(problem)) = domain.send(EndOutgoing(stay)).await {
        tracing::warn!(%problem, "a domain was not let go of");
    }
}

/// Call a migration off.
#[derive(Message)]
#[rtype(result = "Result<(), Problem>")]
pub struct CancelMigration {
    /// The migration.
    pub migration: MigrationId,
}

impl Handler<CancelMigration> for MigrationManager {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, request: CancelMigration, _: &mut Context<Self>) -> Self::Result {
        self.tell_outgoing(request.migration, outgoing::Cancel)
    }
}

/// Change a migration while it runs.
#[derive(Message)]
#[rtype(result = "Result<(), Problem>")]
pub struct TuneMigration {
    /// The migration.
    pub migration: MigrationId,
    /// What to change.
    pub tuning: MigrationTuning,
}

impl Handler<TuneMigration> for MigrationManager {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, request: TuneMigration, _: &mut Context<Self>) -> Self::Result {
        self.tell_outgoing(request.migration, outgoing::Tune(request.tuning))
    }
}

/// An operator ends a source's doubt about its grant.
#[derive(Message)]
#[rtype(result = "Result<(), Problem>")]
pub struct ResolveMigration {
    /// The migration.
    pub migration: MigrationId,
    /// How.
    pub decision: DoubtDecision,
}

impl Handler<ResolveMigration> for MigrationManager {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, request: ResolveMigration, _: &mut Context<Self>) -> Self::Result {
        self.tell_outgoing(request.migration, outgoing::Resolve(request.decision))
    }
}

impl MigrationManager {
    /// Tells the source's actor; one that is not there has nothing in hand.
    fn tell_outgoing<M>(
        &self,
        migration: MigrationId,
        message: M,
    ) -> ResponseFuture<Result<(), Problem>>
    where
        M: Message<Result = Result<(), Problem>> + Send + 'static,
        Outgoing: Handler<M>,
    {
        let outgoing = self.outgoing.get(&migration).cloned();
        Box::pin(async move {
            let gone = || {
                Problem::new(
                    codes::STATE_CONFLICT,
                    "the migration is not in hand on its source",
                )
                .value(migration.to_string())
                .remedy("show the migration: it has ended, or its source was restarted")
            };
            let outgoing = outgoing.ok_or_else(gone)?;
            let told = outgoing.send(message).await;
            told.unwrap_or_else(|_| Err(gone()))
        })
    }
}

/// Send progress samples of a migration, or stop it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct WatchMigration {
    /// The migration.
    pub migration: MigrationId,
    /// Whether somebody watches.
    pub watch: bool,
}

impl Handler<WatchMigration> for MigrationManager {
    type Result = ();

    fn handle(&mut self, request: WatchMigration, _: &mut Context<Self>) {
        if let Some(outgoing) = self.outgoing.get(&request.migration).cloned() {
            actix::spawn(async move {
                let _ = outgoing.send(outgoing::Watch(request.watch)).await;
            });
        }
    }
}

/// What became of that migration here, as its target? Durable once said; none
/// when it could not be made durable: ask again.
#[derive(Message)]
#[rtype(result = "Option<Verdict>")]
pub struct QueryVerdict {
    /// The question.
    pub query: VerdictQuery,
    /// The source itself; none when the coordinator asks for it.
    pub asker: Option<NodeId>,
}

impl Handler<QueryVerdict> for MigrationManager {
    type Result = ResponseActFuture<Self, Option<Verdict>>;

    fn handle(&mut self, question: QueryVerdict, _: &mut Context<Self>) -> Self::Result {
        let QueryVerdict { query, asker } = question;
        let incoming = self.incoming.get(&query.migration).cloned();
        let answer = async move {
            let (sender, answer) = oneshot::channel();
            let question = Question {
                asker,
                answer: sender,
            };
            incoming?.send(question).await.ok()?;
            answer.await.ok()
        };
        // An actor that ended meanwhile has left a tombstone.
        let finish = move |answer: Option<Verdict>, manager: &mut Self, _: &mut Context<Self>| {
            answer.or_else(|| {
                let in_hand = manager.incoming.contains_key(&query.migration);
                if in_hand {
                    None
                } else {
                    manager.settled_verdict(&query)
                }
            })
        };
        Box::pin(answer.into_actor(self).map(finish))
    }
}

/// A member has connected.
#[derive(Message)]
#[rtype(result = "()")]
pub struct IncomingConnection(pub Connection);

impl Handler<IncomingConnection> for MigrationManager {
    type Result = ();

    fn handle(&mut self, incoming: IncomingConnection, ctx: &mut Context<Self>) {
        let connection = incoming.0;
        let (manager, lease) = (ctx.address(), self.context.lease.clone());
        actix::spawn(async move {
            let served = serve(&connection, &manager, lease);
            let first = tokio::time::timeout(FIRST_MESSAGE, served).await;
            if first.is_err() {
                connection.close(CloseCode::PROTOCOL, "no message came");
            }
        });
    }
}

/// Reads the first message of a connection and does what it asks.
async fn serve(
    connection: &Connection,
    manager: &Addr<MigrationManager>,
    lease: Option<Recipient<PeerAsks>>,
) {
    let refuse = |why: &str| connection.close(CloseCode::PROTOCOL, why);
    let Some(source) = peer::node_of(connection) else {
        return connection.close(CloseCode::UNAUTHENTICATED, "not a node");
    };
    let begins = |kind| matches!(kind, StreamKind::Control | StreamKind::Lease);
    let (sender, receiver) = match connection.accept_first(begins).await {
        Ok(Some((StreamKind::Lease, sender, receiver))) => {
            return answer_peer(connection, source, (sender, receiver), lease).await;
        }
        Ok(Some((_, sender, receiver))) => (sender, receiver),
        Ok(None) => return refuse("a connection needs a control stream"),
        // Nobody is there to be told.
        Err(_) => return,
    };
    let mut messages = receiver.into_messages::<SourceMessage>();
    match messages.recv().await {
        Ok(Some(SourceMessage::Prepare(prepare))) => match prepare.spec.read::<VmSpec>("VM spec") {
            Ok(spec) => {
                let connection = connection.clone();
                let arrival = Arrival {
                    prepare,
                    spec,
                    source,
                    connection,
                    sender,
                    messages,
                };
                let _ = manager.send(Arrive(arrival)).await;
            }
            Err(problem) => refuse(&problem.message),
        },
        Ok(Some(SourceMessage::Query {
            migration,
            vm,
            epoch,
        })) => {
            let target = source.clone();
            let query = VerdictQuery {
                migration,
                vm,
                target,
                epoch,
            };
            let verdict = manager
                .send(QueryVerdict {
                    query,
                    asker: Some(source),
                })
                .await
                .ok()
                .flatten();
            if let Some(verdict) = verdict {
                let answer = TargetMessage::Verdict { migration, verdict };
                let _ = sender.into_messages().send(&answer).await;
            }
            connection.closed().await;
        }
        Ok(Some(SourceMessage::Resume { migration })) => {
            let again = Reunion {
                source,
                connection: connection.clone(),
                sender,
                messages,
            };
            let _ = manager.send(Reunite(migration, again)).await;
        }
        _ => refuse("a connection begins with a prepare, a query or a resume"),
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Arrive(Arrival);

impl Handler<Arrive> for MigrationManager {
    type Result = ();

    fn handle(&mut self, arrive: Arrive, ctx: &mut Context<Self>) {
        let migration = arrive.0.prepare.migration;
        let known = self.incoming.contains_key(&migration)
            || !matches!(self.context.tombstones.read(migration), Ok(None));
        if known {
            // Asked for once, answered once: a repeated Prepare is not a new one.
            arrive
                .0
                .connection
                .close(CloseCode::PROTOCOL, "that migration was asked for before");
            return;
        }
        let context = Arc::clone(&self.context);
        let incoming = Incoming::begin(context, ctx.address().recipient(), arrive.0);
        self.incoming.insert(migration, incoming.start());
    }
}

/// The source of a post-copy is back, with a new connection.
#[derive(Message)]
#[rtype(result = "()")]
struct Reunite(MigrationId, Reunion);

impl Handler<Reunite> for MigrationManager {
    type Result = ();

    fn handle(&mut self, reunite: Reunite, _: &mut Context<Self>) {
        let Reunite(migration, reunion) = reunite;
        if let Some(incoming) = self.incoming.get(&migration).cloned() {
            actix::spawn(async move {
                let _ = incoming.send(reunion).await;
            });
            return;
        }
        let said = self.context.tombstones.read(migration).ok().flatten();
        let answer = said.map(|stone| no_longer_here(migration, stone.verdict));
        actix::spawn(async move {
            if let Some(answer) = answer {
                let _ = reunion.sender.into_messages().send(&answer).await;
                reunion.connection.closed().await;
            } else {
                let why = "there is no post-copy of that migration here";
                reunion.connection.close(CloseCode::PROTOCOL, why);
            }
        });
    }
}

/// What the source of a post-copy hears that is over here: it was complete; or
/// the host was booted anew, and the guest ended with it.
fn no_longer_here(migration: MigrationId, word: TombstoneVerdict) -> TargetMessage {
    match word {
        TombstoneVerdict::Granted => TargetMessage::Complete { migration },
        TombstoneVerdict::Refused | TombstoneVerdict::Lost => TargetMessage::Failed {
            migration,
            reason: Problem::new(codes::QEMU_GONE, "the guest is no longer on its target")
                .remedy("see whether the target's host was booted anew; start the VM again"),
        },
    }
}

/// A migration is over.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Ended(pub(super) MigrationId);

impl Ended {
    /// Tells the manager without waiting for it.
    pub(super) fn tell(self, manager: &Recipient<Self>) {
        let manager = manager.clone();
        actix::spawn(async move { manager.send(self).await });
    }
}

impl Handler<Ended> for MigrationManager {
    type Result = ();

    fn handle(&mut self, ended: Ended, _: &mut Context<Self>) {
        self.outgoing.remove(&ended.0);
        self.incoming.remove(&ended.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::*;

    #[test]
    fn a_source_hears_what_became_of_a_postcopy_that_is_over() {
        let migration = MigrationId::from_u128(1);
        let complete = no_longer_here(migration, TombstoneVerdict::Granted);
        assert_eq!(complete, TargetMessage::Complete { migration });
        for word in [TombstoneVerdict::Lost, TombstoneVerdict::Refused] {
            let told = no_longer_here(migration, word);
            let TargetMessage::Failed { reason, .. } = &told else {
                panic!("{word:?}: {told:?}");
            };
            assert_eq!(reason.code, codes::QEMU_GONE);
        }
    }
}
