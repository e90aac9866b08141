//! What if, and what placement prefers.

use actix_web::{HttpRequest, HttpResponse, web};
use godwit_coordinator_logic::cluster::Cluster;
use godwit_shared::api::{ProfileView, SimulateRequest, SimulationView};
use godwit_shared::model::Problem;

use super::Api;
use super::answer::Answer;
use super::input::{Parameters, body_or_default};

/// Where VMs would go if nodes were lost or added, what would not fit, and how
/// much room would be left. Nothing is touched.
#[utoipa::path(
    post, path = "/api/v1/placement/simulate", tag = "cluster",
    request_body = SimulateRequest,
    responses(
        (status = 200, description = "What would become of it", body = SimulationView),
        (status = "4XX", description = "Refused", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn simulate(
    api: web::Data<Api>,
    request: HttpRequest,
    payload: web::Payload,
) -> Answer {
    Parameters::of(&request, &[])?;
    let asked: SimulateRequest = body_or_default(&request, payload).await?;
    // On a copy: a long look would keep the one writer waiting.
    let cluster = api.cluster.reader().read(Cluster::clone).await?;
    let answer = web::block(move || cluster.simulate(&asked)).await;
    let view = answer.map_err(Problem::internal)??;
    Ok(HttpResponse::Ok().json(view))
}

/// The placement profiles of the settings, with what each weighs.
#[utoipa::path(
    get, path = "/api/v1/placement/profiles", tag = "cluster",
    responses((status = 200, description = "The profiles; the nameless one is the default", body = Vec<ProfileView>)),
    security(("admin" = []))
)]
pub(super) async fn profiles(api: web::Data<Api>, request: HttpRequest) -> Answer {
    Parameters::of(&request, &[])?;
    let profiles = api.cluster.reader().read(Cluster::profiles).await?;
    Ok(HttpResponse::Ok().json(profiles))
}
