//! An endpoint: one UDP port, connections from and to it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use super::connection::Connection;
use super::disconnect::CloseCode;
use super::handshake::{self, ConnectError, Dial, Established, Welcome};
use super::options::{OptionsError, TransportOptions};
use super::peers::{Peers, canonical};
use super::runtime::TransportRuntime;
use super::socket::Socket;
use super::tls;
use crate::pki::{CaFingerprint, Identity, PeerIdentity};
use crate::wire::version::{Offer, Role};

/// How many accepted connections wait for [`Endpoint::accept`].
const WAITING_CONNECTIONS: usize = 64;
/// How long [`Endpoint::close`] waits for the peers to hear of it.
const FAREWELL: Duration = Duration::from_secs(1);

/// Decides whether a member with a valid certificate may connect; the text of
/// a refusal is for the refused side's operator.
pub type Admission = Arc<dyn Fn(&PeerIdentity) -> Result<(), String> + Send + Sync>;

/// One UDP port. Clones are handles to the same one. When the last is dropped,
/// no more connections are accepted; those that exist go on.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    quinn: quinn::Endpoint,
    peers: Arc<Peers>,
    options: TransportOptions,
    /// Who this side is, and how it connects as that.
    identity: Mutex<Option<(Identity, quinn::ClientConfig)>>,
    listens: bool,
    admission: Arc<Mutex<Option<Admission>>>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<Established>>,
    _accepting: DropGuard,
    /// Last, so that the threads outlive the rest.
    runtime: TransportRuntime,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("local", &self.local_addr().ok())
            .finish_non_exhaustive()
    }
}

/// An endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The options contradict each other.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The port cannot be had.
    #[error("cannot open UDP port {address}")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The identity cannot be used for TLS.
    #[error("the identity cannot be used: {0}")]
    Identity(String),
}

impl From<tls::TlsError> for BindError {
    fn from(error: tls::TlsError) -> Self {
        use std::error::Error as _;
        let cause = error
            .source()
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        Self::Identity(format!("{error}{cause}"))
    }
}

impl Endpoint {
    /// Opens a port that accepts connections and can connect, as `identity`.
    ///
    /// # Errors
    /// When the port is taken, or options or identity are unusable.
    pub fn bind(
        runtime: &TransportRuntime,
        address: SocketAddr,
        identity: &Identity,
        options: TransportOptions,
    ) -> Result<Self, BindError> {
        let server = tls::server(identity, &options)?;
        Self::open(runtime, address, Some(identity), Some(server), options)
    }

    /// Opens a port of its own, with its own queue in the kernel, that only
    /// connects, as `identity`: for a migration. IPv6 and IPv4 where the host
    /// has both.
    ///
    /// # Errors
    /// When no port is left, or options or identity are unusable.
    pub fn client(
        runtime: &TransportRuntime,
        identity: &Identity,
        options: TransportOptions,
    ) -> Result<Self, BindError> {
        match Self::client_on(
            runtime,
            Ipv6Addr::UNSPECIFIED.into(),
            identity,
            options.clone(),
        ) {
            Err(BindError::Socket { .. }) => {
                Self::client_on(runtime, Ipv4Addr::UNSPECIFIED.into(), identity, options)
            }
            result => result,
        }
    }

    /// Like [`client`](Self::client), from a given local address: for a
    /// migration network.
    ///
    /// # Errors
    /// As [`client`](Self::client); also when the host has no such address.
    pub fn client_on(
        runtime: &TransportRuntime,
        local: IpAddr,
        identity: &Identity,
        options: TransportOptions,
    ) -> Result<Self, BindError> {
        Self::open(
            runtime,
            SocketAddr::new(local, 0),
            Some(identity),
            None,
            options,
        )
    }

