//! The coordinator's settings: command-line flags over the file over the defaults.
//!
//! [`RawConfig`] is what the file says; [`Config::check`] turns it and the
//! [`Overrides`] of the command line into settings that are known to be right,
//! or into every problem at once. Nothing here asks the host or the network.

mod protection;
mod record;
#[cfg(test)]
mod tests;

mod store;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit_coordinator_logic::cluster::{MigrationLimits, ProtectionRules, RebalanceSettings};
use godwit_coordinator_logic::placement::{Profiles, Weights};
use godwit_shared::model::{NodeId, Problem, codes};
use godwit_shared::transport::TransportOptions;
use serde::Deserialize;

use crate::fence::FenceAgent;
use crate::record::RecordSettings;

pub use store::{EtcdSettings, EtcdTls, StoreSettings};

/// Where the daemon keeps what has to survive it.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/godwit/coordinator";
const DEFAULT_LISTEN: SocketAddr = address([0, 0, 0, 0], 7440);
const DEFAULT_API: SocketAddr = address([127, 0, 0, 1], 7443);
const DEFAULT_NAME: &str = "godwit";
/// The HTTP server tells of its threads at `info`.
const DEFAULT_LOG: &str = "info,actix_server=warn";
/// Weights are shares of a sum; more would only invite overflow.
const MAX_WEIGHT: u32 = 1000;

const fn address(ip: [u8; 4], port: u16) -> SocketAddr {
    let [a, b, c, d] = ip;
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, d)), port)
}

/// The coordinator's settings, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The cluster's name, for people.
    pub name: String,
    /// CA, store and credential.
    pub state_dir: PathBuf,
    /// Where the records live.
    pub store: StoreSettings,
    /// The UDP address for nodes; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The TCP address of the API; port 0 takes a free one.
    pub api: SocketAddr,
    /// Where nodes reach this coordinator; none means where it listens.
    pub advertise: Option<Advertise>,
    /// How long a connection is quiet before a keep-alive is sent.
    pub keep_alive: Duration,
    /// How long nothing may arrive before a node counts as lost.
    pub idle_timeout: Duration,
    /// What placement weighs.
    pub placement: Profiles,
    /// How many migrations may run at once.
    pub migrations: MigrationLimits,
    /// Whether, and how, the load is evened out.
    pub rebalance: RebalanceSettings,
    /// The nodes' leases, and what follows their ends.
    pub protection: ProtectionRules,
    /// How nodes are switched off.
    pub fence: BTreeMap<NodeId, FenceAgent>,
    /// Where what the cluster does is written down; nowhere while none.
    pub record: Option<RecordSettings>,
    /// The log filter, in the syntax of `tracing_subscriber::EnvFilter`.
    pub log: String,
}

/// Where nodes reach the coordinator: a host, and a port unless it is the one
/// that it listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertise {
    /// A DNS name, or an IP address without brackets.
    pub host: String,
    /// The port, where it differs.
    pub port: Option<u16>,
}

/// Settings from the command line.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--name`
    pub name: Option<String>,
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--api`
    pub api: Option<String>,
    /// `--advertise`
    pub advertise: Option<String>,
    /// `--log`
    pub log: Option<String>,
}

/// The file as it is written; see `config/coordinator.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    name: Option<String>,
    state_dir: Option<PathBuf>,
    listen: Option<String>,
    api: Option<String>,
    advertise: Option<String>,
    #[serde(default)]
    store: store::RawStore,
    #[serde(default)]
    liveness: RawLiveness,
    #[serde(default)]
    placement: Profiles,
    #[serde(default)]
    migrations: MigrationLimits,
    #[serde(default)]
    rebalance: RebalanceSettings,
    #[serde(default)]
    protection: ProtectionRules,
    #[serde(default)]
    fence: BTreeMap<String, protection::RawFence>,
    #[serde(default)]
    record: record::RawRecord,
    log: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLiveness {
    keep_alive_ms: Option<u64>,
    idle_timeout_ms: Option<u64>,
}

impl Config {
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
        let default = TransportOptions::default();
        let or = |given: Option<u64>, default| given.map_or(default, Duration::from_millis);
        let name = name(flags.name.or(raw.name), &mut found);
        let config = Self {
            store: store::store(raw.store, &name, &mut found),
            name,
            state_dir: state_dir(flags.state_dir.or(raw.state_dir), &mut found),
            listen: socket(
                "listen",
                flags.listen.or(raw.listen),
                DEFAULT_LISTEN,
                &mut found,
            ),
            api: socket("api", flags.api.or(raw.api), DEFAULT_API, &mut found),
            advertise: advertise(flags.advertise.or(raw.advertise), &mut found),
            keep_alive: or(raw.liveness.keep_alive_ms, default.keep_alive),
            idle_timeout: or(raw.liveness.idle_timeout_ms, default.idle_timeout),
            placement: profiles(raw.placement, &mut found),
            migrations: migrations(raw.migrations, &mut found),
            rebalance: rebalance(raw.rebalance, &mut found),
            protection: protection::rules(raw.protection, &mut found),
            fence: protection::agents(raw.fence, &mut found),
            record: raw.record.check(&mut found),
            log: log(flags.log.or(raw.log), &mut found),
        };
        found.extend(config.liveness_problem());
        Problem::refuse(found).map(|()| config)
    }

    /// What the endpoint for nodes runs by.
    pub fn transport(&self) -> TransportOptions {
        TransportOptions {
            keep_alive: self.keep_alive,
            idle_timeout: self.idle_timeout,
            accept_join: true,
            software: concat!("godwit-coordinator ", env!("CARGO_PKG_VERSION")).to_owned(),
            ..TransportOptions::default()
        }
    }

    fn liveness_problem(&self) -> Option<Problem> {
        let error = self.transport().check().err()?;
        let (keep_alive, idle) = (self.keep_alive.as_millis(), self.idle_timeout.as_millis());
        let value = format!("keep_alive_ms = {keep_alive}, idle_timeout_ms = {idle}");
        let problem = Problem::new(codes::CONFIG_INVALID, error.to_string());
        Some(problem.field("liveness").value(value).remedy(
            "leave both out for the defaults: a keep-alive of 200 ms and a timeout of 600 ms",
        ))
    }
}

