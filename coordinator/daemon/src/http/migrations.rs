//! Migrations.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::effect::Answer as Word;
use godwit_coordinator_logic::input::{Input, Output, Ticket};
use godwit_shared::api::{Calibrations, MigrationView, Resolution, ResolveRequest};
use godwit_shared::model::{MigrationId, MigrationTuning, Problem, UnixMillis};

use super::Api;
use super::answer::{Answer, look_until, unexpected};
use super::input::{Parameters, body, body_or_default, confirmed};
use super::tasks::MAX_WAIT;
use crate::cluster::Answered;

/// Every migration that is kept, by time of birth.
#[utoipa::path(
    get, path = "/api/v1/migrations", tag = "migrations",
    responses((status = 200, description = "The migrations", body = Vec<MigrationView>)),
    security(("admin" = []))
)]
pub(super) async fn list(api: web::Data<Api>, request: HttpRequest) -> Answer {
    Parameters::of(&request, &[])?;
    let migrations = api.cluster.reader().read(Cluster::migrations).await?;
    Ok(HttpResponse::Ok().json(migrations))
}

/// How often the outcomes of migrations fell inside their forecasts.
#[utoipa::path(
    get, path = "/api/v1/migrations/calibration", tag = "migrations",
    responses((status = 200, description = "Forecasts against outcomes", body = Calibrations)),
    security(("admin" = []))
)]
pub(super) async fn calibration(api: web::Data<Api>, request: HttpRequest) -> Answer {
    Parameters::of(&request, &[])?;
    let found = api.cluster.reader().read(Cluster::calibration).await?;
    Ok(HttpResponse::Ok().json(found))
}

/// One migration. Who asks with `watch=true` makes its source send samples of
/// its progress, for some seconds from then on.
#[utoipa::path(
    get, path = "/api/v1/migrations/{id}", tag = "migrations",
    params(
        ("id" = String, Path, description = "The migration's id"),
        ("watch" = Option<bool>, Query, description = "Ask the source for samples of its progress"),
        ("wait_ms" = Option<u64>, Query, description = "Answer when it has ended, or after so many milliseconds"),
    ),
    responses(
        (status = 200, description = "The migration", body = MigrationView),
        (status = 404, description = "No such migration", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn show(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
) -> Answer {
    let parameters = Parameters::of(&request, &["watch", "wait_ms"])?;
    let wait = Duration::from_millis(parameters.number("wait_ms", MAX_WAIT)?.unwrap_or(0));
    let id: MigrationId = path.parse()?;
    if parameters.flag("watch", false)? {
        let view = api.cluster.reader().peek(|cluster| cluster.migration(id))?;
        if !view.phase.is_final() {
            api.watches.hold(id, wait);
        }
    }
    let ended = |view: &MigrationView| view.phase.is_final();
    let view = look_until(&api, wait, |cluster| cluster.migration(id), ended).await?;
    Ok(HttpResponse::Ok().json(view))
}

/// Calls a migration off; the guest stays on its source.
#[utoipa::path(
    post, path = "/api/v1/migrations/{id}/cancel", tag = "migrations",
    params(("id" = String, Path, description = "The migration's id")),
    responses(
        (status = 200, description = "The migration, being cancelled", body = MigrationView),
        (status = 404, description = "No such migration", body = Problem),
        (status = 409, description = "It has ended", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn cancel(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
) -> Answer {
    Parameters::of(&request, &[])?;
    let migration: MigrationId = path.parse()?;
    match api
        .cluster
        .apply(Input::CancelMigration { migration })
        .await?
    {
        Output::Migration(view) => Ok(HttpResponse::Ok().json(view)),
        other => Err(unexpected(&other)),
    }
}

/// Changes a migration while it runs: its limits, or a switch to post-copy.
#[utoipa::path(
    post, path = "/api/v1/migrations/{id}/tune", tag = "migrations",
    params(("id" = String, Path, description = "The migration's id")),
    request_body = MigrationTuning,
    responses(
        (status = 200, description = "The migration, changed", body = MigrationView),
        (status = 404, description = "No such migration", body = Problem),
        (status = 409, description = "It does not send memory", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn tune(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
) -> Answer {
    Parameters::of(&request, &[])?;
    let migration: MigrationId = path.parse()?;
    let tuning: MigrationTuning = body_or_default(&request, payload).await?;
    steer(&api, |ticket| Input::TuneMigration {
        migration,
        ticket,
        tuning,
    })
    .await
}

/// Ends the doubt of a source about its grant, by an operator who has seen to
/// it that no other node runs the guest, or that one does. Written down.
#[utoipa::path(
    post, path = "/api/v1/migrations/{id}/resolve", tag = "migrations",
    params(("id" = String, Path, description = "The migration's id")),
    request_body = ResolveRequest,
    responses(
        (status = 200, description = "The migration, decided", body = MigrationView),
        (status = 400, description = "The VM's name was not typed", body = Problem),
        (status = 404, description = "No such migration", body = Problem),
        (status = 409, description = "It is not in doubt", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn resolve(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
) -> Answer {
    Parameters::of(&request, &[])?;
    let migration: MigrationId = path.parse()?;
    let wanted: ResolveRequest = body(&request, payload).await?;
    let view = api
        .cluster
        .reader()
        .peek(|cluster| cluster.migration(migration))?;
    let first = "make sure where the guest runs";
    confirmed(&wanted.confirm, "VM", view.name.as_str(), first)?;
    let resolution = Resolution {
        decision: wanted.decision,
        // There is one credential so far.
        by: "admin".to_owned(),
        at: UnixMillis::now(),
    };
    steer(&api, |ticket| Input::ResolveMigration {
        migration,
        ticket,
        resolution,
    })
    .await
}

/// Asks the source, and answers with the migration as it is then.
async fn steer(api: &Api, input: impl FnOnce(Ticket) -> Input) -> Answer {
    match api.cluster.ask(input).await? {
        Answered::Answer(Word::Migration(view)) => Ok(HttpResponse::Ok().json(view)),
        Answered::Output(other) => Err(unexpected(&other)),
        Answered::Answer(other) => {
            Err(Problem::internal(format!("a migration gave {other:?}")).into())
        }
    }
}
