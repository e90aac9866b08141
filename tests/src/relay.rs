//! A link between daemons that a test can break.
//!
//! A daemon advertises the relay's address instead of its own, so every
//! datagram that a peer sends to it, and every answer, passes through here.
//!
//! ```text
//!   peer A ---.                       .--- socket for A ---.
//!              >--- front (advertised)                      >--- the daemon
//!   peer B ---'                       '--- socket for B ---'
//! ```
//!
//! Each direction can be cut (datagrams vanish without a word, those under way
//! too, as on a broken path), delayed (order is kept), or made to lose a share of its datagrams by
//! a seeded sequence. A daemon whose process is gone answers a datagram with
//! "port unreachable"; the relay then closes its front socket, so that peers
//! hear the same from it, and opens it again with the next [`Relay::aim`].
//!
//! The relay has a thread of its own: a busy test does not become a slow link.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::sockopt;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Longest datagram there is.
const DATAGRAM: usize = 65_536;
/// Datagrams that may be on a delayed link at once; more are lost, as on a
/// real one.
const IN_FLIGHT: usize = 16_384;
/// Bytes that a socket may hold while the relay has no CPU.
const BUFFER: usize = 8 << 20;

/// A direction of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From peers to the daemon.
    Inward,
    /// From the daemon to peers.
    Outward,
}

/// What a direction does to datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fault {
    /// All of them vanish.
    pub cut: bool,
    /// They arrive this much later.
    pub delay: Duration,
    /// So many of a thousand vanish.
    pub loss_permille: u16,
}

impl Fault {
    /// Nothing passes.
    pub const CUT: Self = Self {
        cut: true,
        delay: Duration::ZERO,
        loss_permille: 0,
    };

    /// Everything passes, late.
    pub const fn delay(delay: Duration) -> Self {
        Self {
            cut: false,
            delay,
            loss_permille: 0,
        }
    }

    /// A share is lost.
    pub const fn loss(permille: u16) -> Self {
        Self {
            cut: false,
            delay: Duration::ZERO,
            loss_permille: permille,
        }
    }
}

/// The relay in front of one daemon.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    aim: watch::Sender<Option<SocketAddr>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    inward: Mutex<Lane>,
    outward: Mutex<Lane>,
}

/// One direction's setting, its dice and its count.
#[derive(Debug)]
struct Lane {
    fault: Fault,
    dice: u64,
    passed: u64,
    lost: u64,
}

impl Relay {
    /// A relay that listens and leads nowhere yet.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn start(seed: u64) -> Result<Self> {
        let front = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = front.local_addr()?;
        let shared = Arc::new(Shared {
            inward: Mutex::new(Lane::new(seed)),
            outward: Mutex::new(Lane::new(!seed)),
        });
        let (aim, aimed) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let lanes = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || runtime.block_on(run(front, aimed, lanes)))?;
        Ok(Self {
            address,
            shared,
            aim,
            thread: Some(thread),
        })
    }

    /// What the daemon advertises.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads to this daemon from now on; peers that were known are forgotten.
    pub fn aim(&self, daemon: SocketAddr) {
        self.aim.send_replace(Some(daemon));
    }

    /// Sets what a direction does.
    pub fn set(&self, direction: Direction, fault: Fault) {
        self.shared.lane(direction).fault = fault;
    }

    /// Sets what both directions do.
    pub fn set_both(&self, fault: Fault) {
        self.set(Direction::Inward, fault);
        self.set(Direction::Outward, fault);
    }

    /// Cuts both directions.
    pub fn cut(&self) {
        self.set_both(Fault::CUT);
    }

    /// A good link again.
    pub fn restore(&self) {
        self.set_both(Fault::default());
    }

    /// How many datagrams a direction passed on, and how many it lost.
    pub fn count(&self, direction: Direction) -> (u64, u64) {
        let lane = self.shared.lane(direction);
        (lane.passed, lane.lost)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Its end is the signal to the thread.
        self.aim = watch::channel(None).0;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lane(&self, direction: Direction) -> MutexGuard<'_, Lane> {
        let lane = match direction {
            Direction::Inward => &self.inward,
            Direction::Outward => &self.outward,
        };
        lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cut path loses what is under way on it as well.
    fn is_cut(&self, direction: Direction) -> bool {
        self.lane(direction).fault.cut
    }

    /// How long the next datagram takes; none when it vanishes.
    fn fate(&self, direction: Direction) -> Option<Duration> {
        self.lane(direction).fate()
    }
}

impl Lane {
    fn new(seed: u64) -> Self {
        Self {
            fault: Fault::default(),
            dice: seed,
            passed: 0,
            lost: 0,
        }
    }

