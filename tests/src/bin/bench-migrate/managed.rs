//! Godwit's side: real daemons, one in each namespace.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use godwit_shared::api::{MigrateRequest, MigrationView};
use godwit_shared::model::{LifecycleCommand, MiB, MigrationPolicy, VmId, VmSpec};
use godwit_tests::harness::{Cluster, ClusterOptions, Seat};
use godwit_tests::{usage, wait};

use crate::lab::{ADDRESSES, COORDINATOR, Lab};
use crate::sample::{Sample, now};

const FILL: Duration = Duration::from_secs(180);
const MOVE: Duration = Duration::from_secs(120);
const PORT: u16 = 7441;

/// The cluster and how its moves are asked for.
pub(crate) struct Managed {
    pub(crate) cluster: Cluster,
    policy: MigrationPolicy,
    /// Resident memory of each node's daemon before it had moved anything.
    idle: Vec<f64>,
}

impl Managed {
    pub(crate) async fn start(lab: &Lab, policy: MigrationPolicy) -> Result<Self> {
        let seat = |end: usize| Seat {
            netns: (end == 1).then(|| lab.netns()),
            address: SocketAddr::new(ADDRESSES[end], PORT),
        };
        let cluster = Cluster::start(ClusterOptions {
            seats: vec![seat(0), seat(1)],
            coordinator: SocketAddr::new(COORDINATOR, 0),
            memory: vec![MiB(64 << 10); 2],
            log: "info".to_owned(),
            ..ClusterOptions::nodes(2)
        })
        .await?;
        let mut managed = Self {
            cluster,
            policy,
            idle: Vec::new(),
        };
        managed.idle = managed.resident(|resident| resident.now)?;
        Ok(managed)
    }

    fn resident(&self, which: impl Fn(usage::Resident) -> f64) -> Result<Vec<f64>> {
        let nodes = self.cluster.nodes.iter();
        nodes
            .map(|node| Ok(which(usage::resident(node.daemon.pid()?)?)))
            .collect()
    }

    /// Boots guests on the first node, and waits until their memory is filled.
    pub(crate) async fn boot(&self, specs: Vec<VmSpec>) -> Result<()> {
        let api = &self.cluster.api;
        let node = Some(self.cluster.name(0));
        let boot = async |spec: VmSpec| -> Result<()> {
            let name = spec.name.to_string();
            let task = api.create(spec, true, node.clone()).await?;
            api.succeed(task.id, FILL).await?;
            let id = api.vm(&name).await?.id;
            let log = self.cluster.nodes[0].serial_log(id);
            wait::until("a guest's memory being filled", FILL, || async {
                let text = std::fs::read_to_string(&log)?;
                Ok(text.contains("filled pages=").then_some(()))
            })
            .await
        };
        try_join_all(specs.into_iter().map(boot)).await?;
        Ok(())
    }

    /// Ends a guest and forgets it.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        let api = &self.cluster.api;
        api.done(name, LifecycleCommand::Stop, MOVE).await?;
        api.done(name, LifecycleCommand::Delete, MOVE).await?;
        Ok(())
    }

    /// Types a line on a guest's console and waits for its answer.
    pub(crate) async fn type_line(&self, name: &str, line: &str, answer: &str) -> Result<()> {
        let api = &self.cluster.api;
        api.type_line(name, line, answer, MOVE).await.map(drop)
    }

    /// Moves the guest to the other node.
    pub(crate) async fn migrate(&self, lab: &Lab, name: &str) -> Result<Sample> {
        let id = self.cluster.api.vm(name).await?.id;
        self.forget_peaks()?;
        let wire = lab.wire_bytes()?;
        let machine = usage::machine()?;
        let cpu = self.cpu(id)?;
        let asked = now();
        let view = self.move_over(name).await?;
        let cpu = self.cpu(id)?.saturating_sub(cpu);
        let wire = lab.wire_bytes()?.saturating_sub(wire);
        let ended = Duration::from_millis(view.ended.context("its end")?.0);
        Ok(Sample {
            total: ended.saturating_sub(asked),
            transfer: view.progress.elapsed.duration(),
            blackout: view.blackout.context("a blackout")?.duration(),
            cpu,
            memory: view.progress.transferred.0,
            wire,
            other: usage::machine()?.saturating_sub(machine + cpu),
            daemon: self.above_idle()?,
        })
    }

    async fn move_over(&self, name: &str) -> Result<MigrationView> {
        let api = &self.cluster.api;
        let at = api.vm(name).await?.node.context("its node")?;
        let there = usize::from(at == self.cluster.name(0));
        let request = MigrateRequest {
            target: Some(self.cluster.name(there)),
            policy: self.policy.clone(),
            ..MigrateRequest::default()
        };
        let task = api.migrate(name, &request).await?;
        api.succeed(task.id, MOVE).await?;
        api.migration(task.migration.context("its migration")?)
            .await
    }

    /// How long it takes to move all of them: one after another, or at once.
    pub(crate) async fn move_all(&self, names: &[String], at_once: bool) -> Result<Duration> {
        let begun = Instant::now();
        if at_once {
            try_join_all(names.iter().map(|name| self.move_over(name))).await?;
        } else {
            for name in names {
                self.move_over(name).await?;
            }
        }
        Ok(begun.elapsed())
    }

    /// CPU time of the daemons and of the guest's QEMUs. One that has ended was
    /// waited for by its daemon, and counts there.
    fn cpu(&self, vm: VmId) -> Result<Duration> {
        let nodes = self.cluster.nodes.iter().map(|node| node.daemon.pid());
        let daemons = nodes.chain([self.cluster.coordinator.pid()]);
        let mut sum = Duration::ZERO;
        for daemon in daemons {
            sum += usage::cpu(daemon?)?;
        }
        for qemu in self.cluster.qemus_of(vm) {
            // It may be ending.
            sum += usage::cpu(qemu.pid).unwrap_or_default();
        }
        Ok(sum)
    }

    /// Peaks are measured anew from here on.
    pub(crate) fn forget_peaks(&self) -> Result<()> {
        let mut nodes = self.cluster.nodes.iter();
        nodes.try_for_each(|node| usage::forget_peak(node.daemon.pid()?))
    }

    /// Most memory that a node's daemon had since then, above what it had
    /// before it had moved anything, in MiB.
    pub(crate) fn above_idle(&self) -> Result<f64> {
        let peaks = self.resident(|resident| resident.peak)?;
        let above = peaks.iter().zip(&self.idle).map(|(peak, idle)| peak - idle);
        Ok(above.fold(0.0, f64::max))
    }
}
