//! How often migrations went as foretold.
//!
//! A forecast is worth as much as it holds: an interval that is meant for nine
//! outcomes of ten has to hold about as many. Only completed migrations count;
//! one that was called off has no outcome. Post-copy stands apart, because its
//! pause has other causes.

use godwit_shared::api::{Agreement, Calibration, Calibrations};
use godwit_shared::model::{Fit, Forecast, MigrationPhase, Millis, Span};

use super::Cluster;
use crate::record::MigrationRecord;

impl Cluster {
    /// Forecasts against outcomes, over the migrations that are kept.
    pub fn calibration(&self) -> Calibrations {
        let kept = self.records.migrations.values();
        let completed = kept.filter(|record| record.phase == MigrationPhase::Completed);
        let (postcopy, precopy) = completed.partition(|record| record.figures.postcopy);
        Calibrations {
            precopy: calibrate(&precopy),
            postcopy: calibrate(&postcopy),
        }
    }
}

fn calibrate(completed: &Vec<&MigrationRecord>) -> Calibration {
    let foretold: Vec<(Forecast, &MigrationRecord)> = completed
        .iter()
        .filter_map(|record| Some((record.figures.forecast?, *record)))
        .collect();
    let durations = foretold
        .iter()
        .filter_map(|(forecast, record)| Some((forecast.duration, record.figures.duration?)));
    let blackouts = foretold
        .iter()
        .filter_map(|(forecast, record)| Some((forecast.blackout, record.blackout?)));
    Calibration {
        completed: count(completed.len()),
        foretold: count(foretold.len()),
        duration: agreement(durations),
        blackout: agreement(blackouts),
    }
}

fn agreement(outcomes: impl Iterator<Item = (Span, Millis)>) -> Agreement {
    let mut found = Agreement::default();
    let mut missed = Vec::new();
    for (span, outcome) in outcomes {
        found.count = found.count.saturating_add(1);
        let (tally, ratio) = match span.fit(outcome) {
            Fit::Inside => (&mut found.inside, None),
            Fit::Below => (&mut found.below, Some(percent(span.low, outcome))),
            Fit::Above => (&mut found.above, Some(percent(outcome, span.high))),
        };
        *tally = tally.saturating_add(1);
        missed.extend(ratio);
    }
    let share = (u64::from(found.inside) * 100).checked_div(u64::from(found.count));
    found.share_percent = share.and_then(|share| u8::try_from(share).ok());
    missed.sort_unstable();
    found.missed_by_percent = missed.get(missed.len() / 2).copied();
    found
}

/// The larger in percent of the smaller.
fn percent(larger: Millis, smaller: Millis) -> u32 {
    let ratio = u128::from(larger.0) * 100 / u128::from(smaller.0.max(1));
    u32::try_from(ratio).unwrap_or(u32::MAX)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
