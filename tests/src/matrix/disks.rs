//! The matrix for guests with disks of their own: several guests are moved at
//! once, each is held at a point of its own, and one fault meets them all.
//!
//! Which guest waits at which point does not matter: a point keeps the first
//! that comes, the others pass it, and the same becomes of all. The points of a
//! migration that is called off are met by a further guest, whose mirrors are too
//! slow to end by themselves: its source waits before it ends them, and its
//! target before it removes the images, both at once.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::future::try_join_all;
use godwit_shared::api::NodeHealth;
use godwit_shared::model::{MiB, MigrationPhase, MigrationPolicy};

use super::{
    End, Fault, Moving, NOTICED, Party, clean, comes_back, cut, freeze, kill_qemu,
    start_after_crash,
};
use crate::disks::{self, Disk};
use crate::guest::Work;
use crate::harness::{ClusterOptions, sweep};
use crate::points::Armed;
use crate::scene::{MOVE, SETTLE, Scene, slow};
use crate::wait;

const MIB: u64 = 1 << 20;

/// The guests; the last is the one whose migrations are called off.
pub const GUESTS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Where a migration is that was called off: at both at once.
pub const CALLED_OFF: [&str; 2] = ["source.before_abort_mirrors", "target.before_remove_images"];

/// A fault, and where it meets the guests.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// What goes wrong.
    pub fault: Fault,
    /// Where, one guest at each.
    pub points: &'static [&'static str],
    /// Whether it also meets a migration that is called off.
    pub called_off: bool,
}

const fn round(fault: Fault, points: &'static [&'static str]) -> Round {
    Round {
        fault,
        points,
        called_off: false,
    }
}

const fn and_called_off(fault: Fault, points: &'static [&'static str]) -> Round {
    Round {
        called_off: true,
        ..round(fault, points)
    }
}

/// While the mirrors are begun, run, and are level.
const BEGIN: &[&str] = &[
    "target.before_export",
    "target.after_export",
    "source.before_mirror",
    "source.in_mirror",
    "source.mirrors_ready",
];
/// While they are ended: the guest stands still.
const FINISH: &[&str] = &[
    "source.before_finish_mirrors",
    "source.before_let_go",
    "target.before_end_exports",
    "target.after_end_exports",
];
/// Some of both.
const SOME: &[&str] = &[
    "target.after_export",
    "source.in_mirror",
    "source.mirrors_ready",
    "target.before_end_exports",
];
const SOME_OTHERS: &[&str] = &[
    "target.before_export",
    "source.in_mirror",
    "source.before_finish_mirrors",
    "target.after_end_exports",
];
/// Where all go on to the end.
const ON_THE_WAY: &[&str] = &["source.in_mirror", "source.before_let_go"];
/// The guest runs on its target already.
const MOVED: &[&str] = &["source.before_remove_images"];

/// Every fault. A daemon that dies is met at every point, each of its steps being
/// begun anew or undone by another daemon; the others meet it before, in and after
/// the mirrors. Those of one fault follow each other.
pub const ROUNDS: [Round; 14] = {
    use Party::{Coordinator, SourceDaemon, SourceQemu, TargetDaemon, TargetQemu};
    [
        round(Fault::Kill(SourceDaemon), BEGIN),
        and_called_off(Fault::Kill(SourceDaemon), FINISH),
        round(Fault::Kill(SourceDaemon), MOVED),
        round(Fault::Kill(TargetDaemon), MOVED),
        round(Fault::Kill(TargetDaemon), BEGIN),
        and_called_off(Fault::Kill(TargetDaemon), FINISH),
        and_called_off(Fault::Freeze(SourceDaemon), SOME),
        and_called_off(Fault::Freeze(TargetDaemon), SOME),
        and_called_off(Fault::CutPath, SOME),
        round(Fault::Kill(Coordinator), ON_THE_WAY),
        round(Fault::Cancel, SOME_OTHERS),
        round(Fault::Freeze(Coordinator), ON_THE_WAY),
        round(Fault::Kill(TargetQemu), SOME_OTHERS),
        round(Fault::Kill(SourceQemu), &["source.before_let_go"]),
    ]
};

/// Two nodes, and guests with two disks each on the first.
#[derive(Debug)]
pub struct Disks {
    scene: Scene,
    images: Vec<[Disk; 2]>,
    /// Where each guest is.
    at: [usize; GUESTS.len()],
}

/// Those that are held together.
struct Group {
    moving: Vec<Moving>,
    called_off: Option<Moving>,
    points: Vec<Armed>,
}

