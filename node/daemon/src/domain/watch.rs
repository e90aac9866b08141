//! What QEMU uses, whether it is alive, and how large its log has become.
//!
//! Nothing here asks QEMU whether something has happened: events tell that. The
//! process is looked at from outside (`/proc`); and a QEMU that has said nothing
//! for a while is asked for a sign of life, because a main loop that hangs sends
//! no event about it.

use std::path::Path;
use std::time::Duration;

use actix::prelude::*;
use godwit_node_logic::qmp::Command;
use godwit_shared::model::{DomainUsage, Problem, codes};

use super::DomainActor;
use crate::qemu::process::Sample;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// Looks between two questions for a sign of life.
const ALIVE_EVERY: u64 = 3;
/// How long the sign of life may take; QEMU's main loop holds its lock for
/// seconds on a loaded host.
const ALIVE: Duration = Duration::from_secs(10);
/// A change of usage is reported after this, or at once when it is large.
const REPORT_MS: u64 = 10_000;
/// A large change: so much CPU time, in milliseconds, or memory, in MiB.
const LARGE_CPU_MS: u64 = 1_000;
const LARGE_MIB: u64 = 64;
/// QEMU's log is put aside (one former log is kept) when it is larger, in bytes.
const LOG_LIMIT: u64 = 16 << 20;

impl DomainActor {
    pub(super) fn begin_watch(ctx: &mut Context<Self>) {
        let mut looks = 0;
        ctx.run_interval(LOOK, move |actor, ctx| {
            looks += 1;
            actor.look(ctx);
            if looks % ALIVE_EVERY == 0 {
                actor.ask_for_life(ctx);
            }
        });
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        let Some(process) = self.process.clone() else {
            return;
        };
        let log = self.place.qemu_log();
        let sample = tokio::task::spawn_blocking(move || {
            bound_log(&log);
            process.usage()
        });
        self.later(sample, ctx, |actor, sample, ctx| {
            if let Ok(Ok(sample)) = sample {
                actor.on_sample(sample, ctx);
            }
        });
    }

    fn on_sample(&mut self, sample: Sample, ctx: &mut Context<Self>) {
        self.usage = Some(sample.usage);
        if worth_reporting(self.published_usage, sample.usage) {
            self.publish();
        }
        let known = self.machine.state() == godwit_shared::model::DomainState::Unresponsive;
        if sample.stopped && !known {
            let problem = Problem::new(
                codes::QEMU_TIMEOUT,
                "QEMU's process is stopped by a signal or a debugger",
            )
            .remedy("let it go on (SIGCONT), or stop the VM");
            self.fell_silent(problem, ctx);
        }
    }

    fn ask_for_life(&mut self, ctx: &mut Context<Self>) {
        let Some(session) = self.session.clone() else {
            return;
        };
        if self.machine.state() == godwit_shared::model::DomainState::Unresponsive {
            return;
        }
        let sign = async move { session.execute(&Command::query_status(), ALIVE).await };
        self.later(sign, ctx, |actor, sign, ctx| {
            if let Err(problem) = sign
                && problem.code == codes::QEMU_TIMEOUT
            {
                actor.fell_silent(problem, ctx);
            }
        });
    }
}

fn worth_reporting(last: Option<DomainUsage>, now: DomainUsage) -> bool {
    let Some(last) = last else { return true };
    let changed = DomainUsage { at: now.at, ..last } != now;
    let large = now.cpu_ms.abs_diff(last.cpu_ms) >= LARGE_CPU_MS
        || now.resident.0.abs_diff(last.resident.0) >= LARGE_MIB;
    changed && (large || last.at.until(now.at).0 >= REPORT_MS)
}

/// Puts a large log aside. QEMU appends, so it writes on at the new end; what
/// it writes between the two steps is in neither file.
fn bound_log(log: &Path) {
    if std::fs::metadata(log).map_or(0, |m| m.len()) <= LOG_LIMIT {
        return;
    }
    let former = log.with_extension("log.1");
    let done = std::fs::copy(log, former).and_then(|_| {
        std::fs::OpenOptions::new()
            .write(true)
            .open(log)?
            .set_len(0)
    });
    if let Err(error) = done {
        tracing::warn!(%error, log = %log.display(), "QEMU's log cannot be put aside");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use godwit_shared::model::{MiB, UnixMillis};

    use super::*;

    fn usage(cpu_ms: u64, resident: u64, at: u64) -> DomainUsage {
        DomainUsage {
            cpu_ms,
            resident: MiB(resident),
            at: UnixMillis(at),
            ..DomainUsage::default()
        }
    }

    #[test]
    fn idle_domains_are_not_reported_over_and_over() {
        let last = Some(usage(100, 10, 0));
        assert!(worth_reporting(None, usage(0, 0, 0)));
        assert!(!worth_reporting(last, usage(100, 10, 60_000)), "no change");
        assert!(!worth_reporting(last, usage(101, 10, 5_000)), "a small one");
        assert!(
            worth_reporting(last, usage(101, 10, 10_000)),
            "after a while"
        );
        assert!(
            worth_reporting(last, usage(1_100, 10, 5_000)),
            "a large one"
        );
        assert!(worth_reporting(last, usage(100, 80, 5_000)));
    }

    #[test]
    fn a_large_log_is_put_aside_and_a_small_one_left() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("qemu.log");
        std::fs::write(&log, "words").unwrap();
        bound_log(&log);
        assert_eq!(std::fs::read(&log).unwrap(), b"words");
        std::fs::File::create(&log)
            .unwrap()
            .set_len(LOG_LIMIT + 1)
            .unwrap();
        bound_log(&log);
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
        let former = dir.path().join("qemu.log.1");
        assert_eq!(std::fs::metadata(former).unwrap().len(), LOG_LIMIT + 1);
    }
}
