//! The version offer that opens every connection.
//!
//! ```text
//! initiator                                   acceptor
//!   Offer { magic, oldest..newest, who } --->
//!                                       <---   Accepted(version) | Refused { code, message }
//! ```
//!
//! A daemon speaks the current and the previous protocol version, so a cluster
//! can be upgraded node by node. The acceptor decides, with [`negotiate`]: the
//! highest version that both speak. These two messages themselves are outside
//! of the versions: their bytes never change (golden tests below).

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// A version of what travels on a connection after the offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProtocolVersion(pub u16);

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What this build speaks best.
pub const CURRENT: ProtocolVersion = ProtocolVersion(1);
/// The oldest that this build still speaks.
pub const PREVIOUS: ProtocolVersion = ProtocolVersion(1);
/// First field of every offer, so that a stranger is told apart from a
/// version: `GDWT`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"GDWT");
/// Longest encoded offer or answer that is accepted, in bytes.
pub const HELLO_LIMIT: usize = 1024;

/// In what role a process opens a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// The coordinator's daemon.
    Coordinator,
    /// A node's daemon.
    Node,
    /// A host that wants to become a node and has no certificate yet.
    Joining,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Coordinator => "coordinator",
            Self::Node => "node",
            Self::Joining => "joining node",
        })
    }
}

/// What the initiator of a connection speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// [`MAGIC`].
    pub magic: u32,
    /// Oldest version spoken.
    pub oldest: ProtocolVersion,
    /// Newest version spoken.
    pub newest: ProtocolVersion,
    /// Name and release of the program, for logs.
    pub software: String,
    /// What the program is. Only for logs: who it is says its certificate.
    pub role: Role,
}

impl Offer {
    /// The offer of this build.
    pub fn current(role: Role, software: impl Into<String>) -> Self {
        Self {
            magic: MAGIC,
            oldest: PREVIOUS,
            newest: CURRENT,
            software: software.into(),
            role,
        }
    }

    /// The versions offered.
    pub fn versions(&self) -> RangeInclusive<ProtocolVersion> {
        self.oldest..=self.newest
    }
}

/// Why an offer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusalCode {
    /// The magic is not Godwit's.
    NotGodwit,
    /// The initiator's newest version is older than what is spoken here.
    TooOld,
    /// The initiator's oldest version is newer than what is spoken here.
    TooNew,
    /// The initiator is known and not wanted: removed, revoked or superseded.
    NotAdmitted,
    /// The offer contradicts itself.
    Malformed,
}

/// The acceptor's reply to an [`Offer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The connection goes on with this version.
    Accepted(ProtocolVersion),
    /// The connection ends.
    Refused {
        /// Why, for the program.
        code: RefusalCode,
        /// Why, for an operator.
        message: String,
    },
}

/// Two sides that have no protocol version in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    /// The other side is not Godwit.
    #[error("the peer does not speak Godwit's protocol (magic {magic:#010x})")]
    NotGodwit {
        /// What it sent in the place of [`MAGIC`].
        magic: u32,
    },
    /// The initiator has to be upgraded.
    #[error(
        "`{software}` speaks protocol versions up to {newest}, this side needs {needed} or later: upgrade the connecting side"
    )]
    PeerTooOld {
        /// The initiator's program.
        software: String,
        /// Its newest version.
        newest: ProtocolVersion,
        /// The acceptor's oldest version.
        needed: ProtocolVersion,
    },
    /// The acceptor has to be upgraded.
    #[error(
        "`{software}` speaks protocol versions from {oldest} on, this side only up to {newest}: upgrade the accepting side"
    )]
    PeerTooNew {
        /// The initiator's program.
        software: String,
        /// Its oldest version.
        oldest: ProtocolVersion,
        /// The acceptor's newest version.
        newest: ProtocolVersion,
    },
    /// The offer's oldest version is above its newest.
    #[error("the offer of versions {oldest} to {newest} is empty")]
    EmptyRange {
        /// Its oldest version.
        oldest: ProtocolVersion,
        /// Its newest version.
        newest: ProtocolVersion,
    },
}

impl NegotiationError {
    /// The code to refuse with.
    pub fn code(&self) -> RefusalCode {
        match self {
            Self::NotGodwit { .. } => RefusalCode::NotGodwit,
            Self::PeerTooOld { .. } => RefusalCode::TooOld,
            Self::PeerTooNew { .. } => RefusalCode::TooNew,
            Self::EmptyRange { .. } => RefusalCode::Malformed,
        }
    }
}

