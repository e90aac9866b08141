//! Who may connect to whom.

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::pki::CaFingerprint;
use crate::pki::Validity;
use crate::transport::tls::{ALPN_MEMBER, testing_client};
use crate::wire::version::{CURRENT, Offer, ProtocolVersion, Role};

fn tls_reason(error: &ConnectError) -> &str {
    match error {
        ConnectError::Tls { reason, .. } => reason,
        other => panic!("not TLS: {other}"),
    }
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    assert_eq!(
        *pair.near.peer(),
        Peer::Known(cluster.node("b").peer().clone())
    );
    assert_eq!(
        *pair.far.peer(),
        Peer::Known(cluster.node("a").peer().clone())
    );
    assert_eq!(
        (pair.near.version(), pair.far.version()),
        (CURRENT, CURRENT)
    );
    assert_eq!(pair.far.software(), Some(cluster.options.software.as_str()));
    assert_eq!(pair.near.remote_address(), pair.door.local_addr().unwrap());

    pair.near.close(CloseCode::DONE, "that was it");
    let seen = within(pair.far.closed()).await;
    let reason = "that was it".to_owned();
    assert_eq!(
        seen,
        Disconnect::ClosedByPeer {
            code: CloseCode::DONE,
            reason
        }
    );
    assert_eq!(within(pair.near.closed()).await, Disconnect::ClosedHere);
    assert_eq!(
        within(pair.near.closed()).await,
        Disconnect::ClosedHere,
        "it can be asked again"
    );
}

#[tokio::test]
async fn the_last_handle_closes_the_connection() {
    let cluster = Cluster::new();
    let Pair {
        near,
        far,
        _dialer,
        door: _door,
    } = cluster.pair().await;
    let (sender, receiver) = near.open(StreamKind::Control).await.unwrap();
    drop(near);
    let (kind, ..) = within(far.accept()).await.unwrap();
    assert_eq!(kind, StreamKind::Control, "a stream keeps it open");
    drop((sender, receiver));
    let seen = within(far.closed()).await;
    assert!(
        matches!(
            seen,
            Disconnect::ClosedByPeer {
                code: CloseCode::NONE,
                ..
            }
        ),
        "{seen}"
    );
    let error = within(far.accept()).await.unwrap_err();
    assert_eq!(error, StreamError::Disconnected(seen));
}

#[tokio::test]
async fn a_closing_endpoint_says_so() {
    let cluster = Cluster::new();
    let pair = cluster.pair().await;
    within(pair.door.close()).await;
    let seen = within(pair.near.closed()).await;
    assert!(
        matches!(
            seen,
            Disconnect::ClosedByPeer {
                code: CloseCode::SHUTDOWN,
                ..
            }
        ),
        "{seen}"
    );
    assert!(within(pair.door.accept()).await.is_none());
}

