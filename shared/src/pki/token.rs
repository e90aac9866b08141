//! The one-time token with which a host joins a cluster.
//!
//! ```text
//! gwt1_<base64url, no padding, of:>
//!   length   u16 LE   of the body
//!   body              coordinators, CA fingerprint, id, secret (wire codec)
//!   check    4 bytes  first bytes of SHA-256 over "gwt1_" and the body
//! ```
//!
//! The length and the check are there for people: a token that lost its tail
//! in a terminal, or got a character changed, is told apart from one that the
//! coordinator doesn't know. They protect nothing; the secret does.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::{constant_time, rand};
use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};

use super::fingerprint::CaFingerprint;
use crate::digest::sha256;
use crate::wire::codec;

const PREFIX: &str = "gwt1_";
const CHECK_LEN: usize = 4;
/// Longest text of a token, in bytes: room for a dozen coordinator addresses.
const MAX_TEXT: usize = 4096;

/// Without padding; lenient on the last symbol's spare bits, since the check
/// behind it says more clearly what is wrong.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// What a host needs to join: where, whom to trust, and the right to do it once.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Addresses of the coordinator, each `host:port`, best first.
    pub coordinator: Vec<String>,
    /// Fingerprint of the cluster's CA.
    pub ca: CaFingerprint,
    /// Names the token to the coordinator; not secret.
    pub id: String,
    /// The right to join.
    pub secret: JoinSecret,
}

/// Form of the token's body; its bytes are pinned by a test.
#[derive(Serialize, Deserialize)]
struct Body {
    coordinator: Vec<String>,
    ca: [u8; 32],
    id: String,
    secret: [u8; 32],
}

/// A text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It doesn't begin as a token does.
    #[error("a join token begins with `{PREFIX}`; copy it as `godwit node token` prints it")]
    WrongPrefix,
    /// It is of a form that this release doesn't know.
    #[error("the token has version {0} and this program reads version 1: upgrade this program")]
    UnsupportedVersion(String),
    /// A character has no place in a token.
    #[error("the token has `{character}` in it, at position {position}, which no token has")]
    Character {
        /// Which character.
        character: char,
        /// Where, counted in characters from 1.
        position: usize,
    },
    /// The end is missing.
    #[error("the token is cut off: copy the whole line")]
    Truncated,
    /// There is more than a token.
    #[error("the token is too long: something was pasted behind it")]
    TooLong,
    /// A character was changed.
    #[error("the token is damaged: a part of it was changed on the way")]
    Damaged,
}

impl fmt::Display for JoinToken {
    /// The text form, secret included: this is for the operator who asked for it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = codec::encode(&Body {
            coordinator: self.coordinator.clone(),
            ca: *self.ca.as_bytes(),
            id: self.id.clone(),
            secret: self.secret.0,
        })
        .map_err(|_| fmt::Error)?;
        let length = u16::try_from(body.len()).map_err(|_| fmt::Error)?;
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&check(&body));
        write!(f, "{PREFIX}{}", BASE64.encode(bytes))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("coordinator", &self.coordinator)
            .field("ca", &self.ca)
            .field("id", &self.id)
            .field("secret", &self.secret)
            .finish()
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let bytes = unwrap_text(text.trim())?;
        let (length, rest) = bytes
            .split_first_chunk::<2>()
            .ok_or(TokenError::Truncated)?;
        let length = usize::from(u16::from_le_bytes(*length));
        match rest.len().cmp(&(length + CHECK_LEN)) {
            std::cmp::Ordering::Less => return Err(TokenError::Truncated),
            std::cmp::Ordering::Greater => return Err(TokenError::TooLong),
            std::cmp::Ordering::Equal => {}
        }
        let (body, seen) = rest.split_at(length);
        if check(body) != seen {
            return Err(TokenError::Damaged);
        }
        let body: Body = codec::decode(body, MAX_TEXT).map_err(|_| TokenError::Damaged)?;
        Ok(Self {
            coordinator: body.coordinator,
            ca: CaFingerprint::from_bytes(body.ca),
            id: body.id,
            secret: JoinSecret(body.secret),
        })
    }
}

fn unwrap_text(text: &str) -> Result<Vec<u8>, TokenError> {
    let encoded = strip_prefix(text)?;
    if text.len() > MAX_TEXT {
        return Err(TokenError::TooLong);
    }
    let stray = |c: &char| !(c.is_ascii_alphanumeric() || *c == '-' || *c == '_');
    if let Some((index, character)) = encoded.chars().enumerate().find(|(_, c)| stray(c)) {
        return Err(TokenError::Character {
            character,
            position: PREFIX.len() + index + 1,
        });
    }
    // Only its length can be wrong now.
    BASE64.decode(encoded).map_err(|_| TokenError::Truncated)
}

fn strip_prefix(text: &str) -> Result<&str, TokenError> {
    if let Some(encoded) = text.strip_prefix(PREFIX) {
        return Ok(encoded);
    }
    if !text.is_empty() && PREFIX.starts_with(text) {
        return Err(TokenError::Truncated);
    }
    let (version, _) = text
        .strip_prefix("gwt")
        .and_then(|rest| rest.split_once('_'))
        .ok_or(TokenError::WrongPrefix)?;
    if !version.is_empty() && version.len() < 6 && version.bytes().all(|b| b.is_ascii_digit()) {
        Err(TokenError::UnsupportedVersion(version.to_owned()))
    } else {
        Err(TokenError::WrongPrefix)
    }
}

fn check(body: &[u8]) -> [u8; CHECK_LEN] {
    let digest = sha256(&[PREFIX.as_bytes(), body].concat());
    [digest[0], digest[1], digest[2], digest[3]]
}

/// 256 random bits that stand for the right to join. The coordinator keeps
/// only their [hash](SecretHash).
#[derive(Clone, PartialEq, Eq)]
pub struct JoinSecret([u8; 32]);

impl JoinSecret {
    /// A new secret, or `None` when the system has no randomness to give.
    pub fn generate() -> Option<Self> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// A secret from its bytes, as they arrive in a join request.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be sent to a coordinator whose CA was verified.
    pub const fn reveal(&self) -> &[u8; 32] {
        &self.0
    }

    /// What the coordinator stores.
    pub fn hash(&self) -> SecretHash {
        SecretHash(sha256(&self.0))
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(hidden)")
    }
}

/// SHA-256 of a [`JoinSecret`]. The secret has 256 bits of entropy, so a plain
/// hash is enough.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// Whether this is the hash of `secret`, in constant time.
    pub fn matches(&self, secret: &JoinSecret) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &secret.hash().0).is_ok()
    }
}
