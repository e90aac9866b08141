//! `[store]`: where the records live.

use std::net::IpAddr;
use std::path::PathBuf;

use godwit_shared::model::{Millis, Problem};
use serde::Deserialize;

use super::invalid;
use crate::store::Room;

/// How long a leader stays one without a word: in this time and a little more
/// another one takes over.
const LEASE_MS: u64 = 3_000;

/// Where the records live.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StoreSettings {
    /// In a file of the state directory.
    #[default]
    Embedded,
    /// In etcd.
    Etcd(EtcdSettings),
}

/// How etcd is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdSettings {
    /// URLs of its members.
    pub endpoints: Vec<String>,
    /// What every key begins with; other clusters and programs have others.
    pub prefix: String,
    /// Certificates; none without TLS.
    pub tls: Option<EtcdTls>,
    /// The largest transaction that etcd takes.
    pub room: Room,
    /// How long a leader that is not heard of stays one.
    pub lease: Millis,
}

/// The certificates between coordinator and etcd, as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// The CA of etcd's certificates.
    pub ca: PathBuf,
    /// The coordinator's certificate and its key, if etcd asks for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The section as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStore {
    kind: Option<String>,
    endpoints: Option<Vec<String>>,
    prefix: Option<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    max_request_bytes: Option<usize>,
    lease_ms: Option<u64>,
}

pub(super) fn store(raw: RawStore, cluster: &str, found: &mut Vec<Problem>) -> StoreSettings {
    match raw.kind.as_deref() {
        None | Some("redb") => {
            found.extend(raw.first_of_etcd().map(|field| {
                let remedy = "leave it out, or set `kind = \"etcd\"`";
                invalid(&format!("store.{field}"), "set", remedy)
            }));
            StoreSettings::Embedded
        }
        Some("etcd") => StoreSettings::Etcd(etcd(raw, cluster, found)),
        Some(other) => {
            let remedy = "give \"redb\" (a file of this host) or \"etcd\"";
            found.push(invalid("store.kind", other, remedy));
            StoreSettings::Embedded
        }
    }
}

impl RawStore {
    /// A setting that only etcd has.
    fn first_of_etcd(&self) -> Option<&'static str> {
        let given = [
            ("endpoints", self.endpoints.is_some()),
            ("prefix", self.prefix.is_some()),
            ("ca", self.ca.is_some()),
            ("cert", self.cert.is_some()),
            ("key", self.key.is_some()),
            ("max_request_bytes", self.max_request_bytes.is_some()),
            ("lease_ms", self.lease_ms.is_some()),
        ];
        let given = given.into_iter().find(|(_, given)| *given);
        given.map(|(field, _)| field)
    }
}

fn etcd(raw: RawStore, cluster: &str, found: &mut Vec<Problem>) -> EtcdSettings {
    let endpoints = raw.endpoints.unwrap_or_default();
    if endpoints.is_empty() {
        let remedy = "name etcd's members: [\"https://etcd-1.example.org:2379\"]";
        found.push(invalid("store.endpoints", "[]", remedy));
    }
    for endpoint in &endpoints {
        found.extend(endpoint_problem(endpoint, raw.ca.is_some()));
    }
    let client = match (raw.cert, raw.key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (cert, _) => {
            let missing = if cert.is_some() {
                "store.key"
            } else {
                "store.cert"
            };
            found.push(invalid(missing, "", "give both `cert` and `key`, or none"));
            None
        }
    };
    if client.is_some() && raw.ca.is_none() {
        let remedy = "name the CA of etcd's certificates";
        found.push(invalid("store.ca", "", remedy));
    }
    EtcdSettings {
        endpoints,
        prefix: prefix(raw.prefix, cluster, found),
        tls: raw.ca.map(|ca| EtcdTls { ca, client }),
        room: room(raw.max_request_bytes, found),
        lease: lease(raw.lease_ms, found),
    }
}

/// Without TLS whoever is on the way may read and write all: only over the loopback.
fn endpoint_problem(endpoint: &str, tls: bool) -> Option<Problem> {
    let refuse = |remedy| Some(invalid("store.endpoints", endpoint, remedy));
    let form = "give URLs with a port: https://etcd-1.example.org:2379";
    let Some((scheme, place)) = endpoint.split_once("://") else {
        return refuse(form);
    };
    let Some((host, port)) = place.rsplit_once(':') else {
        return refuse(form);
    };
    if host.is_empty() || port.parse::<u16>().is_err() {
        return refuse(form);
    }
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let local = host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback());
    match scheme {
        "https" if tls => None,
        "https" => refuse("set `ca` to the CA of etcd's certificates"),
        "http" if tls => refuse("with `ca`, give https:// URLs"),
        "http" if local => None,
        "http" => refuse("use https:// and `ca`; http:// is for an etcd on the same host"),
        _ => refuse(form),
    }
}

fn prefix(text: Option<String>, cluster: &str, found: &mut Vec<Problem>) -> String {
    let prefix = text.unwrap_or_else(|| format!("godwit/{cluster}/"));
    let plain = prefix.bytes().all(|byte| byte.is_ascii_graphic());
    if !plain || prefix.len() < 2 || !prefix.ends_with('/') {
        let remedy = "give printable ASCII that ends in `/`: godwit/berlin/";
        found.push(invalid("store.prefix", &prefix, remedy));
    }
    prefix
}

fn room(bytes: Option<usize>, found: &mut Vec<Problem>) -> Room {
    let bytes = bytes.unwrap_or(Room::ETCD.bytes);
    if bytes < Room::ETCD.bytes {
        let remedy =
            "give what etcd was started with (--max-request-bytes), and no less than its default";
        found.push(invalid("store.max_request_bytes", bytes, remedy));
    }
    Room {
        bytes,
        ..Room::ETCD
    }
}

/// etcd counts in seconds, and grants two at least.
fn lease(ms: Option<u64>, found: &mut Vec<Problem>) -> Millis {
    let ms = ms.unwrap_or(LEASE_MS);
    if !(2_000..=60_000).contains(&ms) || !ms.is_multiple_of(1000) {
        let remedy =
            "give whole seconds from 2000 to 60000: less takes a busy leader for a dead one";
        found.push(invalid("store.lease_ms", ms, remedy));
    }
    Millis(ms)
}
