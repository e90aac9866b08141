//! A migration channel's bytes as another node sends them: plain and packed pieces.
//!
//! The first byte of the input says how the rest arrives (in parts of so many
//! bytes; 0: at once). Holds: no panic, no allocation that follows a length
//! which is only announced; cutting the stream differently changes neither what
//! comes out nor how it ends; pieces that were read and are written again are
//! the same stream.
#![no_main]

use bytes::Bytes;
use godwit_shared::wire::piece::{
    MAX_PIECE, Piece, PieceDecoder, PieceError, packed_header, plain_header,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((cut, stream)) = input.split_first() else {
        return;
    };
    let whole = pieces(stream, stream.len());
    if *cut > 0 {
        assert_eq!(pieces(stream, usize::from(*cut)), whole, "cut every {cut}");
    }
    let again: Vec<u8> = whole.found.iter().flat_map(written).collect();
    let twice = pieces(&again, again.len());
    assert_eq!(twice.found, whole.found, "pieces changed on their way");
    assert_eq!(twice.end, Ok(()));
});

#[derive(Debug, PartialEq)]
struct Read {
    found: Vec<Found>,
    end: Result<(), PieceError>,
}

/// Plain bytes that follow one another, or a packed piece.
#[derive(Debug, PartialEq)]
enum Found {
    Plain(Vec<u8>),
    Packed(Vec<u8>, usize),
}

/// What comes of a stream that arrives in parts.
fn pieces(stream: &[u8], part: usize) -> Read {
    let mut decoder = PieceDecoder::default();
    let mut found = Vec::new();
    for bytes in stream.chunks(part.max(1)) {
        let pushed = decoder.push(Bytes::copy_from_slice(bytes));
        while let Some(piece) = decoder.next() {
            add(&mut found, piece);
        }
        if pushed.is_err() {
            break;
        }
    }
    let end = decoder.finish();
    Read { found, end }
}

fn add(found: &mut Vec<Found>, piece: Piece) {
    match (piece, found.last_mut()) {
        (Piece::Plain(more), Some(Found::Plain(bytes))) => bytes.extend_from_slice(&more),
        (Piece::Plain(bytes), _) => found.push(Found::Plain(bytes.to_vec())),
        (Piece::Packed { stored, unpacked }, _) => {
            assert!(stored.len() <= MAX_PIECE && unpacked <= MAX_PIECE);
            found.push(Found::Packed(stored.to_vec(), unpacked));
        }
    }
}

fn written(found: &Found) -> Vec<u8> {
    let fits = "what came in a piece fits one";
    match found {
        Found::Plain(bytes) => bytes
            .chunks(MAX_PIECE)
            .flat_map(|some| [&plain_header(some.len()).expect(fits)[..], some].concat())
            .collect(),
        Found::Packed(stored, unpacked) => {
            let header = packed_header(stored.len(), *unpacked).expect(fits);
            [&header[..], stored].concat()
        }
    }
}
