//! Tasks.

use godwit_shared::api::{TaskState, TaskView};
use godwit_shared::model::UnixMillis;

use super::{Cell, Column, Listed, Shown, or_dash, problem};
use crate::output::human;
use crate::output::table::{Kind, Tone};

impl Listed for TaskView {
    const NOUN: &'static str = "tasks";
    const COLUMNS: &'static [Column] = &[
        Column("ID", Kind::Whole),
        Column("KIND", Kind::Whole),
        Column("VM", Kind::Whole),
        Column("NODE", Kind::Whole),
        Column("STATE", Kind::Whole),
        Column("DONE", Kind::Number),
        Column("AGE", Kind::Number),
        Column("TOOK", Kind::Number),
        Column("NOTE", Kind::Shrinks),
    ];

    fn row(&self, now: UnixMillis) -> Vec<Cell> {
        let took = self.ended.map(|end| human::span(self.created.until(end)));
        let note = match &self.problem {
            Some(problem) => format!("{}: {}", problem.code, problem.message),
            None => self.message.clone(),
        };
        vec![
            human::short_id(self.id).into(),
            self.kind.as_str().into(),
            or_dash(self.name.as_ref()).into(),
            or_dash(self.node.as_ref()).into(),
            Cell::toned(self.state.as_str(), tone(self.state)),
            or_dash(self.percent.map(|percent| format!("{percent}%"))).into(),
            human::age(self.created, now).into(),
            or_dash(took).into(),
            note.into(),
        ]
    }

    fn name(&self) -> String {
        self.id.to_string()
    }
}

fn tone(state: TaskState) -> Tone {
    match state {
        TaskState::Succeeded => Tone::Good,
        TaskState::Failed => Tone::Bad,
        TaskState::Cancelled => Tone::Faint,
        TaskState::Running | TaskState::Cancelling => Tone::Busy,
    }
}

impl Shown for TaskView {
    fn sheet(&self, now: UnixMillis) -> Vec<(&'static str, String)> {
        let mut sheet = vec![
            ("Id", self.id.to_string()),
            ("Kind", self.kind.clone()),
            ("State", self.state.as_str().to_owned()),
        ];
        if let Some(vm) = self.vm {
            let name = self.name.as_ref().map(ToString::to_string);
            let name = name.unwrap_or_default();
            sheet.push(("VM", format!("{name} ({vm})").trim_start().to_owned()));
        }
        if let Some(node) = &self.node {
            sheet.push(("Node", node.to_string()));
        }
        if let Some(migration) = self.migration {
            sheet.push(("Migration", migration.to_string()));
        }
        if let Some(percent) = self.percent {
            sheet.push(("Done", format!("{percent}%")));
        }
        if !self.message.is_empty() {
            sheet.push(("Doing", self.message.clone()));
        }
        sheet.push(("Asked for", human::moment(self.created, now)));
        if let Some(ended) = self.ended {
            let took = human::span(self.created.until(ended));
            sheet.push((
                "Ended",
                format!("{} after {took}", human::moment(ended, now)),
            ));
        }
        if let Some(found) = &self.problem {
            sheet.push(("Problem", problem(found)));
        }
        sheet
    }
}
