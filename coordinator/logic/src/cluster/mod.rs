//! The state of the cluster, and the only place that changes it.
//!
//! # Desired and observed
//!
//! *Records* ([`crate::record`]) say what is wanted and who holds which right;
//! they are persisted before anything is done that rests on them. What the
//! nodes say (domains, sessions, health, requests under way) is *observed*: it
//! lives in memory and comes again with every node's hello. A coordinator that
//! was killed at any moment therefore finds out what is true from its records
//! and the hellos, and goes on with the tasks that it finds unfinished: every
//! task is driven by one function that compares the two and takes the next step
//! ([`task`]), whether it is new, answered, or picked up after a restart.
//!
//! # At most one runner
//!
//! A VM runs where its record's `owner` says, at the record's `epoch`.
//!
//! 1. *The record leads a start.* Owner and a raised epoch are persisted before
//!    `Start` is sent, and `Start` goes to that owner alone. A coordinator that
//!    died in between finds its intent and sends the same start, with the same
//!    epoch, to the same node. `Define` carries the epoch before it: so a
//!    domain that reports the new epoch has been started, and is not started
//!    again when it has ended since.
//! 2. *The record changes its owner for a start only when the former owner is
//!    connected and has said that it has no such domain any more.* A node that
//!    is away keeps its VMs: nothing of them is started elsewhere (fencing
//!    comes later).
//! 3. *Nodes pass the right on by themselves in a migration, and are believed.*
//!    A domain that is reported as owned at a higher epoch than the record's,
//!    with a guest that ran there, moves the record to that node; so does a migration that is reported as
//!    completed. The epoch of a record never goes down.
//! 4. *Nothing is started while any node is known to have a process of it*,
//!    and no command runs beside another, or beside a migration, of the same VM.
//! 5. *A node that runs a VM at a lower epoch* than the record's, as after a
//!    partition, is told to stop it only when the record's owner is connected
//!    and reports the domain as its own at the record's epoch; a stop that was
//!    refused or not answered is asked for again, ever more seldom. While the owner
//!    is away it is left alone: it may be the only one. When the owner is
//!    connected and has no process of it, the stale runner is the only one, so
//!    the record moves to it; its epoch stays as high as it was.
//! 6. *A stopped copy* on a node that is not the owner is deleted there once the
//!    owner has confirmed the domain at the record's epoch, or runs its guest at
//!    a later epoch than the copy's.
//!
//! # What is wanted follows what the guest does
//!
//! A guest that powers itself off is wanted `stopped` from then on. One that
//! crashed stays wanted `running`, keeps its reservation and its exit reason,
//! and is not restarted by itself. A VM that is found running with no task on
//! it is wanted `running`.

mod calibration;
mod command;
mod create;
mod decide;
mod failover;
mod frozen;
mod heard;
mod lease;
mod ledger;
mod live;
mod load;
mod log;
mod marks;
mod member;
mod migrate;
mod outlook;
mod owner;
mod plans;
mod progress;
mod queue;
mod recall;
mod reply;
mod room;
mod roster;
mod runners;
mod session;
mod state;
mod steer;
mod task;
#[cfg(test)]
mod tests;
mod turn;
mod verdict;
mod view;
mod what_if;

pub use plans::{RebalanceMode, RebalanceSettings};
pub use queue::MigrationLimits;

use std::collections::BTreeSet;

use godwit_shared::model::{BootMillis, Millis, NodeId, Problem, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::effect::{Effect, Timer};
use crate::input::{Input, Output};
use crate::placement::Profiles;

pub use lease::ProtectionRules;
pub use load::LoadError;
pub use log::Replay;

use state::{Observed, Records};
use turn::Turn;

/// What the cluster is told of itself at the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The cluster's name.
    pub name: String,
    /// The coordinator's version.
    pub software: String,
    /// The CA's SHA-256 fingerprint, in hexadecimal.
    pub ca_fingerprint: String,
    /// When this coordinator was started.
    pub started: UnixMillis,
    /// What placement weighs, by profile.
    pub placement: Profiles,
    /// How many migrations may run at once.
    pub migrations: MigrationLimits,
    /// Whether, and how, the load is evened out.
    pub rebalance: RebalanceSettings,
    /// How long things are waited for, and how much is kept.
    pub limits: Limits,
    /// Nodes that have a fence agent.
    pub fence_agents: BTreeSet<NodeId>,
}

/// How long things are waited for, and how much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// For a node's reply to a request.
    pub request: Millis,
    /// For a node's reply to `Start`, which may have to load much.
    pub start: Millis,
    /// For a node's reply to `Migrate`: longer than the node itself takes at
    /// most (90 s), so that its word comes before this one is assumed.
    pub migrate: Millis,
    /// For a guest that was asked to power off.
    pub shutdown: Millis,
    /// For the return of a node that a task needs.
    pub absence: Millis,
    /// For the return of a node that a step of a plan is to move a VM from.
    pub plan_source: Millis,
    /// Events kept.
    pub events: usize,
    /// Ended tasks kept.
    pub tasks: usize,
    /// Ended migrations kept.
    pub migrations: usize,
    /// The nodes' leases, and what follows their ends.
    pub protection: ProtectionRules,
    /// Nodes up to which every one is looked at for each decision, so that it keeps
    /// what became of the others.
    pub explained: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request: Millis(15_000),
            start: Millis(60_000),
            migrate: Millis(120_000),
            shutdown: Millis(180_000),
            absence: Millis(60_000),
            plan_source: Millis(600_000),
            events: 10_000,
            tasks: 1_000,
            migrations: 1_000,
            protection: ProtectionRules::default(),
            explained: 64,
        }
    }
}

