//! The cluster as a whole, placement, and the schema of a spec.

use actix_web::{HttpRequest, HttpResponse, web};
use godwit_coordinator_logic::cluster::Cluster;
use godwit_shared::api::{ClusterStatus, CreateVm, PlacementView};
use godwit_shared::model::Problem;
use godwit_shared::model::spec::json_schema;

use super::answer::Answer;
use super::input::{Parameters, create_vm};
use super::{Api, input};

/// The cluster in a few numbers.
#[utoipa::path(
    get, path = "/api/v1/cluster", tag = "cluster",
    responses(
        (status = 200, description = "Nodes and VMs by state, capacity, what is used", body = ClusterStatus),
        (status = "4XX", description = "Refused", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn status(api: web::Data<Api>, request: HttpRequest) -> Answer {
    Parameters::of(&request, &[])?;
    let status = api.cluster.reader().read(Cluster::status).await?;
    Ok(HttpResponse::Ok().json(status))
}

/// A backup of the cluster's records as they are now: see docs/store.md. It
/// holds everything but the CA's key and the join tokens.
#[utoipa::path(
    get, path = "/api/v1/cluster/backup", tag = "cluster",
    responses(
        (status = 200, description = "The file", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "5XX", description = "The store failed", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn backup(api: web::Data<Api>, request: HttpRequest) -> Answer {
    Parameters::of(&request, &[])?;
    let file = api.backups.take().await?;
    Ok(HttpResponse::Ok()
        .content_type("application/octet-stream")
        .insert_header(("Cache-Control", "no-store"))
        .body(file))
}

/// Where a VM would go now, and why: every node with its score or what is
/// lacking. Nothing is reserved.
#[utoipa::path(
    post, path = "/api/v1/place", tag = "cluster",
    request_body = CreateVm,
    responses(
        (status = 200, description = "The choice, explained node by node", body = PlacementView),
        (status = "4XX", description = "Refused", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn place(
    api: web::Data<Api>,
    request: HttpRequest,
    payload: web::Payload,
) -> Answer {
    Parameters::of(&request, &[])?;
    let wanted = create_vm(&request, payload).await?;
    let view = api
        .cluster
        .reader()
        .read(|cluster| cluster.place(&wanted))
        .await?;
    Ok(HttpResponse::Ok().json(view))
}

/// The JSON Schema of a VM's spec.
#[utoipa::path(
    get, path = "/api/v1/schema/vm", tag = "cluster",
    responses((status = 200, description = "JSON Schema", body = Object)),
    security(("admin" = []))
)]
pub(super) async fn vm_schema(request: HttpRequest) -> Answer {
    input::Parameters::of(&request, &[])?;
    Ok(HttpResponse::Ok().json(json_schema()))
}
