//! Entries as lines, and back.
//!
//! ```text
//! LENGTH SUM JSON \n
//! ```
//!
//! LENGTH is that of the JSON in bytes, SUM its 64-bit FNV-1a in hexadecimal:
//! it finds damage, not forgery. JSON in one line holds no newline, so a last
//! line without one was cut off, as after a kill; the lines before it are good.

use serde::Serialize;

use super::Entry;

/// The first line: what the file is.
pub const FIRST: &str = "godwit-recording 1\n";

/// Why a recording cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// Another file.
    #[error("this is no recording, or one of a later release")]
    Other,
    /// A line is not what was written.
    #[error("line {line}, at byte {offset}, is damaged: {why}")]
    Line {
        /// Which, from 1.
        line: u64,
        /// Where it begins.
        offset: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// A line is whole, and says something that this release does not know.
    #[error("line {line} cannot be read; use the release that wrote it")]
    Unknown {
        /// Which, from 1.
        line: u64,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// An entry as a line.
///
/// # Errors
/// When something is not plain data, which is a bug.
pub fn of<T: Serialize>(entry: &T) -> serde_json::Result<Vec<u8>> {
    let json = serde_json::to_vec(entry)?;
    let mut line = format!("{} {:016x} ", json.len(), sum(&json)).into_bytes();
    line.extend_from_slice(&json);
    line.push(b'\n');
    Ok(line)
}

/// 64-bit FNV-1a (draft-eastlake-fnv).
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The entries of a file.
#[derive(Debug)]
pub struct Lines<'a> {
    whole: &'a [u8],
    rest: &'a [u8],
    line: u64,
}

impl<'a> Lines<'a> {
    /// # Errors
    /// When the file is another one.
    pub fn of(file: &'a [u8]) -> Result<Self, Damage> {
        let rest = file.strip_prefix(FIRST.as_bytes()).ok_or(Damage::Other)?;
        Ok(Self {
            whole: file,
            rest,
            line: 1,
        })
    }

    /// Bytes of a last line whose end is missing: known when there are no more
    /// entries.
    pub const fn cut_off(&self) -> usize {
        self.rest.len()
    }

    /// The next entry; none at the end, and none where the end was cut off.
    ///
    /// # Errors
    /// When a line is damaged.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Damage> {
        let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let offset = self.whole.len() - self.rest.len();
        let text = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        self.line += 1;
        let line = self.line;
        let json = whole(text).map_err(|why| Damage::Line { line, offset, why })?;
        let entry = serde_json::from_slice(json);
        entry
            .map(Some)
            .map_err(|source| Damage::Unknown { line, source })
    }
}

/// The JSON of a line that is as it was written.
fn whole(text: &[u8]) -> Result<&[u8], &'static str> {
    let mut words = text.splitn(3, |byte| *byte == b' ');
    let length = words.next().and_then(number::<10>);
    let told = words.next().and_then(number::<16>);
    let json = words.next().ok_or("it has no text")?;
    if length != u64::try_from(json.len()).ok() {
        return Err("its length is another");
    }
    if told != Some(sum(json)) {
        return Err("its checksum does not match");
    }
    Ok(json)
}

fn number<const BASE: u32>(word: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(word).ok()?, BASE).ok()
}
