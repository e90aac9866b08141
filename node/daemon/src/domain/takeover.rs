//! QEMUs that outlived a daemon, and the end of every QEMU.

use std::path::Path;
use std::time::Duration;

use actix::prelude::*;
use godwit_node_logic::domain::Event;
use godwit_shared::model::Usage;

use super::DomainActor;
use super::console::tail;
use crate::guard::Guard;
use crate::journal::RunRecord;
use crate::qemu::process::{Ended, Qemu};
use crate::qemu::rescue::Begun;

/// After this a QEMU that was found is reported as silent, so that it does not
/// hold up the reports of the others.
const TAKEOVER: Duration = Duration::from_secs(2);
/// How long QEMU's last QMP events may take to be read after its end.
const LAST_EVENTS: Duration = Duration::from_millis(300);
/// How much of what QEMU printed is kept.
const LAST_WORDS: usize = 4096;

/// What became of the QEMU in a record.
enum Found {
    Alive(Qemu),
    Gone {
        rebooted: bool,
        /// It was ended because the node's lease had ended.
        lease_lost: bool,
    },
}

impl DomainActor {
    /// Finds the QEMU of the record, and goes on where the last daemon ended.
    pub(super) fn take_over(&mut self, ctx: &mut Context<Self>) {
        let Some(run) = self.record.run.clone() else {
            return;
        };
        let usage = Usage::of(&self.record.spec);
        self.node.ledger.hold(self.vm(), usage);
        let (boot_id, qmp) = (self.node.boot_id.clone(), self.place.qmp());
        let guard = self.guard();
        let search =
            tokio::task::spawn_blocking(move || find(&run, &boot_id, &qmp, guard.as_ref()));
        self.later(search, ctx, |actor, found, ctx| match found {
            Ok(Found::Alive(process)) => actor.adopt(process, ctx),
            Ok(Found::Gone {
                rebooted,
                lease_lost,
            }) => actor.found_dead(rebooted, lease_lost, ctx),
            Err(error) => {
                tracing::error!(vm = %actor.vm(), %error, "the search for QEMU failed");
                actor.found_dead(false, false, ctx);
            }
        });
    }

    /// Who ends this VM with the node's lease, where it is protected.
    pub(super) fn guard(&self) -> Option<Guard> {
        let protected = self.record.spec.protected();
        protected.then(|| self.node.guard.clone())
    }

    fn adopt(&mut self, process: Qemu, ctx: &mut Context<Self>) {
        tracing::info!(vm = %self.vm(), name = %self.record.spec.name, pid = process.id().pid, "QEMU is taken over");
        if let Some(run) = &mut self.record.run {
            run.process = Some(process.id());
        }
        if self.machine.view().ending {
            // Stopped while it was being looked for.
            process.kill();
        }
        self.follow(process, ctx);
        self.open_rescue(Begun::Before, ctx);
        self.open_session(ctx);
        ctx.run_later(TAKEOVER, |actor, ctx| {
            if !actor.taken_over {
                let problem = godwit_shared::model::Problem::new(
                    godwit_shared::model::codes::QEMU_TIMEOUT,
                    "QEMU has not answered since godwit-node was restarted",
                )
                .remedy("see whether the process is stopped; stop the VM to end it");
                actor.fell_silent(problem, ctx);
            }
        });
    }

    fn found_dead(&mut self, rebooted: bool, lease_lost: bool, ctx: &mut Context<Self>) {
        self.taken_over = true;
        if lease_lost {
            self.tell(Event::LeaseLost, ctx);
        }
        let end = Event::Exited {
            detail: "it ended while godwit-node was not running".to_owned(),
            last_words: String::new(),
            rebooted,
        };
        self.tell(end, ctx);
        self.heard_at_last();
    }

    /// It is known how the QEMU that was found stands, or that it is silent.
    pub(super) fn heard_at_last(&mut self) {
        if !std::mem::replace(&mut self.taken_over, true) {
            self.publish();
        }
        for waiter in self.takeover_waiters.drain(..) {
            let _ = waiter.send(());
        }
    }

