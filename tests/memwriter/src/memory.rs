//! The memory under test: pages, and apart from them what each must hold.
//!
//! The table of expected generations is memory of the guest too, and a fault
//! that took a page and its table entry back to the same moment would go
//! unseen. So the table has a sum of its own that is carried along with every
//! write and compared once in every cycle.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::page::{Damage, PAGE_BYTES, Page, Pattern, Stamp, fold};

/// Counts that the counter prints while the writer works.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    checked: AtomicU64,
    bad: AtomicU64,
}

impl Tally {
    pub(crate) fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    pub(crate) fn bad(&self) -> u64 {
        self.bad.load(Ordering::Relaxed)
    }

    pub(crate) fn add_checked(&self, pages: u64) {
        self.checked.fetch_add(pages, Ordering::Relaxed);
    }

    pub(crate) fn add_bad(&self) {
        self.bad.fetch_add(1, Ordering::Relaxed);
    }
}

/// Damage that a check found, in the words of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A page is not what was last written.
    Page { expected: Stamp, damage: Damage },
    /// The table of expected generations is not what was last written.
    Table { expected: u64, found: u64 },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page { expected, damage } => {
                let Stamp { index, generation } = expected;
                write!(f, "BADPAGE index={index} expected={generation} found=")?;
                match damage {
                    Damage::Zero => f.write_str("zero"),
                    Damage::Checksum => f.write_str("checksum"),
                    Damage::Place(index) => write!(f, "index:{index}"),
                    Damage::Generation(generation) => write!(f, "{generation}"),
                }
            }
            Self::Table { expected, found } => {
                write!(f, "BADTABLE expected={expected:016x} found={found:016x}")
            }
        }
    }
}

/// Pages of a known state, rewritten round-robin.
pub(crate) struct Memory {
    pages: Vec<Page>,
    /// `expected[i]` is the generation that page `i` must carry.
    expected: Vec<u64>,
    /// Sum over `expected`, carried along.
    table_sum: u64,
    cursor: usize,
    pattern: Pattern,
    seed: u64,
}

