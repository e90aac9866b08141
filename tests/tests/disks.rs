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

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use godwit_shared::api::{MigrateRequest, MigrationView};
use godwit_shared::model::{DiskCopy, MiB, MigrationId, MigrationPhase, MigrationPolicy, codes};
use godwit_tests::guest::Work;
use godwit_tests::harness::{Cluster, ClusterOptions};
use godwit_tests::scene::{BOOT, MOVE, SETTLE, Scene, slow};
use godwit_tests::wait;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// What the guest sees of each disk. It writes to the first 16 MiB.
const SIZE: u64 = 128 * MIB;
/// How fast a guest writes whose memory shall take long.
const BUSY: MiB = MiB(64);
/// Random bytes that were on a disk before, behind what the guest writes to.
const CARGO: u64 = 8 * MIB;
const CARGO_AT: u64 = 32 * MIB;
/// Most that a thin image of such a disk takes.
const THIN: u64 = 48 * MIB;

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {words}");
}

fn qemu_img(args: &[&str]) {
    run("qemu-img", args);
}

/// Puts the cargo on an image.
fn load(image: &Path, format: &str) {
    let source = image.with_extension("cargo");
    let mut bytes = vec![0; usize::try_from(CARGO).unwrap()];
    let mut random = std::fs::File::open("/dev/urandom").unwrap();
    std::io::Read::read_exact(&mut random, &mut bytes).unwrap();
    std::fs::write(&source, bytes).unwrap();
    let copy = format!("write -s {} {CARGO_AT} {CARGO}", source.display());
    run(
        "qemu-io",
        &["-f", format, "-c", &copy, &image.display().to_string()],
    );
}

/// The cargo of an image is what was loaded at first, under that name.
fn intact(image: &Path, format: &str, cargo: &Path) -> bool {
    let raw = image.with_extension("check");
    let (image, out) = (image.display().to_string(), raw.display().to_string());
    qemu_img(&["convert", "-U", "-f", format, "-O", "raw", &image, &out]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    let range = usize::try_from(CARGO_AT).unwrap()..usize::try_from(CARGO_AT + CARGO).unwrap();
    bytes[range] == std::fs::read(cargo).unwrap()
}

struct Disk {
    name: &'static str,
    format: &'static str,
}

const RAW: Disk = Disk {
    name: "a.raw",
    format: "raw",
};
const QCOW2: Disk = Disk {
    name: "b.qcow2",
    format: "qcow2",
};

/// Two nodes, and a guest on the first with these disks.
async fn scene(disks: &[Disk], relayed: bool) -> Scene {
    let mut options = ClusterOptions::nodes(2).own_disks();
    options.relayed = relayed;
    let mut scene = Scene::start(options).await.unwrap();
    let own = scene.cluster.nodes[0].disks().unwrap().to_owned();
    let cargo = scene.cluster.root().join("cargo");
    std::fs::create_dir_all(&cargo).unwrap();
    for disk in disks {
        let image = own.join(disk.name);
        let (path, size) = (image.display().to_string(), SIZE.to_string());
        qemu_img(&["create", "-q", "-f", disk.format, &path, &size]);
        load(&image, disk.format);
        std::fs::rename(image.with_extension("cargo"), cargo.join(disk.name)).unwrap();
    }
    boot(&mut scene, disks, if relayed { BUSY } else { MiB(4) }).await;
    scene
}

async fn boot(scene: &mut Scene, disks: &[Disk], rate: MiB) {
    let folder = scene.cluster.disks();
    let spec = |disk: &Disk| json!({"path": folder.join(disk.name), "format": disk.format});
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

/// Every disk's cycles so far, by the console of where the guest is.
async fn cycles(scene: &Scene) -> Result<Vec<(String, u64)>> {
    let log = scene.cluster.api.serial_log("web", 400).await?;
    let mut last = std::collections::BTreeMap::new();
    for line in log.lines() {
        let line = line.trim_end();
        if line.starts_with("BAD") {
            bail!("the guest says: {line}");
        }
        let mut words = line.split(' ');
        if let (Some("disk"), Some(name), Some(cycle), Some("bad=0")) =
            (words.next(), words.next(), words.next(), words.next())
        {
            let number = cycle.strip_prefix("cycle=").unwrap_or("0").parse()?;
            last.insert(name.to_owned(), number);
        }
    }
    Ok(last.into_iter().collect())
}

/// Waits until every block of every disk was checked from now on.
async fn checked(scene: &Scene) -> Result<()> {
    let begin = cycles(scene).await?;
    let all = async || {
        let now = cycles(scene).await?;
        let further = |(name, number): &(String, u64)| {
            let before = begin.iter().find(|(other, _)| other == name);
            *number >= before.map_or(1, |(_, number)| number + 2)
        };
        Ok((!now.is_empty() && now.len() >= begin.len() && now.iter().all(further)).then_some(()))
    };
    wait::until("two cycles of every disk", BOOT, all).await
}

fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

fn files(cluster: &Cluster, node: usize) -> Vec<String> {
    let entries = std::fs::read_dir(cluster.nodes[node].disks().unwrap()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn names(disks: &[Disk]) -> Vec<String> {
    disks.iter().map(|disk| disk.name.to_owned()).collect()
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
            let image = own.join(disk.name);
            assert!(
                allocated(&image) < THIN,
                "{}: {}",
                disk.name,
                allocated(&image)
            );
            let cargo = scene.cluster.root().join("cargo").join(disk.name);
            assert!(
                intact(&image, disk.format, &cargo),
                "{} after {how:?}",
                disk.name
            );
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
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "raw",
        &base.display().to_string(),
        &SIZE.to_string(),
    ]);
    load(&base, "raw");
    let cargo = scene.cluster.root().join("cargo");
    std::fs::rename(base.with_extension("cargo"), &cargo).unwrap();
    std::fs::copy(
        &base,
        scene.cluster.nodes[1].disks().unwrap().join("base.raw"),
    )
    .unwrap();
    let below = common.join("base.raw").display().to_string();
    let top = scene.cluster.nodes[0].disks().unwrap().join(QCOW2.name);
    let (top, size) = (top.display().to_string(), SIZE.to_string());
    qemu_img(&[
        "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", &below, &top, &size,
    ]);
    boot(&mut scene, &[QCOW2], MiB(4)).await;
    moves(&mut scene, 1, copied(DiskCopy::Top)).await;
    assert_eq!(files(&scene.cluster, 0), ["base.raw"]);
    assert_eq!(files(&scene.cluster, 1), ["b.qcow2", "base.raw"]);
    let image = scene.cluster.nodes[1].disks().unwrap().join(QCOW2.name);
    // The guest's own writes, without what lies below.
    assert!(
        allocated(&image) < 16 * MIB + CARGO,
        "{}",
        allocated(&image)
    );
    moves(&mut scene, 0, copied(DiskCopy::Full)).await;
    assert_eq!(files(&scene.cluster, 1), ["base.raw"]);
    let image = scene.cluster.nodes[0].disks().unwrap().join(QCOW2.name);
    assert!(intact(&image, "qcow2", &cargo));
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
