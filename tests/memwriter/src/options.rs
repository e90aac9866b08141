//! The command line, parsed strictly: a test that asked for `64Mb` and ran with
//! nothing would pass for the wrong reason.

use std::fmt;
use std::time::Duration;

use crate::page::{self, Pattern};

/// A size of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

/// A speed of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BytesPerSec(pub(crate) u64);

/// Whether commands may end the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privileges {
    /// An ordinary program: no.
    Program,
    /// The test guest's own writer: yes.
    Guest,
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) tick: Duration,
    pub(crate) fill: Bytes,
    pub(crate) rate: BytesPerSec,
    pub(crate) pattern: Pattern,
    pub(crate) seed: u64,
    /// Write to the disks and check them.
    pub(crate) disks: bool,
    /// The port at which datagrams are sent back.
    pub(crate) echo: Option<u16>,
    pub(crate) privileges: Privileges,
}

/// A command line that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OptionError {
    Unknown(String),
    Value {
        option: &'static str,
        value: String,
        wanted: &'static str,
    },
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(
                f,
                "unknown argument {word}; known: --count=TIME --fill=SIZE --rate=SIZE \
                 --pattern=random|compressible|corpus:FILE --seed=N --disks=0|1 --echo=PORT \
                 --guest"
            ),
            Self::Value {
                option,
                value,
                wanted,
            } => write!(f, "{option}={value}: wanted {wanted}"),
        }
    }
}

impl Options {
    /// Reads `--name=value` words.
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, OptionError> {
        let mut options = Self {
            tick: Duration::from_millis(100),
            fill: Bytes(0),
            rate: BytesPerSec(0),
            pattern: Pattern::Random,
            seed: 1,
            disks: false,
            echo: None,
            privileges: Privileges::Program,
        };
        for word in words {
            options.take(&word)?;
        }
        Ok(options)
    }

    fn take(&mut self, word: &str) -> Result<(), OptionError> {
        const SIZE: &str = "a number with an optional K, M or G";
        const PATTERN: &str = "random, compressible or corpus:FILE";
        match word.split_once('=') {
            Some(("--disks", value)) => {
                self.disks = read("--disks", value, "0 or 1", switch)?;
            }
            None if word == "--guest" => self.privileges = Privileges::Guest,
            Some(("--count", value)) => {
                self.tick = read("--count", value, "a time such as 20ms or 1s", time)?;
            }
            Some(("--fill", value)) => self.fill = read("--fill", value, SIZE, size)?,
            Some(("--rate", value)) => {
                self.rate = BytesPerSec(read("--rate", value, SIZE, size)?.0);
            }
            Some(("--pattern", value)) => {
                self.pattern = read("--pattern", value, PATTERN, pattern)?;
            }
            Some(("--seed", value)) => {
                self.seed = read("--seed", value, "a number", |text| text.parse().ok())?;
            }
            Some(("--echo", value)) => {
                self.echo = Some(read("--echo", value, "a port", |text| text.parse().ok())?);
            }
            _ => return Err(OptionError::Unknown(word.to_owned())),
        }
        Ok(())
    }
}

fn read<T>(
    option: &'static str,
    value: &str,
    wanted: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, OptionError> {
    parse(value).ok_or_else(|| OptionError::Value {
        option,
        value: value.to_owned(),
        wanted,
    })
}

/// `64M`, `4096`: binary units.
pub(crate) fn size(text: &str) -> Option<Bytes> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    number(digits)?.checked_mul(1 << shift).map(Bytes)
}

/// `20ms`, `1s`: at least a millisecond, at most an hour.
fn time(text: &str) -> Option<Duration> {
    let millis = match text.strip_suffix("ms") {
        Some(digits) => number(digits)?,
        None => number(text.strip_suffix('s')?)?.checked_mul(1000)?,
    };
    (1..=3_600_000)
        .contains(&millis)
        .then(|| Duration::from_millis(millis))
}

fn switch(text: &str) -> Option<bool> {
    match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

fn pattern(text: &str) -> Option<Pattern> {
    match text {
        "random" => Some(Pattern::Random),
        "compressible" => Some(Pattern::Compressible),
        _ => corpus(text.strip_prefix("corpus:")?),
    }
}

/// The file goes once it is read, and stays for as long as the program: a guest
/// has one copy of it, in this program's memory.
fn corpus(path: &str) -> Option<Pattern> {
    let pages = page::corpus(&std::fs::read(path).ok()?);
    let _ = std::fs::remove_file(path);
    (!pages.is_empty()).then(|| Pattern::Corpus(pages.leak()))
}

/// Digits alone: `str::parse` would take a plus sign too.
fn number(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, OptionError> {
        Options::parse(words.iter().map(ToString::to_string))
    }

    #[test]
    fn nothing_asked_is_a_plain_count() {
        let options = parse(&[]);
        let expected = Options {
            tick: Duration::from_millis(100),
            fill: Bytes(0),
            rate: BytesPerSec(0),
            pattern: Pattern::Random,
            seed: 1,
            disks: false,
            echo: None,
            privileges: Privileges::Program,
        };
        assert_eq!(options, Ok(expected));
    }

    #[test]
    fn everything_asked_is_taken() {
        let options = parse(&[
            "--count=20ms",
            "--fill=64M",
            "--rate=16M",
            "--pattern=compressible",
            "--seed=9",
            "--disks=1",
            "--echo=7",
            "--guest",
        ]);
        let expected = Options {
            tick: Duration::from_millis(20),
            fill: Bytes(64 << 20),
            rate: BytesPerSec(16 << 20),
            pattern: Pattern::Compressible,
            seed: 9,
            disks: true,
            echo: Some(7),
            privileges: Privileges::Guest,
        };
        assert_eq!(options, Ok(expected));
    }

    #[test]
    fn sizes_and_times_have_their_units() {
        assert_eq!(size("4096"), Some(Bytes(4096)));
        assert_eq!(size("1G"), Some(Bytes(1 << 30)));
        assert_eq!(time("1s"), Some(Duration::from_secs(1)));
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for text in [
            "",
            "M",
            "64Mb",
            "64m",
            "-1",
            "+1",
            " 1",
            "1.5M",
            "99999999999G",
            "é",
        ] {
            assert_eq!(size(text), None, "{text:?}");
        }
        for text in ["", "20", "0ms", "ms", "s", "2h", "3601s", "-1s", "1 s"] {
            assert_eq!(time(text), None, "{text:?}");
        }
        for word in ["--fill", "--Fill=1", "fill=1M", "--guest=1", "x", ""] {
            let refused = parse(&[word]);
            assert_eq!(
                refused,
                Err(OptionError::Unknown(word.to_owned())),
                "{word:?}"
            );
        }
    }

    #[test]
    fn a_refusal_says_what_was_wanted() {
        let refused = parse(&["--pattern=zero"]).map_err(|error| error.to_string());
        let expected = "--pattern=zero: wanted random, compressible or corpus:FILE";
        assert_eq!(refused, Err(expected.to_owned()));
    }
}
