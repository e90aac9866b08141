//! Bytes of a QEMU: a QMP session.
//!
//! The first byte of the input says how the rest arrives (in pieces of so many
//! bytes; 0: at once). Holds: no panic; cutting the stream differently changes
//! nothing; a line that is no message takes none of its neighbours along.
#![no_main]

use godwit_node_logic::qmp::status::{self, RunStatus};
use godwit_node_logic::qmp::{Codec, CodecError, Message};
use libfuzzer_sys::fuzz_target;

/// Small, so that inputs reach it.
const LIMIT: usize = 2048;

fuzz_target!(|input: &[u8]| {
    let Some((cut, stream)) = input.split_first() else {
        return;
    };
    let whole = session(stream, stream.len());
    if *cut > 0 {
        assert_eq!(session(stream, usize::from(*cut)), whole, "cut every {cut}");
    }
    for message in whole.iter().flatten() {
        understand(message);
    }
    lines_stand_alone(stream, &whole);
});

/// What a stream says that arrives in pieces; a codec that gave up ends it.
fn session(stream: &[u8], piece: usize) -> Vec<Result<Message, CodecError>> {
    let mut codec = Codec::with_limit(LIMIT);
    let mut said = Vec::new();
    for bytes in stream.chunks(piece.max(1)) {
        codec.push(bytes);
        loop {
            match codec.next() {
                Ok(Some(message)) => said.push(Ok(message)),
                Ok(None) => break,
                Err(error) => {
                    let over = matches!(error, CodecError::TooLong { .. });
                    said.push(Err(error));
                    if over {
                        return said;
                    }
                }
            }
        }
    }
    said
}

/// Everything that is asked of a message.
fn understand(message: &Message) {
    match message {
        Message::Greeting(greeting) => drop(greeting.release()),
        Message::Event(event) => {
            let _ = (event.matters(), event.text("status"), event.flag("guest"));
        }
        Message::Reply(reply) => match &reply.outcome {
            Ok(answer) => {
                let _ = RunStatus::read(answer);
                let _ = status::frontend_open(answer, "serial");
                let _ = status::migration_active(answer);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        },
        Message::Unknown(_) => {}
    }
}

/// Each whole line means the same by itself as in its session.
fn lines_stand_alone(stream: &[u8], whole: &[Result<Message, CodecError>]) {
    let end = stream.iter().rposition(|byte| *byte == b'\n');
    let lines = stream[..end.map_or(0, |at| at + 1)].split_inclusive(|byte| *byte == b'\n');
    let alone: Vec<_> = lines.flat_map(|line| session(line, line.len())).collect();
    let shared = whole
        .iter()
        .position(|said| matches!(said, Err(CodecError::TooLong { .. })))
        .unwrap_or(whole.len());
    assert_eq!(whole[..shared], alone[..shared.min(alone.len())]);
}
