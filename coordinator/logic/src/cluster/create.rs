//! New VMs.

use godwit_shared::api::{CreateVm, Decision};
use godwit_shared::model::{Epoch, Problem, RunState, TaskId, UnixMillis, VmId, VmSpec, codes};

use super::Cluster;
use super::decide::Rating;
use super::live::Live;
use super::room::wish;
use super::turn::{About, Turn};
use crate::input::Output;
use crate::record::{Key, TaskKind, VmRecord};

impl Cluster {
    pub(super) fn on_create_vm(
        &mut self,
        turn: &mut Turn,
        vm: VmId,
        task: TaskId,
        request: CreateVm,
    ) -> Result<Output, Problem> {
        let now = turn.now;
        let decision =
            self.with_live(|cluster, live| cluster.check_create(live, vm, &request, now))?;
        let node = decision.as_ref().map(|decision| decision.node.clone());
        let CreateVm { spec, start, .. } = request;
        let name = spec.name.clone();
        let record = VmRecord {
            id: vm,
            name: name.clone(),
            machine: None,
            spec,
            desired: RunState::Stopped,
            owner: None,
            epoch: Epoch::default(),
            created: turn.now,
            deleting: false,
            seen: None,
            decision,
            rescue: None,
        };
        self.observed.names.insert(name.clone(), vm);
        self.records.vms.insert(vm, record);
        turn.touch(Key::Vm(vm));
        self.note(
            turn,
            "vm.created",
            About::vm(&name, node.as_ref()),
            format!("{name} was defined"),
        );
        self.begin_task(turn, task, TaskKind::Create { start }, vm, node);
        self.settle(turn, vm);
        self.task(task).map(Output::Task)
    }

    /// Where it goes; nowhere yet when it is neither to be started nor put
    /// anywhere.
    fn check_create(
        &self,
        live: &mut Live,
        vm: VmId,
        request: &CreateVm,
        now: UnixMillis,
    ) -> Result<Option<Decision>, Problem> {
        let spec = &request.spec;
        Problem::refuse(spec.problems())?;
        let name = &spec.name;
        if self.records.vms.contains_key(&vm) {
            return Err(Problem::internal("the fresh id of a VM is not fresh"));
        }
        if self.observed.names.contains_key(name) {
            return Err(Problem::new(
                codes::ALREADY_EXISTS,
                format!("there is a VM `{name}` already"),
            )
            .field("name")
            .value(name.as_str())
            .remedy("choose another name, or delete that VM"));
        }
        self.check_profile(spec)?;
        if let Some(node) = &request.node {
            self.member(node)?;
        } else if !request.start {
            return Ok(None);
        }
        let rating = Rating {
            cluster: self,
            live,
            wish: wish(request),
            vm: None,
            now,
        };
        rating.best().map(Some)
    }

    /// A profile that a VM names has to be among those of the settings.
    fn check_profile(&self, spec: &VmSpec) -> Result<(), Problem> {
        let profiles = &self.settings.placement;
        let wanted = spec.placement.profile.as_deref();
        let Some(unknown) = wanted.filter(|_| profiles.of(wanted).is_none()) else {
            return Ok(());
        };
        Err(Problem::new(
            codes::SPEC_INVALID,
            format!("there is no placement profile `{unknown}`"),
        )
        .field("placement.profile")
        .value(unknown)
        .remedy(
            "name one that `godwit placement profiles` lists, or add it to the coordinator's settings",
        ))
    }
}
