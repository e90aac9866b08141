//! The fingerprint of a cluster's CA: what a join token pins.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::sha256;

/// SHA-256 of the CA certificate's DER form, written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CaFingerprint([u8; 32]);

/// A text is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FingerprintError {
    /// The number of hex digits is wrong.
    #[error("a CA fingerprint has 64 hex digits, this has {0}")]
    Length(usize),
    /// A character is neither a hex digit nor a colon.
    #[error("`{0}` is not a hex digit")]
    Digit(char),
}

impl CaFingerprint {
    /// The fingerprint of a certificate in DER.
    pub fn of(der: &[u8]) -> Self {
        Self::from_bytes(sha256(der))
    }

    /// A fingerprint from its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaFingerprint({self})")
    }
}

impl FromStr for CaFingerprint {
    type Err = FingerprintError;

    /// Reads 64 hex digits in either case; colons between them, as other tools
    /// print fingerprints, are fine.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| {
                c.to_digit(16)
                    .and_then(|digit| u8::try_from(digit).ok())
                    .ok_or(FingerprintError::Digit(c))
            })
            .collect::<Result<Vec<u8>, _>>()?;
        if digits.len() != 64 {
            return Err(FingerprintError::Length(digits.len()));
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            *byte = pair.iter().fold(0, |value, digit| value << 4 | digit);
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for CaFingerprint {
    type Error = FingerprintError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CaFingerprint> for String {
    fn from(fingerprint: CaFingerprint) -> Self {
        fingerprint.to_string()
    }
}