    /// Opens a port for a host that has no identity yet; it can only
    /// [`connect_join`](Self::connect_join).
    ///
    /// # Errors
    /// When no port is left, or the options are unusable.
    pub fn joining(
        runtime: &TransportRuntime,
        options: TransportOptions,
    ) -> Result<Self, BindError> {
        let open =
            |ip: IpAddr, options| Self::open(runtime, SocketAddr::new(ip, 0), None, None, options);
        match open(Ipv6Addr::UNSPECIFIED.into(), options.clone()) {
            Err(BindError::Socket { .. }) => open(Ipv4Addr::UNSPECIFIED.into(), options),
            result => result,
        }
    }

    fn open(
        runtime: &TransportRuntime,
        address: SocketAddr,
        identity: Option<&Identity>,
        server: Option<quinn::ServerConfig>,
        options: TransportOptions,
    ) -> Result<Self, BindError> {
        options.check()?;
        let client = identity
            .map(|identity| tls::client(identity, &options).map(|tls| (identity.clone(), tls)))
            .transpose()?;
        let socket_error = |source| BindError::Socket { address, source };
        let peers = Arc::new(Peers::default());
        let handle = runtime.handle();
        let socket = Socket::bind(address, options.socket_buffer, Arc::clone(&peers), handle)
            .map_err(socket_error)?;
        let listens = server.is_some();
        let quinn = quinn::Endpoint::new_with_abstract_socket(
            TransportOptions::endpoint(identity),
            server,
            Arc::new(socket),
            runtime.quinn(),
        )
        .map_err(socket_error)?;
        let stop = CancellationToken::new();
        let admission = Arc::new(Mutex::new(None));
        let (arrived, accepted) = mpsc::channel(WAITING_CONNECTIONS);
        if listens {
            let door = Door {
                quinn: quinn.clone(),
                peers: Arc::clone(&peers),
                admission: Arc::clone(&admission),
                limit: options.handshake_timeout,
                places: Arc::new(Semaphore::new(options.max_handshakes)),
                few: options.max_handshakes / 2,
                arrived,
            };
            runtime.spawn(stop.clone().run_until_cancelled_owned(door.keep()));
        }
        Ok(Self(Arc::new(Inner {
            quinn,
            peers,
            options,
            identity: Mutex::new(client),
            listens,
            admission,
            accepted: tokio::sync::Mutex::new(accepted),
            _accepting: stop.drop_guard(),
            runtime: runtime.clone(),
        })))
    }

