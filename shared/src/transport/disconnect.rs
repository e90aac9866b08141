//! Why a connection has ended.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use quinn::{ConnectionError, TransportErrorCode, VarInt};
use tokio::sync::watch;

/// What the side that closes a connection says to the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CloseCode(pub u32);

impl CloseCode {
    /// The connection was dropped without a word.
    pub const NONE: Self = Self(0);
    /// All is done.
    pub const DONE: Self = Self(1);
    /// The daemon stops.
    pub const SHUTDOWN: Self = Self(2);
    /// The version offer was refused.
    pub const REFUSED: Self = Self(3);
    /// No or the wrong certificate.
    pub const UNAUTHENTICATED: Self = Self(4);
    /// The peer broke the protocol.
    pub const PROTOCOL: Self = Self(5);
    /// A newer connection of the same peer takes this one's place.
    pub const SUPERSEDED: Self = Self(6);
    /// An operator ended it.
    pub const BY_OPERATOR: Self = Self(7);
    /// The peer's process is gone; nobody will read this.
    pub const PEER_GONE: Self = Self(8);
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NONE => f.write_str("no reason given"),
            Self::DONE => f.write_str("done"),
            Self::SHUTDOWN => f.write_str("shutting down"),
            Self::REFUSED => f.write_str("refused"),
            Self::UNAUTHENTICATED => f.write_str("not authenticated"),
            Self::PROTOCOL => f.write_str("protocol violation"),
            Self::SUPERSEDED => f.write_str("superseded"),
            Self::BY_OPERATOR => f.write_str("by an operator"),
            Self::PEER_GONE => f.write_str("peer gone"),
            Self(code) => write!(f, "code {code}"),
        }
    }
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        Self::from_u32(code.0)
    }
}

impl From<VarInt> for CloseCode {
    fn from(code: VarInt) -> Self {
        Self(u32::try_from(code.into_inner()).unwrap_or(u32::MAX))
    }
}

/// Why a connection has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disconnect {
    /// The peer's process is gone: its host says that the port is closed, or
    /// its successor says that it doesn't know the connection.
    #[error("the peer's process is gone")]
    PeerGone,
    /// Nothing came from the peer.
    #[error("nothing was heard from the peer for {} ms", after.as_millis())]
    IdleTimeout {
        /// For how long.
        after: Duration,
    },
    /// The peer closed the connection.
    #[error("closed by the peer: {}", describe(*code, reason))]
    ClosedByPeer {
        /// The peer's code.
        code: CloseCode,
        /// The peer's words.
        reason: String,
    },
    /// This side closed the connection, or dropped the last handle to it.
    #[error("closed on this side")]
    ClosedHere,
    /// TLS failed: a certificate, a name or a key is not what it should be.
    #[error("TLS: {0}")]
    Tls(String),
    /// The sides have no protocol version in common.
    #[error("no common protocol version: {0}")]
    Version(String),
    /// QUIC itself failed.
    #[error("QUIC: {0}")]
    Other(String),
}

fn describe(code: CloseCode, reason: &str) -> String {
    if reason.is_empty() {
        code.to_string()
    } else {
        format!("{reason} ({code})")
    }
}

impl Disconnect {
    /// Whether the peer was lost without a word, rather than closing.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::PeerGone | Self::IdleTimeout { .. })
    }

    /// What quinn's word for it means.
    pub(super) fn from_quinn(error: ConnectionError, idle_timeout: Duration) -> Self {
        match error {
            ConnectionError::TimedOut => Self::IdleTimeout {
                after: idle_timeout,
            },
            ConnectionError::LocallyClosed => Self::ClosedHere,
            ConnectionError::Reset => Self::PeerGone,
            ConnectionError::ApplicationClosed(close) => Self::ClosedByPeer {
                code: close.error_code.into(),
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            ConnectionError::ConnectionClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason);
                match alert(close.error_code) {
                    Some(alert) => Self::Tls(format!("the peer refuses: {alert}")),
                    None => Self::Other(format!("the peer gave up: {} {reason}", close.error_code)),
                }
            }
            ConnectionError::TransportError(error) => match alert(error.code) {
                Some(_) => Self::Tls(error.reason),
                None => Self::Other(error.to_string()),
            },
            ConnectionError::VersionMismatch => Self::Other("no common QUIC version".into()),
            ConnectionError::CidsExhausted => Self::Other("no free connection id".into()),
        }
    }
}

/// The TLS alert in a QUIC error code (RFC 9001 4.8), in words for an operator.
fn alert(code: TransportErrorCode) -> Option<String> {
    let code = u64::from(code);
    let alert = u8::try_from(code.checked_sub(0x100)?).ok()?;
    Some(match alert {
        40 => "no common cryptography".into(),
        42 | 43 | 46 => "the certificate is not acceptable".into(),
        44 => "the certificate is revoked".into(),
        45 => "the certificate has expired, or is not valid yet: check both clocks".into(),
        48 => "the certificate is from another cluster's CA".into(),
        51 => "a signature is wrong".into(),
        112 => "it does not have that name".into(),
        116 => "a certificate is required".into(),
        120 => "it does not speak this protocol here".into(),
        other => format!("TLS alert {other}"),
    })
}

/// Resolves when a connection has ended, with the reason. Cloneable, usable on
/// any runtime, and it keeps nothing alive.
#[derive(Clone)]
pub struct Closed(Shared<BoxFuture<'static, Disconnect>>);

impl fmt::Debug for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Closed").field(&self.0.peek()).finish()
    }
}

impl Closed {
    pub(super) fn new(mut end: watch::Receiver<Option<Disconnect>>) -> Self {
        let wait = async move {
            match end.wait_for(Option::is_some).await {
                Ok(end) => end.clone().unwrap_or(Disconnect::ClosedHere),
                // The transport itself has ended.
                Err(_) => Disconnect::ClosedHere,
            }
        };
        Self(wait.boxed().shared())
    }
}

impl Future for Closed {
    type Output = Disconnect;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Disconnect> {
        self.0.poll_unpin(cx)
    }
}
