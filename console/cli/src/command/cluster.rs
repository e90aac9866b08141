//! `godwit cluster`.

use godwit_shared::api::ClusterStatus;

use super::backup;
use crate::args::ClusterCommand;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Item, Ui};

/// `connect` is called only by what needs the coordinator.
pub(super) async fn run(
    command: ClusterCommand,
    connect: impl Fn() -> Result<Client, Failure>,
    ui: &Ui,
) -> Result<(), Failure> {
    match command {
        ClusterCommand::Status => {
            let status: Item<ClusterStatus> = connect()?.one("/cluster").await?;
            ui.show(&[status])
        }
        ClusterCommand::Backup(args) => backup::backup(&args, &connect()?, ui).await,
        ClusterCommand::Restore(args) => backup::restore(&args, ui),
    }
}
