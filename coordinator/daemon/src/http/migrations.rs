//! Migrations.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::input::{Input, Output};
use godwit_shared::api::MigrationView;
use godwit_shared::model::{MigrationId, Problem};

use super::Api;
use super::answer::{Answer, look_until, unexpected};
use super::input::Parameters;
use super::tasks::MAX_WAIT;

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
