//! How much fits into one commit.

use super::{StoreError, Write};

/// The largest commit that a store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Writes, and likewise expectations.
    pub writes: usize,
    /// Bytes of keys and values, with what each takes beside them.
    pub bytes: usize,
}

/// What a write takes beside its key and value, and its key's prefix.
const OVERHEAD: usize = 96;

impl Room {
    /// No bound.
    pub const UNBOUNDED: Self = Self {
        writes: usize::MAX,
        bytes: usize::MAX,
    };
    /// What etcd takes by default: 64 transactions of 64 operations within one, and
    /// 1.5 MiB less what frames them.
    pub const ETCD: Self = Self {
        writes: 64 * 64,
        bytes: 1_500_000,
    };

    /// Whether so many writes of so many bytes fit.
    pub const fn fits(self, writes: usize, bytes: usize) -> bool {
        writes <= self.writes && bytes <= self.bytes
    }

    /// Refuses what does not fit.
    pub(super) fn check(self, writes: &[Write], expectations: usize) -> Result<(), StoreError> {
        let bytes = writes.iter().map(Write::size).sum();
        let count = writes.len().max(expectations);
        if self.fits(count, bytes) {
            return Ok(());
        }
        Err(StoreError::TooLarge {
            writes: count,
            bytes,
            room: self,
        })
    }
}

impl Write {
    /// More than any key takes, with what a write takes beside it.
    pub const LONGEST_KEY: usize = OVERHEAD + 160;

    /// The record that it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    /// How many bytes it takes of a [`Room`].
    pub fn size(&self) -> usize {
        let value = match self {
            Self::Put { value, .. } => value.len(),
            Self::Delete { .. } => 0,
        };
        OVERHEAD + self.key().len() + value
    }
}
