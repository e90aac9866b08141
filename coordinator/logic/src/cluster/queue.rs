//! The queue of migrations.
//!
//! Too many moves at once share links and cores until none of them converges,
//! so a node, a pair of nodes and the cluster each carry only so many. What does
//! not fit waits in phase `queued`, with its reason.
//!
//! # The order
//!
//! Higher priority first, then who came first. A priority grows by one for each
//! minute of waiting, so that a low one is not overtaken for ever. The first that
//! has to wait for a node is kept that node's next place, and so is its place at
//! the other end: a move between two busy nodes is not starved by many that need
//! only one of them. One place for each node and no more: those behind it at a
//! busy node take nothing from the rest of the cluster. A source that is away is
//! kept nothing.
//!
//! A place is given up at every end, and the queue is looked at after every
//! step; there is no timer. What waits is in the store like everything else.
//!
//! # While it waits
//!
//! Its VM may power off: it fails at once then, not when its turn comes. Its
//! target may fill up or go away: when its turn comes, a target that placement
//! chose is chosen anew, one that the operator named makes it fail.

use std::collections::{BTreeMap, BTreeSet};

use godwit_shared::api::QueueView;
use godwit_shared::model::{
    MigrationFailure, MigrationId, MigrationPhase, Millis, NodeId, Problem, UnixMillis, codes,
};

use serde::{Deserialize, Serialize};

use super::Cluster;
use super::decide::Rating;
use super::live::Live;
use super::state::{Knowledge, Purpose};
use super::turn::Turn;
use crate::placement::Request;
use crate::record::{Key, MigrationRecord};

/// How long one has to wait until its priority has grown by one.
const AGEING: Millis = Millis(60_000);
/// Ended migrations that an estimate looks at.
const HISTORY: usize = 20;

/// How many migrations may run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MigrationLimits {
    /// That one node sends or receives.
    pub per_node: u32,
    /// Between two nodes, both ways together.
    pub per_link: u32,
    /// In the cluster.
    pub cluster: u32,
}

impl Default for MigrationLimits {
    fn default() -> Self {
        Self {
            per_node: 8,
            per_link: 8,
            cluster: 64,
        }
    }
}

/// Places that are taken, and the next ones that are kept.
#[derive(Debug, Default)]
struct Taken {
    nodes: BTreeMap<NodeId, u32>,
    links: BTreeMap<(NodeId, NodeId), u32>,
    all: u32,
    kept: BTreeSet<NodeId>,
}

impl Taken {
    fn take(&mut self, record: &MigrationRecord) {
        for node in [&record.source, &record.target] {
            *self.nodes.entry(node.clone()).or_default() += 1;
        }
        *self.links.entry(link(record)).or_default() += 1;
        self.all += 1;
    }

    /// Why there is no place for it.
    fn full(&self, record: &MigrationRecord, limits: &MigrationLimits) -> Option<String> {
        for node in [&record.source, &record.target] {
            let count = self.nodes.get(node).copied().unwrap_or(0);
            if count >= limits.per_node {
                return Some(format!("{node} carries its most: {count}"));
            }
            if self.kept.contains(node) && count + 1 >= limits.per_node {
                return Some(format!("the next place at {node} is kept for another"));
            }
        }
        let count = self.links.get(&link(record)).copied().unwrap_or(0);
        if count >= limits.per_link {
            let (a, b) = (&record.source, &record.target);
            return Some(format!("{a} and {b} have their most between them: {count}"));
        }
        (self.all >= limits.cluster).then(|| format!("the cluster carries its most: {}", self.all))
    }

    /// The next place at each of its nodes is kept, for the first that waits.
    fn keep(&mut self, record: &MigrationRecord) {
        let ends = [record.source.clone(), record.target.clone()];
        self.kept.extend(ends);
    }
}

/// Both ways are one link.
fn link(record: &MigrationRecord) -> (NodeId, NodeId) {
    let (a, b) = (record.source.clone(), record.target.clone());
    if a < b { (a, b) } else { (b, a) }
}

/// What a priority has grown to.
fn urgency(record: &MigrationRecord, now: UnixMillis) -> u64 {
    let waited = record.created.until(now).0 / AGEING.0;
    u64::from(record.policy.priority) + waited
}

impl Cluster {
    /// Those that wait, the next one first.
    fn queue(&self, now: UnixMillis) -> Vec<MigrationId> {
        let waiting = self.observed.waiting.keys();
        let records = waiting.filter_map(|id| self.records.migrations.get(id));
        let mut order: Vec<&MigrationRecord> = records.collect();
        order.sort_by_key(|record| {
            let urgency = std::cmp::Reverse(urgency(record, now));
            (urgency, record.created, record.id)
        });
        order.iter().map(|record| record.id).collect()
    }

