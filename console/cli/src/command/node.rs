//! `godwit node`.

use std::time::Duration;

use godwit_shared::api::{AbsentRequest, NodeView, TokenRequest, TokenView};
use godwit_shared::model::{Millis, NodeId, Problem, codes};
use godwit_shared::prompt;
use serde_json::json;

use super::marks;
use super::plan;
use crate::args::{Format, NodeCommand};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Item, Ui, human};

pub(super) async fn run(command: NodeCommand, client: &Client, ui: &Ui) -> Result<(), Failure> {
    match command {
        NodeCommand::List => ui.list::<NodeView>(&client.all("/nodes").await?),
        NodeCommand::Show { nodes } => show(&nodes, client, ui).await,
        NodeCommand::Token { valid } => token(valid, client, ui).await,
        NodeCommand::Cordon { nodes } => mark(&nodes, "cordon", client, ui).await,
        NodeCommand::Uncordon { nodes } => mark(&nodes, "uncordon", client, ui).await,
        NodeCommand::Drain(args) => plan::drain(args, client, ui).await,
        NodeCommand::Return(args) => plan::bring_back(args, client, ui).await,
        NodeCommand::Taint(args) => marks::taint(args, client, ui).await,
        NodeCommand::Untaint(args) => marks::untaint(args, client, ui).await,
        NodeCommand::Label(args) => marks::label(args, client, ui).await,
        NodeCommand::Absent {
            node,
            i_have_checked,
        } => absent(&node, i_have_checked, client, ui).await,
        NodeCommand::Remove { nodes } => remove(&nodes, client, ui).await,
    }
}

async fn show(nodes: &[NodeId], client: &Client, ui: &Ui) -> Result<(), Failure> {
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for node in nodes {
        match client.one::<NodeView>(&format!("/nodes/{node}")).await {
            Ok(view) => found.push(view),
            Err(failure) => failures.push(failure),
        }
    }
    if !found.is_empty() {
        ui.show(&found)?;
    }
    Failure::several(failures)
}

async fn token(valid: Option<Duration>, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let request = TokenRequest {
        valid: valid.map(Millis::from),
    };
    let token: Item<TokenView> = Item::read(client.post("/tokens", &request).await?)?;
    if matches!(ui.format, Format::Json | Format::Yaml) {
        return ui.value(&token.raw);
    }
    ui.print(&token.view.token)?;
    let left = ui.now.until(token.view.expires);
    ui.note(&format!(
        "good once, for {}; on the new host: godwit-node join TOKEN",
        human::span(left)
    ));
    Ok(())
}

/// Cordons or uncordons.
async fn mark(nodes: &[NodeId], verb: &str, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for node in nodes {
        let answer = client
            .post(&format!("/nodes/{node}/{verb}"), &json!({}))
            .await;
        match answer.and_then(Item::<NodeView>::read) {
            Ok(view) => done.push(view),
            Err(failure) => failures.push(failure),
        }
    }
    if ui.is_table() {
        for node in &done {
            ui.print(&format!("{} {verb}ed", node.view.name))?;
        }
    } else if !done.is_empty() {
        ui.show(&done)?;
    }
    Failure::several(failures)
}

/// After a restore: nothing runs there.
async fn absent(
    node: &NodeId,
    checked: Option<NodeId>,
    client: &Client,
    ui: &Ui,
) -> Result<(), Failure> {
    let confirm = match checked {
        Some(name) => name.to_string(),
        None => typed_node(node)?,
    };
    let path = format!("/nodes/{node}/absent");
    let answer = client.post(&path, &AbsentRequest { confirm }).await?;
    let view: Item<NodeView> = Item::read(answer)?;
    if !ui.is_table() {
        return ui.show(&[view]);
    }
    ui.print(&format!("{node} is no longer waited for"))
}

fn typed_node(node: &NodeId) -> Result<String, Failure> {
    let question = format!("Have you made sure that no VM runs on {node}? Type the node's name: ");
    let what = format!("to count on {node} to run nothing takes a confirmation");
    let refused = Problem::new(codes::CONFIRMATION_NEEDED, what)
        .field("--i-have-checked")
        .remedy(format!(
            "make sure that no VM runs there, then add --i-have-checked {node}"
        ));
    Ok(prompt::typed_name(&question, refused)?)
}

async fn remove(nodes: &[NodeId], client: &Client, ui: &Ui) -> Result<(), Failure> {
    let mut failures = Vec::new();
    for node in nodes {
        match client.delete(&format!("/nodes/{node}")).await {
            Ok(_) if ui.is_table() => ui.print(&format!("{node} removed"))?,
            Ok(_) if ui.format == Format::Name => ui.print(node.as_str())?,
            Ok(_) => {}
            Err(failure) => failures.push(failure),
        }
    }
    Failure::several(failures)
}
