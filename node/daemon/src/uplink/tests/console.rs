#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use godwit_shared::model::codes;
use godwit_shared::transport::{ByteReceiver, ByteSender, StreamKind};
use godwit_shared::wire::codec::{decode, encode};
use godwit_shared::wire::frame::{HEADER_LEN, frame};
use godwit_shared::wire::uplink::{ConsoleAnswer, ConsoleOpen};

use super::*;
use crate::testing::Script;

struct ConsoleStream {
    sender: ByteSender,
    receiver: ByteReceiver,
    answer: ConsoleAnswer,
}

async fn open_console(session: &Script) -> ConsoleStream {
    let vm = VmId::from_u128(1);
    let open = ConsoleOpen {
        vm,
        name: "a".parse().unwrap(),
        scrollback: 9,
    };
    let (sender, receiver) = session
        .connection
        .open(StreamKind::Console { vm })
        .await
        .unwrap();
    let (mut sender, mut receiver) = (sender.into_bytes(), receiver.into_bytes());
    sender
        .write_chunk(frame(&encode(&open).unwrap()).unwrap())
        .await
        .unwrap();
    let header = read(&mut receiver, HEADER_LEN).await;
    let length = u32::from_le_bytes(header.try_into().unwrap());
    let answer = decode(&read(&mut receiver, length as usize).await, 4096).unwrap();
    ConsoleStream {
        sender,
        receiver,
        answer,
    }
}

async fn read(receiver: &mut ByteReceiver, size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < size {
        let chunk = soon(receiver.read_chunk(size - bytes.len())).await.unwrap();
        bytes.extend_from_slice(&chunk.expect("the stream ended early"));
    }
    bytes
}

#[actix::test]
async fn a_console_carries_bytes_both_ways_until_either_side_ends_it() {
    let coordinator = TestCoordinator::start();
    let (identity, _) = coordinator.node("n1", NODE_VALIDITY);
    let addresses = vec![HostPort::of(coordinator.address())];
    let (consoles, mut attached) = mpsc::unbounded_channel();
    let stub = Stub {
        consoles: Some(consoles),
    };
    let _node = TestNode::with(&coordinator, addresses, identity, stub);
    let session = coordinator.welcomed().await;

    let mut console = open_console(&session).await;
    assert_eq!(console.answer, ConsoleAnswer::Open);
    let mut guest = soon(attached.recv()).await.unwrap();
    assert_eq!(read(&mut console.receiver, 12).await, b"scrollback 9");
    guest
        .output
        .send(Bytes::from_static(b"login: "))
        .await
        .unwrap();
    assert_eq!(read(&mut console.receiver, 7).await, b"login: ");
    console
        .sender
        .write_chunk(Bytes::from_static(b"root\n"))
        .await
        .unwrap();
    assert_eq!(soon(guest.input.recv()).await.unwrap(), "root\n");
    console.sender.finish().unwrap();
    assert_eq!(soon(guest.input.recv()).await, None, "detached");
    assert_eq!(soon(console.receiver.read_chunk(1)).await.unwrap(), None);

    let mut console = open_console(&session).await;
    let guest = soon(attached.recv()).await.unwrap();
    assert_eq!(read(&mut console.receiver, 12).await, b"scrollback 9");
    drop(guest);
    assert_eq!(
        soon(console.receiver.read_chunk(1)).await.unwrap(),
        None,
        "the guest ended it"
    );
}

#[actix::test]
async fn a_guest_that_does_not_read_slows_the_typist_down() {
    let coordinator = TestCoordinator::start();
    let (identity, _) = coordinator.node("n1", NODE_VALIDITY);
    let addresses = vec![HostPort::of(coordinator.address())];
    let (consoles, mut attached) = mpsc::unbounded_channel();
    let stub = Stub {
        consoles: Some(consoles),
    };
    let _node = TestNode::with(&coordinator, addresses, identity, stub);
    let session = coordinator.welcomed().await;
    let mut console = open_console(&session).await;
    let mut guest = soon(attached.recv()).await.unwrap();
    let typed = Bytes::from(vec![b'x'; 1 << 20]);
    let mut written = 0;
    // More than a stream's window cannot be ahead of a guest that reads nothing.
    while written < 256 {
        let wait = Duration::from_millis(500);
        let write = console.sender.write_chunk(typed.clone());
        if tokio::time::timeout(wait, write).await.is_err() {
            break;
        }
        written += 1;
    }
    assert!(
        written < 256,
        "256 MiB were taken in for a guest that reads nothing"
    );
    assert!(soon(guest.input.recv()).await.is_some());
}

#[actix::test]
async fn a_console_that_cannot_be_had_is_refused() {
    let coordinator = TestCoordinator::start();
    let _node = TestNode::start(&coordinator);
    let session = coordinator.welcomed().await;
    let mut console = open_console(&session).await;
    assert!(matches!(console.answer, ConsoleAnswer::Refused(p) if p.code == codes::NOT_FOUND));
    assert_eq!(soon(console.receiver.read_chunk(1)).await.unwrap(), None);
}
