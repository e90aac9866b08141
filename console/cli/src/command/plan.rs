//! `godwit plan`, `godwit rebalance`, `godwit node drain` and `node return`.

use godwit_shared::api::{AbortRequest, DrainRequest, PlanState, PlanView, RebalanceRequest};
use godwit_shared::model::{PlanId, Problem, codes};
use serde::Serialize;

use super::by_id;
use crate::args::{DrainArgs, PlanCommand, RebalanceArgs, ReturnArgs, WaitArgs};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::output::{Item, Ui, views};
use crate::progress::watch_plan;

pub(super) async fn run(command: PlanCommand, client: &Client, ui: &Ui) -> Result<(), Failure> {
    match command {
        PlanCommand::List => ui.list::<PlanView>(&client.all("/plans").await?),
        PlanCommand::Show { plan } => show(&find(&plan, client).await?, ui),
        PlanCommand::Watch { plan, timeout } => {
            let plan = find(&plan, client).await?;
            let ended = watch_plan(client, ui, &plan, timeout).await?;
            conclude(&ended, ui)
        }
        PlanCommand::Abort {
            plan,
            cancel_running,
        } => {
            let id = find(&plan, client).await?.view.id;
            let request = AbortRequest { cancel_running };
            let path = format!("/plans/{id}/abort");
            let plan: Item<PlanView> = Item::read(client.post(&path, &request).await?)?;
            if !ui.is_table() {
                return ui.show(&[plan]);
            }
            let title = views::plan_title(&plan.view);
            ui.print(&format!("{title}: {}", plan.view.state.as_str()))
        }
    }
}

pub(super) async fn drain(args: DrainArgs, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let request = DrainRequest {
        dry_run: args.dry_run,
        partial: args.partial,
        and_return: args.and_return,
        limits: args.limits.limits(),
    };
    let path = format!("/nodes/{}/drain", args.node);
    ask(&path, &request, &args.wait, client, ui).await
}

pub(super) async fn bring_back(args: ReturnArgs, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let request = DrainRequest {
        dry_run: args.dry_run,
        partial: args.partial,
        and_return: false,
        limits: args.limits.limits(),
    };
    let path = format!("/nodes/{}/return", args.node);
    ask(&path, &request, &args.wait, client, ui).await
}

pub(super) async fn rebalance(
    args: RebalanceArgs,
    client: &Client,
    ui: &Ui,
) -> Result<(), Failure> {
    let request = RebalanceRequest {
        dry_run: args.dry_run,
        max_moves: args.max_moves,
        limits: args.limits.limits(),
    };
    ask("/rebalance", &request, &args.wait, client, ui).await
}

async fn ask(
    path: &str,
    request: &impl Serialize,
    wait: &WaitArgs,
    client: &Client,
    ui: &Ui,
) -> Result<(), Failure> {
    let plan: Item<PlanView> = Item::read(client.post(path, request).await?)?;
    if plan.view.state == PlanState::Proposed {
        show(&plan, ui)?;
        if plan.view.blockers.is_empty() {
            return Ok(());
        }
        return Err(Failure::silent(Exit::Failed));
    }
    if wait.detach {
        if ui.is_table() {
            return ui.print(&plan.view.id.to_string());
        }
        return ui.show(&[plan]);
    }
    if ui.is_table() {
        // What is going to happen comes before it happens.
        show(&plan, ui)?;
    }
    let ended = watch_plan(client, ui, &plan, wait.timeout).await?;
    conclude(&ended, ui)
}

fn show(plan: &Item<PlanView>, ui: &Ui) -> Result<(), Failure> {
    if ui.is_table() {
        return ui.print(&views::plan(&plan.view, ui));
    }
    ui.show(std::slice::from_ref(plan))
}

fn conclude(plan: &Item<PlanView>, ui: &Ui) -> Result<(), Failure> {
    let view = &plan.view;
    let title = views::plan_title(view);
    if !ui.is_table() {
        ui.show(std::slice::from_ref(plan))?;
    } else if view.state == PlanState::Done {
        ui.print(&format!("{title}: {}", view.message))?;
    }
    let state = view.state.as_str();
    let message = format!("{title} is {state}: {}", view.message);
    let remedy = format!("see each step: `godwit plan show {}`", view.id);
    let reasons = view.progress.iter().filter_map(|step| step.problem.clone());
    match view.state {
        PlanState::Done => Ok(()),
        PlanState::Aborted => Err(Problem::new(codes::CANCELLED, message)
            .remedy(remedy)
            .into()),
        _ => Err(Problem::new(codes::MIGRATION_FAILED, message)
            .remedy(remedy)
            .and(reasons.collect())
            .into()),
    }
}

/// By id, or by the end of an id.
async fn find(text: &str, client: &Client) -> Result<Item<PlanView>, Failure> {
    if let Ok(id) = text.parse::<PlanId>() {
        return client.one(&format!("/plans/{id}")).await;
    }
    by_id(&client.all("/plans").await?, text, "plan")
}
