//! From a UDP address to a connection that may be used: TLS, who the peer is,
//! and the version offer, each within one deadline.
//!
//! ```text
//!   connecting side                              accepting side
//!   QUIC + TLS 1.3  <------------------------->  QUIC + TLS 1.3
//!   certificate names whom we expected           certificate, or ALPN godwit-join/1
//!   first stream: Offer ---------------------->  admission, negotiate
//!                 <---------------------------   Accepted | Refused, then close
//! ```
//!
//! In TLS 1.3 the connecting side is done before the accepting one has looked
//! at its certificate, so a refusal of it shows while the answer is awaited.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;
use quinn::{RecvStream, SendStream};
use rustls_pki_types::CertificateDer;

use super::connection::{Peer, read_frame};
use super::disconnect::{CloseCode, Disconnect};
use super::endpoint::Admission;
use super::peers::{Peers, Watch};
use super::tls::{ALPN_JOIN, ALPN_MEMBER};
use crate::pki::{NameError, PeerIdentity};
use crate::wire::codec::{decode, encode};
use crate::wire::frame::frame;
use crate::wire::version::{
    Answer, CURRENT, HELLO_LIMIT, Offer, PREVIOUS, ProtocolVersion, RefusalCode, Role, negotiate,
};

/// How long a refusal may take to reach the refused.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// What a handshake leads to.
#[derive(Debug)]
pub(super) struct Established {
    pub(super) quinn: quinn::Connection,
    pub(super) peer: Peer,
    pub(super) version: ProtocolVersion,
    pub(super) software: Option<String>,
    pub(super) watch: Watch,
}

