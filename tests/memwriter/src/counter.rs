//! The count: one line every tick, and a line about every gap.
//!
//! `mono_us` is `CLOCK_MONOTONIC` (what [`Instant`] reads on Linux), counted
//! from the start of the writer. A stopped guest's clock stands still, so a
//! blackout is measured outside, between the arrival of two lines; a gap here is
//! time in which the guest's clock ran and this thread did not: a vCPU that got
//! no time, or that waited for a page in post-copy.

use std::thread;
use std::time::{Duration, Instant};

use crate::console;
use crate::memory::Tally;

/// More ticks than this between two counts are a gap.
const GAP_TICKS: u32 = 3;

/// Counts for ever.
#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own whose work is to wait"
)]
pub(crate) fn run(tick: Duration, tally: &Tally) {
    let start = Instant::now();
    let mut last = start;
    let mut due = start;
    for number in 1_u64.. {
        let now = Instant::now();
        if let Some(gap) = gap(now.duration_since(last), tick) {
            console::line(&format!("gap {} ms", gap.as_millis()));
        }
        console::line(&count_line(number, now.duration_since(start), tally));
        last = now;
        due = next_due(due, now, tick);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn count_line(number: u64, since_start: Duration, tally: &Tally) -> String {
    format!(
        "count {number} mono_us={} pages={} bad={}",
        since_start.as_micros(),
        tally.checked(),
        tally.bad()
    )
}

/// The time between two counts, when it is a gap.
fn gap(between: Duration, tick: Duration) -> Option<Duration> {
    (between > tick * GAP_TICKS).then_some(between)
}

/// Keeps to the grid, but never runs after lost ticks: a burst of counts after
/// a pause would look like a guest that runs fast.
fn next_due(due: Instant, now: Instant, tick: Duration) -> Instant {
    let next = due + tick;
    if next > now { next } else { now + tick }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(20);

    #[test]
    fn three_ticks_are_no_gap_and_more_are() {
        assert_eq!(gap(TICK * 3, TICK), None);
        let long = TICK * 3 + Duration::from_millis(1);
        assert_eq!(gap(long, TICK), Some(long));
    }

    #[test]
    fn ticks_keep_their_grid_when_a_line_comes_late() {
        let due = Instant::now();
        let now = due + Duration::from_millis(7);
        assert_eq!(next_due(due, now, TICK), due + TICK);
    }

    #[test]
    fn lost_ticks_are_not_made_up_for() {
        let due = Instant::now();
        let now = due + TICK * 50;
        assert_eq!(next_due(due, now, TICK), now + TICK);
    }

    #[test]
    fn a_count_line_tells_number_clock_and_tally() {
        let tally = Tally::default();
        tally.add_checked(12);
        tally.add_bad();
        let line = count_line(7, Duration::from_micros(1_234), &tally);
        assert_eq!(line, "count 7 mono_us=1234 pages=12 bad=1");
    }
}