/// The state of the cluster.
///
/// Feed it with [`Cluster::step`], read it with the methods of the view
/// (`vms`, `nodes` and so on). It is cheap to read and never blocks.
#[derive(Debug, Clone)]
pub struct Cluster {
    settings: Settings,
    records: Records,
    observed: Observed,
}

impl Cluster {
    /// Takes one input, appends what is to be done to `effects` (in that order,
    /// see [`crate::effect`]), and says what the input's author is to be told
    /// once the effects are durable. A refusal changed nothing.
    pub fn step(
        &mut self,
        now: UnixMillis,
        input: Input,
        effects: &mut Vec<Effect>,
    ) -> Result<Output, Problem> {
        self.step_at(now, BootMillis(now.0), input, effects)
    }

    /// The same, with a clock for the leases that never jumps: what operators'
    /// clocks say of `now` is no measure of a lease.
    pub fn step_at(
        &mut self,
        now: UnixMillis,
        steady: BootMillis,
        input: Input,
        effects: &mut Vec<Effect>,
    ) -> Result<Output, Problem> {
        self.observed.leases.now = self.observed.leases.now.max(steady);
        let mut turn = Turn::new(now);
        self.observed.now = now;
        let output = self.apply(&mut turn, input);
        if output.is_ok() {
            self.advance_queue(&mut turn);
            self.advance_leases(&mut turn);
            self.advance_failover(&mut turn);
            while self.advance_plans(&mut turn) {
                self.advance_queue(&mut turn);
            }
        }
        debug_assert!(
            output.is_ok() || turn.is_empty(),
            "a refusal changed the state"
        );
        self.settle_ledger(&turn);
        if cfg!(debug_assertions) {
            self.check_ledger();
            self.check_live();
            self.check_roster();
        }
        self.finish(turn, effects)?;
        output
    }

    fn apply(&mut self, turn: &mut Turn, input: Input) -> Result<Output, Problem> {
        match input {
            Input::CreateToken { id, digest, valid } => {
                self.on_create_token(turn, id, digest, valid)
            }
            Input::Join {
                token,
                digest,
                node,
                address,
            } => self.on_join(turn, &token, digest, &node, address),
            Input::SessionOpened {
                node,
                incarnation,
                session,
                hello,
            } => self.on_session_opened(turn, &node, incarnation, session, hello),
            Input::Message {
                node,
                session,
                message,
            } => self.on_message(turn, &node, session, message),
            Input::Unanswered { request } => {
                self.on_unanswered(turn, request);
                Ok(Output::Done)
            }
            Input::SessionClosed {
                node,
                session,
                reason,
            } => {
                self.on_session_closed(turn, &node, session, &reason);
                Ok(Output::Done)
            }
            Input::Cordon { node, cordoned } => self.on_cordon(turn, &node, cordoned),
            Input::Mark { node, request } => self.on_mark(turn, &node, &request),
            Input::NodeAbsent { node } => self.on_node_absent(turn, &node),
            Input::Drain {
                node,
                plan,
                request,
                survey,
            } => self.on_drain(turn, &node, plan, &request, &survey),
            Input::Return {
                node,
                plan,
                request,
            } => self.on_return(turn, &node, plan, &request),
            Input::Rebalance { plan, request } => self.on_rebalance(turn, plan, &request),
            Input::AbortPlan { plan, request } => self.on_abort_plan(turn, plan, &request),
            Input::RemoveNode { node } => self.on_remove_node(turn, &node),
            Input::CreateVm { vm, task, request } => self.on_create_vm(turn, vm, task, request),
            Input::Command {
                vm,
                task,
                command,
                options,
            } => self.on_command(turn, vm, task, command, &options),
            Input::Migrate {
                vm,
                migration,
                task,
                ticket,
                request,
            } => self.on_migrate(turn, vm, migration, task, ticket, request),
            Input::CancelMigration { migration } => self.on_cancel_migration(turn, migration),
            Input::TuneMigration {
                migration,
                ticket,
                tuning,
            } => self.on_tune_migration(turn, migration, ticket, tuning),
            Input::ResolveMigration {
                migration,
                ticket,
                resolution,
            } => self.on_resolve_migration(turn, migration, ticket, resolution),
            Input::WatchMigration { migration, watch } => {
                self.on_watch_migration(turn, migration, watch)
            }
            Input::CancelTask { task } => self.on_cancel_task(turn, task),
            Input::ReadLog {
                ticket,
                vm,
                kind,
                lines,
            } => self.on_read_log(turn, ticket, vm, kind, lines),
            Input::Timer(Timer::Leftover(vm)) => {
                self.settle(turn, vm);
                Ok(Output::Done)
            }
            Input::Timer(Timer::Members) => {
                self.tell_members(turn);
                Ok(Output::Done)
            }
            Input::Timer(Timer::Rebalance) => {
                self.on_rebalance_timer(turn);
                Ok(Output::Done)
            }
            Input::Timer(Timer::Plans) => {
                // What follows is looked at after every step.
                self.observed.plans_at = None;
                Ok(Output::Done)
            }
            Input::FenceEnded { node, outcome } => {
                self.on_fence_ended(turn, &node, outcome);
                Ok(Output::Done)
            }
            // Both are looked after at the end of every step.
            Input::Timer(Timer::Leases | Timer::Failover) => Ok(Output::Done),
            Input::Timer(Timer::Task(task)) => {
                self.on_task_timer(turn, task);
                Ok(Output::Done)
            }
        }
    }
}