/// No connection could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The host answers that no process has the port open.
    #[error("nothing listens at {0}: the daemon there is not running, or uses another port")]
    NobodyThere(SocketAddr),
    /// Nothing, or not enough, came back in time.
    #[error(
        "{address} did not answer within {after:?}: check the address, the route and firewalls (UDP)"
    )]
    Timeout {
        /// The address.
        address: SocketAddr,
        /// How long was waited.
        after: Duration,
    },
    /// One side does not accept the other's certificate.
    #[error("TLS with {address} failed: {reason}")]
    Tls {
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// Somebody else answered, with a certificate of the same cluster.
    #[error("{expected} was expected at {address}, and {found} answered")]
    WrongPeer {
        /// The address.
        address: SocketAddr,
        /// Who should be there.
        expected: PeerIdentity,
        /// Who is.
        found: Peer,
    },
    /// The peer has a certificate of the cluster's CA that names nobody.
    #[error("the certificate of {address} is no member's: {reason}")]
    Nameless {
        /// The address.
        address: SocketAddr,
        /// What it says.
        reason: String,
    },
    /// The sides have no protocol version in common.
    #[error("{address} refuses the connection: {message}")]
    Version {
        /// The address.
        address: SocketAddr,
        /// The peer's words: which side has to be upgraded.
        message: String,
    },
    /// The peer knows this side and does not want it.
    #[error("{address} does not admit this side: {message}")]
    NotAdmitted {
        /// The address.
        address: SocketAddr,
        /// The peer's words.
        message: String,
    },
    /// The peer does not keep to the protocol.
    #[error("{address} does not answer the version offer as a peer does")]
    Malformed {
        /// The address.
        address: SocketAddr,
    },
    /// The connection ended before it was made.
    #[error("the connection to {address} ended during the handshake")]
    Ended {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        reason: Disconnect,
    },
    /// The endpoint cannot connect there: it is closed, has no identity, or
    /// its socket is of the other IP version.
    #[error("cannot connect to {address} from this endpoint: {reason}")]
    Unable {
        /// The address.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
}

impl ConnectError {
    fn ended(address: SocketAddr, reason: Disconnect, limit: Duration) -> Self {
        match reason {
            Disconnect::PeerGone => Self::NobodyThere(address),
            Disconnect::IdleTimeout { .. } => Self::Timeout {
                address,
                after: limit,
            },
            Disconnect::Tls(reason)
            | Disconnect::ClosedByPeer {
                code: CloseCode::UNAUTHENTICATED,
                reason,
            } => Self::Tls { address, reason },
            Disconnect::ClosedByPeer {
                code: CloseCode::REFUSED,
                reason,
            } => Self::NotAdmitted {
                address,
                message: reason,
            },
            reason => Self::Ended { address, reason },
        }
    }
}

/// What the connecting side does.
pub(super) struct Dial {
    pub(super) quinn: quinn::Endpoint,
    pub(super) config: quinn::ClientConfig,
    pub(super) peers: Arc<Peers>,
    pub(super) address: SocketAddr,
    /// Whom it expects there.
    pub(super) expected: PeerIdentity,
    pub(super) offer: Offer,
    pub(super) limit: Duration,
}

impl Dial {
    /// Connects, at most until the deadline, or until the port is known to be
    /// closed.
    pub(super) async fn run(self) -> Result<Established, ConnectError> {
        let address = self.address;
        let watch = self.peers.watch(address);
        let attempt = tokio::time::timeout(self.limit, self.attempt());
        let (quinn, version) = tokio::select! {
            result = attempt => {
                result.map_err(|_| ConnectError::Timeout { address, after: self.limit })??
            }
            () = watch.gone() => return Err(ConnectError::NobodyThere(address)),
        };
        let peer = Peer::Known(self.expected);
        Ok(Established {
            quinn,
            peer,
            version,
            software: None,
            watch,
        })
    }

    async fn attempt(&self) -> Result<(quinn::Connection, ProtocolVersion), ConnectError> {
        let address = self.address;
        let name = self.expected.dns_name();
        let quinn = self
            .quinn
            .connect_with(self.config.clone(), address, &name)
            .map_err(|error| ConnectError::Unable {
                address,
                reason: error.to_string(),
            })?
            .await
            .map_err(|error| self.ended(error))?;
        self.check_peer(&quinn)?;
        let version = self.offer(&quinn).await?;
        Ok((quinn, version))
    }

    /// TLS has verified the name already; this makes sure that it is the only one.
    fn check_peer(&self, quinn: &quinn::Connection) -> Result<(), ConnectError> {
        let address = self.address;
        let found = identify(quinn).map_err(|error| {
            quinn.close(
                CloseCode::UNAUTHENTICATED.into(),
                b"the certificate names no member",
            );
            ConnectError::Nameless {
                address,
                reason: error.to_string(),
            }
        })?;
        if found == self.expected {
            return Ok(());
        }
        quinn.close(
            CloseCode::UNAUTHENTICATED.into(),
            b"somebody else was expected",
        );
        let expected = self.expected.clone();
        Err(ConnectError::WrongPeer {
            address,
            expected,
            found: Peer::Known(found),
        })
    }

    async fn offer(&self, quinn: &quinn::Connection) -> Result<ProtocolVersion, ConnectError> {
        let address = self.address;
        let (mut send, mut recv) = quinn.open_bi().await.map_err(|error| self.ended(error))?;
        let Some(answer) = exchange(&mut send, &mut recv, &self.offer).await else {
            // An answer that cannot be read, or no answer because of the end.
            return Err(match quinn.close_reason() {
                Some(reason) => self.ended(reason),
                None => ConnectError::Malformed { address },
            });
        };
        match answer {
            Answer::Accepted(version) if (PREVIOUS..=CURRENT).contains(&version) => Ok(version),
            Answer::Accepted(_) => Err(ConnectError::Malformed { address }),
            Answer::Refused {
                code: RefusalCode::NotAdmitted,
                message,
            } => Err(ConnectError::NotAdmitted { address, message }),
            Answer::Refused { message, .. } => Err(ConnectError::Version { address, message }),
        }
    }

    fn ended(&self, error: quinn::ConnectionError) -> ConnectError {
        let reason = Disconnect::from_quinn(error, self.limit);
        ConnectError::ended(self.address, reason, self.limit)
    }
}

async fn exchange(send: &mut SendStream, recv: &mut RecvStream, offer: &Offer) -> Option<Answer> {
    let bytes = frame(&encode(offer).ok()?).ok()?;
    send.write_all(&bytes).await.ok()?;
    send.finish().ok()?;
    decode(&read_frame(recv, HELLO_LIMIT).await?, HELLO_LIMIT).ok()
}

/// Why an incoming connection was not taken; for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum AcceptError {
    #[error("it did not complete the handshake in time")]
    Timeout,
    #[error("its port was closed during the handshake")]
    Gone,
    #[error("the handshake failed: {0}")]
    Ended(Disconnect),
    #[error("it shows no certificate and does not ask to join")]
    NoCertificate,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("it sent no version offer")]
    NoOffer,
    #[error("refused: {0}")]
    Refused(String),
}

