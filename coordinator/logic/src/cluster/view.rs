//! The state as operators see it. Nothing here changes anything.

use std::collections::BTreeMap;

use godwit_shared::api::{
    ClusterStatus, Decision, ForecastMet, MigrationView, NodeHealth, NodeView, TaskView, VmView,
};
use godwit_shared::model::{
    Capacity, DomainReport, DomainState, MigrationId, MigrationPhase, MigrationProgress, NodeId,
    Problem, TaskId, Usage, VmId, VmName, codes,
};

use super::Cluster;
use super::state::Move;
use crate::record::{MigrationRecord, NodeRecord, TaskRecord, VmRecord};

impl Cluster {
    /// The cluster in a few numbers.
    pub fn status(&self) -> ClusterStatus {
        let ledger = &self.observed.ledger;
        let mut nodes = BTreeMap::new();
        let mut capacity = Capacity::default();
        let mut used = Usage::default();
        for (name, state) in &self.observed.nodes {
            *nodes.entry(state.health.as_str().to_owned()).or_default() += 1;
            if state.health != NodeHealth::Up {
                continue;
            }
            let offered = self.capacity_of(name);
            capacity.vcpus = capacity.vcpus.saturating_add(offered.vcpus);
            capacity.memory = capacity.memory + offered.memory;
            used = used
                .plus(ledger.load(name).used)
                .plus(self.planned_at(name));
        }
        let vms = ledger.states().iter();
        let vms = vms.map(|(state, count)| ((*state).to_owned(), *count));
        ClusterStatus {
            name: self.settings.name.clone(),
            software: self.settings.software.clone(),
            ca_fingerprint: self.settings.ca_fingerprint.clone(),
            started: self.settings.started,
            nodes,
            vms: vms.collect(),
            migrations: u32::try_from(self.observed.moves.len()).unwrap_or(u32::MAX),
            capacity,
            used,
            last_event: self.last_event(),
            unheard: self.unheard().cloned().collect(),
        }
    }

    fn capacity_of(&self, node: &NodeId) -> Capacity {
        let record = self.records.nodes.get(node);
        let facts = record.and_then(|record| record.facts.as_ref());
        facts.map(|facts| facts.capacity).unwrap_or_default()
    }

    /// Every member, by name.
    pub fn nodes(&self) -> Vec<NodeView> {
        let members = self.records.nodes.values().filter(|node| !node.revoked);
        members.map(|record| self.node_view(record)).collect()
    }

    /// One member.
    pub fn node(&self, node: &NodeId) -> Result<NodeView, Problem> {
        let record = self.member(node)?;
        Ok(self.node_view(record))
    }

    fn node_view(&self, record: &NodeRecord) -> NodeView {
        let state = self.observed.nodes.get(&record.name);
        let load = self.observed.ledger.load(&record.name);
        let facts = record.facts.as_ref();
        NodeView {
            name: record.name.clone(),
            health: state.map_or(NodeHealth::New, |state| state.health),
            since: state.map_or(record.joined, |state| state.since),
            reason: state.and_then(|state| state.reason.clone()),
            cordoned: record.cordoned,
            incarnation: record.incarnation,
            joined: record.joined,
            labels: facts.map_or_else(|| record.marks.labels.clone(), |facts| facts.labels.clone()),
            capacity: facts.map(|facts| facts.capacity).unwrap_or_default(),
            facts: record.facts.clone(),
            marks: record.marks.clone(),
            used: load.used.plus(self.planned_at(&record.name)),
            vms: load.vms,
            lease: self.lease_view(&record.name),
        }
    }

    /// Every VM, by name.
    pub fn vms(&self) -> Vec<VmView> {
        let ids = self.observed.names.values();
        ids.filter_map(|id| self.records.vms.get(id))
            .map(|record| self.vm_view(record))
            .collect()
    }