    fn taken(&self) -> Taken {
        let mut taken = Taken::default();
        for id in self.observed.moves.keys() {
            let running = !self.observed.waiting.contains_key(id);
            if let Some(record) = self.records.migrations.get(id).filter(|_| running) {
                taken.take(record);
            }
        }
        taken
    }

    /// Starts what has a place now. Called after every step.
    pub(super) fn advance_queue(&mut self, turn: &mut Turn) {
        if self.observed.waiting.is_empty() {
            return;
        }
        let mut taken = self.taken();
        for id in self.queue(turn.now) {
            let Some(record) = self.records.migrations.get(&id).cloned() else {
                self.observed.waiting.remove(&id);
                continue;
            };
            self.settle_ledger(turn);
            if let Err(problem) = self.advance(turn, &mut taken, record) {
                self.fail_queued(turn, id, problem);
            }
        }
    }

    /// Starts one if it has a place; why it never will.
    fn advance(
        &mut self,
        turn: &mut Turn,
        taken: &mut Taken,
        mut record: MigrationRecord,
    ) -> Result<(), Problem> {
        if !self.is_up(&record.source) {
            self.await_node(turn, &record, &record.source);
            return Ok(());
        }
        let report = self.report(&record.source, record.vm);
        if report.is_none_or(|report| !report.state.has_process()) {
            self.still_there(&record)?;
        }
        if self.has_to_wait(turn, taken, &record) {
            return Ok(());
        }
        self.still_there(&record)?;
        if !self.is_up(&record.target) && self.just_started(turn.now) {
            self.await_node(turn, &record, &record.target);
            return Ok(());
        }
        let fits = self.with_live(|cluster, live| cluster.still_fits(live, &record));
        if let Err(problem) = fits {
            if !record.placed {
                return Err(problem);
            }
            self.place_anew(turn, &mut record)?;
            if self.has_to_wait(turn, taken, &record) {
                return Ok(());
            }
        }
        taken.take(&record);
        self.start_migration(turn, &record);
        Ok(())
    }

    /// Whether there is no place for it yet; the next one is kept then.
    fn has_to_wait(
        &mut self,
        turn: &mut Turn,
        taken: &mut Taken,
        record: &MigrationRecord,
    ) -> bool {
        let Some(reason) = taken.full(record, &self.settings.migrations) else {
            return false;
        };
        self.hold(turn, record, reason);
        taken.keep(record);
        true
    }

    /// Its VM runs, where it did when the move was asked for.
    fn still_there(&self, record: &MigrationRecord) -> Result<(), Problem> {
        let source = self.movable_from(record.vm)?;
        if source == record.source {
            return Ok(());
        }
        let text = format!("{} is on {source} by now", record.name);
        Err(Problem::new(codes::STATE_CONFLICT, text).remedy("ask for the move again"))
    }

    /// Another target for one whose own does not take it any more.
    fn place_anew(&mut self, turn: &mut Turn, record: &mut MigrationRecord) -> Result<(), Problem> {
        let (decision, _) = self.choose_target(record.vm, &record.source, None, turn.now)?;
        let target = decision.node.clone();
        record.decision = Some(decision);
        let before = std::mem::replace(&mut record.target, target.clone());
        let (name, about) = (&record.name, super::progress::about(record));
        let message = format!("{name} is to move to {target}: it no longer fits on {before}");
        if let Some(task) = record.task.and_then(|id| self.records.tasks.get_mut(&id)) {
            task.node = Some(target);
            turn.touch(Key::Task(task.id));
            turn.task_changed(task.id);
        }
        self.records.migrations.insert(record.id, record.clone());
        turn.touch(Key::Migration(record.id));
        self.note(turn, "migration.target", about, message);
        Ok(())
    }

    /// What was so when it was asked for may have changed since.
    fn still_fits(&self, live: &mut Live, record: &MigrationRecord) -> Result<(), Problem> {
        let vm = self.vm_record(record.vm)?;
        let wish = Request {
            spec: &vm.spec,
            machine: self.machine_in_use(vm),
            accelerator: self.accelerator_in_use(vm),
            only: Some(&record.target),
            exclude: Some(&record.source),
        };
        let rating = Rating {
            cluster: self,
            live,
            wish,
            vm: Some(record.vm),
            now: self.observed.now,
        };
        let (_, refused) = rating.asked(&record.target);
        if refused.is_empty() {
            return Ok(());
        }
        let text = format!("{} no longer fits on {}", record.name, record.target);
        Err(Problem::new(codes::MIGRATION_BLOCKED, text)
            .remedy("choose another target")
            .and(refused))
    }

