//! Meeting a migration at a chosen moment, and looking at what became of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use godwit_shared::api::{MigrationView, TaskState, TaskView};
use godwit_shared::model::{BytesPerSec, MigrationId, MigrationPhase, MigrationPolicy, Millis};

use crate::events::Mark;
use crate::scene::{SETTLE, Scene, slow};

/// How often a moment that was missed is tried again.
const TRIES: u32 = 4;

/// When something shall go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// While the target prepares.
    Start,
    /// As soon as QEMU was told to send.
    Connecting,
    /// While memory is sent and the guest runs, under a limit of the bandwidth.
    Middle,
    /// The same without a limit; only a guest with much memory takes long enough.
    FullSpeed,
    /// While the guest stands still and the rest is sent.
    Switchover,
}

impl Moment {
    /// Those that every fault is tried at.
    pub const ALL: [Self; 4] = [
        Self::Start,
        Self::Connecting,
        Self::Middle,
        Self::Switchover,
    ];

    /// The phase that it is met in.
    pub const fn phase(self) -> MigrationPhase {
        match self {
            Self::Start => MigrationPhase::Preparing,
            Self::Connecting | Self::Middle | Self::FullSpeed => MigrationPhase::Precopy,
            Self::Switchover => MigrationPhase::Switchover,
        }
    }

    /// A policy under which that phase is long enough to be met.
    pub fn policy(self) -> MigrationPolicy {
        match self {
            Self::Start | Self::FullSpeed => MigrationPolicy::default(),
            // Half a minute for a small guest.
            Self::Connecting | Self::Middle => slow(2 << 20),
            // QEMU stops the guest as soon as it believes that what is left
            // fits into this pause, and then sends it as fast as it can.
            Self::Switchover => MigrationPolicy {
                bandwidth: Some(BytesPerSec(8 << 20)),
                downtime: Millis(60_000),
                auto_converge: false,
                ..MigrationPolicy::default()
            },
        }
    }
}

/// A migration that was met.
#[derive(Debug)]
pub struct Met {
    /// Its task.
    pub task: TaskView,
    /// The migration.
    pub migration: MigrationId,
    /// Before it began.
    pub mark: Mark,
    /// When the event of the moment came.
    pub at: Instant,
}

impl Scene {
    /// Begins a move and waits for the moment.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn meet(&mut self, name: &str, to: usize, moment: Moment) -> Result<Met> {
        let mark = self.cluster.events.mark();
        let (task, migration) = self.begin_move(name, to, moment.policy()).await?;
        let events = &self.cluster.events;
        let met = events
            .phase(mark, migration, moment.phase(), SETTLE)
            .await?;
        if matches!(moment, Moment::Middle | Moment::FullSpeed) {
            // Memory flows by now, and the guest runs meanwhile.
            let counted = self.count(name)?.last;
            self.counts_past(name, counted + 10, SETTLE).await?;
        }
        Ok(Met {
            task,
            migration,
            mark,
            at: met.at,
        })
    }

    /// Waits for the end of a migration that was met; returns it with the time
    /// from `since` to the arrival of the event that told of it.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn end_of(
        &self,
        met: &Met,
        since: Instant,
        limit: Duration,
    ) -> Result<(MigrationView, Duration)> {
        let ended = self
            .cluster
            .events
            .wait(met.mark, "the migration's end", limit, |event| {
                event.kind == "task.ended" && event.task == Some(met.task.id)
            })
            .await?;
        let view = self.cluster.api.migration(met.migration).await?;
        Ok((view, ended.at.saturating_duration_since(since)))
    }

    /// Lets `fault` happen at the moment and checks that the guest stayed: it
    /// runs on `from`, once, uninterrupted, and its task says why. Returns the
    /// migration and the time from the fault to the confirmed end.
    ///
    /// A switchover lasts a fraction of a second: when the fault came after it
    /// and the move succeeded, the guest is moved back and it is tried again.
    ///
    /// # Errors
    /// With what is wrong.
    pub async fn survives(
        &mut self,
        name: &str,
        (from, to): (usize, usize),
        moment: Moment,
        mut fault: impl AsyncFnMut(&mut Self, &Met) -> Result<Instant>,
        mut mend: impl AsyncFnMut(&mut Self) -> Result<()>,
    ) -> Result<(MigrationView, Duration)> {
        for _ in 0..TRIES {
            let met = self.meet(name, to, moment).await?;
            let since = fault(self, &met).await?;
            let (view, took) = self.end_of(&met, since, SETTLE).await?;
            let task = self.cluster.api.ended(met.task.id, SETTLE).await?;
            if view.phase == MigrationPhase::Completed {
                mend(self).await?;
                self.arrived(name, to, met.migration).await?;
                self.move_to(name, from).await?;
                continue;
            }
            told(&view, &task, moment)?;
            self.goes_on(name, from).await?;
            mend(self).await?;
            let id = self.id(name)?;
            self.cluster.nothing_left(id, to, SETTLE).await?;
            self.runs_on(name, from).await?;
            return Ok((view, took));
        }
        bail!("{moment:?} was missed {TRIES} times")
    }
}

/// Checks that a failed migration and its task say what happened, and when.
fn told(view: &MigrationView, task: &TaskView, moment: Moment) -> Result<()> {
    if task.state == TaskState::Succeeded {
        bail!("the migration is {} and its task succeeded", view.phase);
    }
    if view.phase == MigrationPhase::Cancelled {
        // That was its wish: there is no failure to explain.
        return Ok(());
    }
    let problem = task.problem.as_ref().context("the task names no problem")?;
    if problem.message.is_empty() {
        bail!("the task's problem has no message: {problem:?}");
    }
    let failure = view
        .failure
        .as_ref()
        .context("the migration names no failure")?;
    let late = matches!(
        failure.phase,
        MigrationPhase::Handoff | MigrationPhase::InDoubt
    );
    // An event takes a moment to come here, and the next phase may have begun.
    let order = |phase| {
        let all = [
            MigrationPhase::Queued,
            MigrationPhase::Preparing,
            MigrationPhase::Precopy,
            MigrationPhase::Switchover,
        ];
        all.iter().position(|known| *known == phase)
    };
    if !late && order(failure.phase) < order(moment.phase()) {
        bail!(
            "it was met in {} and failed in {}",
            moment.phase(),
            failure.phase
        );
    }
    Ok(())
}
