//! Cases that are told, not drawn: a quiet cluster with one protected VM on each
//! node, and what is cut.

use godwit_coordinator_logic::input::Input;
use godwit_shared::api::{CreateVm, LeaseState};
use godwit_shared::model::{TaskId, VmId, VmSpec};

use crate::agenda::{N, What, node_id};
use crate::mutant::Mutant;
use crate::sim::{NODES, Sim};

/// The coordinator's host among those that can be cut off.
pub const COORDINATOR: usize = 0;
/// When it begins: every daemon is old enough to vouch.
const OLD: u64 = 30_000;

/// A quiet cluster.
pub struct Scene {
    sim: Sim,
    vms: Vec<VmId>,
}

impl Scene {
    /// With a protected VM on each node, and nothing else that happens.
    pub fn new(seed: u64) -> Self {
        Self::with(seed, None)
    }

    /// The same with a seeded bug.
    pub fn with(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut sim = Sim::new(seed, mutant, false);
        sim.calm = true;
        sim.run_until(5_000);
        let vms = (0..NODES).filter_map(|n| sim.settle_on(n)).collect();
        sim.run_until(OLD);
        Self { sim, vms }
    }

    /// So many milliseconds pass.
    pub fn wait(&mut self, millis: u64) {
        let end = self.sim.now + millis;
        self.sim.run_until(end);
    }

    /// Two hosts do not reach each other from now on: 0 is the coordinator's, and
    /// node `n` is on host `n + 1`.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.sim.cut(a.min(b), a.max(b));
    }

    /// These two reach each other again.
    pub fn mend_between(&mut self, a: usize, b: usize) {
        self.sim.cuts.remove(&(a.min(b), a.max(b)));
    }

    /// All reach each other again.
    pub fn mend(&mut self) {
        self.sim.cuts.clear();
    }

    /// The coordinator is killed, and does not come back by itself.
    pub fn stop_coordinator(&mut self) {
        self.sim.stop_coordinator();
    }

    /// It comes back.
    pub fn start_coordinator(&mut self) {
        let now = self.sim.now;
        self.sim.agenda.add(now + 1, What::StartCoordinator);
    }

    /// Where the VM that was put on that node runs now.
    pub fn runners(&self, of: N) -> Vec<N> {
        let Some(vm) = self.vms.get(of) else {
            return Vec::new();
        };
        let runs = |n: &N| {
            let mut qemus = self.sim.nodes[*n].qemus.values();
            qemus.any(|qemu| qemu.vm == *vm && qemu.running)
        };
        (0..NODES).filter(runs).collect()
    }

    /// Whether the coordinator takes it for lost.
    pub fn fenced(&self, n: N) -> bool {
        let cluster = self.sim.coordinator.cluster.as_ref();
        let node = cluster.and_then(|cluster| cluster.node(&node_id(n)).ok());
        let lease = node.and_then(|node| node.lease);
        lease.is_some_and(|lease| lease.state == LeaseState::Fenced)
    }

    /// How many VMs were ended with a lease.
    pub fn ended(&self) -> u64 {
        self.sim.report.ended_by_lease
    }

    /// What rule was broken.
    pub fn breach(&self) -> Option<&str> {
        self.sim.breach.as_deref()
    }
}

impl Sim {
    fn run_until(&mut self, end: u64) {
        while self.breach.is_none()
            && let Some((at, what)) = self.agenda.pop()
        {
            if at > end {
                self.agenda.add(at, what);
                break;
            }
            self.now = at;
            self.take(what);
            self.check_step();
        }
        self.now = end;
    }

    fn settle_on(&mut self, n: N) -> Option<VmId> {
        let vm = VmId::from_u128(self.fresh());
        let task = TaskId::from_u128(self.fresh());
        let form = serde_json::json!({
            "name": format!("vm-{n}"), "memory": 256, "protection": "restart",
        });
        let request = CreateVm {
            spec: VmSpec::from_value(form).ok()?,
            start: true,
            node: Some(node_id(n)),
        };
        let told = self.tell_cluster(Input::CreateVm { vm, task, request });
        told.ok().map(|_| vm)
    }
}
