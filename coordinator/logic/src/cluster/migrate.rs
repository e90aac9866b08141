//! Migrations: asked for here, driven by the two nodes, told back.
//!
//! What becomes of a migration then is in [`super::progress`].

use godwit_shared::api::{Decision, MigrateRequest};
use godwit_shared::model::spec::Accelerator;
use godwit_shared::model::{
    DomainState, LifecycleCommand, MigrationId, NodeId, Problem, TaskId, UnixMillis, VmId, codes,
};
use godwit_shared::wire::uplink::NodeRequest;

use super::Cluster;
use super::command::conflict;
use super::decide::Rating;
use super::live::Live;
use super::progress::about;
use super::state::{Move, Purpose};
use super::turn::Turn;
use crate::input::{Output, Ticket};
use crate::placement::Request;
use crate::record::{Key, MigrationRecord, TaskKind, VmRecord};

impl Cluster {
    pub(super) fn on_migrate(
        &mut self,
        turn: &mut Turn,
        vm: VmId,
        id: MigrationId,
        task: TaskId,
        ticket: Ticket,
        request: MigrateRequest,
    ) -> Result<Output, Problem> {
        let source = self.check_source(vm)?;
        let asked = request.target.as_ref();
        let (decision, found) = self.choose_target(vm, &source, asked, turn.now)?;
        let target = decision.node.clone();
        let record = self.vm_record(vm)?;
        let plan = MigrationRecord {
            policy: request.policy,
            waiting: true,
            placed: request.target.is_none(),
            decision: Some(decision),
            ..MigrationRecord::queued(id, record, source, target, turn.now)
        };
        if request.dry_run {
            self.begin_dry_run(turn, &plan, ticket, found)?;
            return Ok(Output::Waiting);
        }
        if let Some(first) = found.first() {
            let remedy = first.remedy.clone().unwrap_or_default();
            let message = format!("{} cannot be moved to {}", plan.name, plan.target);
            return Err(Problem::new(codes::MIGRATION_BLOCKED, message)
                .remedy(remedy)
                .and(found));
        }
        self.begin_task(turn, task, TaskKind::Migrate, vm, Some(plan.target.clone()));
        self.begin_migration(turn, plan, task)?;
        self.task(task).map(Output::Task)
    }

    /// The node that the VM is on, when it can be moved from there.
    pub(super) fn check_source(&self, vm: VmId) -> Result<NodeId, Problem> {
        self.check_idle(vm, LifecycleCommand::Pause)?;
        self.movable_from(vm)
    }

    /// The same, for a move that was asked for before.
    pub(super) fn movable_from(&self, vm: VmId) -> Result<NodeId, Problem> {
        let record = self.vm_record(vm)?;
        let name = &record.name;
        let state = |node| {
            let report = self.report(node, vm);
            report.map_or(DomainState::Stopped, |report| report.state)
        };
        let Some(source) = &record.owner else {
            return Err(not_running(name.as_str(), DomainState::Stopped));
        };
        self.check_up(source, name)?;
        match state(source) {
            DomainState::Running | DomainState::Paused => Ok(source.clone()),
            other => Err(not_running(name.as_str(), other)),
        }
    }

    /// Where to, and what placement has against it (only ever something for a
    /// node that was named).
    pub(super) fn choose_target(
        &mut self,
        vm: VmId,
        source: &NodeId,
        asked: Option<&NodeId>,
        now: UnixMillis,
    ) -> Result<(Decision, Vec<Problem>), Problem> {
        self.with_live(|cluster, live| cluster.target_by(live, vm, source, asked, now))
    }

