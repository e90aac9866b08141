//! What each command does: a module for each noun.

mod backup;
mod cluster;
mod console;
mod create;
mod events;
mod lifecycle;
mod logs;
mod marks;
mod migrate;
mod migration;
mod node;
mod offline;
mod placement;
mod plan;
mod serial;
mod splice;
mod task;
mod vm;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use godwit_shared::model::{Problem, codes};

use crate::args::{Cli, Command};
use crate::client::Client;
use crate::credential;
use crate::failure::Failure;
use crate::output::{Item, Listed, Ui, human};

/// Runs one command.
pub(crate) fn run(cli: Cli, ui: &Ui) -> Result<(), Failure> {
    match &cli.command {
        Command::Schema(what) => return offline::schema(what, ui),
        Command::Completion { shell } => return offline::completion(*shell, ui),
        Command::Man { dir } => return offline::man(dir),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::from(Problem::internal(e)))?;
    let result = runtime.block_on(online(cli, ui));
    // Threads that read a terminal or look up a name may never end.
    runtime.shutdown_background();
    result
}

async fn online(cli: Cli, ui: &Ui) -> Result<(), Failure> {
    let copy = Arc::new(AtomicBool::new(false));
    let result = carry_out(cli, ui, &copy).await;
    if copy.load(Ordering::Relaxed) {
        ui.note("no coordinator leads now: this is what the records hold, and nodes' states are not known");
    }
    result
}

async fn carry_out(cli: Cli, ui: &Ui, copy: &Arc<AtomicBool>) -> Result<(), Failure> {
    let connect = || Client::new(&credential::find(&cli.global)?, Arc::clone(copy));
    match cli.command {
        Command::Cluster(command) => cluster::run(command, connect, ui).await,
        Command::Node(command) => node::run(command, &connect()?, ui).await,
        Command::Vm(command) => vm::run(command, connect, ui).await,
        Command::Placement(command) => placement::run(command, connect, ui).await,
        Command::Migration(command) => migration::run(command, &connect()?, ui).await,
        Command::Plan(command) => plan::run(command, &connect()?, ui).await,
        Command::Rebalance(args) => plan::rebalance(args, &connect()?, ui).await,
        Command::Task(command) => task::run(command, &connect()?, ui).await,
        Command::Events(args) => events::run(&args, &connect()?, ui).await,
        Command::Schema(_) | Command::Completion { .. } | Command::Man { .. } => Ok(()),
    }
}

/// The one item whose id is `text`, or ends in it.
fn by_id<T: Listed + Clone>(items: &[Item<T>], text: &str, kind: &str) -> Result<Item<T>, Failure> {
    let wanted = text.to_ascii_lowercase();
    let usable = wanted.len() >= 4 && wanted.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    let found: Vec<&Item<T>> = items
        .iter()
        .filter(|item| usable && item.view.name().ends_with(&wanted))
        .collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Problem::not_found(kind, text).into()),
        several => {
            let ids: Vec<String> = several.iter().map(|item| item.view.name()).collect();
            Err(Failure::usage(
                Problem::new(
                    codes::ID_INVALID,
                    format!(
                        "{} end in `{text}`",
                        human::count(several.len() as u64, kind)
                    ),
                )
                .value(text)
                .remedy(format!("give more of the id: {}", ids.join(", "))),
            ))
        }
    }
}
