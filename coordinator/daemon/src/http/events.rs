//! Server-sent events (HTML Living Standard 9.2) with resume.
//!
//! `id:` is the event's number; a client that comes back names the last one it
//! saw in `Last-Event-ID`, as browsers do by themselves, or in `after`. When
//! some behind it are no longer kept, an event `gap` comes first and says
//! which. A client that reads too slowly is cut off, and resumes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use godwit_shared::api::Event;
use godwit_shared::model::{Problem, codes};
use tokio::sync::mpsc;

use super::Api;
use super::answer::Answer;
use super::input::Parameters;
use crate::cluster::{EventLine, Subscription};

/// How long it may be quiet before a comment shows that the stream lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a client shall wait before it comes back.
const RETRY: &[u8] = b"retry: 1000\n\n";
/// Replayed events go out in pieces of about this many bytes.
const PIECE: usize = 64 * 1024;

/// What has happened since a number, and what happens from now on.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "events",
    params(
        ("after" = Option<u64>, Query, description = "The last number seen; without it, only what happens from now on"),
        ("follow" = Option<bool>, Query, description = "false: end after what is kept"),
        ("Last-Event-ID" = Option<u64>, Header, description = "As `after`, and stronger"),
    ),
    responses(
        (status = 200, description = "Server-sent events, each an Event; `gap` when some are no longer kept", body = Event, content_type = "text/event-stream"),
        (status = 400, description = "The number is none", body = Problem),
    ),
    security(("admin" = []))
)]
pub(super) async fn stream(api: web::Data<Api>, request: HttpRequest) -> Answer {
    let parameters = Parameters::of(&request, &["after", "follow"])?;
    let after = match last_event_id(&request)? {
        Some(number) => Some(number),
        None => parameters.number("after", u64::MAX)?,
    };
    let follow = parameters.flag("follow", true)?;
    let feed = Feed::new(api.cluster.events().subscribe(after), after, follow);
    let body = stream::unfold(feed, |mut feed| async move {
        feed.next()
            .await
            .map(|piece| (Ok::<_, Infallible>(piece), feed))
    });
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("Cache-Control", "no-store"))
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(body))
}

fn last_event_id(request: &HttpRequest) -> Result<Option<u64>, Problem> {
    let Some(header) = request.headers().get("Last-Event-ID") else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(header.as_bytes()).into_owned();
    match text.trim() {
        // What a browser sends that has seen none.
        "" => Ok(None),
        number => number.parse().map(Some).map_err(|_| {
            Problem::new(
                codes::QUERY_INVALID,
                "`Last-Event-ID` is not an event's number",
            )
            .field("Last-Event-ID")
            .value(text.clone())
            .remedy("send the `id` of the last event seen")
        }),
    }
}

/// One client's stream.
struct Feed {
    pending: VecDeque<Bytes>,
    live: Option<mpsc::Receiver<EventLine>>,
}

impl Feed {
    fn new(subscription: Subscription, after: Option<u64>, follow: bool) -> Self {
        let Subscription { replay, gap, live } = subscription;
        let mut pending = VecDeque::from([Bytes::from_static(RETRY)]);
        if let (Some(first), Some(after)) = (gap, after) {
            pending.push_back(gap_event(after, first));
        }
        pending.extend(pieces(&replay));
        Self {
            pending,
            live: follow.then_some(live),
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.pending.pop_front() {
            return Some(piece);
        }
        let live = self.live.as_mut()?;
        match tokio::time::timeout(HEARTBEAT, live.recv()).await {
            Ok(event) => event.map(|event| event.text),
            Err(_) => Some(Bytes::from_static(b": still here\n\n")),
        }
    }
}

/// Its `id` is the number before the first event that is kept, so a client that
/// is cut off right behind it goes on from there.
fn gap_event(after: u64, first: u64) -> Bytes {
    let what = if first > after {
        format!("events {} to {} are no longer kept", after + 1, first - 1)
    } else {
        format!("event {after} is not known here; the next one is {first}")
    };
    Bytes::from(format!("id: {}\nevent: gap\ndata: {what}\n\n", first - 1))
}

fn pieces(lines: &[EventLine]) -> Vec<Bytes> {
    let (mut pieces, mut piece) = (Vec::new(), BytesMut::new());
    for line in lines {
        piece.extend_from_slice(&line.text);
        if piece.len() >= PIECE {
            pieces.push(piece.split().freeze());
        }
    }
    if !piece.is_empty() {
        pieces.push(piece.freeze());
    }
    pieces
}
