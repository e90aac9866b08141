//! Rebalances by Godwit and by Ganeti's hbal on the same clusters.
//!
//! `bench-rebalance HBAL DIR [--json] [--quick]`: the program of that name, and a folder for
//! the clusters, which are written in htools' text format, so hbal reads what
//! Godwit reads. Both minimise hbal's own measure ([`Metric::HBAL`]). hbal prints
//! the score after each of its moves; after a quarter, a half, three quarters and
//! all of them Godwit's best plan with as many moves is held against it. A VM that
//! moves twice is two moves of hbal's.
#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a program that prints ratios of small counts"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use godwit_coordinator_logic::plan::hbal::HbalCluster;
use godwit_coordinator_logic::plan::{Balance, Metric, Model, Move, Policy, rebalance};
use serde_json::{Value, json};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Clusters: what they are like, nodes, VMs for each node, nodes that are new.
const CLUSTERS: [(&str, u64, u64, u64); 8] = [
    ("uneven", 5, 8, 0),
    ("uneven", 10, 10, 0),
    ("uneven", 20, 12, 0),
    ("uneven", 40, 12, 0),
    ("new nodes", 10, 10, 2),
    ("new nodes", 20, 12, 3),
    ("new nodes", 40, 12, 4),
    ("full", 20, 14, 1),
];
/// Of each kind.
const SEEDS: u64 = 3;
/// MiB and CPUs of a node.
const NODE: (u64, u64) = (131_072, 32);
/// Scores closer than this are the same: hbal prints eight places.
const SAME: f64 = 1e-6;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (Some(hbal), Some(dir)) = (words.first(), words.get(1)) else {
        println!("usage: bench-rebalance HBAL DIR [--json] [--quick]");
        return ExitCode::from(2);
    };
    let has = |flag: &str| words.iter().any(|word| word == flag);
    let wanted = Wanted {
        json: has("--json"),
        quick: has("--quick"),
    };
    match run(Path::new(hbal), Path::new(dir), &wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

struct Wanted {
    json: bool,
    /// One of each kind, and none of the large ones.
    quick: bool,
}

fn run(hbal: &Path, dir: &Path, wanted: &Wanted) -> Fallible<()> {
    let mut all = Vec::new();
    let (most, seeds) = if wanted.quick {
        (20, 1)
    } else {
        (u64::MAX, SEEDS)
    };
    let kinds = CLUSTERS.iter().filter(|(_, nodes, ..)| *nodes <= most);
    for (kind, nodes, each, new) in kinds.copied() {
        for seed in 0..seeds {
            let text = generate(seed * 1000 + nodes, nodes, each, new);
            let path = dir.join(format!("{}-{nodes}-{seed}", kind.replace(' ', "-")));
            std::fs::write(&path, text)?;
            let one = compare(hbal, &path, kind)?;
            if !wanted.json {
                println!("{}", line(&one));
            }
            all.push(one);
        }
    }
    let sum = summary(&all);
    if wanted.json {
        println!(
            "{}",
            json!({ "clusters": all.iter().map(Outcome::json).collect::<Vec<_>>(), "summary": sum })
        );
    } else {
        println!("{}", serde_json::to_string_pretty(&sum)?);
    }
    Ok(())
}

/// Both on one cluster.
struct Outcome {
    kind: String,
    nodes: usize,
    vms: usize,
    before: f64,
    hbal: Plan,
    godwit: Plan,
    /// `(moves, hbal's score, Godwit's)`.
    points: Vec<(usize, f64, f64)>,
}

/// What one of them did.
struct Plan {
    moves: usize,
    after: f64,
    seconds: f64,
}

impl Plan {
    fn json(&self) -> Value {
        json!({ "moves": self.moves, "after": self.after, "seconds": self.seconds })
    }
}

impl Outcome {
    fn json(&self) -> Value {
        json!({
            "kind": self.kind, "nodes": self.nodes, "vms": self.vms, "before": self.before,
            "hbal": self.hbal.json(), "godwit": self.godwit.json(), "points": self.points,
        })
    }

    /// Godwit's imbalance is no more than hbal's, at each count of moves.
    fn no_worse(&self) -> bool {
        self.points
            .iter()
            .all(|(_, hbal, ours)| *ours <= hbal + SAME)
    }
}

fn compare(hbal: &Path, path: &Path, kind: &str) -> Fallible<Outcome> {
    let cluster = HbalCluster::read(&std::fs::read_to_string(path)?)?;
    let model = &cluster.model;
    let (scores, theirs) = run_hbal(hbal, path, &cluster)?;
    let ours = plan(model, usize::MAX);
    let count = scores.len().saturating_sub(1);
    let mut points = Vec::new();
    for part in 1..=4 {
        let moves = count * part / 4;
        let best = plan(model, moves);
        points.push((moves, scores[moves], best.after));
    }
    Ok(Outcome {
        kind: kind.to_owned(),
        nodes: model.hosts.len(),
        vms: model.guests.len(),
        before: score(model),
        hbal: theirs,
        godwit: ours,
        points,
    })
}

/// With hbal's own least gain of a move (its `--min-gain`).
fn plan(model: &Model, max_moves: usize) -> Plan {
    let policy = Policy {
        metric: Metric::HBAL,
        threshold: 0.0,
        first_gain: 0.01,
        min_gain: 0.01,
        max_moves,
    };
    let begun = Instant::now();
    let moves = rebalance(model, &policy);
    let seconds = begun.elapsed().as_secs_f64();
    Plan {
        moves: moves.len(),
        after: score(&applied(model, &moves)),
        seconds,
    }
}

fn score(model: &Model) -> f64 {
    Balance::of(model, &Metric::HBAL).score()
}

fn applied(model: &Model, moves: &[Move]) -> Model {
    let mut after = model.clone();
    for one in moves {
        let takes = after.guests[one.guest].takes;
        for (kind, takes) in takes.iter().enumerate() {
            after.hosts[one.from].used[kind] -= takes;
            after.hosts[one.to].used[kind] += takes;
        }
        after.guests[one.guest].host = one.to;
    }
    after
}

/// hbal's score before and after each of its moves, in our measure. Its own has
/// terms that no move changes here (free disk); they are what its first score
/// has beyond ours. That its last one fits as well shows that the rest is alike.
fn run_hbal(hbal: &Path, path: &Path, cluster: &HbalCluster) -> Fallible<(Vec<f64>, Plan)> {
    let saved = path.with_extension("hbal");
    let begun = Instant::now();
    let output = Command::new(hbal)
        .args(["-v", "-t"])
        .arg(path)
        .arg("-S")
        .arg(&saved)
        .output()?;
    let seconds = begun.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(format!("hbal: {text}{}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let first = text
        .lines()
        .find_map(|line| line.strip_prefix("Initial score: "));
    let first: f64 = first.ok_or("hbal printed no first score")?.trim().parse()?;
    let beyond = first - score(&cluster.model);
    let mut scores = vec![first - beyond];
    scores.extend(
        text.lines()
            .filter_map(move_score)
            .map(|score| score - beyond),
    );
    let balanced = PathBuf::from(format!("{}.balanced", saved.display()));
    let after = HbalCluster::read(&std::fs::read_to_string(balanced)?)?;
    let after = score(&applied(&cluster.model, &cluster.moves_to(&after)));
    let moves = scores.len() - 1;
    if (after - scores[moves]).abs() > 1e-4 {
        let text = format!("the measures differ: {after} and {}", scores[moves]);
        return Err(text.into());
    }
    Ok((
        scores,
        Plan {
            moves,
            after,
            seconds,
        },
    ))
}

/// `12. vm-3 node-1 => node-2 28.80162800 a=f:node-2`.
fn move_score(line: &str) -> Option<f64> {
    let mut words = line.split_whitespace();
    words.next()?.strip_suffix('.')?.parse::<usize>().ok()?;
    let words: Vec<&str> = words.collect();
    let at = words.iter().position(|word| word.starts_with("a="))?;
    words.get(at.checked_sub(1)?)?.parse().ok()
}

fn line(one: &Outcome) -> String {
    let Outcome {
        kind,
        nodes,
        vms,
        before,
        hbal,
        godwit,
        ..
    } = one;
    format!(
        "{kind:<10} {nodes:>3} nodes {vms:>4} VMs  {before:>8.4}  hbal {:>8.4} in {:>3} moves, {:.2} s  \
         Godwit {:>8.4} in {:>3} moves, {:.2} s  {}",
        hbal.after,
        hbal.moves,
        hbal.seconds,
        godwit.after,
        godwit.moves,
        godwit.seconds,
        if one.no_worse() {
            ""
        } else {
            "worse somewhere"
        },
    )
}

fn summary(all: &[Outcome]) -> Value {
    let points = || all.iter().flat_map(|one| &one.points);
    let no_worse = points().filter(|(_, hbal, ours)| *ours <= hbal + SAME);
    let ratios = points().map(|(_, hbal, ours)| ours / hbal.max(SAME));
    json!({
        "clusters": all.len(),
        "points": points().count(),
        "points_no_worse": no_worse.count(),
        "imbalance_vs_hbal_median": median(ratios.clone().collect()),
        "imbalance_vs_hbal_worst": ratios.fold(0.0, f64::max),
        "moves_vs_hbal_median": median(all.iter().map(|one| one.godwit.moves as f64 / one.hbal.moves.max(1) as f64).collect()),
        "final_imbalance_vs_hbal_median": median(all.iter().map(|one| one.godwit.after / one.hbal.after.max(SAME)).collect()),
        "time_vs_hbal_median": median(all.iter().map(|one| one.godwit.seconds / one.hbal.seconds).collect()),
    })
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

/// A cluster that has grown: VMs where a look at two nodes found the one that
/// sorts first, nodes at the end that came later.
fn generate(seed: u64, nodes: u64, each: u64, new: u64) -> String {
    let mut rng = Rng(seed);
    let (memory, cpus) = NODE;
    let mut used = vec![(0, 0); usize::try_from(nodes).unwrap_or(0)];
    let mut vms = String::new();
    for number in 0..nodes * each {
        let takes = rng.pick(&[1024, 2048, 4096, 8192, 12_288]);
        let vcpus = rng.pick(&[1, 2, 2, 4, 8]);
        for _ in 0..50 {
            let old = nodes - new;
            let host = rng.below(old).min(rng.below(old));
            let Some(has) = usize::try_from(host).ok().and_then(|at| used.get_mut(at)) else {
                continue;
            };
            if has.0 + takes > memory * 9 / 10 || has.1 + vcpus > cpus * 4 {
                continue;
            }
            *has = (has.0 + takes, has.1 + vcpus);
            vms += &format!(
                "vm-{number}|{takes}|10240|{vcpus}|running|Y|node-{host:03}||ext||1|1|N\n"
            );
            break;
        }
    }
    let mut text = "group-01|uuid-1|preferred||\n\n".to_owned();
    for (host, (has, _)) in used.iter().enumerate() {
        let role = if host == 0 { 'M' } else { 'N' };
        let free = memory - has;
        text += &format!(
            "node-{host:03}|{memory}|0|{free}|2048000|2048000|{cpus}|{role}|uuid-1|1||N|0|1|1.0\n"
        );
    }
    let size = "128,1,1024,1,1,1";
    let policy = format!(
        "|{size}|{size};32768,8,1048576,16,8,12|diskless,file,sharedfile,plain,blockdev,drbd,rbd,ext,gluster|4.0|32.0"
    );
    text + "\n" + &vms + "\n\n" + &policy + "\ngroup-01" + &policy + "\n"
}

/// `SplitMix64`.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }

    fn pick(&mut self, all: &[u64]) -> u64 {
        let count = u64::try_from(all.len()).unwrap_or(1);
        let at = usize::try_from(self.below(count)).unwrap_or(0);
        all.get(at).copied().unwrap_or(1)
    }
}
