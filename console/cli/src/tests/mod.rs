//! The help texts, and the documents that have to keep up with the command.
#![allow(clippy::unwrap_used)]

use clap::CommandFactory as _;
use godwit_shared::model::codes;

use crate::args::Cli;

/// Every command that is shown, with its full name.
fn commands() -> Vec<(String, clap::Command)> {
    fn walk(command: &clap::Command, name: &str, found: &mut Vec<(String, clap::Command)>) {
        found.push((name.to_owned(), command.clone()));
        for inner in command
            .get_subcommands()
            .filter(|inner| !inner.is_hide_set())
        {
            walk(inner, &format!("{name} {}", inner.get_name()), found);
        }
    }
    let mut root = Cli::command();
    root.build();
    let mut found = Vec::new();
    walk(&root, "godwit", &mut found);
    found
}

#[test]
fn the_arguments_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_help_teaches() {
    for (name, command) in commands() {
        let mut command = command
            .term_width(100)
            .bin_name(&name)
            .color(clap::ColorChoice::Never);
        let text = command.render_help().to_string();
        insta::assert_snapshot!(format!("help {name}").replace(' ', "-"), text);
    }
}

fn document(name: &str) -> String {
    let path = format!("{}/../../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_code_is_documented_and_no_other() {
    let text = document("errors.md");
    let documented: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .collect();
    let mut expected = codes::ALL.to_vec();
    let mut found = documented.clone();
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    for section in text.split("### `").skip(1) {
        assert!(section.contains("**Remedy:** "), "no remedy: {section}");
    }
}

#[test]
fn every_command_is_documented() {
    let text = document("cli.md");
    for (name, command) in commands() {
        if command.get_subcommands().next().is_none() {
            assert!(
                text.contains(&format!("`{name}")),
                "docs/cli.md lacks `{name}`"
            );
        }
        for long in command
            .get_arguments()
            .filter(|a| !a.is_global_set())
            .filter_map(|a| a.get_long())
        {
            if long != "help" && long != "version" {
                assert!(
                    text.contains(&format!("--{long}")),
                    "docs/cli.md lacks --{long} of `{name}`"
                );
            }
        }
    }
}
