//! The measurement of one cluster.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use godwit_coordinator_logic::placement::{Index, Request, Weights};
use godwit_shared::model::VmSpec;
use serde::Serialize;

use crate::world::{World, weights};

/// VMs for each node, in the mean.
const VMS_PER_NODE: usize = 20;
/// Most decisions before it is measured.
const WARM: usize = 400_000;
/// Decisions that are timed one by one, and in one batch.
const TIMED: usize = 100_000;
const BATCH: usize = 20_000;
const EXACT: usize = 20_000;
/// How many points of 1000 a choice may be below the best, when it is measured.
const SLACK: u32 = 2;
/// How long full scans to compare with may take.
const SCANS: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) nodes: usize,
    vms: usize,
    pub(crate) decisions_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    max_us: f64,
    batch_decisions_per_second: f64,
    /// With the full scan's own choice.
    exact_decisions_per_second: f64,
    /// Telling the index that a VM is gone.
    release_us: f64,
    /// Making the index anew.
    build_ms: f64,
    /// Of decisions for which no node was found.
    unplaced_share: f64,
    /// One look at every node, without collecting what is on them.
    full_scan_us: f64,
    compared: usize,
    /// The mean of the scores, divided by the full scan's.
    pub(crate) score_vs_full_scan: f64,
    same_node_share: f64,
}

pub(crate) fn measure(nodes: usize, seed: u64) -> Result<Figures> {
    let mut world = World::filled(nodes, nodes * VMS_PER_NODE, seed)?;
    let begun = Instant::now();
    let index = Index::of(&world.snapshot(weights())).nearly(SLACK);
    let built = begun.elapsed();
    let mut bench = Bench {
        index,
        weights: weights(),
        released: Duration::ZERO,
        made: 0,
    };
    for _ in 0..(nodes * VMS_PER_NODE).min(WARM) {
        bench.turn(&mut world)?;
    }
    bench.released = Duration::ZERO;
    let mut times = Vec::with_capacity(TIMED);
    let mut unplaced = 0;
    for _ in 0..TIMED {
        let (took, placed) = bench.turn(&mut world)?;
        times.push(took);
        unplaced += usize::from(!placed);
    }
    let release = bench.released / u32::try_from(TIMED)?;
    let batch = bench.batch(&mut world)?;
    let compared = bench.compare(&mut world)?;
    bench.index = bench.index.nearly(0);
    let mut exactly = Duration::ZERO;
    for _ in 0..EXACT {
        exactly += bench.turn(&mut world)?.0;
    }
    let all: Duration = times.iter().sum();
    times.sort_unstable();
    let at = |percent: usize| micros(times[(times.len() - 1) * percent / 100]);
    Ok(Figures {
        nodes,
        vms: world.vms.len(),
        decisions_per_second: TIMED as f64 / all.as_secs_f64(),
        p50_us: at(50),
        p99_us: at(99),
        max_us: at(100),
        batch_decisions_per_second: batch,
        release_us: micros(release),
        build_ms: micros(built) / 1000.0,
        exact_decisions_per_second: EXACT as f64 / exactly.as_secs_f64(),
        unplaced_share: unplaced as f64 / TIMED as f64,
        full_scan_us: compared.scan_us,
        compared: compared.count,
        score_vs_full_scan: compared.score,
        same_node_share: compared.same,
    })
}

struct Bench {
    index: Index,
    weights: Weights,
    released: Duration,
    made: usize,
}

struct Compared {
    count: usize,
    scan_us: f64,
    score: f64,
    same: f64,
}

impl Bench {
    /// One VM goes, and one comes: the same again, or in one of ten cases the first
    /// of a new app. How long the decision took, and whether a node was found.
    fn turn(&mut self, world: &mut World) -> Result<(Duration, bool)> {
        let app = self.lose(world)?;
        let spec = self.spec(world, app);
        let request = Request::new(&spec);
        let begun = Instant::now();
        let chosen = self.index.place(&request, &self.weights);
        let took = begun.elapsed();
        if let Some(chosen) = &chosen {
            let host = world.number(&chosen.node);
            world.put(app, host);
        }
        Ok((took, chosen.is_some()))
    }

    fn lose(&mut self, world: &mut World) -> Result<usize> {
        let (app, host) = world.lose_one();
        let begun = Instant::now();
        self.index
            .remove_vm(&world.hosts[host].name, &world.apps[app]);
        self.released += begun.elapsed();
        if world.rng.chance(10) {
            return Ok(world.new_app()?.0);
        }
        Ok(app)
    }

    /// With a disk of its own, as every VM has.
    fn spec(&mut self, world: &World, app: usize) -> VmSpec {
        self.made += 1;
        let mut spec = world.apps[app].clone();
        if let Some(disk) = spec.disks.first_mut() {
            disk.path = format!("/vms/{}/{}.qcow2", spec.name, self.made);
        }
        spec
    }

    /// Decisions a second, of many VMs that come at once.
    fn batch(&mut self, world: &mut World) -> Result<f64> {
        let count = BATCH.min(world.vms.len() / 10);
        let apps = (0..count).map(|_| self.lose(world));
        let apps = apps.collect::<Result<Vec<usize>>>()?;
        let specs: Vec<VmSpec> = apps.iter().map(|app| self.spec(world, *app)).collect();
        let weights = self.weights;
        let begun = Instant::now();
        let requests = specs.iter().map(|spec| (Request::new(spec), weights));
        let placed = self.index.place_batch(requests);
        let took = begun.elapsed();
        for (app, chosen) in apps.into_iter().zip(placed) {
            if let Some(chosen) = chosen {
                let host = world.number(&chosen.node);
                world.put(app, host);
            }
        }
        Ok(count as f64 / took.as_secs_f64())
    }

    /// Lets the full scan decide the same.
    fn compare(&mut self, world: &mut World) -> Result<Compared> {
        let begun = Instant::now();
        let (mut count, mut scanning) = (0_usize, Duration::ZERO);
        let (mut own, mut best, mut same) = (0_u64, 0_u64, 0_usize);
        while count < 200 && (begun.elapsed() < SCANS || count < 10) {
            let app = self.lose(world)?;
            let spec = self.spec(world, app);
            let snapshot = world.snapshot(self.weights);
            let started = Instant::now();
            let scanned = World::scan(&snapshot, &spec);
            scanning += started.elapsed();
            drop(snapshot);
            let chosen = self.index.place(&Request::new(&spec), &self.weights);
            count += 1;
            if let Some((node, score)) = &scanned {
                best += u64::from(*score);
                let found = chosen
                    .as_ref()
                    .context("the index found no node, the scan did")?;
                own += u64::from(found.score);
                same += usize::from(found.node == *node);
            } else {
                same += usize::from(chosen.is_none());
            }
            if let Some(chosen) = chosen {
                let host = world.number(&chosen.node);
                world.put(app, host);
            }
        }
        Ok(Compared {
            count,
            scan_us: micros(scanning) / count as f64,
            score: own as f64 / best as f64,
            same: same as f64 / count as f64,
        })
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>6} nodes, {:>7} VMs: {:>7.0} decisions/s, p50 {:.1} us, p99 {:.1} us, in a batch {:.0}/s, exact {:.0}/s; \
             a full scan {:.0} us, scores {:.4} of its",
            self.nodes,
            self.vms,
            self.decisions_per_second,
            self.p50_us,
            self.p99_us,
            self.batch_decisions_per_second,
            self.exact_decisions_per_second,
            self.full_scan_us,
            self.score_vs_full_scan,
        )
    }
}
