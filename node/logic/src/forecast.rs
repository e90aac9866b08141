//! How a migration will go, before it begins.
//!
//! Pre-copy is a series of passes: each sends what is left, and what the guest
//! writes meanwhile is left for the next. With `m` bytes to send, a link that
//! takes `l` and a guest that dirties `d` bytes a second, pass n sends
//! `m (d/l)^n`; it ends when what is left fits into the pause that was asked for.
//! What is known beforehand is rough, so the passes are gone through twice, with
//! everything as good and with everything as bad as nine cases of ten have it,
//! and the two ends make the interval.
//!
//! When the guest stops, QEMU has handed over more than has arrived: what waits
//! on this side goes at the link's rate, what waits on the other at that of a host
//! that touches memory for the first time. Both lengthen the pause.
//!
//! Auto-converge is modelled as QEMU does it (`migration/ram.c`): while a pass
//! leaves more than half of what it sent, the guest is slowed down by 20 %, then
//! by 10 % more each time, up to 99 %.
//!
//! Invariant: `low` is never above `high`.

use crate::handoff::pause_limit;
use godwit_shared::model::{
    Bytes, BytesPerSec, Forecast, MigrationPolicy, Millis, Postcopy, Span, TimeoutAction,
};

/// What was measured beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Memory in use: what has to be sent once.
    pub memory: Bytes,
    /// How fast the guest dirties it.
    pub dirty_rate: BytesPerSec,
    /// What the link takes, as far as that was measured.
    pub link: LinkSample,
}

/// What a link was seen to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkSample {
    /// The rate that was measured.
    pub rate: BytesPerSec,
    /// How many times that it may take at most.
    pub headroom: Headroom,
}

/// How far a measured rate may lie below what a link takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Headroom {
    /// The link was filled for some 100 ms: half as much again.
    Trial,
    /// A few MiB went by while the connection still began slowly (RFC 9002 7.3.1)
    /// and both hosts started a QEMU: 5 to 14 times as much was seen to pass later.
    Peek,
}

impl LinkSample {
    fn most(self) -> BytesPerSec {
        let rate = self.rate.0;
        BytesPerSec(match self.headroom {
            Headroom::Trial => rate.saturating_mul(3) / 2,
            Headroom::Peek => rate.saturating_mul(16),
        })
    }
}

/// What it takes apart from memory: connecting, checks, the start of the target's
/// QEMU. Measured from 0.1 s on an idle host to some seconds on a loaded one.
const SETUP: (u64, u64) = (50, 4_000);
/// What the pause takes apart from memory: the device state and the handoff.
const SWITCH: (u64, u64) = (2, 250);
/// What may wait on the source when the guest stops (the connection's send window).
const WAITS_HERE: u64 = 4 << 20;
/// What may wait on the target (the connection's receive window), and how fast it
/// is taken there when that memory is touched for the first time: 2 to 3 s a GiB.
const WAITS_THERE: u64 = 12 << 20;
const FIRST_TOUCH: u64 = 400 << 20;
/// Passes after which it will not converge by itself.
const MOST_PASSES: u32 = 60;
/// QEMU's throttle: its first step, its next ones, its limit, in percent.
const THROTTLE: (u64, u64, u64) = (20, 10, 99);

/// Nine of ten migrations of such a guest should end within these intervals.
pub fn forecast(sample: Sample, policy: &MigrationPolicy) -> Forecast {
    let good = Passes::of(Conditions::good(sample, policy), policy);
    let bad = Passes::of(Conditions::bad(sample, policy), policy);
    Forecast {
        duration: span(
            SETUP.0.saturating_add(good.took),
            SETUP.1.saturating_add(bad.took),
        ),
        blackout: span(
            SWITCH.0,
            (SWITCH.1 + drain(sample, policy)).saturating_add(bad.pause.max(good.pause)),
        ),
        converges: sample.dirty_rate < capped(sample.link.rate, policy),
        memory: sample.memory,
        dirty_rate: sample.dirty_rate,
        link_rate: sample.link.rate,
    }
}

fn span(low: u64, high: u64) -> Span {
    Span {
        low: Millis(low),
        high: Millis(high.max(low)),
    }
}

/// The most that it takes until nothing waits any more, in milliseconds.
fn drain(sample: Sample, policy: &MigrationPolicy) -> u64 {
    let millis =
        |waits: u64, rate: u64| waits.min(sample.memory.0).saturating_mul(1000) / rate.max(1);
    let here = millis(WAITS_HERE, sample.link.rate.0);
    // A slower stream is taken as it comes.
    let floods = capped(sample.link.rate, policy).0 > FIRST_TOUCH;
    here + if floods {
        millis(WAITS_THERE, FIRST_TOUCH)
    } else {
        0
    }
}

