//! Frames: how messages are told apart on a stream of bytes. Sans I/O.
//!
//! ```text
//! +----------------+---------------------+
//! | length, u32 LE | payload             |
//! +----------------+---------------------+
//! ```
//!
//! Invariants:
//! * a length over the limit is refused when its four bytes are there, before
//!   anything is allocated or read for it; the decoder then stays broken,
//!   since nothing after such a length can be trusted;
//! * how the bytes are cut into pieces on their way changes nothing.

use bytes::{Buf, Bytes, BytesMut};

/// Largest payload of a frame: 1 MiB. Bulk bytes go over streams of their own
/// without frames.
pub const MAX_FRAME: usize = 1024 * 1024;

/// Size of the length in front of a payload, in bytes.
pub const HEADER_LEN: usize = 4;

/// A frame cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The payload is longer than is accepted.
    #[error("a frame of {size} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// Length of the payload, in bytes.
        size: usize,
        /// Largest length accepted, in bytes.
        limit: usize,
    },
    /// The stream ended inside of a frame.
    #[error("the stream ended inside of a frame, after {got} of its bytes")]
    Truncated {
        /// How many bytes of the last frame had arrived, its header included.
        got: usize,
    },
}

/// Puts a payload into a frame.
///
/// # Errors
/// [`FrameError::TooLarge`] when it is over [`MAX_FRAME`].
pub fn frame(payload: &[u8]) -> Result<Bytes, FrameError> {
    let header = header(payload.len())?;
    let mut out = Vec::with_capacity(HEADER_LEN + payload.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    Ok(out.into())
}

fn header(size: usize) -> Result<[u8; HEADER_LEN], FrameError> {
    match u32::try_from(size) {
        Ok(length) if size <= MAX_FRAME => Ok(length.to_le_bytes()),
        _ => Err(FrameError::TooLarge {
            size,
            limit: MAX_FRAME,
        }),
    }
}

/// Reads the length out of a frame's header.
///
/// # Errors
/// [`FrameError::TooLarge`] when it is over `limit`.
pub fn payload_len(header: [u8; HEADER_LEN], limit: usize) -> Result<usize, FrameError> {
    let size = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if size > limit {
        Err(FrameError::TooLarge { size, limit })
    } else {
        Ok(size)
    }
}

/// Turns pieces of a byte stream into frames: [`push`](Self::push) what has
/// arrived, then [`next`](Self::next) until it has no more.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    limit: usize,
    broken: Option<FrameError>,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// A decoder that accepts payloads up to [`MAX_FRAME`].
    pub fn new() -> Self {
        Self::with_limit(MAX_FRAME)
    }

    /// A decoder that accepts payloads up to `limit` bytes, at most [`MAX_FRAME`].
    pub fn with_limit(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            limit: limit.min(MAX_FRAME),
            broken: None,
        }
    }

    /// Takes bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.broken.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole payload, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`], from then on always.
    #[allow(clippy::should_implement_trait)] // An iterator would end at the first `None`.
    pub fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let size = payload_len(*header, self.limit).inspect_err(|error| {
            self.broken = Some(error.clone());
        })?;
        if self.buffer.len() < HEADER_LEN + size {
            self.buffer.reserve(HEADER_LEN + size - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEADER_LEN);
        Ok(Some(self.buffer.split_to(size).freeze()))
    }

    /// Checks that the stream may end here.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when a frame has begun and not ended.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.buffer.len() {
            0 => Ok(()),
            got => Err(FrameError::Truncated { got }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    // Numbers in tests are small, and their names short.
    #![allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::similar_names
    )]
    use proptest::prelude::*;

    use super::*;

    fn all(decoder: &mut FrameDecoder) -> Vec<Bytes> {
        std::iter::from_fn(|| decoder.next().unwrap()).collect()
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(frame(b"").unwrap().as_ref(), [0, 0, 0, 0]);
        assert_eq!(frame(b"godwit").unwrap().as_ref(), b"\x06\0\0\0godwit");
        assert_eq!(frame(&[9; 300]).unwrap()[..5], [0x2c, 1, 0, 0, 9]);
    }

    #[test]
    fn an_oversized_length_names_size_and_limit_and_stays() {
        let mut decoder = FrameDecoder::new();
        decoder.push(&(MAX_FRAME as u32 + 1).to_le_bytes());
        let error = decoder.next().unwrap_err();
        assert_eq!(
            error.to_string(),
            "a frame of 1048577 bytes is over the limit of 1048576 bytes"
        );
        decoder.push(&frame(b"later").unwrap());
        assert_eq!(
            decoder.next().unwrap_err(),
            error,
            "a broken stream stays broken"
        );
        assert!(
            decoder.buffer.capacity() < 4096,
            "nothing was allocated for it"
        );
    }

    #[test]
    fn the_largest_frame_passes_and_one_more_byte_is_refused() {
        let mut decoder = FrameDecoder::new();
        decoder.push(&frame(&vec![1; MAX_FRAME]).unwrap());
        assert_eq!(decoder.next().unwrap().unwrap().len(), MAX_FRAME);
        let error = frame(&vec![1; MAX_FRAME + 1]).unwrap_err();
        assert_eq!(
            error,
            FrameError::TooLarge {
                size: MAX_FRAME + 1,
                limit: MAX_FRAME
            }
        );
    }

    #[test]
    fn an_end_inside_of_a_frame_is_noticed() {
        let mut decoder = FrameDecoder::new();
        assert_eq!(decoder.finish(), Ok(()));
        decoder.push(&frame(b"abc").unwrap()[..5]);
        assert_eq!(decoder.next().unwrap(), None);
        assert_eq!(decoder.finish(), Err(FrameError::Truncated { got: 5 }));
    }

    proptest! {
        #[test]
        fn any_split_yields_the_same_frames(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
            cuts in prop::collection::vec(1_usize..64, 1..64),
        ) {
            let stream: Vec<u8> =
                payloads.iter().flat_map(|payload| frame(payload).unwrap()).collect();
            let mut decoder = FrameDecoder::new();
            let mut seen = Vec::new();
            let (mut rest, mut cut) = (stream.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, later) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                decoder.push(piece);
                seen.extend(all(&mut decoder));
                rest = later;
            }
            prop_assert_eq!(seen, payloads);
            prop_assert_eq!(decoder.finish(), Ok(()));
        }

        #[test]
        fn arbitrary_bytes_never_panic(pieces: Vec<Vec<u8>>) {
            let mut decoder = FrameDecoder::with_limit(64);
            for piece in pieces {
                decoder.push(&piece);
                while let Ok(Some(payload)) = decoder.next() {
                    prop_assert!(payload.len() <= 64);
                }
            }
        }
    }
}
