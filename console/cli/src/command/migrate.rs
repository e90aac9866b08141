//! `godwit vm migrate`.

use std::fmt::Write as _;

use futures_util::StreamExt as _;
use futures_util::stream;
use godwit_shared::api::{DryRun, MigrateRequest, MigrationView, TaskView};
use godwit_shared::model::{MigrationPolicy, Millis, Problem, codes};
use serde_json::Value;

use super::lifecycle::finish;
use super::vm::{AT_ONCE, split};
use crate::args::{Format, MigrateArgs, VmRef};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::output::{Item, Ui, human, views};

pub(super) async fn run(args: MigrateArgs, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let request = MigrateRequest {
        target: args.to.clone(),
        policy: policy(&args),
        dry_run: args.dry_run,
    };
    let asked: Vec<(VmRef, Result<Value, Failure>)> = stream::iter(&args.vms)
        .map(async |vm| {
            let path = format!("/vms/{vm}/migrate");
            (vm.clone(), client.post(&path, &request).await)
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    if args.dry_run {
        return dry_run(asked, ui);
    }
    let asked = asked
        .into_iter()
        .map(|(vm, answer)| (vm.to_string(), answer))
        .collect();
    // The sentence at the end wants the migration, not only its task.
    finish(asked, &args.waiting(), client, ui, async |task| {
        outcome(&task, client).await
    })
    .await
}

fn policy(args: &MigrateArgs) -> MigrationPolicy {
    let default = MigrationPolicy::default();
    MigrationPolicy {
        channels: args.channels.unwrap_or(default.channels),
        bandwidth: args.bandwidth,
        downtime: args.downtime.unwrap_or(default.downtime),
        auto_converge: !args.no_auto_converge,
        postcopy: args.postcopy.unwrap_or(default.postcopy),
        disks: args.disks.unwrap_or(default.disks),
        keep_source_disks: args.keep_source_disks,
        timeout: args.timeout.map(Millis::from),
        timeout_action: args.timeout_action.unwrap_or(default.timeout_action),
        priority: args.priority.unwrap_or(default.priority),
    }
}

/// `moved from node-1 to node-2 in 3.4 s, blackout 27 ms, 512 MiB sent`.
async fn outcome(task: &TaskView, client: &Client) -> String {
    let migration = match task.migration {
        Some(id) => client
            .one::<MigrationView>(&format!("/migrations/{id}"))
            .await
            .ok(),
        None => None,
    };
    match migration {
        Some(migration) => moved(&migration.view),
        None => "moved".to_owned(),
    }
}

/// How a migration went that went well.
pub(super) fn moved(migration: &MigrationView) -> String {
    let mut text = format!("moved from {} to {}", migration.source, migration.target);
    if let Some(ended) = migration.ended {
        let took = human::span(migration.created.until(ended));
        let _ = write!(text, " in {took}");
    }
    if let Some(blackout) = migration.blackout {
        let _ = write!(text, ", blackout {blackout}");
    }
    if migration.progress.transferred.0 > 0 {
        let _ = write!(text, ", {} sent", migration.progress.transferred);
    }
    text
}

fn dry_run(asked: Vec<(VmRef, Result<Value, Failure>)>, ui: &Ui) -> Result<(), Failure> {
    let many = asked.len() > 1;
    let answers = asked.into_iter().map(|(vm, answer)| {
        let item = answer.and_then(Item::<DryRun>::read);
        match item {
            Ok(item) => Ok((vm, item)),
            Err(failure) if many => Err(failure.about(vm.as_str())),
            Err(failure) => Err(failure),
        }
    });
    let (found, mut failures) = split(answers.collect());
    match (ui.format, found.as_slice()) {
        (Format::Json | Format::Yaml, [(_, item)]) if !many => ui.value(&item.raw)?,
        (Format::Json | Format::Yaml, _) => {
            ui.value(&found.iter().map(|(_, item)| item.raw.clone()).collect())?;
        }
        _ => {
            for (vm, item) in &found {
                ui.print(&views::rehearsal(vm.as_str(), &item.view, ui))?;
            }
        }
    }
    let blocked = found.iter().any(|(_, item)| !item.view.blockers.is_empty());
    if blocked && failures.is_empty() {
        return Err(Failure::silent(Exit::Failed));
    }
    if blocked {
        failures.push(
            Problem::new(codes::MIGRATION_BLOCKED, "not every VM can be moved")
                .remedy("the blockers are listed above")
                .into(),
        );
    }
    Failure::several(failures)
}
