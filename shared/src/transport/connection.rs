//! One connection to one peer.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use quinn::{ConnectionError, RecvStream, SendStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::disconnect::{CloseCode, Closed, Disconnect};
use super::handshake::Established;
use super::peers::{Watch, canonical};
use super::runtime::TransportRuntime;
use super::stream::{Receiver, Sender, StreamError, StreamKind};
use crate::pki::PeerIdentity;
use crate::wire::codec::{decode, encode};
use crate::wire::frame::{HEADER_LEN, frame, payload_len};
use crate::wire::version::ProtocolVersion;

/// How long the peer may take to say what a stream is for.
const KIND_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest encoded kind, in bytes.
const KIND_LIMIT: usize = 64;
/// How many streams wait for [`Connection::accept`] before the peer is slowed.
const WAITING_STREAMS: usize = 64;

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A member of the cluster, as its verified certificate says.
    Known(PeerIdentity),
    /// A host without a certificate that wants to join.
    Joining,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(identity) => identity.fmt(f),
            Self::Joining => f.write_str("a joining host"),
        }
    }
}

/// A connection. Clones are handles to the same one. It closes when the last
/// handle and the last stream of it are dropped; [`close`](Self::close) says
/// why. All methods work on any runtime.
#[derive(Debug, Clone)]
pub struct Connection(Arc<Link>);

/// What handles and streams of a connection share.
pub(super) struct Link {
    quinn: quinn::Connection,
    peer: Peer,
    version: ProtocolVersion,
    software: Option<String>,
    idle_timeout: Duration,
    /// Why this side closed it, when not by [`Connection::close`].
    verdict: Arc<OnceLock<Disconnect>>,
    closed: Closed,
    streams: Mutex<Streams>,
    /// Last, so that the threads outlive the rest.
    runtime: TransportRuntime,
}

type Arrived = (StreamKind, SendStream, RecvStream);

/// The peer's streams that nobody has taken yet.
struct Streams {
    /// They came while the control stream was waited for.
    early: VecDeque<Arrived>,
    arrived: mpsc::Receiver<Arrived>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.quinn.close(CloseCode::NONE.into(), b"");
    }
}

impl Connection {
    pub(super) fn start(
        established: Established,
        idle_timeout: Duration,
        runtime: &TransportRuntime,
    ) -> Self {
        let Established {
            quinn,
            peer,
            version,
            software,
            watch,
        } = established;
        let verdict = Arc::new(OnceLock::new());
        let (end, ended) = watch::channel(None);
        let (arrived, streams) = mpsc::channel(WAITING_STREAMS);
        runtime.spawn(await_end(
            quinn.clone(),
            watch,
            Arc::clone(&verdict),
            idle_timeout,
            end,
        ));
        runtime.spawn(accept_streams(quinn.clone(), arrived));
        Self(Arc::new(Link {
            quinn,
            peer,
            version,
            software,
            idle_timeout,
            verdict,
            closed: Closed::new(ended),
            streams: Mutex::new(Streams {
                early: VecDeque::new(),
                arrived: streams,
            }),
            runtime: runtime.clone(),
        }))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    /// The peer's address, now: it may move.
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.0.quinn.remote_address())
    }

    /// The protocol version agreed on.
    pub fn version(&self) -> ProtocolVersion {
        self.0.version
    }

    /// The program at the other end, when it was that side that offered.
    pub fn software(&self) -> Option<&str> {
        self.0.software.as_deref()
    }

    /// Current estimate of the round trip time.
    pub fn rtt(&self) -> Duration {
        self.0.quinn.rtt()
    }

    /// What has gone over the connection so far.
    pub fn traffic(&self) -> Traffic {
        let stats = self.0.quinn.stats();
        Traffic {
            sent: stats.udp_tx.bytes,
            received: stats.udp_rx.bytes,
            lost_packets: stats.path.lost_packets,
            mtu: stats.path.current_mtu,
        }
    }

    /// Whether two handles are of the same connection.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Opens a stream; waits when the peer allows no more. The peer hears of
    /// it at once.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn open(&self, kind: StreamKind) -> Result<(Sender, Receiver), StreamError> {
        let (mut send, recv) = self
            .0
            .quinn
            .open_bi()
            .await
            .map_err(|error| self.0.lost(error))?;
        prioritise(&send, kind);
        let hello = encode(&kind)
            .ok()
            .and_then(|bytes| frame(&bytes).ok())
            .ok_or(StreamError::Closed)?;
        send.write_all(&hello)
            .await
            .map_err(|error| self.0.write_error(error))?;
        Ok(self.wrap(send, recv))
    }

    /// The next stream that the peer has opened. Cancel-safe. Streams come in
    /// the order in which their kinds have arrived.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn accept(&self) -> Result<(StreamKind, Sender, Receiver), StreamError> {
        let mut streams = self.0.streams.lock().await;
        let next = match streams.early.pop_front() {
            Some(early) => Some(early),
            None => streams.arrived.recv().await,
        };
        drop(streams);
        let Some((kind, send, recv)) = next else {
            return Err(StreamError::Disconnected(self.closed().await));
        };
        let (sender, receiver) = self.wrap(send, recv);
        Ok((kind, sender, receiver))
    }

    /// The next control stream that the peer has opened. Streams are independent:
    /// where the packet with its beginning was lost, those that were opened after
    /// it arrive before it. They wait for [`accept`](Self::accept), in their order;
    /// none when there are more of them than a peer has reason to open. Cancel-safe.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn accept_control(&self) -> Result<Option<(Sender, Receiver)>, StreamError> {
        let control = self
            .accept_first(|kind| kind == StreamKind::Control)
            .await?;
        Ok(control.map(|(_, sender, receiver)| (sender, receiver)))
    }

    /// The next stream that the peer has opened of one of the kinds that `wanted`
    /// takes; like [`accept_control`](Self::accept_control).
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn accept_first(
        &self,
        wanted: impl Fn(StreamKind) -> bool,
    ) -> Result<Option<(StreamKind, Sender, Receiver)>, StreamError> {
        let mut streams = self.0.streams.lock().await;
        while streams.early.len() < WAITING_STREAMS {
            match streams.arrived.recv().await {
                Some((kind, send, recv)) if wanted(kind) => {
                    let (sender, receiver) = self.wrap(send, recv);
                    return Ok(Some((kind, sender, receiver)));
                }
                Some(other) => streams.early.push_back(other),
                None => {
                    drop(streams);
                    return Err(StreamError::Disconnected(self.closed().await));
                }
            }
        }
        Ok(None)
    }

    fn wrap(&self, send: SendStream, recv: RecvStream) -> (Sender, Receiver) {
        (
            Sender::new(send, Arc::clone(&self.0)),
            Receiver::new(recv, Arc::clone(&self.0)),
        )
    }

    /// Closes the connection at once; what was not acknowledged is lost. The
    /// peer sees `code` and `reason`. One that has ended already keeps its
    /// reason.
    pub fn close(&self, code: CloseCode, reason: &str) {
        // quinn would put "closed here" over why it had ended.
        if self.0.quinn.close_reason().is_none() {
            self.0.quinn.close(code.into(), reason.as_bytes());
        }
    }

    /// Resolves when the connection has ended, and tells why.
    pub fn closed(&self) -> Closed {
        self.0.closed.clone()
    }

    /// Makes the peer's host answer at least this often, until the returned
    /// handle is dropped: so the death of the peer's process is noticed within
    /// `interval` and a round trip, also by a side that has nothing to send.
    /// Each side has to do it for itself. A probe is some 40 bytes.
    pub fn probe_every(&self, interval: Duration) -> Probing {
        let quinn = self.0.quinn.clone();
        let task = self.0.runtime.spawn(async move {
            let mut due = tokio::time::interval(interval.max(Duration::from_millis(1)));
            due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            // Ends when the connection has.
            while quinn.send_datagram(Bytes::from_static(&[0])).is_ok() {
                due.tick().await;
            }
        });
        Probing {
            _task: AbortOnDropHandle::new(task),
        }
    }
}