    /// The VM with that name or that id.
    pub fn find_vm(&self, name_or_id: &str) -> Result<VmId, Problem> {
        let name = name_or_id.parse::<VmName>().ok();
        let named = name.and_then(|name| self.observed.names.get(&name).copied());
        let by_id = || {
            let id = name_or_id.parse::<VmId>().ok()?;
            self.records.vms.contains_key(&id).then_some(id)
        };
        named
            .or_else(by_id)
            .ok_or_else(|| Problem::not_found("VM", name_or_id))
    }

    /// One VM.
    pub fn vm(&self, vm: VmId) -> Result<VmView, Problem> {
        self.vm_record(vm).map(|record| self.vm_view(record))
    }

    fn vm_view(&self, record: &VmRecord) -> VmView {
        let report = self.owner_report(record.id);
        let up = record.owner.as_ref().is_some_and(|owner| self.is_up(owner));
        let (state, since) = self.state_of(record);
        VmView {
            id: record.id,
            name: record.name.clone(),
            desired: record.desired,
            state,
            since,
            node: record.owner.clone(),
            decision: record.decision_in_force().cloned(),
            node_up: up,
            epoch: record.epoch,
            spec: record.spec.clone(),
            machine: record.machine.clone(),
            accelerator: report.and_then(|report| report.accelerator.clone()),
            agent: report.map(|report| report.agent).unwrap_or_default(),
            pid: report.and_then(|report| report.pid),
            exit: report.and_then(|report| report.exit.clone()),
            problem: self.problem_of(record, report, up),
            migration: self.migration_of(record.id),
            usage: report.and_then(|report| report.usage),
            created: record.created,
            protection: self.protection_view(record),
        }
    }

    /// The owner's word, or its last one, or that nothing runs.
    pub(super) fn state_of(
        &self,
        record: &VmRecord,
    ) -> (DomainState, godwit_shared::model::UnixMillis) {
        let Some(owner) = &record.owner else {
            return (DomainState::Stopped, record.created);
        };
        match (self.report(owner, record.id), record.seen) {
            (Some(report), _) => (report.state, report.since),
            (None, Some(seen)) if !self.is_up(owner) => (seen.state, seen.since),
            (None, _) => (DomainState::Stopped, record.created),
        }
    }

    /// What an operator should see about: what the node says, then what only
    /// the coordinator can see.
    fn problem_of(
        &self,
        record: &VmRecord,
        report: Option<&DomainReport>,
        up: bool,
    ) -> Option<Problem> {
        if let Some(problem) = report.and_then(|report| report.problem.clone()) {
            return Some(problem);
        }
        if let Some(alarm) = self.alarm_of(record.id) {
            return Some(alarm);
        }
        let owner = record.owner.as_ref()?;
        let beside = self
            .copies(record.id)
            .find(|(node, report)| *node != owner && report.owner && report.state.executes());
        if let Some((node, _)) = beside.filter(|_| self.migration_of(record.id).is_none()) {
            return Some(
                Problem::new(
                    codes::STATE_CONFLICT,
                    format!("{node} runs it too, without the right to"),
                )
                .remedy(format!("bring {owner} back: it is then ended on {node}")),
            );
        }
        let lost = up && report.is_none() && !self.observed.busy.contains_key(&record.id);
        lost.then(|| {
            Problem::new(
                codes::NOT_FOUND,
                format!("{owner} does not know this VM any more"),
            )
            .remedy(format!("start it anew: `godwit vm start {}`", record.name))
        })
    }

    /// What the source of its migration raises an alarm about.
    fn alarm_of(&self, vm: VmId) -> Option<Problem> {
        let migration = self.migration_of(vm)?;
        let failure = self.records.migrations.get(&migration)?.failure.as_ref()?;
        Some(failure.problem.clone())
    }

    /// Every task kept, the oldest first.
    pub fn tasks(&self) -> Vec<TaskView> {
        let tasks = self.records.tasks.values();
        let mut views: Vec<TaskView> = tasks.map(|record| self.task_view(record)).collect();
        views.sort_by_key(|view| (view.created, view.id));
        views
    }

