//! What is asked of every step, and of the end.
//!
//! | after every step | |
//! |---|---|
//! | one runner | the CPUs of a VM run in one process at most |
//! | no past | a guest never goes on from an older moment than it has reached |
//! | no overcommit | the processes on a node take no more memory than it has, and the coordinator gives away no more than that |
//! | no lost VM | what was acknowledged is in the coordinator's records, until its deletion was asked for |
//! | epochs grow | the epoch of a record never goes down |
//!
//! At the end, when all was healed for long: every task, every migration and every
//! plan has ended; what the coordinator shows of a VM is what is so; a VM that is wanted
//! running runs, or its end is shown; nothing is left of it anywhere else.

use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::placement::Candidate;
use godwit_shared::model::{DomainState, Epoch, MiB, NodeId, RunState, VmId, VmSpec};

use crate::agenda::{N, node_id};
use crate::qemu::Qemu;
use crate::sim::{MEMORY, NODES, Sim};

/// What somebody knows who sees everything.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    /// The last moment that the guest has reached.
    pub moment: u64,
    /// The coordinator's highest epoch.
    pub epoch: Epoch,
    /// Its deletion was asked for.
    pub deleted: bool,
    /// Its process ended although nobody wanted that.
    pub killed: bool,
}

impl Sim {
    /// A VM was created, and its operator was told so.
    pub(crate) fn acknowledged(&mut self, vm: VmId) {
        self.truth.entry(vm).or_default();
    }

    /// Its deletion was asked for.
    pub(crate) fn may_go(&mut self, vm: VmId) {
        if let Some(truth) = self.truth.get_mut(&vm) {
            truth.deleted = true;
        }
    }

    /// A guest ended with its process.
    pub(crate) fn lost_guest(&mut self, qemu: &Qemu) {
        if let Some(truth) = self.truth.get_mut(&qemu.vm) {
            truth.killed = true;
        }
    }

    /// CPUs begin to run: from that moment on, or a new life. The next moment.
    pub(crate) fn judge_start(&mut self, n: N, pid: u64, vm: VmId, from: Option<u64>) -> u64 {
        if let Some(other) = self.other_runner(n, pid, vm) {
            self.breach(&format!(
                "{vm} runs on node {} and on node {}",
                other + 1,
                n + 1
            ));
        }
        let reached = self.truth.entry(vm).or_default().moment;
        if from.is_some_and(|from| from < reached) {
            self.breach(&format!(
                "{vm} goes on from a past moment on node {}",
                n + 1
            ));
        }
        let next = reached + 1;
        self.truth.entry(vm).or_default().moment = next;
        next
    }

    fn other_runner(&self, n: N, pid: u64, vm: VmId) -> Option<N> {
        let runs = |m: &N| {
            let qemus = self.nodes[*m].qemus.iter();
            let mut others = qemus.filter(|(p, _)| (*m, **p) != (n, pid));
            others.any(|(_, qemu)| qemu.vm == vm && qemu.running)
        };
        (0..NODES).find(runs)
    }

    /// Whether the newest of that guest is on that node.
    pub(crate) fn holds_newest(&self, n: N, vm: VmId) -> bool {
        let reached = self.truth.get(&vm).map(|truth| truth.moment);
        let qemus = self.nodes[n].qemus.values();
        let mut ours = qemus.filter(|qemu| qemu.vm == vm);
        ours.any(|qemu| Some(qemu.moment) == reached)
    }

    /// After every step.
    pub(crate) fn check_step(&mut self) {
        for n in 0..NODES {
            let used = self.nodes[n].used();
            if used > MEMORY {
                self.breach(&format!(
                    "node {} has {MEMORY} MiB, and {used} are taken",
                    n + 1
                ));
            }
        }
        self.check_given();
        self.check_records();
    }

    /// What is given away, and what steps of plans that have not begun will need.
    /// What a node still has of a move that is over is not: the node comes to it
    /// later than its coordinator, and has a ledger of its own.
    fn check_given(&mut self) {
        let Some(cluster) = &self.coordinator.cluster else {
            return;
        };
        let nodes = cluster.snapshot(None).nodes.into_iter();
        let over = nodes.filter(|node| node.used.memory > MiB(MEMORY));
        let given = over.map(|node| (node.node.clone(), given(cluster, &node)));
        let worst = given.max_by_key(|(_, memory)| *memory);
        if let Some((node, memory)) = worst.filter(|(_, memory)| *memory > MiB(MEMORY)) {
            self.breach(&format!(
                "{node} has {MEMORY} MiB, and {memory} are taken, or given away"
            ));
        }
    }

