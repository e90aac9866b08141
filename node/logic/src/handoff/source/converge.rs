//! Whether pre-copy gets anywhere.
//!
//! Each pass sends what the guest has dirtied during the one before. Where the
//! link takes less than the guest dirties, pass after pass leaves as much to
//! send as the last one, and no waiting helps. That is a stall: [`PATIENCE`]
//! passes in a row that left no less than [`PROGRESS`] percent of the best so far.
//!
//! QEMU stops the guest as soon as it believes that what is left fits into the
//! pause that it may take. Given all of that from the beginning, it takes it: an
//! idle guest stands still while the last hundred megabytes of the first pass are
//! sent. So it is given a small part at first ([`pause_limit`]), and all of it only
//! when two passes have shown that less will not do.

use godwit_shared::model::{Bytes, Millis};

/// Passes without progress before it counts as a stall.
const PATIENCE: u8 = 3;
/// What a pass may leave of the best before it, in percent, to be progress.
const PROGRESS: u64 = 90;
/// The first pass sends everything: only those after it can be compared.
const FIRST_COMPARED: u32 = 2;

/// What the passes so far have left to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Convergence {
    best: Option<u64>,
    without_progress: u8,
    told: bool,
}

impl Convergence {
    /// A pass begins with so much to send. True once: when it has stalled.
    pub(super) fn pass(&mut self, number: u32, remaining: Bytes) -> bool {
        if number < FIRST_COMPARED {
            return false;
        }
        let best = self.best.unwrap_or(u64::MAX);
        let progress = remaining.0 < best / 100 * PROGRESS;
        self.best = Some(best.min(remaining.0));
        self.without_progress = if progress {
            0
        } else {
            self.without_progress.saturating_add(1)
        };
        self.without_progress >= PATIENCE && !std::mem::replace(&mut self.told, true)
    }
}

/// The pause that QEMU may take when pass `pass` has begun, of the one that was
/// asked for (`downtime-limit`).
pub fn pause_limit(pass: u32, asked: Millis) -> Millis {
    let part = match pass {
        0 | 1 => 12,
        2 => 4,
        _ => 1,
    };
    Millis(asked.0.div_ceil(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_is_given_in_parts() {
        let limits = (1..5).map(|pass| pause_limit(pass, Millis(300)).0);
        assert_eq!(limits.collect::<Vec<_>>(), [25, 75, 300, 300]);
        assert_eq!(pause_limit(1, Millis(1)), Millis(1));
        assert_eq!(pause_limit(1, Millis(0)), Millis(0));
        assert_eq!(pause_limit(3, Millis(u64::MAX)), Millis(u64::MAX));
    }

    fn passes(remaining: &[u64]) -> Vec<bool> {
        let mut convergence = Convergence::default();
        let numbered = remaining.iter().zip(1_u32..);
        numbered
            .map(|(left, number)| convergence.pass(number, Bytes(left << 20)))
            .collect()
    }

    #[test]
    fn less_and_less_is_no_stall() {
        assert!(!passes(&[2048, 900, 500, 300, 100, 60, 30]).contains(&true));
        assert!(!passes(&[2048, 900, 950, 920, 500, 510, 520, 300]).contains(&true));
    }

    #[test]
    fn as_much_as_before_is_a_stall_and_told_once() {
        let told = passes(&[2048, 900, 880, 905, 890, 900, 910]);
        assert_eq!(told, [false, false, false, false, true, false, false]);
    }

    #[test]
    fn the_first_pass_is_not_compared() {
        assert!(!passes(&[10, 900, 905, 903]).contains(&true));
    }
}
