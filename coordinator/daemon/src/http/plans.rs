//! Plans: drains, returns, rebalances.

use std::time::Duration;

use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse, web};
use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::input::{Input, Output};
use godwit_shared::api::{AbortRequest, DrainRequest, PlanState, PlanView, RebalanceRequest};
use godwit_shared::model::{PlanId, Problem};
use serde::de::DeserializeOwned;

use super::answer::{Answer, look_until, unexpected};
use super::input::{Parameters, body_or_default};
use super::nodes::name;
use super::survey::survey;
use super::tasks::MAX_WAIT;
use super::{Api, V1};

/// Every plan that is kept, by time of birth.
#[utoipa::path(
    get, path = "/api/v1/plans", tag = "plans",
    responses((status = 200, description = "The plans", body = Vec<PlanView>)),
    security(("admin" = []))
)]
pub(super) async fn list(api: web::Data<Api>, request: HttpRequest) -> Answer {
    Parameters::of(&request, &[])?;
    let plans = api.cluster.reader().read(Cluster::plans).await?;
    Ok(HttpResponse::Ok().json(plans))
}

/// One plan, with every step.
#[utoipa::path(
    get, path = "/api/v1/plans/{id}", tag = "plans",
    params(
        ("id" = String, Path, description = "The plan's id"),
        ("wait_ms" = Option<u64>, Query, description = "Answer when it has ended, or after so many milliseconds"),
    ),
    responses(
        (status = 200, description = "The plan", body = PlanView),
        (status = 404, description = "No such plan", body = Problem),
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
    let id: PlanId = path.parse()?;
    let ended = |view: &PlanView| view.state.is_final();
    let view = look_until(&api, wait, |cluster| cluster.plan(id), ended).await?;
    Ok(HttpResponse::Ok().json(view))
}

/// Empties a node: it is cordoned, and its VMs move to other nodes. What blocks
/// that is told before anything begins: what placement knows, and what the nodes of
/// each move say when they are asked.
#[utoipa::path(
    post, path = "/api/v1/nodes/{node}/drain", tag = "plans",
    params(("node" = String, Path, description = "The node's name")),
    request_body(content = Option<DrainRequest>, description = "Empty for the defaults"),
    responses(
        (status = 202, description = "The plan, begun", body = PlanView),
        (status = 200, description = "The plan of a dry run", body = PlanView),
        (status = 404, description = "No such node", body = Problem),
        (status = 409, description = "Something blocks it, or it is drained already", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn drain(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
) -> Answer {
    Parameters::of(&request, &[])?;
    let body: DrainRequest = body_or_default(&request, payload).await?;
    let node = name(&path)?;
    let survey = survey(&api, &node, &body).await?;
    let drain = Input::Drain {
        node,
        plan: PlanId::generate(),
        request: body,
        survey,
    };
    begun(&api, drain).await
}

/// Brings the VMs of a node's last drain back; the node is uncordoned.
#[utoipa::path(
    post, path = "/api/v1/nodes/{node}/return", tag = "plans",
    params(("node" = String, Path, description = "The node's name")),
    request_body(content = Option<DrainRequest>, description = "Empty for the defaults"),
    responses(
        (status = 202, description = "The plan, begun", body = PlanView),
        (status = 200, description = "The plan of a dry run", body = PlanView),
        (status = 404, description = "No such node", body = Problem),
        (status = 409, description = "It was not drained, or something blocks it", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn bring_back(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
) -> Answer {
    begin(&api, &request, payload, |plan, request| {
        let node = name(&path)?;
        Ok(Input::Return {
            node,
            plan,
            request,
        })
    })
    .await
}

/// Evens the load out. A plan without steps is answered and not kept.
#[utoipa::path(
    post, path = "/api/v1/rebalance", tag = "plans",
    request_body(content = Option<RebalanceRequest>, description = "Empty for the defaults"),
    responses(
        (status = 202, description = "The plan, begun", body = PlanView),
        (status = 200, description = "The plan of a dry run, or one that moves nothing", body = PlanView),
        (status = 409, description = "A rebalance is under way, or they are switched off", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn rebalance(
    api: web::Data<Api>,
    request: HttpRequest,
    payload: web::Payload,
) -> Answer {
    begin(&api, &request, payload, |plan, request| {
        Ok(Input::Rebalance { plan, request })
    })
    .await
}

/// Calls a plan off. Steps that have not begun will not; moves that run end as
/// they would have, or are cancelled.
#[utoipa::path(
    post, path = "/api/v1/plans/{id}/abort", tag = "plans",
    params(("id" = String, Path, description = "The plan's id")),
    request_body(content = Option<AbortRequest>, description = "Empty for the defaults"),
    responses(
        (status = 200, description = "The plan, being called off", body = PlanView),
        (status = 404, description = "No such plan", body = Problem),
        (status = 409, description = "It has ended", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn abort(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
) -> Answer {
    Parameters::of(&request, &[])?;
    let plan: PlanId = path.parse()?;
    let request: AbortRequest = body_or_default(&request, payload).await?;
    match api
        .cluster
        .apply(Input::AbortPlan { plan, request })
        .await?
    {
        Output::Plan(view) => Ok(HttpResponse::Ok().json(view)),
        other => Err(unexpected(&other)),
    }
}

/// Has a plan computed: one that was begun, and where to look after it; or one
/// that was only shown.
async fn begin<T: DeserializeOwned + Default>(
    api: &Api,
    request: &HttpRequest,
    payload: web::Payload,
    input: impl FnOnce(PlanId, T) -> Result<Input, Problem>,
) -> Answer {
    Parameters::of(request, &[])?;
    let body = body_or_default(request, payload).await?;
    begun(api, input(PlanId::generate(), body)?).await
}

async fn begun(api: &Api, input: Input) -> Answer {
    match api.cluster.apply(input).await? {
        Output::Plan(view) if view.state == PlanState::Proposed => {
            Ok(HttpResponse::Ok().json(view))
        }
        Output::Plan(view) => {
            let place = format!("{V1}/plans/{}", view.id);
            let mut accepted = HttpResponse::Accepted();
            Ok(accepted.insert_header((LOCATION, place)).json(view))
        }
        other => Err(unexpected(&other)),
    }
}
