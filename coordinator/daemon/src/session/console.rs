//! A guest's serial console: a stream of its node's connection.
//!
//! The stream begins with one frame each way ([`ConsoleOpen`],
//! [`ConsoleAnswer`]) and then carries plain bytes, so the frames are read and
//! written by hand, never further than their end.

use std::time::Duration;

use bytes::Bytes;
use godwit_shared::model::{Problem, VmId, codes};
use godwit_shared::transport::{ByteReceiver, ByteSender, Connection, StreamKind};
use godwit_shared::wire::codec::{decode, encode};
use godwit_shared::wire::frame::{HEADER_LEN, frame, payload_len};
use godwit_shared::wire::uplink::{ConsoleAnswer, ConsoleOpen};

/// How long a node may take to open a console.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer, in bytes.
const LIMIT: usize = 64 * 1024;

/// Both directions of a console.
#[derive(Debug)]
pub struct Console {
    /// To the guest.
    pub input: ByteSender,
    /// From the guest.
    pub output: ByteReceiver,
}

/// Opens a VM's console on its node.
pub async fn open_console(connection: &Connection, open: ConsoleOpen) -> Result<Console, Problem> {
    let vm = open.vm;
    match tokio::time::timeout(PATIENCE, exchange(connection, vm, open)).await {
        Ok(console) => console,
        Err(_) => Err(
            Problem::new(codes::TIMEOUT, "the node did not open the console in time")
                .remedy("try again; look at the node's log if it stays so"),
        ),
    }
}

async fn exchange(
    connection: &Connection,
    vm: VmId,
    open: ConsoleOpen,
) -> Result<Console, Problem> {
    let lost = |error: &dyn std::fmt::Display| {
        Problem::new(
            codes::NODE_UNREACHABLE,
            format!("the console's stream was lost: {error}"),
        )
        .remedy("try again when the node is back")
    };
    let (sender, receiver) = connection
        .open(StreamKind::Console { vm })
        .await
        .map_err(|e| lost(&e))?;
    let (mut input, mut output) = (sender.into_bytes(), receiver.into_bytes());
    let hello = encode(&open).map_err(Problem::internal)?;
    let hello = frame(&hello).map_err(Problem::internal)?;
    input.write_chunk(hello).await.map_err(|e| lost(&e))?;
    let answer = read_frame(&mut output).await.map_err(|why| lost(&why))?;
    match decode(&answer, LIMIT) {
        Ok(ConsoleAnswer::Open) => Ok(Console { input, output }),
        Ok(ConsoleAnswer::Refused(problem)) => Err(problem),
        Err(error) => Err(lost(&error)),
    }
}

async fn read_frame(output: &mut ByteReceiver) -> Result<Vec<u8>, String> {
    let header = read_exact(output, HEADER_LEN).await?;
    let header: [u8; HEADER_LEN] = header
        .try_into()
        .map_err(|_| String::from("a torn frame"))?;
    let length = payload_len(header, LIMIT).map_err(|e| e.to_string())?;
    read_exact(output, length).await
}

async fn read_exact(output: &mut ByteReceiver, length: usize) -> Result<Vec<u8>, String> {
    let mut read = Vec::with_capacity(length);
    while read.len() < length {
        let chunk: Option<Bytes> = output
            .read_chunk(length - read.len())
            .await
            .map_err(|e| e.to_string())?;
        read.extend_from_slice(&chunk.ok_or("it ended before the answer")?);
    }
    Ok(read)
}
