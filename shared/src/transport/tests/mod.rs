//! The transport over real sockets on the loopback interface.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Numbers in tests are small, and their names short.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::similar_names
)]

mod handshake;
mod liveness;
mod paths;
mod process;
mod relay;
mod streams;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::pki::{
    COORDINATOR_VALIDITY, ClusterCa, Identity, KeyAndCsr, NODE_VALIDITY, NodeIdentity, PeerIdentity,
};

/// Nothing in these tests takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A cluster of processes that all live in this one.
struct Cluster {
    ca: ClusterCa,
    runtime: TransportRuntime,
    options: TransportOptions,
}

impl Cluster {
    fn new() -> Self {
        Self {
            ca: ClusterCa::create().unwrap(),
            runtime: TransportRuntime::start(2).unwrap(),
            options: TransportOptions::default(),
        }
    }

    fn node(&self, name: &str) -> Identity {
        let identity = NodeIdentity {
            node: name.parse().unwrap(),
            incarnation: 1,
        };
        let request = KeyAndCsr::generate(&identity.node).unwrap();
        let signed = self
            .ca
            .sign_node_csr(request.csr_pem(), &identity, NODE_VALIDITY)
            .unwrap();
        request
            .into_identity(&signed.certificate_pem, self.ca.certificate_pem())
            .unwrap()
    }

    fn coordinator(&self) -> Identity {
        self.ca
            .issue_coordinator(&[], COORDINATOR_VALIDITY)
            .unwrap()
    }

    fn listen(&self, identity: &Identity) -> Endpoint {
        Endpoint::bind(&self.runtime, loopback(), identity, self.options.clone()).unwrap()
    }

    fn client(&self, identity: &Identity) -> Endpoint {
        Endpoint::client(&self.runtime, identity, self.options.clone()).unwrap()
    }

    /// Two nodes, `a` connected to `b`, each with its end.
    async fn pair(&self) -> Pair {
        let b = self.listen(&self.node("b"));
        self.pair_through(&b, b.local_addr().unwrap()).await
    }

    /// The same, with a way to `b` that leads through `address`.
    async fn pair_through(&self, b: &Endpoint, address: SocketAddr) -> Pair {
        let a = self.client(&self.node("a"));
        let expected = self.node("b").peer().clone();
        let (near, far) =
            within(async { tokio::join!(a.connect(address, &expected), b.accept()) }).await;
        Pair {
            near: near.unwrap(),
            far: far.unwrap(),
            _dialer: a,
            door: b.clone(),
        }
    }
}

struct Pair {
    /// The connecting side.
    near: Connection,
    /// The accepting side.
    far: Connection,
    _dialer: Endpoint,
    /// Where the accepting side listens.
    door: Endpoint,
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it hangs")
}
