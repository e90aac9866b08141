//! The daemon put together: what is opened in which order, and closed again.
//!
//! Start: state directory and its lock, store, CA and identity, ports, the writer
//! ([`begin`]: this one, or who is elected), sessions, API; then the files that tell where it serves, and READY.
//! Stop: no more requests, listeners' streams end, nodes are told, the store is
//! closed, and the lock goes last.

mod begin;

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use actix_web::dev::ServerHandle;
use godwit_coordinator_logic::cluster::{Limits, Settings};
use godwit_shared::model::{Problem, UnixMillis, codes};
use godwit_shared::transport::{Endpoint, TransportRuntime};
use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::backup::Backups;
use crate::candidacy::SessionParts;
use crate::cluster::Extras;
use crate::config::{Config, host_port};
use crate::follower::Leader;
use crate::http::{self, ApiParts};
use crate::session;
use crate::state_dir::{EndpointsFile, StateDir};
use crate::store::Store;
use crate::{credential, peers};
use begin::{Begin, Leading, Opened};

/// Threads of the transport. One connection is driven by one at a time, and
/// nodes say little.
const NET_THREADS: usize = 2;
/// How often the identity's age is looked at.
const RENEWAL_CHECK: Duration = Duration::from_secs(6 * 3600);

/// A running coordinator.
#[derive(Debug)]
pub struct Coordinator {
    /// The API's URL.
    pub api: String,
    /// Where nodes connect.
    pub cluster: SocketAddr,
    failures: mpsc::UnboundedReceiver<Problem>,
    parts: Parts,
}

#[derive(Debug)]
struct Parts {
    leading: Leading,
    server: ServerHandle,
    serving: JoinHandle<std::io::Result<()>>,
    endpoint: Endpoint,
    sessions: Arbiter,
    store: Arc<dyn Store>,
    stop: CancellationToken,
    renewal: JoinHandle<()>,
    _endpoints: EndpointsFile,
    // The lock goes last.
    _dir: Arc<StateDir>,
}

/// Runs the daemon until it is told to end, or fails.
pub async fn run(config: Config) -> Result<(), Problem> {
    let mut stop = Signals::new()?;
    let mut coordinator = Coordinator::start(config).await?;
    notify(NotifyState::Ready);
    let end = tokio::select! {
        name = stop.wait() => {
            tracing::info!(signal = name, "stopping");
            Ok(())
        }
        problem = coordinator.failed() => Err(problem),
    };
    notify(NotifyState::Stopping);
    coordinator.stop().await;
    end
}

impl Coordinator {
    /// Starts everything; when this returns, it serves.
    pub async fn start(config: Config) -> Result<Self, Problem> {
        let dir = Arc::new(StateDir::acquire(&config.state_dir)?);
        let api = bind_api(config.api)?;
        let api_address = api
            .local_addr()
            .map_err(|error| no_api(config.api, &error))?;
        let opened = Opened::open(&dir, &config.store).await?;
        let store = opened.store();
        if opened.is_shared() {
            peers::before(&*store, &dir).await?;
        }
        let authority = Authority::open(&dir, &names(&config))?;
        let fingerprint = authority.ca().fingerprint();
        let runtime = TransportRuntime::start(NET_THREADS).map_err(Problem::internal)?;
        let endpoint = bind_cluster(&runtime, &config, &authority)?;
        let cluster_address = endpoint.local_addr().map_err(Problem::internal)?;
        let url = format!("https://{}", local(api_address));
        let mut addresses = addresses(&config, cluster_address);
        if opened.is_shared() {
            peers::after(&*store, &dir, &fingerprint.to_string()).await?;
            addresses = peers::addresses(&*store, addresses).await?;
        }
        let ca = authority.ca().certificate_pem();
        let admin = credential::prepare(&dir, &*store, &url, ca, opened.is_shared()).await?;
        let (fatal, failures) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let parts = ApiParts {
            admin,
            backups: Backups {
                store: Arc::clone(&store),
                cluster: config.name.clone(),
                ca_fingerprint: fingerprint.to_string(),
            },
            ca: fingerprint,
            addresses,
        };
        let tls = authority.https()?;
        let begin = Begin {
            settings: settings(&config, &authority),
            about: Leader {
                api: advertised_api(&config, api_address),
                cluster: parts.addresses.first().cloned().unwrap_or_default(),
            },
            sessions: SessionParts {
                authority: authority.clone(),
                name: config.name.clone(),
            },
            parts,
            extras: Extras {
                agents: config.fence.clone(),
                record: config.record.clone(),
            },
            stop: stop.clone(),
        };
        let (door, roles, leading) = begin.begin(opened, fatal).await?;
        let server = http::serve(api, tls, door)?;
        let server_handle = server.handle();
        let serving = actix::spawn(server);
        let sessions = Arbiter::new();
        sessions.spawn(session::serve(endpoint.clone(), roles));
        let renewal = actix::spawn(renew(authority, Arc::clone(&dir), endpoint.clone()));
        let cluster_text = cluster_address.to_string();
        let endpoints = EndpointsFile::write(dir.endpoints(), &url, &cluster_text)?;
        tracing::info!(api = %url, cluster = %cluster_text, "serving cluster {}", config.name);
        Ok(Self {
            api: url,
            cluster: cluster_address,
            failures,
            parts: Parts {
                leading,
                server: server_handle,
                serving,
                endpoint,
                sessions,
                store,
                stop,
                renewal,
                _endpoints: endpoints,
                _dir: dir,
            },
        })
    }

