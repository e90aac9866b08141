//! Answers that several calls give.

use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use actix_web::http::header::LOCATION;
use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::input::Output;
use godwit_shared::api::TaskView;
use godwit_shared::model::Problem;

use super::problem::Refusal;
use super::{Api, V1};

/// What every handler gives.
pub(super) type Answer = Result<HttpResponse, Refusal>;

/// The task that was begun, and where to look after it.
pub(super) fn accepted(task: &TaskView) -> HttpResponse {
    let place = format!("{V1}/tasks/{}", task.id);
    HttpResponse::Accepted()
        .insert_header((LOCATION, place))
        .json(task)
}

/// The task that an input gave.
pub(super) fn task(output: Output) -> Answer {
    match output {
        Output::Task(task) => Ok(accepted(&task)),
        other => Err(unexpected(&other)),
    }
}

/// The node that an input gave, as it is after the change.
pub(super) fn node(output: Output) -> Answer {
    match output {
        Output::Node(view) => Ok(HttpResponse::Ok().json(view)),
        other => Err(unexpected(&other)),
    }
}

/// An input gave something that it never gives.
pub(super) fn unexpected(output: &Output) -> Refusal {
    Problem::internal(format!("an input gave {output:?}")).into()
}

/// What `look` sees when it has `ended`, when the time is over, or when the
/// daemon stops, whichever comes first.
pub(super) async fn look_until<T>(
    api: &Api,
    wait: Duration,
    look: impl Fn(&Cluster) -> Result<T, Problem>,
    ended: impl Fn(&T) -> bool,
) -> Result<T, Problem> {
    let enough = |seen: &Result<T, Problem>| seen.as_ref().map_or(true, &ended);
    let reader = api.cluster.reader();
    let wait = reader.read_until(Instant::now() + wait, &look, enough);
    if let Some(seen) = api.stop.run_until_cancelled(wait).await {
        return seen?;
    }
    reader.read(look).await?
}
