//! A node with two addresses: the path in use goes down, and the connection goes
//! on over the other one (QUIC connection migration, RFC 9000 9).
//!
//! Two network namespaces are joined by two veth pairs; in each lives this test
//! binary again. The accepting side has one address, reached over either link;
//! the connecting side has one on each, and its socket is bound to none.
//! Making namespaces takes root.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use bytes::Bytes;

use super::process::say;
use super::*;

const ROLE: &str = "GODWIT_PATHS_CHILD";
const IDENTITY: &str = "GODWIT_PATHS_IDENTITY";
const LISTENER: &str = "10.213.9.1:7441";
const CHUNK: usize = 16 << 10;
/// Between two chunks.
const PACE: Duration = Duration::from_millis(2);
/// More than the idle timeout: nothing may arrive for so long at most.
const GAP: Duration = Duration::from_millis(600);

/// Not a test: what the other processes do. Without its environment, nothing.
#[test]
fn child_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let runtime = TransportRuntime::start(1).unwrap();
    let identity = Identity::load(Path::new(&std::env::var(IDENTITY).unwrap())).unwrap();
    let arbiter = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let options = TransportOptions::default();
    arbiter.block_on(async {
        if role == "listen" {
            let address = "0.0.0.0:7441".parse().unwrap();
            let endpoint = Endpoint::bind(&runtime, address, &identity, options).unwrap();
            say("listening");
            receive(within(endpoint.accept()).await.unwrap()).await;
        } else {
            let endpoint = Endpoint::client(&runtime, &identity, options).unwrap();
            let expected = PeerIdentity::Node {
                node: "listen".parse().unwrap(),
                incarnation: 1,
            };
            let address = LISTENER.parse().unwrap();
            let connection = within(endpoint.connect(address, &expected)).await.unwrap();
            send(connection).await;
        }
    });
}

/// Says of every chunk from where it came.
async fn receive(connection: Connection) {
    let (_, _sender, receiver) = within(connection.accept()).await.unwrap();
    let mut receiver = receiver.into_bytes();
    loop {
        match receiver.read_chunk(CHUNK).await {
            Ok(Some(_)) => say(&format!("from {}", connection.remote_address().ip())),
            other => return say(&format!("ended {other:?}")),
        }
    }
}

async fn send(connection: Connection) {
    let (sender, _receiver) = connection.open(StreamKind::Bulk).await.unwrap();
    let mut sender = sender.into_bytes();
    let mut pace = tokio::time::interval(PACE);
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        pace.tick().await;
        if let Err(error) = sender.write_chunk(Bytes::from(vec![7; CHUNK])).await {
            return say(&format!("ended {error:?}"));
        }
    }
}

/// Runs `ip`; namespaces need root.
fn ip(arguments: &str) {
    let ran = Command::new("ip").args(arguments.split(' ')).output();
    let ran = ran.expect("ip (package iproute2) is needed");
    let words = String::from_utf8_lossy(&ran.stderr);
    assert!(
        ran.status.success(),
        "`ip {arguments}`: {words} (this test makes network namespaces: run it as root)"
    );
}

/// Two namespaces and two links, removed when it is dropped.
struct Links {
    near: String,
    far: String,
}

impl Links {
    fn new() -> Self {
        let id = std::process::id();
        let links = Self {
            near: format!("gw-{id}n"),
            far: format!("gw-{id}f"),
        };
        let (near, far) = (&links.near, &links.far);
        ip(&format!("netns add {near}"));
        ip(&format!("netns add {far}"));
        ip(&format!("-n {far} link set lo up"));
        ip(&format!("-n {far} addr add 10.213.9.1/32 dev lo"));
        for link in [1, 2] {
            ip(&format!(
                "-n {near} link add v{link} type veth peer name v{link} netns {far}"
            ));
            ip(&format!(
                "-n {near} addr add 10.213.{link}.2/24 dev v{link}"
            ));
            ip(&format!("-n {far} addr add 10.213.{link}.1/24 dev v{link}"));
            ip(&format!("-n {far} link set v{link} up"));
            ip(&format!("-n {near} link set v{link} up"));
            ip(&format!(
                "-n {near} route add 10.213.9.1/32 via 10.213.{link}.1 metric {link}"
            ));
        }
        links
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for name in [&self.near, &self.far] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// This binary in a namespace; killed at the latest when it is dropped.
struct Inside {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Inside {
    fn start(namespace: &str, role: &str, identity: &Path) -> Self {
        let mut child = Command::new("ip")
            .args(["netns", "exec", namespace])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "transport::tests::paths::child_process"])
            .arg("--nocapture")
            .env(ROLE, role)
            .env(IDENTITY, identity)
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if told.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    /// Waits for a line, and returns when it came and the longest silence before.
    fn hears(&self, wanted: &str) -> Duration {
        let end = Instant::now() + PATIENCE;
        let (mut last, mut silence) = (Instant::now(), Duration::ZERO);
        while Instant::now() < end {
            let line = self.lines.recv_timeout(PATIENCE).expect("a line");
            assert!(!line.starts_with("ended"), "{line}");
            if line == wanted || line.starts_with("from") {
                silence = silence.max(last.elapsed());
                last = Instant::now();
            }
            if line == wanted {
                return silence;
            }
        }
        panic!("{wanted} did not come");
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_connection_outlives_the_link_that_it_used() {
    let cluster = Cluster::new();
    let dir = tempfile::tempdir().unwrap();
    let identity = |role: &str| {
        let path = dir.path().join(format!("{role}.pem"));
        cluster.node(role).save(&path).unwrap();
        path
    };
    let links = Links::new();
    let far = Inside::start(&links.far, "listen", &identity("listen"));
    far.hears("listening");
    let _near = Inside::start(&links.near, "dial", &identity("dial"));
    far.hears("from 10.213.1.2");
    ip(&format!("-n {} link set v1 down", links.near));
    let silence = far.hears("from 10.213.2.2");
    assert!(silence < GAP, "{silence:?} without a byte");
    for _ in 0..100 {
        far.hears("from 10.213.2.2");
    }
}
