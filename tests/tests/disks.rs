//! Disks that are not shared move along with real guests, which write to them
//! and check them all the while.
//!
//! Both nodes are on this host, so each sees a folder of its own at the same
//! path, in a mount namespace: needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(
    clippy::print_stderr,
    reason = "what was measured belongs into the log"
)]

use std::borrow::Cow;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Result;
use godwit_shared::api::{MigrateRequest, MigrationView};
use godwit_shared::model::{DiskCopy, MiB, MigrationId, MigrationPhase, MigrationPolicy, codes};
use godwit_tests::disks::{self, Disk};
use godwit_tests::guest::Work;
use godwit_tests::harness::{Cluster, ClusterOptions};
use godwit_tests::scene::{MOVE, SETTLE, Scene, slow};
use godwit_tests::wait;
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// What the guest sees of each disk. It writes to the first 16 MiB.
const SIZE: u64 = 128 * MIB;
/// How fast a guest writes whose memory shall take long.
const BUSY: MiB = MiB(64);
/// Most that a thin image of such a disk takes.
const THIN: u64 = 48 * MIB;

const fn disk(name: &'static str, format: &'static str) -> Disk {
    Disk {
        name: Cow::Borrowed(name),
        format,
        size: SIZE,
        cargo: 8 * MIB,
        cargo_at: 32 * MIB,
        read_only: false,
    }
}

/// One whose bytes are where the guest reads them.
fn seed(name: &'static str, format: &'static str) -> Disk {
    Disk {
        cargo: 32 * MIB,
        cargo_at: 0,
        read_only: true,
        ..disk(name, format)
    }
}

const RAW: Disk = disk("a.raw", "raw");
const QCOW2: Disk = disk("b.qcow2", "qcow2");

/// Two nodes, and a guest on the first with these disks.
async fn scene(disks: &[Disk], relayed: bool) -> Scene {
    let mut options = ClusterOptions::nodes(2).own_disks();
    options.relayed = relayed;
    let mut scene = Scene::start(options).await.unwrap();
    let own = scene.cluster.nodes[0].disks().unwrap().to_owned();
    let cargo = scene.cluster.root().join("cargo");
    for disk in disks {
        disk.make(&own, &cargo).unwrap();
    }
    boot(&mut scene, disks, if relayed { BUSY } else { MiB(4) }).await;
    scene
}

async fn boot(scene: &mut Scene, disks: &[Disk], rate: MiB) {
    let spec = |disk: &Disk| disk.spec(&scene.cluster);
    let work = Work {
        disks: disks.iter().map(spec).collect::<Vec<Value>>(),
        tick_ms: 100,
        fill: MiB(32),
        rate,
        ..Work::default()
    };
    scene.boot(&[("web", 0)], &work).await.unwrap();
    checked(scene).await.unwrap();
}

fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

fn files(cluster: &Cluster, node: usize) -> Vec<String> {
    disks::files(cluster, node).unwrap()
}

async fn checked(scene: &Scene) -> Result<()> {
    disks::checked(scene, "web").await
}

fn names(disks: &[Disk]) -> Vec<String> {
    disks
        .iter()
        .map(|disk| disk.name.clone().into_owned())
        .collect()
}

async fn moves(scene: &mut Scene, to: usize, policy: MigrationPolicy) -> MigrationView {
    let (task, migration) = scene.begin_move("web", to, policy).await.unwrap();
    scene.cluster.api.succeed(task.id, MOVE).await.unwrap();
    let view = scene.arrived("web", to, migration).await.unwrap();
    checked(scene).await.unwrap();
    view
}

