//! Streams of a connection: what each is for, and raw bytes over it.
//!
//! The side that opens a stream says in its first frame what it is for
//! ([`StreamKind`]); both sides then send in that kind's priority. A stream is
//! used either for messages or for bytes, not for both.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::connection::Link;
use super::disconnect::{CloseCode, Disconnect};
use super::message::{MessageReceiver, MessageSender};
use crate::model::id::VmId;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StreamKind {
    /// Messages between daemons.
    Control,
    /// One migration channel of QEMU: 0 is the main one, the others multifd's
    /// or the post-copy preempt channel.
    Memory {
        /// Number of the channel.
        channel: u16,
    },
    /// One disk's mirror.
    Disk {
        /// Index of the disk in the VM's spec.
        index: u16,
    },
    /// The bytes of a VM's serial console.
    Console {
        /// The VM.
        vm: VmId,
    },
    /// Whatever can wait: images, backups, logs.
    Bulk,
    /// One question about a lease, and its answer.
    Lease,
}

impl StreamKind {
    /// Streams of a higher priority are sent first when there is more to send
    /// than the path takes.
    pub fn priority(self) -> i32 {
        match self {
            Self::Control => 100,
            Self::Lease => 90,
            Self::Memory { .. } | Self::Disk { .. } => 50,
            Self::Console { .. } => 20,
            Self::Bulk => 0,
        }
    }
}

/// A stream cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The whole connection has ended.
    #[error("the connection has ended")]
    Disconnected(#[source] Disconnect),
    /// The peer abandoned what it was sending.
    #[error("the peer abandoned the stream ({0})")]
    Reset(CloseCode),
    /// The peer reads no further.
    #[error("the peer stopped reading the stream ({0})")]
    Stopped(CloseCode),
    /// The stream was finished, reset or stopped on this side.
    #[error("the stream was closed on this side")]
    Closed,
}

/// The sending half of a new stream.
#[derive(Debug)]
pub struct Sender {
    stream: SendStream,
    link: Arc<Link>,
}

/// The receiving half of a new stream.
#[derive(Debug)]
pub struct Receiver {
    stream: RecvStream,
    link: Arc<Link>,
}

impl Sender {
    pub(super) fn new(stream: SendStream, link: Arc<Link>) -> Self {
        Self { stream, link }
    }

    /// Use the half for typed messages.
    pub fn into_messages<T: Serialize>(self) -> MessageSender<T> {
        MessageSender::new(self.stream, self.link)
    }

    /// Use the half for bytes.
    pub fn into_bytes(self) -> ByteSender {
        ByteSender {
            stream: self.stream,
            link: self.link,
            ended: false,
        }
    }
}

impl Receiver {
    pub(super) fn new(stream: RecvStream, link: Arc<Link>) -> Self {
        Self { stream, link }
    }

    /// Use the half for typed messages.
    pub fn into_messages<T: DeserializeOwned>(self) -> MessageReceiver<T> {
        MessageReceiver::new(self.stream, self.link)
    }

    /// Use the half for bytes.
    pub fn into_bytes(self) -> ByteReceiver {
        ByteReceiver {
            stream: self.stream,
            link: self.link,
        }
    }
}

/// Sends bytes.
///
/// Dropped before [`finish`](Self::finish), it resets the stream: a relay that
/// failed half-way must not look like one that came to its end.
#[derive(Debug)]
pub struct ByteSender {
    stream: SendStream,
    /// Keeps the connection open.
    link: Arc<Link>,
    ended: bool,
}

impl ByteSender {
    /// Hands a chunk over without copying it; waits while the peer or the path
    /// takes no more. Not cancel-safe: when dropped half-way, part of the chunk
    /// may be on its way.
    ///
    /// # Errors
    /// When the peer stopped reading, or the connection has ended.
    pub async fn write_chunk(&mut self, chunk: Bytes) -> Result<(), StreamError> {
        self.stream
            .write_chunk(chunk)
            .await
            .map_err(|error| self.link.write_error(error))
    }

