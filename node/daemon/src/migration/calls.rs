//! What both sides of a migration ask of the domain's actor, apart from QMP, and
//! what the target writes down.

use std::time::Duration;

use actix::Addr;
use godwit_node_logic::handoff::{HandoffRecord, TombstoneVerdict};
use godwit_shared::model::{ExitReason, MigrationId, Problem, VmId, codes};

use super::qemu::actor_gone;
use super::tombstones::Tombstones;
use crate::domain::DomainActor;
use crate::domain::messages::{Describe, DomainSignal, RecordHandoff, Subscribe};

/// How long to wait before what could not be written is tried again.
const AGAIN: Duration = Duration::from_millis(500);

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

/// That the domain has no QEMU, and whoever follows it since has not heard of
/// its end: it came before, also before this daemon.
pub(crate) async fn ended_before(domain: &Addr<DomainActor>) -> Option<Problem> {
    let report = domain.send(Describe).await.ok()?;
    (!report.state.has_process()).then(|| {
        Problem::new(codes::QEMU_GONE, "the domain's QEMU had ended before")
            .remedy("look at the VM's exit reason and its QEMU log")
    })
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

/// Writes down that the guest ran here, however often that takes.
pub(super) async fn write_granted(tombstones: &Tombstones, migration: MigrationId, vm: VmId) {
    loop {
        match tombstones.write(migration, vm, TombstoneVerdict::Granted) {
            Ok(TombstoneVerdict::Granted) => return,
            Ok(other) => {
                tracing::error!(%migration, ?other, "the word given before was another");
                return;
            }
            Err(problem) => {
                tracing::error!(%migration, %problem, "the word on the grant cannot be written down");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// The target's QEMU is gone.
pub(super) fn ended(reason: &ExitReason) -> Problem {
    Problem::new(
        codes::QEMU_GONE,
        format!("the target's QEMU ended: {reason}"),
    )
    .remedy("look at the target's QEMU log")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn the_word_on_a_grant_is_tried_until_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("words");
        let tombstones = Tombstones::open(folder.clone()).unwrap();
        std::fs::remove_dir(&folder).unwrap();
        let (migration, vm) = (MigrationId::from_u128(1), VmId::from_u128(2));
        let writing = write_granted(&tombstones, migration, vm);
        // The first try is before this, the next long after.
        let mended = async { std::fs::create_dir(&folder).unwrap() };
        tokio::join!(biased; writing, mended);
        let word = tombstones.read(migration).unwrap().unwrap();
        assert_eq!(word.verdict, TombstoneVerdict::Granted);
    }

    #[tokio::test]
    async fn another_word_that_was_given_before_stands() {
        let dir = tempfile::tempdir().unwrap();
        let tombstones = Tombstones::open(dir.path().join("words")).unwrap();
        let (migration, vm) = (MigrationId::from_u128(1), VmId::from_u128(2));
        let refused = TombstoneVerdict::Refused;
        tombstones.write(migration, vm, refused).unwrap();
        write_granted(&tombstones, migration, vm).await;
        let word = tombstones.read(migration).unwrap().unwrap();
        assert_eq!(word.verdict, refused);
    }
}