    fn fate(&mut self) -> Option<Duration> {
        // The dice roll for every datagram, so that the sequence depends on
        // nothing but the seed and the number of the datagram.
        let rolled = splitmix(&mut self.dice) % 1000;
        if self.fault.cut || rolled < u64::from(self.fault.loss_permille) {
            self.lost += 1;
            return None;
        }
        self.passed += 1;
        Some(self.fault.delay)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, good enough for dice.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn bind(address: SocketAddr) -> Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address).context("the relay's socket")?;
    socket.set_nonblocking(true)?;
    // As much as the host allows: QUIC sends in bursts.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, BUFFER));
    let _ = sockopt::set_socket_send_buffer_size(&socket, BUFFER);
    Ok(socket)
}

async fn run(
    first: std::net::UdpSocket,
    mut aimed: watch::Receiver<Option<SocketAddr>>,
    shared: Arc<Shared>,
) {
    let Ok(address) = first.local_addr() else {
        return;
    };
    let mut first = Some(first);
    // One round for each aim: new sockets, no known peers.
    loop {
        let front = first.take().map_or_else(|| bind(address), Ok);
        let front = front.and_then(|socket| Ok(UdpSocket::from_std(socket)?));
        let daemon = *aimed.borrow_and_update();
        match (front, daemon) {
            (Ok(front), Some(daemon)) => {
                tokio::select! {
                    () = serve(front, daemon, &shared) => {}
                    changed = aimed.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        continue;
                    }
                }
            }
            (Ok(front), None) => {
                // Hold the address until there is somewhere to lead to.
                first = front.into_std().ok();
            }
            (Err(_), _) => {
                tokio::time::sleep(crate::wait::STEP).await;
                continue;
            }
        }
        if aimed.changed().await.is_err() {
            return;
        }
    }
}

/// Passes datagrams on until the daemon turns out to be gone.
async fn serve(front: UdpSocket, daemon: SocketAddr, shared: &Arc<Shared>) {
    let front = Arc::new(front);
    let mut backs: HashMap<SocketAddr, Lanes> = HashMap::new();
    let mut pumps = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        tokio::select! {
            received = front.recv_from(&mut buffer) => {
                // An error here is a peer that is gone: not ours to tell.
                let Ok((length, peer)) = received else { continue };
                let Some(fate) = shared.fate(Direction::Inward) else { continue };
                let lanes = match backs.entry(peer) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        match Lanes::open(&front, peer, daemon, shared, &mut pumps) {
                            Ok(lanes) => new.insert(lanes),
                            Err(_) => continue,
                        }
                    }
                };
                lanes.inward(&buffer[..length], fate);
            }
            Some(_) = pumps.join_next() => return,
        }
    }
}

/// The way between one peer and the daemon.
struct Lanes {
    back: Arc<UdpSocket>,
    late: mpsc::Sender<(Instant, Vec<u8>)>,
}

impl Lanes {
    fn open(
        front: &Arc<UdpSocket>,
        peer: SocketAddr,
        daemon: SocketAddr,
        shared: &Arc<Shared>,
        pumps: &mut JoinSet<()>,
    ) -> Result<Self> {
        let back = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        back.connect(daemon)?;
        let back = Arc::new(UdpSocket::from_std(back)?);
        let (late, mut inward) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
        let (to_daemon, arriving) = (Arc::clone(&back), Arc::clone(shared));
        let outward = pump_out(
            Arc::clone(&back),
            Arc::clone(front),
            peer,
            Arc::clone(shared),
        );
        pumps.spawn(async move {
            let inward = async {
                while let Some((due, bytes)) = inward.recv().await {
                    tokio::time::sleep_until(due).await;
                    if !arriving.is_cut(Direction::Inward) {
                        let _ = to_daemon.send(&bytes).await;
                    }
                }
                std::future::pending::<()>().await;
            };
            // Only the outward pump notices that the daemon is gone.
            tokio::select! { () = outward => {}, () = inward => {} }
        });
        Ok(Self { back, late })
    }

    fn inward(&self, bytes: &[u8], delay: Duration) {
        let straight = delay.is_zero() && self.late.capacity() == self.late.max_capacity();
        if straight && self.back.try_send(bytes).is_ok() {
            return;
        }
        let _ = self.late.try_send((Instant::now() + delay, bytes.to_vec()));
    }
}

