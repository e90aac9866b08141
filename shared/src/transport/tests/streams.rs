//! What goes over a connection.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::*;
use crate::wire::frame::{FrameError, MAX_FRAME};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Note {
    Text(String),
    Bulk(Vec<u8>),
}

async fn messages(pair: &Pair) -> (MessageSender<Note>, MessageReceiver<Note>) {
    let (sender, _) = pair.near.open(StreamKind::Control).await.unwrap();
    let (_, _, receiver) = within(pair.far.accept()).await.unwrap();
    (sender.into_messages(), receiver.into_messages())
}

#[tokio::test]
async fn streams_say_what_they_are_for() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let kinds = [
        StreamKind::Memory { channel: 2 },
        StreamKind::Disk { index: 1 },
        StreamKind::Bulk,
    ];
    for kind in kinds {
        // Both directions, opened by either side.
        let (mut out, mut back) = into_bytes(pair.near.open(kind).await.unwrap());
        let (seen, far_out, far_in) = within(pair.far.accept()).await.unwrap();
        assert_eq!(seen, kind);
        let (mut far_out, mut far_in) = into_bytes((far_out, far_in));
        out.write_chunk(Bytes::from_static(b"there")).await.unwrap();
        far_out
            .write_chunk(Bytes::from_static(b"back"))
            .await
            .unwrap();
        assert_eq!(
            within(far_in.read_chunk(64)).await.unwrap().unwrap(),
            "there"
        );
        assert_eq!(within(back.read_chunk(64)).await.unwrap().unwrap(), "back");
        out.finish().unwrap();
        assert_eq!(within(far_in.read_chunk(64)).await.unwrap(), None);
        within(out.acknowledged()).await.unwrap();
    }
    let (_far, _near) = (
        pair.far.open(StreamKind::Control).await.unwrap(),
        &pair.near,
    );
    assert_eq!(
        within(pair.near.accept()).await.unwrap().0,
        StreamKind::Control
    );
}

#[tokio::test]
async fn the_control_stream_may_arrive_late() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let overtaking = [
        StreamKind::Memory { channel: 1 },
        StreamKind::Disk { index: 0 },
        StreamKind::Bulk,
    ];
    for kind in overtaking {
        let (sender, _) = pair.near.open(kind).await.unwrap();
        let mut sender = sender.into_bytes();
        sender.write_chunk(Bytes::from_static(b"x")).await.unwrap();
        sender.finish().unwrap();
    }
    // Given up for now: what came meanwhile is not lost by that.
    let wait = Duration::from_millis(200);
    let early = tokio::time::timeout(wait, pair.far.accept_control()).await;
    assert!(early.is_err(), "{early:?}");
    let (sender, _) = pair.near.open(StreamKind::Control).await.unwrap();
    let mut sender = sender.into_messages();
    sender.send(&Note::Text("at last".into())).await.unwrap();
    let taken = within(pair.far.accept_control()).await.unwrap();
    let mut control = taken.unwrap().1.into_messages::<Note>();
    let first = within(control.recv()).await.unwrap();
    assert_eq!(first, Some(Note::Text("at last".into())));
    let mut seen = Vec::new();
    for _ in overtaking {
        let (kind, _, receiver) = within(pair.far.accept()).await.unwrap();
        let mut receiver = receiver.into_bytes();
        assert_eq!(within(receiver.read_chunk(9)).await.unwrap().unwrap(), "x");
        seen.push(kind);
    }
    seen.sort_by_key(|kind| overtaking.iter().position(|known| known == kind));
    assert_eq!(seen, overtaking);
}

#[tokio::test]
async fn a_peer_that_never_opens_a_control_stream_is_not_waited_for() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let mut open = Vec::new();
    for channel in 0..64 {
        open.push(
            pair.near
                .open(StreamKind::Memory { channel })
                .await
                .unwrap(),
        );
    }
    assert!(within(pair.far.accept_control()).await.unwrap().is_none());
}

fn into_bytes((sender, receiver): (Sender, Receiver)) -> (ByteSender, ByteReceiver) {
    (sender.into_bytes(), receiver.into_bytes())
}

