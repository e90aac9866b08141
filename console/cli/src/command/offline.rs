//! What needs no cluster: schemas, completion scripts, man pages.

use std::path::Path;

use clap::CommandFactory as _;
use godwit_shared::model::spec::json_schema;
use godwit_shared::model::{Problem, codes};

use crate::args::{Cli, Format, SchemaCommand};
use crate::failure::Failure;
use crate::output::Ui;

/// Prints a JSON Schema; as YAML if asked.
pub(super) fn schema(what: &SchemaCommand, ui: &Ui) -> Result<(), Failure> {
    let SchemaCommand::Vm = what;
    let ui = Ui {
        format: if ui.format == Format::Yaml {
            Format::Yaml
        } else {
            Format::Json
        },
        ..ui.clone()
    };
    ui.value(&json_schema())
}

/// Prints a completion script.
pub(super) fn completion(shell: clap_complete::Shell, ui: &Ui) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "godwit", &mut script);
    ui.print(&String::from_utf8_lossy(&script))
}

/// Writes a man page for every command into `dir`.
pub(super) fn man(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .map_err(|e| {
            Problem::new(
                codes::HOST_IO,
                format!("cannot write man pages to {}: {e}", dir.display()),
            )
            .value(dir.display().to_string())
            .remedy("name a folder that may be written to")
            .into()
        })
}
