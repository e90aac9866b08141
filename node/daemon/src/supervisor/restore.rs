//! Taking over what an earlier daemon left.

use std::path::Path;
use std::time::Duration;

use actix::prelude::*;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use godwit_node_logic::handoff::HandoffRecord;
use godwit_shared::model::VmId;
use tokio::sync::oneshot;

use super::Supervisor;
use super::messages::Restored;
use crate::domain::Origin;
use crate::domain::messages::TakenOver;
use crate::journal::{Journal, ReadError, Record};

/// A domain that is not taken over in this time is left to itself; its actor
/// goes on trying.
const PATIENCE: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Reads every record on a blocking thread and starts an actor for each.
    /// Messages wait that long: a domain that is defined meanwhile would be
    /// found as one that was left behind. The takeovers themselves hold up
    /// nobody.
    pub(super) fn restore(&mut self, ctx: &mut Context<Self>) {
        let domains = self.node.paths.domains();
        let read = tokio::task::spawn_blocking(move || read_records(&domains));
        let started = read.into_actor(self).map(|records, supervisor, ctx| {
            let records = records.unwrap_or_else(|error| {
                tracing::error!(%error, "the domains' records cannot be read");
                Vec::new()
            });
            let takeovers = join_all(supervisor.start_all(records, ctx));
            let restored = takeovers
                .into_actor(supervisor)
                .map(|found, supervisor, _| supervisor.on_restored(found));
            ctx.spawn(restored);
        });
        ctx.wait(started);
    }

    fn start_all(
        &mut self,
        records: Vec<Record>,
        ctx: &Context<Self>,
    ) -> Vec<BoxFuture<'static, (VmId, Option<HandoffRecord>)>> {
        if !records.is_empty() {
            tracing::info!(domains = records.len(), "taking over");
        }
        records
            .into_iter()
            .map(|record| {
                let (vm, known) = (record.vm, record.handoff.clone());
                let domain = self.adopt(Origin::Journal(record), vm, ctx);
                let taken = domain.send(TakenOver).timeout(PATIENCE);
                async move { (vm, taken.await.unwrap_or(known)) }.boxed()
            })
            .collect()
    }

    fn on_restored(&mut self, found: Vec<(VmId, Option<HandoffRecord>)>) {
        let handoffs: Vec<_> = found
            .into_iter()
            .filter_map(|(vm, record)| Some((vm, record?)))
            .collect();
        for waiter in self.restore_waiters.drain(..) {
            let _ = waiter.send(handoffs.clone());
        }
        self.restored = Some(handoffs);
    }
}

impl Handler<Restored> for Supervisor {
    type Result = ResponseFuture<Vec<(VmId, HandoffRecord)>>;

    fn handle(&mut self, _: Restored, _ctx: &mut Self::Context) -> Self::Result {
        let (sender, receiver) = oneshot::channel();
        match &self.restored {
            Some(handoffs) => drop(sender.send(handoffs.clone())),
            None => self.restore_waiters.push(sender),
        }
        Box::pin(async move { receiver.await.unwrap_or_default() })
    }
}

/// Every record that can be read; the others are put aside. Blocks.
fn read_records(domains: &Path) -> Vec<Record> {
    let entries = match std::fs::read_dir(domains) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::error!(dir = %domains.display(), %error, "the domains cannot be listed");
            return Vec::new();
        }
    };
    entries
        .filter_map(|entry| {
            let dir = entry.ok()?.path();
            let vm: VmId = dir.file_name()?.to_str()?.parse().ok()?;
            let journal = Journal::new(&dir);
            match journal.read(vm) {
                Ok(record) => Some(record),
                // A definition that was cut short, or one put aside before.
                Err(ReadError::Missing) => None,
                Err(error @ ReadError::Damaged(_)) => {
                    let problem = journal.put_aside(&error);
                    tracing::error!(%vm, %problem, "a domain is left out");
                    None
                }
                Err(error @ ReadError::Io(_)) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(%vm, error, "a domain is left out");
                    None
                }
            }
        })
        .collect()
}
