//! One 4 KiB page that knows who it is.
//!
//! Words 0 to 2 hold the page's index, its generation (how often it was
//! written) and a checksum over everything else; the rest is payload. A page
//! that was lost, moved to another place, torn or left at an older write is told
//! apart by these three.

/// Bytes of a page; the guest's own page size on every supported machine.
pub(crate) const PAGE_BYTES: u64 = 4096;

const WORDS: usize = 512;
const INDEX: usize = 0;
const GENERATION: usize = 1;
const CHECKSUM: usize = 2;
const PAYLOAD: usize = 3;
/// Words of the payload that stay random in a compressible page: about 1/8.
const RANDOM_WORDS: usize = 64;

/// What the payload looks like to a compressor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Cannot be compressed.
    Random,
    /// Packs to about an eighth.
    Compressible,
    /// Packs as the pages of real programs and texts do, because it is some.
    Corpus(&'static [CorpusPage]),
}

/// A page of a corpus: whatever the host put into the guest.
pub(crate) type CorpusPage = [u64; WORDS];

/// The whole pages of a corpus.
pub(crate) fn corpus(bytes: &[u8]) -> Vec<CorpusPage> {
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0, |sum, b| sum << 8 | u64::from(*b))
    };
    let page = |bytes: &[u8]| {
        let mut page = [0; WORDS];
        for (place, bytes) in page.iter_mut().zip(bytes.chunks_exact(8)) {
            *place = word(bytes);
        }
        page
    };
    bytes.chunks_exact(WORDS * 8).map(page).collect()
}

/// Which page, written for which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Place of the page in the memory.
    pub(crate) index: u64,
    /// Number of the write, from 1.
    pub(crate) generation: u64,
}

/// How a page differs from what was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Nothing but zeros: the page never arrived.
    Zero,
    /// The contents do not match the page's own checksum.
    Checksum,
    /// A sound page, but of another place.
    Place(u64),
    /// A sound page, but of another write: usually an older one.
    Generation(u64),
}

/// A page of the memory under test, alone in its 4 KiB.
#[derive(Clone)]
#[repr(C, align(4096))]
pub(crate) struct Page([u64; WORDS]);

impl Page {
    /// A page as `stamp` says, with contents that follow from `stamp` and `seed`.
    pub(crate) fn new(stamp: Stamp, pattern: Pattern, seed: u64) -> Self {
        let mut page = Self([0; WORDS]);
        page.write(stamp, pattern, seed);
        page
    }

    /// Rewrites the whole page.
    pub(crate) fn write(&mut self, stamp: Stamp, pattern: Pattern, seed: u64) {
        let mut random = Random::new(seed, stamp);
        let (noise, rest) = match pattern {
            Pattern::Random => (WORDS, 0),
            Pattern::Compressible => (PAYLOAD + RANDOM_WORDS, random.next()),
            Pattern::Corpus(_) => (PAYLOAD, 0),
        };
        for word in &mut self.0[PAYLOAD..noise] {
            *word = random.next();
        }
        match pattern {
            Pattern::Corpus(pages) => self.0[noise..].copy_from_slice(&pick(pages, stamp)[noise..]),
            _ => self.0[noise..].fill(rest),
        }
        self.0[INDEX] = stamp.index;
        self.0[GENERATION] = stamp.generation;
        self.0[CHECKSUM] = self.checksum();
    }

    /// Compares the page with what `expected` says was last written.
    pub(crate) fn check(&self, expected: Stamp) -> Result<(), Damage> {
        if self.0[CHECKSUM] != self.checksum() {
            let zero = self.0.iter().all(|word| *word == 0);
            return Err(if zero { Damage::Zero } else { Damage::Checksum });
        }
        if self.0[INDEX] != expected.index {
            return Err(Damage::Place(self.0[INDEX]));
        }
        if self.0[GENERATION] != expected.generation {
            return Err(Damage::Generation(self.0[GENERATION]));
        }
        Ok(())
    }

    /// Flips one bit (0 to 32,767): damage on purpose, to see that it is found.
    pub(crate) fn flip(&mut self, bit: usize) {
        let bit = bit % (WORDS * 64);
        self.0[bit / 64] ^= 1 << (bit % 64);
    }

    /// Over every word but the checksum itself. The start keeps a page of zeros
    /// from being sound.
    fn checksum(&self) -> u64 {
        let mut sum = 0x6f64_7769_745f_7067;
        for (place, word) in self.0.iter().enumerate() {
            if place != CHECKSUM {
                sum = fold(sum, *word);
            }
        }
        sum
    }
}

