//! Bytes of a peer: frames and every message that may be in one.
//!
//! The first byte of the input says how the rest arrives (in pieces of so many
//! bytes; 0: at once). Holds: no panic, no allocation beyond the limits; cutting
//! the stream differently changes nothing; a message that was read is written
//! and read again as the same message.
#![no_main]

use godwit_shared::wire::codec::{decode, encode};
use godwit_shared::wire::frame::{FrameDecoder, MAX_FRAME, frame};
use godwit_shared::wire::{peer, uplink, version};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|input: &[u8]| {
    let Some((cut, stream)) = input.split_first() else {
        return;
    };
    let whole = frames(stream, stream.len());
    if *cut > 0 {
        assert_eq!(frames(stream, usize::from(*cut)), whole, "cut every {cut}");
    }
    for payload in &whole {
        messages(payload);
    }
});

/// The payloads of a stream that arrives in pieces.
fn frames(stream: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let mut decoder = FrameDecoder::new();
    let mut payloads = Vec::new();
    for bytes in stream.chunks(piece.max(1)) {
        decoder.push(bytes);
        while let Ok(Some(payload)) = decoder.next() {
            let again = frame(&payload).expect("a payload that came in a frame fits a frame");
            assert_eq!(again[4..], payload[..]);
            payloads.push(payload.to_vec());
        }
    }
    payloads
}

/// A peer may send any message in any place.
fn messages(payload: &[u8]) {
    round_trip::<version::Offer>(payload);
    round_trip::<version::Answer>(payload);
    round_trip::<uplink::NodeMessage>(payload);
    round_trip::<uplink::CoordinatorMessage>(payload);
    round_trip::<uplink::ConsoleOpen>(payload);
    round_trip::<uplink::ConsoleAnswer>(payload);
    round_trip::<uplink::JoinRequest>(payload);
    round_trip::<uplink::JoinAnswer>(payload);
    round_trip::<peer::SourceMessage>(payload);
    round_trip::<peer::TargetMessage>(payload);
}

fn round_trip<T: Serialize + DeserializeOwned>(payload: &[u8]) {
    let Ok(value) = decode::<T>(payload, MAX_FRAME) else {
        return;
    };
    let bytes = encode(&value).expect("what was read can be written");
    let again: T = decode(&bytes, MAX_FRAME).expect("what was written can be read");
    let twice = encode(&again).expect("what was read can be written");
    assert_eq!(bytes, twice, "a message changed on its way");
}
