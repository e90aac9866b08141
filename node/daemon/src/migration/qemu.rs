//! The QMP commands of a migration, and what QEMU's events mean.
//!
//! Source of the names: QEMU's `qapi/migration.json`. Capabilities are set all
//! at once, those that are not wanted to off, because an earlier attempt on the
//! same QEMU may have left others behind.

use std::path::Path;
use std::time::Duration;

use actix::Addr;
use godwit_node_logic::handoff::{QemuMigration, pause_limit};
use godwit_node_logic::qmp;
use godwit_shared::model::{
    Bytes, BytesPerSec, MigrationPolicy, MigrationProgress, MigrationTuning, Millis, Problem, codes,
};
use serde_json::{Value, json};

use crate::domain::DomainActor;
use crate::domain::messages::Execute;

/// How long QEMU's main loop may be busy before a command counts as lost. Its
/// migration code takes the lock for long stretches.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long it may hang in a broken post-copy: as long as the path is down.
const HANGS: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long and how often a refused `cont` is tried.
const CONT_PATIENCE: Duration = Duration::from_secs(5);
const CONT_AGAIN: Duration = Duration::from_millis(100);

/// One command to the domain's QEMU.
pub(super) async fn execute(
    domain: &Addr<DomainActor>,
    command: &'static str,
    arguments: Value,
) -> Result<Value, Problem> {
    execute_within(domain, command, arguments, DEADLINE).await
}

async fn execute_within(
    domain: &Addr<DomainActor>,
    command: &'static str,
    arguments: Value,
    deadline: Duration,
) -> Result<Value, Problem> {
    let message = Execute {
        command,
        arguments,
        deadline,
    };
    domain
        .send(message)
        .await
        .unwrap_or_else(|_| Err(actor_gone()))
}

/// The domain's actor is gone: it was deleted, or the daemon stops.
pub(super) fn actor_gone() -> Problem {
    Problem::new(codes::QEMU_GONE, "the domain is no longer there")
}

/// Prepares and starts the source's migration to QEMU's side of the relay.
pub(super) async fn start_outgoing(
    domain: &Addr<DomainActor>,
    policy: &MigrationPolicy,
    socket: &Path,
) -> Result<(), Problem> {
    let capabilities = capabilities(policy, &[("pause-before-switchover", true)]);
    execute(domain, "migrate-set-capabilities", capabilities).await?;
    execute(domain, "migrate-set-parameters", source_parameters(policy)).await?;
    let told = execute(domain, "migrate", json!({ "uri": uri(socket) })).await;
    told.map(drop).map_err(stuck)
}

/// QEMU 10.0 forgets to free its yank instance when its channels break in the
/// few milliseconds in which it connects them, as when this daemon is killed
/// then; it refuses every later migration of the guest.
fn stuck(problem: Problem) -> Problem {
    if !problem.message.contains("duplicate yank instance") {
        return problem;
    }
    let text =
        "the guest's QEMU cannot send it any more: an earlier migration broke while it connected";
    Problem::new(codes::MIGRATION_BLOCKED, text)
        .remedy("stop and start the VM, or upgrade QEMU and then stop and start it")
        .and(vec![problem])
}

/// Makes a QEMU that was started with `-incoming defer` listen at `socket`.
pub(super) async fn start_incoming(
    domain: &Addr<DomainActor>,
    policy: &MigrationPolicy,
    socket: &Path,
) -> Result<(), Problem> {
    // Before 10.0 QEMU would take the disks' locks when all is loaded, while the
    // right to run is still the source's.
    let capabilities = capabilities(policy, &[("late-block-activate", true)]);
    execute(domain, "migrate-set-capabilities", capabilities).await?;
    if channels(policy) > 0 {
        let parameters = json!({ "multifd-channels": channels(policy) });
        execute(domain, "migrate-set-parameters", parameters).await?;
    }
    execute(domain, "migrate-incoming", json!({ "uri": uri(socket) })).await?;
    Ok(())
}