#[tokio::test]
async fn messages_arrive_in_order_and_end_cleanly() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let (mut sender, mut receiver) = messages(&pair).await;
    let notes: Vec<Note> = (0..50)
        .map(|n| {
            if n % 7 == 0 {
                Note::Bulk(vec![n; 70_000])
            } else {
                Note::Text(n.to_string())
            }
        })
        .collect();
    let sent = notes.clone();
    let send = async move {
        for note in &sent {
            sender.send(note).await.unwrap();
        }
        sender.finish().unwrap();
        sender.acknowledged().await.unwrap();
    };
    let receive = async {
        let mut seen = Vec::new();
        while let Some(note) = receiver.recv().await.unwrap() {
            seen.push(note);
        }
        seen
    };
    let ((), seen) = within(async { tokio::join!(send, receive) }).await;
    assert_eq!(seen, notes);
}

#[tokio::test]
async fn a_cancelled_receive_loses_nothing() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let (mut sender, mut receiver) = messages(&pair).await;
    let big = Note::Bulk(vec![5; 900_000]);
    let send = async {
        for _ in 0..10 {
            sender.send(&big).await.unwrap();
        }
    };
    let receive = async {
        let mut seen = 0;
        while seen < 10 {
            tokio::select! {
                biased;
                note = receiver.recv() => { assert_eq!(note.unwrap().unwrap(), big); seen += 1; }
                () = tokio::task::yield_now() => {}
            }
        }
    };
    within(async { tokio::join!(send, receive) }).await;
}

#[tokio::test]
async fn a_cancelled_send_tears_no_frame() {
    let cluster = Cluster::new();
    let mut cluster = cluster;
    cluster.options.send_window = 64 * 1024;
    cluster.options.stream_window = 64 * 1024;
    let pair = cluster.pair().await;
    let (mut sender, mut receiver) = messages(&pair).await;
    let big = Note::Bulk(vec![5; 900_000]);
    // Nobody reads, so it gets stuck half-way, and is dropped there.
    let stuck = tokio::time::timeout(Duration::from_millis(50), sender.send(&big)).await;
    assert!(stuck.is_err());
    let after = Note::Text("after".into());
    let (sent, first) = within(async { tokio::join!(sender.send(&after), receiver.recv()) }).await;
    sent.unwrap();
    assert_eq!(first.unwrap().unwrap(), big);
    assert_eq!(within(receiver.recv()).await.unwrap().unwrap(), after);
}

#[tokio::test]
async fn frames_over_the_limit_are_refused_on_both_sides() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let (mut sender, mut receiver) = messages(&pair).await;
    let error = sender
        .send(&Note::Bulk(vec![0; MAX_FRAME]))
        .await
        .unwrap_err();
    assert!(
        matches!(error, SendError::TooLarge(FrameError::TooLarge { .. })),
        "{error}"
    );
    // The stream is as it was.
    sender.send(&Note::Text("small".into())).await.unwrap();
    assert_eq!(
        within(receiver.recv()).await.unwrap(),
        Some(Note::Text("small".into()))
    );

    let (raw, _) = pair.near.open(StreamKind::Control).await.unwrap();
    let mut raw = raw.into_bytes();
    let header = u32::try_from(MAX_FRAME + 1).unwrap().to_le_bytes();
    raw.write_chunk(Bytes::copy_from_slice(&header))
        .await
        .unwrap();
    let (_, _, receiver) = within(pair.far.accept()).await.unwrap();
    let error = within(receiver.into_messages::<Note>().recv())
        .await
        .unwrap_err();
    let expected = FrameError::TooLarge {
        size: MAX_FRAME + 1,
        limit: MAX_FRAME,
    };
    assert!(matches!(error, ReceiveError::Frame(error) if error == expected));
}

#[tokio::test]
async fn torn_and_foreign_messages_are_errors() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let (raw, _) = pair.near.open(StreamKind::Control).await.unwrap();
    let (_, _, receiver) = within(pair.far.accept()).await.unwrap();
    let mut receiver = receiver.into_messages::<Note>();
    let mut raw = raw.into_bytes();
    // A frame that is no Note, then half a frame, then the end.
    raw.write_chunk(Bytes::from_static(b"\x02\0\0\0\x63\x63\x09\0\0\0ab"))
        .await
        .unwrap();
    raw.finish().unwrap();
    assert!(matches!(
        within(receiver.recv()).await,
        Err(ReceiveError::Decode(_))
    ));
    let torn = within(receiver.recv()).await.unwrap_err();
    assert!(
        matches!(torn, ReceiveError::Frame(FrameError::Truncated { got: 6 })),
        "{torn}"
    );
}

