//! From a document to a [`VmSpec`], with every problem of it.
//!
//! The text becomes a JSON value first. Unknown fields are then found against
//! the JSON Schema that the types themselves print, so that all of them are
//! reported, each with its path and the nearest field that does exist. Only a
//! document without unknown fields is turned into the type, and only then are
//! the values checked against each other.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::VmSpec;
use crate::model::problem::{Problem, codes};

/// Largest document that is looked at, in bytes.
const MAX_DOCUMENT: usize = 256 * 1024;

/// Nearness (Jaro-Winkler, 0 to 1) from which a field is proposed.
const NEAR: f64 = 0.75;

/// The language of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecFormat {
    /// YAML 1.1, and with it JSON.
    Yaml,
    /// TOML 1.0.
    Toml,
}

impl SpecFormat {
    /// By a file's ending: `.toml` is TOML, everything else YAML.
    pub fn of_path(path: &std::path::Path) -> Self {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("toml") => Self::Toml,
            _ => Self::Yaml,
        }
    }
}

impl VmSpec {
    /// Reads a document and checks it. A refusal holds the first problem, and
    /// the others in [`Problem::also`].
    pub fn parse(text: &str, format: SpecFormat) -> Result<Self, Problem> {
        if text.len() > MAX_DOCUMENT {
            return Err(Problem::new(
                codes::SPEC_SYNTAX,
                format!(
                    "the document has {} bytes, more than {MAX_DOCUMENT}",
                    text.len()
                ),
            )
            .remedy("give one VM's spec"));
        }
        let value = match format {
            SpecFormat::Yaml => serde_norway::from_str::<Value>(text).map_err(|e| syntax(&e)),
            SpecFormat::Toml => toml::from_str::<Value>(text).map_err(|e| syntax(&e)),
        }?;
        Self::from_value(value)
    }

    /// Reads a document that is JSON already.
    pub fn from_value(value: Value) -> Result<Self, Problem> {
        if !value.is_object() {
            return Err(
                Problem::new(codes::SPEC_SYNTAX, "a spec is a mapping of fields")
                    .remedy("begin with `name:`; `godwit schema vm` prints every field"),
            );
        }
        let mut unknown = Vec::new();
        find_unknown(&value, &SCHEMA, "", &mut unknown);
        Problem::refuse(unknown)?;
        let spec: Self = serde_path_to_error::deserialize(value).map_err(|e| {
            let path = e.path().to_string();
            let field = if path == "." { String::new() } else { path };
            let inner = e.into_inner().to_string();
            let message = if field.is_empty() {
                inner
            } else {
                format!("`{field}` cannot be read: {inner}")
            };
            Problem::new(codes::SPEC_INVALID, message)
                .field(field)
                .remedy("`godwit schema vm` prints what the field takes")
        })?;
        Problem::refuse(spec.problems())?;
        Ok(spec)
    }
}

/// The JSON Schema of a VM spec.
pub fn json_schema() -> Value {
    SCHEMA.clone()
}

static SCHEMA: LazyLock<Value> = LazyLock::new(|| schemars::schema_for!(VmSpec).to_value());

fn syntax(error: &dyn std::error::Error) -> Problem {
    Problem::new(
        codes::SPEC_SYNTAX,
        format!("the document cannot be read: {error}"),
    )
    .remedy("correct the syntax at that place")
}

/// Follows a `$ref` into the schema's own definitions.
fn resolve(schema: &Value) -> &Value {
    let name = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|r| r.strip_prefix("#/$defs/"));
    name.and_then(|name| SCHEMA.get("$defs")?.get(name))
        .unwrap_or(schema)
}

fn find_unknown(value: &Value, schema: &Value, path: &str, found: &mut Vec<Problem>) {
    let schema = resolve(schema);
    match value {
        Value::Object(fields) => {
            if let Some(known) = schema.get("properties").and_then(Value::as_object) {
                for (name, inner) in fields {
                    let path = if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}.{name}")
                    };
                    match known.get(name) {
                        Some(schema) => find_unknown(inner, schema, &path, found),
                        None => found.push(unknown_field(name, path, known)),
                    }
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    find_unknown(item, schema, &format!("{path}[{index}]"), found);
                }
            }
        }
        _ => {}
    }
}

fn unknown_field(name: &str, path: String, known: &Map<String, Value>) -> Problem {
    let nearest = known
        .keys()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(nearness, _)| *nearness >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let remedy = if let Some((_, candidate)) = nearest {
        format!("did you mean `{candidate}`?")
    } else {
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        format!("the fields here are {}", names.join(", "))
    };
    Problem::new(
        codes::SPEC_UNKNOWN_FIELD,
        format!("there is no field `{path}`"),
    )
    .field(path)
    .value(name)
    .remedy(remedy)
}
