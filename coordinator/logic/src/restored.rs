//! What a backup's records become when they are restored.
//!
//! The nodes have gone on since the backup was taken, and know better. So what
//! the records say was under way is ended, since carrying it on could start a
//! guest that runs elsewhere by now or delete one that is wanted; and every node is
//! marked as not heard of ([`NodeRecord::unheard`]): until it has connected and
//! said what it runs, no VM is started or deleted anywhere. Epochs stay what they are: what a node
//! reports at a higher one is believed (rule 3 of [`crate::cluster`]).

use godwit_shared::api::{Event, PlanState, StepState, TaskState};
use godwit_shared::model::{MigrationPhase, Problem, UnixMillis, codes};
use godwit_shared::wire::lease::Circle;

use crate::record::{
    Key, LeaseRecord, MigrationRecord, NodeRecord, PlanRecord, TaskRecord, VmRecord,
};

/// The records as they are to be put into the store: `(key, value)`, with an
/// event that tells of it. Keys that are not the cluster's pass as they are.
///
/// # Errors
/// When a record cannot be read; with its key.
pub fn prepare(
    records: impl IntoIterator<Item = (String, Vec<u8>)>,
    now: UnixMillis,
    taken: UnixMillis,
) -> Result<Vec<(String, Vec<u8>)>, Problem> {
    let mut prepared = Vec::new();
    let mut last_event = 0;
    for (key, value) in records {
        let value = match key.parse::<Key>() {
            Ok(Key::Event(seq)) => {
                last_event = last_event.max(seq);
                Ok(value)
            }
            Ok(known) => changed(&known, &value, now),
            Err(_) => Ok(value),
        };
        let value = value.map_err(|error| unreadable(&key, &error))?;
        prepared.push((key, value));
    }
    let event = restored_event(last_event + 1, now, taken);
    let value = serde_json::to_vec(&event).map_err(Problem::internal)?;
    prepared.push((Key::Event(event.seq).to_string(), value));
    Ok(prepared)
}

fn changed(key: &Key, value: &[u8], now: UnixMillis) -> serde_json::Result<Vec<u8>> {
    match key {
        Key::Node(_) => edit(value, |node: &mut NodeRecord| node.unheard = !node.revoked),
        Key::Vm(_) => edit(value, |vm: &mut VmRecord| vm.deleting = false),
        Key::Task(_) => edit(value, |task: &mut TaskRecord| end_task(task, now)),
        Key::Migration(_) => edit(value, |migration: &mut MigrationRecord| {
            end_waiting(migration, now);
        }),
        Key::Plan(_) => edit(value, call_off),
        Key::Lease(_) => edit(value, |lease: &mut LeaseRecord| doubt_lease(lease, now)),
        Key::Token(_) | Key::Event(_) => Ok(value.to_vec()),
    }
}

fn edit<T>(value: &[u8], change: impl FnOnce(&mut T)) -> serde_json::Result<Vec<u8>>
where
    T: serde::de::DeserializeOwned + serde::Serialize,
{
    let mut record = serde_json::from_slice(value)?;
    change(&mut record);
    serde_json::to_vec(&record)
}

fn end_task(task: &mut TaskRecord, now: UnixMillis) {
    if task.state.is_final() {
        return;
    }
    let problem = Problem::new(
        codes::CANCELLED,
        "the cluster's records were restored from a backup of that time",
    )
    .remedy("look at the VM, then ask for it again if it is still wanted");
    task.state = TaskState::Failed;
    task.message.clone_from(&problem.message);
    task.problem = Some(problem);
    task.ended = Some(now);
}

/// One that was under way at its nodes is ended by their word, like after any
/// restart of the coordinator.
fn end_waiting(migration: &mut MigrationRecord, now: UnixMillis) {
    if migration.waiting && !migration.phase.is_final() {
        migration.waiting = false;
        migration.waits_for = None;
        migration.phase = MigrationPhase::Cancelled;
        migration.since = now;
        migration.ended = Some(now);
    }
}

/// What a plan had not begun is not begun any more.
fn call_off(plan: &mut PlanRecord) {
    if plan.view.state.is_final() {
        return;
    }
    plan.view.state = PlanState::Aborting;
    let steps = plan.view.progress.iter_mut();
    for step in steps.filter(|step| step.state == StepState::Pending) {
        step.state = StepState::Aborted;
        step.message = Some("the cluster's records were restored from a backup".into());
    }
}

/// The node may have been granted a lease since, and may go by a circle of which
/// the backup knows nothing: until it goes by one that is younger than the
/// restore, nothing is concluded from its silence.
fn doubt_lease(lease: &mut LeaseRecord, now: UnixMillis) {
    lease.fenced = None;
    lease.former = Some(Circle::default());
    lease.circle.version = now.0.max(lease.circle.version + 1);
}

fn restored_event(seq: u64, now: UnixMillis, taken: UnixMillis) -> Event {
    Event {
        seq,
        at: now,
        kind: "cluster.restored".into(),
        vm: None,
        node: None,
        migration: None,
        task: None,
        message: format!("the cluster's records were restored from a backup of {taken}"),
    }
}

fn unreadable(key: &str, error: &serde_json::Error) -> Problem {
    Problem::new(
        codes::BACKUP_INVALID,
        format!("the backup's record at `{key}` cannot be read: {error}"),
    )
    .value(key)
    .remedy("restore with the release that made the backup")
}
