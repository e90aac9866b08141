//! The parts of the measurement, in order, on one cluster.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use godwit_shared::api::TaskView;
use godwit_shared::model::{DomainState, VmSpec};
use godwit_tests::api::Api;
use godwit_tests::harness::{Cluster, ClusterOptions};
use godwit_tests::swarm::Swarm;
use godwit_tests::{usage, wait};
use serde_json::{Map, Value, json};

use crate::options::Options;
use crate::watchers::Watchers;

/// Creates that are under way at once.
const CREATING: usize = 64;
/// VMs that may be on their way to running while more are asked for.
const UNDER_WAY: usize = 512;
/// Most that any part may take.
const LIMIT: Duration = Duration::from_secs(1800);
/// How long the last guest's start may be on its way.
const SEEN: Duration = Duration::from_secs(10);
/// Between two events whose way is timed.
const EVENT_GAP: Duration = Duration::from_millis(20);
/// Threads of the simulated nodes' transport.
const THREADS: usize = 2;

/// Measures everything.
pub(crate) async fn all(options: &Options, found: &mut Map<String, Value>) -> Result<()> {
    raise_descriptors()?;
    let mut cluster = Cluster::start(ClusterOptions {
        nodes: 0,
        log: "info".to_owned(),
        ..ClusterOptions::default()
    })
    .await?;
    let swarm = Swarm::new(cluster.api.clone(), THREADS)?;
    let mut bench = Bench {
        options,
        swarm,
        found,
        created: 0,
    };
    bench.join(&cluster).await?;
    bench.create(&cluster).await?;
    bench.rest(&cluster).await?;
    bench.fan_out(&cluster).await?;
    bench.restart(&mut cluster).await?;
    drop(bench);
    cluster.terminate().await
}

/// Each node has a socket here, and each watcher one at both ends.
fn raise_descriptors() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// For people who wait, on standard error.
fn begin(what: &str, cluster: &Cluster) -> Result<()> {
    let pid = cluster.coordinator.pid()?;
    writeln!(std::io::stderr(), "bench-scale: {what} (coordinator {pid})")?;
    Ok(())
}

struct Bench<'a> {
    options: &'a Options,
    swarm: Swarm,
    found: &'a mut Map<String, Value>,
    created: usize,
}

