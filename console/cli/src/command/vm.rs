//! `godwit vm`: the way to each command, and the reading ones.

use futures_util::StreamExt as _;
use futures_util::stream;
use godwit_shared::api::{PlacementView, VmView};

use super::{console, create, lifecycle, logs, migrate};
use crate::args::{Format, LabelSelector, VmCommand, VmRef};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Item, Ui, views};

/// Calls that are under way at the same time when many VMs are named.
pub(super) const AT_ONCE: usize = 16;

pub(super) async fn run(
    command: VmCommand,
    connect: impl Fn() -> Result<Client, Failure>,
    ui: &Ui,
) -> Result<(), Failure> {
    use lifecycle::Verb;
    match command {
        VmCommand::Create(args) => create::create(*args, connect, ui).await,
        VmCommand::Place(args) => create::place(*args, connect, ui).await,
        VmCommand::List { selector } => list(&selector, &connect()?, ui).await,
        VmCommand::Show { explain, vms } => show(&vms, explain, &connect()?, ui).await,
        VmCommand::Start(args) => lifecycle::start(args, &connect()?, ui).await,
        VmCommand::Shutdown(args) => lifecycle::run(Verb::Shutdown, args, &connect()?, ui).await,
        VmCommand::Reboot(args) => lifecycle::run(Verb::Reboot, args, &connect()?, ui).await,
        VmCommand::Reset(args) => lifecycle::run(Verb::Reset, args, &connect()?, ui).await,
        VmCommand::Stop(args) => lifecycle::run(Verb::Stop, args, &connect()?, ui).await,
        VmCommand::Pause(args) => lifecycle::run(Verb::Pause, args, &connect()?, ui).await,
        VmCommand::Resume(args) => lifecycle::run(Verb::Resume, args, &connect()?, ui).await,
        VmCommand::Delete(args) => lifecycle::run(Verb::Delete, args, &connect()?, ui).await,
        VmCommand::Console { vm, scrollback } => {
            console::run(&vm, scrollback * 1024, &connect()?, ui).await
        }
        VmCommand::Logs(args) => logs::run(args, &connect()?, ui).await,
        VmCommand::Migrate(args) => migrate::run(args, &connect()?, ui).await,
    }
}

async fn list(selector: &[LabelSelector], client: &Client, ui: &Ui) -> Result<(), Failure> {
    let mut vms: Vec<Item<VmView>> = client.all("/vms").await?;
    vms.retain(|vm| selector.iter().all(|s| s.admits(&vm.view.spec.labels)));
    ui.list(&vms)
}

async fn show(vms: &[VmRef], explain: bool, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let answers: Vec<_> = stream::iter(vms)
        .map(async |vm| client.one::<VmView>(&format!("/vms/{vm}")).await)
        .buffered(AT_ONCE)
        .collect()
        .await;
    let (mut found, mut failures) = split(answers);
    if explain {
        failures.extend(explain_each(&mut found, client, ui).await);
    } else if !found.is_empty() {
        ui.show(&found)?;
    }
    Failure::several(failures)
}

/// Shows each VM with what placement says of every node for it. As JSON and YAML
/// that is one field more.
async fn explain_each(vms: &mut [Item<VmView>], client: &Client, ui: &Ui) -> Vec<Failure> {
    let mut failures = Vec::new();
    for vm in vms {
        let path = format!("/vms/{}/placement", vm.view.id);
        match client.one::<PlacementView>(&path).await {
            Ok(placement) => failures.extend(show_explained(vm, placement, ui).err()),
            Err(failure) => failures.push(failure),
        }
    }
    failures
}

fn show_explained(
    vm: &mut Item<VmView>,
    placement: Item<PlacementView>,
    ui: &Ui,
) -> Result<(), Failure> {
    if ui.format != Format::Table {
        vm.raw["placement"] = placement.raw;
        return ui.value(&vm.raw);
    }
    ui.show(std::slice::from_ref(vm))?;
    let explained = views::explain(&placement.view, ui);
    ui.print(&format!("\nWhere it could be now:\n{explained}"))
}

/// What succeeded and what did not, each in its order.
pub(super) fn split<T>(results: Vec<Result<T, Failure>>) -> (Vec<T>, Vec<Failure>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(item) => good.push(item),
            Err(failure) => bad.push(failure),
        }
    }
    (good, bad)
}
