//! Asking for a name, before what can harm a guest.

use std::io::{IsTerminal as _, Write as _};

use godwit_shared::model::Problem;

use crate::failure::Failure;

/// What a person at a terminal types; without one, `otherwise`.
pub(super) fn typed_name(question: &str, otherwise: Problem) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(otherwise.into());
    }
    let mut error = std::io::stderr().lock();
    let mut line = String::new();
    write!(error, "{question}")
        .and_then(|()| error.flush())
        .and_then(|()| std::io::stdin().read_line(&mut line))
        .map_err(|error| Problem::internal(format!("the terminal: {error}")))?;
    Ok(line.trim().to_owned())
}
