//! The controls: the same guest in QEMUs without a manager.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use godwit_tests::bare::{Machine, Recipe};
use godwit_tests::scene::MOVE;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::managed::{DOWNTIME, RATE};
use crate::network::{BARE, MANAGED};

/// How long the guest stands still when it is only stopped: about what a move takes.
const STANDS_STILL: Duration = Duration::from_millis(30);

/// One guest and where it is.
pub(crate) struct Bare {
    recipe: Recipe,
    machine: Machine,
    starts: usize,
    dir: TempDir,
}

impl Bare {
    /// Boots a guest like the managed one, on a bridge of its own.
    pub(crate) async fn boot(managed: &Recipe) -> Result<Self> {
        let address = |guest: std::net::Ipv4Addr| format!("godwit.net={guest}/24");
        // Bare QEMU runs its guest by itself when it has all of it.
        let recipe = managed.clone().without("-S");
        let recipe = recipe.with(&address(MANAGED.guest()), &address(BARE.guest()));
        let dir = tempfile::Builder::new().prefix("gw-bare-").tempdir()?;
        let machine = start(&recipe, &dir, 0, &[]).await?;
        Ok(Self {
            recipe,
            machine,
            starts: 0,
            dir,
        })
    }

    /// Moves the guest into a new QEMU.
    pub(crate) async fn migrate(&mut self) -> Result<()> {
        self.starts += 1;
        let incoming = ["-incoming", "defer"];
        let mut target = start(&self.recipe, &self.dir, self.starts, &incoming).await?;
        let socket = folder(&self.dir, self.starts)?.join("move.sock");
        let uri = json!({ "uri": format!("unix:{}", socket.display()) });
        let listen = target.qmp.execute("migrate-incoming", uri.clone());
        listen.await?;
        let source = &mut self.machine.qmp;
        let events = json!([{ "capability": "events", "state": true }]);
        let capabilities = json!({ "capabilities": events });
        source
            .execute("migrate-set-capabilities", capabilities)
            .await?;
        let limits = json!({ "max-bandwidth": RATE.0, "downtime-limit": DOWNTIME.0 });
        source.execute("migrate-set-parameters", limits).await?;
        source.execute("migrate", uri).await?;
        source.migrated(MOVE).await?;
        let resumed = |event: &Value| event["event"] == "RESUME";
        target.qmp.event(MOVE, resumed).await?;
        self.machine = target;
        Ok(())
    }

    /// Lets the guest stand still where it is.
    pub(crate) async fn stop_and_go(&mut self) -> Result<()> {
        let qmp = &mut self.machine.qmp;
        qmp.execute("stop", json!({})).await?;
        tokio::time::sleep(STANDS_STILL).await;
        qmp.execute("cont", json!({})).await?;
        Ok(())
    }
}

/// Name of the image, of what is saved in it, and of the jobs.
const PAST: &str = "past";

impl Bare {
    /// Keeps the guest as it is now.
    pub(crate) async fn save(&mut self) -> Result<()> {
        let image = folder(&self.dir, self.starts)?.join("past.qcow2");
        let mut create = tokio::process::Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).arg(&image);
        let made = create.arg("1M").status().await?;
        ensure!(made.success(), "qemu-img: {made}");
        let file = json!({ "driver": "file", "filename": image });
        let image = json!({ "node-name": PAST, "driver": "qcow2", "file": file });
        self.machine.qmp.execute("blockdev-add", image).await?;
        self.job("snapshot-save").await
    }

    /// Gives the guest back what was kept: new memory for the same QEMU, which
    /// drops all code that it has translated (`cpu_common_post_load`).
    pub(crate) async fn restore(&mut self) -> Result<()> {
        self.job("snapshot-load").await?;
        let image = json!({ "node-name": PAST });
        self.machine.qmp.execute("blockdev-del", image).await?;
        Ok(())
    }

    async fn job(&mut self, command: &str) -> Result<()> {
        let qmp = &mut self.machine.qmp;
        let arguments = json!({ "job-id": PAST, "tag": PAST, "vmstate": PAST, "devices": [PAST] });
        qmp.execute(command, arguments).await?;
        let concluded = |event: &Value| {
            event["event"] == "JOB_STATUS_CHANGE" && event["data"]["status"] == "concluded"
        };
        qmp.event(MOVE, concluded).await?;
        let jobs = qmp.execute("query-jobs", json!({})).await?;
        ensure!(jobs[0]["error"].is_null(), "{command}: {jobs}");
        qmp.execute("job-dismiss", json!({ "id": PAST })).await?;
        Ok(())
    }
}

async fn start(recipe: &Recipe, dir: &TempDir, start: usize, more: &[&str]) -> Result<Machine> {
    let folder = folder(dir, start)?;
    // The other one still has its own.
    let recipe = recipe.clone().with(MANAGED.taps[0], BARE.taps[start % 2]);
    let command = |program: &str| std::process::Command::new(program);
    recipe.start(&folder, more, command).await
}

fn folder(dir: &TempDir, start: usize) -> Result<PathBuf> {
    let folder = dir.path().join(start.to_string());
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
