//! `godwit task`.

use godwit_shared::api::TaskView;
use godwit_shared::model::TaskId;
use serde_json::json;

use super::by_id;
use super::lifecycle::finish;
use crate::args::{TaskCommand, WaitArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Item, Ui};

pub(super) async fn run(command: TaskCommand, client: &Client, ui: &Ui) -> Result<(), Failure> {
    match command {
        TaskCommand::List { running } => {
            let mut tasks: Vec<Item<TaskView>> = client.all("/tasks").await?;
            tasks.retain(|task| !running || !task.view.state.is_final());
            ui.list(&tasks)
        }
        TaskCommand::Show { task } => ui.show(&[find(&task, client).await?]),
        TaskCommand::Watch { task, timeout } => {
            let task = find(&task, client).await?;
            let label = match &task.view.name {
                Some(name) => name.to_string(),
                None => task.view.kind.clone(),
            };
            let wait = WaitArgs {
                timeout,
                ..WaitArgs::default()
            };
            finish(
                vec![(label, Ok(task.raw))],
                &wait,
                client,
                ui,
                async |task| format!("{}: {}", task.kind, task.state.as_str()),
            )
            .await
        }
        TaskCommand::Cancel { task } => {
            let id = find(&task, client).await?.view.id;
            let answer = client
                .post(&format!("/tasks/{id}/cancel"), &json!({}))
                .await?;
            let task: Item<TaskView> = Item::read(answer)?;
            if !ui.is_table() {
                return ui.show(&[task]);
            }
            ui.print(&format!(
                "{} {}: {}",
                task.view.kind,
                task.view.id,
                task.view.state.as_str()
            ))
        }
    }
}

/// By id, or by the end of one.
async fn find(text: &str, client: &Client) -> Result<Item<TaskView>, Failure> {
    if let Ok(id) = text.parse::<TaskId>() {
        return client.one(&format!("/tasks/{id}")).await;
    }
    by_id(&client.all("/tasks").await?, text, "task")
}
