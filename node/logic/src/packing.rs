//! Whether the memory of a migration is packed before it is sent, and how hard.
//!
//! Packing costs both hosts CPU and saves the link, and both hosts the cost of
//! sending; which is more depends on the link, the CPUs, what else they do, and
//! the memory. Nothing of that is known beforehand, but what it comes to can be
//! measured: how many bytes a second are taken from QEMU. So each way is used for
//! a moment (a *trial*), the best one then for longer (a *stretch*), and so on.
//!
//! ```text
//!            memory can be packed            faster than plain
//!  plain ───────────────────────► fast ─────────────────────────► dense
//!    ▲  trial                      trial │                         trial │
//!    └───────────────── stretch of the best ◄────────────────────────────┘
//! ```
//!
//! The stretches get longer while the same way wins: a trial of a slower way
//! costs time.
//!
//! Memory that cannot be packed costs next to nothing: while it is sent plain, a
//! small part of it is packed to see whether that would help, and only when it
//! does is a trial worth it. When a packed stretch comes to such memory, it ends.
//!
//! A sender that waits for QEMU and not for the link (a bandwidth limit, an idle
//! guest) is equally fast in every way, and then sends plain.
//!
//! Invariant: the receiver need not know any of this; every piece says what it is.

use std::time::Duration;

/// How bytes are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// As they are.
    #[default]
    Plain,
    /// As little work as possible.
    Fast,
    /// Smaller, for some more work.
    Dense,
}

/// A way has to be so much faster to be better, in percent.
const BETTER: u64 = 105;
/// Memory can be packed when this is left of it, in percent, or less.
const WORTH: u64 = 80;
/// Bytes that go by before a trial is measured: those on the way were sent in
/// another way.
const SETTLE: u64 = 4 << 20;
/// A measurement has at least so many bytes and takes at least so long.
const LEAST: u64 = 4 << 20;
const TRIAL: Duration = Duration::from_millis(80);
/// How long the best way is used before the others are tried again: at first,
/// and when it has won over and over.
const STRETCH: Duration = Duration::from_millis(1500);
const LONGEST: Duration = Duration::from_secs(6);
/// Bytes between two looks at whether plain memory could be packed.
const BETWEEN_LOOKS: u64 = 8 << 20;

/// Chooses for all channels of a migration together.
#[derive(Debug)]
pub struct Chooser {
    way: Packing,
    step: Step,
    /// Bytes a second in each way; what was measured last counts half, because
    /// memory is not alike everywhere.
    rates: [Option<u64>; 3],
    /// The winner of the last round, and how long it is used.
    won: Option<Packing>,
    stretch: Duration,
    /// Since this measurement began.
    since: Option<Duration>,
    bytes: u64,
    settling: u64,
    until_look: u64,
    looked: Share,
    packed: Share,
}

/// Where a round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Trial,
    Stretch,
}

/// What packing has left of what.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    before: u64,
    after: u64,
}

impl Share {
    fn add(&mut self, before: u64, after: u64) {
        self.before = self.before.saturating_add(before);
        self.after = self.after.saturating_add(after);
    }

    fn is_worth_it(self) -> bool {
        self.before > 0 && self.after.saturating_mul(100) <= self.before.saturating_mul(WORTH)
    }
}

impl Default for Chooser {
    fn default() -> Self {
        Self {
            way: Packing::Plain,
            step: Step::Trial,
            rates: [None; 3],
            won: None,
            stretch: STRETCH,
            since: None,
            bytes: 0,
            settling: 0,
            until_look: 0,
            looked: Share::default(),
            packed: Share::default(),
        }
    }
}

impl Chooser {
    /// How the next piece is sent.
    pub fn way(&self) -> Packing {
        self.way
    }

    /// Whether a part of the next plain piece should be packed, only to see what
    /// that would bring.
    pub fn wants_look(&self) -> bool {
        self.way == Packing::Plain && self.until_look == 0
    }

    /// What such a look has found.
    pub fn looked(&mut self, before: u64, after: u64) {
        self.until_look = BETWEEN_LOOKS;
        self.looked.add(before, after);
    }

    /// What packing has made of a piece that was sent.
    pub fn packed(&mut self, before: u64, after: u64) {
        self.packed.add(before, after);
    }

    /// So many bytes of QEMU's have been handed to the transport by `now`, on a
    /// clock of the caller's.
    pub fn sent(&mut self, bytes: u64, now: Duration) {
        self.until_look = self.until_look.saturating_sub(bytes);
        self.settling = self.settling.saturating_sub(bytes);
        if self.settling > 0 {
            return;
        }
        let since = *self.since.get_or_insert(now);
        self.bytes = self.bytes.saturating_add(bytes);
        let took = now.saturating_sub(since);
        let most = match self.step {
            Step::Trial => TRIAL,
            Step::Stretch => self.stretch,
        };
        if took >= TRIAL && self.bytes >= LEAST && self.is_in_vain() {
            (self.won, self.stretch) = (None, STRETCH);
            return self.use_way(Packing::Plain, Step::Stretch);
        }
        if took >= most && self.bytes >= LEAST {
            let rate = u128::from(self.bytes) * 1000 / took.as_millis().max(1);
            self.measured(u64::try_from(rate).unwrap_or(u64::MAX));
        }
    }

    /// Packing brings nothing any more.
    fn is_in_vain(&self) -> bool {
        self.way != Packing::Plain && self.packed.before > 0 && !self.packed.is_worth_it()
    }

