//! Chance, from the seed and from nothing else.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators"): a run has to be the same on every machine and in every release
/// of a library.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of that seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to below `high`.
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    /// True so many times in a thousand.
    pub const fn permille(&mut self, times: u64) -> bool {
        self.next() % 1000 < times
    }

    /// One of them; none, where there is none.
    pub fn pick<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        let count = u64::try_from(all.len()).unwrap_or(u64::MAX);
        let place = (count > 0).then(|| self.next() % count)?;
        all.get(usize::try_from(place).ok()?).cloned()
    }
}