/// What has gone over a connection so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of UDP payload sent.
    pub sent: u64,
    /// Bytes of UDP payload received.
    pub received: u64,
    /// Packets that were sent and counted as lost.
    pub lost_packets: u64,
    /// Largest UDP payload that the path takes, as far as is known.
    pub mtu: u16,
}

/// While it lives, probes are sent; see [`Connection::probe_every`].
#[derive(Debug)]
#[must_use = "probing ends when this is dropped"]
pub struct Probing {
    _task: AbortOnDropHandle<()>,
}

impl Link {
    /// What quinn's word for the end means, given what is known here.
    pub(super) fn meaning(&self, error: ConnectionError) -> Disconnect {
        meaning(error, &self.verdict, self.idle_timeout)
    }
}

fn meaning(
    error: ConnectionError,
    verdict: &OnceLock<Disconnect>,
    idle_timeout: Duration,
) -> Disconnect {
    match (error, verdict.get()) {
        (ConnectionError::LocallyClosed, Some(verdict)) => verdict.clone(),
        (error, _) => Disconnect::from_quinn(error, idle_timeout),
    }
}

/// Waits for the end of a connection, and ends it when its peer's port is closed.
async fn await_end(
    quinn: quinn::Connection,
    mut watch: Watch,
    verdict: Arc<OnceLock<Disconnect>>,
    idle_timeout: Duration,
    end: watch::Sender<Option<Disconnect>>,
) {
    let error = loop {
        tokio::select! {
            error = quinn.closed() => break error,
            () = watch.gone() => {
                let remote = quinn.remote_address();
                if canonical(remote) == watch.address() {
                    let _ = verdict.set(Disconnect::PeerGone);
                    quinn.close(CloseCode::PEER_GONE.into(), b"");
                } else {
                    // It had moved before the old port was closed.
                    watch.follow(remote);
                }
            }
        }
    };
    end.send_replace(Some(meaning(error, &verdict, idle_timeout)));
}

/// Takes the peer's streams in, each as soon as it has said what it is for.
async fn accept_streams(quinn: quinn::Connection, arrived: mpsc::Sender<Arrived>) {
    while let Ok((send, mut recv)) = quinn.accept_bi().await {
        let arrived = arrived.clone();
        tokio::spawn(async move {
            let kind = tokio::time::timeout(KIND_TIMEOUT, read_kind(&mut recv)).await;
            if let Ok(Some(kind)) = kind {
                prioritise(&send, kind);
                // Nobody listens any more: the stream is dropped.
                let _ = arrived.send((kind, send, recv)).await;
            } else {
                tracing::debug!("a stream that does not say what it is for is dropped");
            }
        });
    }
}

async fn read_kind(recv: &mut RecvStream) -> Option<StreamKind> {
    decode(&read_frame(recv, KIND_LIMIT).await?, KIND_LIMIT).ok()
}

/// Reads exactly one frame, so that what follows it stays in the stream.
pub(super) async fn read_frame(recv: &mut RecvStream, limit: usize) -> Option<Vec<u8>> {
    let mut header = [0; HEADER_LEN];
    recv.read_exact(&mut header).await.ok()?;
    let mut payload = vec![0; payload_len(header, limit).ok()?];
    recv.read_exact(&mut payload).await.ok()?;
    Some(payload)
}

fn prioritise(send: &SendStream, kind: StreamKind) {
    // Fails only for a stream that has ended.
    let _ = send.set_priority(kind.priority());
}
