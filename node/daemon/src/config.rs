//! The node's settings: command-line flags over the file over the defaults.
//!
//! [`RawConfig`] is what the file says; [`NodeConfig::check`] turns it and the
//! [`Overrides`] of the command line into settings that are known to be right,
//! or into every problem at once. Nothing here asks the host or the network.

mod address;
mod placement;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit_shared::model::label::{MAX_LABEL_VALUE, label_key, label_value};
use godwit_shared::model::spec::Architecture;
use godwit_shared::model::{MiB, NodeId, Problem, codes};
use godwit_shared::transport::TransportOptions;
use serde::Deserialize;

pub use address::HostPort;
pub use placement::PlacementConfig;

/// Where the daemon keeps what has to survive it.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/godwit/node";
/// Where its sockets are.
pub const DEFAULT_RUN_DIR: &str = "/run/godwit/node";
/// The UDP port of a node.
pub const DEFAULT_PORT: u16 = 7441;
const DEFAULT_LISTEN: &str = "0.0.0.0:7441";
const DEFAULT_LOG: &str = "info";

/// Longest path of a unix socket (`sun_path` without its terminating zero, unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;
/// What stands behind the run directory in the longest socket path: a VM's id
/// and `serial.sock`.
const SOCKET_TAIL: usize = "/00000000-0000-0000-0000-000000000000/serial.sock".len();
const MAX_LABELS: usize = 64;

/// A node's settings, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The name to join under; none means the host's name. Once joined, the
    /// certificate's name holds.
    pub name: Option<NodeId>,
    /// What has to survive the daemon: identity, domains, migrations.
    pub state_dir: PathBuf,
    /// Sockets.
    pub run_dir: PathBuf,
    /// The UDP address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where peers reach this node; none means what the listening address gives.
    pub address: Option<HostPort>,
    /// The coordinator's addresses; empty means those of the join token.
    pub coordinator: Vec<HostPort>,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// What is offered to guests.
    pub capacity: CapacityConfig,
    /// What else placement has to know.
    pub placement: PlacementConfig,
    /// Emulators to use instead of those in `PATH`.
    pub emulators: BTreeMap<Architecture, PathBuf>,
    /// How fast a lost peer is noticed.
    pub liveness: Liveness,
    /// The watchdog that the guardian of protected VMs feeds, if it is there.
    pub watchdog: Option<PathBuf>,
    /// The log filter, in the syntax of `tracing_subscriber::EnvFilter`.
    pub log: String,
}

/// What is offered to guests; what is absent follows from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CapacityConfig {
    /// vCPUs. Default: the host's cores, overcommitted.
    pub vcpus: Option<u32>,
    /// Guest memory. Default: the host's, less 512 MiB, overcommitted.
    pub memory: Option<MiB>,
}

/// How fast a lost peer is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// How long a connection is quiet before a keep-alive is sent.
    pub keep_alive: Duration,
    /// How long nothing may arrive before the peer counts as lost.
    pub idle_timeout: Duration,
}