fn invalid(field: &str, value: impl std::fmt::Display, remedy: &str) -> Problem {
    let value = value.to_string();
    Problem::new(
        codes::CONFIG_INVALID,
        format!("`{field}` cannot be `{value}`"),
    )
    .field(field)
    .value(value)
    .remedy(remedy)
}

/// A cluster is named like a node: it may end up in DNS.
fn name(text: Option<String>, found: &mut Vec<Problem>) -> String {
    let text = text.unwrap_or_else(|| DEFAULT_NAME.into());
    if let Err(problem) = text.parse::<NodeId>() {
        let message = problem.message.replacen("node", "name", 1);
        found.push(Problem { message, ..problem }.field("name"));
    }
    text
}

fn state_dir(path: Option<PathBuf>, found: &mut Vec<Problem>) -> PathBuf {
    let path = path.unwrap_or_else(|| DEFAULT_STATE_DIR.into());
    std::path::absolute(&path).unwrap_or_else(|_| {
        found.push(invalid(
            "state_dir",
            path.display(),
            "give the path of a directory",
        ));
        path
    })
}

fn socket(
    field: &str,
    text: Option<String>,
    default: SocketAddr,
    found: &mut Vec<Problem>,
) -> SocketAddr {
    let Some(text) = text else { return default };
    text.parse().unwrap_or_else(|_| {
        let remedy = "give an IP address of this host and a port, such as 0.0.0.0:7440 or [::]:7440; port 0 takes a free one";
        found.push(invalid(field, text, remedy));
        default
    })
}

fn advertise(text: Option<String>, found: &mut Vec<Problem>) -> Option<Advertise> {
    let text = text?;
    let read = Advertise::read(&text);
    if read.is_none() {
        let remedy = "give a host name or an IP address, with a port if it differs from that of `listen`: control.example.org, 192.0.2.1:7440, [2001:db8::1]:7440";
        found.push(invalid("advertise", text, remedy));
    }
    read
}

impl Advertise {
    fn read(text: &str) -> Option<Self> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self {
                host: ip.to_string(),
                port: None,
            });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            let port = Some(address.port()).filter(|port| *port != 0)?;
            return Some(Self {
                host: address.ip().to_string(),
                port: Some(port),
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port != 0)?)),
            None => (text, None),
        };
        rustls_pki_types::DnsName::try_from(host).ok()?;
        Some(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// `host:port`; `listening` is the port that the coordinator has.
    pub fn address(&self, listening: u16) -> String {
        host_port(&self.host, self.port.unwrap_or(listening))
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub fn host_port(host: &str, port: u16) -> String {
    match host.parse() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

fn profiles(profiles: Profiles, found: &mut Vec<Problem>) -> Profiles {
    check_weights("placement", &profiles.default, found);
    for (name, weights) in &profiles.profiles {
        check_weights(&format!("placement.profiles.{name}"), weights, found);
    }
    profiles
}

fn check_weights(table: &str, weights: &Weights, found: &mut Vec<Problem>) {
    for (name, weight) in weights.named() {
        if weight > MAX_WEIGHT {
            let remedy = "give 0 (switches the scorer off) to 1000";
            found.push(invalid(&format!("{table}.{name}"), weight, remedy));
        }
    }
}

fn migrations(limits: MigrationLimits, found: &mut Vec<Problem>) -> MigrationLimits {
    let all = [
        ("per_node", limits.per_node),
        ("per_link", limits.per_link),
        ("cluster", limits.cluster),
    ];
    for (name, limit) in all {
        if limit == 0 {
            let remedy = "give at least 1; cordon the nodes to keep VMs away from them";
            found.push(invalid(&format!("migrations.{name}"), limit, remedy));
        }
    }
    limits
}

fn rebalance(settings: RebalanceSettings, found: &mut Vec<Problem>) -> RebalanceSettings {
    let all = [
        ("interval_s", settings.interval_s, "give at least 1"),
        (
            "threshold_percent",
            settings.threshold_percent,
            "give at least 1: less would move VMs to and fro for nothing",
        ),
        (
            "max_moves",
            settings.max_moves,
            "give at least 1, or `mode = \"off\"`",
        ),
    ];
    for (name, value, remedy) in all {
        if value == 0 {
            found.push(invalid(&format!("rebalance.{name}"), value, remedy));
        }
    }
    settings
}

fn log(text: Option<String>, found: &mut Vec<Problem>) -> String {
    let text = text.unwrap_or_else(|| DEFAULT_LOG.into());
    found.extend(crate::logging::filter(&text).err());
    text
}