fn capped(link: BytesPerSec, policy: &MigrationPolicy) -> BytesPerSec {
    policy.bandwidth.map_or(link, |limit| limit.min(link))
}

/// One way in which it may go.
#[derive(Debug, Clone, Copy)]
struct Conditions {
    memory: u64,
    dirty: u64,
    link: u64,
}

impl Conditions {
    /// Half of the memory is zero pages, the guest does half of what it did, and
    /// the link takes the most that the sample leaves possible.
    fn good(sample: Sample, policy: &MigrationPolicy) -> Self {
        Self {
            memory: sample.memory.0 / 2,
            dirty: sample.dirty_rate.0 / 2,
            link: capped(sample.link.most(), policy).0.max(1),
        }
    }

    /// The guest touches some more, writes twice as much, and QEMU fills no more
    /// than a quarter of the link.
    fn bad(sample: Sample, policy: &MigrationPolicy) -> Self {
        Self {
            memory: sample.memory.0.saturating_mul(5) / 4,
            dirty: sample.dirty_rate.0.saturating_mul(2),
            link: (sample.link.rate.0 / 4)
                .min(capped(sample.link.rate, policy).0 / 10 * 9)
                .max(1),
        }
    }

    fn millis(self, bytes: u64) -> u64 {
        let millis = u128::from(bytes) * 1000 / u128::from(self.link);
        u64::try_from(millis).unwrap_or(u64::MAX)
    }
}

/// What the passes come to, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Passes {
    took: u64,
    pause: u64,
}

impl Passes {
    fn of(conditions: Conditions, policy: &MigrationPolicy) -> Self {
        let mut state = Passing {
            conditions,
            left: conditions.memory,
            took: 0,
            throttle: 0,
        };
        for pass in 0..MOST_PASSES {
            let sent = state.left;
            state.pass();
            let pause = conditions.millis(state.left);
            if pause <= pause_limit(pass + 1, policy.downtime).0 {
                return state.end(pause);
            }
            if let Some(end) = state.decided(pass, pause, policy) {
                return end;
            }
            if policy.auto_converge && state.left > sent / 2 {
                state.slow_down();
            }
        }
        let pause = conditions.millis(state.left).min(policy.downtime.0);
        state.end(pause)
    }
}

#[derive(Debug, Clone, Copy)]
struct Passing {
    conditions: Conditions,
    left: u64,
    took: u64,
    throttle: u64,
}

impl Passing {
    /// Sends what is left; what is dirtied meanwhile is left then, and never
    /// more than all of it.
    fn pass(&mut self) {
        let took = self.conditions.millis(self.left);
        self.took = self.took.saturating_add(took);
        let dirty = self.conditions.dirty / 100 * (100 - self.throttle);
        let dirtied = u128::from(dirty) * u128::from(took) / 1000;
        let all = u128::from(self.conditions.memory);
        self.left = u64::try_from(dirtied.min(all)).unwrap_or(u64::MAX);
    }

    fn slow_down(&mut self) {
        let step = if self.throttle == 0 {
            THROTTLE.0
        } else {
            THROTTLE.1
        };
        self.throttle = (self.throttle + step).min(THROTTLE.2);
    }

    /// What the policy does with one that has not converged.
    fn decided(self, pass: u32, pause: u64, policy: &MigrationPolicy) -> Option<Passes> {
        let stalls = pass > 2 && self.left > self.conditions.memory / 2;
        let early = match policy.postcopy {
            Postcopy::Always => true,
            Postcopy::Fallback => stalls,
            Postcopy::Never => false,
        };
        if early {
            // The rest follows while the guest runs there already.
            return Some(self.end(0));
        }
        let limit = policy.timeout?.0;
        (self.took >= limit).then(|| match policy.timeout_action {
            TimeoutAction::Suspend | TimeoutAction::Force => self.end(pause),
            TimeoutAction::Cancel | TimeoutAction::Postcopy => self.end(0),
        })
    }

