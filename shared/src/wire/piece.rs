//! Pieces: how the bytes of a migration channel are put on a stream, each piece
//! as it is or packed. Sans I/O.
//!
//! ```text
//! +-------------+----------------+----------------------------+----------+
//! | kind, u8    | stored, u32 LE | only when packed:          | stored   |
//! | 0 or 1      |                | its bytes unpacked, u32 LE | bytes    |
//! +-------------+----------------+----------------------------+----------+
//! ```
//!
//! Kind 0 is plain bytes, handed on as they come; kind 1 is one zstd frame (RFC
//! 8878), handed on when it is whole.
//!
//! Invariants:
//! * a length over [`MAX_PIECE`] is refused when its bytes are there, before
//!   anything is allocated for it; the decoder then stays broken;
//! * how the bytes are cut on their way changes nothing but the cuts of plain
//!   bytes that come out.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};

/// Most bytes of a piece, stored or unpacked.
pub const MAX_PIECE: usize = 1 << 20;
/// What stands before plain bytes.
pub const PLAIN_HEADER: usize = 5;
/// What stands before packed bytes.
pub const PACKED_HEADER: usize = 9;

const PLAIN: u8 = 0;
const PACKED: u8 = 1;

/// What came out of a stream of pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of a plain piece; not always all of it.
    Plain(Bytes),
    /// A whole packed piece.
    Packed {
        /// What was stored.
        stored: Bytes,
        /// How many bytes it is unpacked; at most [`MAX_PIECE`].
        unpacked: usize,
    },
}

/// The stream is not one of pieces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// A kind that is not known.
    #[error("a piece is of the unknown kind {0}")]
    Kind(u8),
    /// A length over the limit.
    #[error("a piece of {0} bytes is over the limit of {MAX_PIECE}")]
    TooLarge(u32),
    /// The stream ended inside of a piece.
    #[error("the stream ended inside of a piece")]
    Truncated,
}

/// The header of a plain piece.
///
/// # Errors
/// When the piece is over the limit.
pub fn plain_header(stored: usize) -> Result<[u8; PLAIN_HEADER], PieceError> {
    let mut header = [PLAIN; PLAIN_HEADER];
    header[1..].copy_from_slice(&length(stored)?);
    Ok(header)
}

/// The header of a packed piece.
///
/// # Errors
/// When the piece is over the limit.
pub fn packed_header(stored: usize, unpacked: usize) -> Result<[u8; PACKED_HEADER], PieceError> {
    let mut header = [PACKED; PACKED_HEADER];
    header[1..5].copy_from_slice(&length(stored)?);
    header[5..].copy_from_slice(&length(unpacked)?);
    Ok(header)
}

fn length(bytes: usize) -> Result<[u8; 4], PieceError> {
    let length = u32::try_from(bytes).unwrap_or(u32::MAX);
    if bytes > MAX_PIECE {
        return Err(PieceError::TooLarge(length));
    }
    Ok(length.to_le_bytes())
}

/// Turns a stream of pieces back into pieces.
#[derive(Debug, Default)]
pub struct PieceDecoder {
    state: State,
    /// What of a header has come, or of a packed piece.
    gathered: BytesMut,
    ready: VecDeque<Piece>,
    broken: Option<PieceError>,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Header,
    Plain {
        left: usize,
    },
    Packed {
        stored: usize,
        unpacked: usize,
    },
}

impl PieceDecoder {
    /// Takes bytes as they came, without copying plain ones.
    ///
    /// # Errors
    /// When they are not pieces, from then on always.
    pub fn push(&mut self, mut bytes: Bytes) -> Result<(), PieceError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        while !bytes.is_empty() {
            let took = self.take(&mut bytes);
            took.inspect_err(|error| self.broken = Some(error.clone()))?;
        }
        Ok(())
    }

    /// The next piece that is there.
    #[allow(clippy::should_implement_trait)] // More come after the first `None`.
    pub fn next(&mut self) -> Option<Piece> {
        self.ready.pop_front()
    }

    /// Checks that the stream may end here.
    ///
    /// # Errors
    /// When it is inside of a piece, or was broken before.
    pub fn finish(&self) -> Result<(), PieceError> {
        match (&self.broken, self.state) {
            (Some(error), _) => Err(error.clone()),
            (None, State::Header) if self.gathered.is_empty() => Ok(()),
            _ => Err(PieceError::Truncated),
        }
    }

    fn take(&mut self, bytes: &mut Bytes) -> Result<(), PieceError> {
        match self.state {
            State::Header => self.take_header(bytes),
            State::Plain { left } => {
                let some = bytes.split_to(left.min(bytes.len()));
                let left = left - some.len();
                self.ready.push_back(Piece::Plain(some));
                self.state = if left == 0 {
                    State::Header
                } else {
                    State::Plain { left }
                };
                Ok(())
            }
            State::Packed { stored, unpacked } => {
                if self.gather(bytes, stored) {
                    let stored = self.gathered.split().freeze();
                    self.ready.push_back(Piece::Packed { stored, unpacked });
                    self.state = State::Header;
                }
                Ok(())
            }
        }
    }

    fn take_header(&mut self, bytes: &mut Bytes) -> Result<(), PieceError> {
        let kind = self.gathered.first().or(bytes.first()).copied();
        let size = match kind {
            Some(PLAIN) => PLAIN_HEADER,
            Some(PACKED) => PACKED_HEADER,
            Some(other) => return Err(PieceError::Kind(other)),
            None => return Ok(()),
        };
        if !self.gather(bytes, size) {
            return Ok(());
        }
        let mut header = self.gathered.split();
        header.advance(1);
        let stored = limited(header.get_u32_le())?;
        self.state = match (size, stored) {
            (PACKED_HEADER, _) => State::Packed {
                stored,
                unpacked: limited(header.get_u32_le())?,
            },
            (_, 0) => State::Header,
            (_, left) => State::Plain { left },
        };
        // A packed piece of nothing is whole already.
        self.take_nothing();
        Ok(())
    }

    fn take_nothing(&mut self) {
        if let State::Packed {
            stored: 0,
            unpacked,
        } = self.state
        {
            let stored = Bytes::new();
            self.ready.push_back(Piece::Packed { stored, unpacked });
            self.state = State::Header;
        }
    }

    /// Gathers until there are `size` bytes; whether there are.
    fn gather(&mut self, bytes: &mut Bytes, size: usize) -> bool {
        let some = bytes.split_to((size - self.gathered.len()).min(bytes.len()));
        self.gathered.extend_from_slice(&some);
        self.gathered.len() == size
    }
}

