//! `godwit-coordinator`: the control plane of a Godwit cluster.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use godwit_coordinator::backup::restore::Restore;
use godwit_coordinator::cli::{Cli, Command, RestoreArgs, RunArgs};
use godwit_coordinator::config::{Config, StoreSettings};
use godwit_coordinator::{app, logging};
use godwit_shared::model::{Problem, codes};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = cli.log.clone();
    let result = match &cli.command {
        Command::Run(args) => run(args, log),
        Command::Restore(args) => restore(args, log),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            report(&problem);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &RunArgs, log: Option<String>) -> Result<(), Problem> {
    let config = Config::load(args.config.as_deref(), args.overrides(log))?;
    logging::LogControl::start()?.set(&config.log)?;
    actix::System::new().block_on(app::run(config))
}

fn restore(args: &RestoreArgs, log: Option<String>) -> Result<(), Problem> {
    let config = Config::load(args.config.as_deref(), args.overrides(log))?;
    if config.store != StoreSettings::Embedded {
        return Err(in_etcd());
    }
    let preparing = Restore::prepare(&args.file, &config.state_dir);
    let restore = actix::System::new().block_on(preparing)?;
    say(&restore.describe());
    restore.confirm(args.i_have_checked.as_deref())?;
    let done = restore.carry_out()?;
    if let Some(aside) = done.aside {
        say(&format!("the former store is {}", aside.display()));
    }
    say("restored; start the coordinator now");
    Ok(())
}

fn in_etcd() -> Problem {
    Problem::new(codes::STATE_CONFLICT, "the store of these settings is in etcd")
        .field("store.kind")
        .value("etcd")
        .remedy("restore etcd's own snapshot (`etcdctl snapshot restore`); this command restores the embedded store")
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The problem and all that came with it, for people, on stderr.
fn report(problem: &Problem) {
    let mut stderr = std::io::stderr().lock();
    for problem in std::iter::once(problem).chain(&problem.also) {
        let _ = writeln!(stderr, "error[{}]: {}", problem.code, problem.message);
        for (what, text) in [("field", &problem.field), ("value", &problem.value)] {
            if let Some(text) = text {
                let _ = writeln!(stderr, "  {what}: {text}");
            }
        }
        if let Some(remedy) = &problem.remedy {
            let _ = writeln!(stderr, "  remedy: {remedy}");
        }
    }
}
