//! From a request of the coordinator to the actor that serves it.
//!
//! Every request gets exactly one answer: what the actor says, or a problem
//! when it is gone or does not answer in time. An actor's answer that comes
//! later than that is dropped here; the state it speaks of arrives by the bus.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use actix::{Addr, MailboxError, Message, Recipient};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use godwit_shared::model::{Problem, codes};
use godwit_shared::wire::uplink::{NodeReply, NodeRequest};

use crate::lease::{LeaseKeeper, Withhold};
use crate::migration::{
    CancelMigration, MigrationManager, QueryVerdict, ResolveMigration, StartMigration,
    TuneMigration, WatchMigration,
};
use crate::supervisor::Supervisor;
use crate::supervisor::messages::{AttachConsole, Command, Define, ReadLog};

/// For what only looks something up or notes it.
const QUICK: Duration = Duration::from_secs(15);
/// For what waits for QEMU, whose own deadlines are shorter and say more.
const SLOW: Duration = Duration::from_secs(90);

/// Who serves which request.
#[derive(Clone)]
pub struct Services {
    /// Defines domains.
    pub define: Recipient<Define>,
    /// Runs lifecycle commands.
    pub command: Recipient<Command>,
    /// Attaches to consoles.
    pub console: Recipient<AttachConsole>,
    /// Reads logs.
    pub log: Recipient<ReadLog>,
    /// Moves domains.
    pub migrate: Recipient<StartMigration>,
    /// Calls migrations off.
    pub cancel: Recipient<CancelMigration>,
    /// Changes migrations while they run.
    pub tune: Recipient<TuneMigration>,
    /// Ends a source's doubt.
    pub resolve: Recipient<ResolveMigration>,
    /// Samples the progress of migrations.
    pub watch: Recipient<WatchMigration>,
    /// Knows what became of grants.
    pub verdict: Recipient<QueryVerdict>,
    /// Vouches for no peer that is lost; none where no lease is kept.
    pub withhold: Option<Recipient<Withhold>>,
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

impl Services {
    /// The services of a node.
    pub fn of(
        supervisor: &Addr<Supervisor>,
        migrations: &Addr<MigrationManager>,
        lease: &Addr<LeaseKeeper>,
    ) -> Self {
        Self {
            define: supervisor.clone().recipient(),
            command: supervisor.clone().recipient(),
            console: supervisor.clone().recipient(),
            log: supervisor.clone().recipient(),
            migrate: migrations.clone().recipient(),
            cancel: migrations.clone().recipient(),
            tune: migrations.clone().recipient(),
            resolve: migrations.clone().recipient(),
            watch: migrations.clone().recipient(),
            verdict: migrations.clone().recipient(),
            withhold: Some(lease.clone().recipient()),
        }
    }

    /// Hands a request over at once, so that requests reach an actor in the
    /// order in which they came; the future is only the wait for its answer.
    pub(super) fn dispatch(&self, request: NodeRequest) -> Answer {
        match request {
            NodeRequest::Define {
                vm,
                spec,
                epoch,
                machine,
            } => match spec.read("VM spec") {
                Ok(spec) => {
                    let define = Define {
                        vm,
                        spec,
                        epoch,
                        machine,
                    };
                    let answer = ask(&self.define, define, QUICK);
                    async { answer.await?.map(NodeReply::Domain) }.boxed()
                }
                Err(problem) => refuse(problem),
            },
            NodeRequest::Command { vm, command, epoch } => {
                let command = Command { vm, command, epoch };
                let answer = ask(&self.command, command, SLOW);
                async { answer.await?.map(NodeReply::Domain) }.boxed()
            }
            NodeRequest::Migrate {
                migration,
                vm,
                target,
                policy,
                dry_run,
            } => {
                let start = StartMigration {
                    migration,
                    vm,
                    target,
                    policy,
                    dry_run,
                };
                let answer = ask(&self.migrate, start, SLOW);
                async { answer.await? }.boxed()
            }
            NodeRequest::CancelMigration { migration } => {
                let answer = ask(&self.cancel, CancelMigration { migration }, QUICK);
                async { answer.await?.map(|()| NodeReply::Done) }.boxed()
            }
            NodeRequest::TuneMigration { migration, tuning } => {
                let answer = ask(&self.tune, TuneMigration { migration, tuning }, QUICK);
                async { answer.await?.map(|()| NodeReply::Done) }.boxed()
            }
            NodeRequest::ResolveMigration {
                migration,
                decision,
            } => {
                let resolve = ResolveMigration {
                    migration,
                    decision,
                };
                let answer = ask(&self.resolve, resolve, QUICK);
                async { answer.await?.map(|()| NodeReply::Done) }.boxed()
            }
            NodeRequest::WatchMigration { migration, watch } => {
                let answer = ask(&self.watch, WatchMigration { migration, watch }, QUICK);
                async { answer.await.map(|()| NodeReply::Done) }.boxed()
            }
            NodeRequest::Verdict(query) => {
                let answer = ask(&self.verdict, QueryVerdict { query, asker: None }, QUICK);
                async {
                    let word = answer.await?;
                    word.map(NodeReply::Verdict).ok_or_else(no_word)
                }
                .boxed()
            }
            NodeRequest::WithholdVouch { node, period } => match &self.withhold {
                Some(keeper) => {
                    let answer = ask(keeper, Withhold { node, period }, QUICK);
                    async { answer.await.map(|left| NodeReply::Withheld { left }) }.boxed()
                }
                None => refuse(Problem::internal("no lease is kept")),
            },
            NodeRequest::Log { vm, kind, lines } => {
                let answer = ask(&self.log, ReadLog { vm, kind, lines }, QUICK);
                async { answer.await?.map(NodeReply::Log) }.boxed()
            }
        }
    }
}

/// What comes of a request.
pub(super) type Answer = BoxFuture<'static, Result<NodeReply, Problem>>;

fn refuse(problem: Problem) -> Answer {
    std::future::ready(Err(problem)).boxed()
}

/// Sends a message now, and waits for its answer until the deadline.
pub(super) fn ask<M>(
    actor: &Recipient<M>,
    message: M,
    deadline: Duration,
) -> impl Future<Output = Result<M::Result, Problem>> + Send + 'static
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    let answer = actor.send(message);
    async move {
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(MailboxError::Closed)) => Err(Problem::internal("the actor in charge is gone")),
            Ok(Err(MailboxError::Timeout)) | Err(_) => Err(late(deadline)),
        }
    }
}

fn no_word() -> Problem {
    Problem::new(
        codes::HOST_IO,
        "the word on the grant could not be written down",
    )
    .remedy("look at the node's log and disk; the question is asked again")
}

fn late(deadline: Duration) -> Problem {
    Problem::new(
        codes::TIMEOUT,
        format!(
            "the node did not finish this within {} s",
            deadline.as_secs()
        ),
    )
    .remedy("look at the state of the VM; the action may still take effect")
}
