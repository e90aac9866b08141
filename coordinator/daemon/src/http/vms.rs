//! VMs.

use actix_web::{HttpRequest, HttpResponse, web};
use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::effect::Answer as Word;
use godwit_coordinator_logic::input::{Input, Output};
use godwit_shared::api::{
    CommandOptions, CreateVm, DryRun, MigrateRequest, PlacementView, TaskView, VmView,
};
use godwit_shared::model::{LifecycleCommand, MigrationId, Problem, TaskId, VmId, codes};
use godwit_shared::wire::uplink::LogKind;
use serde::Serialize;

use super::Api;
use super::answer::{Answer, accepted, task, unexpected};
use super::input::{Parameters, body_or_default, create_vm};
use crate::cluster::Answered;

/// Lines of a log when none are asked for.
const LINES: u64 = 200;
/// Most lines that may be asked for; nodes cut at 256 KiB anyway.
const MAX_LINES: u64 = 100_000;
/// The commands of `POST /vms/{vm}/{command}`.
const COMMANDS: [LifecycleCommand; 7] = [
    LifecycleCommand::Start,
    LifecycleCommand::Shutdown,
    LifecycleCommand::Reboot,
    LifecycleCommand::Reset,
    LifecycleCommand::Stop,
    LifecycleCommand::Pause,
    LifecycleCommand::Resume,
];

/// Every VM, by name.
#[utoipa::path(
    get, path = "/api/v1/vms", tag = "vms",
    responses((status = 200, description = "The VMs", body = Vec<VmView>)),
    security(("admin" = []))
)]
pub(super) async fn list(api: web::Data<Api>, request: HttpRequest) -> Answer {
    Parameters::of(&request, &[])?;
    let vms = api.cluster.reader().read(Cluster::vms).await?;
    Ok(HttpResponse::Ok().json(vms))
}