impl Disks {
    /// Boots the guests.
    ///
    /// # Errors
    /// When one does not come up.
    pub async fn start() -> Result<Self> {
        let options = ClusterOptions::nodes(2).own_disks().relayed();
        let mut scene = Scene::start(options).await?;
        let folder = scene.cluster.nodes[0].disks()?.to_owned();
        let cargo = scene.cluster.root().join("cargo");
        let images: Vec<_> = GUESTS.iter().map(|guest| pair(guest)).collect();
        for disk in images.iter().flatten() {
            disk.make(&folder, &cargo)?;
        }
        let mut specs = Vec::new();
        for (guest, pair) in GUESTS.iter().zip(&images) {
            let disks = pair.iter().map(|disk| disk.spec(&scene.cluster));
            specs.push((crate::guest::spec(guest, &work(disks.collect()))?, Some(0)));
        }
        scene.boot_all(specs).await?;
        Ok(Self {
            scene,
            images,
            at: [0; GUESTS.len()],
        })
    }

    /// One fault for guests at all of these points, and what has to be true
    /// afterwards. Returns how long it took until they were there, had met it, and
    /// were well again.
    ///
    /// # Errors
    /// With what is wrong.
    pub async fn round(&mut self, round: Round) -> Result<[Duration; 3]> {
        let began = Instant::now();
        let held = self.hold(round).await?;
        let there = began.elapsed();
        self.strike(&held, round.fault).await?;
        let met = began.elapsed();
        let Group {
            mut moving,
            called_off,
            points,
        } = held;
        drop(points);
        let end = round.points.first().map(|point| round.fault.end(point));
        // All stay, where one is called off.
        moving.extend(called_off);
        self.settle(&moving, end.context("a point")?).await?;
        self.images_stand().await?;
        Ok([there, met, began.elapsed()])
    }

    /// The guests write to all of their disks and find there what they had
    /// written; and what they never wrote to is as it was.
    ///
    /// # Errors
    /// With what is wrong.
    pub async fn whole(&self) -> Result<()> {
        let all = GUESTS.map(|guest| disks::checked(&self.scene, guest));
        try_join_all(all).await?;
        let cluster = &self.scene.cluster;
        let cargo = cluster.root().join("cargo");
        for (pair, at) in self.images.iter().zip(self.at) {
            for disk in pair {
                let image = cluster.nodes[at].disks()?.join(&*disk.name);
                disk.intact(&image, &cargo.join(&*disk.name))?;
            }
        }
        Ok(())
    }

    async fn hold(&self, round: Round) -> Result<Group> {
        let cluster = &self.scene.cluster;
        let armed = round.points.iter().map(|point| cluster.points.arm(point));
        let mut held = Group {
            moving: Vec::new(),
            called_off: None,
            points: armed.collect::<Result<_>>()?,
        };
        for number in 0..round.points.len() {
            let moving = self.begin(number, MigrationPolicy::default()).await?;
            held.moving.push(moving);
        }
        for point in &held.points {
            point.reached(SETTLE).await?;
        }
        if round.called_off {
            self.call_off(&mut held).await?;
        }
        Ok(held)
    }

    /// The last guest's migration is cancelled while its disks are mirrored.
    async fn call_off(&self, held: &mut Group) -> Result<()> {
        let cluster = &self.scene.cluster;
        let mark = cluster.events.mark();
        let moving = self.begin(GUESTS.len() - 1, slow(MIB / 2)).await?;
        let (events, mirrors) = (&cluster.events, MigrationPhase::Disks);
        events
            .phase(mark, moving.migration, mirrors, SETTLE)
            .await?;
        let armed = CALLED_OFF.map(|point| cluster.points.arm(point));
        cluster.api.cancel_migration(moving.migration).await?;
        held.called_off = Some(moving);
        for point in armed {
            let point = point?;
            point.reached(SETTLE).await?;
            held.points.push(point);
        }
        Ok(())
    }

    async fn begin(&self, number: usize, policy: MigrationPolicy) -> Result<Moving> {
        let (name, from) = (GUESTS[number], self.at[number]);
        let to = 1 - from;
        let (task, migration) = self.scene.begin_move(name, to, policy).await?;
        Ok(Moving {
            name,
            from,
            to,
            task,
            migration,
        })
    }

