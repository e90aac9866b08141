//! The writer: fills the memory, then checks and rewrites it at the asked rate
//! between the orders of the console.

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::command::Order;
use crate::console;
use crate::memory::{Finding, Memory, Tally};
use crate::options::{BytesPerSec, Options};
use crate::page::PAGE_BYTES;

/// Damage was found by `exit-check`.
const EXIT_DAMAGED: u8 = 3;
/// Pages between two looks at the inbox.
const BATCH_PAGES: u64 = 256;
/// Between two batches when the rate leaves time.
const NAP: Duration = Duration::from_millis(5);
/// The console is slow: more damage than this is counted, but not spelled out.
const SPELLED_OUT: u64 = 64;

/// Works until `exit-check`.
pub(crate) fn run(options: &Options, tally: &Tally, inbox: &Receiver<Order>) -> ExitCode {
    let start = Instant::now();
    let memory = Memory::filled(options.fill.0, options.pattern, options.seed);
    console::line(&format!(
        "filled pages={} ms={}",
        memory.len(),
        start.elapsed().as_millis()
    ));
    let mut writer = Writer {
        memory,
        tally,
        pace: Pace::new(options.rate, Instant::now()),
    };
    writer.work(inbox)
}

struct Writer<'a> {
    memory: Memory,
    tally: &'a Tally,
    pace: Pace,
}

impl Writer<'_> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread of its own with a pace to keep"
    )]
    fn work(&mut self, inbox: &Receiver<Order>) -> ExitCode {
        loop {
            let due = self.pace.pages_due(Instant::now()).min(BATCH_PAGES);
            for _ in 0..due {
                self.memory
                    .rewrite_next(self.tally, &mut reporter(self.tally));
            }
            self.pace.wrote(due);
            let wait = if due == BATCH_PAGES {
                Duration::ZERO
            } else {
                NAP
            };
            match inbox.recv_timeout(wait) {
                Ok(order) => {
                    if let Some(code) = self.obey(order) {
                        return code;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // No console to take orders from: wait out the time alone.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(wait),
            }
        }
    }

    /// The exit code, when the order ends the work.
    fn obey(&mut self, order: Order) -> Option<ExitCode> {
        match order {
            Order::Check => {
                self.check();
                None
            }
            Order::ExitCheck => {
                let sound = self.check() == 0;
                let code = if sound { 0 } else { EXIT_DAMAGED };
                Some(ExitCode::from(code))
            }
            Order::Rate(rate) => {
                self.pace = Pace::new(rate, Instant::now());
                console::line(&format!("rate {}", rate.0));
                None
            }
            Order::Corrupt(place) => {
                let done = if self.memory.corrupt(place) {
                    "done"
                } else {
                    "no such page"
                };
                console::line(&format!("corrupt index={place} {done}"));
                None
            }
        }
    }

    /// Checks everything at once; the number of all damage found so far.
    fn check(&mut self) -> u64 {
        self.memory.check_all(self.tally, &mut reporter(self.tally));
        let bad = self.tally.bad();
        console::line(&format!("check pages={} bad={bad}", self.memory.len()));
        bad
    }
}

fn reporter(tally: &Tally) -> impl FnMut(Finding) + '_ {
    |finding| {
        if tally.bad() <= SPELLED_OUT {
            console::line(&finding.to_string());
        }
    }
}

/// Turns a rate into pages that are due, and forgives what was not done in time.
struct Pace {
    rate: BytesPerSec,
    /// Bytes that are due, in microbytes so that slow rates lose nothing.
    owed: u128,
    last: Instant,
}

const MICRO: u128 = 1_000_000;
const PAGE_MICROBYTES: u128 = PAGE_BYTES as u128 * MICRO;

impl Pace {
    fn new(rate: BytesPerSec, now: Instant) -> Self {
        Self {
            rate,
            owed: 0,
            last: now,
        }
    }

    /// Pages to write now. Never more than a tenth of a second's worth (and at
    /// least one page), so that a pause is not followed by a burst.
    fn pages_due(&mut self, now: Instant) -> u64 {
        let rate = u128::from(self.rate.0);
        let passed = now.saturating_duration_since(self.last).as_micros();
        self.last = now;
        let most = (rate * MICRO / 10).max(PAGE_MICROBYTES);
        self.owed = (self.owed + rate * passed).min(most);
        u64::try_from(self.owed / PAGE_MICROBYTES).unwrap_or(u64::MAX)
    }

    fn wrote(&mut self, pages: u64) {
        let paid = u128::from(pages) * PAGE_MICROBYTES;
        self.owed = self.owed.saturating_sub(paid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages written in `seconds` of steps of `step`.
    fn written(rate: u64, step: Duration, steps: u32) -> u64 {
        let start = Instant::now();
        let mut pace = Pace::new(BytesPerSec(rate), start);
        (1..=steps)
            .map(|n| {
                let due = pace.pages_due(start + step * n);
                pace.wrote(due);
                due
            })
            .sum()
    }

    #[test]
    fn a_rate_is_kept_however_often_one_looks() {
        let rate = 16 << 20;
        assert_eq!(written(rate, Duration::from_millis(5), 200), 4096);
        assert_eq!(written(rate, Duration::from_micros(300), 10_000), 3 * 4096);
    }

    #[test]
    fn less_than_a_page_at_a_look_adds_up() {
        assert_eq!(written(PAGE_BYTES, Duration::from_millis(5), 2_000), 10);
    }

    #[test]
    fn a_pause_is_forgiven() {
        let pages = written(10 * PAGE_BYTES, Duration::from_secs(60), 1);
        assert_eq!(pages, 1);
    }

    #[test]
    fn no_rate_no_work() {
        assert_eq!(written(0, Duration::from_secs(1), 100), 0);
    }

    #[test]
    fn an_exit_check_of_damaged_memory_says_so() {
        let tally = Tally::default();
        let mut writer = Writer {
            memory: Memory::filled(4 * PAGE_BYTES, crate::page::Pattern::Random, 1),
            tally: &tally,
            pace: Pace::new(BytesPerSec(0), Instant::now()),
        };
        assert_eq!(writer.obey(Order::ExitCheck), Some(ExitCode::from(0)));
        assert_eq!(writer.obey(Order::Corrupt(2)), None);
        assert_eq!(
            writer.obey(Order::ExitCheck),
            Some(ExitCode::from(EXIT_DAMAGED))
        );
    }
}