    /// Resolves when the coordinator cannot go on.
    pub async fn failed(&mut self) -> Problem {
        tokio::select! {
            Some(problem) = self.failures.recv() => problem,
            ended = &mut self.parts.serving => match ended {
                Ok(Err(error)) => Problem::internal(format!("the API has ended: {error}")),
                _ => Problem::internal("the API has ended"),
            },
        }
    }

    /// Ends everything in order.
    pub async fn stop(self) {
        let parts = self.parts;
        parts.renewal.abort();
        parts.stop.cancel();
        if let Leading::Alone(handle) = &parts.leading {
            handle.events().close();
        }
        parts.server.stop(true).await;
        // Before the nodes leave: their going is this daemon's end, not theirs.
        parts.leading.end().await;
        parts.endpoint.close().await;
        parts.sessions.stop();
        if let Err(error) = parts.store.close().await {
            tracing::warn!(%error, "the store did not close");
        }
        tracing::info!("stopped");
    }
}

fn settings(config: &Config, authority: &Authority) -> Settings {
    Settings {
        name: config.name.clone(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        ca_fingerprint: authority.ca().fingerprint().to_string(),
        started: UnixMillis::now(),
        placement: config.placement.clone(),
        migrations: config.migrations,
        rebalance: config.rebalance,
        limits: Limits {
            protection: config.protection,
            ..Limits::default()
        },
        fence_agents: config.fence.keys().cloned().collect(),
    }
}

/// The API's URL for operators elsewhere, if it lets them in at all.
fn advertised_api(config: &Config, bound: SocketAddr) -> String {
    let host = match &config.advertise {
        Some(advertise) if bound.ip().is_unspecified() => Some(advertise.host.clone()),
        None if bound.ip().is_unspecified() => own_address().map(|ip| ip.to_string()),
        _ => None,
    };
    let place = host.map_or_else(
        || local(bound).to_string(),
        |host| host_port(&host, bound.port()),
    );
    format!("https://{place}")
}

fn bind_api(address: SocketAddr) -> Result<TcpListener, Problem> {
    TcpListener::bind(address).map_err(|error| no_api(address, &error))
}

fn no_api(address: SocketAddr, error: &std::io::Error) -> Problem {
    Problem::new(
        codes::HOST_IO,
        format!("the API cannot listen on TCP {address}: {error}"),
    )
    .field("api")
    .value(address.to_string())
    .remedy("end what uses the port, or give --api another address or port")
}

fn bind_cluster(
    runtime: &TransportRuntime,
    config: &Config,
    authority: &Authority,
) -> Result<Endpoint, Problem> {
    Endpoint::bind(
        runtime,
        config.listen,
        &authority.identity(),
        config.transport(),
    )
    .map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        let what = format!(
            "nodes cannot be served: {error}{}",
            cause.unwrap_or_default()
        );
        Problem::new(codes::HOST_IO, what)
            .field("listen")
            .value(config.listen.to_string())
            .remedy("end what uses the port, or give --listen another address or port")
    })
}

