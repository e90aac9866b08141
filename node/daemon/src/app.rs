//! The running daemon: puts the parts together and takes them apart.
//!
//! Order matters twice. The domains that the last daemon left are taken over
//! before the coordinator hears of this node, because its first message tells
//! of every domain, and one that is missing there counts as gone. And peers are
//! let in only when the migrations of the past are known, because a question
//! about a grant must not be taken for one about a stranger.
//!
//! The end is the reverse in small: peers and coordinator are told that this
//! daemon stops, and every QEMU stays as it is.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor as _, Addr, Arbiter};
use godwit_shared::model::capacity::{EmulatorFacts, NodeFacts};
use godwit_shared::model::{BootMillis, Problem, codes};
use godwit_shared::pki::{Identity, NodeIdentity};
use godwit_shared::transport::{BindError, Endpoint, TransportRuntime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::AbortHandle;

use crate::acceptor::accept_peers;
use crate::bus::NodeBus;
use crate::config::{HostPort, NodeConfig};
use crate::facts::node_facts;
use crate::guard::Guard;
use crate::host::{self, EndpointsFile, HostDescription, NodePaths, StateLock};
use crate::identity::{self, IdentityStore, JoinedCluster, chain_of};
use crate::lease::{LeaseKeeper, LeaseParams};
use crate::members;
use crate::migration::{MigrationContext, MigrationManager, Tombstones};
use crate::numa::Roots;
use crate::qemu::probe::{Emulator, probe_all};
use crate::supervisor::messages::Restored;
use crate::supervisor::{Supervisor, SupervisorContext};
use crate::uplink::{self, Pace, Serve, Services, Uplink, UplinkHandle, UplinkParams, connect};

/// Most threads of the transport. One connection is driven by one of them.
const MAX_NET_THREADS: usize = 8;

/// How often the log says that domains are still being taken over.
const RESTORE_NOTICE: Duration = Duration::from_secs(10);
/// How long a name service may keep the daemon from starting.
const RESOLVE: Duration = Duration::from_secs(2);

/// Serves until SIGTERM or SIGINT.
pub async fn run(config: NodeConfig) -> Result<(), Problem> {
    let mut end = EndSignals::listen()?;
    let paths = NodePaths {
        state_dir: config.state_dir.clone(),
        run_dir: config.run_dir.clone(),
    };
    let _lock = StateLock::acquire(&paths.state_dir)?;
    // Whoever waits for the file waits for this daemon, not for the last one.
    let _ = std::fs::remove_file(paths.endpoints());
    paths.create()?;
    let node = tokio::select! {
        node = Node::start(&config, &paths) => node?,
        () = end.received() => return Ok(()),
    };
    let _endpoints = node.announce(&paths)?;
    end.received().await;
    tracing::info!("ending; every VM runs on");
    node.stop().await;
    Ok(())
}

/// The signals that end the daemon.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    fn listen() -> Result<Self, Problem> {
        let listen = |kind| signal(kind).map_err(Problem::internal);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Who this node is and where its coordinator is: what the join left, with the
/// settings over it.
struct Membership {
    identity: Identity,
    me: NodeIdentity,
    coordinator: Vec<HostPort>,
    address: Option<HostPort>,
}

impl Membership {
    fn load(config: &NodeConfig, paths: &NodePaths) -> Result<Self, Problem> {
        let (identity, me) = identity::load(&paths.identity())?;
        check_name(config, &me)?;
        let joined = JoinedCluster::load(&paths.cluster())?;
        let coordinator = if config.coordinator.is_empty() {
            let read = |text: &String| HostPort::check("coordinator", text);
            joined
                .coordinator
                .iter()
                .map(read)
                .collect::<Result<_, _>>()?
        } else {
            config.coordinator.clone()
        };
        let stored = || {
            joined
                .address
                .as_deref()
                .map(|text| HostPort::check("address", text))
        };
        let address = match config.address.clone() {
            Some(address) => Some(address),
            None => stored().transpose()?,
        };
        Ok(Self {
            identity,
            me,
            coordinator,
            address,
        })
    }

    /// Where peers reach this node: what was said, or the address that the
    /// endpoint has towards the coordinator.
    async fn advertised(&self, local: SocketAddr) -> HostPort {
        if let Some(address) = &self.address {
            return address.clone();
        }
        if !local.ip().is_unspecified() {
            return HostPort::of(local);
        }
        for coordinator in &self.coordinator {
            let found = connect::resolve(coordinator, Some(local));
            if let Ok(Ok(found)) = tokio::time::timeout(RESOLVE, found).await
                && let Some(peer) = found.first()
            {
                return host::address_towards(*peer, local.port());
            }
        }
        host::address_by_name(local.port())
    }
}

fn check_name(config: &NodeConfig, me: &NodeIdentity) -> Result<(), Problem> {
    match &config.name {
        Some(name) if *name != me.node => Err(Problem::new(
            codes::CONFIG_INVALID,
            format!("this host has joined as `{}`, not as `{name}`", me.node),
        )
        .field("name")
        .value(name.as_str())
        .remedy("take the setting out, or join again under that name with --force")),
        _ => Ok(()),
    }
}

/// A node that serves.
struct Node {
    endpoint: Endpoint,
    local: SocketAddr,
    accepting: AbortHandle,
    uplink: Addr<Uplink>,
    /// Their threads end with them.
    _arbiters: [Arbiter; 3],
}

impl Node {
    async fn start(config: &NodeConfig, paths: &NodePaths) -> Result<Self, Problem> {
        let member = Membership::load(config, paths)?;
        warn_of_expiry(&member.identity);
        let runtime = net_threads()?;
        let (endpoint, local) = bind(config, &member.identity, &runtime)?;
        let emulators = probe_all(&config.emulators).await;
        let facts = describe(config, &emulators, &member.advertised(local).await)?;
        let bus = NodeBus::new();
        bus.set_members(members::load(&paths.members()));

        let guard = Guard::new(&paths.run_dir, own_program()?, config.watchdog.clone());
        let stop_at = begin_guard(&guard).await;
        let supervisor = Supervisor::new(SupervisorContext {
            paths: paths.clone(),
            bus: bus.clone(),
            boot_id: facts.boot_id.clone(),
            emulators: emulators.clone(),
            capacity: facts.capacity,
            guard: guard.clone(),
        })
        .start();
        let identity = IdentityStore::new(
            paths.identity(),
            member.identity.clone(),
            member.me.clone(),
            endpoint.clone(),
        );
        let arbiters = [Arbiter::new(), Arbiter::new(), Arbiter::new()];
        let lease = LeaseParams {
            node: member.me.node.clone(),
            guard,
            endpoint: endpoint.clone(),
            members: bus.members(),
            file: paths.lease(),
        };
        let lease = LeaseKeeper::start_in_arbiter(&arbiters[2].handle(), move |_| {
            LeaseKeeper::new(lease, stop_at)
        });
        let uplink = Uplink::new(UplinkParams {
            endpoint: endpoint.clone(),
            identity: identity.clone(),
            coordinator: member.coordinator,
            facts: facts.clone(),
            bus: bus.clone(),
            members_file: paths.members(),
            pace: Pace::default(),
            lease: Some(lease.clone()),
        });
        let uplink = Uplink::start_in_arbiter(&arbiters[0].handle(), |_| uplink);
        let migrations = MigrationManager::new(MigrationContext {
            supervisor: supervisor.clone(),
            bus: bus.clone(),
            uplink: UplinkHandle::from(&uplink),
            runtime,
            identity: identity.watch(),
            options: config.transport(),
            node: member.me.node.clone(),
            emulators: Arc::new(emulators),
            domains: paths.domains(),
            run_dir: paths.run_dir.clone(),
            tombstones: Tombstones::open(paths.migrations())?,
            lease: Some(lease.clone().recipient()),
        });
        let migrations = MigrationManager::start_in_arbiter(&arbiters[1].handle(), |_| migrations);

        restored(&supervisor).await?;
        let serve = Serve(Services::of(&supervisor, &migrations, &lease));
        uplink.send(serve).await.map_err(Problem::internal)??;
        let peers = accept_peers(endpoint.clone(), bus.members(), migrations.recipient());
        let accepting = actix::spawn(peers).abort_handle();
        tracing::info!(node = %member.me, listening = %local, "serving");
        Ok(Self {
            endpoint,
            local,
            accepting,
            uplink,
            _arbiters: arbiters,
        })
    }

    /// Tells whoever waits that the daemon serves.
    fn announce(&self, paths: &NodePaths) -> Result<EndpointsFile, Problem> {
        let mut reached = self.local;
        match reached {
            SocketAddr::V4(at) if at.ip().is_unspecified() => {
                reached.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
            }
            SocketAddr::V6(at) if at.ip().is_unspecified() => {
                reached.set_ip(std::net::Ipv6Addr::LOCALHOST.into());
            }
            _ => {}
        }
        let file = EndpointsFile::write(paths.endpoints(), &reached.to_string())?;
        notify(&sd_notify::NotifyState::Ready);
        Ok(file)
    }

    async fn stop(self) {
        notify(&sd_notify::NotifyState::Stopping);
        self.accepting.abort();
        // Gone only with its arbiter.
        let _ = self.uplink.send(uplink::End).await;
        self.endpoint.close().await;
    }
}

/// This daemon's binary, which is the guardian's as well.
fn own_program() -> Result<PathBuf, Problem> {
    std::env::current_exe().map_err(|error| {
        Problem::new(
            codes::HOST_IO,
            format!("the daemon's binary is not found: {error}"),
        )
        .remedy("see that /proc is mounted")
    })
}

/// Makes sure that there is a guardian. When protected VMs stop, if it knows.
async fn begin_guard(guard: &Guard) -> Option<BootMillis> {
    let guard = guard.clone();
    let begun = tokio::task::spawn_blocking(move || guard.begin()).await;
    match begun.unwrap_or_else(|error| Err(Problem::internal(error))) {
        Ok(stop_at) => stop_at,
        Err(problem) => {
            tracing::error!(%problem, "no protected VM can run");
            None
        }
    }
}

/// Tells the service manager, if one asked for it.
fn notify(state: &sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

fn net_threads() -> Result<TransportRuntime, Problem> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    TransportRuntime::start(cores.min(MAX_NET_THREADS)).map_err(|error| {
        Problem::new(codes::HOST_IO, chain_of(&error))
            .remedy("raise the limits of threads and open files for this daemon")
    })
}

fn bind(
    config: &NodeConfig,
    identity: &Identity,
    runtime: &TransportRuntime,
) -> Result<(Endpoint, SocketAddr), Problem> {
    let failed = |error: &BindError| {
        let remedy = match error {
            BindError::Socket { .. } => {
                "choose an address of this host and a free UDP port with --listen, or end the program that has it"
            }
            _ => "look at the identity and the settings of this node",
        };
        Problem::new(codes::HOST_IO, chain_of(error))
            .field("listen")
            .value(config.listen.to_string())
            .remedy(remedy)
    };
    let endpoint = Endpoint::bind(runtime, config.listen, identity, config.transport())
        .map_err(|error| failed(&error))?;
    let local = endpoint.local_addr().map_err(Problem::internal)?;
    Ok((endpoint, local))
}

fn describe(
    config: &NodeConfig,
    emulators: &[Emulator],
    address: &HostPort,
) -> Result<NodeFacts, Problem> {
    let host = HostDescription::read()?;
    let emulators: Vec<EmulatorFacts> = emulators.iter().map(|one| one.facts.clone()).collect();
    tell_emulators(&emulators);
    let roots = Roots::default();
    Ok(node_facts(&host, config, emulators, address, &roots))
}

fn tell_emulators(emulators: &[EmulatorFacts]) {
    if emulators.is_empty() {
        tracing::warn!(
            "no QEMU was found, so no VM can run here: install one (`qemu-system-x86`), or name it under `emulators` in the settings"
        );
    }
    for emulator in emulators {
        let EmulatorFacts {
            architecture,
            path,
            version,
            accelerators,
            ..
        } = emulator;
        tracing::info!(%architecture, path, version, ?accelerators, "QEMU");
    }
}

fn warn_of_expiry(identity: &Identity) {
    if identity.not_after() < jiff::Timestamp::now() {
        tracing::error!(
            expired = %identity.not_after(),
            "this node's certificate has expired: join again with `godwit-node join --force TOKEN`"
        );
    }
}

/// Waits until every domain of the last daemon is accounted for, however long
/// that takes: one that the coordinator is not told of counts as gone.
async fn restored(supervisor: &Addr<Supervisor>) -> Result<(), Problem> {
    let mut restored = std::pin::pin!(supervisor.send(Restored));
    let in_hand = loop {
        match tokio::time::timeout(RESTORE_NOTICE, restored.as_mut()).await {
            Ok(restored) => break restored.map_err(Problem::internal)?,
            Err(_) => tracing::warn!("domains of the last daemon are still being taken over"),
        }
    };
    if !in_hand.is_empty() {
        tracing::info!(
            migrations = in_hand.len(),
            "the last daemon left migrations in hand"
        );
    }
    Ok(())
}
