//! Migrations.

use std::fmt::Write as _;

use godwit_shared::api::{MigrationView, QueueView};
use godwit_shared::model::{
    DiskCopy, Fit, MigrationPhase, Millis, Postcopy, Span, TimeoutAction, UnixMillis,
};

use super::{Cell, Column, Listed, Shown, or_dash, problem};
use crate::output::human;
use crate::output::table::{Kind, Tone};

impl Listed for MigrationView {
    const NOUN: &'static str = "migrations";
    const COLUMNS: &'static [Column] = &[
        Column("ID", Kind::Whole),
        Column("VM", Kind::Whole),
        Column("FROM", Kind::Whole),
        Column("TO", Kind::Whole),
        Column("PHASE", Kind::Whole),
        Column("DONE", Kind::Number),
        Column("BLACKOUT", Kind::Number),
        Column("AGE", Kind::Number),
        Column("NOTE", Kind::Shrinks),
    ];

    fn row(&self, now: UnixMillis) -> Vec<Cell> {
        let failure = self.failure.as_ref();
        let waits = self.queue.as_ref().map(|q| waits(q, now));
        let note = failure
            .map(|f| format!("{}: {}", f.problem.code, f.problem.message))
            .or(waits);
        vec![
            human::short_id(self.id).into(),
            self.name.as_str().into(),
            self.source.as_str().into(),
            self.target.as_str().into(),
            Cell::toned(self.phase.as_str(), tone(self.phase)),
            format!("{}%", done(self)).into(),
            or_dash(self.blackout).into(),
            human::age(self.created, now).into(),
            note.unwrap_or_default().into(),
        ]
    }

    fn name(&self) -> String {
        self.id.to_string()
    }
}

/// `#2, in about 8s: node-1 has 8 migrations, its most`.
fn waits(queue: &QueueView, now: UnixMillis) -> String {
    let begins = queue.estimated_start.map(|at| now.until(at));
    let begins = begins.map(|left| format!(", in about {}", human::span(left)));
    let (position, reason) = (queue.position, &queue.reason);
    format!("#{position}{}: {reason}", begins.unwrap_or_default())
}

fn tone(phase: MigrationPhase) -> Tone {
    match phase {
        MigrationPhase::Completed => Tone::Good,
        MigrationPhase::Failed | MigrationPhase::InDoubt | MigrationPhase::PostcopyPaused => {
            Tone::Bad
        }
        MigrationPhase::Cancelled => Tone::Faint,
        _ => Tone::Busy,
    }
}

/// How much of the memory is over, in percent.
pub(crate) fn done(migration: &MigrationView) -> u8 {
    let progress = &migration.progress;
    match migration.phase {
        MigrationPhase::Completed => 100,
        MigrationPhase::Queued | MigrationPhase::Preparing => 0,
        _ => human::percent(
            progress.total.saturating_sub(progress.remaining).0,
            progress.total.0,
        ),
    }
}

impl Shown for MigrationView {
    fn sheet(&self, now: UnixMillis) -> Vec<(&'static str, String)> {
        let mut sheet = vec![
            ("Id", self.id.to_string()),
            ("VM", format!("{} ({})", self.name, self.vm)),
            ("From", self.source.to_string()),
            ("To", self.target.to_string()),
            (
                "Phase",
                format!("{} for {}", self.phase, human::age(self.since, now)),
            ),
            ("Asked for", human::moment(self.created, now)),
        ];
        if let Some(queue) = &self.queue {
            sheet.push(("Waits", waits(queue, now)));
        }
        if let Some(ended) = self.ended {
            let took = human::span(self.created.until(ended));
            sheet.push((
                "Ended",
                format!("{} after {took}", human::moment(ended, now)),
            ));
        }
        if let Some(blackout) = self.blackout {
            let qemu = self.figures.qemu_downtime;
            let beside = qemu.map(|qemu| format!(" (by QEMU's own count {qemu})"));
            let text = format!("{blackout}{}", beside.unwrap_or_default());
            sheet.push(("Blackout", text));
        }
        sheet.extend(foretold(self));
        sheet.extend(progress(self));
        sheet.push(("Policy", policy(self)));
        if let Some(resolution) = &self.resolution {
            let (what, by) = (resolution.decision.as_str(), &resolution.by);
            let when = human::moment(resolution.at, now);
            sheet.push(("Decided", format!("{what}, by {by}, {when}")));
        }
        if let Some(task) = self.task {
            sheet.push(("Task", task.to_string()));
        }
        if let Some(failure) = &self.failure {
            let label = if self.phase.is_final() {
                "Failed in"
            } else {
                "Alarm in"
            };
            sheet.push((label, failure.phase.to_string()));
            sheet.push(("Problem", problem(&failure.problem)));
            if let Some(time) = failure.recovered_in {
                sheet.push(("Recovered in", time.to_string()));
            }
        }
        sheet
    }
}