/// The names in the certificate beside those that every coordinator's has.
fn names(config: &Config) -> Vec<String> {
    let bound = [config.api.ip(), config.listen.ip()];
    let mut names: Vec<String> = bound
        .iter()
        .filter(|ip| !ip.is_unspecified())
        .map(IpAddr::to_string)
        .collect();
    if bound.iter().any(IpAddr::is_unspecified) {
        names.extend(own_address().map(|ip| ip.to_string()));
    }
    names.extend(
        config
            .advertise
            .as_ref()
            .map(|advertise| advertise.host.clone()),
    );
    names
}

/// The coordinator's addresses in join tokens, best first.
fn addresses(config: &Config, bound: SocketAddr) -> Vec<String> {
    if let Some(advertise) = &config.advertise {
        return vec![advertise.address(bound.port())];
    }
    if !bound.ip().is_unspecified() {
        return vec![bound.to_string()];
    }
    let own = own_address().unwrap_or_else(|| local(bound).ip());
    vec![host_port(&own.to_string(), bound.port())]
}

/// The address that this host would use towards others. Connecting a UDP
/// socket only asks the routing table; the address is one for documentation
/// (RFC 5737) and nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

/// How this host itself reaches an address that it listens on.
fn local(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from(([127, 0, 0, 1], address.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, address.port()))
        }
        _ => address,
    }
}

/// Replaces the identity near its end, while the daemon runs.
async fn renew(authority: Authority, dir: Arc<StateDir>, endpoint: Endpoint) {
    let mut due = tokio::time::interval(RENEWAL_CHECK);
    loop {
        due.tick().await;
        match authority.renew(&dir, Timestamp::now()) {
            Ok(None) => {}
            Ok(Some(identity)) => match endpoint.set_identity(&identity) {
                Ok(()) => tracing::info!("renewed the coordinator's certificate"),
                Err(error) => tracing::error!(%error, "the new certificate cannot be used"),
            },
            Err(problem) => tracing::error!(%problem, "cannot renew the coordinator's certificate"),
        }
    }
}

fn notify(state: NotifyState<'_>) {
    // Does nothing without $NOTIFY_SOCKET.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Problem> {
        use tokio::signal::unix::{SignalKind, signal};
        let terminate = signal(SignalKind::terminate()).map_err(Problem::internal)?;
        let interrupt = signal(SignalKind::interrupt()).map_err(Problem::internal)?;
        Ok(Self {
            terminate,
            interrupt,
        })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::config::{Overrides, RawConfig};

    fn config(listen: &str, api: &str, advertise: Option<&str>) -> Config {
        let flags = Overrides {
            listen: Some(listen.to_owned()),
            api: Some(api.to_owned()),
            advertise: advertise.map(str::to_owned),
            ..Overrides::default()
        };
        Config::check(RawConfig::default(), flags).unwrap()
    }

    #[test]
    fn nodes_are_sent_where_they_can_reach_the_coordinator() {
        let bound = "192.0.2.7:7440".parse().unwrap();
        let fixed = config("192.0.2.7:7440", "127.0.0.1:1", None);
        assert_eq!(addresses(&fixed, bound), ["192.0.2.7:7440"]);
        assert_eq!(names(&fixed), ["127.0.0.1", "192.0.2.7"]);
        let told = config("0.0.0.0:7440", "127.0.0.1:1", Some("control.example"));
        assert_eq!(addresses(&told, bound), ["control.example:7440"]);
        assert!(names(&told).contains(&"control.example".to_owned()));
        let any = "0.0.0.0:9".parse().unwrap();
        let found = addresses(&config("0.0.0.0:0", "127.0.0.1:1", None), any);
        assert!(
            found[0].ends_with(":9") && !found[0].starts_with("0.0.0.0"),
            "{found:?}"
        );
    }

    #[test]
    fn the_host_reaches_itself_by_loopback() {
        assert_eq!(
            local("0.0.0.0:5".parse().unwrap()).to_string(),
            "127.0.0.1:5"
        );
        assert_eq!(local("[::]:5".parse().unwrap()).to_string(), "[::1]:5");
        assert_eq!(
            local("192.0.2.1:5".parse().unwrap()).to_string(),
            "192.0.2.1:5"
        );
    }
}
