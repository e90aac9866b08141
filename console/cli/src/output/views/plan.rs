//! Plans.

use std::fmt::Write as _;

use godwit_shared::api::{PlanState, PlanStep, PlanView, Stays, StepProgress, StepState};
use godwit_shared::model::UnixMillis;

use super::{Cell, Column, Listed, Shown, or_dash};
use crate::output::problem::paragraph;
use crate::output::table::{Kind, Tone, sheet, table};
use crate::output::{Ui, human};

impl Listed for PlanView {
    const NOUN: &'static str = "plans";
    const COLUMNS: &'static [Column] = &[
        Column("ID", Kind::Whole),
        Column("KIND", Kind::Whole),
        Column("NODE", Kind::Whole),
        Column("STATE", Kind::Whole),
        Column("STEPS", Kind::Number),
        Column("AGE", Kind::Number),
        Column("TOOK", Kind::Number),
        Column("NOTE", Kind::Shrinks),
    ];

    fn row(&self, now: UnixMillis) -> Vec<Cell> {
        let took = self.ended.map(|end| human::span(self.created.until(end)));
        vec![
            human::short_id(self.id).into(),
            self.kind.as_str().into(),
            or_dash(self.kind.node()).into(),
            Cell::toned(self.state.as_str(), tone(self.state)),
            format!("{}/{}", self.ended_steps(), self.steps.len()).into(),
            human::age(self.created, now).into(),
            or_dash(took).into(),
            self.message.as_str().into(),
        ]
    }

    fn name(&self) -> String {
        self.id.to_string()
    }
}

fn tone(state: PlanState) -> Tone {
    match state {
        PlanState::Done => Tone::Good,
        PlanState::Failed => Tone::Bad,
        PlanState::Aborted | PlanState::Proposed => Tone::Faint,
        PlanState::Running | PlanState::Aborting => Tone::Busy,
    }
}

impl Shown for PlanView {
    fn sheet(&self, now: UnixMillis) -> Vec<(&'static str, String)> {
        let mut sheet = vec![
            ("Plan", plan_title(self)),
            ("State", self.state.as_str().to_owned()),
            ("Moves", self.steps.len().to_string()),
        ];
        if !self.steps.is_empty() {
            let (parallel, took) = (self.limits.parallel, human::span(self.estimate));
            let text = format!("{took}, {parallel} at once, each at {}", self.rate);
            sheet.push(("Estimate", text));
        }
        if let Some(imbalance) = self.imbalance {
            let (before, after) = (share(imbalance.before), share(imbalance.after));
            sheet.push(("Imbalance", format!("{before} before, {after} after")));
        }
        if self.state != PlanState::Proposed {
            sheet.insert(0, ("Id", self.id.to_string()));
            sheet.push(("Begun", human::moment(self.created, now)));
        }
        if let Some(ended) = self.ended {
            let took = human::span(self.created.until(ended));
            let text = format!("{} after {took}", human::moment(ended, now));
            sheet.push(("Ended", text));
        }
        if !self.message.is_empty() {
            sheet.push(("Note", self.message.clone()));
        }
        sheet
    }
}

/// `drain of node-1`.
pub(crate) fn plan_title(plan: &PlanView) -> String {
    match plan.kind.node() {
        Some(node) => format!("{} of {node}", plan.kind.as_str()),
        None => plan.kind.as_str().to_owned(),
    }
}

/// Millionths, with three places.
fn share(millionths: u64) -> String {
    let thousandths = (millionths + 500) / 1000;
    format!("{}.{:03}", thousandths / 1000, thousandths % 1000)
}

/// A plan in full: what it is, its steps, and what stays.
pub(crate) fn plan(plan: &PlanView, ui: &Ui) -> String {
    let mut text = sheet(&plan.sheet(ui.now), ui);
    if !plan.steps.is_empty() {
        let rows = plan.steps.iter().zip(&plan.progress).enumerate();
        let rows = rows.map(|(place, (step, progress))| row(place, step, progress));
        let _ = write!(text, "\n{}", table(STEPS, rows.collect(), ui));
    }
    stays("blocked", &plan.blockers, &mut text);
    stays("stays", &plan.stopped, &mut text);
    text
}

const STEPS: &[Column] = &[
    Column("STEP", Kind::Number),
    Column("VM", Kind::Whole),
    Column("FROM", Kind::Whole),
    Column("TO", Kind::Whole),
    Column("MEMORY", Kind::Number),
    Column("TAKES", Kind::Number),
    Column("AFTER", Kind::Whole),
    Column("STATE", Kind::Whole),
    Column("NOTE", Kind::Shrinks),
];

fn row(place: usize, step: &PlanStep, progress: &StepProgress) -> Vec<Cell> {
    let after: Vec<String> = step.after.iter().map(|n| (n + 1).to_string()).collect();
    let target = progress.target.as_ref().unwrap_or(&step.target);
    let tone = match progress.state {
        StepState::Done => Tone::Good,
        StepState::Failed => Tone::Bad,
        StepState::Moving => Tone::Busy,
        _ => Tone::Plain,
    };
    vec![
        (place + 1).to_string().into(),
        step.name.to_string().into(),
        step.source.to_string().into(),
        target.to_string().into(),
        step.takes.memory.to_string().into(),
        human::span(step.estimate).into(),
        or_dash((!after.is_empty()).then(|| after.join(","))).into(),
        Cell::toned(progress.state.as_str(), tone),
        progress.message.clone().unwrap_or_default().into(),
    ]
}

fn stays(word: &str, all: &[Stays], text: &mut String) {
    for one in all {
        text.push('\n');
        paragraph(&one.problem, word, 0, false, text);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::super::tests::{NOW, ui};
    use super::*;
    use crate::output::views::list;

    fn drain(progress: &Value) -> PlanView {
        let id = |n: u8| format!("01970000-0000-7000-8000-0000000000{n:02x}");
        let blocked = json!({
            "code": "no_node_fits", "message": "no other node can take db-1",
            "remedy": "see what would help: `godwit vm migrate db-1 --dry-run`", "also": [],
        });
        let step = |n: u8, to: &str, after: Value| {
            json!({
                "vm": id(n), "name": format!("web-{n}"), "source": "node-1", "target": to,
                "takes": { "memory": 2048, "vcpus": 2 }, "after": after, "estimate": 18_600,
            })
        };
        serde_json::from_value(json!({
            "id": id(0xaa), "kind": "drain", "node": "node-1", "and_return": true,
            "state": "running", "created": NOW - 12_000, "ended": null,
            "limits": { "parallel": 2, "bandwidth": null }, "estimate": 37_200,
            "rate": 115_343_360, "imbalance": null, "message": "",
            "blockers": [{ "vm": id(3), "name": "db-1", "problem": blocked }], "stopped": [],
            "steps": [step(1, "node-2", json!([])), step(2, "node-3", json!([0]))],
            "progress": progress,
        }))
        .unwrap()
    }

    #[test]
    fn a_plan_shows_every_step_and_what_blocks_it() {
        let begun = json!({ "state": "done", "migration": null, "target": null, "message": "on node-2", "problem": null });
        let waits = json!({ "state": "pending", "migration": null, "target": null, "message": null, "problem": null });
        let view = drain(&json!([begun, waits]));
        insta::assert_snapshot!("plan", plan(&view, &ui(Some(100))));
        insta::assert_snapshot!("plans", list([&view].into_iter(), &ui(Some(100))));
    }
}