    fn check_records(&mut self) {
        let Some(cluster) = &self.coordinator.cluster else {
            return;
        };
        let mut wrong = None;
        let views = cluster.vms();
        for (vm, truth) in &mut self.truth {
            match views.iter().find(|view| view.id == *vm) {
                None if !truth.deleted => wrong = Some(format!("{vm} is lost")),
                None => {}
                Some(view) if view.epoch < truth.epoch => {
                    wrong = Some(format!("the epoch of {vm} went down"));
                }
                Some(view) => truth.epoch = view.epoch,
            }
        }
        if let Some(wrong) = wrong {
            self.breach(&wrong);
        }
    }

    /// When all was healed for long.
    pub(crate) fn check_end(&mut self) {
        if let Some(wrong) = self.unsettled() {
            self.breach(&wrong);
        }
    }

    fn unsettled(&self) -> Option<String> {
        let Some(cluster) = &self.coordinator.cluster else {
            return Some("the coordinator did not come back".into());
        };
        if let Some(n) = (0..NODES).find(|n| self.nodes[*n].session.is_none()) {
            return Some(format!("node {} did not come back", n + 1));
        }
        if let Some(task) = cluster
            .tasks()
            .into_iter()
            .find(|task| task.ended.is_none())
        {
            return Some(format!("a task never ends: {task:?}"));
        }
        let mut moves = cluster.migrations().into_iter();
        if let Some(open) = moves.find(|migration| !migration.phase.is_final()) {
            return Some(format!("a migration never ends: {open:?}"));
        }
        let mut plans = cluster.plans().into_iter();
        if let Some(open) = plans.find(|plan| !plan.state.is_final()) {
            return Some(format!("a plan never ends: {open:?}"));
        }
        for (n, node) in self.nodes.iter().enumerate() {
            if let Some(m) = node.outgoing.keys().chain(node.incoming.keys()).next() {
                return Some(format!("node {} never ends migration {m}", n + 1));
            }
        }
        cluster.vms().iter().find_map(|view| {
            let runners: Vec<NodeId> = self.places(view.id, |qemu| qemu.running);
            let processes = self.places(view.id, |_| true);
            let shown = view.state.executes();
            let at_home = processes.iter().all(|n| Some(n) == view.node.as_ref());
            if !at_home {
                return Some(format!(
                    "{} has processes on {processes:?}: {view:?}",
                    view.id
                ));
            }
            if shown == runners.is_empty() {
                return Some(format!(
                    "{} runs on {runners:?}, and is shown otherwise: {view:?}",
                    view.id
                ));
            }
            let waits = view.protection.as_ref().is_some_and(|p| p.lost.is_some());
            let told = view.exit.is_some() || view.problem.is_some() || waits;
            let stands = view.state == DomainState::Stopped && !told;
            let wanted = view.desired == RunState::Running;
            (wanted && stands && view.epoch > Epoch(0) && view.node.is_some()).then(|| {
                format!(
                    "{} is wanted running, and nobody says why not: {view:?}",
                    view.id
                )
            })
        })
    }

    fn places(&self, vm: VmId, is: impl Fn(&Qemu) -> bool) -> Vec<NodeId> {
        let mut found = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let ours = node.qemus.values().filter(|qemu| qemu.vm == vm && is(qemu));
            found.extend(ours.map(|_| node_id(n)));
        }
        found
    }
}

/// What is given away of a node's memory.
pub(crate) fn given(cluster: &Cluster, node: &Candidate<'_>) -> MiB {
    let left = node.vms.iter().filter(|vm| is_left(cluster, vm, node.node));
    let left = left.map(|vm| vm.memory.0).sum::<u64>();
    node.used.memory.saturating_sub(MiB(left))
}

/// Whether nobody but a process on that node speaks for the VM's being there.
fn is_left(cluster: &Cluster, vm: &VmSpec, node: &NodeId) -> bool {
    let view = cluster.vms().into_iter().find(|view| view.name == vm.name);
    let Some(view) = view else {
        return false;
    };
    let mut moves = cluster.migrations().into_iter();
    let comes = moves.any(|m| m.vm == view.id && m.target == *node && !m.phase.is_final());
    let mut tasks = cluster.tasks().into_iter();
    let starts = tasks.any(|task| task.vm == Some(view.id) && task.ended.is_none());
    let plans = cluster.plans().into_iter().filter(|p| !p.state.is_final());
    let planned = plans.flat_map(|plan| plan.steps);
    let planned = { planned }.any(|step| step.vm == view.id && step.target == *node);
    view.node.as_ref() != Some(node) && !comes && !starts && !planned
}
