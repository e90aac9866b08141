//! Tasks: long actions.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::input::{Input, Output};
use godwit_shared::api::TaskView;
use godwit_shared::model::{Problem, TaskId};

use super::Api;
use super::answer::{Answer, look_until, unexpected};
use super::input::Parameters;

/// Longest wait of one request, in milliseconds; clients ask again.
pub(super) const MAX_WAIT: u64 = 60_000;

/// Every task that is kept, by time of birth.
#[utoipa::path(
    get, path = "/api/v1/tasks", tag = "tasks",
    responses((status = 200, description = "The tasks", body = Vec<TaskView>)),
    security(("admin" = []))
)]
pub(super) async fn list(api: web::Data<Api>, request: HttpRequest) -> Answer {
    Parameters::of(&request, &[])?;
    let tasks = api.cluster.reader().read(Cluster::tasks).await?;
    Ok(HttpResponse::Ok().json(tasks))
}

/// One task; waits for its end if that is asked for.
#[utoipa::path(
    get, path = "/api/v1/tasks/{id}", tag = "tasks",
    params(
        ("id" = String, Path, description = "The task's id"),
        ("wait_ms" = Option<u64>, Query, description = "Answer when it has ended, or after so many milliseconds (at most 60000)"),
    ),
    responses(
        (status = 200, description = "The task", body = TaskView),
        (status = 404, description = "No such task", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn show(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
) -> Answer {
    let parameters = Parameters::of(&request, &["wait_ms"])?;
    let wait = Duration::from_millis(parameters.number("wait_ms", MAX_WAIT)?.unwrap_or(0));
    let id: TaskId = path.parse()?;
    watch_migration(&api, id, wait);
    let ended = |view: &TaskView| view.state.is_final();
    let view = look_until(&api, wait, |cluster| cluster.task(id), ended).await?;
    Ok(HttpResponse::Ok().json(view))
}

/// Who waits for a migration's task wants to see how far it is.
fn watch_migration(api: &Api, id: TaskId, wait: Duration) {
    let view = api.cluster.reader().peek(|cluster| cluster.task(id));
    if let Ok(TaskView {
        migration: Some(migration),
        state,
        ..
    }) = view
        && !state.is_final()
        && !wait.is_zero()
    {
        api.watches.hold(migration, wait);
    }
}

/// Calls a task off, where that makes sense.
#[utoipa::path(
    post, path = "/api/v1/tasks/{id}/cancel", tag = "tasks",
    params(("id" = String, Path, description = "The task's id")),
    responses(
        (status = 200, description = "The task, being cancelled", body = TaskView),
        (status = 404, description = "No such task", body = Problem),
        (status = 409, description = "It has ended, or cannot be called off", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn cancel(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
) -> Answer {
    Parameters::of(&request, &[])?;
    let task: TaskId = path.parse()?;
    match api.cluster.apply(Input::CancelTask { task }).await? {
        Output::Task(view) => Ok(HttpResponse::Ok().json(view)),
        other => Err(unexpected(&other)),
    }
}
