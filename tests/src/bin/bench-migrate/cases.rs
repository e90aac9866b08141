//! What is measured: every case with all of its sides in turn.

use anyhow::{Context as _, Result};
use godwit_shared::model::{MiB, MigrationPolicy};
use godwit_tests::bare::Recipe;
use godwit_tests::bench::median;
use godwit_tests::guest::{self, Image, Work};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::bare::{Bare, Way};
use crate::lab::Lab;
use crate::managed::Managed;
use crate::sample::{Sample, Samples, round};
use crate::{corpus, warm};

/// A guest's memory, and how much of it holds something.
const MEMORY: MiB = MiB(2048);
const FILL: MiB = MiB(1024);
/// How fast a guest writes when it is not idle.
const WRITES: u64 = 64 << 20;
/// Guests that are moved at once, and their memory.
const MANY: usize = 8;
const SMALL: MiB = MiB(384);
const SMALL_FILL: MiB = MiB(256);
/// Backed before a run beyond what the guests take.
const SPARE: MiB = MiB(512);
/// A line that belongs to the case of many guests.
const EIGHT: &str = "eight";

/// What a guest's memory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contents {
    Incompressible,
    Compressible,
}

/// One comparison.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    contents: Contents,
    mtu: u16,
    rate: Option<&'static str>,
    writes: bool,
    sides: &'static [Side],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Tcp,
    Tls,
    Godwit,
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "bare_tcp",
            Self::Tls => "bare_parallel_tls",
            Self::Godwit => "godwit",
        }
    }
}

const ALL: &[Side] = &[Side::Tcp, Side::Tls, Side::Godwit];
const WITHOUT_TLS: &[Side] = &[Side::Tcp, Side::Godwit];

const fn case(name: &'static str, contents: Contents, mtu: u16, writes: bool) -> Case {
    Case {
        name,
        contents,
        mtu,
        rate: None,
        writes,
        sides: ALL,
    }
}

const fn gigabit(name: &'static str, contents: Contents) -> Case {
    Case {
        rate: Some("1gbit"),
        sides: WITHOUT_TLS,
        ..case(name, contents, 1500, false)
    }
}

use Contents::{Compressible, Incompressible};

const CASES: &[Case] = &[
    case("random-idle-1500", Incompressible, 1500, false),
    case("random-idle-9000", Incompressible, 9000, false),
    case("random-writer-1500", Incompressible, 1500, true),
    case("random-writer-9000", Incompressible, 9000, true),
    gigabit("random-gigabit", Incompressible),
    case("real-idle-1500", Compressible, 1500, false),
    case("real-idle-9000", Compressible, 9000, false),
    case("real-writer-1500", Compressible, 1500, true),
    case("real-writer-9000", Compressible, 9000, true),
    gigabit("real-gigabit", Compressible),
];

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) runs: usize,
    /// Only cases with one of these in their names; all when empty.
    pub(crate) only: Vec<String>,
    pub(crate) policy: MigrationPolicy,
    /// Only Godwit's side: for work on it.
    pub(crate) alone: bool,
}

impl Wish {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }
}

/// Results by case and side.
#[derive(Debug, Default)]
pub(crate) struct Found {
    cases: Vec<(&'static str, Vec<(Side, Samples)>)>,
    many: Option<Many>,
}

#[derive(Debug)]
struct Many {
    serial: Vec<f64>,
    parallel: Vec<f64>,
    daemon: Vec<f64>,
}

/// Names of all cases.
pub(crate) fn names() -> Vec<&'static str> {
    CASES.iter().map(|case| case.name).chain([EIGHT]).collect()
}

/// Measures what is wished for.
pub(crate) async fn run(lab: &Lab, wish: &Wish) -> Result<Found> {
    let mut managed = Managed::start(lab, wish.policy.clone()).await?;
    let measured = measure(lab, wish, &managed).await;
    let found = measured.with_context(|| managed.cluster.logs())?;
    managed.cluster.terminate().await?;
    Ok(found)
}

async fn measure(lab: &Lab, wish: &Wish, managed: &Managed) -> Result<Found> {
    let mut found = Found::default();
    for contents in [Incompressible, Compressible] {
        let cases = CASES.iter().filter(|case| case.contents == contents);
        let cases: Vec<&Case> = cases.filter(|case| wish.wants(case.name)).collect();
        if !cases.is_empty() {
            compare(lab, wish, managed, &cases, &mut found).await?;
        }
    }
    if wish.wants(EIGHT) {
        lab.set_mtu(1500)?;
        found.many = Some(many(wish, managed).await?);
    }
    Ok(found)
}

/// The guests of one comparison.
struct Guests<'a> {
    managed: &'a Managed,
    name: &'static str,
    tcp: Option<Bare>,
    tls: Option<Bare>,
    /// Where their initrd is.
    _dir: TempDir,
}