/// The highest version that an offer and `ours` have in common.
///
/// # Errors
/// When there is none; the error says which side has to be upgraded.
pub fn negotiate(
    offer: &Offer,
    ours: RangeInclusive<ProtocolVersion>,
) -> Result<ProtocolVersion, NegotiationError> {
    let (oldest, newest) = ours.into_inner();
    if offer.magic != MAGIC {
        return Err(NegotiationError::NotGodwit { magic: offer.magic });
    }
    if offer.oldest > offer.newest {
        return Err(NegotiationError::EmptyRange {
            oldest: offer.oldest,
            newest: offer.newest,
        });
    }
    if offer.newest < oldest {
        return Err(NegotiationError::PeerTooOld {
            software: offer.software.clone(),
            newest: offer.newest,
            needed: oldest,
        });
    }
    if offer.oldest > newest {
        return Err(NegotiationError::PeerTooNew {
            software: offer.software.clone(),
            oldest: offer.oldest,
            newest,
        });
    }
    Ok(offer.newest.min(newest))
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
    use super::super::codec::{decode, encode};
    use super::*;

    const fn v(version: u16) -> ProtocolVersion {
        ProtocolVersion(version)
    }

    fn offer(oldest: u16, newest: u16) -> Offer {
        Offer {
            oldest: v(oldest),
            newest: v(newest),
            ..Offer::current(Role::Node, "godwit-node 0.1")
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes
            .iter()
            .fold(String::new(), |out, byte| format!("{out}{byte:02x}"))
    }

    #[test]
    fn golden_bytes() {
        let offer = Offer {
            magic: MAGIC,
            oldest: v(1),
            newest: v(2),
            software: "godwit-node 0.1.0".into(),
            role: Role::Node,
        };
        let bytes = encode(&offer).unwrap();
        assert_eq!(
            hex(&bytes),
            "fc47445754010211676f647769742d6e6f646520302e312e3001"
        );
        assert_eq!(decode::<Offer>(&bytes, HELLO_LIMIT).unwrap(), offer);

        assert_eq!(hex(&encode(&Answer::Accepted(v(1))).unwrap()), "0001");
        let refused = Answer::Refused {
            code: RefusalCode::TooOld,
            message: "old".into(),
        };
        assert_eq!(hex(&encode(&refused).unwrap()), "0101036f6c64");
        for (index, role) in [Role::Coordinator, Role::Node, Role::Joining]
            .iter()
            .enumerate()
        {
            assert_eq!(encode(role).unwrap(), [index as u8]);
        }
        let codes = [
            RefusalCode::NotGodwit,
            RefusalCode::TooOld,
            RefusalCode::TooNew,
            RefusalCode::NotAdmitted,
            RefusalCode::Malformed,
        ];
        for (index, code) in codes.iter().enumerate() {
            assert_eq!(encode(code).unwrap(), [index as u8]);
        }
    }

    #[test]
    fn the_highest_common_version_wins() {
        assert_eq!(negotiate(&offer(1, 2), v(1)..=v(2)).unwrap(), v(2));
        assert_eq!(negotiate(&offer(1, 2), v(2)..=v(3)).unwrap(), v(2));
        assert_eq!(negotiate(&offer(3, 4), v(2)..=v(3)).unwrap(), v(3));
        assert_eq!(negotiate(&offer(1, 9), v(2)..=v(3)).unwrap(), v(3));
    }

    #[test]
    fn without_a_common_version_the_error_says_whom_to_upgrade() {
        let old = negotiate(&offer(1, 2), v(3)..=v(4)).unwrap_err();
        assert_eq!(old.code(), RefusalCode::TooOld);
        assert!(
            old.to_string().ends_with("upgrade the connecting side"),
            "{old}"
        );
        let new = negotiate(&offer(5, 6), v(3)..=v(4)).unwrap_err();
        assert_eq!(new.code(), RefusalCode::TooNew);
        assert!(
            new.to_string().ends_with("upgrade the accepting side"),
            "{new}"
        );
    }

    #[test]
    fn strangers_and_contradictions_are_refused() {
        let stranger = Offer {
            magic: 1,
            ..offer(1, 1)
        };
        assert_eq!(
            negotiate(&stranger, PREVIOUS..=CURRENT).unwrap_err().code(),
            RefusalCode::NotGodwit
        );
        assert_eq!(
            negotiate(&offer(2, 1), PREVIOUS..=CURRENT)
                .unwrap_err()
                .code(),
            RefusalCode::Malformed
        );
    }
}
