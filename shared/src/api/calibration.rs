//! Forecasts of migrations against their outcomes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{Fit, MigrationFigures, Millis};

/// Whether one migration went as foretold. What was not foretold, or is not
/// known yet, is absent.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(default)]
pub struct ForecastMet {
    /// The time until the guest ran on the target.
    pub duration: Option<Fit>,
    /// The guest's pause.
    pub blackout: Option<Fit>,
}

impl ForecastMet {
    /// By what was measured.
    pub fn of(figures: &MigrationFigures, blackout: Option<Millis>) -> Self {
        let Some(forecast) = figures.forecast else {
            return Self::default();
        };
        Self {
            duration: figures.duration.map(|took| forecast.duration.fit(took)),
            blackout: blackout.map(|pause| forecast.blackout.fit(pause)),
        }
    }
}

/// How well forecasts hold, over the completed migrations that are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Calibrations {
    /// Those that sent all memory before the guest ran on the target.
    pub precopy: Calibration,
    /// Those that did not.
    pub postcopy: Calibration,
}

/// How well forecasts of one kind of migration hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Calibration {
    /// Completed migrations of that kind.
    pub completed: u32,
    /// How many of them had a forecast.
    pub foretold: u32,
    /// The time until the guest ran on the target.
    pub duration: Agreement,
    /// The guest's pause.
    pub blackout: Agreement,
}

/// How often an outcome fell inside its interval.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Agreement {
    /// Outcomes with a forecast.
    pub count: u32,
    /// Those inside.
    pub inside: u32,
    /// Those that were less.
    pub below: u32,
    /// Those that were more.
    pub above: u32,
    /// `inside` of `count`, in percent; none of none. A good forecast has 90.
    pub share_percent: Option<u8>,
    /// By how much the others missed: the median ratio of an outcome to the
    /// nearer end of its interval, the larger of the two above the smaller, in
    /// percent; 150 is half as much again, or a third less.
    pub missed_by_percent: Option<u32>,
}
