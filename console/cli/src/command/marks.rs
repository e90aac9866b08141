//! `godwit node taint`, `untaint` and `label`.

use godwit_shared::api::{MarkRequest, NodeView};
use godwit_shared::model::NodeId;

use crate::args::{LabelArgs, LabelChange, TaintArgs, UntaintArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Item, Ui, views};

pub(super) async fn taint(args: TaintArgs, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let request = MarkRequest {
        taint: args.taints,
        ..MarkRequest::default()
    };
    mark(&args.node, &request, client, ui).await
}

pub(super) async fn untaint(args: UntaintArgs, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let request = MarkRequest {
        untaint: args.taints,
        ..MarkRequest::default()
    };
    mark(&args.node, &request, client, ui).await
}

pub(super) async fn label(args: LabelArgs, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let mut request = MarkRequest::default();
    for change in args.labels {
        match change {
            LabelChange::Set(label) => {
                request.label.insert(label.key, label.value);
            }
            LabelChange::Remove(key) => {
                request.unlabel.insert(key);
            }
        }
    }
    mark(&args.node, &request, client, ui).await
}

async fn mark(
    node: &NodeId,
    request: &MarkRequest,
    client: &Client,
    ui: &Ui,
) -> Result<(), Failure> {
    let answer = client
        .post(&format!("/nodes/{node}/marks"), request)
        .await?;
    let view: Item<NodeView> = Item::read(answer)?;
    if !ui.is_table() {
        return ui.show(&[view]);
    }
    let node = &view.view;
    let labels = Some(views::labels(&node.labels)).filter(|labels| !labels.is_empty());
    let absent = || "none".to_owned();
    ui.print(&format!(
        "{}: labels {}; taints {}",
        node.name,
        labels.unwrap_or_else(absent),
        views::taints(node).unwrap_or_else(absent)
    ))
}
