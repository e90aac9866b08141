//! Values to bytes and back: the only module that knows `bincode`.
//!
//! The crate is frozen upstream (see `docs/adr/0002`), so everything else
//! speaks of [`encode`] and [`decode`]; a compatible implementation can take
//! its place here without another file changing. The format is bincode 2's
//! `standard()` configuration over serde: little endian, integers of more than
//! a byte as varints, lengths as varints, enum variants by their index. It is
//! not self-describing: fields and variants are known by position, so types
//! that travel only ever grow at the end, under a new protocol version.
//!
//! Invariants:
//! * a decode reads at most its limit and never allocates beyond it;
//! * bytes that are left over are an error, so one value has one encoding and
//!   a message of a newer, longer shape isn't taken for the older one.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest decode limit: [`super::frame::MAX_FRAME`], since no more ever
/// arrives in one piece.
const CEILING: usize = super::frame::MAX_FRAME;

/// A value could not be turned into bytes.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode {kind}")]
pub struct EncodeError {
    /// The Rust type that was to be encoded.
    kind: &'static str,
    #[source]
    source: bincode::error::EncodeError,
}

/// Bytes are not the value that they should be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than the caller accepts.
    #[error("a {kind} of {size} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// The Rust type that was expected.
        kind: &'static str,
        /// How many bytes there are.
        size: usize,
        /// How many are accepted.
        limit: usize,
    },
    /// The bytes don't describe such a value.
    #[error("the bytes are not a valid {kind}")]
    Invalid {
        /// The Rust type that was expected.
        kind: &'static str,
        /// What is wrong with them.
        #[source]
        source: bincode::error::DecodeError,
    },
    /// A value was read and bytes remain.
    #[error("{left} bytes are left over after a {kind}")]
    Trailing {
        /// The Rust type that was read.
        kind: &'static str,
        /// How many bytes remain.
        left: usize,
    },
}

/// Turns a value into bytes.
///
/// # Errors
/// When the type's `Serialize` fails or needs what the format lacks (a
/// sequence of unknown length).
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, EncodeError> {
    bincode::serde::encode_to_vec(value, format()).map_err(|source| EncodeError {
        kind: short_name::<T>(),
        source,
    })
}

/// Reads a value that fills `bytes` exactly.
///
/// `limit` bounds both the length of `bytes` and what the decoder may claim
/// for collections inside of it.
///
/// # Errors
/// When there are more bytes than `limit` (or than a frame can hold), when
/// they are not such a value, or when some are left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, DecodeError> {
    let kind = short_name::<T>();
    let limit = limit.min(CEILING);
    if bytes.len() > limit {
        return Err(DecodeError::TooLarge {
            kind,
            size: bytes.len(),
            limit,
        });
    }
    // The decoder's own limit counts what collections claim to hold, before it
    // allocates for them.
    let limited = format().with_limit::<CEILING>();
    let (value, used) = bincode::serde::decode_from_slice(bytes, limited)
        .map_err(|source| DecodeError::Invalid { kind, source })?;
    match bytes.len() - used {
        0 => Ok(value),
        left => Err(DecodeError::Trailing { kind, left }),
    }
}

fn format() -> bincode::config::Configuration {
    bincode::config::standard().with_little_endian()
}

fn short_name<T: ?Sized>() -> &'static str {
    let full = std::any::type_name::<T>();
    full.split('<')
        .next()
        .and_then(|path| path.rsplit("::").next())
        .unwrap_or(full)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    // Numbers in tests are small, and their names short.
    #![allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::similar_names
    )]
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Unit,
        Tuple(u8, u32),
        Struct {
            name: String,
            parts: Vec<u64>,
            more: Option<bool>,
        },
    }

    fn hex(bytes: &[u8]) -> String {
        bytes
            .iter()
            .fold(String::new(), |out, byte| format!("{out}{byte:02x}"))
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(hex(&encode(&Shape::Unit).unwrap()), "00");
        assert_eq!(hex(&encode(&Shape::Tuple(7, 250)).unwrap()), "0107fa");
        assert_eq!(hex(&encode(&Shape::Tuple(7, 251)).unwrap()), "0107fbfb00");
        let value = Shape::Struct {
            name: "vm".into(),
            parts: vec![1, 0x1_0000],
            more: Some(true),
        };
        assert_eq!(hex(&encode(&value).unwrap()), "0202766d0201fc000001000101");
        assert_eq!(hex(&encode(&u64::MAX).unwrap()), "fdffffffffffffffff");
        assert_eq!(
            hex(&encode(&-1_i32).unwrap()),
            "01",
            "signed integers are zigzag"
        );
        assert_eq!(hex(&encode(&1.5_f64).unwrap()), "000000000000f83f");
    }

    #[test]
    fn left_over_bytes_are_an_error() {
        let error = decode::<Shape>(&[0, 0], 16).unwrap_err();
        assert!(
            matches!(
                error,
                DecodeError::Trailing {
                    kind: "Shape",
                    left: 1
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn the_limit_holds_before_anything_is_read() {
        let error = decode::<Shape>(&[0; 17], 16).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a Shape of 17 bytes is over the limit of 16 bytes"
        );
    }

    #[test]
    fn a_collection_that_claims_too_much_is_refused() {
        // A Vec<u64> that claims 2^40 elements in 9 bytes.
        let mut bytes = vec![0xfd];
        bytes.extend_from_slice(&(1_u64 << 40).to_le_bytes());
        assert!(matches!(
            decode::<Vec<u64>>(&bytes, 1024),
            Err(DecodeError::Invalid { .. })
        ));
        assert!(matches!(
            decode::<String>(&bytes, 1024),
            Err(DecodeError::Invalid { .. })
        ));
    }

    proptest! {
        #[test]
        fn a_value_comes_back(name in ".*", parts: Vec<u64>, more: Option<bool>) {
            let value = Shape::Struct { name, parts, more };
            prop_assert_eq!(decode::<Shape>(&encode(&value).unwrap(), CEILING).unwrap(), value);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode::<Shape>(&bytes, CEILING);
            let _ = decode::<Vec<Shape>>(&bytes, CEILING);
        }
    }
}
