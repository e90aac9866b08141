//! `godwit placement`: what if, and what placement prefers.

use godwit_shared::api::{AddedNode, ProfileView, SimulateRequest, SimulationView};
use godwit_shared::model::spec::SpecFormat;
use godwit_shared::model::{NodeId, Problem, VmSpec, codes};
use serde::Deserialize as _;
use serde_json::Value;

use super::create::{about_file, read_text, unreadable};
use crate::args::{Format, PlacementCommand, SimulateArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Item, Ui, views};

pub(super) async fn run(
    command: PlacementCommand,
    connect: impl Fn() -> Result<Client, Failure>,
    ui: &Ui,
) -> Result<(), Failure> {
    match command {
        PlacementCommand::Simulate(args) => simulate(&args, connect, ui).await,
        PlacementCommand::Profiles => {
            ui.list::<ProfileView>(&connect()?.all("/placement/profiles").await?)
        }
    }
}

async fn simulate(
    args: &SimulateArgs,
    connect: impl Fn() -> Result<Client, Failure>,
    ui: &Ui,
) -> Result<(), Failure> {
    let request = request(args)?;
    let answer = connect()?.post("/placement/simulate", &request).await?;
    let found: Item<SimulationView> = Item::read(answer)?;
    match ui.format {
        Format::Json | Format::Yaml => ui.value(&found.raw)?,
        Format::Name => {
            for placed in &found.view.placed {
                ui.print(&format!("{} {}", placed.vm, placed.node))?;
            }
        }
        Format::Table => ui.print(&views::simulation(&found.view, ui))?,
    }
    match found.view.unplaced.len() {
        0 => Ok(()),
        number => Err(does_not_fit(number).into()),
    }
}

fn does_not_fit(number: usize) -> Problem {
    let message = match number {
        1 => "1 VM would not fit".to_owned(),
        number => format!("{number} VMs would not fit"),
    };
    Problem::new(codes::NO_NODE_FITS, message).remedy("try it with more nodes: --add-like NODE=1")
}

fn request(args: &SimulateArgs) -> Result<SimulateRequest, Failure> {
    let mut request = SimulateRequest {
        lost: args.lose.clone(),
        room_for: args.room_for,
        ..SimulateRequest::default()
    };
    for path in &args.file {
        let (text, shown) = read_text(path)?;
        let specs = specs(&text, SpecFormat::of_path(path));
        let specs = specs.map_err(|problem| about_file(problem, &shown))?;
        request.vms.extend(specs);
    }
    for like in &args.add_like {
        for number in 1..=like.count {
            request.added.push(AddedNode {
                name: added_name(&like.node, number)?,
                like: Some(like.node.clone()),
                facts: None,
            });
        }
    }
    for path in &args.add {
        let (text, shown) = read_text(path)?;
        let added = added(&text).map_err(|error| unreadable(&shown, &error))?;
        request.added.push(added);
    }
    Ok(request)
}

/// `node-1-like-2`, cut where a name would be too long.
fn added_name(like: &NodeId, number: u32) -> Result<NodeId, Problem> {
    let tail = format!("-like-{number}");
    let room = 63 - tail.len();
    let head: String = like.as_str().chars().take(room).collect();
    format!("{}{tail}", head.trim_end_matches('-')).parse()
}

/// A node as `node show -o json` prints it, or as the API takes it.
fn added(text: &str) -> Result<AddedNode, std::io::Error> {
    let wrong = |error: serde_norway::Error| {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string())
    };
    let mut value: Value = serde_norway::from_str(text).map_err(wrong)?;
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| matches!(name.as_str(), "name" | "like" | "facts"));
    }
    serde_json::from_value(value)
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}

/// One spec, a list of them, or several documents.
fn specs(text: &str, format: SpecFormat) -> Result<Vec<VmSpec>, Problem> {
    let values = match format {
        SpecFormat::Toml => toml_values(text)?,
        SpecFormat::Yaml => yaml_values(text)?,
    };
    let (mut specs, mut found) = (Vec::new(), Vec::new());
    for value in values {
        match VmSpec::from_value(value) {
            Ok(spec) => specs.push(spec),
            Err(problem) => found.push(problem),
        }
    }
    Problem::refuse(found).map(|()| specs)
}

fn syntax(error: impl std::fmt::Display) -> Problem {
    Problem::new(codes::SPEC_SYNTAX, format!("it cannot be read: {error}"))
        .remedy("give one VM's spec, a list of them, or several YAML documents")
}

/// JSON is YAML too.
fn yaml_values(text: &str) -> Result<Vec<Value>, Problem> {
    let mut values = Vec::new();
    for document in serde_norway::Deserializer::from_str(text) {
        match Value::deserialize(document).map_err(syntax)? {
            Value::Array(list) => values.extend(list),
            Value::Null => {}
            one => values.push(one),
        }
    }
    Ok(values)
}

fn toml_values(text: &str) -> Result<Vec<Value>, Problem> {
    let mut value: Value = toml::from_str(text).map_err(syntax)?;
    match value.get_mut("vms").map(Value::take) {
        Some(Value::Array(list)) => Ok(list),
        _ => Ok(vec![value]),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(text: &str, format: SpecFormat) -> Vec<String> {
        let specs = specs(text, format).unwrap();
        specs.iter().map(|spec| spec.name.to_string()).collect()
    }

    #[test]
    fn a_file_has_one_vm_or_several() {
        for (text, count) in [
            ("name: a\nmemory: 64\n", 1),
            ("- {name: a, memory: 64}\n- {name: b, memory: 64}\n", 2),
            ("name: a\nmemory: 64\n---\nname: b\nmemory: 64\n", 2),
            ("[{\"name\": \"a\", \"memory\": 64}]", 1),
        ] {
            assert_eq!(names(text, SpecFormat::Yaml).len(), count, "{text}");
        }
        let toml = "[[vms]]\nname = \"a\"\nmemory = 64\n[[vms]]\nname = \"b\"\nmemory = \"1GiB\"\n";
        assert_eq!(names(toml, SpecFormat::Toml), ["a", "b"]);
        assert_eq!(
            names("name = \"a\"\nmemory = 64\n", SpecFormat::Toml),
            ["a"]
        );
    }

    #[test]
    fn every_vm_of_a_file_is_checked() {
        let text = "- {name: A, memory: 64}\n- {name: b, memory: 64, cpus: 2}\n";
        let problem = specs(text, SpecFormat::Yaml).unwrap_err();
        assert_eq!(problem.also.len(), 1, "{problem:?}");
    }

    #[test]
    fn added_nodes_get_names_of_their_own() {
        let like: NodeId = "node-1".parse().unwrap();
        assert_eq!(added_name(&like, 2).unwrap().as_str(), "node-1-like-2");
        let long: NodeId = "a".repeat(63).parse().unwrap();
        assert_eq!(added_name(&long, 10).unwrap().as_str().len(), 63);
    }
}