    /// The same, by that index.
    pub(super) fn target_by(
        &self,
        live: &mut Live,
        vm: VmId,
        source: &NodeId,
        asked: Option<&NodeId>,
        now: UnixMillis,
    ) -> Result<(Decision, Vec<Problem>), Problem> {
        let record = self.vm_record(vm)?;
        if let Some(node) = asked {
            self.member(node)?;
        }
        if asked == Some(source) {
            return Err(conflict(
                format!("{} is on {source} already", record.name),
                "name another node",
            )
            .field("target")
            .value(source.as_str()));
        }
        let wish = Request {
            spec: &record.spec,
            machine: self.machine_in_use(record),
            accelerator: self.accelerator_in_use(record),
            only: asked,
            exclude: Some(source),
        };
        let rating = Rating {
            cluster: self,
            live,
            wish,
            vm: Some(vm),
            now,
        };
        let Some(asked) = asked else {
            return rating.best().map(|made| (made, Vec::new()));
        };
        let (made, found) = rating.asked(asked);
        if found.iter().any(|p| p.code == codes::NODE_UNREACHABLE) {
            return choice_refused(&record.name.to_string(), asked, found);
        }
        Ok((made, found))
    }

    pub(super) fn machine_in_use<'a>(&'a self, record: &'a VmRecord) -> Option<&'a str> {
        let report = self.owner_report(record.id);
        let in_use = report.and_then(|report| report.machine.as_deref());
        in_use
            .or(record.machine.as_deref())
            .or(record.spec.machine.as_deref())
    }

    pub(super) fn accelerator_in_use(&self, record: &VmRecord) -> Accelerator {
        let report = self.owner_report(record.id);
        match report.and_then(|report| report.accelerator.as_deref()) {
            Some("kvm") => Accelerator::Kvm,
            Some("tcg") => Accelerator::Tcg,
            _ => record.spec.accelerator,
        }
    }

    fn begin_dry_run(
        &mut self,
        turn: &mut Turn,
        plan: &MigrationRecord,
        ticket: Ticket,
        found: Vec<Problem>,
    ) -> Result<(), Problem> {
        let body = self.migrate_request(plan, true)?;
        let purpose = Purpose::DryRun {
            ticket,
            target: plan.target.clone(),
            found,
        };
        let deadline = self.settings.limits.request;
        self.tell_members(turn);
        self.ask(turn, &plan.source, purpose, body, deadline);
        Ok(())
    }

    pub(super) fn begin_migration(
        &mut self,
        turn: &mut Turn,
        mut plan: MigrationRecord,
        task: TaskId,
    ) -> Result<(), Problem> {
        let id = plan.id;
        plan.task = Some(task);
        if let Some(task) = self.records.tasks.get_mut(&task) {
            task.migration = Some(id);
            turn.touch(Key::Task(task.id));
        }
        // A member that was removed meanwhile is refused here and now.
        self.member(&plan.target)?;
        let (source, name, target) = (&plan.source, &plan.name, &plan.target);
        let message = format!("{name} is to move from {source} to {target}");
        self.track(turn, plan, message);
        self.observed.waiting.insert(id, String::new());
        Ok(())
    }

    pub(super) fn migrate_request(
        &self,
        plan: &MigrationRecord,
        dry_run: bool,
    ) -> Result<NodeRequest, Problem> {
        Ok(NodeRequest::Migrate {
            migration: plan.id,
            vm: plan.vm,
            target: self.member(&plan.target)?.member(),
            policy: plan.policy.clone(),
            dry_run,
        })
    }

    /// Takes a migration up.
    pub(super) fn track(&mut self, turn: &mut Turn, record: MigrationRecord, message: String) {
        let id = record.id;
        let known = Move {
            progress: record.progress,
            ..Move::default()
        };
        self.observed.moving.insert(record.vm, id);
        self.observed.moves.insert(id, known);
        let about = about(&record);
        self.records.migrations.insert(id, record);
        turn.touch(Key::Migration(id));
        self.note(turn, "migration.phase", about, message);
    }
}

fn not_running(name: &str, state: DomainState) -> Problem {
    conflict(
        format!("{name} is {state}; only a running or paused VM can be moved"),
        format!("start it where it is to run: `godwit vm start {name} --node NODE`"),
    )
}

fn choice_refused(
    name: &str,
    node: &NodeId,
    found: Vec<Problem>,
) -> Result<(Decision, Vec<Problem>), Problem> {
    Err(Problem::new(
        codes::NODE_UNREACHABLE,
        format!("{name} cannot be moved to {node}: it is not connected"),
    )
    .field("target")
    .value(node.as_str())
    .remedy(format!(
        "see that godwit-node runs on {node}, or name another node"
    ))
    .and(found))
}
