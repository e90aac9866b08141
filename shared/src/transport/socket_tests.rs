#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)]
use std::future::poll_fn;
use std::net::UdpSocket as StdSocket;
use std::time::Duration;

use super::*;
use crate::transport::peers::Watch;

const PATIENCE: Duration = Duration::from_secs(10);

struct Stage {
    socket: Arc<Socket>,
    peers: Arc<Peers>,
}

impl Stage {
    fn new(address: &str) -> Option<Self> {
        let peers = Arc::new(Peers::default());
        let handle = Handle::current();
        let socket = Socket::bind(
            address.parse().unwrap(),
            1 << 20,
            Arc::clone(&peers),
            &handle,
        );
        Some(Self {
            socket: Arc::new(socket.ok()?),
            peers,
        })
    }

    fn send(&self, destination: SocketAddr, contents: &[u8], segment_size: Option<usize>) {
        let transmit = Transmit {
            destination,
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        };
        self.socket.try_send(&transmit).unwrap();
    }

    async fn gone(&self, watch: &Watch) -> bool {
        tokio::time::timeout(PATIENCE, watch.gone()).await.is_ok()
    }
}

/// An address where every stranger finds the port closed. The socket that holds
/// it is connected elsewhere, so nobody else can be given the port meanwhile.
pub(in crate::transport) fn closed_port(ip: &str) -> Option<(SocketAddr, StdSocket)> {
    let holder = StdSocket::bind((ip, 0)).ok()?;
    holder.connect((ip, 9)).ok()?;
    Some((holder.local_addr().ok()?, holder))
}

fn packet(length: usize) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..length).map(|at| at as u8).collect();
    packet[0] = 0x40;
    packet
}

#[tokio::test]
async fn a_closed_port_is_told_to_its_watch() {
    // Plain IPv4, plain IPv6, and IPv4 over a socket for both.
    let cases = [
        ("127.0.0.1:0", "127.0.0.1", "127.0.0.1"),
        ("[::1]:0", "::1", "::1"),
        ("[::]:0", "127.0.0.1", "::ffff:127.0.0.1"),
    ];
    for (local, listener, remote) in cases {
        let Some(stage) = Stage::new(local) else {
            continue;
        };
        let Some((closed, _holder)) = closed_port(listener) else {
            continue;
        };
        let destination = SocketAddr::new(remote.parse().unwrap(), closed.port());
        let watch = stage.peers.watch(destination);
        stage.send(destination, &packet(100), None);
        assert!(stage.gone(&watch).await, "{local}");
    }
}

#[tokio::test]
async fn a_dead_peer_costs_the_living_nothing() {
    let stage = Stage::new("127.0.0.1:0").unwrap();
    let living = StdSocket::bind("127.0.0.1:0").unwrap();
    living.set_read_timeout(Some(PATIENCE)).unwrap();
    let (dead, _holder) = closed_port("127.0.0.1").unwrap();
    let mut buffer = [0; 64];
    for _ in 0..100 {
        // The error of the first is pending when the second goes out.
        stage.send(dead, &packet(20), None);
        stage.send(living.local_addr().unwrap(), &packet(30), None);
        assert_eq!(living.recv(&mut buffer).unwrap(), 30);
    }
}

#[tokio::test]
async fn errors_do_not_end_receiving() {
    let stage = Stage::new("127.0.0.1:0").unwrap();
    let (dead, _holder) = closed_port("127.0.0.1").unwrap();
    let living = StdSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..10 {
        stage.send(dead, &packet(20), None);
        living
            .send_to(&[9; 33], stage.socket.local_addr().unwrap())
            .unwrap();
        let mut buffer = vec![0; 65_536];
        let mut metas = [RecvMeta::default()];
        let received = poll_fn(|cx| {
            let mut bufs = [IoSliceMut::new(&mut buffer)];
            stage.socket.poll_recv(cx, &mut bufs, &mut metas)
        });
        assert_eq!(
            tokio::time::timeout(PATIENCE, received)
                .await
                .unwrap()
                .unwrap(),
            1
        );
        assert_eq!(
            (metas[0].len, metas[0].addr),
            (33, living.local_addr().unwrap())
        );
    }
}

