//! Which side of the API is open: the leader's, or a follower's.
//!
//! A coordinator may come to lead and cease to while it serves. Every request
//! gets the [`Api`] of the moment in which it comes; those in hand keep theirs.
//!
//! At a follower, what only looks is answered from a copy of the records.
//! Whatever changes something, asks a node or lasts is sent to the leader, with
//! status 307, and so is a look whose client wants the leader's word
//! ([`WANTS`]). When nobody leads, such a look is answered all the same, and the
//! rest is refused.

use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};

use actix_web::body::MessageBody;
use actix_web::dev::{Extensions, ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue, LOCATION};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, HttpResponse, ResponseError, web};
use godwit_shared::api::{ANSWERED_BY, WANTS};
use godwit_shared::model::{Problem, codes};

use super::problem::Refusal;
use super::{Api, V1};
use crate::follower::nobody;

/// Holds the side that is open.
#[derive(Debug)]
pub struct Door(RwLock<Arc<Api>>);

impl Door {
    /// Opens with this one.
    pub fn new(api: Api) -> Self {
        Self(RwLock::new(Arc::new(api)))
    }

    /// From now on, this one answers.
    pub fn open(&self, api: Api) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(api);
    }

    fn now(&self) -> Arc<Api> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Gives the request its side.
pub(super) async fn enter(
    mut request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let door = request.app_data::<web::Data<Door>>();
    let door = door.ok_or_else(|| Refusal::from(Problem::internal("a server without its door")))?;
    let mut data = Extensions::new();
    data.insert(web::Data::from(door.now()));
    request.add_data_container(Rc::new(data));
    next.call(request).await
}

/// At a follower: answers, or sends to the leader.
pub(super) async fn direct(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let api = request.app_data::<web::Data<Api>>().cloned();
    let Some(follower) = api.as_ref().and_then(|api| api.follower.as_ref()) else {
        return next.call(request).await;
    };
    let leader = follower.leader();
    let looks = only_looks(&request);
    let wanted = request.headers().contains_key(WANTS);
    match leader {
        Some(leader) if wanted || !looks => Err(Elsewhere::of(&request, &leader.api).into()),
        None if !looks => Err(Refusal::from(nobody()).into()),
        _ => {
            follower.refresh().await.map_err(Refusal::from)?;
            let mut response = next.call(request).await?;
            let headers = response.headers_mut();
            let name = HeaderName::from_static(ANSWERED_BY);
            headers.insert(name, HeaderValue::from_static("follower"));
            Ok(response)
        }
    }
}

/// Whether the records alone are enough for the answer.
fn only_looks(request: &ServiceRequest) -> bool {
    let path = request.path().strip_prefix(V1).unwrap_or_default();
    let lasts = path == "/events" || request.query_string().contains("wait_ms=");
    let asks_node = path.ends_with("/console") || path.ends_with("/logs");
    request.method() == Method::GET && !lasts && !asks_node
}

/// Another coordinator has to be asked.
#[derive(Debug)]
struct Elsewhere {
    location: String,
    problem: Problem,
}

impl Elsewhere {
    fn of(request: &ServiceRequest, leader: &str) -> Self {
        let problem = Problem::new(
            codes::NOT_LEADER,
            format!("this coordinator does not lead; {leader} does"),
        )
        .value(leader)
        .remedy("ask the leader");
        Self {
            location: format!("{leader}{}", request.uri()),
            problem,
        }
    }
}

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl ResponseError for Elsewhere {
    fn status_code(&self) -> StatusCode {
        StatusCode::TEMPORARY_REDIRECT
    }

    fn error_response(&self) -> HttpResponse {
        HttpResponse::TemporaryRedirect()
            .insert_header((LOCATION, self.location.as_str()))
            .json(&self.problem)
    }
}