#[tokio::test]
async fn a_member_of_another_cluster_is_refused_on_both_sides() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let b = ours.listen(&ours.node("b"));
    let stranger = theirs.client(&theirs.node("b"));
    let error = within(stranger.connect(b.local_addr().unwrap(), ours.node("b").peer()))
        .await
        .unwrap_err();
    assert!(tls_reason(&error).contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn a_client_of_another_ca_is_refused_by_the_server() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let b = ours.listen(&ours.node("b"));
    // It trusts our CA, but has a certificate of its own.
    let stranger = theirs.node("a");
    let config = testing_client(
        ours.ca.certificate(),
        Some(&stranger),
        &ours.options,
        ALPN_MEMBER,
    );
    let client = ours.client(&ours.node("a"));
    let dial = client.dial(
        b.local_addr().unwrap(),
        ours.node("b").peer().clone(),
        client.offer(Role::Node),
        config,
    );
    let error = within(dial).await.unwrap_err();
    assert!(tls_reason(&error).contains("another cluster"), "{error}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let cluster = Cluster::new();
    for accept_join in [false, true] {
        let options = TransportOptions {
            accept_join,
            ..cluster.options.clone()
        };
        let coordinator = cluster.coordinator();
        let server =
            Endpoint::bind(&cluster.runtime, loopback(), &coordinator, options.clone()).unwrap();
        let config = testing_client(cluster.ca.certificate(), None, &options, ALPN_MEMBER);
        let client = cluster.client(&cluster.node("a"));
        let address = server.local_addr().unwrap();
        let dial = client.dial(
            address,
            PeerIdentity::Coordinator,
            client.offer(Role::Node),
            config,
        );
        let error = within(dial).await.unwrap_err();
        let reason = tls_reason(&error);
        assert!(reason.contains("certificate"), "{accept_join}: {reason}");
    }
}

#[tokio::test]
async fn another_member_than_the_expected_one_is_refused() {
    let cluster = Cluster::new();
    let b = cluster.listen(&cluster.node("b"));
    let a = cluster.client(&cluster.node("a"));
    let address = b.local_addr().unwrap();
    let error = within(a.connect(address, cluster.node("c").peer()))
        .await
        .unwrap_err();
    assert!(tls_reason(&error).contains("not valid for name"), "{error}");
    let again = PeerIdentity::Node {
        node: "b".parse().unwrap(),
        incarnation: 2,
    };
    assert!(matches!(
        within(a.connect(address, &again)).await,
        Err(ConnectError::Tls { .. })
    ));
}

fn expired(cluster: &Cluster, name: &str) -> Identity {
    let start = Timestamp::now() - SignedDuration::from_hours(3);
    let validity = Validity {
        start,
        end: start + SignedDuration::from_hours(1),
    };
    let identity = NodeIdentity {
        node: name.parse().unwrap(),
        incarnation: 1,
    };
    let request = KeyAndCsr::generate(&identity.node).unwrap();
    let signed = cluster
        .ca
        .sign_node_csr_for(request.csr_pem(), &identity, validity)
        .unwrap();
    request
        .into_identity(&signed.certificate_pem, cluster.ca.certificate_pem())
        .unwrap()
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_both_sides() {
    let cluster = Cluster::new();
    let b = cluster.listen(&expired(&cluster, "b"));
    let a = cluster.client(&cluster.node("a"));
    let error = within(a.connect(b.local_addr().unwrap(), cluster.node("b").peer()))
        .await
        .unwrap_err();
    assert!(tls_reason(&error).contains("expired"), "{error}");

    let b = cluster.listen(&cluster.node("b"));
    let a = cluster.client(&expired(&cluster, "a"));
    let error = within(a.connect(b.local_addr().unwrap(), cluster.node("b").peer()))
        .await
        .unwrap_err();
    assert!(tls_reason(&error).contains("has expired"), "{error}");
}

#[tokio::test]
async fn rotation_takes_effect_for_new_connections() {
    let cluster = Cluster::new();
    let b = cluster.listen(&expired(&cluster, "b"));
    let a = cluster.client(&cluster.node("a"));
    let (address, expected) = (b.local_addr().unwrap(), cluster.node("b").peer().clone());
    within(a.connect(address, &expected)).await.unwrap_err();
    b.set_identity(&cluster.node("b")).unwrap();
    let first = within(a.connect(address, &expected)).await.unwrap();
    a.set_identity(&expired(&cluster, "a")).unwrap();
    within(a.connect(address, &expected)).await.unwrap_err();
    assert!(
        !is_closed(&first),
        "a connection outlives its certificate's replacement"
    );
}

fn is_closed(connection: &Connection) -> bool {
    use futures_util::FutureExt as _;
    connection.closed().now_or_never().is_some()
}

#[tokio::test]
async fn without_a_common_version_both_operators_know_whom_to_upgrade() {
    let cluster = Cluster::new();
    let b = cluster.listen(&cluster.node("b"));
    let client = cluster.client(&cluster.node("a"));
    let (address, expected) = (b.local_addr().unwrap(), cluster.node("b").peer().clone());
    let config = || {
        let identity = cluster.node("a");
        testing_client(
            cluster.ca.certificate(),
            Some(&identity),
            &cluster.options,
            ALPN_MEMBER,
        )
    };
    let newer = ProtocolVersion(CURRENT.0 + 1);
    let offer = Offer {
        oldest: newer,
        newest: newer,
        ..client.offer(Role::Node)
    };
    let dial = client.dial(address, expected.clone(), offer, config());
    let error = within(dial).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Version { message, .. } if message.contains("upgrade the accepting side")),
        "{error}"
    );

    // One that can also do without is served.
    let offer = Offer {
        newest: newer,
        ..client.offer(Role::Node)
    };
    let connection = within(client.dial(address, expected.clone(), offer, config()))
        .await
        .unwrap();
    assert_eq!(connection.version(), CURRENT);
    let stranger = Offer {
        magic: 0,
        ..client.offer(Role::Node)
    };
    let error = within(client.dial(address, expected, stranger, config()))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Version { .. }), "{error}");
}