fn uri(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}

/// Multifd channels that a policy gets: QEMU up to 10.0 refuses them together
/// with post-copy.
fn channels(policy: &MigrationPolicy) -> u16 {
    if policy.allows_postcopy() {
        0
    } else {
        policy.channels
    }
}

fn capabilities(policy: &MigrationPolicy, more: &[(&str, bool)]) -> Value {
    let postcopy = policy.allows_postcopy();
    let common = [
        ("events", true),
        ("return-path", true),
        ("multifd", channels(policy) > 0),
        ("auto-converge", policy.auto_converge),
        ("postcopy-ram", postcopy),
        ("postcopy-preempt", postcopy),
        ("xbzrle", false),
    ];
    let list: Vec<Value> = common
        .iter()
        .chain(more)
        .map(|(name, state)| json!({ "capability": name, "state": state }))
        .collect();
    json!({ "capabilities": list })
}

fn source_parameters(policy: &MigrationPolicy) -> Value {
    let mut parameters = json!({
        // Zero is no limit.
        "max-bandwidth": policy.bandwidth.map_or(0, |limit| limit.0),
        "max-postcopy-bandwidth": policy.bandwidth.map_or(0, |limit| limit.0),
        "downtime-limit": pause_limit(0, policy.downtime).0.min(LONGEST_DOWNTIME.0),
    });
    if channels(policy) > 0 {
        parameters["multifd-channels"] = json!(channels(policy));
    }
    parameters
}

/// The longest pause that QEMU takes for a limit (`downtime-limit`): 2000 s.
pub(super) const LONGEST_DOWNTIME: Millis = Millis(2_000_000);

/// Stops the guest. True when QEMU was still sending memory afterwards: then it
/// will not resume the guest by itself, whatever becomes of its migration.
pub(super) async fn stop_for_postcopy(domain: &Addr<DomainActor>) -> Result<bool, Problem> {
    execute(domain, "stop", Value::Null).await?;
    Ok(look(domain).await? == Some(QemuMigration::Active))
}

/// Sends the rest of a post-copy over new channels.
pub(super) async fn resume_outgoing(
    domain: &Addr<DomainActor>,
    socket: &Path,
) -> Result<(), Problem> {
    let arguments = json!({ "uri": uri(socket), "resume": true });
    execute(domain, "migrate", arguments).await?;
    Ok(())
}

