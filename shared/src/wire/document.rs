//! Documents inside frames.
//!
//! A frame's layout is fixed by the protocol version, but a VM spec or a node's
//! facts grow with every release. They travel as JSON text, so that a daemon
//! of the previous version can read what it knows of them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::problem::{Problem, codes};

/// One value as JSON text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Document(String);

impl Document {
    /// The value as a document.
    pub fn of<T: Serialize>(value: &T) -> Result<Self, Problem> {
        serde_json::to_string(value)
            .map(Self)
            .map_err(Problem::internal)
    }

    /// Reads the value back. `what` names it in the problem.
    pub fn read<T: DeserializeOwned>(&self, what: &str) -> Result<T, Problem> {
        let mut reader = serde_json::Deserializer::from_str(&self.0);
        serde_path_to_error::deserialize(&mut reader).map_err(|e| {
            Problem::new(
                codes::PROTOCOL,
                format!("the peer sent a {what} that cannot be read: {}", e.inner()),
            )
            .field(e.path().to_string())
            .remedy("bring both daemons to the same release")
        })
    }
}
