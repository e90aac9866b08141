//! The measurements.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures_util::future::try_join_all;
use godwit_shared::model::{LifecycleCommand, MiB, VmSpec};
use godwit_tests::bare::Recipe;
use godwit_tests::guest::{self, Work};
use godwit_tests::harness::{Cluster, ClusterOptions};
use godwit_tests::usage;
use serde_json::{Map, Value, json};

const GUESTS: usize = 20;
const LISTED: usize = 200;
const LISTS: usize = 15;
const LIMIT: Duration = Duration::from_secs(120);

/// Daemons as they are in production: they log little.
fn options() -> ClusterOptions {
    ClusterOptions {
        log: "info".to_owned(),
        memory: vec![MiB(64 << 10)],
        ..ClusterOptions::nodes(1)
    }
}

fn work() -> Work {
    Work {
        memory: MiB(96),
        tick_ms: 1000,
        fill: MiB::ZERO,
        ..Work::default()
    }
}

/// Starting one beside bare QEMU, starting twenty, and what the daemons hold.
pub(crate) async fn starts_and_memory(
    repeats: usize,
    found: &mut Map<String, Value>,
) -> Result<()> {
    let mut cluster = Cluster::start(options()).await?;
    let node = cluster.nodes[0].daemon.pid()?;
    // Before it has done anything.
    found.insert("node_rss_mib_0".into(), json!(resident(node)?));
    let (ours, bare) = alternate(&cluster, repeats).await?;
    let (ours, bare) = (median(ours), median(bare));
    found.insert("create_to_running_ms".into(), millis(ours));
    found.insert("bare_ms".into(), millis(bare));
    let ratio = ours.as_secs_f64() / bare.as_secs_f64();
    found.insert("create_to_running_vs_bare".into(), round(ratio));

    let begun = Instant::now();
    let names: Vec<String> = (0..GUESTS).map(|n| format!("many-{n}")).collect();
    create_all(&cluster, &names, |name| guest::spec(name, &work())).await?;
    found.insert("parallel20_s".into(), round(begun.elapsed().as_secs_f64()));
    found.insert("node_rss_mib_20".into(), json!(resident(node)?));
    let coordinator = cluster.coordinator.pid()?;
    found.insert(
        "coordinator_rss_mib_20".into(),
        json!(resident(coordinator)?),
    );
    cluster.terminate().await
}

/// Starts a guest through the cluster and bare, in turn.
async fn alternate(cluster: &Cluster, repeats: usize) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    // One of each beforehand, so that the files are in memory for both.
    for round in 0..=repeats {
        let name = format!("one-{round}");
        let spec = guest::spec(&name, &work())?;
        let begun = Instant::now();
        let task = cluster.api.create(spec, true, None).await?;
        cluster.api.succeed(task.id, LIMIT).await?;
        let managed = begun.elapsed();

        let recipe = Recipe::of_guest(cluster, 0, &name).await?;
        cluster
            .api
            .done(&name, LifecycleCommand::Stop, LIMIT)
            .await?;
        cluster
            .api
            .done(&name, LifecycleCommand::Delete, LIMIT)
            .await?;

        let dir = tempfile::Builder::new().prefix("gw-bare-").tempdir()?;
        let alone = run_bare(&recipe, dir.path()).await?;
        if round > 0 {
            ours.push(managed);
            bare.push(alone);
        }
    }
    Ok((ours, bare))
}

/// Runs it until its CPUs run; returns how long that took from the exec on.
async fn run_bare(recipe: &Recipe, dir: &Path) -> Result<Duration> {
    let begun = Instant::now();
    let mut machine = recipe
        .start(dir, &[], |program| Command::new(program))
        .await?;
    machine.qmp.execute("cont", json!({})).await?;
    let resumed = |event: &Value| event["event"] == "RESUME";
    machine.qmp.event(LIMIT, resumed).await?;
    Ok(begun.elapsed())
}

async fn create_all(
    cluster: &Cluster,
    names: &[String],
    spec: impl Fn(&str) -> Result<VmSpec>,
) -> Result<()> {
    let one = async |name: &String| {
        let task = cluster.api.create(spec(name)?, true, None).await?;
        cluster.api.succeed(task.id, LIMIT).await
    };
    try_join_all(names.iter().map(one)).await?;
    Ok(())
}

/// `godwit vm list` with two hundred VMs.
pub(crate) async fn lists(found: &mut Map<String, Value>) -> Result<()> {
    let mut cluster = Cluster::start(options().fake()).await?;
    let names: Vec<String> = (0..LISTED).map(|n| format!("vm-{n:03}")).collect();
    for some in names.chunks(GUESTS) {
        create_all(&cluster, some, |name| {
            let document = json!({ "name": name, "memory": 64, "accelerator": "tcg" });
            Ok(VmSpec::from_value(document)?)
        })
        .await?;
    }
    let (mut whole, mut api) = (Vec::new(), Vec::new());
    for _ in 0..LISTS {
        let begun = Instant::now();
        let output = cluster.godwit(&["vm", "list"]).await?;
        whole.push(begun.elapsed());
        let lines = String::from_utf8_lossy(&output.stdout).lines().count();
        if !output.status.success() || lines < LISTED {
            bail!("`vm list` printed {lines} lines: {output:?}");
        }
        let begun = Instant::now();
        let vms = cluster.api.vms().await?;
        api.push(begun.elapsed());
        if vms.len() != LISTED {
            bail!("{} VMs are listed", vms.len());
        }
    }
    found.insert("list200_ms".into(), millis(median(whole)));
    found.insert("list200_api_ms".into(), millis(median(api)));
    cluster.terminate().await
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn millis(time: Duration) -> Value {
    round(time.as_secs_f64() * 1000.0)
}

fn round(number: f64) -> Value {
    json!((number * 100.0).round() / 100.0)
}

/// A process's resident memory in MiB, to a tenth.
fn resident(pid: u32) -> Result<f64> {
    Ok((usage::resident(pid)?.now * 10.0).round() / 10.0)
}