    /// The address and port that the endpoint has.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.quinn.local_addr()
    }

    /// Connects to a member, who must be whom we expect. On the way the peer's
    /// certificate is verified and a protocol version agreed on.
    ///
    /// # Errors
    /// Why not; at once when nothing listens there, otherwise within the
    /// handshake timeout.
    pub async fn connect(
        &self,
        address: SocketAddr,
        expected: &PeerIdentity,
    ) -> Result<Connection, ConnectError> {
        let (role, config) = {
            let identity = self
                .0
                .identity
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let (identity, config) = identity.as_ref().ok_or_else(|| ConnectError::Unable {
                address,
                reason: "it has no identity".into(),
            })?;
            (handshake::role_of(identity.peer()), config.clone())
        };
        self.dial(address, expected.clone(), self.offer(role), config)
            .await
    }

    /// Connects to a coordinator in order to join its cluster: it must show
    /// the CA with this fingerprint, and a certificate of it for the
    /// coordinator's name.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_join(
        &self,
        address: SocketAddr,
        ca: CaFingerprint,
    ) -> Result<Connection, ConnectError> {
        let config = tls::joining(ca, &self.0.options).map_err(|error| ConnectError::Unable {
            address,
            reason: error.to_string(),
        })?;
        self.dial(
            address,
            PeerIdentity::Coordinator,
            self.offer(Role::Joining),
            config,
        )
        .await
    }

    pub(super) fn offer(&self, role: Role) -> Offer {
        Offer::current(role, self.0.options.software.clone())
    }

    pub(super) async fn dial(
        &self,
        address: SocketAddr,
        expected: PeerIdentity,
        offer: Offer,
        config: quinn::ClientConfig,
    ) -> Result<Connection, ConnectError> {
        let inner = &self.0;
        let dial = Dial {
            quinn: inner.quinn.clone(),
            config,
            peers: Arc::clone(&inner.peers),
            address,
            expected,
            offer,
            limit: inner.options.handshake_timeout,
        };
        let task = AbortOnDropHandle::new(inner.runtime.spawn(dial.run()));
        let established = task.await.map_err(|error| ConnectError::Unable {
            address,
            reason: format!("the transport has ended: {error}"),
        })??;
        Ok(self.start(established))
    }

    /// The next connection that a peer has made: authenticated, and with a
    /// version. `None` when the endpoint is closed, or was not opened for
    /// accepting. Cancel-safe.
    pub async fn accept(&self) -> Option<Connection> {
        if !self.0.listens {
            return None;
        }
        let established = self.0.accepted.lock().await.recv().await?;
        Some(self.start(established))
    }

    fn start(&self, established: Established) -> Connection {
        Connection::start(established, self.0.options.idle_timeout, &self.0.runtime)
    }

    /// Takes a new certificate into use; connections that exist go on with the
    /// one that they began with.
    ///
    /// # Errors
    /// When the identity is unusable; the old one then stays.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), BindError> {
        let client = tls::client(identity, &self.0.options)?;
        if self.0.listens {
            let server = tls::server(identity, &self.0.options)?;
            self.0.quinn.set_server_config(Some(server));
        }
        let mut current = self
            .0
            .identity
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Some((identity.clone(), client));
        Ok(())
    }

    /// Asks `admission` from now on about every member that connects.
    pub fn set_admission(&self, admission: Admission) {
        let mut current = self
            .0
            .admission
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Some(admission);
    }

    /// Closes all connections and accepts no more; waits shortly for the peers
    /// to hear of it.
    pub async fn close(&self) {
        self.0.quinn.close(CloseCode::SHUTDOWN.into(), b"");
        let quinn = self.0.quinn.clone();
        let farewell = self.0.runtime.spawn(async move {
            let _ = tokio::time::timeout(FAREWELL, quinn.wait_idle()).await;
        });
        // Fails only when the transport has ended.
        let _ = farewell.await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Otherwise quinn keeps newcomers waiting as long as a connection lives.
        self.quinn.set_server_config(None);
    }
}

/// Where newcomers knock.
struct Door {
    quinn: quinn::Endpoint,
    peers: Arc<Peers>,
    admission: Arc<Mutex<Option<Admission>>>,
    limit: Duration,
    places: Arc<Semaphore>,
    /// With fewer places left than this, an address has to prove itself.
    few: usize,
    arrived: mpsc::Sender<Established>,
}

impl Door {
    /// Serves each newcomer in a task of its own, so that a slow one delays
    /// nobody.
    async fn keep(self) {
        while let Some(incoming) = self.quinn.accept().await {
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                // It tries again by itself.
                incoming.ignore();
                continue;
            };
            let busy = self.places.available_permits() < self.few;
            if busy && !incoming.remote_address_validated() && incoming.may_retry() {
                let _ = incoming.retry();
                continue;
            }
            let remote = canonical(incoming.remote_address());
            let welcome = self.welcome();
            let arrived = self.arrived.clone();
            tokio::spawn(async move {
                match welcome.run(incoming).await {
                    Ok(established) => {
                        // Nobody accepts any more: it is dropped, and so closed.
                        let _ = arrived.send(established).await;
                    }
                    Err(error) => tracing::info!(%remote, %error, "a connection was not accepted"),
                }
                drop(place);
            });
        }
    }

    fn welcome(&self) -> Welcome {
        let admission = self
            .admission
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Welcome {
            peers: Arc::clone(&self.peers),
            admission,
            limit: self.limit,
        }
    }
}
