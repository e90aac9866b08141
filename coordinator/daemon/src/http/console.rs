//! A guest's serial console over a WebSocket (RFC 6455): binary frames are the
//! console's bytes, both ways. Text frames are taken as bytes too.
//!
//! The console is opened on its node before the protocol is switched, so a
//! refusal is a plain HTTP answer. Both directions have their own back
//! pressure: a client that does not read stops the node's stream, and no more.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::UPGRADE;
use actix_web::{HttpRequest, web};
use actix_ws::{CloseCode, CloseReason, MessageStream, Session};
use bytes::Bytes;
use godwit_shared::model::{Problem, codes};
use godwit_shared::transport::{ByteReceiver, ByteSender};
use godwit_shared::wire::uplink::ConsoleOpen;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::answer::Answer;
use super::input::Parameters;
use super::problem::Refusal;
use super::vms::find;
use crate::session::{Console, open_console};

/// Scrollback when none is asked for, in bytes.
const SCROLLBACK: u64 = 16 * 1024;
/// Most scrollback.
const MAX_SCROLLBACK: u64 = 1 << 20;
/// Largest frame from a client, in bytes.
const MAX_FRAME: usize = 64 * 1024;
/// How much is read from the node at a time, in bytes.
const READ_AT_ONCE: usize = 32 * 1024;
/// How often a ping shows that the client is there.
const PING: Duration = Duration::from_secs(20);

/// Attaches to a VM's serial console: a WebSocket of binary frames.
#[utoipa::path(
    get, path = "/api/v1/vms/{vm}/console", tag = "vms",
    params(
        ("vm" = String, Path, description = "The VM's name or id"),
        ("scrollback" = Option<u64>, Query, description = "Send so many bytes of earlier output first; default 16384, at most 1048576"),
    ),
    responses(
        (status = 101, description = "A WebSocket; binary frames are the console's bytes"),
        (status = 404, description = "No such VM", body = Problem),
        (status = 409, description = "It has no console now", body = Problem),
        (status = 426, description = "The request is no WebSocket's", body = Problem),
        (status = 503, description = "Its node cannot be reached", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn attach(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
) -> Answer {
    let parameters = Parameters::of(&request, &["scrollback"])?;
    let scrollback = parameters
        .number("scrollback", MAX_SCROLLBACK)?
        .unwrap_or(SCROLLBACK);
    let vm = find(&api, &path)?;
    check_upgrade(&request)?;
    let (node, session, name) = api
        .cluster
        .reader()
        .peek(|cluster| cluster.console_of(vm))?;
    let connection = api.cluster.sessions().connection(session).ok_or_else(|| {
        Problem::new(
            codes::NODE_UNREACHABLE,
            format!("node {node} went away just now"),
        )
        .value(node.as_str())
        .remedy("try again when it is back")
    })?;
    let scrollback = u32::try_from(scrollback).unwrap_or(u32::MAX);
    let console = open_console(
        &connection,
        ConsoleOpen {
            vm,
            name,
            scrollback,
        },
    )
    .await?;
    let (response, client, frames) =
        actix_ws::handle(&request, payload).map_err(|error| refuse_upgrade(&error.to_string()))?;
    actix_web::rt::spawn(bridge(console, client, frames, api.stop.clone()));
    Ok(response)
}

fn check_upgrade(request: &HttpRequest) -> Result<(), Refusal> {
    let upgrade = request
        .headers()
        .get(UPGRADE)
        .and_then(|value| value.to_str().ok());
    if upgrade.is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
        return Ok(());
    }
    Err(refuse_upgrade(
        "a console is a WebSocket, and the request is not for one",
    ))
}

fn refuse_upgrade(what: &str) -> Refusal {
    let problem = Problem::new(codes::BODY_INVALID, what)
        .field("upgrade")
        .remedy("use `godwit vm console`, or a WebSocket client");
    Refusal::with_status(StatusCode::UPGRADE_REQUIRED, problem)
}

/// Carries bytes both ways until either side ends.
async fn bridge(console: Console, client: Session, frames: MessageStream, stop: CancellationToken) {
    let Console { input, output } = console;
    let reason = tokio::select! {
        reason = from_guest(output, client.clone()) => reason,
        reason = to_guest(input, client.clone(), frames) => reason,
        () = stop.cancelled() => close(CloseCode::Away, "the coordinator is stopping"),
    };
    // The client may have gone.
    let _ = client.close(Some(reason)).await;
}

fn close(code: CloseCode, why: &str) -> CloseReason {
    CloseReason {
        code,
        description: Some(why.to_owned()),
    }
}

async fn from_guest(mut output: ByteReceiver, mut client: Session) -> CloseReason {
    loop {
        let sent = match tokio::time::timeout(PING, output.read_chunk(READ_AT_ONCE)).await {
            Ok(Ok(Some(bytes))) => client.binary(bytes).await,
            Ok(Ok(None)) => return close(CloseCode::Normal, "the console was closed"),
            Ok(Err(error)) => return close(CloseCode::Away, &format!("the node is gone: {error}")),
            Err(_) => client.ping(b"").await,
        };
        if sent.is_err() {
            return close(CloseCode::Normal, "the client is gone");
        }
    }
}

async fn to_guest(
    mut input: ByteSender,
    mut client: Session,
    frames: MessageStream,
) -> CloseReason {
    let mut frames = frames
        .max_frame_size(MAX_FRAME)
        .aggregate_continuations()
        .max_continuation_size(MAX_FRAME);
    loop {
        use actix_ws::AggregatedMessage as Frame;
        let bytes: Bytes = match frames.recv().await {
            Some(Ok(Frame::Binary(bytes))) => bytes,
            Some(Ok(Frame::Text(text))) => text.into_bytes(),
            Some(Ok(Frame::Ping(payload))) => {
                let _ = client.pong(&payload).await;
                continue;
            }
            Some(Ok(Frame::Pong(_))) => continue,
            Some(Ok(Frame::Close(_))) | None => {
                let _ = input.finish();
                return close(CloseCode::Normal, "closed by the client");
            }
            Some(Err(error)) => return close(CloseCode::Protocol, &error.to_string()),
        };
        if let Err(error) = input.write_chunk(bytes).await {
            return close(CloseCode::Away, &format!("the node takes no more: {error}"));
        }
    }
}