/// What was foretold, each with its outcome as soon as that is known.
fn foretold(migration: &MigrationView) -> Option<(&'static str, String)> {
    let forecast = migration.figures.forecast.as_ref()?;
    let outcome = |outcome: Option<Millis>, fit: Option<Fit>| match (outcome, fit) {
        (Some(outcome), Some(fit)) => format!("; it was {outcome}: {}", fit.as_str()),
        _ => String::new(),
    };
    let line = |span: Span| format!("{} to {}", span.low, span.high);
    let text = format!(
        "duration {}{}\nblackout {}{}",
        line(forecast.duration),
        outcome(migration.figures.duration, migration.met.duration),
        line(forecast.blackout),
        outcome(migration.blackout, migration.met.blackout),
    );
    Some(("Forecast", text))
}

fn progress(migration: &MigrationView) -> Vec<(&'static str, String)> {
    let p = &migration.progress;
    let mut sheet = vec![
        (
            "Memory",
            format!("{} in all, {} to send", p.total, p.remaining),
        ),
        (
            "Sent",
            format!(
                "{} in {}, at {}",
                p.transferred,
                human::span(p.elapsed),
                p.rate
            ),
        ),
        ("Dirtied", format!("{}, pass {}", p.dirty_rate, p.iteration)),
    ];
    if p.stalled {
        sheet.push(("Stalled", "the guest dirties more than is sent".to_owned()));
    }
    if p.throttle_percent > 0 {
        sheet.push(("Slowed down", format!("{}%", p.throttle_percent)));
    }
    if let Some(eta) = p.eta.filter(|_| !migration.phase.is_final()) {
        sheet.push(("Still", human::span(eta)));
    }
    sheet
}

fn policy(migration: &MigrationView) -> String {
    let policy = &migration.policy;
    let bandwidth = policy
        .bandwidth
        .map_or("any bandwidth".to_owned(), |rate| format!("at most {rate}"));
    let converge = if policy.auto_converge {
        "auto-converge"
    } else {
        "no auto-converge"
    };
    let mut text = format!(
        "{}, {bandwidth}, downtime {}, {converge}",
        human::count(u64::from(policy.channels), "channel"),
        policy.downtime
    );
    match policy.postcopy {
        Postcopy::Never => {}
        Postcopy::Fallback => text.push_str(", post-copy if it stalls"),
        Postcopy::Always => text.push_str(", post-copy"),
    }
    match policy.disks {
        DiskCopy::Full => {}
        DiskCopy::Top => text.push_str(", tops of disks"),
        DiskCopy::Synchronous => text.push_str(", disks synchronous"),
    }
    if policy.keep_source_disks {
        text.push_str(", source's images kept");
    }
    if let Some(timeout) = policy.timeout {
        let _ = write!(
            text,
            ", {} after {}",
            action(policy.timeout_action),
            human::span(timeout)
        );
    }
    text
}

const fn action(action: TimeoutAction) -> &'static str {
    match action {
        TimeoutAction::Cancel => "cancel",
        TimeoutAction::Suspend => "suspend",
        TimeoutAction::Postcopy => "post-copy",
        TimeoutAction::Force => "force",
    }
}