/// One step of a checksum. For a given `sum` every word gives another result
/// and the other way round, so a change of one word always shows.
pub(crate) fn fold(sum: u64, word: u64) -> u64 {
    (sum ^ word)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
}

/// Neighbours in a corpus stay neighbours in memory, as in a program that is
/// mapped; a page that is written anew becomes another one.
fn pick(pages: &[CorpusPage], stamp: Stamp) -> &CorpusPage {
    /// Far enough for another file, and prime.
    const STRIDE: u64 = 7919;
    let place = stamp
        .index
        .wrapping_add(stamp.generation.wrapping_mul(STRIDE));
    let place = place.checked_rem(pages.len() as u64).unwrap_or(0);
    let place = usize::try_from(place).unwrap_or(0);
    pages.get(place).unwrap_or(&[0; WORDS])
}

/// xorshift64* (Vigna 2016): cheap under emulation, good enough to defeat
/// compression.
struct Random(u64);

impl Random {
    fn new(seed: u64, stamp: Stamp) -> Self {
        let mixed = fold(fold(seed, stamp.index), stamp.generation);
        Self(mixed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        index: 7,
        generation: 3,
    };

    fn page(pattern: Pattern) -> Page {
        Page::new(STAMP, pattern, 1)
    }

    #[test]
    fn a_page_fills_exactly_its_four_kilobytes() {
        assert_eq!(size_of::<Page>() as u64, PAGE_BYTES);
        assert_eq!(align_of::<Page>() as u64, PAGE_BYTES);
    }

    #[test]
    fn what_was_written_is_sound() {
        assert_eq!(page(Pattern::Random).check(STAMP), Ok(()));
        assert_eq!(page(Pattern::Compressible).check(STAMP), Ok(()));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let mut page = page(Pattern::Random);
        for bit in 0..WORDS * 64 {
            page.flip(bit);
            assert_eq!(page.check(STAMP), Err(Damage::Checksum), "bit {bit}");
            page.flip(bit);
        }
        assert_eq!(page.check(STAMP), Ok(()));
    }

    #[test]
    fn two_words_that_changed_places_are_found() {
        let mut page = page(Pattern::Random);
        page.0.swap(100, 101);
        assert_eq!(page.check(STAMP), Err(Damage::Checksum));
    }

    #[test]
    fn a_lost_page_is_found() {
        assert_eq!(Page([0; WORDS]).check(STAMP), Err(Damage::Zero));
    }

    #[test]
    fn a_stale_page_is_found() {
        let newer = Stamp {
            generation: 4,
            ..STAMP
        };
        let stale = page(Pattern::Random).check(newer);
        assert_eq!(stale, Err(Damage::Generation(3)));
    }

    #[test]
    fn a_page_in_the_wrong_place_is_found() {
        let other = Stamp { index: 8, ..STAMP };
        assert_eq!(page(Pattern::Random).check(other), Err(Damage::Place(7)));
    }

    #[test]
    fn contents_differ_from_write_to_write() {
        let mut again = page(Pattern::Random);
        again.write(
            Stamp {
                generation: 4,
                ..STAMP
            },
            Pattern::Random,
            1,
        );
        let same = page(Pattern::Random).0;
        let kept = again.0.iter().zip(same).filter(|(a, b)| *a == b).count();
        assert!(kept <= 1, "{kept} words kept");
    }

    #[test]
    fn a_page_of_a_corpus_is_of_the_corpus() {
        let bytes: Vec<u8> = [1, 2, 3].iter().flat_map(|byte| [*byte; 4096]).collect();
        let pages = corpus(&bytes[..bytes.len() - 1]);
        assert_eq!(pages.len(), 2, "whole pages only");
        assert_eq!(pages[1][511], 0x0202_0202_0202_0202);
        let pages: &'static [CorpusPage] = pages.leak();
        let page = page(Pattern::Corpus(pages));
        assert_eq!(page.check(STAMP), Ok(()));
        assert!(
            page.0[PAYLOAD..] == pages[0][PAYLOAD..] || page.0[PAYLOAD..] == pages[1][PAYLOAD..]
        );
    }

    #[test]
    fn an_empty_corpus_gives_pages_of_zeros() {
        assert_eq!(page(Pattern::Corpus(&[])).check(STAMP), Ok(()));
    }

    #[test]
    fn a_compressible_page_repeats_most_of_its_words() {
        let page = page(Pattern::Compressible);
        let last = page.0[WORDS - 1];
        let repeated = page.0.iter().filter(|word| **word == last).count();
        assert_eq!(repeated, WORDS - PAYLOAD - RANDOM_WORDS);
    }
}