/// Settings from the command line.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--name`
    pub name: Option<String>,
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
    /// `--run-dir`
    pub run_dir: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--address`
    pub address: Option<String>,
    /// `--log`
    pub log: Option<String>,
}

/// The file as it is written; see `config/node.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    name: Option<String>,
    state_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    listen: Option<String>,
    address: Option<String>,
    coordinator: Option<Vec<String>>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    capacity: RawCapacity,
    #[serde(default)]
    overcommit: placement::RawOvercommit,
    #[serde(default)]
    taints: Vec<String>,
    storage: Option<Vec<placement::RawStorage>>,
    networks: Option<Vec<String>>,
    #[serde(default)]
    images: Vec<PathBuf>,
    #[serde(default)]
    emulators: BTreeMap<Architecture, PathBuf>,
    #[serde(default)]
    liveness: RawLiveness,
    watchdog: Option<String>,
    log: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCapacity {
    vcpus: Option<u32>,
    memory: Option<toml::Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLiveness {
    keep_alive_ms: Option<u64>,
    idle_timeout_ms: Option<u64>,
}

impl NodeConfig {
    /// Reads the file, if one is given, and checks it with the flags over it.
    pub fn load(file: Option<&Path>, flags: Overrides) -> Result<Self, Problem> {
        let raw = match file {
            Some(path) => godwit_shared::config::load(path)?,
            None => RawConfig::default(),
        };
        Self::check(raw, flags)
    }

    /// Checks the settings. A refusal holds the first problem, and the others
    /// in [`Problem::also`].
    pub fn check(raw: RawConfig, flags: Overrides) -> Result<Self, Problem> {
        let mut found = Vec::new();
        let about_placement = placement::Raw {
            overcommit: raw.overcommit,
            taints: raw.taints,
            storage: raw.storage,
            networks: raw.networks,
            images: raw.images,
        };
        let config = Self {
            name: name(flags.name.or(raw.name), &mut found),
            state_dir: state_dir(flags.state_dir.or(raw.state_dir), &mut found),
            run_dir: run_dir(flags.run_dir.or(raw.run_dir), &mut found),
            listen: listen(flags.listen.or(raw.listen), &mut found),
            address: address(flags.address.or(raw.address), &mut found),
            coordinator: coordinator(raw.coordinator, &mut found),
            labels: labels(raw.labels, &mut found),
            capacity: capacity(raw.capacity, &mut found),
            placement: placement::check(about_placement, &mut found),
            emulators: emulators(raw.emulators, &mut found),
            liveness: liveness(&raw.liveness, &mut found),
            watchdog: watchdog(raw.watchdog, &mut found),
            log: log(flags.log.or(raw.log), &mut found),
        };
        Problem::refuse(found).map(|()| config)
    }

    /// What the node's endpoints run by.
    pub fn transport(&self) -> TransportOptions {
        self.liveness.options()
    }
}

impl Liveness {
    fn options(self) -> TransportOptions {
        TransportOptions {
            keep_alive: self.keep_alive,
            idle_timeout: self.idle_timeout,
            software: concat!("godwit-node ", env!("CARGO_PKG_VERSION")).to_owned(),
            ..TransportOptions::default()
        }
    }
}

fn invalid(field: &str, value: impl Display, remedy: impl Into<String>) -> Problem {
    let value = value.to_string();
    Problem::new(
        codes::CONFIG_INVALID,
        format!("`{field}` cannot be `{value}`"),
    )
    .field(field)
    .value(value)
    .remedy(remedy)
}

fn name(text: Option<String>, found: &mut Vec<Problem>) -> Option<NodeId> {
    let text = text?;
    text.parse()
        .map_err(|problem: Problem| found.push(problem.field("name")))
        .ok()
}

fn directory(
    field: &str,
    path: Option<PathBuf>,
    default: &str,
    found: &mut Vec<Problem>,
) -> PathBuf {
    let path = path.unwrap_or_else(|| default.into());
    std::path::absolute(&path).unwrap_or_else(|_| {
        found.push(invalid(
            field,
            path.display(),
            "give the path of a directory",
        ));
        path
    })
}

fn state_dir(path: Option<PathBuf>, found: &mut Vec<Problem>) -> PathBuf {
    directory("state_dir", path, DEFAULT_STATE_DIR, found)
}

fn run_dir(path: Option<PathBuf>, found: &mut Vec<Problem>) -> PathBuf {
    let path = directory("run_dir", path, DEFAULT_RUN_DIR, found);
    let most = MAX_SOCKET_PATH - SOCKET_TAIL;
    if path.as_os_str().len() > most {
        let remedy = format!(
            "give a path of at most {most} bytes: unix sockets below it are limited to {MAX_SOCKET_PATH}"
        );
        found.push(invalid("run_dir", path.display(), remedy));
    }
    path
}

fn watchdog(text: Option<String>, found: &mut Vec<Problem>) -> Option<PathBuf> {
    let text = text.filter(|text| text != "off")?;
    if !text.starts_with("/dev/") {
        let remedy = "give the path of a watchdog's device, such as /dev/watchdog0, or \"off\"";
        found.push(invalid("watchdog", &text, remedy));
    }
    Some(text.into())
}

fn listen(text: Option<String>, found: &mut Vec<Problem>) -> SocketAddr {
    let text = text.unwrap_or_else(|| DEFAULT_LISTEN.into());
    text.parse().unwrap_or_else(|_| {
        let remedy = "give an IP address of this host and a UDP port, such as 0.0.0.0:7441 or [::]:7441; port 0 takes a free one";
        found.push(invalid("listen", text, remedy));
        SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT))
    })
}