/// Ends when the daemon's port is closed.
async fn pump_out(
    back: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    peer: SocketAddr,
    shared: Arc<Shared>,
) {
    let (late, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let read = async {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let length = match back.recv(&mut buffer).await {
                Ok(length) => length,
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => return,
                Err(_) => continue,
            };
            let Some(delay) = shared.fate(Direction::Outward) else {
                continue;
            };
            let _ = late.try_send((Instant::now() + delay, buffer[..length].to_vec()));
        }
    };
    let send = async {
        while let Some((at, bytes)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            if !shared.is_cut(Direction::Outward) {
                let _ = front.send_to(&bytes, peer).await;
            }
        }
    };
    tokio::select! { () = read => {}, () = send => {} }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    struct Ends {
        relay: Relay,
        peer: UdpSocket,
        daemon: UdpSocket,
    }

    async fn ends(seed: u64) -> Ends {
        let relay = Relay::start(seed).unwrap();
        let daemon = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        relay.aim(daemon.local_addr().unwrap());
        let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        peer.connect(relay.address()).await.unwrap();
        Ends {
            relay,
            peer,
            daemon,
        }
    }

    async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 2048];
        let (length, from) = tokio::time::timeout(SOON, socket.recv_from(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        (buffer[..length].to_vec(), from)
    }

    #[tokio::test]
    async fn datagrams_pass_both_ways() {
        let ends = ends(1).await;
        ends.peer.send(b"hello").await.unwrap();
        let (bytes, from) = receive(&ends.daemon).await;
        assert_eq!(bytes, b"hello");
        ends.daemon.send_to(b"and back", from).await.unwrap();
        assert_eq!(receive(&ends.peer).await.0, b"and back");
    }

    #[tokio::test]
    async fn a_cut_direction_swallows_and_the_other_goes_on() {
        let ends = ends(1).await;
        ends.peer.send(b"1").await.unwrap();
        let (_, from) = receive(&ends.daemon).await;
        ends.relay.set(Direction::Inward, Fault::CUT);
        ends.peer.send(b"2").await.unwrap();
        ends.daemon.send_to(b"out", from).await.unwrap();
        assert_eq!(receive(&ends.peer).await.0, b"out");
        crate::wait::until("the count of the lost one", SOON, || async {
            Ok((ends.relay.count(Direction::Inward).1 == 1).then_some(()))
        })
        .await
        .unwrap();
        ends.relay.restore();
        ends.peer.send(b"3").await.unwrap();
        assert_eq!(receive(&ends.daemon).await.0, b"3", "2 must not come late");
    }

    #[tokio::test]
    async fn delay_keeps_the_order() {
        let ends = ends(1).await;
        let delay = Duration::from_millis(40);
        ends.relay.set(Direction::Inward, Fault::delay(delay));
        let begun = Instant::now();
        for n in 0..20_u8 {
            ends.peer.send(&[n]).await.unwrap();
        }
        for n in 0..20_u8 {
            assert_eq!(receive(&ends.daemon).await.0, [n]);
        }
        assert!(begun.elapsed() >= delay);
    }

    #[tokio::test]
    async fn a_cut_loses_what_is_under_way() {
        let ends = ends(1).await;
        let delay = Duration::from_millis(100);
        ends.relay.set(Direction::Inward, Fault::delay(delay));
        ends.peer.send(b"1").await.unwrap();
        crate::wait::until("its departure", SOON, || async {
            Ok((ends.relay.count(Direction::Inward).0 == 1).then_some(()))
        })
        .await
        .unwrap();
        ends.relay.set(Direction::Inward, Fault::CUT);
        // Past the time at which it was due.
        tokio::time::timeout(delay * 3, ends.daemon.readable())
            .await
            .unwrap_err();
        ends.relay.restore();
        ends.peer.send(b"2").await.unwrap();
        assert_eq!(receive(&ends.daemon).await.0, b"2");
    }

    #[test]
    fn the_same_seed_loses_the_same_datagrams() {
        let fates = |seed| {
            let mut lane = Lane::new(seed);
            lane.fault = Fault::loss(300);
            (0..2000).map(|_| lane.fate().is_some()).collect::<Vec<_>>()
        };
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(8));
        let lost = fates(7).iter().filter(|passed| !**passed).count();
        assert!((500..700).contains(&lost), "{lost} of 2000 at 30 %");
    }

    #[tokio::test]
    async fn a_daemon_that_is_gone_is_told_to_its_peers() {
        let Ends {
            relay,
            peer,
            daemon,
        } = ends(1).await;
        peer.send(b"1").await.unwrap();
        receive(&daemon).await;
        drop(daemon);
        // The first one finds the daemon's port closed, a later one the relay's.
        crate::wait::until("the refusal", SOON, || async {
            // Whichever call comes first after the refusal gets to know of it.
            let sent = peer.try_send(b"x").map(|_| ());
            let received = peer.try_recv(&mut [0; 16]).map(|_| ());
            let refused = [sent, received].into_iter().any(|outcome| {
                outcome.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
            });
            Ok(refused.then_some(()))
        })
        .await
        .unwrap();
        let again = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        relay.aim(again.local_addr().unwrap());
        crate::wait::until("a way to the new one", SOON, || async {
            let _ = peer.try_send(b"y");
            Ok(again.try_recv(&mut [0; 16]).ok().map(|_| ()))
        })
        .await
        .unwrap();
    }
}
