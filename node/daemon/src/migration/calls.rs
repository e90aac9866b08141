//! What both sides of a migration ask of the domain's actor, apart from QMP.

use actix::Addr;
use godwit_node_logic::handoff::HandoffRecord;
use godwit_shared::model::{MigrationId, Problem};

use super::qemu::actor_gone;
use crate::domain::DomainActor;
use crate::domain::messages::{DomainSignal, RecordHandoff, Subscribe};

/// Puts the migration's record into the domain's journal, or takes it out.
pub(super) async fn record_handoff(
    domain: &Addr<DomainActor>,
    migration: MigrationId,
    record: Option<HandoffRecord>,
    durable: bool,
) -> Result<(), Problem> {
    let message = RecordHandoff {
        migration,
        record,
        durable,
    };
    let sent = domain.send(message).await;
    sent.unwrap_or_else(|_| Err(actor_gone()))
}

/// Hands on the domain's signals from now on, until `forward` says no more;
/// resolves when it is subscribed.
pub(super) async fn follow(
    domain: Addr<DomainActor>,
    forward: impl Fn(DomainSignal) -> bool + 'static,
) {
    if let Ok(mut signals) = domain.send(Subscribe).await {
        actix::spawn(async move {
            while let Some(signal) = signals.recv().await {
                if !forward(signal) {
                    break;
                }
            }
        });
    }
}
