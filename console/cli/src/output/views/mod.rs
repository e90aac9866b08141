//! What each object of the API looks like: as a row of a list, and in full.

mod calibration;
mod cluster;
mod event;
mod migration;
mod node;
mod placement;
mod plan;
mod simulation;
mod task;
#[cfg(test)]
mod tests;
mod vm;

use std::collections::BTreeMap;

use godwit_shared::model::{Problem, UnixMillis};

use super::Ui;
use super::problem::paragraph;
use super::table::{Cell, Column, table};

pub(crate) use calibration::calibrations;
pub(crate) use event::line as event_line;
pub(crate) use migration::done as migration_done;
pub(crate) use node::taints;
pub(crate) use placement::{explain, rehearsal};
pub(crate) use plan::{plan, plan_title};
pub(crate) use simulation::simulation;

/// An object as a row.
pub(crate) trait Listed {
    /// What a list of it is a list of.
    const NOUN: &'static str;
    /// The columns; their names are stable.
    const COLUMNS: &'static [Column];
    /// The cells, one for each column.
    fn row(&self, now: UnixMillis) -> Vec<Cell>;
    /// Its name, or its id where it has none.
    fn name(&self) -> String;
}

/// An object in full.
pub(crate) trait Shown {
    /// Names and values.
    fn sheet(&self, now: UnixMillis) -> Vec<(&'static str, String)>;
}

/// A list as a table.
pub(crate) fn list<'a, T: Listed + 'a>(items: impl Iterator<Item = &'a T>, ui: &Ui) -> String {
    let rows = items.map(|item| item.row(ui.now)).collect();
    table(T::COLUMNS, rows, ui)
}

/// Labels in one line.
pub(crate) fn labels(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(", ")
}

/// A problem inside a sheet.
fn problem(problem: &Problem) -> String {
    let mut text = String::new();
    paragraph(problem, "error", 0, false, &mut text);
    text
}

/// `-` where there is nothing.
fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
