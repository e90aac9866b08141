//! Who may use the API: the holder of the admin token.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::AUTHORIZATION;
use actix_web::middleware::Next;
use actix_web::{Error, web};
use godwit_shared::model::{Problem, codes};

use super::Api;
use super::problem::Refusal;

/// Lets a request pass that carries the admin token.
pub(super) async fn admit(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let api = request
        .app_data::<web::Data<Api>>()
        .ok_or_else(|| Refusal::from(Problem::internal("a server without its state")))?;
    check(api, &request).map_err(Refusal::from)?;
    next.call(request).await
}

fn check(api: &Api, request: &ServiceRequest) -> Result<(), Problem> {
    let refuse =
        |message: &str| {
            Err(Problem::new(codes::UNAUTHENTICATED, message).field("authorization").remedy(
            "send `Authorization: Bearer TOKEN` with the token of the coordinator's admin.toml",
        ))
        };
    let Some(header) = request.headers().get(AUTHORIZATION) else {
        return refuse("the request has no credential");
    };
    // The scheme's case is free (RFC 9110 11.1).
    let token = header.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match token {
        None => refuse("the credential is not a bearer token"),
        Some(token) if api.admin.admits(token) => Ok(()),
        Some(_) => refuse("the token is not this cluster's admin token"),
    }
}
