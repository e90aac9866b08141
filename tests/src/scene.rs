//! What most cases begin with: guests that count, and moves between nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use godwit_shared::api::{MigrateRequest, MigrationView, TaskView, VmView};
use godwit_shared::model::{
    BytesPerSec, DomainState, MigrationId, MigrationPhase, MigrationPolicy, VmId, VmSpec,
};

use crate::guest::{self, Count, Trail, Work};
use crate::harness::{Cluster, ClusterOptions};
use crate::wait;

/// Most that a guest may take until it counts. It boots in 3 s on an idle core.
pub const BOOT: Duration = Duration::from_secs(60);
/// Most that a move of a small guest may take.
pub const MOVE: Duration = Duration::from_secs(60);
/// Most that an end which is not measured may take.
pub const SETTLE: Duration = Duration::from_secs(20);

/// A cluster with guests.
#[derive(Debug)]
pub struct Scene {
    /// The cluster.
    pub cluster: Cluster,
    trails: BTreeMap<String, (VmId, Trail)>,
}

impl Scene {
    /// A cluster without guests.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start(options: ClusterOptions) -> Result<Self> {
        Ok(Self {
            cluster: Cluster::start(options).await?,
            trails: BTreeMap::new(),
        })
    }

    /// Starts guests, `(name, node)`, all at once, and waits until each counts.
    ///
    /// # Errors
    /// When one does not.
    pub async fn boot(&mut self, guests: &[(&str, usize)], work: &Work) -> Result<()> {
        let mut specs = Vec::new();
        for (name, node) in guests {
            specs.push((guest::spec(name, work)?, Some(*node)));
        }
        self.boot_all(specs).await
    }

    /// Starts a guest of that spec, and waits until it counts.
    ///
    /// # Errors
    /// When it does not.
    pub async fn boot_as(&mut self, spec: VmSpec, node: usize) -> Result<()> {
        self.boot_all(vec![(spec, Some(node))]).await
    }

    /// Starts guests all at once, each on its node or where placement puts it,
    /// and waits until each counts.
    ///
    /// # Errors
    /// When one does not.
    pub async fn boot_all(&mut self, guests: Vec<(VmSpec, Option<usize>)>) -> Result<()> {
        let (mut tasks, mut names) = (Vec::new(), Vec::new());
        for (spec, node) in guests {
            names.push(spec.name.to_string());
            let node = node.map(|node| self.cluster.name(node));
            tasks.push(self.cluster.api.create(spec, true, node).await?);
        }
        for task in &tasks {
            self.cluster.api.succeed(task.id, BOOT).await?;
        }
        for name in &names {
            let view = self.cluster.api.vm(name).await?;
            let trail = (view.id, Trail::default());
            self.trails.insert(name.clone(), trail);
            self.visit(name).await?;
        }
        for name in &names {
            self.counts_past(name, 0, BOOT).await?;
        }
        Ok(())
    }

    /// The guest is to boot again: its count begins anew.
    ///
    /// # Errors
    /// When it was not booted here, or its log cannot be read.
    pub fn begin_anew(&mut self, name: &str) -> Result<()> {
        let (_, trail) = self.trails.get_mut(name).context("a guest of the scene")?;
        trail.begin_anew()
    }

    /// The id of a guest.
    ///
    /// # Errors
    /// When it was not booted here.
    pub fn id(&self, name: &str) -> Result<VmId> {
        let known = self.trails.get(name);
        known
            .map(|(id, _)| *id)
            .with_context(|| format!("no guest {name}"))
    }

    /// Where a guest runs now, by the coordinator's word.
    ///
    /// # Errors
    /// When it has no node.
    pub async fn whereabouts(&self, name: &str) -> Result<(VmView, usize)> {
        let view = self.cluster.api.vm(name).await?;
        let node = view
            .node
            .clone()
            .with_context(|| format!("{name} has no node"))?;
        let index = self.cluster.index(&node)?;
        Ok((view, index))
    }

    /// Takes hold of the guest's serial log where it is now.
    ///
    /// # Errors
    /// When there is none.
    pub async fn visit(&mut self, name: &str) -> Result<()> {
        let (view, index) = self.whereabouts(name).await?;
        let log = self.cluster.nodes[index].serial_log(view.id);
        let (_, trail) = self.trails.get_mut(name).context("a guest of the scene")?;
        trail.visit(&log)
    }

    /// The guest's count so far.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn count(&mut self, name: &str) -> Result<Count> {
        let (_, trail) = self.trails.get_mut(name).context("a guest of the scene")?;
        trail.count().cloned()
    }

    /// Waits until the guest has counted past `number`, by its serial log.
    ///
    /// # Errors
    /// When it has not.
    pub async fn counts_past(&mut self, name: &str, number: u64, limit: Duration) -> Result<u64> {
        let deadline = std::time::Instant::now() + limit;
        loop {
            let last = self.count(name)?.last;
            if last > number {
                return Ok(last);
            }
            if std::time::Instant::now() > deadline {
                bail!("{name} did not count past {number} within {limit:?}");
            }
            tokio::time::sleep(wait::STEP).await;
        }
    }

    /// Checks that the guest counts on, here and now, without a fault so far.
    ///
    /// # Errors
    /// With what is wrong.
    pub async fn counts_on(&mut self, name: &str) -> Result<()> {
        self.all_count_on(&[name]).await
    }

    /// They count meanwhile: it takes no longer for many than for one.
    async fn all_count_on(&mut self, names: &[&str]) -> Result<()> {
        let mut now = Vec::new();
        for name in names {
            now.push(self.count(name)?.last);
        }
        for (name, now) in names.iter().zip(now) {
            self.counts_past(name, now + 3, SETTLE).await?;
            let count = self.count(name)?;
            count.check().with_context(|| (*name).to_owned())?;
        }
        Ok(())
    }

    /// Waits until the guest has filled its memory.
    ///
    /// # Errors
    /// When it has not in time.
    pub async fn filled(&self, name: &str) -> Result<()> {
        let api = &self.cluster.api;
        wait::until(&format!("{name}'s memory filled"), BOOT, || async {
            let log = api.serial_log(name, 20_000).await?;
            Ok(log.contains("filled pages=").then_some(()))
        })
        .await
    }

    /// Lets the guest check every page now.
    ///
    /// # Errors
    /// When a page is not intact, or the guest does not answer.
    pub async fn pages_intact(&self, name: &str) -> Result<()> {
        let api = &self.cluster.api;
        let line = api.type_line(name, "check", "check pages=", SETTLE).await?;
        let line = line.lines().next().unwrap_or_default();
        if !line.ends_with(" bad=0") || line.contains("pages=0 ") {
            bail!("{name}: {line}");
        }
        Ok(())
    }

    /// Asks for a move; returns the task and the migration.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn begin_move(
        &self,
        name: &str,
        to: usize,
        policy: MigrationPolicy,
    ) -> Result<(TaskView, MigrationId)> {
        let request = MigrateRequest {
            target: Some(self.cluster.name(to)),
            policy,
            dry_run: false,
        };
        let task = self.cluster.api.migrate(name, &request).await?;
        let migration = task.migration.context("the task names its migration")?;
        Ok((task, migration))
    }

    /// Moves a guest and waits for its success.
    ///
    /// # Errors
    /// When it does not succeed.
    pub async fn move_to(&mut self, name: &str, to: usize) -> Result<MigrationView> {
        let (task, migration) = self
            .begin_move(name, to, MigrationPolicy::default())
            .await?;
        self.cluster.api.succeed(task.id, MOVE).await?;
        self.arrived(name, to, migration).await
    }

    /// Checks a completed move: the guest is there, once, and counts on.
    ///
    /// # Errors
    /// With what is wrong.
    pub async fn arrived(
        &mut self,
        name: &str,
        at: usize,
        migration: MigrationId,
    ) -> Result<MigrationView> {
        let view = self.cluster.api.migration(migration).await?;
        if view.phase != MigrationPhase::Completed {
            bail!(
                "{name}: the migration is {}: {:?}",
                view.phase,
                view.failure
            );
        }
        self.visit(name).await?;
        self.runs_on(name, at).await?;
        Ok(view)
    }

    /// Waits until the coordinator knows the guest there, and takes hold of its
    /// serial log.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn goes_to(&mut self, name: &str, node: usize) -> Result<()> {
        let there = Some(self.cluster.name(node));
        let api = &self.cluster.api;
        wait::until(&format!("{name} on node-{}", node + 1), SETTLE, || async {
            let at = api.vm(name).await?.node;
            Ok((at == there).then_some(()))
        })
        .await?;
        self.visit(name).await
    }

    /// Checks that the guest runs there, once, and counts on.
    ///
    /// # Errors
    /// With what is wrong.
    pub async fn runs_on(&mut self, name: &str, node: usize) -> Result<()> {
        self.all_run_on(&[(name, node)]).await
    }

    /// Checks that each of these guests runs on its node, once, and counts on.
    ///
    /// # Errors
    /// With what is wrong.
    pub async fn all_run_on(&mut self, guests: &[(&str, usize)]) -> Result<()> {
        let (mut names, mut pids) = (Vec::new(), Vec::new());
        for (name, node) in guests {
            names.push(*name);
            pids.push(self.stands(name, *node).await?.pid);
        }
        self.all_count_on(&names).await?;
        for ((name, node), shown) in guests.iter().zip(pids) {
            let (id, cluster) = (self.id(name)?, &self.cluster);
            let pid = wait::until("its one QEMU", SETTLE, || async {
                Ok(Some(cluster.runs_once_on(id, *node)?))
            })
            .await?;
            if shown != Some(pid) {
                bail!("{name} has QEMU {pid}, and is reported with {shown:?}");
            }
        }
        Ok(())
    }

    /// Checks that the guest runs there and counts on, whatever a node that is
    /// away may still have of it.
    ///
    /// # Errors
    /// With what is wrong.
    pub async fn goes_on(&mut self, name: &str, node: usize) -> Result<VmView> {
        let view = self.stands(name, node).await?;
        self.counts_on(name).await?;
        Ok(view)
    }

    /// Waits until the guest is shown as running there, in no migration.
    async fn stands(&self, name: &str, node: usize) -> Result<VmView> {
        let what = format!("{name} running on node-{}", node + 1);
        let cluster = &self.cluster;
        wait::until(&what, SETTLE, || async {
            let view = cluster.api.vm(name).await?;
            let there = view.node.as_ref() == Some(&cluster.nodes[node].name);
            if there && view.state == DomainState::Running && view.migration.is_none() {
                return Ok(Some(view));
            }
            let (at, migration) = (&view.node, &view.migration);
            bail!("it is {} on {at:?}, in {migration:?}", view.state)
        })
        .await
    }
}

/// A policy under which a guest's memory takes a while: for cases that have to
/// meet a migration in its pre-copy.
pub fn slow(bytes_per_second: u64) -> MigrationPolicy {
    MigrationPolicy {
        bandwidth: Some(BytesPerSec(bytes_per_second)),
        auto_converge: false,
        ..MigrationPolicy::default()
    }
}
