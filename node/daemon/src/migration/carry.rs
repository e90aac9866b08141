//! Carries bytes between QEMU's sockets and streams.
//!
//! Memory goes from the source to the target in pieces, packed where that is
//! faster ([`super::packing`]); everything else (the return path, disks) as it is.
//! An end is passed on as an end, an error as an error: a channel never looks
//! complete when it was cut.

use std::io::{ErrorKind, IoSlice};

use bytes::{BufMut as _, Bytes};
use godwit_shared::model::Problem;
use godwit_shared::transport::{ByteReceiver, ByteSender, CloseCode, StreamError};
use godwit_shared::wire::piece::{PLAIN_HEADER, Piece, PieceDecoder, PieceError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::buffers::Buffers;
use super::packing::{Choice, Packer, Unpacker};

/// Chunks written to QEMU at once. The transport hands over what one datagram
/// has brought as one chunk, some 1400 bytes on most links, and a system call
/// and a wake of QEMU for each of those cost more than decrypting it.
const CHUNKS: usize = 128;

/// Why a channel broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum CarryError {
    #[error("QEMU's socket: {0}")]
    Socket(#[from] std::io::Error),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the other node: {0}")]
    Piece(#[from] PieceError),
    #[error("{0}")]
    Qemu(#[from] Problem),
}

/// Sends what QEMU writes, until it closes.
pub(super) async fn send(from: &mut OwnedReadHalf, mut to: ByteSender) -> Result<(), CarryError> {
    pump(from, &mut to).await?;
    Ok(to.finish()?)
}

/// The same, and leaves the end of the stream to the caller.
pub(super) async fn pump(from: &mut OwnedReadHalf, to: &mut ByteSender) -> Result<(), CarryError> {
    let mut buffers = Buffers::default();
    loop {
        let mut buffer = buffers.take();
        if read(from, &mut buffer, to).await? == 0 {
            return Ok(());
        }
        to.write_chunk(buffers.lend(buffer)).await?;
    }
}

/// The same, in pieces.
pub(super) async fn send_memory(
    from: &mut OwnedReadHalf,
    mut to: ByteSender,
    choice: Choice,
) -> Result<(), CarryError> {
    let mut buffers = Buffers::default();
    let mut packer = Packer::new(choice.clone())?;
    loop {
        let mut buffer = buffers.take();
        buffer.put_bytes(0, PLAIN_HEADER);
        let length = read(from, &mut buffer, &mut to).await?;
        if length == 0 {
            return Ok(to.finish()?);
        }
        let piece = if let Some(packed) = packer.pack(&mut buffer)? {
            buffers.give_back(buffer);
            packed
        } else {
            buffers.lend(buffer)
        };
        to.write_chunk(piece).await?;
        choice.sent(length);
    }
}

async fn read(
    from: &mut OwnedReadHalf,
    buffer: &mut bytes::BytesMut,
    to: &mut ByteSender,
) -> Result<usize, CarryError> {
    let read = from.read_buf(buffer).await;
    Ok(read.inspect_err(|_| to.reset(CloseCode::NONE))?)
}

/// Writes what comes to QEMU, until the other side has finished.
pub(super) async fn receive(
    mut from: ByteReceiver,
    to: &mut OwnedWriteHalf,
) -> Result<(), CarryError> {
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    while let Some(read) = from.read_chunks(&mut chunks).await? {
        let written = write_all(to, &chunks[..read]).await;
        written.inspect_err(|_| from.stop(CloseCode::NONE))?;
        // They hold what they were received in.
        chunks[..read].fill(Bytes::new());
    }
    Ok(to.shutdown().await?)
}

/// The same, of pieces.
pub(super) async fn receive_memory(
    mut from: ByteReceiver,
    to: &mut OwnedWriteHalf,
) -> Result<(), CarryError> {
    let mut pieces = Pieces::new()?;
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    while let Some(read) = from.read_chunks(&mut chunks).await? {
        let written = pieces.write(&mut chunks[..read], to).await;
        written.inspect_err(|_| from.stop(CloseCode::NONE))?;
    }
    pieces.decoder.finish()?;
    Ok(to.shutdown().await?)
}

/// Takes pieces apart.
struct Pieces {
    decoder: PieceDecoder,
    unpacker: Unpacker,
    plain: Vec<Bytes>,
}

impl Pieces {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            decoder: PieceDecoder::default(),
            unpacker: Unpacker::new()?,
            plain: Vec::with_capacity(CHUNKS),
        })
    }

    async fn write(
        &mut self,
        chunks: &mut [Bytes],
        to: &mut OwnedWriteHalf,
    ) -> Result<(), CarryError> {
        for chunk in chunks {
            self.decoder.push(std::mem::take(chunk))?;
        }
        while let Some(piece) = self.decoder.next() {
            match piece {
                Piece::Plain(bytes) => self.plain.push(bytes),
                Piece::Packed { stored, unpacked } => {
                    self.flush(to).await?;
                    to.write_all(self.unpacker.unpack(&stored, unpacked)?)
                        .await?;
                }
            }
        }
        Ok(self.flush(to).await?)
    }

    async fn flush(&mut self, to: &mut OwnedWriteHalf) -> std::io::Result<()> {
        write_all(to, &self.plain).await?;
        self.plain.clear();
        Ok(())
    }
}

/// Writes all of them, with as few system calls as the socket has room for.
async fn write_all(to: &mut OwnedWriteHalf, chunks: &[Bytes]) -> std::io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        let written = to.write_vectored(left).await?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(())
}