async fn compare(
    lab: &Lab,
    wish: &Wish,
    managed: &Managed,
    cases: &[&Case],
    found: &mut Found,
) -> Result<()> {
    let mut guests = Guests::boot(lab, wish, managed, cases).await?;
    for case in cases {
        lab.set_mtu(case.mtu)?;
        lab.set_rate(case.rate)?;
        let sides = case.sides.iter().filter(|side| guests.has(**side));
        let mut samples: Vec<_> = sides.map(|side| (*side, Samples::default())).collect();
        for run in 0..wish.runs {
            for (side, samples) in &mut samples {
                let sample = guests.run(lab, *side, case.writes).await?;
                tell(case.name, run, *side, &sample);
                samples.0.push(sample);
            }
        }
        found.cases.push((case.name, samples));
    }
    lab.set_rate(None)?;
    managed.delete(guests.name).await
}

impl<'a> Guests<'a> {
    async fn boot(lab: &Lab, wish: &Wish, managed: &'a Managed, cases: &[&Case]) -> Result<Self> {
        let compressible = cases.iter().any(|case| case.contents == Compressible);
        let dir = tempfile::Builder::new().prefix("gw-initrd-").tempdir()?;
        let (name, work) = if compressible {
            ("real", compressible_work(&dir)?)
        } else {
            ("random", incompressible_work())
        };
        progress(&format!("booting {name} guests"));
        managed.boot(vec![guest::spec(name, &work)?]).await?;
        let recipe = Recipe::of_guest(&managed.cluster, 0, name).await?;
        let wanted = |side| !wish.alone && cases.iter().any(|case| case.sides.contains(&side));
        let mut guests = Self {
            managed,
            name,
            tcp: None,
            tls: None,
            _dir: dir,
        };
        if wanted(Side::Tcp) {
            guests.tcp = Some(Bare::boot(lab, recipe.clone(), Way::Tcp).await?);
        }
        if wanted(Side::Tls) {
            guests.tls = Some(Bare::boot(lab, recipe, Way::ParallelTls).await?);
        }
        // The first move of a guest is not like the others.
        for side in ALL {
            if guests.has(*side) {
                guests.run(lab, *side, false).await?;
            }
        }
        Ok(guests)
    }

    fn has(&self, side: Side) -> bool {
        match side {
            Side::Tcp => self.tcp.is_some(),
            Side::Tls => self.tls.is_some(),
            Side::Godwit => true,
        }
    }

    async fn run(&mut self, lab: &Lab, side: Side, writes: bool) -> Result<Sample> {
        if writes {
            self.set_writes(side, WRITES).await?;
        }
        warm::warm_memory(MiB(MEMORY.0 + SPARE.0))?;
        let sample = match (side, &mut self.tcp, &mut self.tls) {
            (Side::Tcp, Some(bare), _) | (Side::Tls, _, Some(bare)) => bare.migrate(lab).await?,
            _ => self.managed.migrate(lab, self.name).await?,
        };
        if writes {
            self.set_writes(side, 0).await?;
        }
        Ok(sample)
    }

    async fn set_writes(&self, side: Side, rate: u64) -> Result<()> {
        let (line, answer) = (format!("rate {rate}"), format!("rate {rate}"));
        match (side, &self.tcp, &self.tls) {
            (Side::Tcp, Some(bare), _) | (Side::Tls, _, Some(bare)) => {
                bare.type_line(&line, &answer).await
            }
            _ => self.managed.type_line(self.name, &line, &answer).await,
        }
    }
}

fn incompressible_work() -> Work {
    Work {
        memory: MEMORY,
        tick_ms: 1000,
        fill: FILL,
        rate: MiB::ZERO,
        ..Work::default()
    }
}

/// The corpus is in the guest's memory once beside the pages that are made of
/// it, and counts as well.
fn compressible_work(dir: &TempDir) -> Result<Work> {
    let initrd = dir.path().join("initrd.img");
    corpus::append_to(&Image::find()?.initrd, &initrd)?;
    Ok(Work {
        fill: MiB(FILL.0 - (corpus::BYTES >> 20) as u64),
        pattern: "corpus:/corpus".to_owned(),
        initrd: Some(initrd),
        ..incompressible_work()
    })
}

