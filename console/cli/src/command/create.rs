//! `godwit vm create` and `vm place`: a spec from a file, from stdin or from
//! flags.
//!
//! The spec is checked here first, with the code that the coordinator uses, so
//! that a typing error costs no connection and is told with the file's name.

use std::io::Read as _;
use std::path::Path;

use godwit_shared::api::{CreateVm, PlacementView};
use godwit_shared::model::spec::SpecFormat;
use godwit_shared::model::{Problem, VmSpec, codes};
use serde_json::{Map, Value, json};

use super::lifecycle::{ended_early, finish};
use crate::args::{Format, PlaceArgs, SpecArgs, SpecFlags, VmCreateArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Item, Ui, views};

pub(super) async fn create(
    args: VmCreateArgs,
    connect: impl Fn() -> Result<Client, Failure>,
    ui: &Ui,
) -> Result<(), Failure> {
    let request = CreateVm {
        spec: spec(&args.spec)?,
        start: args.start,
        node: args.node,
    };
    let client = connect()?;
    let name = request.spec.name.to_string();
    let answer = client.post("/vms", &request).await;
    finish(
        vec![(name, answer)],
        &args.wait,
        &client,
        ui,
        async |task| match (&task.node, request.start) {
            (_, true) if ended_early(&task).is_some() => format!("created; it {}", task.message),
            (Some(node), true) => format!("created and started on {node}"),
            (None, true) => "created and started".to_owned(),
            (Some(node), false) => format!("created on {node}"),
            (None, false) => "created".to_owned(),
        },
    )
    .await
}

pub(super) async fn place(
    args: PlaceArgs,
    connect: impl Fn() -> Result<Client, Failure>,
    ui: &Ui,
) -> Result<(), Failure> {
    let request = CreateVm {
        spec: spec(&args.spec)?,
        start: false,
        node: args.node,
    };
    let answer = connect()?.post("/place", &request).await?;
    let placement: Item<PlacementView> = Item::read(answer)?;
    match (ui.format, &placement.view.node) {
        (Format::Json | Format::Yaml, _) => ui.value(&placement.raw)?,
        (Format::Table, _) if args.explain && !placement.view.nodes.is_empty() => {
            ui.print(&views::explain(&placement.view, ui))?;
        }
        (_, Some(node)) => ui.print(node.as_str())?,
        (_, None) => {}
    }
    match placement.view.node {
        Some(_) => Ok(()),
        None => Err(no_node_fits(&placement.view, args.explain).into()),
    }
}

fn no_node_fits(placement: &PlacementView, explained: bool) -> Problem {
    let message = match placement.nodes.len() {
        0 => "the cluster has no nodes".to_owned(),
        1 => "the one node does not fit".to_owned(),
        number => format!("none of {number} nodes fits"),
    };
    let remedy = match (placement.nodes.is_empty(), explained) {
        (true, _) => "join one: `godwit node token` tells how",
        (false, true) => "each node's remedy is above",
        (false, false) => "--explain says of every node why",
    };
    Problem::new(codes::NO_NODE_FITS, message).remedy(remedy)
}