    /// Holds the process and waits for its end.
    pub(super) fn follow(&mut self, process: Qemu, ctx: &mut Context<Self>) {
        let log = self.place.qemu_log();
        let offset = self.record.run.as_ref().map_or(0, |run| run.log_offset);
        let (id, guard, ended) = (process.id(), self.guard(), process.clone().ended());
        self.process = Some(process);
        let look = move || {
            let lease_lost = guard.is_some_and(|guard| guard.has_ended(id));
            (lease_lost, last_words(&log, offset))
        };
        let ended = async move {
            let ended = ended.await;
            let seen = tokio::task::spawn_blocking(look).await;
            (ended, seen.unwrap_or_default())
        };
        self.later(ended, ctx, |actor, (ended, (lease_lost, words)), ctx| {
            if lease_lost {
                actor.tell(Event::LeaseLost, ctx);
            }
            actor.on_ended(ended, words, ctx);
        });
    }

    /// Its last events may still be on their way: the session's end tells that
    /// they were read.
    fn on_ended(&mut self, ended: Ended, words: String, ctx: &mut Context<Self>) {
        let end = Event::Exited {
            detail: ended.to_string(),
            last_words: match ended {
                Ended::Signal(_) => String::new(),
                _ => words,
            },
            rebooted: false,
        };
        self.taken_over = true;
        if self.session.is_none() {
            self.tell(end, ctx);
            return self.heard_at_last();
        }
        self.end = Some(end);
        let generation = self.generation;
        ctx.run_later(LAST_EVENTS, move |actor, ctx| {
            if actor.generation == generation
                && let Some(end) = actor.end.take()
            {
                actor.tell(end, ctx);
            }
        });
    }
}

fn find(run: &RunRecord, boot_id: &str, qmp: &Path, guard: Option<&Guard>) -> Found {
    if run.boot_id != boot_id {
        return Found::Gone {
            rebooted: true,
            lease_lost: false,
        };
    }
    let found = match run.process {
        Some(id) => Qemu::adopt(id),
        // The daemon ended between starting QEMU and writing its id down.
        None => Qemu::listening_at(qmp),
    };
    let Some(process) = found else {
        let lost = |id| guard.is_some_and(|guard| guard.has_ended(id));
        return Found::Gone {
            rebooted: false,
            lease_lost: run.process.is_some_and(lost),
        };
    };
    // The guardian may be another one than watched it before.
    if let Some(Err(problem)) = guard.map(|guard| guard.watch(process.id())) {
        tracing::error!(pid = process.id().pid, %problem, "a protected VM does not go on");
        process.kill();
    }
    Found::Alive(process)
}

/// The end of what QEMU printed in this run. Blocks.
fn last_words(log: &Path, offset: u64) -> String {
    let Ok((bytes, size)) = tail(log, LAST_WORDS) else {
        return String::new();
    };
    // A log that was put aside meanwhile begins anew.
    let fresh = size.saturating_sub(if offset > size { 0 } else { offset });
    let skip = bytes.len()
        - bytes
            .len()
            .min(usize::try_from(fresh).unwrap_or(usize::MAX));
    let text = String::from_utf8_lossy(bytes.get(skip..).unwrap_or_default());
    let lines: Vec<&str> = text.lines().map(without_timestamp).collect();
    lines.join("\n").trim().to_owned()
}

/// QEMU's `-msg timestamp=on` begins lines with an RFC 3339 time.
fn without_timestamp(line: &str) -> &str {
    match line.split_once(' ') {
        Some((stamp, rest))
            if stamp.ends_with('Z') && stamp.contains('T') && stamp.starts_with("20") =>
        {
            rest
        }
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn last_words_are_those_of_this_run() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("qemu.log");
        assert_eq!(last_words(&log, 0), "");
        std::fs::write(
            &log,
            "old words\n2026-01-02T03:04:05.678901Z qemu: bad\nmore\n",
        )
        .unwrap();
        assert_eq!(last_words(&log, 10), "qemu: bad\nmore");
        assert_eq!(last_words(&log, 99_999), "old words\nqemu: bad\nmore");
        std::fs::write(&log, "x".repeat(10_000)).unwrap();
        assert_eq!(last_words(&log, 0).len(), LAST_WORDS);
    }
}
