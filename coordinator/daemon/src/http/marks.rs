//! Labels and taints of nodes, changed at run time.

use actix_web::{HttpRequest, web};
use godwit_coordinator_logic::input::Input;
use godwit_shared::api::{MarkRequest, NodeView};
use godwit_shared::model::Problem;

use super::Api;
use super::answer::{self, Answer};
use super::input::{Parameters, body_or_default};
use super::nodes::name;

/// Gives a node labels and taints, or takes them away. VMs that are there stay.
#[utoipa::path(
    post, path = "/api/v1/nodes/{node}/marks", tag = "nodes",
    params(("node" = String, Path, description = "The node's name")),
    request_body = MarkRequest,
    responses(
        (status = 200, description = "The node with its marks", body = NodeView),
        (status = 400, description = "A label or a taint is wrong", body = Problem),
        (status = 404, description = "No such node, label or taint", body = Problem),
        (status = 409, description = "It comes from the node's own settings", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn mark(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
) -> Answer {
    Parameters::of(&request, &[])?;
    let node = name(&path)?;
    let request: MarkRequest = body_or_default(&request, payload).await?;
    let input = Input::Mark { node, request };
    answer::node(api.cluster.apply(input).await?)
}
