//! The one way out: whole lines on standard output.

use std::io::{self, Write};

/// Exit code when nobody can read the console any more.
const EXIT_NO_CONSOLE: i32 = 4;

/// Writes `text` and a newline with one call, so that threads never mix lines.
pub(crate) fn line(text: &str) {
    let whole = format!("{text}\n");
    let mut out = io::stdout().lock();
    if out
        .write_all(whole.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        // A count that nobody sees proves nothing.
        std::process::exit(EXIT_NO_CONSOLE);
    }
}