/// The spec that the arguments mean.
fn spec(args: &SpecArgs) -> Result<VmSpec, Failure> {
    match &args.file {
        None => Ok(VmSpec::from_value(from_flags(&args.flags))?),
        Some(path) => {
            let (text, shown) = read_text(path)?;
            let file = Some(path.as_path()).filter(|_| !is_stdin(path));
            from_text(&text, file).map_err(|problem| about_file(problem, &shown).into())
        }
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// A file's text, or that of stdin, and what to call it.
pub(super) fn read_text(path: &Path) -> Result<(String, String), Failure> {
    let mut text = String::new();
    let (shown, read) = if is_stdin(path) {
        let read = std::io::stdin().read_to_string(&mut text).map(drop);
        ("stdin".to_owned(), read)
    } else {
        let read = std::fs::read_to_string(path).map(|content| text = content);
        (path.display().to_string(), read)
    };
    read.map_err(|error| unreadable(&shown, &error))?;
    Ok((text, shown))
}

/// A file's ending says what it is; stdin is YAML unless it can only be TOML.
fn from_text(text: &str, path: Option<&Path>) -> Result<VmSpec, Problem> {
    if let Some(path) = path {
        return VmSpec::parse(text, SpecFormat::of_path(path));
    }
    let as_yaml = VmSpec::parse(text, SpecFormat::Yaml);
    match &as_yaml {
        Err(problem) if problem.code == codes::SPEC_SYNTAX => {}
        _ => return as_yaml,
    }
    match VmSpec::parse(text, SpecFormat::Toml) {
        Err(problem) if problem.code == codes::SPEC_SYNTAX => as_yaml,
        as_toml => as_toml,
    }
}

pub(super) fn unreadable(what: &str, error: &std::io::Error) -> Failure {
    Failure::from(
        Problem::new(
            codes::SPEC_SYNTAX,
            format!("{what} cannot be read: {error}"),
        )
        .field("--file")
        .value(what)
        .remedy("name a text file with one VM's spec, or `-` for stdin"),
    )
}

/// Every problem of a file says which file.
pub(super) fn about_file(mut problem: Problem, file: &str) -> Problem {
    problem.message = format!("{file}: {}", problem.message);
    problem.also = problem
        .also
        .into_iter()
        .map(|also| about_file(also, file))
        .collect();
    problem
}

/// Flags as a document, so that they are checked like one.
fn from_flags(flags: &SpecFlags) -> Value {
    let mut spec = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            spec.insert(key.to_owned(), value);
        }
    };
    let mut boot = Map::new();
    for (key, value) in [
        ("kernel", &flags.kernel),
        ("initrd", &flags.initrd),
        ("cmdline", &flags.cmdline),
    ] {
        if let Some(value) = value {
            boot.insert(key.to_owned(), json!(value));
        }
    }
    let labels = |labels: &[crate::args::Label]| {
        let map: Map<String, Value> = labels
            .iter()
            .map(|label| (label.key.clone(), json!(label.value)))
            .collect();
        Value::from(map)
    };
    put("name", flags.name.as_ref().map(|name| json!(name.as_str())));
    put("memory", flags.memory.map(|memory| json!(memory.0)));
    put("labels", Some(labels(&flags.labels)));
    put(
        "architecture",
        flags.architecture.as_ref().map(|v| json!(v)),
    );
    put("machine", flags.machine.as_ref().map(|v| json!(v)));
    put("accelerator", flags.accelerator.as_ref().map(|v| json!(v)));
    put(
        "cpu",
        Some(json!({ "count": flags.cpus.unwrap_or(1), "model": flags.cpu_model })),
    );
    put("boot", Some(boot.into()));
    put(
        "disks",
        Some(flags.disks.iter().map(|disk| disk.0.clone()).collect()),
    );
    put(
        "nics",
        Some(flags.nics.iter().map(|nic| nic.0.clone()).collect()),
    );
    put("protection", flags.protected.then(|| json!("restart")));
    put("serial", Some(json!(!flags.no_serial)));
    put("agent", Some(json!(!flags.no_agent)));
    put(
        "placement",
        Some(json!({
            "node_labels": labels(&flags.node_labels),
            "spread_by": flags.spread_by,
        })),
    );
    spec.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::args::{Cli, Command, VmCommand};
    use clap::Parser as _;

    fn flags(line: &str) -> SpecArgs {
        let words = ["godwit", "vm", "create"].into_iter();
        let cli = Cli::try_parse_from(words.chain(line.split_whitespace())).unwrap();
        let Command::Vm(VmCommand::Create(args)) = cli.command else {
            unreachable!("it is `vm create`");
        };
        args.spec
    }

    #[test]
    fn flags_make_the_spec_that_a_file_would() {
        let from_flags = spec(&flags(
            "--name a --memory 2G --cpus 3 --disk /a.qcow2,shared --nic user \
             --kernel /k --cmdline quiet --label app=web --node-label zone=x --protected --no-agent",
        ))
        .unwrap();
        let document = "name: a\nmemory: 2048\ncpu: {count: 3}\ndisks: [{path: /a.qcow2, shared: true}]\n\
             nics: [{}]\nboot: {kernel: /k, cmdline: quiet}\nlabels: {app: web}\nagent: false\n\
             placement: {node_labels: {zone: x}}\nprotection: restart\n";
        assert_eq!(from_flags, from_text(document, None).unwrap());
    }

    #[test]
    fn flags_are_checked_like_a_document() {
        let failure = spec(&flags("--name a --memory 64 --disk a.qcow2")).unwrap_err();
        assert_eq!(failure.code(), Some(codes::SPEC_INVALID));
    }

    #[test]
    fn stdin_may_be_yaml_json_or_toml() {
        for text in [
            "name: a\nmemory: 64\n",
            "{\"name\": \"a\", \"memory\": 64}",
            "name = \"a\"\nmemory = 64\n",
        ] {
            assert_eq!(from_text(text, None).unwrap().name.as_str(), "a", "{text}");
        }
        let toml = from_text("name = \"a\"\nmemroy = 64\n", None).unwrap_err();
        assert_eq!(toml.code, codes::SPEC_UNKNOWN_FIELD);
        assert_eq!(
            from_text("- a\n", None).unwrap_err().code,
            codes::SPEC_SYNTAX
        );
    }
}
