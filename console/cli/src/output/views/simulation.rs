//! What would become of it: placed, left over, and the room that is left.

use std::fmt::Write as _;

use godwit_shared::api::{Change, ProfileView, SimulationView, Unplaced};
use godwit_shared::model::UnixMillis;

use super::{Cell, Column, Listed};
use crate::output::problem::paragraph;
use crate::output::table::{Kind, Tone, table};
use crate::output::{Ui, human};

const PLACED: &[Column] = &[
    Column("VM", Kind::Whole),
    Column("FROM", Kind::Whole),
    Column("NODE", Kind::Whole),
    Column("SCORE", Kind::Number),
];

/// So many reasons are printed of a VM that fits nowhere; `-o json` has all.
const REASONS: usize = 8;

const ROOM: &[Column] = &[
    Column("NODE", Kind::Whole),
    Column("VCPUS", Kind::Number),
    Column("MEMORY", Kind::Number),
    Column("MORE", Kind::Number),
];

/// What was asked about, placed or not and why, then the room.
pub(crate) fn simulation(view: &SimulationView, ui: &Ui) -> String {
    let mut text = String::new();
    let placed = view.placed.iter().map(|placed| {
        vec![
            placed.vm.as_str().into(),
            super::or_dash(placed.from.as_ref()).into(),
            Cell::toned(placed.node.as_str(), Tone::Good),
            placed.score.to_string().into(),
        ]
    });
    let rows: Vec<Vec<Cell>> = placed.chain(view.unplaced.iter().map(unplaced)).collect();
    if !rows.is_empty() {
        text += &table(PLACED, rows, ui);
        text.push('\n');
    }
    for left in &view.unplaced {
        reasons(left, ui, &mut text);
    }
    text += &room(view, ui);
    text
}

fn unplaced(left: &Unplaced) -> Vec<Cell> {
    vec![
        left.vm.as_str().into(),
        super::or_dash(left.from.as_ref()).into(),
        Cell::toned("none", Tone::Bad),
        "-".into(),
    ]
}

fn reasons(left: &Unplaced, ui: &Ui, text: &mut String) {
    let _ = writeln!(text, "{} would not fit:", left.vm);
    let reasons = &left.problem.also;
    for problem in reasons.iter().take(REASONS) {
        paragraph(problem, "refused", 1, ui.colour, text);
    }
    if let Some(more @ 1..) = reasons.len().checked_sub(REASONS) {
        let _ = writeln!(text, "  and {more} more");
    }
    if let Some(node) = &left.nearest {
        let _ = writeln!(text, "  {node} fits {}", Change::together(&left.changes));
    }
    text.push('\n');
}

fn room(view: &SimulationView, ui: &Ui) -> String {
    let rows = view.room.iter().map(|room| {
        vec![
            room.node.as_str().into(),
            format!("{}/{}", room.used.vcpus, room.capacity.vcpus).into(),
            format!("{} / {}", room.used.memory, room.capacity.memory).into(),
            super::or_dash(room.more).into(),
        ]
    });
    let mut text = table(ROOM, rows.collect(), ui);
    let (vcpus, memory) = (view.left.vcpus, view.left.memory);
    let _ = write!(
        text,
        "left: {}, {memory}",
        human::count(u64::from(vcpus), "vCPU")
    );
    if let Some(more) = view.more {
        let _ = write!(
            text,
            "; room for {} more of that size",
            human::count(more, "VM")
        );
    }
    text.push('\n');
    text
}

impl Listed for ProfileView {
    const NOUN: &'static str = "profiles";
    const COLUMNS: &'static [Column] = &[
        Column("PROFILE", Kind::Whole),
        Column("WEIGHTS", Kind::Shrinks),
    ];

    fn row(&self, _now: UnixMillis) -> Vec<Cell> {
        let used = self.weights.iter().filter(|(_, weight)| **weight > 0);
        let weights: Vec<String> = used
            .map(|(name, weight)| format!("{name} {weight}"))
            .collect();
        vec![Listed::name(self).into(), weights.join(", ").into()]
    }

    fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| "(default)".to_owned())
    }
}