fn address(text: Option<String>, found: &mut Vec<Problem>) -> Option<HostPort> {
    HostPort::check("address", &text?)
        .map_err(|problem| found.push(problem))
        .ok()
}

fn coordinator(texts: Option<Vec<String>>, found: &mut Vec<Problem>) -> Vec<HostPort> {
    let Some(texts) = texts else {
        return Vec::new();
    };
    if texts.is_empty() {
        let remedy = "name at least one address, or leave the setting out to use those of the join";
        found.push(invalid("coordinator", "[]", remedy));
    }
    texts
        .iter()
        .enumerate()
        .filter_map(|(index, text)| {
            HostPort::check(&format!("coordinator[{index}]"), text)
                .map_err(|problem| found.push(problem))
                .ok()
        })
        .collect()
}

fn labels(labels: BTreeMap<String, String>, found: &mut Vec<Problem>) -> BTreeMap<String, String> {
    if labels.len() > MAX_LABELS {
        let remedy = format!("give at most {MAX_LABELS}");
        found.push(invalid("labels", labels.len(), remedy));
    }
    for (key, value) in &labels {
        if !label_key(key) {
            let remedy = "a label's key is 1 to 128 letters, digits, `-`, `_`, `.` and `/`";
            found.push(invalid("labels", key, remedy));
        }
        if !label_value(value) {
            let remedy = format!("give at most {MAX_LABEL_VALUE} printable bytes");
            found.push(invalid(&format!("labels.{key}"), value, remedy));
        }
    }
    labels
}

fn capacity(raw: RawCapacity, found: &mut Vec<Problem>) -> CapacityConfig {
    if let Some(vcpus @ (0 | 65_537..)) = raw.vcpus {
        found.push(invalid("capacity.vcpus", vcpus, "give 1 to 65536 vCPUs"));
    }
    CapacityConfig {
        vcpus: raw.vcpus,
        memory: raw.memory.and_then(|value| memory(&value, found)),
    }
}

fn memory(value: &toml::Value, found: &mut Vec<Problem>) -> Option<MiB> {
    let size = match value {
        toml::Value::Integer(number) => u64::try_from(*number).ok().map(MiB),
        toml::Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let size = size.filter(|size| *size > MiB::ZERO);
    if size.is_none() {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        let remedy = "give a whole number of MiB, or text such as \"48GiB\"";
        found.push(invalid("capacity.memory", value, remedy));
    }
    size
}

fn emulators(
    emulators: BTreeMap<Architecture, PathBuf>,
    found: &mut Vec<Problem>,
) -> BTreeMap<Architecture, PathBuf> {
    for (architecture, path) in &emulators {
        if !path.is_absolute() {
            let remedy = "give the absolute path of a QEMU system emulator";
            let field = format!("emulators.{architecture}");
            found.push(invalid(&field, path.display(), remedy));
        }
    }
    emulators
}

fn liveness(raw: &RawLiveness, found: &mut Vec<Problem>) -> Liveness {
    let default = TransportOptions::default();
    let or = |given: Option<u64>, default| given.map_or(default, Duration::from_millis);
    let liveness = Liveness {
        keep_alive: or(raw.keep_alive_ms, default.keep_alive),
        idle_timeout: or(raw.idle_timeout_ms, default.idle_timeout),
    };
    if let Err(error) = liveness.options().check() {
        let (keep_alive, idle) = (liveness.keep_alive, liveness.idle_timeout);
        found.push(
            Problem::new(codes::CONFIG_INVALID, error.to_string())
                .field("liveness")
                .value(format!(
                    "keep_alive_ms = {}, idle_timeout_ms = {}",
                    keep_alive.as_millis(),
                    idle.as_millis()
                ))
                .remedy("leave both out for the defaults: a keep-alive of 200 ms and a timeout of 600 ms"),
        );
    }
    liveness
}

fn log(text: Option<String>, found: &mut Vec<Problem>) -> String {
    let text = text.unwrap_or_else(|| DEFAULT_LOG.into());
    if let Err(problem) = crate::logging::parse_filter(&text) {
        found.push(problem);
    }
    text
}