    fn measured(&mut self, rate: u64) {
        let known = &mut self.rates[self.way as usize];
        *known = Some(known.map_or(rate, |before| before / 2 + rate / 2));
        match (self.step, self.way) {
            (Step::Stretch, _) => self.use_way(Packing::Plain, Step::Trial),
            (Step::Trial, Packing::Plain) if self.looked.is_worth_it() => {
                self.use_way(Packing::Fast, Step::Trial);
            }
            (Step::Trial, Packing::Plain) => self.use_way(Packing::Plain, Step::Stretch),
            // More of the same work will not pay either.
            (Step::Trial, Packing::Fast) if !self.beats(Packing::Fast, Packing::Plain) => {
                self.stay_with(Packing::Plain);
            }
            (Step::Trial, Packing::Fast) => self.use_way(Packing::Dense, Step::Trial),
            (Step::Trial, Packing::Dense) => {
                let dense = self.beats(Packing::Dense, Packing::Fast);
                self.stay_with(if dense { Packing::Dense } else { Packing::Fast });
            }
        }
    }

    /// The cheaper way wins when there is no difference.
    fn beats(&self, way: Packing, cheaper: Packing) -> bool {
        let [way, cheaper] = [way, cheaper].map(|way| self.rates[way as usize].unwrap_or(0));
        u128::from(way) * 100 > u128::from(cheaper) * u128::from(BETTER)
    }

    /// Uses the winner of a round, for longer each time that it wins again.
    fn stay_with(&mut self, way: Packing) {
        self.stretch = if self.won == Some(way) {
            (self.stretch * 2).min(LONGEST)
        } else {
            STRETCH
        };
        self.won = Some(way);
        self.use_way(way, Step::Stretch);
    }

    fn use_way(&mut self, way: Packing, step: Step) {
        if self.way != way {
            self.settling = SETTLE;
        }
        if way == Packing::Plain && step == Step::Trial {
            self.looked = Share::default();
            self.until_look = 0;
        }
        self.packed = Share::default();
        (self.way, self.step) = (way, step);
        (self.since, self.bytes) = (None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A sender whose speed in MiB/s depends on the way, and memory of which
    /// packing leaves a share in percent.
    struct Sender {
        chooser: Chooser,
        now: Duration,
        speeds: [u64; 3],
        leaves: u64,
        looks: u64,
    }

    impl Sender {
        fn new(speeds: [u64; 3], leaves: u64) -> Self {
            Self {
                chooser: Chooser::default(),
                now: Duration::ZERO,
                speeds,
                leaves,
                looks: 0,
            }
        }

        /// Sends for some seconds; how many bytes went in each way, in percent.
        fn send(&mut self, seconds: u64) -> [u64; 3] {
            let end = self.now + Duration::from_secs(seconds);
            let mut sent = [0; 3];
            while self.now < end {
                let way = self.chooser.way();
                if self.chooser.wants_look() {
                    self.looks += 1;
                    self.chooser.looked(1000, 10 * self.leaves);
                }
                if way != Packing::Plain {
                    self.chooser.packed(MIB, MIB / 100 * self.leaves);
                }
                self.now +=
                    Duration::from_secs(1) / u32::try_from(self.speeds[way as usize]).unwrap_or(1);
                self.chooser.sent(MIB, self.now);
                sent[way as usize] += 1;
            }
            let all: u64 = sent.iter().sum();
            sent.map(|some| some * 100 / all)
        }
    }

    #[test]
    fn the_fastest_way_is_used_most() {
        let [_, _, dense] = Sender::new([110, 190, 260], 42).send(10);
        assert!(dense >= 80, "on a slow link: {dense} %");
        let [_, fast, _] = Sender::new([300, 500, 250], 50).send(10);
        assert!(fast >= 80, "on a link that is not much slower: {fast} %");
        let [plain, _, dense] = Sender::new([900, 500, 250], 50).send(10);
        assert!(plain >= 95, "on a fast link: {plain} %");
        assert_eq!(dense, 0, "more work was tried after less did not pay");
    }

    #[test]
    fn memory_that_cannot_be_packed_is_sent_plain() {
        let mut sender = Sender::new([300, 200, 100], 99);
        assert_eq!(sender.send(10), [100, 0, 0]);
        assert!(sender.looks < 3000 / 8 + 20, "{}", sender.looks);
    }

    #[test]
    fn without_a_difference_nothing_is_packed() {
        let [plain, ..] = Sender::new([50, 50, 50], 30).send(20);
        assert!(plain >= 75, "{plain} %");
    }

    #[test]
    fn what_changes_meanwhile_is_noticed() {
        let mut sender = Sender::new([110, 190, 260], 42);
        sender.send(5);
        sender.leaves = 98;
        sender.speeds = [110, 100, 90];
        sender.send(2);
        assert_eq!(sender.send(5), [100, 0, 0]);
        sender.leaves = 42;
        sender.speeds = [110, 190, 260];
        sender.send(3);
        let [_, _, dense] = sender.send(10);
        assert!(dense >= 70, "{dense} %");
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_does_no_harm() {
        let mut chooser = Chooser::default();
        for at in [5, 5, 5, 1, 0, 9] {
            chooser.looked(0, 0);
            chooser.sent(100 * MIB, Duration::from_millis(at));
        }
        assert_eq!(chooser.way(), Packing::Plain);
    }
}
