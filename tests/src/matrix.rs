//! One case of the fault matrix: a move that is held at a fault point, a fault
//! there, and what has to be true of the guest afterwards.
//!
//! The guest travels: each case moves it from where the last one left it, so
//! both directions are met. A case ends when nothing is left of it.

pub mod disks;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use godwit_node::fault::POINTS;
use godwit_shared::api::{NodeHealth, TaskView};
use godwit_shared::model::{
    DomainState, ExitReason, LifecycleCommand, MigrationId, MigrationPolicy,
};
use rustix::process::Signal;

use crate::points::Armed;
use crate::scene::{BOOT, MOVE, SETTLE, Scene, slow};
use crate::wait;

/// Frozen or cut for longer than any liveness timeout (0.8 s).
const NOTICED: Duration = Duration::from_millis(1_200);
/// Memory takes some seconds: a fault in the pre-copy is over before that is.
const PRECOPY: u64 = 16 << 20;

/// Who is met by a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// The daemon that the guest leaves.
    SourceDaemon,
    /// The daemon that it comes to.
    TargetDaemon,
    /// The QEMU that it leaves.
    SourceQemu,
    /// The QEMU that it comes to.
    TargetQemu,
    /// The coordinator.
    Coordinator,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`; a daemon is started again.
    Kill(Party),
    /// `SIGSTOP`, and `SIGCONT` after longer than the liveness timeouts.
    Freeze(Party),
    /// An operator cancels.
    Cancel,
    /// The path between the nodes swallows everything for as long.
    CutPath,
    /// The target's path to everybody does.
    CutOff,
}

/// What becomes of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It runs on the source.
    Stays,
    /// It runs on the target.
    Moves,
    /// Its QEMU was killed, and it is shown as crashed on the source.
    CrashesOnSource,
    /// The same on the target.
    CrashesOnTarget,
}

/// Whether a point comes before another, in the order of [`POINTS`].
fn before(point: &str, other: &str) -> bool {
    let place = |name| POINTS.iter().position(|known| *known == name);
    place(point) < place(other)
}

/// The point of every migration that is like one of a migration with disks: the
/// right is with the same node there, and the same QEMUs are.
fn like(point: &str) -> &str {
    match point {
        "target.before_export" | "target.after_export" => "target.before_send_prepared",
        "source.before_mirror" | "source.in_mirror" | "source.mirrors_ready" => {
            "source.before_migrate"
        }
        "source.before_finish_mirrors"
        | "source.before_let_go"
        | "target.before_end_exports"
        | "target.after_end_exports" => "source.before_continue",
        "source.before_remove_images" => "source.after_retire",
        "source.before_abort_mirrors" => "source.before_stay",
        "target.before_remove_images" => "target.before_discard",
        other => other,
    }
}

/// Whether a point is met only by a migration that is called off.
fn called_off(point: &str) -> bool {
    !before(point, "target.before_discard")
}

impl Fault {
    /// Whether there is anybody to meet it at that point.
    pub fn applies(self, point: &str) -> bool {
        let point = like(point);
        if self == Self::Cancel {
            // It is refused from the grant on.
            return before(point, "source.before_grant_journal");
        }
        let (Self::Kill(party) | Self::Freeze(party)) = self else {
            return true;
        };
        match (party, point) {
            // There is none yet, or none any more; called off, it ends by itself.
            (
                Party::TargetQemu,
                "target.before_start" | "target.before_discard" | "source.before_stay",
            ) => false,
            // The source has heard that the guest runs, and ends it.
            (Party::SourceQemu, "target.after_cont" | "source.after_retire") => false,
            // Whether the source has heard yet that its QEMU is done decides that
            // one: the points before and after it have both ends.
            (Party::SourceQemu, "target.before_send_loaded") => self == Self::Freeze(party),
            _ => true,
        }
    }

    /// What has to become of the guest. The line is the grant: before it is
    /// with the target, a lost peer leaves the guest where it was; after it,
    /// the guest runs on the target.
    pub fn end(self, point: &str) -> End {
        let point = like(point);
        let granted = before("source.after_grant_journal", point);
        let by_line = |granted| if granted { End::Moves } else { End::Stays };
        match self {
            _ if called_off(point) => match self {
                Self::Kill(Party::SourceQemu) => End::CrashesOnSource,
                _ => End::Stays,
            },
            Self::Cancel => End::Stays,
            // It is in nobody's way; and a frozen QEMU only takes longer.
            Self::Kill(Party::Coordinator) | Self::Freeze(Party::Coordinator) => End::Moves,
            Self::Freeze(Party::SourceQemu | Party::TargetQemu) => End::Moves,
            // The grant in hand was not written down.
            Self::Kill(Party::TargetDaemon) => {
                by_line(granted && point != "target.before_grant_journal")
            }
            Self::Kill(Party::SourceQemu) => {
                // All of it is on the target when the grant is about to be written.
                if before(point, "source.before_grant_journal") {
                    End::CrashesOnSource
                } else {
                    End::Moves
                }
            }
            // Until the CPUs ran there, the right goes back.
            Self::Kill(Party::TargetQemu) => {
                if before(point, "target.after_cont") {
                    End::Stays
                } else {
                    End::CrashesOnTarget
                }
            }
            _ => by_line(granted),
        }
    }
}

/// A move that has begun.
#[derive(Clone)]
struct Moving {
    name: &'static str,
    from: usize,
    to: usize,
    task: TaskView,
    migration: MigrationId,
}

/// One that is held at a point.
struct Held {
    moving: Moving,
    point: Armed,
}

/// Runs a case: the guest `name`, wherever it is, is to move to the other node.
///
/// # Errors
/// With what is wrong afterwards.
pub async fn case(
    scene: &mut Scene,
    name: &'static str,
    fault: Fault,
    point: &'static str,
) -> Result<()> {
    let held = hold(scene, name, point).await?;
    strike(scene, &held, fault, point).await?;
    held.point.let_go();
    let end = fault.end(point);
    settle(scene, &held.moving, end).await?;
    clean(scene, &held.moving, end).await
}

/// Begins the move and waits until a daemon is at the point.
async fn hold(scene: &Scene, name: &'static str, point: &str) -> Result<Held> {
    let (_, from) = scene.whereabouts(name).await?;
    let to = 1 - from;
    let points = scene.cluster.points.clone();
    let first = if called_off(point) {
        "source.in_precopy"
    } else {
        point
    };
    let policy = if first == "source.in_precopy" {
        slow(PRECOPY)
    } else {
        MigrationPolicy::default()
    };
    let first = points.arm(first)?;
    let (task, migration) = scene.begin_move(name, to, policy).await?;
    first.reached(SETTLE).await?;
    let point = if called_off(point) {
        let armed = points.arm(point)?;
        scene.cluster.api.cancel_migration(migration).await?;
        first.let_go();
        armed.reached(SETTLE).await?;
        armed
    } else {
        first
    };
    let moving = Moving {
        name,
        from,
        to,
        task,
        migration,
    };
    Ok(Held { moving, point })
}

/// Lets it happen and, where that ends it, mends it again.
async fn strike(scene: &mut Scene, held: &Held, fault: Fault, point: &str) -> Result<()> {
    let moving = &held.moving;
    match fault {
        Fault::Cancel => {
            scene.cluster.api.cancel_migration(moving.migration).await?;
        }
        Fault::Kill(Party::Coordinator) => scene.cluster.restart_coordinator().await?,
        Fault::Kill(Party::SourceDaemon) => {
            restart(scene, moving.from, held, point.starts_with("source")).await?;
        }
        Fault::Kill(Party::TargetDaemon) => {
            restart(scene, moving.to, held, point.starts_with("target")).await?;
        }
        Fault::Kill(party) => kill_qemu(scene, moving, party).await?,
        Fault::Freeze(party) => {
            freeze(scene, moving, party, true)?;
            tokio::time::sleep(NOTICED).await;
            freeze(scene, moving, party, false)?;
        }
        Fault::CutPath | Fault::CutOff => cut(scene, moving, fault == Fault::CutOff).await?,
    }
    Ok(())
}

async fn cut(scene: &Scene, moving: &Moving, everybody: bool) -> Result<()> {
    scene.cluster.nodes[moving.to].cut(everybody)?;
    scene.cluster.nodes[moving.from].cut(false)?;
    tokio::time::sleep(NOTICED).await;
    for node in &scene.cluster.nodes {
        node.restore();
    }
    Ok(())
}

async fn restart(scene: &mut Scene, index: usize, held: &Held, waits: bool) -> Result<()> {
    scene.cluster.nodes[index].kill();
    if waits {
        held.point.forget();
    } else {
        // The other one finds out on its own, at the point.
        held.point.let_go();
    }
    scene.cluster.nodes[index].restart().await
}

fn freeze(scene: &Scene, moving: &Moving, party: Party, stop: bool) -> Result<()> {
    let cluster = &scene.cluster;
    let daemon = match party {
        Party::SourceDaemon => &cluster.nodes[moving.from].daemon,
        Party::TargetDaemon => &cluster.nodes[moving.to].daemon,
        Party::Coordinator => &cluster.coordinator,
        Party::SourceQemu | Party::TargetQemu => {
            let which = if stop { Signal::STOP } else { Signal::CONT };
            return signal(scene, moving, party, which).map(|_| ());
        }
    };
    if stop { daemon.freeze() } else { daemon.thaw() }
}

/// Returns when its daemon has seen it: a `cont` that is under way when QEMU
/// dies may have run the CPUs, and then the guest is not given back.
async fn kill_qemu(scene: &Scene, moving: &Moving, party: Party) -> Result<()> {
    let pid = signal(scene, moving, party, Signal::KILL)?;
    let process = PathBuf::from(format!("/proc/{pid}"));
    let reaped = async || Ok((!process.exists()).then_some(()));
    wait::until("the end of the killed QEMU", SETTLE, reaped).await
}

fn signal(scene: &Scene, moving: &Moving, party: Party, signal: Signal) -> Result<u32> {
    let index = match party {
        Party::SourceQemu => moving.from,
        _ => moving.to,
    };
    let cluster = &scene.cluster;
    let run = format!("{}/", cluster.nodes[index].run.display());
    let mut qemus = cluster.qemus_of(scene.id(moving.name)?).into_iter();
    let qemu = qemus.find(|qemu| qemu.mentions(&run));
    let pid = qemu.context("the QEMU to meet")?.pid;
    cluster.signal_qemu(pid, signal)?;
    Ok(pid)
}

/// Waits for the end, and checks that it is the right one.
async fn settle(scene: &mut Scene, moving: &Moving, end: End) -> Result<()> {
    let cluster = &scene.cluster;
    for index in [moving.from, moving.to] {
        cluster.wait_health(index, NodeHealth::Up).await?;
    }
    cluster.api.ended(moving.task.id, MOVE).await?;
    match end {
        End::Stays => scene.runs_on(moving.name, moving.from).await,
        End::Moves => {
            scene.goes_to(moving.name, moving.to).await?;
            scene.runs_on(moving.name, moving.to).await
        }
        End::CrashesOnSource => crashed(scene, moving, moving.from).await,
        End::CrashesOnTarget => crashed(scene, moving, moving.to).await,
    }
}

/// It is shown as crashed there, and starts again.
async fn crashed(scene: &mut Scene, moving: &Moving, index: usize) -> Result<()> {
    let start = start_after_crash(scene, moving, index).await?;
    comes_back(scene, moving, index, &start).await
}

async fn start_after_crash(scene: &mut Scene, moving: &Moving, index: usize) -> Result<TaskView> {
    let name = moving.name;
    let api = scene.cluster.api.clone();
    let node = Some(scene.cluster.name(index));
    wait::until("the crash", SETTLE, || async {
        let vm = api.vm(name).await?;
        let shown = matches!(vm.exit, Some(ExitReason::Crashed { .. }));
        if vm.state == DomainState::Stopped && vm.migration.is_none() && shown && vm.node == node {
            return Ok(Some(()));
        }
        bail!("it is {} on {:?}: {:?}", vm.state, vm.node, vm.exit)
    })
    .await?;
    let id = scene.id(name)?;
    let gone = async || Ok(scene.cluster.qemus_of(id).is_empty().then_some(()));
    wait::until("the end of every QEMU of the guest", SETTLE, gone).await?;
    // Its last words there belong to the count that ends.
    scene.visit(name).await?;
    scene.begin_anew(name)?;
    // Refused for as long as the coordinator has heard of the other QEMU only.
    let start = async || Ok(Some(api.command(name, LifecycleCommand::Start).await?));
    wait::until("the start after the crash", SETTLE, start).await
}

async fn comes_back(
    scene: &mut Scene,
    moving: &Moving,
    index: usize,
    start: &TaskView,
) -> Result<()> {
    let name = moving.name;
    scene.cluster.api.succeed(start.id, BOOT).await?;
    scene.visit(name).await?;
    scene.counts_past(name, 0, BOOT).await?;
    scene.runs_on(name, index).await
}

/// Nothing is left on the other node; node and coordinator agree.
async fn clean(scene: &Scene, moving: &Moving, end: End) -> Result<()> {
    let (here, there) = match end {
        End::Stays | End::CrashesOnSource => (moving.from, moving.to),
        End::Moves | End::CrashesOnTarget => (moving.to, moving.from),
    };
    let cluster = &scene.cluster;
    let id = scene.id(moving.name)?;
    cluster.nothing_left(id, there, SETTLE).await?;
    let phase = cluster.api.migration(moving.migration).await?.phase;
    if !phase.is_final() {
        bail!("the migration is still {phase}");
    }
    let record = cluster.nodes[here].domain_dir(id).join("record.json");
    wait::until("the node's and the coordinator's word", SETTLE, || async {
        let shown = cluster.api.vm(moving.name).await?.epoch;
        let text = std::fs::read_to_string(&record)?;
        let record: serde_json::Value = serde_json::from_str(&text)?;
        let (state, handoff) = (&record["state"], &record["handoff"]);
        let agrees = state["epoch"] == shown.0 && state["owner"] == true;
        // Where the source could not say that it is done, the record of a guest
        // that runs here stays for a minute.
        let over = handoff.is_null() || handoff["incoming"]["stage"]["running"]["complete"] == true;
        if agrees && over {
            return Ok(Some(()));
        }
        bail!("epoch {shown} by the coordinator, by the node {state} in {handoff}")
    })
    .await?;
    scene.pages_intact(moving.name).await
}
