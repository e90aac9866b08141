//! The sides without a manager: QEMU to QEMU, plain or with QEMU's own TLS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use godwit_tests::bare::{Machine, Recipe, time_of};
use godwit_tests::{usage, wait};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use crate::lab::{ADDRESSES, End, Lab};
use crate::sample::{Sample, now};
use crate::tls;

/// Most that a guest may take until its memory is filled.
const FILL: Duration = Duration::from_secs(180);
/// Most that a move may take.
const MOVE: Duration = Duration::from_secs(120);
/// Multifd channels beside the main one, with TLS.
const CHANNELS: u16 = 2;
const PORT: u16 = 4444;
/// What Godwit aims at by default, too.
const DOWNTIME_MS: u64 = 300;

/// How its memory goes over the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The main channel over TCP, as QEMU does by default.
    Tcp,
    /// Two multifd channels, each with QEMU's own TLS.
    ParallelTls,
}

/// One guest and where it is.
pub(crate) struct Bare {
    way: Way,
    recipe: Recipe,
    machine: Machine,
    end: End,
    starts: u32,
    dir: TempDir,
}

impl Bare {
    /// Boots a guest of the recipe and waits until its memory is filled.
    pub(crate) async fn boot(lab: &Lab, recipe: Recipe, way: Way) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("gw-bare-").tempdir()?;
        if way == Way::ParallelTls {
            tls::write_credentials(&dir.path().join("tls"))?;
        }
        // Bare QEMU runs its guest by itself when it has all of it.
        let recipe = recipe.without("-S");
        let machine = start(lab, &recipe, &folder(&dir, 0)?, 0, &[]).await?;
        let bare = Self {
            way,
            recipe,
            machine,
            end: 0,
            starts: 0,
            dir,
        };
        let log = folder(&bare.dir, 0)?.join("serial.log");
        wait::until("a guest's memory being filled", FILL, || async {
            let text = std::fs::read_to_string(&log)?;
            Ok(text.contains("filled pages=").then_some(()))
        })
        .await?;
        Ok(bare)
    }

    /// Types a line on the guest's console and waits for its answer.
    pub(crate) async fn type_line(&self, line: &str, answer: &str) -> Result<()> {
        let folder = folder(&self.dir, self.starts)?;
        let log = folder.join("serial.log");
        let before = std::fs::read_to_string(&log).unwrap_or_default().len();
        let mut console = UnixStream::connect(folder.join("serial.sock")).await?;
        console.write_all(format!("{line}\n").as_bytes()).await?;
        wait::until(answer, MOVE, || async {
            let text = std::fs::read(&log)?;
            let new = String::from_utf8_lossy(&text[before.min(text.len())..]);
            Ok(new.contains(answer).then_some(()))
        })
        .await
    }

    /// Moves the guest to the other end.
    pub(crate) async fn migrate(&mut self, lab: &Lab) -> Result<Sample> {
        let there = 1 - self.end;
        let machine = usage::machine()?;
        let used_before = usage::cpu(self.machine.pid())?;
        let wire = lab.wire_bytes()?;
        let asked = now();
        self.starts += 1;
        let folder = folder(&self.dir, self.starts)?;
        let mut target = start(lab, &self.recipe, &folder, there, &["-incoming", "defer"]).await?;
        let address = format!("tcp:{}:{PORT}", ADDRESSES[there]);
        let (way, dir) = (self.way, self.dir.path());
        prepare(way, dir, &mut target, "server").await?;
        let listen = json!({ "uri": address });
        target
            .qmp
            .execute("migrate-incoming", listen.clone())
            .await?;
        let source = &mut self.machine;
        prepare(way, dir, source, "client").await?;
        let begun = now();
        source.qmp.execute("migrate", listen).await?;
        let stopped = source
            .qmp
            .event(MOVE, |event| event["event"] == "STOP")
            .await?;
        let completed = source.qmp.migrated(MOVE).await?;
        let resumed = target
            .qmp
            .event(MOVE, |event| event["event"] == "RESUME")
            .await?;
        let end = time_of(&completed).max(time_of(&resumed));
        let wire = lab.wire_bytes()?.saturating_sub(wire);
        let outcome = source.qmp.execute("query-migrate", json!({})).await?;
        let received = usage::cpu(target.pid())?;
        // The source ends as a manager would end it, and that is counted too.
        let reaped = usage::reaped()?;
        drop(std::mem::replace(&mut self.machine, target));
        let sent = usage::reaped()?.saturating_sub(reaped + used_before);
        self.end = there;
        let cpu = sent + received;
        Ok(Sample {
            total: end.saturating_sub(asked),
            transfer: end.saturating_sub(begun),
            blackout: time_of(&resumed).saturating_sub(time_of(&stopped)),
            cpu,
            memory: outcome["ram"]["transferred"].as_u64().context("bytes")?,
            wire,
            other: usage::machine()?.saturating_sub(machine + cpu),
            daemon: 0.0,
        })
    }
}

fn folder(dir: &TempDir, start: u32) -> Result<PathBuf> {
    let folder = dir.path().join(start.to_string());
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

async fn start(
    lab: &Lab,
    recipe: &Recipe,
    folder: &Path,
    end: End,
    more: &[&str],
) -> Result<Machine> {
    recipe
        .start(folder, more, |program| lab.at(end, program))
        .await
}

/// Sets a QEMU up for one end of a migration.
async fn prepare(way: Way, dir: &Path, machine: &mut Machine, role: &str) -> Result<()> {
    let parallel = way == Way::ParallelTls;
    let names = [
        ("events", true),
        ("multifd", parallel),
        ("auto-converge", true),
    ];
    let list = names.map(|(name, state)| json!({ "capability": name, "state": state }));
    let capabilities = json!({ "capabilities": list });
    machine
        .qmp
        .execute("migrate-set-capabilities", capabilities)
        .await?;
    let mut parameters = json!({ "max-bandwidth": 0, "downtime-limit": DOWNTIME_MS });
    if parallel {
        let id = format!("tls-{role}");
        let credentials = json!({
            "qom-type": "tls-creds-x509", "id": id, "dir": dir.join("tls"),
            "endpoint": role, "verify-peer": true,
        });
        machine.qmp.execute("object-add", credentials).await?;
        parameters["tls-creds"] = json!(id);
        parameters["multifd-channels"] = json!(CHANNELS);
    }
    machine
        .qmp
        .execute("migrate-set-parameters", parameters)
        .await?;
    Ok(())
}
