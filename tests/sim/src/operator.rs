//! Operators: what they want is drawn from the seed, too.

use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::input::{Input, Survey, Ticket};
use godwit_coordinator_logic::record::Resolution;
use godwit_node_logic::handoff::TombstoneVerdict;
use godwit_shared::api::{
    AbortRequest, CommandOptions, CreateVm, DrainRequest, MigrateRequest, PlanLimits,
    RebalanceRequest,
};
use godwit_shared::model::{
    DoubtDecision, LifecycleCommand, MigrationId, MigrationPhase, PlanId, TaskId, VmId, VmSpec,
};

use crate::agenda::{What, node_id};
use crate::sim::{NODES, Sim};

/// MiB of a VM.
const SIZES: [u64; 3] = [128, 256, 384];
/// How many VMs there may be.
const MOST: usize = 9;

impl Sim {
    /// One wish, and the time of the next.
    pub(crate) fn operate(&mut self) {
        if !self.troubled() {
            return;
        }
        match self.rng.between(0, 100) {
            0..20 => self.create(),
            20..54 => self.order(),
            54..78 => self.migrate(),
            78..83 => self.call_off(),
            83..88 => self.cordon(),
            _ => self.plan(),
        }
        let next = self.now + self.rng.between(50, 1_200);
        self.agenda.add(next, What::Operator);
    }

    fn vms(&self) -> Vec<VmId> {
        self.truth
            .iter()
            .filter(|(_, truth)| !truth.deleted)
            .map(|(vm, _)| *vm)
            .collect()
    }

    fn create(&mut self) {
        let memory = self.rng.pick(&SIZES).unwrap_or(128);
        let start = self.rng.permille(800);
        let vms = self.vms();
        let vm = VmId::from_u128(self.fresh());
        let task = TaskId::from_u128(self.fresh());
        let protection = match self.rng.permille(500) {
            true => "restart",
            false => "none",
        };
        let form = serde_json::json!({
            "name": format!("vm-{}", self.ids), "memory": memory, "protection": protection,
        });
        let Ok(spec) = VmSpec::from_value(form) else {
            return;
        };
        if vms.len() >= MOST {
            return;
        }
        let request = CreateVm {
            spec,
            start,
            node: None,
        };
        let told = self.tell_cluster(Input::CreateVm { vm, task, request });
        self.note(&format!(
            "create {vm}: {}",
            outcome(&told.as_ref().map(|_| ()))
        ));
        if told.is_ok() {
            self.acknowledged(vm);
        }
    }

    fn order(&mut self) {
        use LifecycleCommand as C;
        let all = [
            C::Start,
            C::Start,
            C::Start,
            C::Stop,
            C::Shutdown,
            C::Pause,
            C::Resume,
            C::Resume,
            C::Reset,
            C::Delete,
        ];
        let (Some(vm), Some(command)) = (self.some_vm(), self.rng.pick(&all)) else {
            return;
        };
        let node = match command == C::Start && self.rng.permille(200) {
            true => Some(node_id(self.some_place())),
            false => None,
        };
        let task = TaskId::from_u128(self.fresh());
        if command == C::Delete {
            // Asked for, it may come to pass at any time from here on.
            self.may_go(vm);
        }
        let told = self.tell_cluster(Input::Command {
            vm,
            task,
            command,
            options: CommandOptions { node },
        });
        self.note(&format!(
            "{command} {vm}: {}",
            outcome(&told.as_ref().map(|_| ()))
        ));
    }

    fn some_vm(&mut self) -> Option<VmId> {
        let vms = self.vms();
        self.rng.pick(&vms)
    }

    fn some_place(&mut self) -> usize {
        let all: Vec<usize> = (0..NODES).collect();
        self.rng.pick(&all).unwrap_or(0)
    }

    fn migrate(&mut self) {
        let Some(vm) = self.some_vm() else { return };
        let target = match self.rng.permille(500) {
            true => Some(node_id(self.some_place())),
            false => None,
        };
        let migration = MigrationId::from_u128(self.fresh());
        let task = TaskId::from_u128(self.fresh());
        let told = self.tell_cluster(Input::Migrate {
            vm,
            migration,
            task,
            ticket: Ticket(0),
            request: MigrateRequest {
                target,
                ..MigrateRequest::default()
            },
        });
        self.note(&format!(
            "migrate {vm}: {}",
            outcome(&told.as_ref().map(|_| ()))
        ));
    }

