//! Sends what the node has to say: replies and questions first, then news.

use std::collections::VecDeque;
use std::time::Duration;

use godwit_shared::model::{MigrationId, Problem};
use godwit_shared::transport::{MessageSender, SendError, StreamError};
use godwit_shared::wire::uplink::{MigrationReport, NodeMessage};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::SessionError;
use crate::bus::{BusSubscriber, NodeBus, NodeChange};
use crate::identity::chain_of;

/// How long a session has to go on after an ended migration was told, until
/// that counts as heard. Far more than the time in which a lost peer is noticed.
const SETTLED: Duration = Duration::from_secs(10);

/// Sends what the node has to say.
pub(super) struct Writer<'a> {
    pub(super) bus: &'a NodeBus,
    pub(super) sender: &'a mut MessageSender<NodeMessage>,
    pub(super) queue: &'a mut mpsc::Receiver<NodeMessage>,
    pub(super) news: &'a mut BusSubscriber,
    pub(super) settling: &'a mut Settling,
}

impl Writer<'_> {
    pub(super) async fn run(mut self) -> SessionError {
        loop {
            let message = tokio::select! {
                biased;
                Some(message) = self.queue.recv() => message,
                change = self.news.next() => self.message_of(change),
                migration = self.settling.next() => {
                    self.bus.forget_migration(migration);
                    continue;
                }
            };
            if let Err(error) = self.send(message).await {
                return error.into();
            }
        }
    }

    fn message_of(&mut self, change: NodeChange) -> NodeMessage {
        match change {
            NodeChange::Domain(report) => NodeMessage::Domain(report),
            NodeChange::Gone(vm) => NodeMessage::DomainGone(vm),
            NodeChange::Migration(report) => {
                self.settling.told(std::slice::from_ref(&report));
                NodeMessage::Migration(report)
            }
        }
    }

    async fn send(&mut self, message: NodeMessage) -> Result<(), StreamError> {
        match self.sender.send(&message).await {
            Ok(()) => Ok(()),
            Err(SendError::Stream(error)) => Err(error),
            // The stream is as it was. A reply is owed all the same.
            Err(error) => {
                tracing::error!(error = chain_of(&error), "a message cannot be sent");
                let NodeMessage::Reply { request, .. } = message else {
                    return Ok(());
                };
                let outcome = Err(Problem::internal("the answer is too large"));
                match self
                    .sender
                    .send(&NodeMessage::Reply { request, outcome })
                    .await
                {
                    Err(SendError::Stream(error)) => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Ended migrations that were told in this session, until that counts as heard.
#[derive(Debug)]
pub(super) struct Settling {
    wait: Duration,
    told: VecDeque<(Instant, MigrationId)>,
}

impl Default for Settling {
    fn default() -> Self {
        Self::after(SETTLED)
    }
}

impl Settling {
    const fn after(wait: Duration) -> Self {
        let told = VecDeque::new();
        Self { wait, told }
    }

    pub(super) fn told(&mut self, reports: &[MigrationReport]) {
        let heard = Instant::now() + self.wait;
        let ended = reports.iter().filter(|report| report.phase.is_final());
        self.told
            .extend(ended.map(|report| (heard, report.migration)));
    }

    /// The next one that counts as heard. Cancel-safe.
    async fn next(&mut self) -> MigrationId {
        match self.told.front().copied() {
            Some((heard, migration)) => {
                tokio::time::sleep_until(heard).await;
                self.told.pop_front();
                migration
            }
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use godwit_shared::model::{
        Epoch, MigrationFigures, MigrationPhase, MigrationProgress, UnixMillis, VmId,
    };

    use super::*;
    use crate::testing::soon;

    fn report(id: u128, phase: MigrationPhase) -> MigrationReport {
        MigrationReport {
            migration: MigrationId::from_u128(id),
            vm: VmId::from_u128(1),
            source: "a".parse().unwrap(),
            target: "b".parse().unwrap(),
            phase,
            since: UnixMillis(1),
            started: UnixMillis(1),
            progress: MigrationProgress::default(),
            blackout: None,
            figures: MigrationFigures::default(),
            failure: None,
            epoch: Epoch::FIRST,
        }
    }

    #[tokio::test]
    async fn only_ended_migrations_settle_and_each_once() {
        let wait = Duration::from_millis(20);
        let mut settling = Settling::after(wait);
        let begun = Instant::now();
        settling.told(&[
            report(1, MigrationPhase::Precopy),
            report(2, MigrationPhase::Completed),
            report(3, MigrationPhase::Cancelled),
        ]);
        assert_eq!(soon(settling.next()).await, MigrationId::from_u128(2));
        assert!(begun.elapsed() >= wait, "not before its time");
        assert_eq!(soon(settling.next()).await, MigrationId::from_u128(3));
        let more = tokio::time::timeout(wait, settling.next()).await;
        assert!(more.is_err(), "no other has ended");
    }
}