fn copied(disks: DiskCopy) -> MigrationPolicy {
    MigrationPolicy {
        disks,
        ..MigrationPolicy::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_move_with_their_guest_and_stay_thin() {
    let disks = [RAW, QCOW2];
    let mut scene = scene(&disks, false).await;
    for (to, how) in [(1, DiskCopy::Full), (0, DiskCopy::Synchronous)] {
        let view = moves(&mut scene, to, copied(how)).await;
        eprintln!(
            "{how:?}: blackout {:?}, {:?}",
            view.blackout, view.figures.duration
        );
        assert_eq!(files(&scene.cluster, to), names(&disks));
        assert_eq!(files(&scene.cluster, 1 - to), Vec::<String>::new());
        let own = scene.cluster.nodes[to].disks().unwrap().to_owned();
        for disk in &disks {
            let image = own.join(&*disk.name);
            assert!(
                allocated(&image) < THIN,
                "{}: {}",
                disk.name,
                allocated(&image)
            );
            let cargo = scene.cluster.root().join("cargo").join(&*disk.name);
            disk.intact(&image, &cargo).unwrap();
        }
    }
    // Kept, they stand in the way of the way back, and are not touched.
    let kept = MigrationPolicy {
        keep_source_disks: true,
        ..MigrationPolicy::default()
    };
    moves(&mut scene, 1, kept).await;
    assert_eq!(files(&scene.cluster, 0), names(&disks));
    let request = MigrateRequest {
        target: Some(scene.cluster.name(0)),
        policy: MigrationPolicy::default(),
        dry_run: true,
    };
    let found = scene.cluster.api.dry_run("web", &request).await.unwrap();
    let fields = found.blockers.iter().map(|b| b.field.as_deref().unwrap());
    assert_eq!(
        fields.collect::<Vec<_>>(),
        ["disks[0].path", "disks[1].path"]
    );
    assert!(
        found
            .blockers
            .iter()
            .all(|b| b.code == codes::MIGRATION_BLOCKED)
    );
    scene.pages_intact("web").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_top_of_a_disk_is_copied_onto_its_backing_image() {
    let mut scene = {
        let options = ClusterOptions::nodes(2).own_disks();
        Scene::start(options).await.unwrap()
    };
    let common = scene.cluster.disks();
    let base = scene.cluster.nodes[0].disks().unwrap().join("base.raw");
    let cargo = scene.cluster.root().join("cargo");
    let below = disk("base.raw", "raw");
    below.make(base.parent().unwrap(), &cargo).unwrap();
    std::fs::copy(
        &base,
        scene.cluster.nodes[1].disks().unwrap().join("base.raw"),
    )
    .unwrap();
    let lower = common.join("base.raw").display().to_string();
    let top = scene.cluster.nodes[0].disks().unwrap().join(&*QCOW2.name);
    let (top, size) = (top.display().to_string(), SIZE.to_string());
    let layer = [
        "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", &lower, &top, &size,
    ];
    disks::run("qemu-img", &layer).unwrap();
    boot(&mut scene, &[QCOW2], MiB(4)).await;
    moves(&mut scene, 1, copied(DiskCopy::Top)).await;
    assert_eq!(files(&scene.cluster, 0), ["base.raw"]);
    assert_eq!(files(&scene.cluster, 1), ["b.qcow2", "base.raw"]);
    let image = scene.cluster.nodes[1].disks().unwrap().join(&*QCOW2.name);
    // The guest's own writes, without what lies below.
    assert!(allocated(&image) < 24 * MIB, "{}", allocated(&image));
    moves(&mut scene, 0, copied(DiskCopy::Full)).await;
    assert_eq!(files(&scene.cluster, 1), ["base.raw"]);
    let image = scene.cluster.nodes[0].disks().unwrap().join(&*QCOW2.name);
    QCOW2.intact(&image, &cargo.join("base.raw")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_are_only_read_come_along() {
    let disks = [RAW, seed("c.raw", "raw"), seed("d.qcow2", "qcow2")];
    let mut scene = scene(&disks, false).await;
    // Cancelled, they are where they were, and nowhere else.
    let migration = meet(&scene, MigrationPhase::Disks).await;
    scene.cluster.api.cancel_migration(migration).await.unwrap();
    ends_here(&mut scene, migration, &disks, "cancelled").await;
    for (to, how) in [(1, DiskCopy::Full), (0, DiskCopy::Synchronous)] {
        moves(&mut scene, to, copied(how)).await;
        assert_eq!(files(&scene.cluster, to), names(&disks));
        assert_eq!(files(&scene.cluster, 1 - to), Vec::<String>::new());
        for disk in &disks {
            let image = scene.cluster.nodes[to].disks().unwrap().join(&*disk.name);
            let cargo = scene.cluster.root().join("cargo").join(&*disk.name);
            disk.intact(&image, &cargo).unwrap();
        }
    }
}

/// Begins a move that is slow enough, and waits for a phase of it.
async fn meet(scene: &Scene, phase: MigrationPhase) -> MigrationId {
    let mark = scene.cluster.events.mark();
    let policy = match phase {
        MigrationPhase::Disks => slow(MIB),
        // The guest writes faster than that.
        _ => slow(BUSY.0 * MIB / 2),
    };
    let (_, migration) = scene.begin_move("web", 1, policy).await.unwrap();
    let events = &scene.cluster.events;
    events.phase(mark, migration, phase, SETTLE).await.unwrap();
    migration
}

async fn ends_here(scene: &mut Scene, migration: MigrationId, disks: &[Disk], what: &str) {
    let api = scene.cluster.api.clone();
    let over = async || {
        let view = api.migration(migration).await?;
        Ok(view.phase.is_final().then_some(view))
    };
    let view = wait::until("the end of the migration", MOVE, over)
        .await
        .unwrap();
    assert_ne!(view.phase, MigrationPhase::Completed, "{what}");
    let id = scene.id("web").unwrap();
    scene
        .runs_on("web", 0)
        .await
        .unwrap_or_else(|e| panic!("{what}: {e:#}"));
    scene.cluster.nothing_left(id, 1, SETTLE).await.unwrap();
    let gone = async || Ok(files(&scene.cluster, 1).is_empty().then_some(()));
    wait::until("the end of the target's images", SETTLE, gone)
        .await
        .unwrap();
    assert_eq!(files(&scene.cluster, 0), names(disks), "{what}");
    checked(scene)
        .await
        .unwrap_or_else(|e| panic!("{what}: {e:#}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_it_the_source_keeps_its_disks_and_the_target_has_none() {
    let disks = [RAW, QCOW2];
    let mut scene = scene(&disks, true).await;
    for phase in [MigrationPhase::Disks, MigrationPhase::Precopy] {
        let migration = meet(&scene, phase).await;
        scene.cluster.api.cancel_migration(migration).await.unwrap();
        ends_here(
            &mut scene,
            migration,
            &disks,
            &format!("cancelled in {phase}"),
        )
        .await;

        let migration = meet(&scene, phase).await;
        scene.cluster.nodes[1].cut(false).unwrap();
        ends_here(&mut scene, migration, &disks, &format!("cut in {phase}")).await;
        scene.cluster.nodes[1].restore();

        eprintln!("{phase}: cancel and cut are through");
        for node in [0, 1] {
            let migration = meet(&scene, phase).await;
            scene.cluster.nodes[node].restart().await.unwrap();
            let what = format!("node-{} killed in {phase}", node + 1);
            ends_here(&mut scene, migration, &disks, &what).await;
        }
    }
    // And it can still be moved, with its disks.
    moves(&mut scene, 1, MigrationPolicy::default()).await;
    assert_eq!(files(&scene.cluster, 1), names(&disks));
    assert_eq!(files(&scene.cluster, 0), Vec::<String>::new());
}