/// What the accepting side does.
pub(super) struct Welcome {
    pub(super) peers: Arc<Peers>,
    pub(super) admission: Option<Admission>,
    pub(super) limit: Duration,
}

impl Welcome {
    pub(super) async fn run(self, incoming: quinn::Incoming) -> Result<Established, AcceptError> {
        let watch = self.peers.watch(incoming.remote_address());
        let attempt = tokio::time::timeout(self.limit, self.attempt(incoming));
        let (quinn, peer, version, software) = tokio::select! {
            result = attempt => result.map_err(|_| AcceptError::Timeout)??,
            () = watch.gone() => return Err(AcceptError::Gone),
        };
        Ok(Established {
            quinn,
            peer,
            version,
            software: Some(software),
            watch,
        })
    }

    async fn attempt(
        &self,
        incoming: quinn::Incoming,
    ) -> Result<(quinn::Connection, Peer, ProtocolVersion, String), AcceptError> {
        let ended = |error| AcceptError::Ended(Disconnect::from_quinn(error, self.limit));
        let quinn = incoming.accept().map_err(ended)?.await.map_err(ended)?;
        let peer = authenticate(&quinn).inspect_err(|error| {
            quinn.close(
                CloseCode::UNAUTHENTICATED.into(),
                error.to_string().as_bytes(),
            );
        })?;
        let (mut send, mut recv) = quinn.accept_bi().await.map_err(ended)?;
        let offer: Offer = match read_frame(&mut recv, HELLO_LIMIT).await {
            Some(bytes) => decode(&bytes, HELLO_LIMIT).map_err(|_| AcceptError::NoOffer)?,
            None => return Err(AcceptError::NoOffer),
        };
        let answer = self.decide(&peer, &offer);
        let delivered = answer_with(&mut send, &answer).await;
        match answer {
            Answer::Accepted(version) if delivered => Ok((quinn, peer, version, offer.software)),
            Answer::Accepted(_) => Err(AcceptError::NoOffer),
            Answer::Refused { message, .. } => {
                let _ = tokio::time::timeout(REFUSAL_TIME, send.stopped()).await;
                quinn.close(CloseCode::REFUSED.into(), message.as_bytes());
                Err(AcceptError::Refused(message))
            }
        }
    }

    fn decide(&self, peer: &Peer, offer: &Offer) -> Answer {
        let version = match negotiate(offer, PREVIOUS..=CURRENT) {
            Ok(version) => version,
            Err(error) => {
                return Answer::Refused {
                    code: error.code(),
                    message: error.to_string(),
                };
            }
        };
        match (&self.admission, peer) {
            (Some(admission), Peer::Known(identity)) => match admission(identity) {
                Ok(()) => Answer::Accepted(version),
                Err(message) => Answer::Refused {
                    code: RefusalCode::NotAdmitted,
                    message,
                },
            },
            _ => Answer::Accepted(version),
        }
    }
}

async fn answer_with(send: &mut SendStream, answer: &Answer) -> bool {
    let Some(bytes) = encode(answer).ok().and_then(|bytes| frame(&bytes).ok()) else {
        return false;
    };
    send.write_all(&bytes).await.is_ok() && send.finish().is_ok()
}

/// Who an accepted connection is from: a certificate, or the wish to join.
fn authenticate(quinn: &quinn::Connection) -> Result<Peer, AcceptError> {
    match alpn(quinn).as_deref() {
        Some(ALPN_JOIN) => Ok(Peer::Joining),
        Some(ALPN_MEMBER) if quinn.peer_identity().is_some() => Ok(Peer::Known(identify(quinn)?)),
        _ => Err(AcceptError::NoCertificate),
    }
}

fn alpn(quinn: &quinn::Connection) -> Option<Vec<u8>> {
    quinn
        .handshake_data()?
        .downcast::<HandshakeData>()
        .ok()?
        .protocol
}

fn identify(quinn: &quinn::Connection) -> Result<PeerIdentity, NameError> {
    let chain = quinn
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(NameError::Missing)?;
    PeerIdentity::from_certificate(chain.first().ok_or(NameError::Missing)?)
}

/// The role that an identity offers with.
pub(super) fn role_of(identity: &PeerIdentity) -> Role {
    match identity {
        PeerIdentity::Coordinator => Role::Coordinator,
        PeerIdentity::Node { .. } => Role::Node,
    }
}
