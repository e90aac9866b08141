//! The cluster as the searches need to see it, and what stands in their way.
//!
//! Placement says which nodes are none for a VM; whether there is room at this
//! moment, and whether a node is cordoned or away, is left out of that, since
//! the searches count room themselves and look at open nodes alone. VMs whose
//! needs are alike are asked about once.

use std::collections::{BTreeMap, BTreeSet};

use godwit_shared::api::{NodeVerdict, PlanLimits, Stays};
use godwit_shared::model::capacity::qemu_release;
use godwit_shared::model::{
    BytesPerSec, DomainState, MiB, MigrationPhase, Millis, NodeId, Problem, UnixMillis, Usage,
    VmId, VmName, codes,
};

use super::super::Cluster;
use super::super::command::conflict;
use super::rehearse::Rehearsal;
use crate::placement::{Request, Snapshot, place};
use crate::plan::{Guest, Host, Model, Move, room_of};
use crate::record::VmRecord;

/// Moves that the rate of the next ones is taken from.
const HISTORY: usize = 20;
/// What one move is taken to send where none was measured: a link of 1 Gbit/s.
const GUESS: BytesPerSec = BytesPerSec(110 << 20);

/// Which nodes suit which VMs, asked once for each kind of VM.
struct Masks<'a> {
    snapshot: Snapshot<'a>,
    /// VMs that rules name.
    named: BTreeSet<&'a VmName>,
    known: BTreeMap<String, Vec<bool>>,
}

impl Masks<'_> {
    /// Whether rules look at this VM and no other.
    fn is_ruled(&self, record: &VmRecord) -> bool {
        let own = record.spec.placement.rule_names().next().is_some();
        own || self.named.contains(&record.name)
    }
}

/// A model, and what its indexes stand for.
pub(super) struct Scene {
    pub(super) model: Model,
    pub(super) nodes: Vec<NodeId>,
    pub(super) vms: Vec<VmId>,
    /// VMs that steps of other plans are about.
    planned: BTreeSet<VmId>,
}

impl Scene {
    pub(super) fn host(&self, node: &NodeId) -> Option<usize> {
        self.nodes.iter().position(|other| other == node)
    }

    fn guest(&self, vm: VmId) -> Option<usize> {
        self.vms.iter().position(|other| *other == vm)
    }

    /// It goes nowhere.
    pub(super) fn pin(&mut self, vm: VmId) {
        if let Some(guest) = self.guest(vm) {
            self.model.guests[guest].movable = false;
        }
    }

    /// The move of that guest to that node.
    pub(super) fn a_move(&self, guest: usize, to: &NodeId) -> Option<Move> {
        let (from, to) = (self.model.guests.get(guest)?.host, self.host(to)?);
        Some(Move { guest, from, to })
    }
}

impl Cluster {
    /// The nodes and the VMs that run. With a cool-down, those that moved within
    /// it, or could not be moved, are not movable.
    pub(super) fn scene(&self, cooldown: Option<Millis>) -> Scene {
        let mut scene = Scene {
            model: Model::default(),
            nodes: Vec::new(),
            vms: Vec::new(),
            planned: self.vms_of_plans(),
        };
        self.add_hosts(&mut scene);
        let index: BTreeMap<NodeId, usize> = scene.nodes.iter().cloned().zip(0..).collect();
        let recent = cooldown.map(|cooldown| self.moved_within(cooldown));
        let mut masks = self.masks();
        for record in self.records.vms.values() {
            let Some(host) = record.owner.as_ref().and_then(|owner| index.get(owner)) else {
                continue;
            };
            let recent = recent.as_ref().is_some_and(|r| r.contains(&record.id));
            let movable =
                !recent && !scene.planned.contains(&record.id) && self.obstacle(record).is_none();
            let hosts = movable.then(|| self.mask(record, &scene.nodes, &mut masks));
            scene.vms.push(record.id);
            scene.model.guests.push(Guest {
                name: record.name.to_string(),
                host: *host,
                takes: room_of(Usage::of(&record.spec)),
                movable,
                hosts,
            });
        }
        scene
    }