#[tokio::test]
async fn a_batch_over_the_udp_limit_is_sent_in_parts() {
    const SIZE: usize = 8952;
    let stage = Stage::new("127.0.0.1:0").unwrap();
    let receiver = StdSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut batch = Vec::new();
    (0..10_u8).for_each(|number| batch.extend([number; SIZE]));
    batch.truncate(10 * SIZE - 100);
    stage.send(receiver.local_addr().unwrap(), &batch, Some(SIZE));
    let mut buffer = vec![0; 65_536];
    for number in 0..10_u8 {
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(length, if number == 9 { SIZE - 100 } else { SIZE });
        assert!(buffer[..length].iter().all(|byte| *byte == number));
    }
    let next = stage.socket.max_transmit_segments();
    assert_eq!(next, 7, "offload stays on, and the next fits into one call");
}

#[tokio::test]
async fn what_is_held_for_more_goes_out_without_it() {
    const SIZE: usize = 1200;
    let stage = Stage::new("127.0.0.1:0").unwrap();
    let receiver = StdSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_nonblocking(true).unwrap();
    let receiver = UdpSocket::from_std(receiver).unwrap();
    let to = receiver.local_addr().unwrap();
    // Whole ones are held until they fill a batch; 50 datagrams of 1200 bytes do.
    for transmits in [1_usize, 3, 5, 7] {
        for _ in 0..transmits {
            stage.send(to, &[7; 10 * SIZE], Some(SIZE));
        }
        for _ in 0..10 * transmits {
            let mut buffer = [0; 2 * SIZE];
            let arrival = tokio::time::timeout(PATIENCE, receiver.recv(&mut buffer));
            assert_eq!(arrival.await.unwrap().unwrap(), SIZE, "{transmits}");
        }
        assert!(stage.socket.inner.lock_held().is_empty());
    }
    // A short one takes what is held along at once.
    stage.send(to, &[7; 10 * SIZE], Some(SIZE));
    assert!(!stage.socket.inner.lock_held().is_empty());
    stage.send(to, &[8; 30], None);
    assert!(stage.socket.inner.lock_held().is_empty());
}

#[tokio::test]
async fn waiting_for_room_survives_an_icmp_error() {
    let stage = Stage::new("127.0.0.1:0").unwrap();
    let inner = Arc::clone(&stage.socket.inner);
    let spoilt = inner.writable().unwrap();
    let (dead, _holder) = closed_port("127.0.0.1").unwrap();
    let watch = stage.peers.watch(dead);
    stage.send(dead, &packet(20), None);
    assert!(stage.gone(&watch).await);
    let closed = async {
        while !spoilt
            .ready(Interest::WRITABLE)
            .await
            .unwrap()
            .is_write_closed()
        {
            tokio::task::yield_now().await;
        }
    };
    // If this ever hangs, tokio has learnt better and `renew` can go.
    tokio::time::timeout(PATIENCE, closed)
        .await
        .expect("tokio takes an error for a closed writer");

    // As if a send had found the socket full.
    let mut poller = Arc::clone(&stage.socket).create_io_poller();
    for _ in 0..3 {
        inner.full.store(true, Ordering::Release);
        let ready = poll_fn(|cx| poller.as_mut().poll_writable(cx));
        tokio::time::timeout(PATIENCE, ready)
            .await
            .unwrap()
            .unwrap();
        assert!(!inner.full.load(Ordering::Acquire));
    }
    let fresh = inner.writable().unwrap();
    assert!(
        !Arc::ptr_eq(&spoilt, &fresh),
        "the spoilt registration was given up"
    );
    assert!(
        !fresh
            .ready(Interest::WRITABLE)
            .await
            .unwrap()
            .is_write_closed()
    );
}

#[test]
fn only_a_closed_port_counts() {
    let error = |origin, kind, code| libc::sock_extended_err {
        ee_errno: 0,
        ee_origin: origin,
        ee_type: kind,
        ee_code: code,
        ee_pad: 0,
        ee_info: 0,
        ee_data: 0,
    };
    let (v4, v6) = (libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6);
    assert!(is_closed_port(&error(v4, 3, 3)));
    assert!(is_closed_port(&error(v6, 1, 4)));
    // Network, host, administratively prohibited, fragmentation needed, time
    // exceeded, and what the own host says.
    for (origin, kind, code) in [
        (v4, 3, 0),
        (v4, 3, 1),
        (v4, 3, 13),
        (v4, 3, 4),
        (v4, 11, 0),
        (v6, 1, 0),
        (v6, 1, 1),
        (v6, 2, 0),
        (v6, 3, 3),
        (libc::SO_EE_ORIGIN_LOCAL, 3, 3),
    ] {
        assert!(
            !is_closed_port(&error(origin, kind, code)),
            "{origin} {kind} {code}"
        );
    }
}
