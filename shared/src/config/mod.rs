//! From TOML to checked settings.
//!
//! A daemon's file is read as raw text first (every field optional, unknown
//! fields refused with the nearest known one), and then checked into a type
//! whose values are known to be right. [`load`] is the common first half.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::model::problem::{Problem, codes};

/// Nearness (Jaro-Winkler, 0 to 1) from which a name is proposed.
const NEAR: f64 = 0.75;

/// Reads a TOML document into its raw form. `origin` is named in the problem.
pub fn parse<T: DeserializeOwned>(text: &str, origin: &str) -> Result<T, Problem> {
    let reader =
        toml::Deserializer::parse(text).map_err(|e| invalid(origin, "", &e.to_string()))?;
    serde_path_to_error::deserialize(reader).map_err(|e| {
        let path = e.path().to_string();
        let path = if path == "." { String::new() } else { path };
        invalid(origin, &path, e.inner().message())
    })
}

/// Reads a TOML file into its raw form.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Problem> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| {
        Problem::new(
            codes::CONFIG_INVALID,
            format!("`{origin}` cannot be read: {e}"),
        )
        .field("config")
        .value(&origin)
        .remedy("give the path of a readable TOML file")
    })?;
    parse(&text, &origin)
}

fn invalid(origin: &str, field: &str, what: &str) -> Problem {
    let place = if field.is_empty() {
        String::new()
    } else {
        format!(" at `{field}`")
    };
    Problem::new(
        codes::CONFIG_INVALID,
        format!("{origin}{place}: {}", what.trim()),
    )
    .field(field)
    .remedy(match nearest(what) {
        Some(name) => format!("did you mean `{name}`?"),
        None => "the annotated examples in config/ name every setting".to_owned(),
    })
}

/// The known name that is nearest to an unknown one. serde names both in its
/// message: "unknown field `prot`, expected one of `port`, `path`".
fn nearest(what: &str) -> Option<&str> {
    let mut quoted = what.strip_prefix("unknown ")?.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    quoted
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .filter(|(nearness, _)| *nearness >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(serde::Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    struct Raw {
        #[allow(dead_code)]
        port: Option<u16>,
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let problem = parse::<Raw>("port = 99999", "node.toml").unwrap_err();
        assert_eq!(problem.field.as_deref(), Some("port"));
        assert!(
            problem.message.starts_with("node.toml at `port`"),
            "{problem}"
        );
        let problem = parse::<Raw>("prot = 1", "node.toml").unwrap_err();
        assert!(problem.message.contains("prot"), "{problem}");
        assert_eq!(problem.remedy.as_deref(), Some("did you mean `port`?"));
        let problem = parse::<Raw>("zzz = 1", "node.toml").unwrap_err();
        assert!(problem.remedy.unwrap().contains("config/"));
        assert_eq!(
            parse::<Raw>("= 1", "x").unwrap_err().code,
            codes::CONFIG_INVALID
        );
    }
}