    fn end(self, pause: u64) -> Passes {
        Passes {
            took: self.took.saturating_add(pause),
            pause,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn sample(memory: u64, dirty: u64, link: u64) -> Sample {
        Sample {
            memory: Bytes(memory * MIB),
            dirty_rate: BytesPerSec(dirty * MIB),
            link: link_sample(BytesPerSec(link * MIB)),
        }
    }

    fn link_sample(rate: BytesPerSec) -> LinkSample {
        LinkSample {
            rate,
            headroom: Headroom::Trial,
        }
    }

    fn policy() -> MigrationPolicy {
        MigrationPolicy::default()
    }

    #[test]
    fn an_idle_guest_takes_one_pass() {
        let found = forecast(sample(1024, 0, 1024), &policy());
        assert!(found.converges);
        assert!(found.duration.holds(Millis(1_200)), "{:?}", found.duration);
        assert!(!found.duration.holds(Millis(20_000)));
        assert!(found.blackout.holds(Millis(40)) && !found.blackout.holds(Millis(500)));
    }

    #[test]
    fn what_waits_on_a_slow_link_lengthens_the_pause() {
        let found = forecast(sample(1024, 0, 10), &policy());
        assert!(found.blackout.holds(Millis(600)), "{:?}", found.blackout);
        let flood = forecast(sample(1024, 0, 1400), &policy()).blackout.high;
        let trickle = MigrationPolicy {
            bandwidth: Some(BytesPerSec(32 * MIB)),
            ..policy()
        };
        assert!(forecast(sample(1024, 0, 1400), &trickle).blackout.high < flood);
    }

    #[test]
    fn a_peek_at_the_link_says_what_it_takes_at_least() {
        let peeked = |headroom| {
            let mut sample = sample(128, 7, 88);
            sample.link.headroom = headroom;
            forecast(sample, &policy())
        };
        let [trial, peek] = [Headroom::Trial, Headroom::Peek].map(peeked);
        // Seen: a move that took 311 ms over a link of 1.2 GB/s.
        assert!(!trial.duration.holds(Millis(311)) && peek.duration.holds(Millis(311)));
        assert_eq!(trial.duration.high, peek.duration.high);
        assert_eq!(trial.blackout, peek.blackout);
    }

    #[test]
    fn a_writer_makes_it_longer_and_its_pause_too() {
        let idle = forecast(sample(1024, 0, 400), &policy());
        let busy = forecast(sample(1024, 64, 400), &policy());
        assert!(busy.converges);
        assert!(busy.duration.high > idle.duration.high);
        assert!(busy.blackout.high > idle.blackout.high);
        let most = SWITCH.1 + policy().downtime.0 + 20;
        assert!(busy.blackout.high.0 <= most, "{:?}", busy.blackout);
    }

    #[test]
    fn one_that_outruns_the_link_is_told() {
        let found = forecast(sample(1024, 600, 100), &policy());
        assert!(!found.converges);
        let slowed = forecast(sample(1024, 600, 100), &policy()).duration.high;
        let left_alone = MigrationPolicy {
            auto_converge: false,
            ..policy()
        };
        assert!(forecast(sample(1024, 600, 100), &left_alone).duration.high > slowed);
    }

    #[test]
    fn post_copy_pauses_shortly_however_much_is_written() {
        let postcopy = MigrationPolicy {
            postcopy: Postcopy::Always,
            ..policy()
        };
        let found = forecast(sample(1024, 600, 100), &postcopy);
        assert_eq!(found.blackout.high, Millis(SWITCH.1 + 40));
    }

    #[test]
    fn a_time_limit_bounds_it_and_forces_a_long_pause() {
        let forced = MigrationPolicy {
            timeout: Some(Millis(5_000)),
            timeout_action: TimeoutAction::Force,
            auto_converge: false,
            ..policy()
        };
        let found = forecast(sample(1024, 600, 100), &forced);
        assert!(found.blackout.high.0 > 10_000, "{:?}", found.blackout);
    }

    #[test]
    fn a_limit_of_the_bandwidth_counts_as_the_link() {
        let slow = MigrationPolicy {
            bandwidth: Some(BytesPerSec(16 * MIB)),
            ..policy()
        };
        let found = forecast(sample(160, 0, 1000), &slow);
        assert!(found.duration.low.0 >= 5_000, "{:?}", found.duration);
        assert!(found.duration.holds(Millis(10_500)));
    }

    proptest! {
        #[test]
        fn intervals_are_in_order_whatever_comes(
            memory in any::<u64>(), dirty in any::<u64>(), link in any::<u64>(),
            bandwidth in prop::option::of(any::<u64>()), downtime in any::<u64>(),
            timeout in prop::option::of(any::<u64>()),
        ) {
            let found = forecast(
                Sample {
                    memory: Bytes(memory),
                    dirty_rate: BytesPerSec(dirty),
                    link: link_sample(BytesPerSec(link)),
                },
                &MigrationPolicy {
                    bandwidth: bandwidth.map(BytesPerSec),
                    downtime: Millis(downtime),
                    timeout: timeout.map(Millis),
                    ..policy()
                },
            );
            prop_assert!(found.duration.low <= found.duration.high);
            prop_assert!(found.blackout.low <= found.blackout.high);
        }
    }
}
