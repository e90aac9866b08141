//! Following a plan: a line for each step that has ended, a bar for all of them.

use std::convert::Infallible;
use std::time::Duration;

use godwit_shared::api::PlanView;
use godwit_shared::model::{Problem, codes};
use tokio::time::{sleep, timeout};

use super::board::{Board, Line};
use super::{SAMPLE, at, ctrl_c, until_final};
use crate::args::Format;
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::output::{Item, Ui};

/// Follows a plan until it has ended.
pub(crate) async fn watch_plan(
    client: &Client,
    ui: &Ui,
    plan: &Item<PlanView>,
    limit: Option<Duration>,
) -> Result<Item<PlanView>, Failure> {
    let mut interrupt = ctrl_c()?;
    let board = Board::new(ui);
    let id = plan.view.id;
    let path = format!("/plans/{id}");
    let end = until_final(client, &path, |plan: &PlanView| plan.state.is_final());
    let hint = format!(
        "follow it with `godwit plan watch {id}`, call it off with `godwit plan abort {id}`"
    );
    let result = tokio::select! {
        end = end => end,
        never = sample(client, &path, board.line("plan")) => match never {},
        _ = interrupt.recv() => {
            board.clear();
            ui.note(&format!("no longer watching; the plan goes on. {hint}"));
            Err(Failure::silent(Exit::Interrupted))
        }
        () = at(limit, ui) => {
            let problem = Problem::new(codes::TIMEOUT, "the plan has not ended yet; it goes on");
            Err(problem.value(id.to_string()).remedy(hint).into())
        }
    };
    board.clear();
    // In JSON and YAML the plan is printed, whether its end was seen or not.
    if result.is_err() && !ui.is_table() && ui.format != Format::Name {
        ui.value(&plan.raw)?;
    }
    result
}

async fn sample(client: &Client, path: &str, mut line: Line) -> Infallible {
    if !line.is_seen() {
        return std::future::pending().await;
    }
    loop {
        if let Ok(Ok(plan)) = timeout(SAMPLE * 4, client.one::<PlanView>(path)).await {
            line.plan(&plan.view);
        }
        sleep(SAMPLE).await;
    }
}