impl Bench<'_> {
    fn tell(&mut self, key: &str, value: f64) {
        self.found.insert(key.to_owned(), round(value));
    }

    async fn join(&mut self, cluster: &Cluster) -> Result<()> {
        begin("nodes join", cluster)?;
        let nodes = self.options.nodes;
        let spent = Spent::begin(cluster)?;
        self.swarm.grow(nodes).await?;
        self.swarm.wait_connected(nodes, LIMIT).await?;
        let (took, cpu) = spent.end(cluster)?;
        self.tell("nodes", nodes as f64);
        self.tell("joins_per_second", nodes as f64 / took);
        self.tell("join_cpu_ms", cpu * 1000.0 / nodes as f64);
        self.tell(
            "rss_mib_without_vms",
            usage::resident(cluster.coordinator.pid()?)?.now,
        );
        Ok(())
    }

    async fn create(&mut self, cluster: &Cluster) -> Result<()> {
        begin("VMs are created", cluster)?;
        let vms = self.options.vms;
        let spent = Spent::begin(cluster)?;
        let swarm = &self.swarm;
        stream::iter(0..vms)
            .map(|number| async move {
                not_too_many(swarm, number).await?;
                create(&cluster.api, number).await
            })
            .buffer_unordered(CREATING)
            .try_collect::<Vec<_>>()
            .await?;
        wait::until("all VMs run", LIMIT, || async {
            Ok((swarm.running() >= vms).then_some(()))
        })
        .await?;
        let (took, cpu) = spent.end(cluster)?;
        self.created = vms;
        wait::until("the coordinator sees them run", SEEN, || async {
            let seen = cluster.api.cluster().await?.vms;
            let running = seen.get("running").copied().unwrap_or_default();
            Ok((usize::try_from(running)? == vms).then_some(()))
        })
        .await?;
        self.tell("vms", vms as f64);
        self.tell("creates_per_second", vms as f64 / took);
        self.tell("create_cpu_ms", cpu * 1000.0 / vms as f64);
        Ok(())
    }

    async fn rest(&mut self, cluster: &Cluster) -> Result<()> {
        // What the creates have left behind shall be done.
        tokio::time::sleep(Duration::from_secs(self.options.rest.min(5).into())).await;
        // Some may have lost their sessions on a machine that has too much to do.
        self.swarm.wait_connected(self.options.nodes, LIMIT).await?;
        begin("at rest", cluster)?;
        let spent = Spent::begin(cluster)?;
        tokio::time::sleep(Duration::from_secs(self.options.rest.into())).await;
        let (took, cpu) = spent.end(cluster)?;
        if self.swarm.connected() != self.options.nodes {
            bail!("{} nodes are connected at rest", self.swarm.connected());
        }
        let resident = usage::resident(cluster.coordinator.pid()?)?;
        self.tell("rss_mib", resident.now);
        self.tell("rss_most_mib", resident.peak);
        self.tell("cpu_cores_at_rest", cpu / took);
        Ok(())
    }

    /// Guests pause by themselves: from the node's word to each watcher.
    async fn fan_out(&mut self, cluster: &Cluster) -> Result<()> {
        begin("events go out", cluster)?;
        let watchers = Watchers::connect(&cluster.api, self.options.watchers).await?;
        let mut domains = self.swarm.domains();
        let stride = (domains.len() / self.options.events).max(1);
        domains = domains.into_iter().step_by(stride).collect();
        domains.truncate(self.options.events);
        let spent = Spent::begin(cluster)?;
        let mut due = tokio::time::interval(EVENT_GAP);
        for (node, report) in &domains {
            due.tick().await;
            watchers.begin(&report.name);
            self.swarm.happen(node, report.vm, DomainState::Paused);
        }
        let expected = domains.len() * self.options.watchers;
        let took = watchers.finish(expected).await?;
        let (lasted, cpu) = spent.end(cluster)?;
        let share = |share: f64| percentile(&took, share).as_secs_f64() * 1000.0;
        self.tell("watchers", self.options.watchers as f64);
        self.tell("event_fanout_p50_ms", share(0.5));
        self.tell("event_fanout_p99_ms", share(0.99));
        self.tell("event_fanout_cpu_cores", cpu / lasted);
        for (node, report) in domains {
            self.swarm.happen(&node, report.vm, DomainState::Running);
        }
        Ok(())
    }

    async fn restart(&mut self, cluster: &mut Cluster) -> Result<()> {
        let mut rounds = Vec::new();
        for _ in 0..self.options.restarts {
            begin("the coordinator is killed", cluster)?;
            rounds.push(self.restart_once(cluster).await?);
            self.swarm.wait_connected(self.options.nodes, LIMIT).await?;
        }
        let most = |time: fn(&Restart) -> f64| rounds.iter().map(time).fold(0.0, f64::max);
        self.tell("restart_serves_s", most(|r| r.serves));
        self.tell("restart_first_placement_s", most(|r| r.first));
        self.tell("restart_99_percent_up_s", most(|r| r.up));
        self.tell("restart_ready_s", most(|r| r.ready));
        let all = rounds.iter().map(|r| round(r.ready)).collect();
        self.found.insert("restart_ready_s_each".into(), all);
        Ok(())
    }

    /// Ready means: 99 of 100 nodes are up, and after that a create is answered
    /// with the node that it goes to.
    async fn restart_once(&mut self, cluster: &mut Cluster) -> Result<Restart> {
        let killed = Instant::now();
        let since = || killed.elapsed().as_secs_f64();
        cluster.restart_coordinator().await?;
        let serves = since();
        let api = cluster.api.clone();
        let enough = u32::try_from(self.options.nodes * 99 / 100)?;
        let first = async {
            self.created += 1;
            placed(&api, self.created).await?;
            Ok::<_, anyhow::Error>(since())
        };
        let up = async {
            wait::until("99% up", LIMIT, || async {
                let up = api.cluster().await?.nodes.get("up").copied();
                Ok((up.unwrap_or_default() >= enough).then_some(()))
            })
            .await?;
            Ok(since())
        };
        let (first, up) = tokio::try_join!(first, up)?;
        self.created += 1;
        placed(&api, self.created).await?;
        let restart = Restart {
            serves,
            first,
            up,
            ready: since(),
        };
        let Restart {
            serves,
            first,
            up,
            ready,
        } = &restart;
        writeln!(
            std::io::stderr(),
            "bench-scale: serves {serves:.2}, first placement {first:.2}, 99% up {up:.2}, ready {ready:.2} s"
        )?;
        Ok(restart)
    }
}

/// Times after the kill, in seconds.
struct Restart {
    serves: f64,
    first: f64,
    up: f64,
    ready: f64,
}

/// The coordinator's CPU time over a while.
struct Spent {
    at: Instant,
    cpu: Duration,
}

impl Spent {
    fn begin(cluster: &Cluster) -> Result<Self> {
        Ok(Self {
            cpu: usage::cpu(cluster.coordinator.pid()?)?,
            at: Instant::now(),
        })
    }

    /// Seconds on the clock, and of the CPU.
    fn end(&self, cluster: &Cluster) -> Result<(f64, f64)> {
        let cpu = usage::cpu(cluster.coordinator.pid()?)?;
        let cpu = cpu.checked_sub(self.cpu).context("another process")?;
        Ok((self.at.elapsed().as_secs_f64(), cpu.as_secs_f64()))
    }
}

/// The API takes VMs faster than nodes can start them.
async fn not_too_many(swarm: &Swarm, number: usize) -> Result<()> {
    wait::until("room for one more start", LIMIT, || async {
        Ok((number <= swarm.running() + UNDER_WAY).then_some(()))
    })
    .await
}

async fn create(api: &Api, number: usize) -> Result<TaskView> {
    let spec = VmSpec::from_value(json!({
        "name": format!("vm-{number:06}"),
        "labels": { "app": format!("app-{}", number / 50), "tier": "web" },
        "cpu": { "count": 2 },
        "memory": "4GiB",
        "accelerator": "kvm",
        "disks": [{ "path": format!("/srv/vms/vm-{number:06}.qcow2"), "shared": true }],
    }))?;
    api.create(spec, true, None).await
}

/// Creates one, as soon as there is a node for it.
async fn placed(api: &Api, number: usize) -> Result<()> {
    wait::until("a placement", LIMIT, || async {
        let task = create(api, number).await?;
        Ok(task.node.is_some().then_some(()))
    })
    .await
}

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let index = (last as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

fn round(number: f64) -> Value {
    json!((number * 1000.0).round() / 1000.0)
}