/// One VM.
#[utoipa::path(
    get, path = "/api/v1/vms/{vm}", tag = "vms",
    params(("vm" = String, Path, description = "The VM's name or id")),
    responses(
        (status = 200, description = "The VM", body = VmView),
        (status = 404, description = "No such VM", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn show(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
) -> Answer {
    look_at(&api, &request, &path, Cluster::vm).await
}

/// Where the VM could be as things are: every node with its score or what is
/// lacking, what the VM takes itself left out.
#[utoipa::path(
    get, path = "/api/v1/vms/{vm}/placement", tag = "vms",
    params(("vm" = String, Path, description = "The VM's name or id")),
    responses(
        (status = 200, description = "Explained node by node", body = PlacementView),
        (status = 404, description = "No such VM", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn placement(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
) -> Answer {
    look_at(&api, &request, &path, Cluster::explain).await
}

/// What `look` finds of the VM of that name or id.
async fn look_at<T: Serialize>(
    api: &Api,
    request: &HttpRequest,
    name: &str,
    look: impl FnOnce(&Cluster, VmId) -> Result<T, Problem>,
) -> Answer {
    Parameters::of(request, &[])?;
    let found = api
        .cluster
        .reader()
        .read(|cluster| cluster.find_vm(name).and_then(|vm| look(cluster, vm)));
    Ok(HttpResponse::Ok().json(found.await??))
}

/// Defines a VM, and starts it if that is asked for.
#[utoipa::path(
    post, path = "/api/v1/vms", tag = "vms",
    request_body = CreateVm,
    responses(
        (status = 202, description = "The task that does it; see its Location", body = TaskView),
        (status = 400, description = "The body or the spec is wrong; every problem is named", body = Problem),
        (status = 409, description = "The name is taken, or no node fits", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn create(
    api: web::Data<Api>,
    request: HttpRequest,
    payload: web::Payload,
) -> Answer {
    Parameters::of(&request, &[])?;
    let request = create_vm(&request, payload).await?;
    let (vm, task_id) = (VmId::generate(), TaskId::generate());
    task(
        api.cluster
            .apply(Input::CreateVm {
                vm,
                task: task_id,
                request,
            })
            .await?,
    )
}

/// Carries a lifecycle command out.
#[utoipa::path(
    post, path = "/api/v1/vms/{vm}/{command}", tag = "vms",
    params(
        ("vm" = String, Path, description = "The VM's name or id"),
        ("command" = String, Path, description = "start, shutdown, reboot, reset, stop, pause or resume"),
    ),
    request_body(content = Option<CommandOptions>, description = "Empty for the defaults"),
    responses(
        (status = 202, description = "The task that does it; see its Location", body = TaskView),
        (status = 404, description = "No such VM or command", body = Problem),
        (status = 409, description = "Not in this state, or another action is under way", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn command(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<(String, String)>,
    payload: web::Payload,
) -> Answer {
    Parameters::of(&request, &[])?;
    let (vm, word) = path.into_inner();
    let command = COMMANDS
        .into_iter()
        .find(|command| command.as_str() == word);
    let command = command.ok_or_else(|| unknown_command(&word))?;
    let options: CommandOptions = body_or_default(&request, payload).await?;
    carry_out(&api, &vm, command, options).await
}

/// Deletes a VM that is stopped.
#[utoipa::path(
    delete, path = "/api/v1/vms/{vm}", tag = "vms",
    params(("vm" = String, Path, description = "The VM's name or id")),
    responses(
        (status = 202, description = "The task that does it; see its Location", body = TaskView),
        (status = 404, description = "No such VM", body = Problem),
        (status = 409, description = "It is not stopped, or another action is under way", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn remove(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
) -> Answer {
    Parameters::of(&request, &[])?;
    carry_out(
        &api,
        &path,
        LifecycleCommand::Delete,
        CommandOptions::default(),
    )
    .await
}

async fn carry_out(
    api: &Api,
    vm: &str,
    command: LifecycleCommand,
    options: CommandOptions,
) -> Answer {
    let vm = find(api, vm)?;
    let task_id = TaskId::generate();
    task(
        api.cluster
            .apply(Input::Command {
                vm,
                task: task_id,
                command,
                options,
            })
            .await?,
    )
}

/// Moves a running VM to another node, or only says what stands against it.
#[utoipa::path(
    post, path = "/api/v1/vms/{vm}/migrate", tag = "vms",
    params(("vm" = String, Path, description = "The VM's name or id")),
    request_body(content = Option<MigrateRequest>, description = "Empty for the defaults"),
    responses(
        (status = 200, description = "What a dry run found", body = DryRun),
        (status = 202, description = "The task that does it; see its Location", body = TaskView),
        (status = 404, description = "No such VM", body = Problem),
        (status = 409, description = "Not in this state, no node fits, or another action is under way", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn migrate(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
) -> Answer {
    Parameters::of(&request, &[])?;
    let request: MigrateRequest = body_or_default(&request, payload).await?;
    request.policy.check()?;
    let vm = find(&api, &path)?;
    let (migration, task) = (MigrationId::generate(), TaskId::generate());
    let answered = api
        .cluster
        .ask(|ticket| Input::Migrate {
            vm,
            migration,
            task,
            ticket,
            request,
        })
        .await?;
    match answered {
        Answered::Output(Output::Task(task)) => Ok(accepted(&task)),
        Answered::Answer(Word::DryRun(found)) => Ok(HttpResponse::Ok().json(found)),
        Answered::Output(other) => Err(unexpected(&other)),
        Answered::Answer(other) => Err(Problem::internal(format!("a move gave {other:?}")).into()),
    }
}

/// The end of a log of a VM: what its guest wrote to the serial console, or
/// what QEMU printed.
#[utoipa::path(
    get, path = "/api/v1/vms/{vm}/logs", tag = "vms",
    params(
        ("vm" = String, Path, description = "The VM's name or id"),
        ("kind" = Option<String>, Query, description = "serial (the default) or qemu"),
        ("lines" = Option<u64>, Query, description = "At most so many lines; default 200"),
    ),
    responses(
        (status = 200, description = "The log's end, at most 256 KiB", body = String, content_type = "text/plain"),
        (status = 404, description = "No such VM", body = Problem),
        (status = 503, description = "Its node cannot be reached", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn logs(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
) -> Answer {
    let parameters = Parameters::of(&request, &["kind", "lines"])?;
    let kind = parameters.choice(
        "kind",
        &[("serial", LogKind::Serial), ("qemu", LogKind::Qemu)],
    )?;
    let lines = parameters.number("lines", MAX_LINES)?.unwrap_or(LINES);
    let lines = u32::try_from(lines).unwrap_or(u32::MAX);
    let vm = find(&api, &path)?;
    match api
        .cluster
        .ask(|ticket| Input::ReadLog {
            ticket,
            vm,
            kind,
            lines,
        })
        .await?
    {
        Answered::Answer(Word::Log(text)) => Ok(HttpResponse::Ok()
            .content_type("text/plain; charset=utf-8")
            .body(text)),
        Answered::Answer(other) => Err(Problem::internal(format!("a log gave {other:?}")).into()),
        Answered::Output(other) => Err(unexpected(&other)),
    }
}

/// The VM of that name or id. The step looks again: it may be gone by then.
pub(super) fn find(api: &Api, name_or_id: &str) -> Result<VmId, Problem> {
    api.cluster
        .reader()
        .peek(|cluster| cluster.find_vm(name_or_id))
}

fn unknown_command(word: &str) -> Problem {
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.as_str()).collect();
    Problem::new(
        codes::NOT_FOUND,
        format!("there is no command `{word}` for a VM"),
    )
    .field("command")
    .value(word)
    .remedy(format!("the commands are {} and migrate", names.join(", ")))
}
