//! What progress looks like: bars on a terminal, a few plain lines elsewhere.

use std::io::Write as _;
use std::time::Duration;

use godwit_shared::api::{MigrationView, PlanView, StepState, TaskView};
use godwit_shared::model::{BytesPerSec, MigrationPhase};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::problem::clean;
use crate::output::views::{migration_done, plan_title};
use crate::output::{Ui, human};

/// A line whose end can be foreseen.
const WITH_BAR: &str = "{spinner} {prefix} [{bar:20}] {percent:>3}% {wide_msg}";

/// The lines of all that is waited for.
pub(crate) struct Board {
    bars: Option<MultiProgress>,
    plain: bool,
}

/// One of them.
pub(crate) struct Line {
    bar: Option<ProgressBar>,
    plain: bool,
    label: String,
    told: String,
}

impl Board {
    /// Bars where stderr is a terminal; lines where it is not and a person may
    /// read them; nothing beside JSON.
    pub(crate) fn new(ui: &Ui) -> Self {
        let bars = ui
            .live
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Self {
            plain: bars.is_none() && ui.chatty(),
            bars,
        }
    }

    /// A line for what is called `label`.
    pub(crate) fn line(&self, label: &str) -> Line {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::no_length());
            bar.set_style(style("{spinner} {prefix} {wide_msg}"));
            bar.set_prefix(label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Line {
            bar,
            plain: self.plain,
            label: label.to_owned(),
            told: String::new(),
        }
    }

    /// Takes the bars away.
    pub(crate) fn clear(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .tick_chars("|/-\\ ")
}

impl Line {
    /// Whether anybody sees it.
    pub(crate) fn is_seen(&self) -> bool {
        self.bar.is_some() || self.plain
    }

    /// Shows how a task stands.
    pub(crate) fn task(&mut self, task: &TaskView) {
        let message = clean(&task.message).replace('\n', " ");
        match &self.bar {
            Some(bar) => {
                if let Some(percent) = task.percent {
                    bar.set_style(style(WITH_BAR));
                    bar.set_length(100);
                    bar.set_position(u64::from(percent));
                }
                bar.set_message(message);
            }
            None => self.tell(&message, &message),
        }
    }

    /// Shows how a migration stands.
    pub(crate) fn migration(&mut self, migration: &MigrationView) {
        if self.label.is_empty() {
            self.label = migration.name.to_string();
        }
        let text = migration_text(migration);
        let done = migration_done(migration);
        let Some(bar) = &self.bar else {
            // A line for every phase and every quarter of the memory.
            let stage = format!("{} {}", migration.phase, done / 25);
            self.tell(&stage, &format!("{done}% {text}"));
            return;
        };
        bar.set_style(style(WITH_BAR));
        bar.set_prefix(self.label.clone());
        bar.set_length(100);
        bar.set_position(u64::from(done));
        bar.set_message(text);
    }

    /// Shows how a plan stands.
    pub(crate) fn plan(&mut self, plan: &PlanView) {
        self.label = plan_title(plan);
        let (ended, all) = (plan.ended_steps(), plan.steps.len());
        let moving = plan.steps.iter().zip(&plan.progress);
        let moving = moving.filter(|(_, progress)| progress.state == StepState::Moving);
        let names: Vec<String> = moving.map(|(step, _)| step.name.to_string()).collect();
        let text = if names.is_empty() {
            format!("{ended} of {all}")
        } else {
            format!("{ended} of {all}, moving {}", names.join(", "))
        };
        let Some(bar) = &self.bar else {
            return self.tell(&text, &text);
        };
        bar.set_style(style(WITH_BAR));
        bar.set_prefix(self.label.clone());
        bar.set_length(u64::try_from(all.max(1)).unwrap_or(1));
        bar.set_position(u64::try_from(ended).unwrap_or(0));
        bar.set_message(text);
    }

    /// A plain line, when the stage is another than at the last one.
    fn tell(&mut self, stage: &str, text: &str) {
        if !self.plain || text.is_empty() || self.told == stage {
            return;
        }
        stage.clone_into(&mut self.told);
        let _ = writeln!(std::io::stderr().lock(), "{}: {text}", self.label);
    }
}

/// `precopy  4 s left  231 MiB/s  dirties 12 MiB/s  pass 2  to node-2`: what
/// matters most first, because the end may be cut off.
pub(crate) fn migration_text(migration: &MigrationView) -> String {
    let p = &migration.progress;
    let mut parts = vec![migration.phase.to_string()];
    if matches!(
        migration.phase,
        MigrationPhase::Precopy | MigrationPhase::Switchover | MigrationPhase::Postcopy
    ) {
        if migration.phase == MigrationPhase::Precopy {
            parts.push(match p.eta {
                Some(eta) => format!("{} left", human::span(eta)),
                None => "not converging yet".to_owned(),
            });
        }
        parts.push(p.rate.to_string());
        if p.dirty_rate > BytesPerSec::ZERO {
            parts.push(format!("dirties {}", p.dirty_rate));
        }
        if p.throttle_percent > 0 {
            parts.push(format!("slowed {}%", p.throttle_percent));
        }
        if p.iteration > 0 {
            parts.push(format!("pass {}", p.iteration));
        }
    }
    parts.push(format!("to {}", migration.target));
    parts.join("  ")
}
