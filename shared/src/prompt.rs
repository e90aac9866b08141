//! Asking a person for a name, before what can harm a guest or a cluster.

use std::io::{self, IsTerminal as _, Write as _};

use crate::model::Problem;

/// What a person at a terminal types; without one, `otherwise`. Blocks.
///
/// # Errors
/// `otherwise`, or an internal one when the terminal fails.
pub fn typed_name(question: &str, otherwise: Problem) -> Result<String, Problem> {
    if !io::stdin().is_terminal() {
        return Err(otherwise);
    }
    let mut error = io::stderr().lock();
    let mut line = String::new();
    write!(error, "{question}")
        .and_then(|()| error.flush())
        .and_then(|()| io::stdin().read_line(&mut line))
        .map_err(|error| Problem::internal(format!("the terminal: {error}")))?;
    Ok(line.trim().to_owned())
}