    /// One task.
    pub fn task(&self, task: TaskId) -> Result<TaskView, Problem> {
        self.records
            .tasks
            .get(&task)
            .map(|record| self.task_view(record))
            .ok_or_else(|| Problem::not_found("task", task))
    }

    fn task_view(&self, record: &TaskRecord) -> TaskView {
        let migration = record.migration.and_then(|id| {
            let known = self.observed.moves.get(&id)?;
            Some((self.records.migrations.get(&id)?, known))
        });
        let work = self.observed.work.get(&record.id);
        let (message, percent) = match (migration, work) {
            (Some((migration, known)), Some(_)) => moving(migration, known),
            (None, Some(work)) => (work.message.clone(), None),
            (_, None) => (record.message.clone(), record.ended.map(|_| 100)),
        };
        TaskView {
            id: record.id,
            kind: record.kind.as_str().to_owned(),
            state: record.state,
            vm: Some(record.vm),
            name: Some(record.name.clone()),
            node: record.node.clone(),
            migration: record.migration,
            message,
            percent: percent.filter(|_| record.problem.is_none()),
            problem: record.problem.clone(),
            created: record.created,
            ended: record.ended,
        }
    }

    /// Every migration kept, the oldest first.
    pub fn migrations(&self) -> Vec<MigrationView> {
        let records = self.records.migrations.values();
        let mut views: Vec<MigrationView> =
            records.map(|record| self.migration_view(record)).collect();
        views.sort_by_key(|view| (view.created, view.id));
        views
    }

    /// One migration.
    pub fn migration(&self, migration: MigrationId) -> Result<MigrationView, Problem> {
        self.records
            .migrations
            .get(&migration)
            .map(|record| self.migration_view(record))
            .ok_or_else(|| Problem::not_found("migration", migration))
    }

    fn migration_view(&self, record: &MigrationRecord) -> MigrationView {
        let known = self.observed.moves.get(&record.id);
        MigrationView {
            id: record.id,
            vm: record.vm,
            name: record.name.clone(),
            source: record.source.clone(),
            target: record.target.clone(),
            phase: record.phase,
            since: record.since,
            created: record.created,
            ended: record.ended,
            progress: known.map_or(record.progress, |known| known.progress),
            blackout: record.blackout,
            figures: record.figures,
            met: ForecastMet::of(&record.figures, record.blackout),
            failure: record.failure.clone(),
            policy: record.policy.clone(),
            resolution: record.resolution.clone(),
            queue: self.queue_view(record),
            task: record.task,
        }
    }
}

impl VmRecord {
    /// The last decision, unless the VM came to be elsewhere without one.
    fn decision_in_force(&self) -> Option<&Decision> {
        let holds = |made: &&Decision| self.owner.as_ref().is_none_or(|owner| *owner == made.node);
        self.decision.as_ref().filter(holds)
    }
}

/// What a migration's task says while it is under way.
fn moving(record: &MigrationRecord, known: &Move) -> (String, Option<u8>) {
    let MigrationProgress {
        iteration,
        rate,
        eta,
        ..
    } = known.progress;
    let message = match record.phase {
        MigrationPhase::Precopy => {
            let left = eta.map_or_else(|| "not converging".into(), |eta| format!("{eta} left"));
            format!("sending memory, pass {iteration}, {rate}, {left}")
        }
        phase => format!("{phase}: {} to {}", record.source, record.target),
    };
    (message, percent(&known.progress))
}

/// The share of what has to be sent, by today's knowledge, that has been sent.
fn percent(progress: &MigrationProgress) -> Option<u8> {
    let sent = u128::from(progress.transferred.0);
    let all = sent + u128::from(progress.remaining.0);
    let share = (sent * 100).checked_div(all)?;
    u8::try_from(share.min(99)).ok()
}
