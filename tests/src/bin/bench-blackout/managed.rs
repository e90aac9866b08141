//! Godwit's side: real daemons that move a guest to and fro.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use godwit_shared::model::{BytesPerSec, MiB, MigrationPolicy, Millis};
use godwit_tests::bare::Recipe;
use godwit_tests::guest::Work;
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::{MOVE, Scene};

use crate::network::MANAGED;

/// A limit that leaves a guest which shares two cores with everything that moves
/// it the time to answer until it is stopped; on all sides.
pub(crate) const RATE: BytesPerSec = BytesPerSec(64 << 20);
/// The pause that QEMU aims at, on all sides.
pub(crate) const DOWNTIME: Millis = Millis(30);

const GUEST: &str = "web";

/// A cluster with one guest.
pub(crate) struct Managed {
    pub(crate) scene: Scene,
    at: usize,
}

impl Managed {
    /// Starts the daemons, with these programs as their QEMUs, and the guest.
    pub(crate) async fn start(qemus: Vec<PathBuf>) -> Result<Self> {
        let options = ClusterOptions {
            qemus,
            log: "info".to_owned(),
            ..ClusterOptions::nodes(2)
        };
        let work = Work {
            echo: Some(MANAGED.guest()),
            rate: MiB(0),
            tick_ms: 100,
            ..Work::default()
        };
        let mut scene = Scene::start(options).await?;
        scene.boot(&[(GUEST, 0)], &work).await?;
        scene.filled(GUEST).await?;
        Ok(Self { scene, at: 0 })
    }

    /// How the first node runs the guest.
    pub(crate) async fn recipe(&self) -> Result<Recipe> {
        Recipe::of_guest(&self.scene.cluster, 0, GUEST).await
    }

    /// Moves the guest to the other node; the blackout that is reported.
    pub(crate) async fn migrate(&mut self) -> Result<Duration> {
        let policy = MigrationPolicy {
            bandwidth: Some(RATE),
            downtime: DOWNTIME,
            ..MigrationPolicy::default()
        };
        let there = 1 - self.at;
        let (task, migration) = self.scene.begin_move(GUEST, there, policy).await?;
        self.scene.cluster.api.succeed(task.id, MOVE).await?;
        let moved = self.scene.arrived(GUEST, there, migration).await?;
        self.at = there;
        Ok(moved.blackout.context("a blackout")?.duration())
    }
}