    fn masks(&self) -> Masks<'_> {
        let specs = self.records.vms.values().map(|record| &record.spec);
        let rules = specs.flat_map(|spec| {
            let placement = &spec.placement;
            placement.affinity.iter().chain(&placement.anti_affinity)
        });
        Masks {
            snapshot: self.snapshot(None),
            named: rules.filter_map(|rule| rule.vm.as_ref()).collect(),
            known: BTreeMap::new(),
        }
    }

    fn add_hosts(&self, scene: &mut Scene) {
        let planned = self.planned(None);
        for record in self.records.nodes.values().filter(|node| !node.revoked) {
            let node = &record.name;
            let load = self.observed.ledger.load(node);
            let coming = planned.get(node).map(|coming| coming.takes);
            let used = load.used.plus(coming.unwrap_or_default());
            let facts = record.facts.as_ref();
            let capacity = facts.map(|facts| facts.capacity).unwrap_or_default();
            let room = [capacity.memory.0, u64::from(capacity.vcpus), 0, 1];
            scene.nodes.push(node.clone());
            scene.model.hosts.push(Host {
                name: node.to_string(),
                capacity: room,
                limit: [room[0], room[1], u64::MAX, u64::MAX],
                used: [used.memory.0, u64::from(used.vcpus), 0, load.vms.into()],
                open: self.is_up(node) && !record.cordoned && facts.is_some(),
            });
        }
    }

    /// VMs whose last move ended within that time, however it ended: one that
    /// fails is not tried again and again.
    fn moved_within(&self, cooldown: Millis) -> BTreeSet<VmId> {
        let now = self.observed.now;
        let records = self.records.migrations.values();
        let recent = |at: UnixMillis| at.after(cooldown) > now;
        let recent = records.filter(|record| record.ended.is_some_and(recent));
        recent.map(|record| record.vm).collect()
    }

    /// Why it cannot be moved now, if it cannot.
    fn obstacle(&self, record: &VmRecord) -> Option<Problem> {
        self.check_source(record.id).err()
    }

    /// The nodes that could have it, room apart.
    fn mask(&self, record: &VmRecord, nodes: &[NodeId], masks: &mut Masks<'_>) -> Vec<bool> {
        let ruled = masks.is_ruled(record);
        let needs = self.needs(record, ruled);
        if let Some(known) = masks.known.get(&needs) {
            return known.clone();
        }
        let wish = Request {
            spec: &record.spec,
            machine: self.machine_in_use(record),
            accelerator: self.accelerator_in_use(record),
            only: None,
            exclude: None,
        };
        // Its own place counts for rules alone.
        let view = if ruled {
            self.rate(&wish, Some(record.id))
        } else {
            place(&masks.snapshot, &wish)
        };
        let fine = view.nodes.iter();
        let fine = fine.filter(|one| suits(one) && self.qemu_is_new_enough(record, &one.node));
        let fine: BTreeSet<&NodeId> = fine.map(|verdict| &verdict.node).collect();
        let mask: Vec<bool> = nodes.iter().map(|node| fine.contains(node)).collect();
        masks.known.insert(needs, mask.clone());
        mask
    }

    /// What placement looks at, apart from size; equal texts get equal answers.
    fn needs(&self, record: &VmRecord, ruled: bool) -> String {
        let mut spec = record.spec.clone();
        spec.memory = MiB::ZERO;
        spec.cpu.count = 0;
        for disk in &mut spec.disks {
            // Storage is known by its folder.
            let folder = disk.path.rfind('/').unwrap_or(0);
            disk.path.truncate(folder);
        }
        let name = ruled.then(|| spec.name.clone());
        let (machine, accelerator) = (self.machine_in_use(record), self.accelerator_in_use(record));
        let host = &record.owner;
        format!(
            "{name:?} {host:?} {machine:?} {accelerator:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
            spec.labels,
            spec.architecture,
            spec.cpu,
            spec.memory_backing,
            spec.disks,
            spec.nics,
            spec.placement
        )
    }

    /// QEMU moves guests to the same or a later release only.
    fn qemu_is_new_enough(&self, record: &VmRecord, node: &NodeId) -> bool {
        let version = |node: &NodeId| {
            let facts = self.records.nodes.get(node)?.facts.as_ref()?;
            let emulators = facts.emulators.iter();
            let mut own = emulators.filter(|e| e.architecture == record.spec.architecture);
            qemu_release(&own.next()?.version)
        };
        match (record.owner.as_ref().and_then(version), version(node)) {
            (Some(here), Some(there)) => there >= here,
            _ => true,
        }
    }

    /// What stands against a node whose QEMU is older.
    pub(super) fn old_qemu(&self, record: &VmRecord, node: &NodeId) -> Option<Problem> {
        let text = format!("{node} has an older QEMU than {} runs in", record.name);
        let remedy = format!("bring QEMU up to date on {node}");
        let problem = || Problem::new(codes::NO_NODE_FITS, text).remedy(remedy);
        (!self.qemu_is_new_enough(record, node)).then(problem)
    }

    /// VMs of the node that do not move with the others: those that block its
    /// drain, and those that do not run.
    pub(super) fn stays(&self, scene: &Scene, node: &NodeId) -> (Vec<Stays>, Vec<Stays>) {
        let (mut blockers, mut stopped) = (Vec::new(), Vec::new());
        for record in self.records.vms.values() {
            let here = record.owner.as_ref() == Some(node);
            let coming = self.migration_of(record.id).is_some_and(|id| {
                let migration = self.records.migrations.get(&id);
                migration.is_some_and(|migration| migration.target == *node)
            });
            let leaving = here && self.migration_of(record.id).is_some() && !coming;
            if leaving || !(here || coming) {
                continue;
            }
            if here && !self.has_process_on(node, record.id) && !self.is_starting(record.id) {
                stopped.extend(self.stopped_vm(record.id));
            } else if let Some(problem) = self.obstacle(record) {
                blockers.push(stays(record, problem));
            } else if scene.planned.contains(&record.id) {
                blockers.push(stays(record, of_another_plan(record)));
            }
        }
        (blockers, stopped)
    }

    pub(super) fn has_process_on(&self, node: &NodeId, vm: VmId) -> bool {
        let report = self.report(node, vm);
        report.is_some_and(|report| report.state.has_process())
    }

    fn is_starting(&self, vm: VmId) -> bool {
        let task = self.observed.busy.get(&vm);
        let task = task.and_then(|id| self.records.tasks.get(id));
        task.is_some_and(|task| task.kind.starts())
    }

    /// A VM that does not run stays; with shared disks it can be started elsewhere.
    pub(super) fn stopped_vm(&self, vm: VmId) -> Option<Stays> {
        let record = self.records.vms.get(&vm)?;
        let name = &record.name;
        let bound = record.spec.disks.iter().any(|disk| !disk.shared);
        let remedy = if bound {
            "it has disks on this node only: start it here, or leave it stopped".into()
        } else {
            format!("it can be started on another node: `godwit vm start {name} --node NODE`")
        };
        let state = DomainState::Stopped;
        Some(stays(
            record,
            conflict(format!("{name} is {state}"), remedy),
        ))
    }

    pub(super) fn owner_is_another(&self, vm: VmId, node: &NodeId) -> bool {
        let record = self.records.vms.get(&vm);
        record.is_some_and(|record| record.owner.as_ref() != Some(node))
    }

    /// One move of a return; the next one is tried beside it. The problem, or
    /// nothing when the VM does not run.
    pub(super) fn returning<'a>(
        &'a self,
        scene: &Scene,
        rehearsal: &mut Rehearsal<'a>,
        vm: VmId,
        to: usize,
    ) -> Result<Move, Option<Stays>> {
        let record = self.records.vms.get(&vm).ok_or(None)?;
        let owner = record.owner.as_ref().ok_or(None)?;
        if self.is_up(owner) && !self.has_process_on(owner, vm) {
            return Err(None);
        }
        let problem = |problem| Some(stays(record, problem));
        if let Some(found) = self.obstacle(record) {
            return Err(problem(found));
        }
        if scene.planned.contains(&vm) {
            return Err(problem(of_another_plan(record)));
        }
        let guest = scene.guest(vm).ok_or(None)?;
        let node = &scene.nodes[to];
        if let Err(nodes) = rehearsal.go(record, Some(node), false) {
            let text = format!("{} does not fit on {node} any more", record.name);
            let reasons = nodes.into_iter().flat_map(|verdict| verdict.refused);
            let found = Problem::new(codes::INSUFFICIENT_RESOURCES, text);
            let found = found.remedy(format!("make room on {node} first"));
            return Err(problem(found.and(reasons.collect())));
        }
        let from = scene.model.guests[guest].host;
        Ok(Move { guest, from, to })
    }

    /// What one move sends, by the last ones that succeeded.
    pub(super) fn rate_of_one(&self, limits: &PlanLimits) -> BytesPerSec {
        let ended = self.observed.ended_migrations.iter().rev();
        let rates = ended.filter_map(|id| {
            let record = self.records.migrations.get(id)?;
            (record.phase == MigrationPhase::Completed).then_some(())?;
            let (sent, took) = (record.progress.total.0, record.figures.duration?.0);
            (sent > 0).then(|| sent.saturating_mul(1000) / took.max(1))
        });
        let mut rates: Vec<u64> = rates.take(HISTORY).collect();
        rates.sort_unstable();
        let usual = rates.get(rates.len() / 2).copied().unwrap_or(GUESS.0);
        let most = limits.bandwidth.map_or(u64::MAX, |most| most.0);
        BytesPerSec(usual.min(most).max(1))
    }
}

/// Whether nothing but room, a cordon or a lost connection stands against it.
fn suits(verdict: &NodeVerdict) -> bool {
    let passing = [
        codes::INSUFFICIENT_RESOURCES,
        codes::NODE_UNREACHABLE,
        codes::STATE_CONFLICT,
    ];
    let mut refused = verdict.refused.iter();
    refused.all(|problem| passing.contains(&&*problem.code))
}

fn of_another_plan(record: &VmRecord) -> Problem {
    let text = format!("{} is part of another plan", record.name);
    let remedy = "wait for that plan, or abort it: `godwit plan list`";
    Problem::new(codes::BUSY, text).remedy(remedy)
}

pub(super) fn stays(record: &VmRecord, problem: Problem) -> Stays {
    Stays {
        vm: record.id,
        name: record.name.clone(),
        problem,
    }
}
