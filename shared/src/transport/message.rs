//! Typed messages over a stream: frames of [`crate::wire`].

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use quinn::{RecvStream, SendStream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connection::Link;
use super::stream::StreamError;
use crate::wire::codec::{DecodeError, EncodeError, decode, encode};
use crate::wire::frame::{FrameDecoder, FrameError, MAX_FRAME, frame};

/// How much is taken from the stream at a time, in bytes.
const READ_AT_ONCE: usize = 64 * 1024;

/// Sends messages of one type.
///
/// Dropped, it ends the stream after what was sent.
#[derive(Debug)]
pub struct MessageSender<T> {
    stream: SendStream,
    link: Arc<Link>,
    /// What of the last message the stream has not taken yet.
    pending: Bytes,
    kind: PhantomData<fn(T)>,
}

/// A message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The message cannot be encoded; the stream is as it was.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The message is too large; the stream is as it was.
    #[error(transparent)]
    TooLarge(#[from] FrameError),
    /// The stream cannot go on.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl<T: Serialize> MessageSender<T> {
    pub(super) fn new(stream: SendStream, link: Arc<Link>) -> Self {
        Self {
            stream,
            link,
            pending: Bytes::new(),
            kind: PhantomData,
        }
    }

    /// Sends a message; waits while the peer takes no more.
    ///
    /// Dropping the future never tears a frame: a message that was begun is
    /// completed by the next call. So a message whose sending was cancelled may
    /// or may not arrive.
    ///
    /// # Errors
    /// When the message is over the frame limit, or the stream has ended.
    pub async fn send(&mut self, message: &T) -> Result<(), SendError> {
        let bytes = frame(&encode(message)?)?;
        self.flush().await?;
        self.pending = bytes;
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), SendError> {
        while !self.pending.is_empty() {
            match self.stream.write(&self.pending).await {
                Ok(count) => self.pending.advance(count),
                Err(error) => return Err(self.link.write_error(error).into()),
            }
        }
        Ok(())
    }

    /// Ends the stream after what was sent.
    ///
    /// # Errors
    /// When the stream had ended already.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.stream.finish().map_err(|_| StreamError::Closed)
    }

    /// Waits until the peer's transport has acknowledged everything; only
    /// useful after [`finish`](Self::finish).
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
}

/// Receives messages of one type.
#[derive(Debug)]
pub struct MessageReceiver<T> {
    stream: RecvStream,
    link: Arc<Link>,
    frames: FrameDecoder,
    kind: PhantomData<fn() -> T>,
}

/// No message could be received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// A frame is too large or torn.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame is not such a message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The stream cannot go on.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl<T: DeserializeOwned> MessageReceiver<T> {
    pub(super) fn new(stream: RecvStream, link: Arc<Link>) -> Self {
        Self {
            stream,
            link,
            frames: FrameDecoder::new(),
            kind: PhantomData,
        }
    }

    /// Accepts messages up to `limit` bytes only.
    #[must_use]
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.frames = FrameDecoder::with_limit(limit);
        self
    }

    /// The next message; `None` when the peer has ended the stream. Cancel-safe:
    /// what had arrived when the future was dropped is there for the next call.
    ///
    /// # Errors
    /// When what arrives is no such message, or the stream has ended in another
    /// way. A message that cannot be decoded does not hinder the next one.
    pub async fn recv(&mut self) -> Result<Option<T>, ReceiveError> {
        loop {
            if let Some(payload) = self.frames.next()? {
                return Ok(Some(decode(&payload, MAX_FRAME)?));
            }
            match self.stream.read_chunk(READ_AT_ONCE, true).await {
                Ok(Some(chunk)) => self.frames.push(&chunk.bytes),
                Ok(None) => {
                    self.frames.finish()?;
                    return Ok(None);
                }
                Err(error) => return Err(self.link.read_error(error).into()),
            }
        }
    }
}
