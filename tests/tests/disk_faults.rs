//! Faults at every step in which a guest's own disks are copied, finished and
//! removed, with real daemons and real guests: the source's disks stay writable
//! and whole and the target has no image, no socket and no QEMU; or, once the
//! guest has arrived, it is the other way round.
//!
//! Both nodes are on this host, so each sees a folder of its own at the same
//! path, in a mount namespace: needs root.
//!
//! `GODWIT_MATRIX="Freeze(Source"` runs only the faults whose name has that in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "what was run belongs into the log")]

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context as _, Result};
use godwit_node::fault::DISK_POINTS;
use godwit_tests::matrix::End;
use godwit_tests::matrix::disks::{CALLED_OFF, Disks, GUESTS, ROUNDS, Round};

#[test]
fn every_point_has_its_place() {
    let points = ROUNDS.iter().flat_map(|round| round.points).copied();
    let places: BTreeSet<&str> = points.chain(CALLED_OFF).collect();
    assert_eq!(places, DISK_POINTS.into());
    for Round {
        fault,
        points,
        called_off,
    } in ROUNDS
    {
        let ends = points.iter().map(|point| fault.end(point));
        assert!(ends.clone().all(|end| Some(end) == ends.clone().next()));
        assert!(points.iter().all(|point| fault.applies(point)));
        let stay = fault.end(points[0]) == End::Stays;
        assert!(stay || !called_off, "{fault:?}: one of them stays");
        let guests = points.len() + usize::from(called_off);
        assert!(guests <= GUESTS.len(), "{fault:?}: {guests} guests");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_while_disks_move() {
    let wanted = std::env::var("GODWIT_MATRIX").unwrap_or_default();
    let mut guests = start().await;
    let mut broken = Vec::new();
    for of_one in ROUNDS.chunk_by(|one, next| one.fault == next.fault) {
        let fault = format!("{:?}", of_one[0].fault);
        if !fault.contains(&wanted) {
            continue;
        }
        let began = Instant::now();
        if let Err(error) = one_fault(&mut guests, of_one).await {
            eprintln!("{fault}: WRONG after {:?}: {error:#}", began.elapsed());
            broken.push(format!("{fault}: {error:#}"));
            assert!(wanted.is_empty(), "{broken:#?}");
            // What it left behind is not known: the others get a new cluster.
            guests = start().await;
        } else {
            eprintln!("{fault}: {:?}", began.elapsed());
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

async fn start() -> Disks {
    let began = Instant::now();
    let guests = Disks::start().await.unwrap();
    eprintln!("booted in {:?}", began.elapsed());
    guests
}

async fn one_fault(guests: &mut Disks, rounds: &[Round]) -> Result<()> {
    for round in rounds {
        let spent = guests.round(*round).await;
        let spent = spent.with_context(|| format!("at {:?}", round.points))?;
        eprintln!("{:?} at {:?}: {spent:?}", round.fault, round.points);
    }
    guests.whole().await
}
