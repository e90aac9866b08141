//! Forecasts against outcomes.

use super::migration::accepted;
use super::*;
use crate::record::MigrationRecord;
use godwit_shared::api::{Agreement, Calibrations, ForecastMet};
use godwit_shared::model::{Bytes, BytesPerSec, Fit, Forecast, Span};

fn span(low: u64, high: u64) -> Span {
    Span {
        low: Millis(low),
        high: Millis(high),
    }
}

/// Foretold are a second or two, and 10 to 100 ms.
fn forecast() -> Forecast {
    Forecast {
        duration: span(1_000, 2_000),
        blackout: span(10, 100),
        converges: true,
        memory: Bytes(1 << 29),
        dirty_rate: BytesPerSec(0),
        link_rate: BytesPerSec(1 << 30),
    }
}

/// One more migration, which ended in that phase with those outcomes.
fn ended(bench: &mut Bench, phase: MigrationPhase, figures: MigrationFigures, blackout: u64) {
    let id = MigrationId::from_u128(bench.id());
    let kept = &mut bench.cluster.records.migrations;
    let record = MigrationRecord {
        id,
        phase,
        figures,
        blackout: Some(Millis(blackout)),
        ..kept.values().next().unwrap().clone()
    };
    kept.insert(id, record);
}

fn took(duration: u64) -> MigrationFigures {
    MigrationFigures {
        forecast: Some(forecast()),
        duration: Some(Millis(duration)),
        ..MigrationFigures::default()
    }
}

#[test]
fn only_completed_migrations_count_and_postcopy_stands_apart() {
    let (mut bench, ..) = accepted();
    assert_eq!(bench.cluster.calibration(), Calibrations::default());
    let completed = MigrationPhase::Completed;
    for (duration, blackout) in [(1_000, 10), (2_000, 101), (500, 150), (5_000, 300)] {
        ended(&mut bench, completed, took(duration), blackout);
    }
    ended(&mut bench, completed, MigrationFigures::default(), 20);
    ended(&mut bench, MigrationPhase::Failed, took(9_000), 900);
    let postcopy = MigrationFigures {
        postcopy: true,
        ..took(1_500)
    };
    ended(&mut bench, completed, postcopy, 1);

    let found = bench.cluster.calibration();
    assert_eq!((found.precopy.completed, found.precopy.foretold), (5, 4));
    let durations = Agreement {
        count: 4,
        inside: 2,
        below: 1,
        above: 1,
        share_percent: Some(50),
        missed_by_percent: Some(250),
    };
    assert_eq!(found.precopy.duration, durations);
    let blackouts = Agreement {
        count: 4,
        inside: 1,
        below: 0,
        above: 3,
        share_percent: Some(25),
        missed_by_percent: Some(150),
    };
    assert_eq!(found.precopy.blackout, blackouts);
    assert_eq!((found.postcopy.completed, found.postcopy.foretold), (1, 1));
    assert_eq!(found.postcopy.duration.share_percent, Some(100));
    assert_eq!(found.postcopy.blackout.missed_by_percent, Some(1_000));
}

#[test]
fn a_migration_says_whether_it_went_as_foretold() {
    let (mut bench, _, id, _) = accepted();
    let met = |bench: &Bench| bench.cluster.migration(id).unwrap().met;
    assert_eq!(met(&bench), ForecastMet::default());
    let mut report = bench.moving(id, MigrationPhase::Completed, 2);
    (report.figures, report.blackout) = (took(900), Some(Millis(100)));
    bench.say("node-1", NodeMessage::Migration(report));
    let expected = ForecastMet {
        duration: Some(Fit::Below),
        blackout: Some(Fit::Inside),
    };
    assert_eq!(met(&bench), expected);
}
