//! The transport's clock: time in which the transport could not run doesn't pass.
//!
//! QUIC's idle timer asks "has the peer been silent for 600 ms?". When this
//! host was so loaded, paused or suspended that the transport's threads did not
//! run, nothing can be said about the peer: its packets may lie in the socket's
//! buffer, or it was paused with us. quinn looks at the clock before it looks
//! at the socket, so with real time one long stall ends every connection.
//!
//! Here a heartbeat marks that the transport runs. Between two beats the clock
//! advances by at most [`LIMIT`]; the rest of a longer gap is left out, for
//! good. So a stall costs a peer at most `LIMIT`, and a peer that really is
//! lost is noticed as soon as its silence was observed for the whole timeout.
//!
//! ```text
//!   beat ...... beat ................................ beat
//!   real   |-50-|------------- 900 ----------------|
//!   clock  |-50-|--- LIMIT ---|  stands still      |  goes on
//! ```

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the heartbeat is due.
pub(super) const BEAT: Duration = Duration::from_millis(50);
/// How much the clock advances at most between two beats.
const LIMIT: Duration = Duration::from_millis(150);

/// A clock that never runs ahead of a transport that doesn't run. It is
/// monotonic, and advances with real time as long as the beats come.
#[derive(Debug)]
pub(super) struct Clock(Mutex<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    /// Real time of the last beat.
    beat: Instant,
    /// Real time that was left out so far.
    left_out: Duration,
}

impl State {
    fn stalled(&self, real: Instant) -> Duration {
        real.saturating_duration_since(self.beat)
            .saturating_sub(LIMIT)
    }
}

impl Clock {
    pub(super) fn new(real: Instant) -> Self {
        Self(Mutex::new(State {
            beat: real,
            left_out: Duration::ZERO,
        }))
    }

    /// What the clock shows at a moment of real time.
    pub(super) fn at(&self, real: Instant) -> Instant {
        let state = self.state();
        let left_out = state.left_out + state.stalled(real);
        real.checked_sub(left_out).unwrap_or(real)
    }

    /// The real time when the clock will show `shown`, if no stall comes between.
    pub(super) fn real(&self, shown: Instant) -> Instant {
        shown + self.state().left_out
    }

    /// Marks that the transport runs; tells how much time is left out for it.
    pub(super) fn beat(&self, real: Instant) -> Duration {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stalled = state.stalled(real);
        state.left_out += stalled;
        state.beat = state.beat.max(real);
        stalled
    }

    fn state(&self) -> State {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unchecked_time_subtraction)] // Of constants.
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn with_regular_beats_it_shows_real_time() {
        let start = Instant::now();
        let clock = Clock::new(start);
        for beat in 1..100 {
            let now = start + beat * BEAT;
            assert_eq!(clock.beat(now), Duration::ZERO);
            assert_eq!(clock.at(now + 20 * MS), now + 20 * MS);
        }
    }

    #[test]
    fn a_stall_is_left_out_before_and_after_the_late_beat() {
        let start = Instant::now();
        let clock = Clock::new(start);
        // 5 s in which nothing ran; whoever asks first, sees at most LIMIT pass.
        let late = start + 5000 * MS;
        assert_eq!(clock.at(late), start + LIMIT);
        assert_eq!(clock.beat(late), 5000 * MS - LIMIT);
        assert_eq!(
            clock.at(late),
            start + LIMIT,
            "the beat itself moves nothing"
        );
        assert_eq!(clock.at(late + 10 * MS), start + LIMIT + 10 * MS);
        assert_eq!(clock.real(start + LIMIT + 10 * MS), late + 10 * MS);
    }

    #[test]
    fn it_never_goes_back() {
        let start = Instant::now();
        let clock = Clock::new(start);
        let (mut real, mut shown) = (start, clock.at(start));
        let gaps = [10_u32, 200, 3, 900, 150, 151, 40, 0, 100, 5000];
        for (index, gap) in gaps.iter().cycle().take(70).enumerate() {
            real += *gap * MS;
            let now = clock.at(real);
            assert!(now >= shown, "{index}");
            shown = now;
            if index % 3 == 0 {
                clock.beat(real);
            }
        }
    }
}
