//! Takes what the coordinator says. It never waits: neither for an actor nor for
//! the writer.

use std::sync::Arc;

use godwit_shared::model::{Problem, codes};
use godwit_shared::transport::{MessageReceiver, StreamError};
use godwit_shared::wire::uplink::{CoordinatorMessage, NodeMessage, NodeRequest};
use tokio::sync::{Semaphore, mpsc};

use super::{Context, SessionError};
use crate::identity::chain_of;
use crate::lease::Granted;
use crate::uplink::VerdictArrived;

/// Requests in hand at once; further ones are refused.
const MAX_REQUESTS: usize = 1024;

/// Takes what the coordinator says.
pub(super) struct Reader<'a> {
    context: &'a Context,
    outbox: &'a mpsc::Sender<NodeMessage>,
    places: Arc<Semaphore>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(context: &'a Context, outbox: &'a mpsc::Sender<NodeMessage>) -> Self {
        let places = Arc::new(Semaphore::new(MAX_REQUESTS));
        Self {
            context,
            outbox,
            places,
        }
    }

    pub(super) async fn run(
        &self,
        receiver: &mut MessageReceiver<CoordinatorMessage>,
    ) -> SessionError {
        loop {
            match receiver.recv().await {
                Ok(Some(message)) => {
                    if let Err(error) = self.on_message(message) {
                        return error;
                    }
                }
                Ok(None) => return StreamError::Closed.into(),
                Err(error) => return error.into(),
            }
        }
    }

    fn on_message(&self, message: CoordinatorMessage) -> Result<(), SessionError> {
        match message {
            CoordinatorMessage::Request { request, body } => self.on_request(request, body),
            CoordinatorMessage::MembersChanged { set, gone } => {
                self.context.change_members(set, &gone);
            }
            CoordinatorMessage::Members(members) => self.context.learn_members(&members),
            CoordinatorMessage::Verdict { migration, verdict } => {
                let arrived = VerdictArrived { migration, verdict };
                if self.context.uplink.try_send(arrived).is_err() {
                    tracing::warn!(%migration, "a verdict was not taken; it is asked for again");
                }
            }
            CoordinatorMessage::Certificate { chain } => self.on_certificate(chain),
            CoordinatorMessage::Lease { of, grant } => {
                let keeper = self.context.lease.as_ref();
                if let Some(Err(error)) = keeper.map(|k| k.try_send(Granted { of, grant })) {
                    tracing::warn!(%error, "a grant was not taken; it is asked for again");
                }
            }
            CoordinatorMessage::Refused(problem) => return Err(SessionError::Refused(problem)),
            CoordinatorMessage::Elsewhere { leader } => {
                return Err(SessionError::Elsewhere(leader));
            }
            CoordinatorMessage::Welcome { .. } => {
                return Err(SessionError::Protocol("it says welcome twice".into()));
            }
        }
        Ok(())
    }

    /// Hands the request over at once and waits for its answer beside the reading.
    fn on_request(&self, request: u64, body: NodeRequest) {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let answer = match place {
            Ok(_) => self.context.services.dispatch(body),
            Err(_) => Box::pin(std::future::ready(Err(overloaded(
                "requests",
                MAX_REQUESTS,
            )))),
        };
        let outbox = self.outbox.clone();
        actix::spawn(async move {
            let outcome = answer.await;
            drop(place);
            let reply = NodeMessage::Reply { request, outcome };
            // The session took its open requests with it.
            let _ = outbox.send(reply).await;
        });
    }

    fn on_certificate(&self, chain: String) {
        let identity = self.context.identity.clone();
        actix::spawn(async move {
            match tokio::task::spawn_blocking(move || identity.renew(&chain)).await {
                Ok(Ok(new)) => {
                    tracing::info!(not_after = %new.not_after(), "the certificate is renewed");
                }
                Ok(Err(error)) => {
                    tracing::error!(
                        error = chain_of(&error),
                        "the certificate is not renewed; it is tried again within the hour"
                    );
                }
                Err(_) => tracing::error!("the renewal of the certificate broke off"),
            }
        });
    }
}

pub(super) fn overloaded(what: &str, most: usize) -> Problem {
    Problem::new(
        codes::OVERLOADED,
        format!("the node has {most} {what} in hand"),
    )
    .remedy("try again when some have ended")
}