/// Guests at once beside one after another.
async fn many(wish: &Wish, managed: &Managed) -> Result<Many> {
    progress("booting eight guests");
    let names: Vec<String> = (1..=MANY).map(|number| format!("eight-{number}")).collect();
    let work = Work {
        memory: SMALL,
        fill: SMALL_FILL,
        ..incompressible_work()
    };
    let specs = names.iter().map(|name| guest::spec(name, &work));
    managed.boot(specs.collect::<Result<_>>()?).await?;
    let mut many = Many {
        serial: Vec::new(),
        parallel: Vec::new(),
        daemon: Vec::new(),
    };
    let memory = MiB(SMALL.0 * MANY as u64 + SPARE.0);
    managed.move_all(&names, true).await?;
    for run in 0..wish.runs {
        for at_once in [false, true] {
            warm::warm_memory(memory)?;
            managed.forget_peaks()?;
            let took = managed.move_all(&names, at_once).await?.as_secs_f64();
            let way = if at_once { "at once" } else { "in turn" };
            progress(&format!("{EIGHT} {run} {way}: {took:.2} s"));
            if at_once {
                many.parallel.push(took);
                many.daemon.push(managed.above_idle()?);
            } else {
                many.serial.push(took);
            }
        }
    }
    Ok(many)
}

fn tell(case: &str, run: usize, side: Side, sample: &Sample) {
    progress(&format!(
        "{case} {run} {:17} {:6.2} s, of it {:6.2} s transfer; blackout {:3} ms; \
         {:.2} CPU s/GiB; {:.0} MiB on the link; {:.1} MiB in a daemon; {:.1} CPU s by others",
        side.name(),
        sample.total.as_secs_f64(),
        sample.transfer.as_secs_f64(),
        sample.blackout.as_millis(),
        sample.cpu_per_gib(),
        sample.wire as f64 / 1_048_576.0,
        sample.daemon,
        sample.other.as_secs_f64(),
    ));
}

#[expect(clippy::print_stderr, reason = "progress of a long run, for people")]
fn progress(line: &str) {
    eprintln!("{line}");
}

impl Found {
    fn side(&self, case: &str, side: Side) -> Option<&Samples> {
        let (_, sides) = self.cases.iter().find(|(name, _)| *name == case)?;
        let (_, samples) = sides.iter().find(|(this, _)| *this == side)?;
        Some(samples)
    }

    fn against(&self, case: &str, other: Side) -> Option<f64> {
        let ours = self.side(case, Side::Godwit)?.total();
        Some(ours / self.side(case, other)?.total())
    }

    /// The numbers that have targets; those of cases that did not run are absent.
    pub(crate) fn ratios(&self) -> Map<String, Value> {
        let ours = |case| self.side(case, Side::Godwit);
        let (slow, fast) = ("random-idle-1500", "random-idle-9000");
        let blackout = ours(slow).map(Samples::blackout_ms);
        let bare_blackout = self.side(slow, Side::Tcp).map(Samples::blackout_ms);
        let share =
            ours("random-gigabit").map(|samples| samples.median(|sample| sample.share(1e9)));
        let many = self.many.as_ref();
        let eight = many.map(|many| median(many.parallel.clone()) / median(many.serial.clone()));
        let daemon = CASES
            .iter()
            .filter_map(|case| Some(ours(case.name)?.daemon()));
        let table = [
            (
                "total_vs_bare_parallel_tls_1500",
                self.against(slow, Side::Tls),
            ),
            (
                "total_vs_bare_parallel_tls_9000",
                self.against(fast, Side::Tls),
            ),
            ("total_vs_bare_tcp_9000", self.against(fast, Side::Tcp)),
            ("cpu_s_per_gib_1500", ours(slow).map(Samples::cpu_per_gib)),
            ("cpu_s_per_gib_9000", ours(fast).map(Samples::cpu_per_gib)),
            (
                "compressible_vs_bare_parallel_tls_1500",
                self.against("real-idle-1500", Side::Tls),
            ),
            (
                "gigabit_compressible_vs_bare_tcp",
                self.against("real-gigabit", Side::Tcp),
            ),
            ("gigabit_link_share", share),
            (
                "blackout_over_bare_tcp_ms",
                blackout.zip(bare_blackout).map(|(ours, bare)| ours - bare),
            ),
            ("blackout_idle_ms", blackout),
            ("eight_parallel_vs_serial", eight),
            ("daemon_memory_above_idle_mib", daemon.reduce(f64::max)),
        ];
        let known = table
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        known
            .map(|(key, value)| (key.to_owned(), json!(round(value))))
            .collect()
    }

    /// Everything, by case and side.
    pub(crate) fn to_json(&self) -> Value {
        let mut cases: Map<String, Value> = Map::new();
        for (name, sides) in &self.cases {
            let sides = sides
                .iter()
                .map(|(side, samples)| (side.name(), samples.to_json()));
            let sides: Map<_, _> = sides
                .map(|(name, found)| (name.to_owned(), found))
                .collect();
            cases.insert((*name).to_owned(), Value::Object(sides));
        }
        if let Some(many) = &self.many {
            cases.insert(
                EIGHT.to_owned(),
                json!({
                    "serial_s": round(median(many.serial.clone())),
                    "parallel_s": round(median(many.parallel.clone())),
                    "daemon_memory_above_idle_mib": round(median(many.daemon.clone())),
                }),
            );
        }
        json!({ "cases": cases, "ratios": self.ratios() })
    }
}