fn limited(length: u32) -> Result<usize, PieceError> {
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    if bytes > MAX_PIECE {
        return Err(PieceError::TooLarge(length));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn plain(bytes: &[u8]) -> Vec<u8> {
        [&plain_header(bytes.len()).unwrap()[..], bytes].concat()
    }

    fn packed(stored: &[u8], unpacked: usize) -> Vec<u8> {
        let header = packed_header(stored.len(), unpacked).unwrap();
        [&header[..], stored].concat()
    }

    /// What is in a piece, and how much that is when unpacked.
    type Found = (Vec<u8>, Option<usize>);

    /// Plain pieces joined, packed ones with their size.
    fn read(stream: &[u8], cut: usize) -> Result<Vec<Found>, PieceError> {
        let mut decoder = PieceDecoder::default();
        let mut found: Vec<Found> = Vec::new();
        for bytes in stream.chunks(cut.max(1)) {
            decoder.push(Bytes::copy_from_slice(bytes))?;
            while let Some(piece) = decoder.next() {
                match (piece, found.last_mut()) {
                    (Piece::Plain(more), Some((bytes, None))) => bytes.extend_from_slice(&more),
                    (Piece::Plain(bytes), _) => found.push((bytes.to_vec(), None)),
                    (Piece::Packed { stored, unpacked }, _) => {
                        found.push((stored.to_vec(), Some(unpacked)));
                    }
                }
            }
        }
        decoder.finish()?;
        Ok(found)
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(plain(b"ab"), [0, 2, 0, 0, 0, b'a', b'b']);
        assert_eq!(packed(b"c", 260), [1, 1, 0, 0, 0, 4, 1, 0, 0, b'c']);
    }

    #[test]
    fn pieces_come_back_however_they_are_cut() {
        let stream = [plain(b"one"), packed(b"two", 9), plain(b""), plain(b"x")].concat();
        let whole = read(&stream, stream.len()).unwrap();
        assert_eq!(whole[0], (b"one".to_vec(), None));
        assert_eq!(whole[1], (b"two".to_vec(), Some(9)));
        for cut in 1..stream.len() {
            assert_eq!(read(&stream, cut).unwrap(), whole, "{cut}");
        }
    }

    #[test]
    fn what_is_no_piece_is_refused_for_good() {
        let mut decoder = PieceDecoder::default();
        let wrong = Bytes::from_static(&[7]);
        assert_eq!(decoder.push(wrong), Err(PieceError::Kind(7)));
        let right = Bytes::from(plain(b"a"));
        assert_eq!(decoder.push(right), Err(PieceError::Kind(7)));
        assert_eq!(decoder.finish(), Err(PieceError::Kind(7)));
    }

    #[test]
    fn lengths_over_the_limit_are_refused() {
        let over = u32::try_from(MAX_PIECE).unwrap() + 1;
        let mut stream = vec![PLAIN];
        stream.extend_from_slice(&over.to_le_bytes());
        assert_eq!(read(&stream, 9), Err(PieceError::TooLarge(over)));
        let mut stream = vec![PACKED, 1, 0, 0, 0];
        stream.extend_from_slice(&over.to_le_bytes());
        assert_eq!(read(&stream, 9), Err(PieceError::TooLarge(over)));
        assert!(plain_header(MAX_PIECE + 1).is_err());
        assert!(packed_header(1, MAX_PIECE + 1).is_err());
    }

    #[test]
    fn an_end_inside_of_a_piece_is_one() {
        for stream in [plain(b"abc"), packed(b"abc", 3)] {
            for length in 1..stream.len() {
                let cut = read(&stream[..length], length);
                assert_eq!(cut, Err(PieceError::Truncated), "{length}");
            }
        }
        assert_eq!(read(&packed(b"", 0), 3).unwrap(), [(vec![], Some(0))]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_alike_in_any_cut(
            stream in proptest::collection::vec(0_u8..3, 0..200),
            cut in 1_usize..50,
        ) {
            prop_assert_eq!(read(&stream, cut).is_ok(), read(&stream, 1000).is_ok());
            if let Ok(whole) = read(&stream, 1000) {
                prop_assert_eq!(read(&stream, cut).unwrap(), whole);
            }
        }
    }
}
