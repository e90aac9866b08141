//! A problem on stderr: for people as a short paragraph, for programs as JSON.

use std::fmt::Write as _;

use godwit_shared::model::Problem;

use super::Ui;
use crate::args::Format;

/// The text of a problem in the chosen format; JSON is one line a problem.
pub(crate) fn render(problem: &Problem, ui: &Ui) -> String {
    if ui.format == Format::Json
        && let Ok(line) = serde_json::to_string(problem)
    {
        return line;
    }
    let mut text = String::new();
    paragraph(problem, "error", 0, ui.colour_err, &mut text);
    text
}

/// `word[code]: message` and, below it, where, what and the way out.
pub(crate) fn paragraph(
    problem: &Problem,
    word: &str,
    depth: usize,
    colour: bool,
    to: &mut String,
) {
    let indent = "  ".repeat(depth);
    let (red, plain) = if colour {
        ("\x1b[1;31m", "\x1b[0m")
    } else {
        ("", "")
    };
    let message = clean(&problem.message).replace('\n', &format!("\n{indent}  "));
    let _ = writeln!(
        to,
        "{indent}{red}{word}[{}]{plain}: {message}",
        clean(&problem.code)
    );
    for (name, value) in [
        ("field", &problem.field),
        ("value", &problem.value),
        ("remedy", &problem.remedy),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            let name = format!("{name}:");
            let _ = writeln!(to, "{indent}  {name:<8}{}", clean(value));
        }
    }
    for also in &problem.also {
        paragraph(also, "also", depth + 1, colour, to);
    }
}

/// Text from elsewhere without control characters: a guest's or a file's bytes
/// must not steer the operator's terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}
