//! One pause as it was reported and as it was seen, and medians of several.

use std::time::Duration;

use anyhow::{Context as _, Result};
use godwit_tests::bench::median;
use serde_json::{Value, json};

use crate::watch::Pause;

/// One pause, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// As it was reported.
    reported: f64,
    /// From QEMU's `STOP` to its `RESUME`.
    by_events: f64,
    /// Between two answers.
    seen: f64,
    /// From the last answer to `STOP`.
    last_answer_before_stop: f64,
    /// From `RESUME` to the first answer.
    first_answer_after_resume: f64,
    /// The longest silence beside this one.
    other_silence: f64,
}

impl Sample {
    /// Looks at the `answers`, in their order; a side that does not report its
    /// pause goes by the events.
    pub(crate) fn new(
        pause: Pause,
        reported: Option<Duration>,
        answers: &[Duration],
    ) -> Result<Self> {
        let Pause { stop, resume } = pause;
        let middle = stop + resume.saturating_sub(stop) / 2;
        // An answer that was under way at the stop may still come after it.
        let (before, after) = answers.split_at(answers.partition_point(|at| *at < middle));
        let last = *before.last().context("an answer before the pause")?;
        let first = *after.first().context("an answer after the pause")?;
        let silences = [before, after].map(|side| {
            let silences = side.windows(2).map(|pair| ms(pair[0], pair[1]));
            silences.fold(0.0, f64::max)
        });
        let by_events = ms(stop, resume);
        Ok(Self {
            reported: reported.map_or(by_events, |reported| reported.as_secs_f64() * 1000.0),
            by_events,
            seen: ms(last, first),
            last_answer_before_stop: ms(last, stop),
            first_answer_after_resume: ms(resume, first),
            other_silence: silences[0].max(silences[1]),
        })
    }

    /// What somebody outside sees beyond what is reported.
    pub(crate) fn seen_minus_reported(&self) -> f64 {
        self.seen - self.reported
    }
}

/// From one moment to another, which may be before it.
fn ms(from: Duration, to: Duration) -> f64 {
    (to.as_secs_f64() - from.as_secs_f64()) * 1000.0
}

/// The runs of one side.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(pub(crate) Vec<Sample>);

impl Samples {
    pub(crate) fn seen_minus_reported(&self) -> f64 {
        self.median(Sample::seen_minus_reported)
    }

    fn median(&self, number: impl Fn(&Sample) -> f64) -> f64 {
        median(self.0.iter().map(number).collect())
    }

    /// Medians, and what each run saw beyond what was reported.
    pub(crate) fn to_json(&self) -> Value {
        let runs = self.0.iter().map(Sample::seen_minus_reported).map(round);
        json!({
            "reported_ms": round(self.median(|s| s.reported)),
            "by_events_ms": round(self.median(|s| s.by_events)),
            "reported_minus_events_ms": round(self.median(|s| s.reported - s.by_events)),
            "seen_ms": round(self.median(|s| s.seen)),
            "seen_minus_reported_ms": round(self.seen_minus_reported()),
            "last_answer_before_stop_ms": round(self.median(|s| s.last_answer_before_stop)),
            "first_answer_after_resume_ms": round(self.median(|s| s.first_answer_after_resume)),
            "other_silence_ms": round(self.median(|s| s.other_silence)),
            "runs_seen_minus_reported_ms": runs.collect::<Vec<_>>(),
        })
    }
}

/// To a hundredth.
pub(crate) fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(1_000_000 + ms)
    }

    #[test]
    fn a_silence_is_taken_apart_at_the_events() {
        let pause = Pause {
            stop: at(100),
            resume: at(140),
        };
        let answers = [at(50), at(90), at(101), at(160), at(161), at(170)];
        let sample = Sample::new(pause, Some(Duration::from_millis(41)), &answers).unwrap();
        let found = [
            sample.reported,
            sample.by_events,
            sample.seen,
            sample.last_answer_before_stop,
            sample.first_answer_after_resume,
            sample.other_silence,
            sample.seen_minus_reported(),
        ];
        let found: Vec<String> = found.iter().map(|ms| format!("{ms:.0}")).collect();
        assert_eq!(found, ["41", "40", "59", "-1", "20", "40", "18"]);
        assert!(Sample::new(pause, None, &answers[..3]).is_err());
        assert!(Sample::new(pause, None, &answers[3..]).is_err());
    }
}
