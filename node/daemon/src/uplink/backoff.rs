//! How long to wait before the coordinator is tried again.

use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

/// The waits between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The first wait; each further one is twice as long.
    pub first: Duration,
    /// The longest wait.
    pub most: Duration,
    /// The wait after a refusal, which somebody has to put right.
    pub refused: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            most: Duration::from_secs(5),
            refused: Duration::from_secs(30),
        }
    }
}

/// Counts the attempts in vain.
#[derive(Debug)]
pub struct Backoff {
    pace: Pace,
    failures: u32,
}

impl Backoff {
    /// Nothing was tried yet.
    pub const fn new(pace: Pace) -> Self {
        Self { pace, failures: 0 }
    }

    /// A session stood: the next wait is short again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after a failure. `chance`, 0 to 1, spreads the nodes of a
    /// cluster over the second half of the wait, so that they do not all come
    /// back to a new coordinator in the same moment.
    pub fn after_failure(&mut self, chance: f64) -> Duration {
        let doubled = self
            .pace
            .first
            .saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = (self.failures + 1).min(31);
        spread(doubled.min(self.pace.most), chance)
    }

    /// The wait after a refusal.
    pub fn after_refusal(&self, chance: f64) -> Duration {
        spread(self.pace.refused, chance)
    }
}

fn spread(wait: Duration, chance: f64) -> Duration {
    wait.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
}

/// A number from 0 to 1; good enough for spreading waits.
pub fn chance() -> f64 {
    // The standard library seeds every hasher's keys from the system.
    let bits = std::hash::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_start_again() {
        let mut backoff = Backoff::new(Pace::default());
        let waits: Vec<u128> = (0..40)
            .map(|_| backoff.after_failure(1.0).as_millis())
            .collect();
        assert_eq!(waits[..7], [100, 200, 400, 800, 1600, 3200, 5000]);
        assert!(waits[7..].iter().all(|wait| *wait == 5000));
        backoff.reset();
        assert_eq!(backoff.after_failure(0.0), Duration::from_millis(50));
        assert_eq!(backoff.after_refusal(1.0), Duration::from_secs(30));
    }

    #[test]
    fn chances_differ_and_stay_within_bounds() {
        let chances: Vec<f64> = (0..50).map(|_| chance()).collect();
        assert!(chances.iter().all(|chance| (0.0..1.0).contains(chance)));
        assert!(chances.iter().any(|chance| *chance < 0.5));
        assert!(chances.iter().any(|chance| *chance >= 0.5));
    }
}
