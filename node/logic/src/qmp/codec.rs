//! Bytes from QEMU to messages: one JSON object per line.

use serde_json::{Map, Value};

use super::message::Message;

/// Largest message that is accepted, in bytes: 16 MiB. QEMU's own longest
/// answers (`query-qmp-schema`) have a few hundred KiB.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Bytes that are not QMP. The session cannot go on after `TooLong`; after
/// `NotJson` it can, since lines delimit messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A line without end.
    #[error("a QMP message is longer than {limit} bytes")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A line that is no JSON object.
    #[error("a QMP message is not a JSON object: {line}")]
    NotJson {
        /// How it begins.
        line: String,
    },
}

/// Turns pieces of a byte stream into messages: [`push`](Self::push) what has
/// arrived, then [`next`](Self::next) until it has no more.
#[derive(Debug)]
pub struct Codec {
    buffer: Vec<u8>,
    /// Bytes at the beginning of `buffer` that were handed out already.
    consumed: usize,
    /// Bytes of `buffer` that are known to hold no end of a line.
    searched: usize,
    limit: usize,
    broken: bool,
}

impl Default for Codec {
    fn default() -> Self {
        Self::new()
    }
}

impl Codec {
    /// A codec that accepts messages up to [`MAX_MESSAGE`].
    pub fn new() -> Self {
        Self::with_limit(MAX_MESSAGE)
    }

    /// A codec that accepts messages up to `limit` bytes.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            buffer: Vec::new(),
            consumed: 0,
            searched: 0,
            limit,
            broken: false,
        }
    }

    /// Takes bytes as they arrived. Take out what is whole before pushing more:
    /// what is pushed is held.
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.broken {
            self.compact();
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next message, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// [`CodecError::NotJson`] for one line, after which the next may be fine;
    /// [`CodecError::TooLong`] from then on always.
    #[allow(clippy::should_implement_trait)] // An iterator would end at the first `None`.
    pub fn next(&mut self) -> Result<Option<Message>, CodecError> {
        loop {
            if self.broken {
                return Err(CodecError::TooLong { limit: self.limit });
            }
            let Some(line) = self.take_line()? else {
                return Ok(None);
            };
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            return match serde_json::from_slice::<Map<String, Value>>(line) {
                Ok(object) => Ok(Some(Message::sort(object))),
                Err(_) => Err(CodecError::NotJson {
                    line: beginning(line),
                }),
            };
        }
    }

    fn take_line(&mut self) -> Result<Option<&[u8]>, CodecError> {
        let from = self.searched.max(self.consumed);
        let unread = self.buffer.get(from..).unwrap_or_default();
        let end = unread.iter().position(|b| *b == b'\n').map(|at| from + at);
        let length = end.unwrap_or(self.buffer.len()) - self.consumed;
        if length > self.limit {
            self.broken = true;
            self.buffer = Vec::new();
            return Err(CodecError::TooLong { limit: self.limit });
        }
        let Some(end) = end else {
            self.searched = self.buffer.len();
            return Ok(None);
        };
        let start = self.consumed;
        self.consumed = end + 1;
        Ok(self.buffer.get(start..end))
    }

    /// Frees what was handed out; gives back the memory of a rare large message.
    fn compact(&mut self) {
        const KEPT: usize = 64 * 1024;
        self.buffer.drain(..self.consumed);
        self.searched = self.searched.saturating_sub(self.consumed);
        self.consumed = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT {
            self.buffer = Vec::new();
        }
    }
}

/// Enough of a line to recognise it in a log.
fn beginning(line: &[u8]) -> String {
    const SHOWN: usize = 80;
    String::from_utf8_lossy(line.get(..SHOWN).unwrap_or(line)).into_owned()
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
