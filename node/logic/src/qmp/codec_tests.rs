#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use proptest::prelude::*;

use super::super::{CommandId, Event, QmpError, Reply};
use super::*;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2"}, "capabilities": ["oob"], "new": 1}}"#;

fn all(bytes: &[u8]) -> Vec<Message> {
    let mut codec = Codec::new();
    codec.push(bytes);
    std::iter::from_fn(|| codec.next().unwrap()).collect()
}

#[test]
fn a_greeting_tells_version_and_capabilities() {
    let messages = all(format!("{GREETING}\r\n").as_bytes());
    let [Message::Greeting(greeting)] = messages.as_slice() else {
        panic!("{messages:?}");
    };
    assert_eq!(greeting.release(), "10.0.2");
    assert_eq!(greeting.package, "Debian 1:10.0.2");
    assert_eq!(greeting.capabilities, ["oob"]);
}

#[test]
fn replies_keep_their_id_and_events_their_time() {
    let text = concat!(
        "{\"return\": {\"running\": true}, \"id\": 7}\n",
        "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}, \"id\": 8}\n",
        "{\"timestamp\": {\"seconds\": 3, \"microseconds\": 5}, \"event\": \"NEW_THING\", \"data\": {\"x\": [1]}}\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n",
    );
    assert_eq!(
        all(text.as_bytes()),
        [
            Message::Reply(Reply {
                id: Some(CommandId(7)),
                outcome: Ok(serde_json::json!({"running": true})),
            }),
            Message::Reply(Reply {
                id: Some(CommandId(8)),
                outcome: Err(QmpError {
                    class: "CommandNotFound".into(),
                    desc: "no".into(),
                }),
            }),
            Message::Event(Event {
                name: "NEW_THING".into(),
                data: serde_json::json!({"x": [1]}),
                timestamp: 3_000_005,
            }),
            Message::Reply(Reply {
                id: None,
                outcome: Err(QmpError {
                    class: "GenericError".into(),
                    desc: "JSON parse error".into(),
                }),
            }),
        ]
    );
}

#[test]
fn what_is_not_known_is_kept() {
    let value = serde_json::json!({"surprise": 1, "id": 3});
    assert_eq!(
        all(b"{\"surprise\": 1, \"id\": 3}\n"),
        [Message::Unknown(value)]
    );
}

#[test]
fn a_clock_that_failed_is_no_error() {
    let text = b"{\"event\": \"STOP\", \"timestamp\": {\"seconds\": -1, \"microseconds\": -1}}\n";
    let [Message::Event(event)] = &all(text)[..] else {
        panic!();
    };
    assert_eq!(event.timestamp, 0);
    assert!(event.data.is_null());
}

#[test]
fn garbage_costs_its_line_only() {
    let mut codec = Codec::new();
    codec.push(b"\xff\xfe nonsense\n[]\n{\"return\": {}}\n");
    assert!(matches!(codec.next(), Err(CodecError::NotJson { .. })));
    assert!(matches!(codec.next(), Err(CodecError::NotJson { .. })));
    assert!(matches!(codec.next(), Ok(Some(Message::Reply(_)))));
    assert_eq!(codec.next(), Ok(None));
}

#[test]
fn a_line_without_end_breaks_the_session_and_holds_nothing() {
    let mut codec = Codec::with_limit(1000);
    codec.push(&[b'x'; 600]);
    assert_eq!(codec.next(), Ok(None));
    codec.push(&[b'x'; 600]);
    assert_eq!(codec.next(), Err(CodecError::TooLong { limit: 1000 }));
    codec.push(b"\n{\"return\": {}}\n");
    assert_eq!(codec.next(), Err(CodecError::TooLong { limit: 1000 }));
    assert_eq!(codec.buffer.capacity(), 0);
}

#[test]
fn the_memory_of_a_large_message_is_given_back() {
    let mut codec = Codec::new();
    codec.push(format!("{{\"return\": \"{}\"}}\n", "y".repeat(1 << 20)).as_bytes());
    assert!(codec.next().unwrap().is_some());
    codec.push(b"{\"return\": {}}\n");
    assert!(codec.buffer.capacity() < 1 << 16);
}

proptest! {
    #[test]
    fn any_split_yields_the_same_messages(
        ids in prop::collection::vec(any::<u32>(), 0..20),
        cuts in prop::collection::vec(1_usize..40, 1..40),
    ) {
        let text: String = ids.iter().map(|id| format!("{{\"return\": {{}}, \"id\": {id}}}\r\n")).collect();
        let (mut rest, mut cut) = (text.as_bytes(), cuts.iter().cycle());
        let (mut codec, mut seen) = (Codec::new(), Vec::new());
        while !rest.is_empty() {
            let (piece, later) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
            codec.push(piece);
            while let Some(Message::Reply(reply)) = codec.next().unwrap() {
                seen.push(reply.id.unwrap().0);
            }
            rest = later;
        }
        prop_assert_eq!(seen, ids.into_iter().map(u64::from).collect::<Vec<_>>());
    }

    #[test]
    fn arbitrary_bytes_never_panic(pieces: Vec<Vec<u8>>) {
        let mut codec = Codec::with_limit(64);
        for piece in pieces {
            codec.push(&piece);
            for _ in 0..=piece.len() {
                let _ = codec.next();
            }
        }
    }
}