#[tokio::test]
async fn who_is_not_admitted_hears_why() {
    let cluster = Cluster::new();
    let b = cluster.listen(&cluster.node("b"));
    b.set_admission(std::sync::Arc::new(|peer: &PeerIdentity| {
        match peer.node() {
            Some(node) if node.as_str() == "a" => Err(format!("node {node} was removed")),
            _ => Ok(()),
        }
    }));
    let (address, expected) = (b.local_addr().unwrap(), cluster.node("b").peer().clone());
    let a = cluster.client(&cluster.node("a"));
    let error = within(a.connect(address, &expected)).await.unwrap_err();
    let message = "node a was removed".to_owned();
    assert_eq!(error, ConnectError::NotAdmitted { address, message });
    let c = cluster.client(&cluster.node("c"));
    within(c.connect(address, &expected)).await.unwrap();
}

#[tokio::test]
async fn a_joining_host_pins_the_ca() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let options = TransportOptions {
        accept_join: true,
        ..cluster.options.clone()
    };
    let server = Endpoint::bind(
        &cluster.runtime,
        loopback(),
        &cluster.coordinator(),
        options,
    )
    .unwrap();
    let address = server.local_addr().unwrap();
    let host = Endpoint::joining(&cluster.runtime, cluster.options.clone()).unwrap();

    let (near, far) = within(async {
        tokio::join!(
            host.connect_join(address, cluster.ca.fingerprint()),
            server.accept()
        )
    })
    .await;
    assert_eq!(
        *near.unwrap().peer(),
        Peer::Known(PeerIdentity::Coordinator)
    );
    assert_eq!(*far.unwrap().peer(), Peer::Joining);

    for wrong in [other.ca.fingerprint(), CaFingerprint::from_bytes([0; 32])] {
        let error = within(host.connect_join(address, wrong)).await.unwrap_err();
        assert!(tls_reason(&error).contains("UnknownIssuer"), "{error}");
    }
    let error = within(host.connect(address, &PeerIdentity::Coordinator))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Unable { .. }), "{error}");
}

#[tokio::test]
async fn a_pinned_ca_vouches_for_the_coordinator_alone() {
    let cluster = Cluster::new();
    // A node with a valid certificate poses as the coordinator.
    let options = TransportOptions {
        accept_join: true,
        ..cluster.options.clone()
    };
    let node = Endpoint::bind(&cluster.runtime, loopback(), &cluster.node("n"), options).unwrap();
    let host = Endpoint::joining(&cluster.runtime, cluster.options.clone()).unwrap();
    let connect = host.connect_join(node.local_addr().unwrap(), cluster.ca.fingerprint());
    let error = within(connect).await.unwrap_err();
    assert!(tls_reason(&error).contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn nobody_joins_where_joining_is_not_accepted() {
    let cluster = Cluster::new();
    let server = cluster.listen(&cluster.coordinator());
    let host = Endpoint::joining(&cluster.runtime, cluster.options.clone()).unwrap();
    let connect = host.connect_join(server.local_addr().unwrap(), cluster.ca.fingerprint());
    let error = within(connect).await.unwrap_err();
    assert!(
        tls_reason(&error).contains("does not speak this protocol"),
        "{error}"
    );
}
