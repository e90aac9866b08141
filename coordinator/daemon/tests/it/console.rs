//! A console: WebSocket on one side, a stream of the node's connection on the other.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use godwit_shared::model::{Problem, codes};
use godwit_shared::transport::{ByteReceiver, ByteSender, StreamKind};
use godwit_shared::wire::codec::{decode, encode};
use godwit_shared::wire::frame::{FrameDecoder, frame};
use godwit_shared::wire::uplink::{ConsoleAnswer, ConsoleOpen};
use reqwest::{Method, StatusCode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

use super::node::Node;
use super::running::{Running, spec};

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn attach(cluster: &Running, path: &str) -> Result<Client, Error> {
    let ca = CertificateDer::from_pem_slice(cluster.credential.ca.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let url = cluster.url(path).replacen("https", "wss", 1);
    let mut request = url.into_client_request().unwrap();
    let bearer = format!("Bearer {}", cluster.credential.token);
    request
        .headers_mut()
        .insert("authorization", bearer.parse().unwrap());
    let connector = Some(Connector::Rustls(Arc::new(tls)));
    tokio_tungstenite::connect_async_tls_with_config(request, None, true, connector)
        .await
        .map(|(client, _)| client)
}

/// The node's side: takes the stream and answers.
async fn serve(node: &Node, answer: &ConsoleAnswer) -> (ConsoleOpen, ByteSender, ByteReceiver) {
    let (kind, sender, receiver) = node.connection.accept().await.unwrap();
    let (mut output, mut input) = (sender.into_bytes(), receiver.into_bytes());
    let mut frames = FrameDecoder::new();
    let open: ConsoleOpen = loop {
        if let Some(payload) = frames.next().unwrap() {
            break decode(&payload, 4096).unwrap();
        }
        frames.push(&input.read_chunk(4096).await.unwrap().unwrap());
    };
    assert_eq!(kind, StreamKind::Console { vm: open.vm });
    output
        .write_chunk(frame(&encode(answer).unwrap()).unwrap())
        .await
        .unwrap();
    (open, output, input)
}

async fn running_vm(cluster: &Running) -> Node {
    let (mut node, _) = Node::join(cluster, "n1").await;
    let task = cluster
        .begin("/api/v1/vms", json!({"spec": spec("web"), "start": true}))
        .await;
    node.start_one().await;
    cluster.ended(&task).await;
    node
}

#[actix::test]
async fn bytes_go_both_ways_until_the_client_leaves() {
    let cluster = Running::start().await;
    let node = running_vm(&cluster).await;
    let (client, served) = tokio::join!(
        attach(&cluster, "/api/v1/vms/web/console?scrollback=5"),
        serve(&node, &ConsoleAnswer::Open),
    );
    let (mut client, (open, mut output, mut input)) = (client.unwrap(), served);
    assert_eq!((open.name.as_str(), open.scrollback), ("web", 5));
    output
        .write_chunk(Bytes::from_static(b"login: "))
        .await
        .unwrap();
    assert_eq!(
        client.next().await.unwrap().unwrap(),
        Message::binary(&b"login: "[..])
    );
    client.send(Message::binary(&b"root\r"[..])).await.unwrap();
    client.send(Message::text("x")).await.unwrap();
    let mut typed = Vec::new();
    while typed.len() < 6 {
        typed.extend_from_slice(&input.read_chunk(64).await.unwrap().unwrap());
    }
    assert_eq!(typed, b"root\rx");
    client.close(None).await.unwrap();
    assert_eq!(input.read_chunk(64).await.unwrap(), None);
    cluster.stop().await;
}

#[actix::test]
async fn a_client_hears_why_its_console_ended() {
    let cluster = Running::start().await;
    let node = running_vm(&cluster).await;
    let (client, served) = tokio::join!(
        attach(&cluster, "/api/v1/vms/web/console"),
        serve(&node, &ConsoleAnswer::Open),
    );
    let (mut client, (_, mut output, _input)) = (client.unwrap(), served);
    output
        .write_chunk(Bytes::from_static(b"bye"))
        .await
        .unwrap();
    output.finish().unwrap();
    assert_eq!(
        client.next().await.unwrap().unwrap(),
        Message::binary(&b"bye"[..])
    );
    let Message::Close(Some(reason)) = client.next().await.unwrap().unwrap() else {
        panic!()
    };
    assert!(reason.reason.contains("closed"), "{reason:?}");
    cluster.stop().await;
}

#[actix::test]
async fn what_the_node_refuses_is_a_plain_answer() {
    let cluster = Running::start().await;
    let node = running_vm(&cluster).await;
    let problem = Problem::new(codes::STATE_CONFLICT, "web has no serial console");
    let refused = ConsoleAnswer::Refused(problem);
    let (client, _) = tokio::join!(
        attach(&cluster, "/api/v1/vms/web/console"),
        serve(&node, &refused),
    );
    let Err(Error::Http(response)) = client else {
        panic!()
    };
    assert_eq!(response.status().as_u16(), 409);
    let Err(Error::Http(response)) = attach(&cluster, "/api/v1/vms/nobody/console").await else {
        panic!()
    };
    assert_eq!(response.status().as_u16(), 404);
    let plain = cluster
        .request(Method::GET, "/api/v1/vms/web/console")
        .send()
        .await
        .unwrap();
    assert_eq!(plain.status(), StatusCode::UPGRADE_REQUIRED);
    cluster.stop().await;
}
