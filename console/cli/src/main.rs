//! The `godwit` command: what operators type.
//!
//! It knows the cluster through the REST interface alone
//! ([`godwit_shared::api`]). A run is: read the arguments ([`args`]), find the
//! credential ([`credential`]), make one or a few calls ([`client`]), and print
//! the answer ([`output`]); long actions are waited for in [`progress`].
//!
//! Invariants:
//! * Results go to stdout, everything else (notes, progress, problems) to
//!   stderr, so that a pipe never has to be cleaned.
//! * JSON and YAML are the API's own objects, field for field.
//! * Every failure is a [`godwit_shared::model::Problem`] with a remedy, and an
//!   exit code that follows from it ([`failure::Exit`]).
//! * One thread runs everything (a list must be there within milliseconds); the
//!   console's input is the one exception, because reading a terminal blocks.

mod args;
mod client;
mod command;
mod credential;
mod failure;
mod output;
mod progress;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let ui = output::Ui::from_environment(&cli.global);
    match command::run(cli, &ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(&ui);
            failure.exit().into()
        }
    }
}