/// Makes a QEMU whose post-copy is broken listen at `socket` for the rest. One
/// that does so already is left as it is.
pub(super) async fn recover_incoming(
    domain: &Addr<DomainActor>,
    socket: &Path,
) -> Result<(), Problem> {
    let recovered = execute(domain, "migrate-recover", json!({ "uri": uri(socket) })).await;
    match recovered {
        Err(_) if socket.exists() => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Where the source's post-copy stands; one that still believes in its channels
/// is told that they are gone, and says so by an event.
pub(super) async fn pause_outgoing(
    domain: &Addr<DomainActor>,
) -> Result<Option<QemuMigration>, Problem> {
    let state = look(domain).await?;
    if state == Some(QemuMigration::PostcopyActive) {
        pause_postcopy(domain).await?;
        return Ok(None);
    }
    Ok(state)
}

/// Tells QEMU that its channels are gone.
pub(super) async fn pause_postcopy(domain: &Addr<DomainActor>) -> Result<(), Problem> {
    execute(domain, "migrate-pause", Value::Null).await?;
    Ok(())
}

/// One look at QEMU's migration, after a lost connection or a restart.
pub(super) async fn look(domain: &Addr<DomainActor>) -> Result<Option<QemuMigration>, Problem> {
    let answer = execute(domain, "query-migrate", Value::Null).await?;
    let word = answer.get("status").and_then(Value::as_str);
    Ok(word.and_then(|word| status(word, &error_words(&answer).unwrap_or_default())))
}

/// How the migration of a QEMU that receives stands, as soon as it says so: its main
/// loop may hang until the source is back. It is asked once, since QEMU stops
/// reading, also what overtakes, when eight commands wait in a session. One whose
/// post-copy was made to wait for new channels, by a daemon before this one, is as
/// good as paused.
pub(super) async fn look_at_incoming(
    domain: &Addr<DomainActor>,
) -> Result<Option<QemuMigration>, Problem> {
    let answer = execute_within(domain, "query-migrate", Value::Null, HANGS).await?;
    Ok(incoming_status(&answer))
}

fn incoming_status(answer: &Value) -> Option<QemuMigration> {
    match answer.get("status")?.as_str()? {
        "postcopy-recover-setup" | "postcopy-recover" => Some(QemuMigration::PostcopyPaused),
        word => status(word, &error_words(answer).unwrap_or_default()),
    }
}

/// Changes a migration while it runs.
pub(super) async fn tune(
    domain: &Addr<DomainActor>,
    tuning: &MigrationTuning,
) -> Result<(), Problem> {
    let mut parameters = serde_json::Map::new();
    if let Some(rate) = tuning.bandwidth {
        parameters.insert("max-bandwidth".into(), rate.0.into());
        parameters.insert("max-postcopy-bandwidth".into(), rate.0.into());
    }
    if let Some(downtime) = tuning.downtime {
        let limit = downtime.0.min(LONGEST_DOWNTIME.0);
        parameters.insert("downtime-limit".into(), limit.into());
    }
    if !parameters.is_empty() {
        execute(domain, "migrate-set-parameters", Value::Object(parameters)).await?;
    }
    Ok(())
}

/// What an event says of the migration; nothing for those that do not matter.
pub(super) fn meaning(event: &qmp::Event) -> Option<QemuMigration> {
    if event.name != "MIGRATION" {
        return None;
    }
    status(event.text("status")?, "")
}

/// What a status of `MIGRATION` or `query-migrate` means.
fn status(status: &str, words: &str) -> Option<QemuMigration> {
    Some(match status {
        "active" => QemuMigration::Active,
        "pre-switchover" => QemuMigration::PreSwitchover,
        "postcopy-active" => QemuMigration::PostcopyActive,
        "postcopy-paused" => QemuMigration::PostcopyPaused,
        "completed" => QemuMigration::Completed,
        "failed" => QemuMigration::Failed(words.to_owned()),
        "cancelled" => QemuMigration::Cancelled,
        "none" => QemuMigration::Idle,
        _ => return None,
    })
}

/// QEMU's words about a failed migration.
pub(super) async fn failure(domain: &Addr<DomainActor>) -> String {
    let answer = execute(domain, "query-migrate", Value::Null).await;
    answer
        .ok()
        .as_ref()
        .and_then(error_words)
        .unwrap_or_default()
}

fn error_words(answer: &Value) -> Option<String> {
    Some(answer.get("error-desc")?.as_str()?.to_owned())
}

/// Cancels, and looks where the migration stands then: one that ended before,
/// or in an earlier life of this daemon, sends no event any more. One that
/// still connects is left alone: QEMU 10.0 would not recover from it.
pub(super) async fn cancel(domain: &Addr<DomainActor>) -> Result<Option<QemuMigration>, Problem> {
    let before = execute(domain, "query-migrate", Value::Null).await?;
    if before.get("status").and_then(Value::as_str) == Some("setup") {
        return Ok(Some(QemuMigration::Connecting));
    }
    execute(domain, "migrate_cancel", Value::Null).await?;
    let answer = execute(domain, "query-migrate", Value::Null).await?;
    let Some(word) = answer.get("status").and_then(Value::as_str) else {
        return Ok(Some(QemuMigration::Idle));
    };
    let ended = status(word, &error_words(&answer).unwrap_or_default());
    Ok(ended.filter(|s| !matches!(s, QemuMigration::Active | QemuMigration::PreSwitchover)))
}

/// Makes sure that the CPUs run again after a migration that did not happen.
/// QEMU resumes a guest by itself when it cancels in time; after the switchover
/// it does not. A guest that has ended meanwhile is left to its domain.
///
/// The target's QEMU may hold the disks' locks for a moment yet, so a refused
/// `cont` is tried again for a while.
pub(crate) async fn make_sure_it_runs(domain: &Addr<DomainActor>) -> Result<(), Problem> {
    let patience = tokio::time::Instant::now() + CONT_PATIENCE;
    while !settled(domain).await? {
        match execute(domain, "cont", Value::Null).await {
            Err(problem) if tokio::time::Instant::now() > patience => return Err(problem),
            Err(problem) => {
                tracing::warn!(%problem, "the guest is not resumed yet");
                wake_the_failed(domain).await;
                tokio::time::sleep(CONT_AGAIN).await;
            }
            Ok(_) if settled(domain).await? => return Ok(()),
            Ok(_) => {
                return Err(
                    Problem::new(codes::QEMU_COMMAND, "QEMU does not resume the guest")
                        .remedy("look at the VM's QEMU log, then resume or restart it"),
                );
            }
        }
    }
    Ok(())
}

/// Wakes a migration that failed while QEMU waited at `pre-switchover`: a channel
/// that breaks then changes its status, but leaves its thread asleep (QEMU 10.0,
/// `multifd_send_set_error`), and only that thread lets go of the guest. A cancel
/// does nothing any more; `migrate-continue` wakes whoever waits, at any status.
async fn wake_the_failed(domain: &Addr<DomainActor>) {
    let arguments = json!({ "state": "failed" });
    if execute(domain, "migrate-continue", arguments).await.is_ok() {
        tracing::warn!("a failed migration was woken, so that the guest can go on");
    }
}

/// Whether the CPUs run, or stand still for a reason of the guest's own.
async fn settled(domain: &Addr<DomainActor>) -> Result<bool, Problem> {
    let answer = execute(domain, "query-status", Value::Null).await?;
    let running = answer
        .get("running")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let status = answer.get("status").and_then(Value::as_str).unwrap_or("");
    Ok(running
        || matches!(
            status,
            "shutdown" | "guest-panicked" | "internal-error" | "io-error"
        ))
}

/// What the guest's own QEMU has against its move (`blocked-reasons`): devices
/// whose state cannot be sent.
pub(super) async fn blocked(domain: &Addr<DomainActor>) -> Result<Vec<Problem>, Problem> {
    let answer = execute(domain, "query-migrate", Value::Null).await?;
    Ok(blocked_reasons(&answer))
}

fn blocked_reasons(answer: &Value) -> Vec<Problem> {
    let reasons = answer.get("blocked-reasons").and_then(Value::as_array);
    let words = reasons.into_iter().flatten().filter_map(Value::as_str);
    words
        .map(|words| {
            let text = format!("QEMU cannot move the guest: {words}");
            Problem::new(codes::MIGRATION_BLOCKED, text)
                .field("devices")
                .value(words)
                .remedy("remove the device that it names, or shut the VM down to move it")
        })
        .collect()
}

/// A sample for those who watch.
pub(super) async fn sample(domain: &Addr<DomainActor>) -> Result<MigrationProgress, Problem> {
    Ok(progress(
        &execute(domain, "query-migrate", Value::Null).await?,
    ))
}

/// QEMU's last sample, and how long it says that the guest stood still.
pub(super) async fn last_sample(
    domain: &Addr<DomainActor>,
) -> Result<(MigrationProgress, Option<Millis>), Problem> {
    let answer = execute(domain, "query-migrate", Value::Null).await?;
    let downtime = answer.get("downtime").and_then(Value::as_u64);
    Ok((progress(&answer), downtime.map(Millis)))
}

/// Reads `query-migrate`. What QEMU leaves out is zero.
fn progress(answer: &Value) -> MigrationProgress {
    let ram = answer.get("ram");
    let number = |name: &str| {
        ram.and_then(|r| r.get(name))
            .and_then(Value::as_u64)
            .unwrap_or(0)
    };
    let top = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    let mbps = ram
        .and_then(|r| r.get("mbps"))
        .and_then(Value::as_f64)
        .unwrap_or(0.0);
    let page_size = number("page-size").max(1);
    MigrationProgress {
        total: Bytes(number("total")),
        transferred: Bytes(number("transferred")),
        remaining: Bytes(number("remaining")),
        rate: BytesPerSec(bytes_per_second(mbps)),
        dirty_rate: BytesPerSec(number("dirty-pages-rate").saturating_mul(page_size)),
        iteration: u32::try_from(number("dirty-sync-count")).unwrap_or(u32::MAX),
        eta: None,
        throttle_percent: u8::try_from(top("cpu-throttle-percentage"))
            .unwrap_or(99)
            .min(99),
        elapsed: Millis(top("total-time")),
        ..MigrationProgress::default()
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped before"
)]
fn bytes_per_second(megabits: f64) -> u64 {
    if megabits.is_finite() {
        (megabits.clamp(0.0, 1e9) * 125_000.0) as u64
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_sample_is_read_with_its_units() {
        let answer = json!({
            "status": "active", "total-time": 1500, "cpu-throttle-percentage": 20,
            "ram": { "total": 1000, "transferred": 400, "remaining": 600, "mbps": 8.0,
                     "dirty-pages-rate": 3, "page-size": 4096, "dirty-sync-count": 2 },
        });
        let sample = progress(&answer);
        assert_eq!(sample.rate, BytesPerSec(1_000_000));
        assert_eq!(sample.dirty_rate, BytesPerSec(12_288));
        assert_eq!((sample.iteration, sample.throttle_percent), (2, 20));
        assert_eq!(sample.elapsed, Millis(1500));
    }

    #[test]
    fn each_reason_of_qemu_is_a_blocker() {
        let answer = json!({"blocked": true, "blocked-reasons": ["vfio", "9p in use"]});
        let found = blocked_reasons(&answer);
        assert_eq!(found.len(), 2);
        assert!(found[1].to_string().contains("9p in use"));
        assert_eq!(blocked_reasons(&json!({})), []);
        assert_eq!(blocked_reasons(&json!({"blocked-reasons": 1})), []);
    }

    #[test]
    fn a_strange_sample_is_no_panic() {
        for answer in [
            json!(null),
            json!({"ram": 1}),
            json!({"ram": {"mbps": 1e300, "page-size": 0}}),
        ] {
            let _ = progress(&answer);
        }
        assert_eq!(bytes_per_second(f64::NAN), 0);
    }

    #[test]
    fn a_receiver_that_waits_for_new_channels_is_paused() {
        for word in [
            "postcopy-recover-setup",
            "postcopy-recover",
            "postcopy-paused",
        ] {
            let found = incoming_status(&json!({ "status": word }));
            assert_eq!(found, Some(QemuMigration::PostcopyPaused), "{word}");
        }
        let whole = incoming_status(&json!({ "status": "postcopy-active" }));
        assert_eq!(whole, Some(QemuMigration::PostcopyActive));
        assert_eq!(incoming_status(&json!({})), None);
    }

    #[test]
    fn states_between_say_nothing() {
        for word in [
            "setup",
            "device",
            "cancelling",
            "wait-unplug",
            "new-in-qemu-12",
        ] {
            assert_eq!(status(word, ""), None);
        }
        assert_eq!(
            status("failed", "why"),
            Some(QemuMigration::Failed("why".into()))
        );
    }
}
