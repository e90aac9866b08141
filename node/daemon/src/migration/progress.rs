//! What is told of a migration while it goes on: the report that the bus carries.

use godwit_node_logic::clock::OtherClock;
use godwit_node_logic::handoff::Outcome;
use godwit_shared::model::{
    Bytes, Epoch, Forecast, MigrationFailure, MigrationFigures, MigrationId, MigrationPhase,
    MigrationProgress, Millis, NodeId, Problem, UnixMillis, VmId,
};
use godwit_shared::wire::uplink::MigrationReport;

use crate::bus::NodeBus;

/// The report of one migration, published at every change.
pub(super) struct Progress {
    bus: NodeBus,
    report: MigrationReport,
    /// When the guest stopped, by QEMU's event, in microseconds since the epoch.
    stopped_at: Option<u64>,
    /// When the cause of a failure was noticed.
    trouble_at: Option<std::time::Instant>,
    /// The guest was lost in post-copy.
    lost: bool,
    /// The target's.
    clock: OtherClock,
}

/// The host's clock, as QEMU's events have it, in microseconds since the epoch.
pub(super) fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0))
}

impl Progress {
    pub(super) fn new(
        bus: NodeBus,
        migration: MigrationId,
        vm: VmId,
        route: (NodeId, NodeId),
        started: UnixMillis,
        epoch: Epoch,
    ) -> Self {
        let report = MigrationReport {
            migration,
            vm,
            source: route.0,
            target: route.1,
            phase: MigrationPhase::Queued,
            since: started,
            started,
            progress: MigrationProgress::default(),
            blackout: None,
            figures: MigrationFigures::default(),
            failure: None,
            epoch,
        };
        Self {
            bus,
            report,
            stopped_at: None,
            trouble_at: None,
            lost: false,
            clock: OtherClock::default(),
        }
    }

    pub(super) fn phase(&self) -> MigrationPhase {
        self.report.phase
    }

    /// Final phases are published by [`finish`](Self::finish), with their reasons.
    pub(super) fn enter(&mut self, phase: MigrationPhase) {
        if phase == MigrationPhase::Cancelling {
            self.trouble_at.get_or_insert_with(std::time::Instant::now);
        }
        if matches!(
            phase,
            MigrationPhase::Postcopy | MigrationPhase::PostcopyPaused
        ) {
            self.report.figures.postcopy = true;
        }
        if !phase.is_final() && phase != self.report.phase {
            self.report.phase = phase;
            self.report.since = UnixMillis::now();
            self.publish();
        }
    }

    /// Trouble was noticed now, if it was not before.
    pub(super) fn trouble(&mut self) {
        self.trouble_at.get_or_insert_with(std::time::Instant::now);
    }

    pub(super) fn guest_stopped(&mut self, timestamp_us: u64) {
        self.stopped_at = Some(timestamp_us);
    }

    /// The target has said what time it is there.
    pub(super) fn told_time(&mut self, sent_us: u64, there_us: u64) {
        self.clock.heard(sent_us, there_us, now_us());
    }

    /// The target's word that the CPUs run has arrived, with the moment of it on
    /// the target's clock. Without that moment, or with nothing known of that
    /// clock, the pause is taken until now: one message too long.
    pub(super) fn activated(&mut self, resumed_us: Option<u64>) {
        let now = now_us();
        self.report.figures.duration = Some(self.report.started.until(UnixMillis(now / 1000)));
        let Some(stopped) = self.stopped_at else {
            return;
        };
        let known = self.clock.offset(now);
        let pause = match (resumed_us, known) {
            (Some(resumed), Some(offset)) => {
                self.report.figures.clock_error_us = Some(offset.error);
                offset.between(stopped, resumed)
            }
            _ => now.saturating_sub(stopped),
        };
        self.report.blackout = Some(Millis(pause.div_ceil(1000)));
    }

    /// How it will go, as far as that could be sampled.
    pub(super) fn foretold(&mut self, forecast: Forecast) {
        self.report.figures.forecast = Some(forecast);
        self.publish();
    }

    /// The pause by QEMU's own count.
    pub(super) fn qemu_downtime(&mut self, downtime: Option<Millis>) {
        self.report.figures.qemu_downtime = downtime;
    }

    /// Pass after pass leaves as much to send.
    pub(super) fn stalled(&mut self) {
        tracing::info!(migration = %self.report.migration, "the migration does not converge");
        self.report.progress.stalled = true;
        self.publish();
    }

    /// Post-copy has failed for good. The domain is the target's and stands still.
    pub(super) fn guest_lost(&mut self, problem: Problem) {
        self.lost = true;
        self.alarm(problem);
    }

    /// Something to tell the operator while it goes on.
    pub(super) fn alarm(&mut self, problem: Problem) {
        tracing::warn!(migration = %self.report.migration, %problem, "a migration needs a look");
        let phase = self.report.phase;
        self.report.failure = Some(MigrationFailure {
            phase,
            problem,
            recovered_in: None,
        });
        self.publish();
    }

    pub(super) fn sampled(&mut self, mut sample: MigrationProgress) {
        // Nothing can be promised while pages are dirtied faster than sent.
        let net = sample.rate.0.saturating_sub(sample.dirty_rate.0);
        sample.eta = (net > 0).then(|| Millis(sample.remaining.0.saturating_mul(1000) / net));
        sample.iteration = sample.iteration.max(self.report.progress.iteration);
        sample.stalled = self.report.progress.stalled;
        sample.disks_total = self.report.progress.disks_total;
        sample.disks_done = self.report.progress.disks_done;
        self.report.progress = sample;
        self.publish();
    }

    /// Of the disks, so much of so much.
    pub(super) fn mirrored(&mut self, done: Bytes, total: Bytes) {
        let progress = &mut self.report.progress;
        (progress.disks_done, progress.disks_total) = (done, total);
        self.publish();
    }

    pub(super) fn pass(&mut self, iteration: u32) {
        self.report.progress.iteration = iteration;
    }

    pub(super) fn finish(&mut self, outcome: &Outcome, epoch: Epoch) {
        self.report.epoch = epoch;
        self.report.since = UnixMillis::now();
        self.report.progress.eta = None;
        match outcome {
            Outcome::Completed => {
                self.report.phase = MigrationPhase::Completed;
                if !self.lost {
                    self.report.failure = None;
                }
                self.report.progress.remaining = godwit_shared::model::Bytes::ZERO;
            }
            Outcome::Cancelled => {
                self.report.phase = MigrationPhase::Cancelled;
                self.report.failure = None;
            }
            Outcome::Failed { phase, problem } => {
                self.report.phase = MigrationPhase::Failed;
                self.report.failure = Some(MigrationFailure {
                    phase: *phase,
                    problem: problem.clone(),
                    recovered_in: self.trouble_at.map(|at| Millis::from(at.elapsed())),
                });
            }
        }
        self.publish();
    }

    fn publish(&self) {
        self.bus.publish_migration(self.report.clone());
    }
}
