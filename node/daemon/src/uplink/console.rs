//! A console stream: the coordinator's [`ConsoleOpen`], our [`ConsoleAnswer`],
//! then the bytes of a VM's serial console both ways.
//!
//! Nothing is buffered here beyond one chunk for each direction. What the guest
//! writes waits in the attachment's queue (whose owner drops an attachment that
//! is too slow); what is typed waits in the stream until the guest reads it, so
//! QUIC's flow control slows the typist down. The end of either side ends both.

use std::time::Duration;

use actix::Recipient;
use bytes::Bytes;
use godwit_shared::model::{Problem, codes};
use godwit_shared::transport::{ByteReceiver, ByteSender, Receiver, Sender, StreamError};
use godwit_shared::wire::codec::{decode, encode};
use godwit_shared::wire::frame::{HEADER_LEN, frame, payload_len};
use godwit_shared::wire::uplink::{ConsoleAnswer, ConsoleOpen};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::services::ask;
use crate::supervisor::messages::{AttachConsole, Console};

/// How long the coordinator may take to say what it wants.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long attaching may take.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest first frame, in bytes.
const FRAME_LIMIT: usize = 4096;
/// Most scrollback that is sent, in bytes.
const MAX_SCROLLBACK: u32 = 1 << 20;
/// Most that is read from the typist at once, in bytes.
const INPUT_CHUNK: usize = 4096;

/// Serves one console stream to its end.
pub(super) async fn serve(
    consoles: Recipient<AttachConsole>,
    sender: Sender,
    receiver: Receiver,
) -> Result<(), StreamError> {
    let (mut sender, mut receiver) = (sender.into_bytes(), receiver.into_bytes());
    match attach(&consoles, &mut receiver).await {
        Ok(console) => {
            write_frame(&mut sender, &ConsoleAnswer::Open).await?;
            relay(console, sender, receiver).await
        }
        Err(problem) => {
            write_frame(&mut sender, &ConsoleAnswer::Refused(problem)).await?;
            sender.finish()
        }
    }
}

/// Answers that the console cannot be had.
pub(super) async fn refuse(sender: Sender, problem: Problem) -> Result<(), StreamError> {
    let mut sender = sender.into_bytes();
    write_frame(&mut sender, &ConsoleAnswer::Refused(problem)).await?;
    sender.finish()
}

async fn attach(
    consoles: &Recipient<AttachConsole>,
    receiver: &mut ByteReceiver,
) -> Result<Console, Problem> {
    let open: ConsoleOpen = tokio::time::timeout(OPEN_TIMEOUT, read_frame(receiver))
        .await
        .map_err(|_| malformed("it does not say which VM it is for"))??;
    let attach = AttachConsole {
        vm: open.vm,
        scrollback: open.scrollback.min(MAX_SCROLLBACK),
    };
    ask(consoles, attach, ATTACH_TIMEOUT).await?
}

async fn relay(
    console: Console,
    mut sender: ByteSender,
    mut receiver: ByteReceiver,
) -> Result<(), StreamError> {
    let Console {
        backlog,
        mut output,
        input,
    } = console;
    let from_guest = async {
        if !backlog.is_empty() {
            sender.write_chunk(backlog).await?;
        }
        while let Some(chunk) = output.recv().await {
            sender.write_chunk(chunk).await?;
        }
        Ok(())
    };
    let to_guest = async {
        while let Some(chunk) = receiver.read_chunk(INPUT_CHUNK).await? {
            // The console has ended; `from_guest` ends too.
            if input.send(chunk).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    };
    let ended: Result<(), StreamError> = tokio::select! {
        ended = from_guest => ended,
        ended = to_guest => ended,
    };
    ended?;
    sender.finish()
}

async fn write_frame<T: Serialize>(
    sender: &mut ByteSender,
    message: &T,
) -> Result<(), StreamError> {
    let bytes = encode(message)
        .ok()
        .and_then(|bytes| frame(&bytes).ok())
        .ok_or(StreamError::Closed)?;
    sender.write_chunk(bytes).await
}

/// Reads exactly one frame: what follows it belongs to the console.
async fn read_frame<T: DeserializeOwned>(receiver: &mut ByteReceiver) -> Result<T, Problem> {
    let header = read_exact(receiver, HEADER_LEN).await?;
    let header = header
        .first_chunk::<HEADER_LEN>()
        .ok_or_else(|| malformed("its first frame is cut off"))?;
    let size = payload_len(*header, FRAME_LIMIT).map_err(|error| malformed(&error.to_string()))?;
    let payload = read_exact(receiver, size).await?;
    decode(&payload, FRAME_LIMIT).map_err(|error| malformed(&error.to_string()))
}

async fn read_exact(receiver: &mut ByteReceiver, size: usize) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let chunk: Option<Bytes> = receiver
            .read_chunk(size - bytes.len())
            .await
            .map_err(|error| malformed(&error.to_string()))?;
        let chunk = chunk.ok_or_else(|| malformed("its first frame is cut off"))?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn malformed(why: &str) -> Problem {
    Problem::new(
        codes::PROTOCOL,
        format!("the console stream cannot be served: {why}"),
    )
    .remedy("bring both daemons to the same release")
}
