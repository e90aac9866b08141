//! How often migrations went as foretold.

use godwit_shared::api::{Agreement, Calibration, Calibrations};

use super::{Cell, Column, or_dash};
use crate::output::Ui;
use crate::output::table::{Kind, table};

const COLUMNS: &[Column] = &[
    Column("KIND", Kind::Whole),
    Column("COMPLETED", Kind::Number),
    Column("OUTCOME", Kind::Whole),
    Column("FORETOLD", Kind::Number),
    Column("INSIDE", Kind::Number),
    Column("SHARE", Kind::Number),
    Column("LESS", Kind::Number),
    Column("MORE", Kind::Number),
    Column("MISSED BY", Kind::Number),
];

/// A row for each kind of migration and each outcome.
pub(crate) fn calibrations(found: &Calibrations, ui: &Ui) -> String {
    let kinds = [("pre-copy", &found.precopy), ("post-copy", &found.postcopy)];
    let rows = kinds.into_iter().flat_map(|(kind, calibration)| {
        let outcomes = [
            ("duration", &calibration.duration),
            ("blackout", &calibration.blackout),
        ];
        outcomes.map(|(outcome, agreement)| row(kind, calibration, outcome, agreement))
    });
    table(COLUMNS, rows.collect(), ui)
}

fn row(kind: &str, of: &Calibration, outcome: &str, agreement: &Agreement) -> Vec<Cell> {
    let share = agreement.share_percent.map(|share| format!("{share}%"));
    vec![
        kind.into(),
        of.completed.to_string().into(),
        outcome.into(),
        agreement.count.to_string().into(),
        agreement.inside.to_string().into(),
        or_dash(share).into(),
        agreement.below.to_string().into(),
        agreement.above.to_string().into(),
        or_dash(agreement.missed_by_percent.map(times)).into(),
    ]
}

/// 150 percent as `1.50×`.
fn times(percent: u32) -> String {
    format!("{}.{:02}×", percent / 100, percent % 100)
}
