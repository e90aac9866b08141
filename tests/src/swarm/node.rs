//! One simulated node's connection: kept for ever, as the daemon's uplink does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use godwit_node::uplink::{Backoff, Pace, chance};
use godwit_shared::pki::PeerIdentity;
use godwit_shared::transport::{
    Connection, Endpoint, MessageReceiver, MessageSender, StreamKind, TransportOptions,
    TransportRuntime,
};
use godwit_shared::wire::document::Document;
use godwit_shared::wire::lease::LeaseRequest;
use godwit_shared::wire::uplink::{CoordinatorMessage, NodeHello, NodeMessage};
use tokio::sync::{mpsc, watch};

use super::Everybody;
use super::guests::Guests;
use super::joining::Joined;

/// How long a hello may go without its answer.
const WELCOME: Duration = Duration::from_secs(15);

/// How often a lease of 20 s is renewed.
const RENEW: Duration = Duration::from_secs(5);

/// One node.
pub(super) struct SimulatedNode {
    endpoint: Endpoint,
    coordinator: SocketAddr,
    facts: Document,
    guests: Arc<Guests>,
    everybody: Everybody,
    connected: watch::Sender<usize>,
    backoff: Backoff,
}

impl SimulatedNode {
    pub(super) fn new(
        runtime: &TransportRuntime,
        options: TransportOptions,
        joined: Joined,
        facts: Document,
        guests: Arc<Guests>,
        everybody: Everybody,
        connected: watch::Sender<usize>,
    ) -> Result<Self> {
        let Joined {
            identity,
            coordinator,
        } = joined;
        Ok(Self {
            endpoint: Endpoint::client(runtime, &identity, options)?,
            coordinator,
            facts,
            guests,
            everybody,
            connected,
            backoff: Backoff::new(Pace::default()),
        })
    }

    /// Until it is dropped.
    pub(super) async fn keep(mut self) {
        loop {
            if let Ok(session) = self.begin().await {
                self.backoff.reset();
                let _here = Here::new(&self.connected);
                session.go_on(&self.guests, &self.everybody).await;
            }
            let wait = self.backoff.after_failure(chance());
            tokio::time::sleep(wait).await;
        }
    }

    async fn begin(&self) -> Result<Session> {
        let connection = self
            .endpoint
            .connect(self.coordinator, &PeerIdentity::Coordinator)
            .await?;
        let (sender, receiver) = connection.open(StreamKind::Control).await?;
        let (outbox, queue) = mpsc::unbounded_channel();
        let mut session = Session {
            sender: sender.into_messages(),
            receiver: receiver.into_messages(),
            queue,
            _connection: connection,
        };
        let hello = NodeHello {
            facts: self.facts.clone(),
            domains: self.guests.snapshot(outbox),
            migrations: Vec::new(),
        };
        session.sender.send(&NodeMessage::Hello(hello)).await?;
        let answer = tokio::time::timeout(WELCOME, session.receiver.recv()).await;
        match answer.context("no welcome")?? {
            Some(CoordinatorMessage::Welcome { .. }) => Ok(session),
            other => bail!("no welcome, but {other:?}"),
        }
    }
}

/// Counts a node as connected while it lives.
struct Here<'a>(&'a watch::Sender<usize>);

impl<'a> Here<'a> {
    fn new(connected: &'a watch::Sender<usize>) -> Self {
        connected.send_modify(|connected| *connected += 1);
        Self(connected)
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|connected| *connected -= 1);
    }
}

struct Session {
    sender: MessageSender<NodeMessage>,
    receiver: MessageReceiver<CoordinatorMessage>,
    queue: mpsc::UnboundedReceiver<NodeMessage>,
    _connection: Connection,
}

impl Session {
    /// Until its end.
    async fn go_on(mut self, guests: &Guests, everybody: &Everybody) {
        let mut renewal = tokio::time::interval(RENEW);
        let mut number = 0;
        loop {
            let sent = tokio::select! {
                _ = renewal.tick() => {
                    number += 1;
                    self.sender.send(&renew(number)).await.map_err(Into::into)
                }
                received = self.receiver.recv() => match received {
                    Ok(Some(message)) => self.on_message(message, guests, everybody).await,
                    Ok(None) | Err(_) => return,
                },
                Some(news) = self.queue.recv() => self.sender.send(&news).await.map_err(Into::into),
            };
            if sent.is_err() {
                return;
            }
        }
    }

    async fn on_message(
        &mut self,
        message: CoordinatorMessage,
        guests: &Guests,
        everybody: &Everybody,
    ) -> Result<()> {
        let (request, body) = match message {
            CoordinatorMessage::Request { request, body } => (request, body),
            CoordinatorMessage::Refused(problem) => bail!("refused: {problem}"),
            _ => return Ok(()),
        };
        let (news, outcome) = guests.serve(body, everybody);
        for message in news {
            self.sender.send(&message).await?;
        }
        let reply = NodeMessage::Reply { request, outcome };
        Ok(self.sender.send(&reply).await?)
    }
}

fn renew(number: u64) -> NodeMessage {
    let request = LeaseRequest { number, circle: 1 };
    NodeMessage::RenewLease { of: None, request }
}
