//! Nodes and the tokens by which hosts become nodes.

use actix_web::{HttpRequest, HttpResponse, web};
use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::input::{Input, Output};
use godwit_coordinator_logic::record::SecretDigest;
use godwit_shared::api::{AbsentRequest, NodeView, TokenRequest, TokenView};
use godwit_shared::digest::sha256;
use godwit_shared::model::{NodeId, Problem};
use godwit_shared::pki::{JoinSecret, JoinToken};

use super::Api;
use super::answer::{self, Answer};
use super::input::{Parameters, body, body_or_default, confirmed};
use crate::credential::random_text;

/// Every node, by name.
#[utoipa::path(
    get, path = "/api/v1/nodes", tag = "nodes",
    responses((status = 200, description = "The nodes", body = Vec<NodeView>)),
    security(("admin" = []))
)]
pub(super) async fn list(api: web::Data<Api>, request: HttpRequest) -> Answer {
    Parameters::of(&request, &[])?;
    let nodes = api.cluster.reader().read(Cluster::nodes).await?;
    Ok(HttpResponse::Ok().json(nodes))
}

/// One node.
#[utoipa::path(
    get, path = "/api/v1/nodes/{node}", tag = "nodes",
    params(("node" = String, Path, description = "The node's name")),
    responses(
        (status = 200, description = "The node", body = NodeView),
        (status = 404, description = "No such node", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn show(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
) -> Answer {
    Parameters::of(&request, &[])?;
    let node = name(&path)?;
    let view = api
        .cluster
        .reader()
        .read(|cluster| cluster.node(&node))
        .await??;
    Ok(HttpResponse::Ok().json(view))
}

/// Places no new VMs on a node; those that are there stay.
#[utoipa::path(
    post, path = "/api/v1/nodes/{node}/cordon", tag = "nodes",
    params(("node" = String, Path, description = "The node's name")),
    responses(
        (status = 200, description = "The node, cordoned", body = NodeView),
        (status = 404, description = "No such node", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn cordon(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
) -> Answer {
    set_cordon(&api, &request, &path, true).await
}

/// Places new VMs on a node again.
#[utoipa::path(
    post, path = "/api/v1/nodes/{node}/uncordon", tag = "nodes",
    params(("node" = String, Path, description = "The node's name")),
    responses(
        (status = 200, description = "The node, no longer cordoned", body = NodeView),
        (status = 404, description = "No such node", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn uncordon(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
) -> Answer {
    set_cordon(&api, &request, &path, false).await
}

async fn set_cordon(api: &Api, request: &HttpRequest, node: &str, cordoned: bool) -> Answer {
    Parameters::of(request, &[])?;
    let node = name(node)?;
    let input = Input::Cordon { node, cordoned };
    answer::node(api.cluster.apply(input).await?)
}

/// Counts on a node to run nothing that did not connect since the store was
/// restored. VMs are started again once that is known of every node.
#[utoipa::path(
    post, path = "/api/v1/nodes/{node}/absent", tag = "nodes",
    params(("node" = String, Path, description = "The node's name")),
    request_body = AbsentRequest,
    responses(
        (status = 200, description = "The node", body = NodeView),
        (status = 400, description = "The node's name was not typed", body = Problem),
        (status = 404, description = "No such node", body = Problem),
        (status = 409, description = "It is not waited for", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn absent(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
) -> Answer {
    Parameters::of(&request, &[])?;
    let node = name(&path)?;
    let AbsentRequest { confirm } = body(&request, payload).await?;
    confirmed(
        &confirm,
        "node",
        node.as_str(),
        "make sure that no VM runs there",
    )?;
    answer::node(api.cluster.apply(Input::NodeAbsent { node }).await?)
}

/// Takes a node out of the cluster for good: its certificate is refused from
/// now on. It must have no VMs.
#[utoipa::path(
    delete, path = "/api/v1/nodes/{node}", tag = "nodes",
    params(("node" = String, Path, description = "The node's name")),
    responses(
        (status = 204, description = "It is no longer a member"),
        (status = 404, description = "No such node", body = Problem),
        (status = 409, description = "It still has VMs", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn remove(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
) -> Answer {
    Parameters::of(&request, &[])?;
    api.cluster
        .apply(Input::RemoveNode { node: name(&path)? })
        .await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Makes a one-time token for `godwit-node join`. It is shown this once.
#[utoipa::path(
    post, path = "/api/v1/tokens", tag = "nodes",
    request_body(content = Option<TokenRequest>, description = "Empty for the defaults"),
    responses(
        (status = 200, description = "The token", body = TokenView),
        (status = 400, description = "The body is wrong", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn create_token(
    api: web::Data<Api>,
    request: HttpRequest,
    payload: web::Payload,
) -> Answer {
    Parameters::of(&request, &[])?;
    let TokenRequest { valid } = body_or_default(&request, payload).await?;
    let secret = JoinSecret::generate()
        .ok_or_else(|| Problem::internal("the system gives no random bytes"))?;
    let id = random_text::<9>()?;
    let digest = SecretDigest(sha256(secret.reveal()));
    let input = Input::CreateToken {
        id: id.clone(),
        digest,
        valid,
    };
    let Output::Token { expires } = api.cluster.apply(input).await? else {
        return Err(Problem::internal("a token was asked for and something else came").into());
    };
    let token = JoinToken {
        coordinator: api.addresses.clone(),
        ca: api.ca,
        id,
        secret,
    };
    Ok(HttpResponse::Ok()
        .insert_header(("Cache-Control", "no-store"))
        .json(TokenView {
            token: token.to_string(),
            expires,
        }))
}

/// A name that cannot be one is no node's.
pub(super) fn name(text: &str) -> Result<NodeId, Problem> {
    text.parse().map_err(|_| Problem::not_found("node", text))
}
