//! The stream of events, taken up again where it broke off.
//!
//! The coordinator numbers events without gaps and replays from the number that
//! `Last-Event-ID` names; a coordinator that no longer keeps that many says so
//! with a `gap` event, and it is passed on.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use godwit_shared::api::Event;
use serde_json::Value;

use super::Client;
use super::sse::{Decoder, Frame};
use crate::failure::Failure;
use crate::output::{Item, not_understood};

/// A stream that says nothing for so long, not even a heartbeat, is dead.
const SILENCE: Duration = Duration::from_secs(60);

/// First and longest wait before the stream is asked for again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// What a stream brings.
pub(crate) enum Happening {
    /// An event.
    Event(Box<Item<Event>>),
    /// Events that are not kept any more; the coordinator's words.
    Gap(String),
    /// The connection was lost, and is being made anew.
    Lost,
}

/// A stream of events.
pub(crate) struct EventStream<'a> {
    client: &'a Client,
    after: u64,
    open: Option<Open>,
    wait: Duration,
    connected: bool,
}

struct Open {
    body: BoxStream<'static, Result<Vec<u8>, ()>>,
    decoder: Decoder,
    ready: std::collections::VecDeque<Frame>,
}

impl<'a> EventStream<'a> {
    /// The events after number `after`.
    pub(crate) fn after(client: &'a Client, after: u64) -> Self {
        Self {
            client,
            after,
            open: None,
            wait: RETRY.0,
            connected: false,
        }
    }

    /// The next happening. A coordinator that cannot be reached is a failure
    /// only at first; later it is waited for.
    pub(crate) async fn next(&mut self) -> Result<Happening, Failure> {
        loop {
            let Some(open) = &mut self.open else {
                self.connect().await?;
                continue;
            };
            if let Some(frame) = open.ready.pop_front() {
                match self.on_frame(frame)? {
                    Some(happening) => return Ok(happening),
                    None => continue,
                }
            }
            if let Ok(Some(Ok(chunk))) = tokio::time::timeout(SILENCE, open.body.next()).await {
                open.ready.extend(open.decoder.push(&chunk));
            } else {
                self.open = None;
                return Ok(Happening::Lost);
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        if self.connected {
            tokio::time::sleep(self.wait).await;
            self.wait = (self.wait * 2).min(RETRY.1);
        }
        match self.client.stream("/events", self.after).await {
            Ok(response) => {
                self.connected = true;
                let body = response.bytes_stream();
                self.open = Some(Open {
                    body: body
                        .map(|chunk| chunk.map(|bytes| bytes.to_vec()).map_err(drop))
                        .boxed(),
                    decoder: Decoder::default(),
                    ready: std::collections::VecDeque::new(),
                });
                Ok(())
            }
            Err(failure) if self.connected && failure.is_unreachable() => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    fn on_frame(&mut self, frame: Frame) -> Result<Option<Happening>, Failure> {
        self.wait = RETRY.0;
        if frame.event == "gap" {
            if let Some(id) = frame.id.and_then(|id| id.parse().ok()) {
                // Even if it is lower: a cluster that was made anew counts anew.
                self.after = id;
            }
            return Ok(Some(Happening::Gap(frame.data)));
        }
        let raw: Value = serde_json::from_str(&frame.data).map_err(|e| not_understood(&e))?;
        let item: Item<Event> = Item::read(raw)?;
        if item.view.seq <= self.after {
            return Ok(None);
        }
        self.after = item.view.seq;
        Ok(Some(Happening::Event(Box::new(item))))
    }
}
