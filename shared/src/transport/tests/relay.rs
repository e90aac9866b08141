//! A UDP relay between two endpoints that can be cut, or lead elsewhere.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio_util::task::AbortOnDropHandle;

/// Forwards between whoever sends to it and its target, until it is cut. Both
/// sides keep their sockets, so no ICMP error gives the cut away.
pub(super) struct Relay {
    address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    pub(super) async fn to(target: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = front.local_addr().unwrap();
        let target = Arc::new(Mutex::new(Some(target)));
        let task = tokio::spawn(forward(front, back, Arc::clone(&target)));
        Self {
            address,
            target,
            _task: AbortOnDropHandle::new(task),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on every datagram is lost, in both directions.
    pub(super) fn cut(&self) {
        *self.target.lock().unwrap() = None;
    }

    /// From now on another endpoint gets what the old one did.
    pub(super) fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = Some(target);
    }
}

async fn forward(front: UdpSocket, back: UdpSocket, target: Arc<Mutex<Option<SocketAddr>>>) {
    let (mut there, mut here) = (vec![0; 65_536], vec![0; 65_536]);
    let mut client = None;
    loop {
        tokio::select! {
            Ok((length, from)) = front.recv_from(&mut there) => {
                client = Some(from);
                let target = *target.lock().unwrap();
                if let Some(target) = target {
                    let _ = back.send_to(&there[..length], target).await;
                }
            }
            Ok((length, _)) = back.recv_from(&mut here) => {
                let whole = target.lock().unwrap().is_some();
                if let (Some(client), true) = (client, whole) {
                    let _ = front.send_to(&here[..length], client).await;
                }
            }
        }
    }
}
