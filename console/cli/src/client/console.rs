//! A VM's serial console: a WebSocket of binary frames.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use godwit_shared::model::{Problem, codes};
use reqwest::{Url, header};
use rustix::net::sockopt;
use tokio::net::{TcpStream, lookup_host};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

use super::{CONNECT, Client, HOPS, refusal, trouble, ways};
use crate::args::VmRef;
use crate::failure::Failure;

/// What the other side sends.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// Bytes from the guest.
    Bytes(Vec<u8>),
    /// The coordinator has closed the console, for a reason if it gave one.
    Closed(Option<Problem>),
    /// The connection broke.
    Lost,
}

/// An attached console.
pub(crate) struct Attached {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// What came of an attempt.
enum Opening {
    Done(Box<Attached>),
    /// The leader is there.
    Elsewhere(Url),
}

impl Client {
    /// Attaches to a VM's console, with at most `scrollback` bytes of what was
    /// there before.
    pub(crate) async fn attach(&self, vm: &VmRef, scrollback: u32) -> Result<Attached, Failure> {
        let mut hops = HOPS;
        loop {
            match self.open_console(vm, scrollback).await? {
                Opening::Done(attached) => return Ok(*attached),
                Opening::Elsewhere(url) if hops > 0 => {
                    self.ways.go(url);
                    hops -= 1;
                }
                Opening::Elsewhere(_) => return Err(trouble::no_answer(&self.ways.now())),
            }
        }
    }

    async fn open_console(&self, vm: &VmRef, scrollback: u32) -> Result<Opening, Failure> {
        let base = self.ways.now();
        let mut url = base.clone();
        url.set_path(&format!("/api/v1/vms/{vm}/console"));
        url.set_query(Some(&format!("scrollback={scrollback}")));
        let text = format!("wss{}", url.as_str().trim_start_matches("https"));
        let mut request = text
            .into_client_request()
            .map_err(|e| Failure::from(Problem::internal(e)))?;
        request
            .headers_mut()
            .insert(header::AUTHORIZATION, self.authorization.clone());
        let stream = self.dial().await?;
        let connector = Connector::Rustls(self.tls.clone());
        let opening = client_async_tls_with_config(request, stream, None, Some(connector));
        match tokio::time::timeout(CONNECT, opening).await {
            Ok(Ok((socket, _))) => Ok(Opening::Done(Box::new(Attached { socket }))),
            Ok(Err(tungstenite::Error::Http(response))) => {
                if let Some(url) = ways::leader(response.status(), response.headers()) {
                    return Ok(Opening::Elsewhere(url));
                }
                let body = response.body().as_deref().unwrap_or_default();
                Err(refusal(response.status(), body))
            }
            Ok(Err(error)) => Err(trouble::of(&error, &base)),
            Err(_) => Err(trouble::no_answer(&base)),
        }
    }

    /// A TCP connection that notices a dead peer: a console may be silent for
    /// hours, and must not look alive when the path is gone.
    async fn dial(&self) -> Result<TcpStream, Failure> {
        let base = self.ways.now();
        let host = base.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = base.port_or_known_default().unwrap_or(443);
        let attempt = async {
            let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
            TcpStream::connect(addresses.as_slice()).await
        };
        let stream = match tokio::time::timeout(CONNECT, attempt).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(trouble::of(&error, &base)),
            Err(_) => return Err(trouble::no_answer(&base)),
        };
        let tuned = stream
            .set_nodelay(true)
            .and_then(|()| Ok(sockopt::set_socket_keepalive(&stream, true)?))
            .and_then(|()| Ok(sockopt::set_tcp_keepidle(&stream, Duration::from_secs(5))?))
            .and_then(|()| Ok(sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(5))?))
            .and_then(|()| Ok(sockopt::set_tcp_keepcnt(&stream, 3)?))
            .and_then(|()| Ok(sockopt::set_tcp_user_timeout(&stream, 20_000)?));
        match tuned {
            Ok(()) => Ok(stream),
            Err(error) => Err(trouble::of(&error, &base)),
        }
    }
}

impl Attached {
    /// The next thing from the other side. Cancel safe.
    pub(crate) async fn next(&mut self) -> Incoming {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => return Incoming::Bytes(bytes.to_vec()),
                Some(Ok(Message::Text(text))) => {
                    return Incoming::Bytes(text.as_bytes().to_vec());
                }
                Some(Ok(Message::Close(frame))) => return Incoming::Closed(reason(frame)),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(_)) | None => return Incoming::Lost,
            }
        }
    }

    /// Sends bytes to the guest; false when the connection is gone.
    pub(crate) async fn send(&mut self, bytes: Vec<u8>) -> bool {
        self.socket
            .send(Message::Binary(bytes.into()))
            .await
            .is_ok()
    }

    /// Takes leave.
    pub(crate) async fn close(mut self) {
        let goodbye = self.socket.close(None);
        let _ = tokio::time::timeout(Duration::from_millis(500), goodbye).await;
    }
}

/// Why a console was closed: a problem as JSON, or words; nothing when all is well.
fn reason(frame: Option<CloseFrame>) -> Option<Problem> {
    let frame = frame?;
    if let Ok(problem) = serde_json::from_str::<Problem>(frame.reason.as_str()) {
        return Some(problem);
    }
    let well = matches!(frame.code, CloseCode::Normal | CloseCode::Away);
    if well || frame.reason.is_empty() {
        return None;
    }
    Some(
        Problem::new(
            codes::CONNECTION_LOST,
            format!("the console was closed: {}", frame.reason.as_str()),
        )
        .remedy("attach to it again"),
    )
}
