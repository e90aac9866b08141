//! Lifecycle commands on one or many VMs, and the waiting that they share with
//! `vm create` and `vm migrate`.

use futures_util::StreamExt as _;
use futures_util::stream;
use godwit_shared::api::{CommandOptions, TaskView};
use serde_json::Value;

use super::vm::AT_ONCE;
use crate::args::{Format, LifecycleArgs, StartArgs, VmRef, WaitArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Item, Ui};
use crate::progress::{Pending, settle, verdict};

/// What is asked of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Start,
    Shutdown,
    Reboot,
    Reset,
    Stop,
    Pause,
    Resume,
    Delete,
}

impl Verb {
    /// The last part of the call's path.
    const fn path(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Shutdown => "shutdown",
            Self::Reboot => "reboot",
            Self::Reset => "reset",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Delete => "delete",
        }
    }

    /// What is said when it is done.
    const fn done(self) -> &'static str {
        match self {
            Self::Start => "started",
            Self::Shutdown => "shut down",
            Self::Reboot => "was asked to reboot",
            Self::Reset => "reset",
            Self::Stop => "stopped",
            Self::Pause => "paused",
            Self::Resume => "resumed",
            Self::Delete => "deleted",
        }
    }
}

pub(super) async fn start(args: StartArgs, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let options = CommandOptions { node: args.node };
    act(Verb::Start, &args.vms, &options, &args.wait, client, ui).await
}

pub(super) async fn run(
    verb: Verb,
    args: LifecycleArgs,
    client: &Client,
    ui: &Ui,
) -> Result<(), Failure> {
    let options = CommandOptions::default();
    act(verb, &args.vms, &options, &args.wait, client, ui).await
}

async fn act(
    verb: Verb,
    vms: &[VmRef],
    options: &CommandOptions,
    wait: &WaitArgs,
    client: &Client,
    ui: &Ui,
) -> Result<(), Failure> {
    let asked = stream::iter(vms)
        .map(async |vm| (vm, ask(verb, vm, options, client).await))
        .buffered(AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    let asked = asked
        .into_iter()
        .map(|(vm, answer)| (vm.to_string(), answer))
        .collect();
    finish(asked, wait, client, ui, async |task| {
        if let Some(end) = ended_early(&task).filter(|_| verb == Verb::Start) {
            return end;
        }
        let node = match (verb, &task.node) {
            (Verb::Start, Some(node)) => format!(" on {node}"),
            _ => String::new(),
        };
        format!("{}{node}", verb.done())
    })
    .await
}

/// The task's own words of a start whose guest has ended, or stands, by now.
pub(super) fn ended_early(task: &TaskView) -> Option<String> {
    let other = ["ran on ", "paused on ", "shutting-down on "];
    let ended = other.iter().any(|start| task.message.starts_with(start));
    ended.then(|| task.message.clone())
}

async fn ask(
    verb: Verb,
    vm: &VmRef,
    options: &CommandOptions,
    client: &Client,
) -> Result<Value, Failure> {
    match verb {
        Verb::Delete => client.delete(&format!("/vms/{vm}")).await,
        _ => {
            client
                .post(&format!("/vms/{vm}/{}", verb.path()), options)
                .await
        }
    }
}

/// Waits for the tasks that calls were answered with (unless told not to) and
/// says how each ended. `success` words the end of one that went well.
pub(super) async fn finish(
    asked: Vec<(String, Result<Value, Failure>)>,
    wait: &WaitArgs,
    client: &Client,
    ui: &Ui,
    success: impl AsyncFn(TaskView) -> String,
) -> Result<(), Failure> {
    let many = asked.len() > 1;
    let (mut pending, mut failures) = (Vec::new(), Vec::new());
    for (label, answer) in asked {
        match answer.and_then(Item::read) {
            Ok(task) => pending.push(Pending { label, task }),
            Err(failure) if many => failures.push(failure.about(&label)),
            Err(failure) => failures.push(failure),
        }
    }
    if wait.detach {
        let tasks: Vec<Item<TaskView>> = pending.into_iter().map(|p| p.task).collect();
        detached(&tasks, many, ui)?;
        return Failure::several(failures);
    }
    let mut ended = Vec::new();
    for settled in settle(client, ui, pending, wait.timeout).await? {
        let result = settled
            .result
            .and_then(|task| verdict(&task.view).map(|()| task));
        match result {
            Ok(task) => {
                let words = match ui.format {
                    Format::Table => success(task.view.clone()).await,
                    _ => String::new(),
                };
                say(&settled.label, &task.view, &words, ui)?;
                ended.push(task);
            }
            Err(failure) if many => failures.push(failure.about(&settled.label)),
            Err(failure) => failures.push(failure),
        }
    }
    objects(&ended, many, ui)?;
    Failure::several(failures)
}

fn say(label: &str, task: &TaskView, words: &str, ui: &Ui) -> Result<(), Failure> {
    let name = task.name.as_ref().map_or(label, |name| name.as_str());
    match ui.format {
        Format::Table => ui.print(&format!("{name} {words}")),
        Format::Name => ui.print(name),
        Format::Json | Format::Yaml => Ok(()),
    }
}

/// The tasks' ids: what a script needs to come back to them.
fn detached(tasks: &[Item<TaskView>], many: bool, ui: &Ui) -> Result<(), Failure> {
    if matches!(ui.format, Format::Json | Format::Yaml) {
        return objects(tasks, many, ui);
    }
    for task in tasks {
        ui.print(&task.view.id.to_string())?;
    }
    Ok(())
}

/// One task as an object, several asked for as a list.
fn objects(tasks: &[Item<TaskView>], many: bool, ui: &Ui) -> Result<(), Failure> {
    if !matches!(ui.format, Format::Json | Format::Yaml) {
        return Ok(());
    }
    match tasks {
        [task] if !many => ui.value(&task.raw),
        [] if !many => Ok(()),
        _ => ui.value(&Value::Array(tasks.iter().map(|t| t.raw.clone()).collect())),
    }
}
