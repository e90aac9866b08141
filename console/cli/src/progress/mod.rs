//! Waiting for long actions.
//!
//! The end of a task is an answer that the coordinator holds until it is there,
//! so it is known at once and nothing is asked over and over. Beside it a
//! sample is drawn twice a second ([`board`]), only while somebody can see it.
//! The coordinator may be away for a while: tasks outlive it, so it is waited
//! for.
//!
//! Ctrl-C and `--timeout` end the waiting, never the action.

mod board;
mod plan;

use std::convert::Infallible;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use godwit_shared::api::{MigrationView, TaskState, TaskView};
use godwit_shared::model::{MigrationId, Problem, TaskId, codes};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::output::{Item, Ui};

use board::{Board, Line};

pub(crate) use plan::watch_plan;

/// How often progress is sampled.
const SAMPLE: Duration = Duration::from_millis(500);

/// How long a coordinator that has gone is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A task to be waited for.
#[derive(Debug)]
pub(crate) struct Pending {
    /// What it is called in messages: the VM's name, as a rule.
    pub(crate) label: String,
    /// The task as it was when it was last seen.
    pub(crate) task: Item<TaskView>,
}

/// How the waiting for one task ended.
#[derive(Debug)]
pub(crate) struct Settled {
    /// What it is called in messages.
    pub(crate) label: String,
    /// The task in its last state, or why it is not known.
    pub(crate) result: Result<Item<TaskView>, Failure>,
}

/// Why waiting was given up before the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Interrupted,
    TimedOut,
}

/// Waits for all of them. `Err` when the waiting itself was ended; then it has
/// been told how to go on, and in JSON and YAML the tasks have been printed.
pub(crate) async fn settle(
    client: &Client,
    ui: &Ui,
    pending: Vec<Pending>,
    limit: Option<Duration>,
) -> Result<Vec<Settled>, Failure> {
    let mut interrupt = ctrl_c()?;
    let board = Board::new(ui);
    let mut settled: Vec<Option<Settled>> = pending.iter().map(|_| None).collect();
    let mut following: FuturesUnordered<_> = pending
        .iter()
        .enumerate()
        .map(|(index, pending)| {
            let line = board.line(&pending.label);
            let task = &pending.task;
            async move {
                let result = follow(client, task, line).await;
                (index, result)
            }
        })
        .collect();
    let mut end = std::pin::pin!(at(limit, ui));
    let cut = loop {
        let next = tokio::select! {
            next = following.next() => next,
            _ = interrupt.recv() => break Some(Cut::Interrupted),
            () = &mut end => break Some(Cut::TimedOut),
        };
        let Some((index, result)) = next else {
            break None;
        };
        let label = pending[index].label.clone();
        settled[index] = Some(Settled { label, result });
    };
    drop(following);
    board.clear();
    let Some(cut) = cut else {
        return Ok(settled.into_iter().flatten().collect());
    };
    let open = pending.into_iter().zip(settled);
    let open = open.filter_map(|(pending, settled)| settled.is_none().then_some(pending));
    Err(cut_short(cut, &open.collect::<Vec<_>>(), limit, ui)?)
}

/// Ctrl-C, caught from now on: before anything is told that could bring it.
pub(crate) fn ctrl_c() -> Result<Signal, Failure> {
    signal(SignalKind::interrupt()).map_err(|e| Problem::internal(e).into())
}

/// The end of the waiting time, counted from the start of the run.
async fn at(limit: Option<Duration>, ui: &Ui) {
    match limit {
        Some(limit) => {
            let gone = ui.now.until(godwit_shared::model::UnixMillis::now());
            sleep(limit.saturating_sub(gone.duration())).await;
        }
        None => std::future::pending().await,
    }
}

/// Tells what goes on without us.
fn cut_short(
    cut: Cut,
    open: &[Pending],
    limit: Option<Duration>,
    ui: &Ui,
) -> Result<Failure, Failure> {
    if !ui.is_table() && ui.format != crate::args::Format::Name {
        for pending in open {
            ui.value(&pending.task.raw)?;
        }
    }
    let hints = open.iter().map(|p| hint(&p.task.view)).collect::<Vec<_>>();
    if cut == Cut::Interrupted {
        for (pending, hint) in open.iter().zip(hints) {
            ui.note(&format!(
                "{}: no longer waiting; it goes on. {hint}",
                pending.label
            ));
        }
        return Ok(Failure::silent(Exit::Interrupted));
    }
    let failures = open.iter().zip(hints).map(|(pending, hint)| {
        let limit = godwit_shared::model::Millis::from(limit.unwrap_or_default());
        let message = format!("{}: not done within {limit}; it goes on", pending.label);
        Problem::new(codes::TIMEOUT, message)
            .value(pending.task.view.id.to_string())
            .remedy(hint)
            .into()
    });
    Ok(Failure::several(failures.collect())
        .err()
        .unwrap_or_else(|| Failure::silent(Exit::TimedOut)))
}

