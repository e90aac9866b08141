//! What is measured: every side in turn, and each in the same way.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use godwit_tests::scene::{BOOT, SETTLE};
use godwit_tests::wait;
use serde_json::{Map, Value, json};

use crate::bare::Bare;
use crate::managed::Managed;
use crate::network::{self, BARE, MANAGED};
use crate::probe::Probe;
use crate::sample::{Sample, Samples, round};
use crate::watch::Watch;

/// So many answers are a guest that is there.
const THERE: usize = 300;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// A move by Godwit.
    Godwit,
    /// A move without it.
    Bare,
    /// No move: stopped, and run on by the same QEMU.
    StopCont,
    /// No move: given back an earlier state by the same QEMU, which has to
    /// translate the guest's code anew.
    Restore,
}

const SIDES: [Side; 4] = [Side::Godwit, Side::Bare, Side::StopCont, Side::Restore];

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Godwit => "godwit",
            Self::Bare => "bare",
            Self::StopCont => "stop_cont",
            Self::Restore => "restore",
        }
    }
}

/// Results by side, in the order of [`SIDES`].
#[derive(Debug, Default)]
pub(crate) struct Found([Samples; SIDES.len()]);

struct Guests {
    managed: Managed,
    bare: Bare,
    watch: Watch,
}

/// Measures each side so many times.
pub(crate) async fn run(runs: usize) -> Result<Found> {
    let dir = tempfile::Builder::new().prefix("gw-watch-").tempdir()?;
    let mut guests = Guests::boot(dir.path()).await?;
    let mut found = Found::default();
    let measured = guests.measure(runs, &mut found).await;
    let cluster = &mut guests.managed.scene.cluster;
    measured.with_context(|| cluster.logs())?;
    cluster.terminate().await?;
    Ok(found)
}

impl Guests {
    async fn boot(dir: &Path) -> Result<Self> {
        let socket = dir.join("watch.sock");
        let watch = Watch::start(&socket)?;
        let qemus = MANAGED.taps.map(|tap| network::emulator(dir, tap, &socket));
        let managed = Managed::start(qemus.into_iter().collect::<Result<_>>()?).await?;
        let bare = Bare::boot(&managed.recipe().await?).await?;
        Ok(Self {
            managed,
            bare,
            watch,
        })
    }

    async fn measure(&mut self, runs: usize, found: &mut Found) -> Result<()> {
        for run in 1..=runs {
            for (side, samples) in SIDES.into_iter().zip(&mut found.0) {
                let sample = self.pause(side).await?;
                tell(run, side, &sample);
                samples.0.push(sample);
            }
        }
        Ok(())
    }

    async fn pause(&mut self, side: Side) -> Result<Sample> {
        let bridge = if side == Side::Godwit { MANAGED } else { BARE };
        let probe = Probe::start(bridge.echo())?;
        if side == Side::Restore {
            self.bare.save().await?;
        }
        probe.take();
        answers(&probe, Duration::ZERO, BOOT).await?;
        self.watch.forget();
        let reported = match side {
            Side::Godwit => Some(self.managed.migrate().await?),
            Side::Bare => self.bare.migrate().await.map(|()| None)?,
            Side::StopCont => self.bare.stop_and_go().await.map(|()| None)?,
            Side::Restore => self.bare.restore().await.map(|()| None)?,
        };
        let watch = &self.watch;
        let pause = wait::until("a pause by QEMU's events", SETTLE, || async {
            Ok(watch.pause())
        });
        let pause = pause.await?;
        answers(&probe, pause.resume, SETTLE).await?;
        Sample::new(pause, reported, &probe.take())
    }
}

async fn answers(probe: &Probe, after: Duration, limit: Duration) -> Result<()> {
    wait::until("answers of the guest", limit, || async {
        Ok((probe.count_after(after) >= THERE).then_some(()))
    })
    .await
}

#[expect(clippy::print_stderr, reason = "progress of a long run, for people")]
fn tell(run: usize, side: Side, sample: &Sample) {
    eprintln!("{run} {:9} {sample:.1?}", side.name());
}

impl Found {
    fn side(&self, side: Side) -> &Samples {
        &self.0[side as usize]
    }

    /// How far what is seen goes beyond what is reported, on one side and another.
    fn apart(&self, one: Side, other: Side) -> f64 {
        let seen = [one, other].map(|side| self.side(side).seen_minus_reported());
        (seen[0] - seen[1]).abs()
    }

    /// Everything, by side, and what has a target.
    pub(crate) fn to_json(&self) -> Value {
        let names = SIDES.map(|side| side.name().to_owned());
        let sides: Map<_, _> = SIDES
            .into_iter()
            .zip(names)
            .map(|(side, name)| (name, self.side(side).to_json()))
            .collect();
        let stop_cont = self.side(Side::StopCont).seen_minus_reported().abs();
        json!({
            "sides": sides,
            "agreement_ms": round(self.apart(Side::Godwit, Side::Bare)),
            "stop_cont_agreement_ms": round(stop_cont),
        })
    }
}
