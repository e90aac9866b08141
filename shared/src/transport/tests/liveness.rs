//! How a lost peer is noticed, and that a slow one isn't lost.

use std::net::UdpSocket;
use std::sync::{Arc, Barrier, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt as _;

use super::relay::Relay;
use super::*;
use crate::transport::socket::tests::closed_port;

/// What scheduling may add to a bound.
const SLACK: Duration = Duration::from_millis(100);

fn assert_silent_cut(took: Duration, end: &Disconnect, options: &TransportOptions) {
    assert_eq!(
        *end,
        Disconnect::IdleTimeout {
            after: options.idle_timeout
        }
    );
    // The timer may have begun with the last packet before the cut.
    assert!(
        took + Duration::from_millis(50) >= options.idle_timeout,
        "{took:?}"
    );
    assert!(took <= options.detection_bound() + SLACK, "{took:?}");
}

#[tokio::test]
async fn a_silent_cut_is_noticed_on_both_sides() {
    let cluster = Cluster::new();
    let b = cluster.listen(&cluster.node("b"));
    // At various phases of the keep-alive.
    for phase in [0, 70, 130, 190] {
        let relay = Relay::to(b.local_addr().unwrap()).await;
        let pair = cluster.pair_through(&b, relay.address()).await;
        let calm = tokio::time::timeout(Duration::from_millis(1000 + phase), pair.near.closed());
        assert!(calm.await.is_err(), "keep-alives hold an idle connection");
        relay.cut();
        let cut = Instant::now();
        let timed =
            |connection: &Connection| connection.closed().map(move |end| (end, cut.elapsed()));
        let (near, far) = within(async { tokio::join!(timed(&pair.near), timed(&pair.far)) }).await;
        assert_silent_cut(near.1, &near.0, &cluster.options);
        assert_silent_cut(far.1, &far.0, &cluster.options);
    }
}

#[tokio::test]
async fn a_silent_cut_is_noticed_in_the_middle_of_a_transfer() {
    let cluster = Cluster::new();
    let b = cluster.listen(&cluster.node("b"));
    let relay = Relay::to(b.local_addr().unwrap()).await;
    let pair = cluster.pair_through(&b, relay.address()).await;
    let (out, _back) = pair
        .near
        .open(StreamKind::Memory { channel: 0 })
        .await
        .unwrap();
    let (_, _far_out, far_in) = within(pair.far.accept()).await.unwrap();
    let (mut out, mut far_in) = (out.into_bytes(), far_in.into_bytes());
    let cut = OnceLock::new();
    let send = async {
        loop {
            if let Err(error) = out.write_chunk(Bytes::from_static(&[7; 8192])).await {
                return (error, Instant::now());
            }
        }
    };
    let receive = async {
        let mut seen = 0;
        loop {
            match far_in.read_chunk(65_536).await {
                Ok(chunk) => seen += chunk.unwrap().len(),
                Err(error) => return (error, Instant::now()),
            }
            if seen > 4 << 20 {
                relay.cut();
                seen = 0;
                cut.get_or_init(Instant::now);
            }
        }
    };
    let (sent, received) = within(async { tokio::join!(send, receive) }).await;
    for (error, at) in [sent, received] {
        let StreamError::Disconnected(end) = error else {
            panic!("{error}")
        };
        assert_silent_cut(at - *cut.get().unwrap(), &end, &cluster.options);
    }
}

#[tokio::test]
async fn a_restarted_peer_says_that_it_knows_nothing() {
    let cluster = Cluster::new();
    let identity = cluster.node("b");
    let b = cluster.listen(&identity);
    let relay = Relay::to(b.local_addr().unwrap()).await;
    let pair = cluster.pair_through(&b, relay.address()).await;
    // The same daemon with the same key, after a crash, on the same address.
    let successor = cluster.listen(&identity);
    relay.lead_to(successor.local_addr().unwrap());
    let cut = Instant::now();
    assert_eq!(within(pair.near.closed()).await, Disconnect::PeerGone);
    assert!(
        cut.elapsed() < cluster.options.keep_alive + SLACK,
        "{:?}",
        cut.elapsed()
    );
}

#[tokio::test]
async fn connecting_to_a_closed_port_fails_at_once() {
    let cluster = Cluster::new();
    let a = cluster.client(&cluster.node("a"));
    for ip in ["127.0.0.1", "::1"] {
        let Some((address, _holder)) = closed_port(ip) else {
            continue;
        };
        let begin = Instant::now();
        let error = within(a.connect(address, cluster.node("b").peer()))
            .await
            .unwrap_err();
        assert_eq!(error, ConnectError::NobodyThere(address));
        assert!(
            begin.elapsed() < Duration::from_millis(500),
            "{:?}",
            begin.elapsed()
        );
    }
}

#[tokio::test]
async fn connecting_to_silence_times_out() {
    let mut cluster = Cluster::new();
    cluster.options.handshake_timeout = Duration::from_millis(700);
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let a = cluster.client(&cluster.node("a"));
    let begin = Instant::now();
    let error = within(a.connect(address, cluster.node("b").peer()))
        .await
        .unwrap_err();
    let after = cluster.options.handshake_timeout;
    assert_eq!(error, ConnectError::Timeout { address, after });
    assert!(begin.elapsed() < after + 3 * SLACK, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_port_serves_both_ip_versions() {
    let cluster = Cluster::new();
    let any = "[::]:0".parse().unwrap();
    let identity = cluster.node("b");
    let Ok(b) = Endpoint::bind(&cluster.runtime, any, &identity, cluster.options.clone()) else {
        // A host without IPv6.
        return;
    };
    let port = b.local_addr().unwrap().port();
    for ip in ["127.0.0.1", "::1"] {
        let pair = cluster
            .pair_through(&b, SocketAddr::new(ip.parse().unwrap(), port))
            .await;
        assert_eq!(pair.far.remote_address().ip().to_string(), ip);
        assert_eq!(pair.near.remote_address().ip().to_string(), ip);
    }
}

#[tokio::test]
async fn garbage_and_strangers_disturb_nobody() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = pair.near.remote_address();
    for length in 0..600_usize {
        let garbage: Vec<u8> = (0..length).map(|at| (at * length) as u8 ^ 0xc3).collect();
        let _ = stranger.send_to(&garbage, target);
    }
    // Answers to it meet a closed port, and leave an error on the socket.
    drop(stranger);
    let (_out, _) = pair.near.open(StreamKind::Control).await.unwrap();
    within(pair.far.accept()).await.unwrap();
    assert!(pair.far.closed().now_or_never().is_none());
}

#[tokio::test]
async fn a_busy_machine_loses_no_connection() {
    const BUSY: Duration = Duration::from_secs(2);
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let spinners: Vec<_> = (0..2 * cores)
        .map(|_| std::thread::spawn(|| spin(BUSY)))
        .collect();
    let ended = futures_util::future::select(pair.near.closed(), pair.far.closed());
    let calm = tokio::time::timeout(BUSY, ended).await.is_err();
    for spinner in spinners {
        spinner.join().unwrap();
    }
    assert!(calm, "{:?}", pair.near.closed().now_or_never());
}

#[tokio::test]
async fn a_transport_that_was_paused_blames_nobody() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let (stall, together) = (3 * cluster.options.idle_timeout, Arc::new(Barrier::new(2)));
    // Both of its threads stand still, and with them both ends.
    let stalls = [(); 2].map(|()| {
        let together = Arc::clone(&together);
        cluster.runtime.spawn(async move {
            together.wait();
            spin(stall);
        })
    });
    for stalled in stalls {
        within(stalled).await.unwrap();
    }
    let (_out, _) = within(pair.near.open(StreamKind::Control)).await.unwrap();
    within(pair.far.accept()).await.unwrap();
    let calm = tokio::time::timeout(cluster.options.idle_timeout, pair.near.closed()).await;
    assert!(calm.is_err(), "{calm:?}");
}

fn spin(length: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < length {
        std::hint::spin_loop();
    }
}

#[tokio::test]
async fn a_runtime_may_end_anywhere() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    let runtime = cluster.runtime.clone();
    drop((pair, cluster));
    // Inside of itself.
    let other = runtime.clone();
    let task = runtime.spawn(async move {
        tokio::task::yield_now().await;
        drop(other);
    });
    drop(runtime);
    let _ = within(task).await;
}
