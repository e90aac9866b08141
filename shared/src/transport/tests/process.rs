//! The peer's process is killed. The other process is this test binary again,
//! told by its environment what to be.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use futures_util::FutureExt as _;

use super::*;

const ROLE: &str = "GODWIT_TRANSPORT_CHILD";
const IDENTITY: &str = "GODWIT_TRANSPORT_IDENTITY";
const PEER: &str = "GODWIT_TRANSPORT_PEER";
/// How often a migration probes.
const PROBE: Duration = Duration::from_millis(50);
const ROUNDS: u64 = 5;

/// Not a test: what the other process does. Without its environment, nothing.
#[test]
fn child_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let runtime = TransportRuntime::start(1).unwrap();
    let identity = Identity::load(Path::new(&std::env::var(IDENTITY).unwrap())).unwrap();
    let options = TransportOptions::default();
    let arbiter = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    arbiter.block_on(async {
        let (_endpoint, connection) = if role == "listen" {
            let endpoint = Endpoint::bind(&runtime, loopback(), &identity, options).unwrap();
            say(&format!("listening {}", endpoint.local_addr().unwrap()));
            let connection = within(endpoint.accept()).await.unwrap();
            (endpoint, connection)
        } else {
            let endpoint = Endpoint::client(&runtime, &identity, options).unwrap();
            let address = std::env::var(PEER).unwrap().parse().unwrap();
            let expected = PeerIdentity::Node {
                node: "here".parse().unwrap(),
                incarnation: 1,
            };
            let connection = within(endpoint.connect(address, &expected)).await.unwrap();
            (endpoint, connection)
        };
        // Until it is killed; or its parent is.
        connection.closed().await;
    });
}

pub(super) fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "\n{line}").unwrap();
    out.flush().unwrap();
}

/// The other process; killed at the latest when it is dropped.
struct Other(Child);

impl Other {
    fn start(role: &str, identity: &Path, peer: Option<SocketAddr>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "transport::tests::process::child_process",
                "--nocapture",
            ])
            .env(ROLE, role)
            .env(IDENTITY, identity)
            .stdout(Stdio::piped())
            .stdin(Stdio::null());
        if let Some(peer) = peer {
            command.env(PEER, peer.to_string());
        }
        Self(command.spawn().unwrap())
    }

    fn address(&mut self) -> SocketAddr {
        let out = BufReader::new(self.0.stdout.take().unwrap());
        out.lines()
            .find_map(|line| {
                line.unwrap()
                    .strip_prefix("listening ")
                    .map(|a| a.parse().unwrap())
            })
            .expect("it says where it listens")
    }

    /// Kills it without a farewell, and tells when.
    fn kill(&mut self) -> Instant {
        let now = Instant::now();
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        now
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cluster with an identity on disk for the other process.
struct Stage {
    cluster: Cluster,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self {
            cluster: Cluster::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        stage.cluster.node("there").save(&stage.identity()).unwrap();
        stage
    }

    fn identity(&self) -> std::path::PathBuf {
        self.dir.path().join("there.pem")
    }

    /// This process connects to the other one.
    async fn dial(&self) -> (Other, Connection, Endpoint) {
        let mut other = Other::start("listen", &self.identity(), None);
        let address = other.address();
        let here = self.cluster.client(&self.cluster.node("here"));
        let expected = self.cluster.node("there").peer().clone();
        let connection = within(here.connect(address, &expected)).await.unwrap();
        (other, connection, here)
    }

    /// The other process connects to this one.
    async fn welcome(&self, here: &Endpoint) -> (Other, Connection) {
        let address = here.local_addr().unwrap();
        let other = Other::start("dial", &self.identity(), Some(address));
        let connection = within(here.accept()).await.unwrap();
        (other, connection)
    }
}

async fn kill_and_wait(mut other: Other, connection: &Connection, round: u64) -> Duration {
    // It was calm for longer than a timeout; at various phases of the probes.
    let quiet = Duration::from_millis(1000 + 11 * round);
    let calm = tokio::time::timeout(quiet, connection.closed()).await;
    assert!(calm.is_err(), "{calm:?}");
    let killed = other.kill();
    let end = within(connection.closed()).await;
    let took = killed.elapsed();
    assert_eq!(end, Disconnect::PeerGone);
    took
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}

#[tokio::test]
async fn a_killed_acceptor_is_noticed_at_once() {
    let stage = Stage::new();
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        let (other, connection, _here) = stage.dial().await;
        let _probing = connection.probe_every(PROBE);
        all.push(kill_and_wait(other, &connection, round).await);
    }
    assert!(median(all.clone()) < Duration::from_millis(100), "{all:?}");
}

#[tokio::test]
async fn a_killed_initiator_is_noticed_at_once() {
    let stage = Stage::new();
    // One unconnected socket that serves many peers.
    let here = stage.cluster.listen(&stage.cluster.node("here"));
    let bystander = stage.cluster.client(&stage.cluster.node("bystander"));
    let (address, expected) = (
        here.local_addr().unwrap(),
        stage.cluster.node("here").peer().clone(),
    );
    let (near, far) =
        within(async { tokio::join!(bystander.connect(address, &expected), here.accept()) }).await;
    let (near, far) = (near.unwrap(), far.unwrap());
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        let (other, connection) = stage.welcome(&here).await;
        let _probing = connection.probe_every(PROBE);
        all.push(kill_and_wait(other, &connection, round).await);
    }
    assert!(median(all.clone()) < Duration::from_millis(100), "{all:?}");
    assert!(
        near.closed().now_or_never().is_none(),
        "others are not concerned"
    );
    assert!(
        far.closed().now_or_never().is_none(),
        "others are not concerned"
    );
    within(near.open(StreamKind::Control)).await.unwrap();
    within(far.accept()).await.unwrap();
}

#[tokio::test]
async fn without_probes_the_next_keep_alive_notices() {
    let stage = Stage::new();
    let options = &stage.cluster.options;
    let (other, connection, _here) = stage.dial().await;
    let took = kill_and_wait(other, &connection, 0).await;
    assert!(
        took < options.keep_alive + Duration::from_millis(150),
        "{took:?}"
    );
}