    async fn strike(&mut self, held: &Group, fault: Fault) -> Result<()> {
        let scene = &mut self.scene;
        let any = held.moving.first().context("a guest")?;
        match fault {
            Fault::Kill(Party::Coordinator) => scene.cluster.restart_coordinator().await,
            Fault::Kill(Party::SourceDaemon) => self.restart(any.from, "source", held).await,
            Fault::Kill(Party::TargetDaemon) => self.restart(any.to, "target", held).await,
            Fault::Kill(party) => {
                for moving in &held.moving {
                    kill_qemu(scene, moving, party).await?;
                }
                Ok(())
            }
            Fault::Freeze(party) => {
                freeze(scene, any, party, true)?;
                tokio::time::sleep(NOTICED).await;
                freeze(scene, any, party, false)
            }
            Fault::CutPath | Fault::CutOff => cut(scene, any, fault == Fault::CutOff).await,
            Fault::Cancel => {
                for moving in &held.moving {
                    scene.cluster.api.cancel_migration(moving.migration).await?;
                }
                Ok(())
            }
        }
    }

    async fn restart(&mut self, index: usize, side: &str, held: &Group) -> Result<()> {
        self.scene.cluster.nodes[index].kill();
        for point in &held.points {
            if point.name().starts_with(side) {
                point.forget();
            } else {
                // The other one finds out on its own, at the point.
                point.let_go();
            }
        }
        self.scene.cluster.nodes[index].restart().await
    }

    async fn settle(&mut self, moving: &[Moving], end: End) -> Result<()> {
        let scene = &mut self.scene;
        for index in [0, 1] {
            scene.cluster.wait_health(index, NodeHealth::Up).await?;
        }
        for moving in moving {
            scene.cluster.api.ended(moving.task.id, MOVE).await?;
        }
        match end {
            End::Stays | End::Moves => self.stand(moving, end).await?,
            End::CrashesOnSource | End::CrashesOnTarget => self.start_again(moving).await?,
        }
        let all = moving.iter().map(|moving| clean(&self.scene, moving, end));
        try_join_all(all).await.map(drop)
    }

    async fn stand(&mut self, moving: &[Moving], end: End) -> Result<()> {
        let mut guests = Vec::new();
        for one in moving {
            let node = if end == End::Moves { one.to } else { one.from };
            guests.push((one.name, node));
            let number = GUESTS.iter().position(|guest| *guest == one.name);
            let at = number.and_then(|number| self.at.get_mut(number));
            *at.context("a guest")? = node;
            if end == End::Moves {
                self.scene.goes_to(one.name, node).await?;
            }
        }
        self.scene.all_run_on(&guests).await
    }

    /// They have crashed on the source, and start there.
    async fn start_again(&mut self, moving: &[Moving]) -> Result<()> {
        let mut starts = Vec::new();
        for one in moving {
            let start = start_after_crash(&mut self.scene, one, one.from).await;
            starts.push((one, start.with_context(|| one.name)?));
        }
        for (one, start) in starts {
            comes_back(&mut self.scene, one, one.from, &start).await?;
        }
        Ok(())
    }

    /// Every image is where its guest is, and nothing else is anywhere.
    async fn images_stand(&self) -> Result<()> {
        wait::until("the images where they belong", SETTLE, || async {
            for node in [0, 1] {
                self.stands(node)?;
            }
            Ok(Some(()))
        })
        .await
    }

    fn stands(&self, node: usize) -> Result<()> {
        let cluster = &self.scene.cluster;
        let guests = self.at.iter().zip(&self.images);
        let here = guests.filter(|(at, _)| **at == node);
        let here = here.flat_map(|(_, pair)| pair.iter().map(|disk| disk.name.to_string()));
        let found = disks::files(cluster, node)?;
        if found != here.collect::<Vec<String>>() {
            bail!("node-{} has {found:?}", node + 1);
        }
        for path in sweep::files(&cluster.nodes[node].run) {
            let name = path.file_name().unwrap_or_default();
            if name.to_string_lossy().starts_with("mig-") {
                bail!("node-{} has {}", node + 1, path.display());
            }
        }
        Ok(())
    }
}

/// Slow counters: QEMU logs what nobody reads in time at every try to send it.
fn work(disks: Vec<serde_json::Value>) -> Work {
    Work {
        memory: MiB(112),
        tick_ms: 500,
        fill: MiB(4),
        rate: MiB(1),
        disks,
        ..Work::default()
    }
}

fn pair(guest: &str) -> [Disk; 2] {
    [("1.raw", "raw"), ("2.qcow2", "qcow2")].map(|(name, format)| Disk {
        name: format!("{guest}{name}").into(),
        format,
        size: 8 * MIB,
        cargo: MIB / 2,
        cargo_at: 6 * MIB,
        read_only: false,
    })
}