impl Memory {
    /// Writes every page of `bytes` (rounded down to pages) once.
    pub(crate) fn filled(bytes: u64, pattern: Pattern, seed: u64) -> Self {
        let stamps = (0..bytes / PAGE_BYTES).map(|index| Stamp {
            index,
            generation: 1,
        });
        let pages: Vec<Page> = stamps
            .map(|stamp| Page::new(stamp, pattern, seed))
            .collect();
        let expected = vec![1; pages.len()];
        Self {
            table_sum: sum_of(&expected),
            pages,
            expected,
            cursor: 0,
            pattern,
            seed,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Checks the next page in turn and writes it anew; checks the table when
    /// it comes round.
    pub(crate) fn rewrite_next(&mut self, tally: &Tally, report: &mut impl FnMut(Finding)) {
        if self.is_empty() {
            return;
        }
        if self.cursor == 0 {
            self.check_table(tally, report);
        }
        let place = self.cursor;
        let expected = self.stamp(place);
        self.check_page(place, tally, report);
        let next = Stamp {
            generation: expected.generation + 1,
            ..expected
        };
        self.pages[place].write(next, self.pattern, self.seed);
        self.table_sum ^= entry(expected) ^ entry(next);
        self.expected[place] = next.generation;
        self.cursor = (place + 1) % self.pages.len();
    }

    /// Checks every page and the table, and writes nothing.
    pub(crate) fn check_all(&mut self, tally: &Tally, report: &mut impl FnMut(Finding)) {
        self.check_table(tally, report);
        for place in 0..self.pages.len() {
            self.check_page(place, tally, report);
        }
    }

    /// Flips a bit of a page; false when there is no such page.
    pub(crate) fn corrupt(&mut self, place: usize) -> bool {
        // Far inside the payload: the least obvious place.
        const BIT: usize = 20_000;
        match self.pages.get_mut(place) {
            Some(page) => page.flip(BIT),
            None => return false,
        }
        true
    }

    fn check_page(&self, place: usize, tally: &Tally, report: &mut impl FnMut(Finding)) {
        let expected = self.stamp(place);
        tally.add_checked(1);
        if let Err(damage) = self.pages[place].check(expected) {
            tally.add_bad();
            report(Finding::Page { expected, damage });
        }
    }

    fn check_table(&mut self, tally: &Tally, report: &mut impl FnMut(Finding)) {
        let found = sum_of(&self.expected);
        if found != self.table_sum {
            tally.add_bad();
            report(Finding::Table {
                expected: self.table_sum,
                found,
            });
            // Reported once, not in every cycle from now on.
            self.table_sum = found;
        }
    }

    fn stamp(&self, place: usize) -> Stamp {
        Stamp {
            index: place as u64,
            generation: self.expected[place],
        }
    }
}

/// XOR over the entries, so that one entry can be exchanged in the sum.
fn sum_of(expected: &[u64]) -> u64 {
    let stamps = expected.iter().zip(0..).map(|(generation, index)| Stamp {
        index,
        generation: *generation,
    });
    stamps.fold(0, |sum, stamp| sum ^ entry(stamp))
}

fn entry(stamp: Stamp) -> u64 {
    fold(fold(0, stamp.index + 1), stamp.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: usize = 8;

    fn memory() -> Memory {
        Memory::filled(PAGES as u64 * PAGE_BYTES + 100, Pattern::Random, 1)
    }

    /// Rewrites `pages` pages and returns what was found.
    fn rewrite(memory: &mut Memory, pages: usize) -> Vec<String> {
        let mut found = Vec::new();
        for _ in 0..pages {
            memory.rewrite_next(&Tally::default(), &mut |finding| {
                found.push(finding.to_string());
            });
        }
        found
    }

    #[test]
    fn whole_pages_only() {
        assert_eq!(memory().len(), PAGES);
    }

    #[test]
    fn no_memory_is_no_work() {
        let mut none = Memory::filled(PAGE_BYTES - 1, Pattern::Random, 1);
        assert!(none.is_empty());
        assert_eq!(rewrite(&mut none, 3), [""; 0]);
    }

    #[test]
    fn sound_memory_stays_silent_for_many_cycles() {
        let mut memory = memory();
        assert_eq!(rewrite(&mut memory, PAGES * 5 + 3), [""; 0]);
        assert_eq!(memory.expected, [7, 7, 7, 6, 6, 6, 6, 6]);
    }

    #[test]
    fn a_flipped_bit_is_reported_once_before_the_rewrite() {
        let mut memory = memory();
        assert!(memory.corrupt(3));
        let found = rewrite(&mut memory, PAGES * 2);
        assert_eq!(found, ["BADPAGE index=3 expected=1 found=checksum"]);
    }

    #[test]
    fn a_page_that_lost_its_last_write_is_reported() {
        let mut memory = memory();
        let old = memory.pages[2].clone();
        rewrite(&mut memory, PAGES);
        memory.pages[2] = old;
        let found = rewrite(&mut memory, PAGES);
        assert_eq!(found, ["BADPAGE index=2 expected=2 found=1"]);
    }

    #[test]
    fn pages_that_changed_places_are_reported() {
        let mut memory = memory();
        memory.pages.swap(0, 1);
        let found = rewrite(&mut memory, PAGES);
        assert_eq!(
            found,
            [
                "BADPAGE index=0 expected=1 found=index:1",
                "BADPAGE index=1 expected=1 found=index:0"
            ]
        );
    }

    #[test]
    fn a_page_and_its_entry_gone_stale_together_are_reported() {
        let mut memory = memory();
        let old = memory.pages[5].clone();
        rewrite(&mut memory, PAGES);
        memory.pages[5] = old;
        memory.expected[5] = 1;
        let found = rewrite(&mut memory, PAGES * 2);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("BADTABLE expected="), "{found:?}");
    }

    #[test]
    fn a_full_check_counts_and_changes_nothing() {
        let mut memory = memory();
        memory.corrupt(0);
        let tally = Tally::default();
        let mut found = 0;
        memory.check_all(&tally, &mut |_| found += 1);
        memory.check_all(&tally, &mut |_| found += 1);
        assert_eq!((found, tally.bad(), tally.checked()), (2, 2, 16));
    }

    #[test]
    fn a_page_that_is_not_there_cannot_be_corrupted() {
        assert!(!memory().corrupt(PAGES));
    }
}