fn hint(task: &TaskView) -> String {
    format!(
        "follow it with `godwit task watch {id}`, call it off with `godwit task cancel {id}`",
        id = task.id
    )
}

/// Waits for one task and shows how it goes.
async fn follow(
    client: &Client,
    task: &Item<TaskView>,
    mut line: Line,
) -> Result<Item<TaskView>, Failure> {
    if task.view.state.is_final() {
        return Ok(task.clone());
    }
    line.task(&task.view);
    let (id, migration) = (task.view.id, task.view.migration);
    let path = format!("/tasks/{id}");
    let end = until_final(client, &path, |task: &TaskView| task.state.is_final());
    tokio::select! {
        end = end => end,
        never = sample(client, id, migration, line) => match never {},
    }
}

/// What is at `path`, once it is final.
async fn until_final<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    is_final: impl Fn(&T) -> bool,
) -> Result<Item<T>, Failure> {
    patient(async || {
        let asked = Instant::now();
        let item: Item<T> = client.poll(path).await?;
        if is_final(&item.view) {
            return Ok(Some(item));
        }
        // A coordinator that does not hold the answer must not be flooded.
        sleep(SAMPLE.saturating_sub(asked.elapsed())).await;
        Ok(None)
    })
    .await
}

/// Repeats `ask` until it has an answer. A coordinator that is away is asked
/// again for as long as [`PATIENCE`].
async fn patient<T>(
    mut ask: impl AsyncFnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let mut away_since: Option<Instant> = None;
    loop {
        match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => away_since = None,
            Err(failure) if failure.is_unreachable() => {
                let since = *away_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= PATIENCE {
                    return Err(failure);
                }
                sleep(SAMPLE).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Draws a sample twice a second, for ever. What cannot be had is not drawn:
/// whether the task has failed is not for this one to say.
async fn sample(
    client: &Client,
    id: TaskId,
    mut migration: Option<MigrationId>,
    mut line: Line,
) -> Infallible {
    if !line.is_seen() {
        return std::future::pending().await;
    }
    let path = format!("/tasks/{id}");
    loop {
        sleep(SAMPLE).await;
        if let Some(migration) = migration {
            return sample_migration(client, migration, line).await;
        }
        if let Ok(Ok(task)) = timeout(SAMPLE * 4, client.one::<TaskView>(&path)).await {
            migration = task.view.migration;
            line.task(&task.view);
        }
    }
}

/// Draws samples of a migration, and asks its source to send some.
async fn sample_migration(client: &Client, id: MigrationId, mut line: Line) -> Infallible {
    if !line.is_seen() {
        return std::future::pending().await;
    }
    let path = format!("/migrations/{id}?watch=true");
    loop {
        if let Ok(Ok(sample)) = timeout(SAMPLE * 4, client.one::<MigrationView>(&path)).await {
            line.migration(&sample.view);
        }
        sleep(SAMPLE).await;
    }
}

/// Follows a migration that no task waits for.
pub(crate) async fn watch_migration(
    client: &Client,
    ui: &Ui,
    id: MigrationId,
    limit: Option<Duration>,
) -> Result<Item<MigrationView>, Failure> {
    let mut interrupt = ctrl_c()?;
    let board = Board::new(ui);
    let path = format!("/migrations/{id}?watch=true");
    let end = until_final(client, &path, |migration: &MigrationView| {
        migration.phase.is_final()
    });
    let hint = format!("follow it with `godwit migration watch {id}`");
    let result = tokio::select! {
        end = end => end,
        never = sample_migration(client, id, board.line("")) => match never {},
        _ = interrupt.recv() => {
            board.clear();
            ui.note(&format!("no longer watching; the migration goes on. {hint}"));
            Err(Failure::silent(Exit::Interrupted))
        }
        () = at(limit, ui) => {
            let problem = Problem::new(codes::TIMEOUT, "the migration has not ended yet; it goes on");
            Err(problem.value(id.to_string()).remedy(hint).into())
        }
    };
    board.clear();
    result
}

/// What a task that is over means for us.
pub(crate) fn verdict(task: &TaskView) -> Result<(), Failure> {
    match (task.state, &task.problem) {
        (TaskState::Succeeded, _) => Ok(()),
        (_, Some(problem)) => Err(problem.clone().into()),
        (TaskState::Cancelled, None) => Err(Problem::new(codes::CANCELLED, "it was called off")
            .remedy("ask for it again if it is still wanted")
            .into()),
        (_, None) => Err(Problem::new(
            codes::INTERNAL,
            format!(
                "the task {} ended as `{}` without a reason",
                task.id,
                task.state.as_str()
            ),
        )
        .remedy("look at the coordinator's log")
        .into()),
    }
}
