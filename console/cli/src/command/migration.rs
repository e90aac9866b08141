//! `godwit migration`.

use godwit_shared::api::{Calibrations, MigrationView, ResolveRequest, TaskView};
use godwit_shared::model::{
    DoubtDecision, MigrationId, MigrationPhase, MigrationTuning, Problem, VmName, codes,
};
use godwit_shared::prompt;
use serde_json::json;

use super::by_id;
use super::migrate::moved;
use crate::args::{Format, MigrationCommand, ResolveArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Item, Ui, views};
use crate::progress::{Pending, settle, watch_migration};

pub(super) async fn run(
    command: MigrationCommand,
    client: &Client,
    ui: &Ui,
) -> Result<(), Failure> {
    match command {
        MigrationCommand::List => ui.list::<MigrationView>(&client.all("/migrations").await?),
        MigrationCommand::Show { migration } => ui.show(&[find(&migration, client).await?]),
        MigrationCommand::Calibration => {
            let found = client.one("/migrations/calibration").await?;
            calibration(&found, ui)
        }
        MigrationCommand::Watch { migration, timeout } => {
            let migration = find(&migration, client).await?;
            let ended = watch(migration, timeout, client, ui).await?;
            conclude(&ended, ui)
        }
        MigrationCommand::Set(args) => {
            let id = find(&args.migration, client).await?.view.id;
            let tuning = MigrationTuning {
                bandwidth: args.bandwidth,
                downtime: args.downtime,
                postcopy: args.postcopy,
            };
            let path = format!("/migrations/{id}/tune");
            let changed = Item::read(client.post(&path, &tuning).await?)?;
            told(&changed, "the migration was changed", ui)
        }
        MigrationCommand::Resolve(args) => resolve(args, client, ui).await,
        MigrationCommand::Cancel { migration } => {
            let id = find(&migration, client).await?.view.id;
            let answer = client
                .post(&format!("/migrations/{id}/cancel"), &json!({}))
                .await?;
            let migration: Item<MigrationView> = Item::read(answer)?;
            if !ui.is_table() {
                return ui.show(&[migration]);
            }
            ui.print(&format!(
                "{}: the migration to {} is being called off",
                migration.view.name, migration.view.target
            ))
        }
    }
}

fn calibration(found: &Item<Calibrations>, ui: &Ui) -> Result<(), Failure> {
    match ui.format {
        Format::Json | Format::Yaml => ui.value(&found.raw),
        Format::Table => ui.print(&views::calibrations(&found.view, ui)),
        Format::Name => ui.print("precopy\npostcopy"),
    }
}

fn told(migration: &Item<MigrationView>, what: &str, ui: &Ui) -> Result<(), Failure> {
    if !ui.is_table() {
        return ui.show(std::slice::from_ref(migration));
    }
    ui.print(&format!("{}: {what}", migration.view.name))
}

async fn resolve(args: ResolveArgs, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let migration = find(&args.migration, client).await?;
    let decision = if args.run_on_source {
        DoubtDecision::RunOnSource
    } else {
        DoubtDecision::EndOnSource
    };
    let confirm = match args.i_have_checked {
        Some(name) => name.to_string(),
        None => typed_name(&migration.view, decision)?,
    };
    let request = ResolveRequest { decision, confirm };
    let path = format!("/migrations/{}/resolve", migration.view.id);
    let decided = Item::read(client.post(&path, &request).await?)?;
    told(&decided, decision.as_str(), ui)
}

/// Asks for the VM's name.
fn typed_name(migration: &MigrationView, decision: DoubtDecision) -> Result<String, Failure> {
    let (name, target) = (&migration.name, &migration.target);
    let question = format!(
        "{}, whatever {target} does. Have you made sure of what runs there? Type the VM's name: ",
        decision.as_str()
    );
    let what = format!("to decide about {name} takes a confirmation");
    let refused = Problem::new(codes::CONFIRMATION_NEEDED, what)
        .field("--i-have-checked")
        .remedy(format!(
            "make sure of what runs on {target}, then add --i-have-checked {name}"
        ));
    Ok(prompt::typed_name(&question, refused)?)
}

/// By id, by the end of an id, or a VM's newest.
async fn find(text: &str, client: &Client) -> Result<Item<MigrationView>, Failure> {
    if let Ok(id) = text.parse::<MigrationId>() {
        return client.one(&format!("/migrations/{id}")).await;
    }
    let all: Vec<Item<MigrationView>> = client.all("/migrations").await?;
    if let Ok(name) = text.parse::<VmName>() {
        let of_vm = all.iter().filter(|item| item.view.name == name);
        if let Some(newest) = of_vm.max_by_key(|item| (item.view.created, item.view.id)) {
            return Ok(newest.clone());
        }
    }
    by_id(&all, text, "migration")
}

/// Follows it through its task, whose end is told at once; one without a task
/// is looked at twice a second.
async fn watch(
    migration: Item<MigrationView>,
    timeout: Option<std::time::Duration>,
    client: &Client,
    ui: &Ui,
) -> Result<Item<MigrationView>, Failure> {
    if migration.view.phase.is_final() {
        return Ok(migration);
    }
    let id = migration.view.id;
    let task = match migration.view.task {
        Some(task) => client.one::<TaskView>(&format!("/tasks/{task}")).await.ok(),
        None => None,
    };
    if let Some(task) = task {
        let label = migration.view.name.to_string();
        for settled in settle(client, ui, vec![Pending { label, task }], timeout).await? {
            settled.result?;
        }
    }
    watch_migration(client, ui, id, timeout).await
}

fn conclude(migration: &Item<MigrationView>, ui: &Ui) -> Result<(), Failure> {
    let view = &migration.view;
    if !ui.is_table() {
        ui.show(std::slice::from_ref(migration))?;
    } else if view.phase == MigrationPhase::Completed {
        ui.print(&format!("{} {}", view.name, moved(view)))?;
    }
    match (view.phase, &view.failure) {
        (MigrationPhase::Completed, _) => Ok(()),
        (_, Some(failure)) => Err(failure.problem.clone().into()),
        (MigrationPhase::Cancelled, None) => Err(Problem::new(
            codes::MIGRATION_CANCELLED,
            format!("the migration of {} was called off", view.name),
        )
        .remedy(format!("the guest goes on on {}", view.source))
        .into()),
        (phase, None) => Err(Problem::new(
            codes::MIGRATION_FAILED,
            format!("the migration of {} has ended as {phase}", view.name),
        )
        .remedy(format!("the guest goes on on {}", view.source))
        .into()),
    }
}
