//! Packs what is read from QEMU into pieces, and unpacks them again: zstd beside
//! the decisions of [`Chooser`].

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use godwit_node_logic::packing::{Chooser, Packing};
use godwit_shared::wire::piece::{
    PACKED_HEADER, PLAIN_HEADER, PieceError, packed_header, plain_header,
};
use zstd::bulk::{Compressor, Decompressor};

/// zstd's levels: negative ones are faster.
const FAST: i32 = -5;
const DENSE: i32 = 1;
/// How much of a plain piece is packed to see what that would bring.
const LOOK: usize = 32 * 1024;
/// Fewer bytes are not worth it.
const LEAST: usize = 512;

/// The choice for all channels of a migration.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    chooser: Arc<Mutex<Chooser>>,
    begun: Instant,
}

impl Choice {
    pub(super) fn new() -> Self {
        Self {
            chooser: Arc::default(),
            begun: Instant::now(),
        }
    }

    /// So many bytes were handed to the transport.
    pub(super) fn sent(&self, bytes: usize) {
        self.lock().sent(bytes as u64, self.begun.elapsed());
    }

    fn lock(&self) -> MutexGuard<'_, Chooser> {
        self.chooser.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Packs the pieces of one channel.
pub(super) struct Packer {
    zstd: Compressor<'static>,
    level: i32,
    choice: Choice,
    scratch: Vec<u8>,
}

impl Packer {
    pub(super) fn new(choice: Choice) -> io::Result<Self> {
        Ok(Self {
            zstd: Compressor::new(FAST)?,
            level: FAST,
            choice,
            scratch: Vec::new(),
        })
    }

