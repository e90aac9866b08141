//! `godwit-node`: see [`godwit_node`].

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use godwit_node::cli::{Cli, Command, JoinArgs, RunArgs};
use godwit_node::config::NodeConfig;
use godwit_node::host::{HostDescription, NodePaths};
use godwit_node::join::Join;
use godwit_node::logging::LogControl;
use godwit_node::{app, facts, guard};
use godwit_shared::model::Problem;
use godwit_shared::transport::TransportRuntime;

fn main() -> ExitCode {
    // Wrong usage ends here, with exit code 2.
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => run(&args, cli.log),
        Command::Join(args) => join(&args, cli.log),
        Command::Guard(args) => guard::run(&args.run_dir, args.watchdog.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            tell(&problem);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &RunArgs, log: Option<String>) -> Result<(), Problem> {
    let config = NodeConfig::load(args.config.as_deref(), args.overrides(log))?;
    LogControl::start()?.set_filter(&config.log)?;
    let system = actix::System::new();
    system.block_on(app::run(config))
}

fn join(args: &JoinArgs, log: Option<String>) -> Result<(), Problem> {
    let config = NodeConfig::load(None, args.overrides(log.or_else(|| Some("warn".into()))))?;
    LogControl::start()?.set_filter(&config.log)?;
    let name = match config.name {
        Some(name) => name,
        None => facts::default_name(&HostDescription::read()?.hostname)?,
    };
    let paths = NodePaths {
        state_dir: config.state_dir,
        run_dir: config.run_dir,
    };
    let join = Join {
        token: &args.token,
        name,
        address: config.address,
        paths: &paths,
        force: args.force,
    };
    let transport = TransportRuntime::start(1).map_err(Problem::internal)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Problem::internal)?;
    let joined = runtime.block_on(join.run(&transport))?;
    let (node, cluster) = (&joined.me.node, &joined.cluster);
    // A closed standard output is no reason to fail.
    let _ = writeln!(
        std::io::stdout(),
        "Node `{node}` has joined cluster `{cluster}`. Start it with `godwit-node run`."
    );
    Ok(())
}

/// Prints a problem and those found with it, once, for people.
fn tell(problem: &Problem) {
    let mut err = std::io::stderr().lock();
    for problem in std::iter::once(problem).chain(&problem.also) {
        let _ = writeln!(err, "error[{}]: {}", problem.code, problem.message);
        for (what, text) in [("field", &problem.field), ("value", &problem.value)] {
            if let Some(text) = text {
                let _ = writeln!(err, "  {what}: {text}");
            }
        }
        if let Some(remedy) = &problem.remedy {
            let _ = writeln!(err, "  help: {remedy}");
        }
    }
}
