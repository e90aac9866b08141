//! `godwit-coordinator`: the control plane of a Godwit cluster.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use godwit_coordinator::cli::{Cli, Command, RunArgs};
use godwit_coordinator::config::Config;
use godwit_coordinator::{app, logging};
use godwit_shared::model::Problem;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let Command::Run(args) = &cli.command;
    match run(args, cli.log.clone()) {
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
