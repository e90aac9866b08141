//! Who has to be told when an address stops answering.
//!
//! A host answers a datagram to a UDP port that no process has open with ICMP
//! "port unreachable". When the peer's daemon dies, the kernel closes its
//! socket, so the next datagram to it (data, an acknowledgement, a keep-alive,
//! a probe) brings that answer back within a round trip. The kernel queues it
//! on our socket ([`super::socket`]) with the address it was sent to and the
//! begin of the datagram that caused it.
//!
//! ICMP carries no proof of its origin (RFC 8085 5.2, RFC 5927), so an error
//! counts only when
//! * it says that the port is closed, and the host with that port says so;
//! * it quotes a datagram with a connection id that we did send to that
//!   address: 64 random bits, unknown to whoever does not see the path.
//!
//! Who sees the path could as well drop every packet. Everything else is left
//! to the idle timeout. `docs/adr/0005` has the reasoning.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::ids::destination_id;

/// How many connection ids are remembered for an address. A connection uses
/// one at a time; more are in use when several connections go to one address.
const REMEMBERED: usize = 8;

/// The addresses that connections of one socket go to.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<HashMap<SocketAddr, Watched>>);

#[derive(Debug, Default)]
struct Watched {
    sent: [Option<u64>; REMEMBERED],
    next: usize,
    /// One for each connection or attempt; the number tells them apart.
    watches: Vec<(u64, CancellationToken)>,
    numbers: u64,
}

/// A "port unreachable" as the socket's error queue has it.
#[derive(Debug)]
pub(super) struct PortUnreachable<'a> {
    /// Where the datagram was sent.
    pub(super) destination: SocketAddr,
    /// The begin of its payload.
    pub(super) quoted: &'a [u8],
}

/// While it lives, an address is watched.
#[derive(Debug)]
pub(super) struct Watch {
    peers: Arc<Peers>,
    address: SocketAddr,
    number: u64,
    gone: CancellationToken,
}

/// One address has one form, whether the socket is of IPv4 or of both.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Peers {
    /// Watches an address from now on.
    pub(super) fn watch(self: &Arc<Self>, address: SocketAddr) -> Watch {
        let address = canonical(address);
        let gone = CancellationToken::new();
        let mut all = self.lock();
        let watched = all.entry(address).or_default();
        watched.numbers += 1;
        let number = watched.numbers;
        watched.watches.push((number, gone.clone()));
        Watch {
            peers: Arc::clone(self),
            address,
            number,
            gone,
        }
    }

    /// Notes a datagram before it goes out.
    pub(super) fn sending(&self, destination: SocketAddr, datagram: &[u8]) {
        let Some(id) = destination_id(datagram) else {
            return;
        };
        if let Some(watched) = self.lock().get_mut(&canonical(destination)) {
            watched.remember(id);
        }
    }

    /// Takes a "port unreachable" in; wakes the watches of its address when it
    /// can be believed.
    pub(super) fn unreachable(&self, error: &PortUnreachable<'_>) {
        let address = canonical(error.destination);
        let all = self.lock();
        let Some(watched) = all.get(&address) else {
            return;
        };
        if destination_id(error.quoted).is_some_and(|id| watched.sent.contains(&Some(id))) {
            tracing::debug!(peer = %address, "the peer's port is closed");
            watched.watches.iter().for_each(|(_, gone)| gone.cancel());
        } else {
            tracing::debug!(peer = %address, "an ICMP error quotes nothing that was sent; ignored");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Watched>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    fn remember(&mut self, id: u64) {
        if !self.sent.contains(&Some(id)) {
            self.sent[self.next] = Some(id);
            self.next = (self.next + 1) % REMEMBERED;
        }
    }
}

impl Watch {
    /// The address, in its canonical form.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the port at the address is known to be closed.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Watches another address from now on.
    pub(super) fn follow(&mut self, address: SocketAddr) {
        *self = self.peers.watch(address);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut all = self.peers.lock();
        if let Some(watched) = all.get_mut(&self.address) {
            watched.watches.retain(|(number, _)| *number != self.number);
            if watched.watches.is_empty() {
                all.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use super::*;

    const PACKET: [u8; 12] = [0x41, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0];
    const OTHER: [u8; 12] = [0x41, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0];

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn told(watch: &Watch) -> bool {
        watch.gone.is_cancelled()
    }

    #[test]
    fn only_an_error_about_a_sent_datagram_counts() {
        let peers = Arc::new(Peers::default());
        let there = address("192.0.2.1:7400");
        let watch = peers.watch(there);
        peers.unreachable(&PortUnreachable {
            destination: there,
            quoted: &PACKET,
        });
        assert!(!told(&watch), "nothing was sent yet");
        peers.sending(there, &PACKET);
        peers.unreachable(&PortUnreachable {
            destination: there,
            quoted: &OTHER,
        });
        assert!(!told(&watch), "a forged quote");
        peers.unreachable(&PortUnreachable {
            destination: there,
            quoted: &PACKET[..5],
        });
        assert!(!told(&watch), "too little quoted to tell");
        let elsewhere = address("192.0.2.1:7401");
        peers.unreachable(&PortUnreachable {
            destination: elsewhere,
            quoted: &PACKET,
        });
        assert!(!told(&watch), "another port");
        peers.unreachable(&PortUnreachable {
            destination: there,
            quoted: &PACKET,
        });
        assert!(told(&watch));
    }

    #[test]
    fn mapped_and_plain_addresses_are_the_same() {
        let peers = Arc::new(Peers::default());
        let watch = peers.watch(address("[::ffff:192.0.2.1]:7400"));
        peers.sending(address("192.0.2.1:7400"), &PACKET);
        let destination = address("[::ffff:192.0.2.1]:7400");
        peers.unreachable(&PortUnreachable {
            destination,
            quoted: &PACKET,
        });
        assert!(told(&watch));
    }

    #[test]
    fn the_last_watch_takes_the_address_with_it() {
        let peers = Arc::new(Peers::default());
        let there = address("192.0.2.1:7400");
        let mut first = peers.watch(there);
        let second = peers.watch(there);
        drop(second);
        assert_eq!(peers.lock().len(), 1);
        first.follow(address("192.0.2.2:7400"));
        assert_eq!(peers.lock().len(), 1);
        assert_eq!(first.address(), address("192.0.2.2:7400"));
        drop(first);
        assert!(peers.lock().is_empty());
    }

    #[test]
    fn many_connections_to_one_address_are_remembered() {
        let peers = Arc::new(Peers::default());
        let there = address("192.0.2.1:7400");
        let watch = peers.watch(there);
        for number in 0..REMEMBERED as u8 {
            peers.sending(there, &[0x41, number, 0, 0, 0, 0, 0, 0, 0]);
        }
        let quoted = [0x41, 0, 0, 0, 0, 0, 0, 0, 0];
        peers.unreachable(&PortUnreachable {
            destination: there,
            quoted: &quoted,
        });
        assert!(told(&watch));
    }
}