#[tokio::test]
async fn a_relay_that_fails_does_not_look_finished() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let (mut out, mut back) = into_bytes(pair.near.open(StreamKind::Bulk).await.unwrap());
    let (_, far_out, far_in) = within(pair.far.accept()).await.unwrap();
    let (mut far_out, mut far_in) = into_bytes((far_out, far_in));
    out.write_chunk(Bytes::from_static(b"some")).await.unwrap();
    assert_eq!(
        within(far_in.read_chunk(64)).await.unwrap().unwrap(),
        "some"
    );
    drop(out);
    let error = within(far_in.read_chunk(64)).await.unwrap_err();
    assert_eq!(error, StreamError::Reset(CloseCode::NONE));
    back.stop(CloseCode::BY_OPERATOR);
    let stopped = within(async {
        loop {
            if let Err(error) = far_out.write_chunk(Bytes::from_static(&[0; 1000])).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(stopped.await, StreamError::Stopped(CloseCode::BY_OPERATOR));
}

/// Bytes that repeat only after 2^61 of them.
fn pattern(offset: usize, length: usize) -> Bytes {
    (offset..offset + length)
        .map(|at| {
            (at as u64 / 8)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_le_bytes()[at % 8]
        })
        .collect::<Vec<u8>>()
        .into()
}

#[tokio::test]
async fn sixty_four_mib_arrive_intact() {
    const TOTAL: usize = 64 << 20;
    const CHUNK: usize = 1 << 20;
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let (out, _back) = pair
        .near
        .open(StreamKind::Memory { channel: 0 })
        .await
        .unwrap();
    let (_, _far_out, far_in) = within(pair.far.accept()).await.unwrap();
    let (mut out, mut far_in) = (out.into_bytes(), far_in.into_bytes());
    let send = async move {
        for offset in (0..TOTAL).step_by(CHUNK) {
            out.write_chunk(pattern(offset, CHUNK)).await.unwrap();
        }
        out.finish().unwrap();
        out.acknowledged().await.unwrap();
    };
    let receive = async {
        let mut seen = 0;
        while let Some(chunk) = far_in.read_chunk(CHUNK).await.unwrap() {
            assert_eq!(chunk, pattern(seen, chunk.len()), "at {seen}");
            seen += chunk.len();
        }
        seen
    };
    let both = async { tokio::join!(send, receive) };
    let ((), seen) = tokio::time::timeout(3 * PATIENCE, both)
        .await
        .expect("it hangs");
    assert_eq!(seen, TOTAL);
    let traffic = pair.near.traffic();
    assert!(traffic.sent > TOTAL as u64, "{traffic:?}");
    assert!(
        traffic.mtu > 1500,
        "a loopback path takes jumbo datagrams: {traffic:?}"
    );
}

#[tokio::test]
async fn many_streams_are_told_apart() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let mut held = Vec::new();
    for channel in 0..100 {
        held.push(
            pair.near
                .open(StreamKind::Memory { channel })
                .await
                .unwrap(),
        );
    }
    let mut seen = Vec::new();
    for _ in 0..100 {
        match within(pair.far.accept()).await.unwrap() {
            (StreamKind::Memory { channel }, ..) => seen.push(channel),
            other => panic!("{other:?}"),
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
}

/// What closes a connection after its end must not hide why it ended.
#[tokio::test]
async fn a_late_close_does_not_hide_the_reason() {
    let cluster = Cluster::new();
    let b = cluster.listen(&cluster.node("b"));
    for _ in 0..20 {
        let pair = cluster.pair_through(&b, b.local_addr().unwrap()).await;
        let (_sender, mut receiver) = messages(&pair).await;
        pair.near.close(CloseCode::SUPERSEDED, "");
        within(receiver.recv()).await.unwrap_err();
        pair.far.close(CloseCode::PROTOCOL, "unreadable message");
        let Disconnect::ClosedByPeer { code, .. } = within(pair.far.closed()).await else {
            panic!("it forgot who closed it")
        };
        assert_eq!(code, CloseCode::SUPERSEDED);
    }
}