    fn call_off(&mut self) {
        let open = |cluster: &Cluster| {
            let all = cluster.migrations().into_iter();
            all.filter(|m| !m.phase.is_final())
                .map(|m| m.id)
                .collect::<Vec<_>>()
        };
        let open = self
            .coordinator
            .cluster
            .as_ref()
            .map(open)
            .unwrap_or_default();
        if let Some(migration) = self.rng.pick(&open) {
            let _ = self.tell_cluster(Input::CancelMigration { migration });
        }
    }

    fn cordon(&mut self) {
        let node = node_id(self.some_place());
        let cordoned = self.rng.permille(400);
        let _ = self.tell_cluster(Input::Cordon { node, cordoned });
    }

    /// Drains, what brings back what they moved, rebalances, and their aborts.
    fn plan(&mut self) {
        let node = node_id(self.some_place());
        let node_name = node.clone();
        let plan = PlanId::from_u128(self.fresh());
        let limits = PlanLimits {
            parallel: u32::try_from(self.rng.between(1, 4)).unwrap_or(1),
            bandwidth: None,
        };
        let request = DrainRequest {
            partial: self.rng.permille(700),
            and_return: self.rng.permille(500),
            limits,
            ..DrainRequest::default()
        };
        let input = match self.rng.between(0, 10) {
            0..4 => Input::Drain {
                node,
                plan,
                request,
                survey: Survey::new(),
            },
            4..6 => Input::Return {
                node,
                plan,
                request,
            },
            6..8 => Input::Rebalance {
                plan,
                request: RebalanceRequest {
                    limits,
                    ..RebalanceRequest::default()
                },
            },
            _ => return self.abort_plan(),
        };
        let told = self.tell_cluster(input);
        if told.is_ok() {
            self.report.plans += 1;
        }
        let told = told.as_ref().map(|_| ());
        self.note(&format!("plan {plan} of {node_name}: {}", outcome(&told)));
    }

    fn abort_plan(&mut self) {
        let cluster = self.coordinator.cluster.as_ref();
        let plans = cluster.map(Cluster::plans).unwrap_or_default();
        let open = plans.iter().filter(|plan| !plan.state.is_final());
        let open: Vec<PlanId> = open.map(|plan| plan.id).collect();
        let cancel_running = self.rng.permille(500);
        if let Some(plan) = self.rng.pick(&open) {
            self.note(&format!("plan {plan} is called off"));
            let request = AbortRequest { cancel_running };
            let _ = self.tell_cluster(Input::AbortPlan { plan, request });
        }
    }

    /// Where nobody but an operator can know what became of a guest, he looks,
    /// and says so.
    pub(crate) fn make_rounds(&mut self) {
        for (migration, decision) in self.hopeless() {
            self.note(&format!("resolve {migration}: {decision:?}"));
            let resolution = Resolution {
                decision,
                by: "operator".into(),
                at: self.clock(),
            };
            let _ = self.tell_cluster(Input::ResolveMigration {
                migration,
                ticket: Ticket(0),
                resolution,
            });
        }
        self.agenda.add(self.now + 20_000, What::Rounds);
    }

    fn hopeless(&self) -> Vec<(MigrationId, DoubtDecision)> {
        let mut found = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            for (m, outgoing) in &node.outgoing {
                let lost = Some(&TombstoneVerdict::Lost);
                let unknown = self
                    .nodes
                    .iter()
                    .any(|node| node.disk.stones.get(m) == lost);
                if outgoing.phase == MigrationPhase::InDoubt && unknown {
                    let newest = self.holds_newest(n, outgoing.vm);
                    let decision = match newest {
                        true => DoubtDecision::RunOnSource,
                        false => DoubtDecision::EndOnSource,
                    };
                    found.push((*m, decision));
                }
            }
        }
        found
    }
}

fn outcome<T>(told: &Result<T, &godwit_shared::model::Problem>) -> String {
    match told {
        Ok(_) => "taken".into(),
        Err(problem) => problem.to_string(),
    }
}
