//! `godwit cluster`.

use godwit_shared::api::ClusterStatus;

use crate::args::ClusterCommand;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Item, Ui};

pub(super) async fn run(command: ClusterCommand, client: &Client, ui: &Ui) -> Result<(), Failure> {
    match command {
        ClusterCommand::Status => {
            let status: Item<ClusterStatus> = client.one("/cluster").await?;
            ui.show(&[status])
        }
    }
}
