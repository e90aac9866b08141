//! Tables and sheets that fit the terminal.
//!
//! A table has no lines but its rows. Where it is wider than the terminal,
//! columns that may shrink do, and what is cut off ends in an ellipsis; names
//! never shrink. Where stdout is not a terminal nothing is ever cut off.

use comfy_table::{
    Attribute, Cell as TableCell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Row,
    Table, presets,
};

use super::Ui;
use super::problem::clean;

/// What a cell is about, shown as its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing particular.
    Plain,
    /// As it should be.
    Good,
    /// Under way, or worth a look.
    Busy,
    /// Wrong.
    Bad,
    /// Of lesser interest.
    Faint,
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Its text; one line.
    pub(crate) text: String,
    /// Its colour.
    pub(crate) tone: Tone,
}

impl Cell {
    /// A plain cell.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self::toned(text, Tone::Plain)
    }

    /// A cell with a colour.
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

/// How a column behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Shown whole.
    Whole,
    /// Shown whole, to the right.
    Number,
    /// Shrinks where the terminal is too narrow.
    Shrinks,
}

/// One column: its stable name and how it behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column(pub(crate) &'static str, pub(crate) Kind);

/// Least width of a column that shrinks.
const LEAST: usize = 8;

/// Lays a table out.
pub(crate) fn table(columns: &[Column], rows: Vec<Vec<Cell>>, ui: &Ui) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_truncation_indicator("…")
        .set_content_arrangement(ContentArrangement::Disabled);
    if ui.colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let widths = fit(columns, &rows, ui.width);
    table.set_header(
        columns
            .iter()
            .map(|c| TableCell::new(c.0).add_attribute(Attribute::Bold)),
    );
    for row in rows {
        let cells = row.into_iter().zip(&widths).map(|(cell, width)| {
            let text = shorten(&clean(&cell.text).replace('\n', " "), *width);
            paint(TableCell::new_owned(text), cell.tone)
        });
        table.add_row(Row::from(cells.collect::<Vec<_>>()));
    }
    for (index, column) in columns.iter().enumerate() {
        if let Some(layout) = table.column_mut(index) {
            layout.set_padding((0, 2));
            layout.set_constraint(ColumnConstraint::ContentWidth);
            if column.1 == Kind::Number {
                layout.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.trim_fmt() + "\n"
}

/// How wide each column may be: what is missing is taken from those that
/// shrink, always from the widest of them.
fn fit(columns: &[Column], rows: &[Vec<Cell>], width: Option<u16>) -> Vec<usize> {
    let content = |index: usize| rows.iter().filter_map(move |row| row.get(index));
    let mut widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let widest = content(index).map(|cell| cell.text.chars().count()).max();
            widest.unwrap_or(0).max(column.0.len())
        })
        .collect();
    let Some(width) = width.map(usize::from) else {
        return widths;
    };
    let gaps = 2 * columns.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > width {
        let shrinking = columns.iter().zip(widths.iter_mut());
        let widest = shrinking
            .filter(|(column, width)| column.1 == Kind::Shrinks && **width > LEAST)
            .max_by_key(|(_, width)| **width);
        match widest {
            Some((_, width)) => *width -= 1,
            None => break,
        }
    }
    widths
}

/// At most `width` characters, the last of them an ellipsis where text was cut.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

fn paint(cell: TableCell, tone: Tone) -> TableCell {
    match tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::Green),
        Tone::Busy => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
        Tone::Faint => cell.fg(Color::DarkGrey),
    }
}

/// Names and values, one a line; the lines of a value stay below each other.
pub(crate) fn sheet(lines: &[(&'static str, String)], ui: &Ui) -> String {
    let column = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 3;
    let (bold, plain) = if ui.colour {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    let mut text = String::new();
    for (name, value) in lines {
        let gap = " ".repeat(column - name.len() - 1);
        let value = clean(value)
            .trim_end()
            .replace('\n', &format!("\n{}", " ".repeat(column)));
        text.push_str(format!("{bold}{name}:{plain}{gap}{value}").trim_end());
        text.push('\n');
    }
    text
}