    fn start_migration(&mut self, turn: &mut Turn, record: &MigrationRecord) {
        let id = record.id;
        self.observed.waiting.remove(&id);
        if let Some(record) = self.records.migrations.get_mut(&id) {
            (record.waiting, record.waits_for) = (false, None);
            turn.touch(Key::Migration(id));
        }
        if let Some(task) = record.task {
            turn.task_changed(task);
        }
        let body = match self.migrate_request(record, false) {
            Ok(body) => body,
            Err(problem) => return self.fail_queued(turn, id, problem),
        };
        self.tell_members(turn);
        let deadline = self.settings.limits.migrate;
        let purpose = Purpose::Migrate(id);
        let asked = self.ask(turn, &record.source, purpose, body, deadline);
        let known = self.observed.moves.get_mut(&id);
        if let Some(known) = known.filter(|_| asked.is_some()) {
            known.source = Knowledge::Asked;
        }
    }

    /// It goes on waiting. A reason that was not told before is told, also
    /// before a restart of the coordinator.
    fn hold(&mut self, turn: &mut Turn, record: &MigrationRecord, reason: String) {
        self.show_reason(turn, record, &reason);
        let Some(kept) = self.records.migrations.get_mut(&record.id) else {
            return;
        };
        if kept.waits_for.as_ref() == Some(&reason) {
            return;
        }
        let message = format!("the move of {} waits: {reason}", record.name);
        let first = kept.waits_for.replace(reason).is_none();
        let kind = if first {
            "migration.queued"
        } else {
            "migration.waits"
        };
        turn.touch(Key::Migration(record.id));
        self.note(turn, kind, super::progress::about(record), message);
    }

    /// The nodes' own events tell who is away.
    fn await_node(&mut self, turn: &mut Turn, record: &MigrationRecord, node: &NodeId) {
        let reason = format!("{node} is not connected");
        self.show_reason(turn, record, &reason);
    }

    fn show_reason(&mut self, turn: &mut Turn, record: &MigrationRecord, reason: &str) {
        let Some(shown) = self.observed.waiting.get_mut(&record.id) else {
            return;
        };
        if shown != reason {
            reason.clone_into(shown);
            if let Some(task) = record.task {
                turn.task_changed(task);
            }
        }
    }

    fn fail_queued(&mut self, turn: &mut Turn, id: MigrationId, problem: Problem) {
        let failure = MigrationFailure {
            phase: MigrationPhase::Queued,
            problem,
            recovered_in: None,
        };
        self.finish_migration(turn, id, MigrationPhase::Failed, Some(failure));
    }

    /// Where a migration stands in the queue.
    pub(super) fn queue_view(&self, record: &MigrationRecord) -> Option<QueueView> {
        let reason = self.observed.waiting.get(&record.id)?;
        let now = self.observed.now;
        let order = self.queue(now);
        let ahead = order.iter().take_while(|id| **id != record.id);
        let shares = |id: &&MigrationId| {
            self.records.migrations.get(id).is_some_and(|other| {
                let ends = [&other.source, &other.target];
                ends.contains(&&record.source) || ends.contains(&&record.target)
            })
        };
        let before = u64::try_from(ahead.clone().filter(shares).count()).unwrap_or(u64::MAX);
        let rounds = before / u64::from(self.settings.migrations.per_node.max(1)) + 1;
        let usual = self.usual_duration();
        Some(QueueView {
            position: u32::try_from(ahead.count() + 1).unwrap_or(u32::MAX),
            reason: reason.clone(),
            estimated_start: usual.map(|usual| now.after(Millis(usual.0.saturating_mul(rounds)))),
        })
    }

    /// The median of the last moves that succeeded.
    fn usual_duration(&self) -> Option<Millis> {
        let ended = self.observed.ended_migrations.iter().rev();
        let took = ended.filter_map(|id| {
            let record = self.records.migrations.get(id)?;
            (record.phase == MigrationPhase::Completed).then_some(())?;
            record.figures.duration
        });
        let mut took: Vec<Millis> = took.take(HISTORY).collect();
        took.sort_unstable();
        took.get(took.len() / 2).copied()
    }
}