    /// A packed piece of `buffer`, whose first [`PLAIN_HEADER`] bytes are room for
    /// a header. `None` when it is better sent plain; that room then holds the
    /// header of a plain piece.
    ///
    /// # Errors
    /// When there is too much in it for a piece.
    pub(super) fn pack(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, PieceError> {
        let (header, contents) = buffer.split_at_mut(PLAIN_HEADER);
        header.copy_from_slice(&plain_header(contents.len())?);
        let (way, wants_look) = {
            let chooser = self.choice.lock();
            (chooser.way(), chooser.wants_look())
        };
        let level = match way {
            Packing::Plain => {
                if wants_look && contents.len() >= LOOK {
                    self.look(&contents[..LOOK]);
                }
                return Ok(None);
            }
            Packing::Fast => FAST,
            Packing::Dense => DENSE,
        };
        if contents.len() < LEAST {
            return Ok(None);
        }
        // It has to get smaller by an eighth.
        let stored = self.compress(contents, level, contents.len() / 8 * 7);
        let (before, after) = (contents.len(), stored.unwrap_or(contents.len()));
        self.choice.lock().packed(before as u64, after as u64);
        let Some(stored) = stored else {
            return Ok(None);
        };
        self.scratch[..PACKED_HEADER].copy_from_slice(&packed_header(stored, before)?);
        let piece = &self.scratch[..PACKED_HEADER + stored];
        Ok(Some(Bytes::copy_from_slice(piece)))
    }

    fn look(&mut self, contents: &[u8]) {
        let stored = self.compress(contents, FAST, contents.len());
        let after = stored.unwrap_or(contents.len());
        self.choice
            .lock()
            .looked(contents.len() as u64, after as u64);
    }

    /// Into the scratch buffer, behind the room for a header; `None` when it does
    /// not get as small as that.
    fn compress(&mut self, contents: &[u8], level: i32, most: usize) -> Option<usize> {
        if level != self.level {
            self.zstd.set_compression_level(level).ok()?;
            self.level = level;
        }
        if self.scratch.len() < PACKED_HEADER + most {
            self.scratch.resize(PACKED_HEADER + most, 0);
        }
        let room = &mut self.scratch[PACKED_HEADER..PACKED_HEADER + most];
        self.zstd.compress_to_buffer(contents, room).ok()
    }
}

/// Unpacks the pieces of one channel.
pub(super) struct Unpacker {
    zstd: Decompressor<'static>,
    room: Vec<u8>,
}

impl Unpacker {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            zstd: Decompressor::new()?,
            room: Vec::new(),
        })
    }

    /// The bytes of a packed piece, which says that they are `unpacked`; the
    /// decoder has checked that those are not too many.
    ///
    /// # Errors
    /// When it is not what it says.
    pub(super) fn unpack(&mut self, stored: &[u8], unpacked: usize) -> io::Result<&[u8]> {
        if self.room.len() < unpacked {
            self.room.resize(unpacked, 0);
        }
        let room = &mut self.room[..unpacked];
        let length = self.zstd.decompress_to_buffer(stored, room)?;
        if length != unpacked {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(&self.room[..unpacked])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use godwit_shared::wire::piece::{Piece, PieceDecoder};

    use super::*;

    /// A packer whose chooser has found that packing is fastest in this way.
    fn packer(fast: bool) -> Packer {
        let choice = Choice::new();
        let mut chooser = Chooser::default();
        chooser.looked(100, 40);
        let mut now = Duration::ZERO;
        let wanted = if fast { Packing::Fast } else { Packing::Plain };
        for _ in 0..10_000 {
            if chooser.way() == wanted {
                break;
            }
            now += Duration::from_millis(1);
            chooser.sent(1 << 20, now);
        }
        *choice.lock() = chooser;
        Packer::new(choice).unwrap()
    }

    fn buffer(contents: &[u8]) -> BytesMut {
        let mut buffer = BytesMut::zeroed(PLAIN_HEADER);
        buffer.extend_from_slice(contents);
        buffer
    }

    fn back(stream: Bytes) -> Vec<u8> {
        let mut decoder = PieceDecoder::default();
        decoder.push(stream).unwrap();
        let mut unpacker = Unpacker::new().unwrap();
        let mut bytes = Vec::new();
        while let Some(piece) = decoder.next() {
            match piece {
                Piece::Plain(plain) => bytes.extend_from_slice(&plain),
                Piece::Packed { stored, unpacked } => {
                    bytes.extend_from_slice(unpacker.unpack(&stored, unpacked).unwrap());
                }
            }
        }
        bytes
    }

    fn text(length: usize) -> Vec<u8> {
        let line = b"All work and no play makes Jack a dull boy. ";
        line.iter().copied().cycle().take(length).collect()
    }

    #[test]
    fn what_is_packed_comes_back() {
        let text = text(100_000);
        let packed = packer(true).pack(&mut buffer(&text)).unwrap().unwrap();
        assert!(packed.len() < text.len() / 4);
        assert_eq!(back(packed), text);
    }

    #[test]
    fn what_is_plain_comes_back() {
        for contents in [text(100_000), text(3), Vec::new()] {
            let mut plain = buffer(&contents);
            assert_eq!(packer(false).pack(&mut plain).unwrap(), None);
            assert_eq!(back(plain.freeze()), contents);
        }
    }

    #[test]
    fn what_gets_no_smaller_is_sent_plain() {
        let mut random = zstd::bulk::compress(&text(10_000), 1).unwrap();
        while random.len() < 4096 {
            let digest = random.iter().fold(7_u64, |sum, byte| {
                sum.wrapping_mul(6_364_136_223_846_793_005) + u64::from(*byte) + 1
            });
            random.extend_from_slice(&digest.to_be_bytes()[..3]);
        }
        let mut plain = buffer(&random);
        assert_eq!(packer(true).pack(&mut plain).unwrap(), None);
        assert_eq!(back(plain.freeze()), random);
        assert_eq!(packer(true).pack(&mut buffer(&text(100))).unwrap(), None);
    }

    #[test]
    fn a_piece_that_is_not_what_it_says_is_an_error() {
        let mut unpacker = Unpacker::new().unwrap();
        let stored = zstd::bulk::compress(&text(1000), 1).unwrap();
        for unpacked in [999, 1001, 0] {
            assert!(unpacker.unpack(&stored, unpacked).is_err(), "{unpacked}");
        }
        assert!(unpacker.unpack(b"no zstd", 10).is_err());
    }
}
