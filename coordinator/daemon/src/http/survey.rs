//! Asking the nodes what they have against the moves of a drain, before it begins.
//!
//! The drain is drafted, and each of its moves rehearsed by its two nodes, as
//! `vm migrate --dry-run` does it: several at once, each with a deadline. A node
//! that does not answer is no blocker; the plan says that it was not asked.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use godwit_coordinator_logic::effect::Answer as Word;
use godwit_coordinator_logic::input::{Input, Output, Survey, Surveyed};
use godwit_shared::api::{DrainRequest, MigrateRequest, PlanLimits, PlanStep};
use godwit_shared::model::{
    MigrationId, MigrationPolicy, NodeId, PlanId, Problem, TaskId, VmId, codes,
};
use tokio::time::timeout;

use super::Api;
use crate::cluster::Answered;

/// Rehearsals at once: each looks at its guest for about a second.
const AT_ONCE: usize = 16;
/// Most that one of them may take.
const EACH: Duration = Duration::from_secs(10);

/// What the nodes say of the moves that such a drain would make.
pub(super) async fn survey(
    api: &Api,
    node: &NodeId,
    request: &DrainRequest,
) -> Result<Survey, Problem> {
    let draft = Input::Drain {
        node: node.clone(),
        plan: PlanId::generate(),
        request: DrainRequest {
            dry_run: true,
            ..request.clone()
        },
        survey: Survey::new(),
    };
    let Output::Plan(plan) = api.cluster.apply(draft).await? else {
        return Ok(Survey::new());
    };
    let asked = plan
        .steps
        .iter()
        .map(|step| look_at(api, step, &plan.limits));
    Ok(stream::iter(asked)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await)
}

async fn look_at(api: &Api, step: &PlanStep, limits: &PlanLimits) -> (VmId, Surveyed) {
    let found = timeout(EACH, rehearse(api, step, limits)).await;
    let surveyed = Surveyed {
        target: step.target.clone(),
        found: found.unwrap_or_else(|_| Err(silent(step))),
    };
    (step.vm, surveyed)
}

async fn rehearse(
    api: &Api,
    step: &PlanStep,
    limits: &PlanLimits,
) -> Result<Vec<Problem>, Problem> {
    let request = MigrateRequest {
        target: Some(step.target.clone()),
        policy: MigrationPolicy {
            bandwidth: limits.bandwidth,
            ..MigrationPolicy::default()
        },
        dry_run: true,
    };
    let asked = api.cluster.ask(|ticket| Input::Migrate {
        vm: step.vm,
        migration: MigrationId::generate(),
        task: TaskId::generate(),
        ticket,
        request,
    });
    match asked.await? {
        Answered::Answer(Word::DryRun(found)) => Ok(found.blockers),
        other => Err(Problem::internal(format!(
            "{other:?} is no answer to a dry run"
        ))),
    }
}

fn silent(step: &PlanStep) -> Problem {
    let text = format!(
        "{} and {} did not say within {} s",
        step.source,
        step.target,
        EACH.as_secs()
    );
    Problem::new(codes::NODE_UNREACHABLE, text)
}
