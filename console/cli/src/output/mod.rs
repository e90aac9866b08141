//! Printing: results to stdout in the chosen format, the rest to stderr.
//!
//! [`Ui`] is read once from the arguments and the environment, so that every
//! rendering below it is a pure function of data, width, colour and time, and
//! can be tested as such.

pub(crate) mod human;
pub(crate) mod problem;
pub(crate) mod table;
pub(crate) mod views;

use std::io::{self, IsTerminal as _, Write as _};

use godwit_shared::model::{Problem, UnixMillis, codes};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::args::{Format, Global, When};
use crate::failure::Failure;

pub(crate) use views::{Listed, Shown};

/// How and where to print.
#[derive(Debug, Clone)]
pub(crate) struct Ui {
    /// The format of results.
    pub(crate) format: Format,
    /// Colours on stdout.
    pub(crate) colour: bool,
    /// Colours on stderr.
    pub(crate) colour_err: bool,
    /// The width of the terminal on stdout; none when it is not one.
    pub(crate) width: Option<u16>,
    /// Whether stderr is a terminal.
    pub(crate) live: bool,
    /// When this run began.
    pub(crate) now: UnixMillis,
}

impl Ui {
    /// What the arguments and the environment say.
    pub(crate) fn from_environment(global: &Global) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = |terminal: bool| match global.color {
            When::Always => true,
            When::Never => false,
            When::Auto => terminal && !no_color && !dumb,
        };
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            format: global.output,
            colour: colour(out),
            colour_err: colour(err),
            width: out.then(terminal_width).flatten(),
            live: err && !dumb,
            now: UnixMillis::now(),
        }
    }

    /// Whether results are for people.
    pub(crate) fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    /// Whether stderr may carry more than problems: not when a program reads
    /// JSON or YAML from us and perhaps the problems too.
    pub(crate) fn chatty(&self) -> bool {
        self.live || matches!(self.format, Format::Table | Format::Name)
    }

    /// A result, to stdout.
    #[allow(clippy::unused_self, reason = "whoever prints has to hold a `Ui`")]
    pub(crate) fn print(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        if !text.is_empty() && !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        out.flush()?;
        Ok(())
    }

    /// A remark for people, to stderr.
    pub(crate) fn note(&self, text: &str) {
        if self.chatty() {
            self.complain(text);
        }
    }

    /// A problem, to stderr. Nothing can be done where that fails.
    #[allow(clippy::unused_self, reason = "as for `print`")]
    pub(crate) fn complain(&self, text: &str) {
        let mut err = io::stderr().lock();
        let _ = writeln!(err, "{}", text.trim_end());
    }

    /// A list, in the chosen format.
    pub(crate) fn list<T: Listed>(&self, items: &[Item<T>]) -> Result<(), Failure> {
        if items.is_empty() && matches!(self.format, Format::Table | Format::Name) {
            self.note(&format!("there are no {}", T::NOUN));
            return Ok(());
        }
        match self.format {
            Format::Table => self.print(&views::list(items.iter().map(|i| &i.view), self)),
            Format::Name => {
                let names: Vec<String> = items.iter().map(|item| item.view.name()).collect();
                self.print(&names.join("\n"))
            }
            Format::Json | Format::Yaml => {
                self.value(&Value::Array(items.iter().map(|i| i.raw.clone()).collect()))
            }
        }
    }

    /// One or more things in full, in the chosen format.
    pub(crate) fn show<T: Listed + Shown>(&self, items: &[Item<T>]) -> Result<(), Failure> {
        match (self.format, items) {
            (Format::Table, _) => {
                let sheets: Vec<String> = items
                    .iter()
                    .map(|item| table::sheet(&item.view.sheet(self.now), self))
                    .collect();
                self.print(&sheets.join("\n"))
            }
            (Format::Json | Format::Yaml, [item]) => self.value(&item.raw),
            _ => self.list(items),
        }
    }

    /// A value of the API, as JSON or YAML.
    pub(crate) fn value(&self, value: &Value) -> Result<(), Failure> {
        self.print(&self.text_of(value)?)
    }

    fn text_of(&self, value: &Value) -> Result<String, Failure> {
        if self.format == Format::Yaml {
            return serde_norway::to_string(value).map_err(|e| Problem::internal(e).into());
        }
        serde_json::to_string_pretty(value).map_err(|e| Problem::internal(e).into())
    }
}

/// The terminal's width; `COLUMNS` where the terminal does not know.
fn terminal_width() -> Option<u16> {
    rustix::termios::tcgetwinsize(io::stdout())
        .ok()
        .map(|size| size.ws_col)
        .filter(|width| *width > 0)
        .or_else(|| std::env::var("COLUMNS").ok()?.parse().ok())
        .or(Some(80))
}

/// An object of the API: as it came, and as it is understood.
#[derive(Debug, Clone)]
pub(crate) struct Item<T> {
    /// As it came.
    pub(crate) raw: Value,
    /// As it is understood.
    pub(crate) view: T,
}

impl<T: DeserializeOwned> Item<T> {
    /// Reads one object.
    pub(crate) fn read(raw: Value) -> Result<Self, Failure> {
        let view = T::deserialize(&raw).map_err(|e| not_understood(&e))?;
        Ok(Self { raw, view })
    }

    /// Reads an array of objects.
    pub(crate) fn read_all(raw: Value) -> Result<Vec<Self>, Failure> {
        match raw {
            Value::Array(items) => items.into_iter().map(Self::read).collect(),
            _ => Err(not_understood(&"a list was expected")),
        }
    }
}

/// An answer that is not what the API's table says.
pub(crate) fn not_understood(why: &dyn std::fmt::Display) -> Failure {
    Problem::new(
        codes::PROTOCOL,
        format!("the coordinator's answer cannot be understood: {why}"),
    )
    .remedy("use the `godwit` of the coordinator's version; `godwit --version` prints this one's")
    .into()
}
