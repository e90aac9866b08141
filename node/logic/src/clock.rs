//! How far another node's clock is from this one's.
//!
//! A blackout begins on one host and ends on another, so their clocks have to be
//! compared. Each sample is a question and its answer (Cristian's algorithm; NTP,
//! RFC 5905 section 8, is the same with four stamps): the other clock was read
//! somewhere between the question's leaving and the answer's arrival, so half of
//! the round trip bounds the error. The sample with the smallest bound counts;
//! the bound of an old one grows, because clocks drift.

/// How much faster than another a clock may run, in parts per million. Quartz is
/// within 50; two of them, and what NTP corrects meanwhile.
const DRIFT_PPM: u64 = 200;

/// What is known of another clock. All times in microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct OtherClock {
    best: Option<Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    offset: i64,
    error: u64,
    at: u64,
}

/// An offset, and the error that it may have, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// The other clock minus this one.
    pub offset: i64,
    /// The true offset is no further away than this.
    pub error: u64,
}

impl OtherClock {
    /// A question left at `sent`, the other clock showed `there`, and the answer
    /// came at `received`. One that came before it left is no sample: this
    /// clock was set meanwhile.
    pub fn heard(&mut self, sent: u64, there: u64, received: u64) {
        let Some(round_trip) = received.checked_sub(sent) else {
            self.best = None;
            return;
        };
        let middle = sent + round_trip / 2;
        let sample = Sample {
            offset: difference(there, middle),
            error: round_trip / 2 + 1,
            at: received,
        };
        let better = |best: &Sample| best.error_at(received) <= sample.error;
        if !self.best.as_ref().is_some_and(better) {
            self.best = Some(sample);
        }
    }

    /// The offset, as it is known at `now`.
    pub fn offset(&self, now: u64) -> Option<Offset> {
        self.best.map(|sample| Offset {
            offset: sample.offset,
            error: sample.error_at(now),
        })
    }
}

impl Sample {
    fn error_at(&self, now: u64) -> u64 {
        let age = now.saturating_sub(self.at);
        self.error
            .saturating_add(age.saturating_mul(DRIFT_PPM) / 1_000_000)
    }
}

impl Offset {
    /// From a moment on this clock to one on the other. Less than nothing is
    /// nothing: that much the error may make of it.
    pub fn between(&self, here: u64, there: u64) -> u64 {
        u64::try_from(difference(there, here).saturating_sub(self.offset)).unwrap_or(0)
    }
}

fn difference(a: u64, b: u64) -> i64 {
    i64::try_from(i128::from(a) - i128::from(b)).unwrap_or(if a > b { i64::MAX } else { i64::MIN })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_shortest_round_trip_counts() {
        let mut clock = OtherClock::default();
        assert_eq!(clock.offset(0), None);
        clock.heard(1_000, 501_500, 2_000);
        // Held up on the way back: a worse sample.
        clock.heard(3_000, 503_100, 9_000);
        let offset = clock.offset(9_000).unwrap();
        assert_eq!((offset.offset, offset.error), (500_000, 502));
        assert_eq!(offset.between(10_000, 510_250), 250);
        assert_eq!(
            offset.between(10_000, 509_900),
            0,
            "never less than nothing"
        );
    }

    #[test]
    fn an_old_sample_gives_way() {
        let mut clock = OtherClock::default();
        clock.heard(0, 50, 100);
        let minute = 60_000_000;
        assert_eq!(clock.offset(minute).unwrap().error, 51 + 11_999);
        clock.heard(minute, minute + 9_000, minute + 2_000);
        assert_eq!(clock.offset(minute + 2_000).unwrap().offset, 8_000);
    }

    #[test]
    fn a_clock_that_was_set_back_is_no_sample() {
        let mut clock = OtherClock::default();
        clock.heard(5_000, 5_000, 5_100);
        clock.heard(9_000, 9_000, 200);
        assert_eq!(clock.offset(300), None);
    }

    proptest! {
        /// Whatever the two ways take, the true offset is within the bound.
        #[test]
        fn the_bound_holds(
            ahead in -1_000_000_000_i64..1_000_000_000,
            ways in prop::collection::vec((0_u64..50_000, 0_u64..50_000), 1..20),
        ) {
            let mut clock = OtherClock::default();
            let mut now = 2_000_000_000_u64;
            for (there, back) in ways {
                let read = now.saturating_add_signed(ahead) + there;
                clock.heard(now, read, now + there + back);
                now += there + back + 10_000;
                let known = clock.offset(now).unwrap();
                prop_assert!(known.offset.abs_diff(ahead) <= known.error);
            }
        }
    }
}
