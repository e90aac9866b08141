//! Units as types. A bare integer never crosses a function's border.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::{Problem, codes};

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
            ToSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// None of it.
            pub const ZERO: Self = Self(0);

            /// The difference, or zero where `other` is more.
            #[must_use]
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                self.saturating_sub(other)
            }
        }

        impl std::iter::Sum for $name {
            fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
                items.fold(Self::ZERO, Add::add)
            }
        }
    };
}

unit! {
    /// Mebibytes (2^20 bytes): sizes of memory.
    MiB
}
unit! {
    /// Bytes.
    Bytes
}
unit! {
    /// Bytes per second.
    BytesPerSec
}
unit! {
    /// Milliseconds as a length of time.
    Millis
}
unit! {
    /// Milliseconds since the Unix epoch (UTC).
    UnixMillis
}

unit! {
    /// Milliseconds since the host was booted, those included in which it was
    /// suspended (`CLOCK_BOOTTIME`): it never jumps and means nothing elsewhere.
    BootMillis
}

impl BootMillis {
    /// How long before `later` this was; zero if it was not.
    pub const fn until(self, later: Self) -> Millis {
        Millis(later.0.saturating_sub(self.0))
    }

    /// This much later.
    #[must_use]
    pub const fn after(self, wait: Millis) -> Self {
        Self(self.0.saturating_add(wait.0))
    }

    /// This much earlier.
    #[must_use]
    pub const fn before(self, wait: Millis) -> Self {
        Self(self.0.saturating_sub(wait.0))
    }
}

impl MiB {
    /// The same size in bytes.
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(1 << 20))
    }
}

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&binary(self.bytes().0))
    }
}

impl FromStr for MiB {
    type Err = Problem;

    /// Reads `512`, `512M`, `512MiB`, `2G`, `2GiB`: a bare number is MiB.
    fn from_str(text: &str) -> Result<Self, Problem> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let factor = match suffix.trim() {
            "" | "M" | "MiB" => 1,
            "G" | "GiB" => 1 << 10,
            "T" | "TiB" => 1 << 20,
            _ => 0,
        };
        let size = number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(factor));
        match size {
            Some(size) if factor > 0 => Ok(Self(size)),
            _ => Err(
                Problem::new(codes::SIZE_INVALID, format!("`{text}` is not a size"))
                    .value(text)
                    .remedy("give a whole number of MiB, or one with M, MiB, G or GiB behind it"),
            ),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&binary(self.0))
    }
}

impl fmt::Display for BytesPerSec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/s", binary(self.0)))
    }
}

impl Millis {
    /// The same length as a [`Duration`].
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl From<Duration> for Millis {
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0;
        let text = match ms {
            0..1_000 => format!("{ms} ms"),
            1_000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
            60_000..3_600_000 => format!("{}m {:02}s", ms / 60_000, ms % 60_000 / 1000),
            3_600_000..86_400_000 => format!("{}h {:02}m", ms / 3_600_000, ms % 3_600_000 / 60_000),
            _ => format!("{}d {:02}h", ms / 86_400_000, ms % 86_400_000 / 3_600_000),
        };
        f.pad(&text)
    }
}

impl UnixMillis {
    /// Now, by the host's clock. For the edges: pure code takes the time as an argument.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(since.map_or(0, |d| Millis::from(d).0))
    }

    /// How long before `later` this was; zero if it was not.
    pub const fn until(self, later: Self) -> Millis {
        Millis(later.0.saturating_sub(self.0))
    }

    /// This much later.
    #[must_use]
    pub const fn after(self, wait: Millis) -> Self {
        Self(self.0.saturating_add(wait.0))
    }
}

impl fmt::Display for UnixMillis {
    /// RFC 3339 in UTC, to the millisecond.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stamp = i64::try_from(self.0)
            .ok()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        match stamp {
            Some(stamp) => f.pad(&format!("{stamp:.3}")),
            None => f.pad("never"),
        }
    }
}

/// `bytes` with a binary prefix and at most one decimal place.
fn binary(bytes: u64) -> String {
    const PREFIXES: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut scaled = bytes as f64;
    while scaled >= 1024.0 && unit + 1 < PREFIXES.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 || (scaled - scaled.round()).abs() < 0.05 {
        format!("{scaled:.0} {}", PREFIXES[unit])
    } else {
        format!("{scaled:.1} {}", PREFIXES[unit])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        assert_eq!("512".parse::<MiB>().unwrap(), MiB(512));
        assert_eq!("2GiB".parse::<MiB>().unwrap(), MiB(2048));
        assert_eq!("1T".parse::<MiB>().unwrap().to_string(), "1 TiB");
        for bad in [
            "",
            "-1",
            "1.5G",
            "2k",
            "99999999999999999999",
            "18446744073709551615G",
            "G",
        ] {
            assert_eq!(
                bad.parse::<MiB>().unwrap_err().code,
                codes::SIZE_INVALID,
                "{bad}"
            );
        }
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
    }

    #[test]
    fn times_are_written_for_people() {
        assert_eq!(Millis(999).to_string(), "999 ms");
        assert_eq!(Millis(61_000).to_string(), "1m 01s");
        assert_eq!(
            UnixMillis(1_700_000_000_123).to_string(),
            "2023-11-14T22:13:20.123Z"
        );
    }
}