    /// Ends the stream after what was written. [`acknowledged`](Self::acknowledged)
    /// tells when the peer's transport has all of it.
    ///
    /// # Errors
    /// When the stream had ended already.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.ended = true;
        self.stream.finish().map_err(|_| StreamError::Closed)
    }

    /// Waits until the peer's transport has acknowledged everything, the end
    /// included. A connection that is closed before may lose the rest.
    ///
    /// # Errors
    /// When the peer stopped reading, or the connection has ended.
    pub async fn acknowledged(&mut self) -> Result<(), StreamError> {
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(StreamError::Stopped(code.into())),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(self.link.lost(error)),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(StreamError::Closed),
        }
    }

    /// Abandons the stream; what the peer has not got yet is thrown away.
    pub fn reset(&mut self, code: CloseCode) {
        self.ended = true;
        // It may have ended by itself.
        let _ = self.stream.reset(VarInt::from(code));
    }
}

impl Drop for ByteSender {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(CloseCode::NONE);
        }
    }
}

/// Receives bytes. Dropped before the end, it tells the peer to stop sending.
#[derive(Debug)]
pub struct ByteReceiver {
    stream: RecvStream,
    /// Keeps the connection open.
    link: Arc<Link>,
}

impl ByteReceiver {
    /// The next bytes in order, at most `max`, without copying them; `None`
    /// when the peer has finished. Cancel-safe.
    ///
    /// # Errors
    /// When the peer abandoned the stream, or the connection has ended.
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        match self.stream.read_chunk(max, true).await {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
            Err(error) => Err(self.link.read_error(error)),
        }
    }

    /// The next bytes in order, without copying them, in as many of `chunks` as
    /// there are for now, at least one; how many, or `None` when the peer has
    /// finished. Cancel-safe.
    ///
    /// # Errors
    /// When the peer abandoned the stream, or the connection has ended.
    pub async fn read_chunks(
        &mut self,
        chunks: &mut [Bytes],
    ) -> Result<Option<usize>, StreamError> {
        let read = self.stream.read_chunks(chunks).await;
        read.map_err(|error| self.link.read_error(error))
    }

    /// Tells the peer to stop sending.
    pub fn stop(&mut self, code: CloseCode) {
        // It may have ended by itself.
        let _ = self.stream.stop(VarInt::from(code));
    }
}

impl Link {
    pub(super) fn lost(&self, error: ConnectionError) -> StreamError {
        StreamError::Disconnected(self.meaning(error))
    }

    pub(super) fn write_error(&self, error: WriteError) -> StreamError {
        match error {
            WriteError::Stopped(code) => StreamError::Stopped(code.into()),
            WriteError::ConnectionLost(error) => self.lost(error),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => StreamError::Closed,
        }
    }

    pub(super) fn read_error(&self, error: ReadError) -> StreamError {
        match error {
            ReadError::Reset(code) => StreamError::Reset(code.into()),
            ReadError::ConnectionLost(error) => self.lost(error),
            ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => StreamError::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::codec::encode;

    #[test]
    fn golden_bytes_of_kinds() {
        assert_eq!(encode(&StreamKind::Control).unwrap(), [0]);
        assert_eq!(encode(&StreamKind::Memory { channel: 3 }).unwrap(), [1, 3]);
        assert_eq!(
            encode(&StreamKind::Disk { index: 300 }).unwrap(),
            [2, 0xfb, 0x2c, 1]
        );
        let console = encode(&StreamKind::Console {
            vm: VmId::from_u128(1),
        })
        .unwrap();
        assert_eq!(
            console,
            [3, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
        );
        assert_eq!(encode(&StreamKind::Bulk).unwrap(), [4]);
        assert_eq!(encode(&StreamKind::Lease).unwrap(), [5]);
    }

    #[test]
    fn control_goes_first() {
        let others = [
            StreamKind::Memory { channel: 0 },
            StreamKind::Disk { index: 0 },
            StreamKind::Console {
                vm: VmId::from_u128(1),
            },
            StreamKind::Bulk,
            StreamKind::Lease,
        ];
        assert!(
            others
                .iter()
                .all(|kind| kind.priority() < StreamKind::Control.priority())
        );
    }
}
