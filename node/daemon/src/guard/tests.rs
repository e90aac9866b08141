#![allow(clippy::unwrap_used, clippy::panic)]
use std::time::Duration;

use godwit_shared::model::{BootMillis, Millis, codes};

use super::*;
use crate::qemu::process::{Ended, Launch, Qemu};

/// A guard whose guardian is a thread of this process.
pub(crate) fn guard(dir: &Path) -> Guard {
    let guard = Guard::new(dir, "/nonexistent/godwit-node".into(), None);
    let run_dir = dir.to_owned();
    let (ready, listens) = std::sync::mpsc::channel();
    std::thread::spawn(move || server::serve(&run_dir, None, || ready.send(()).unwrap()));
    listens.recv_timeout(Duration::from_secs(20)).unwrap();
    guard.begin().unwrap();
    guard
}

fn sleeper(dir: &Path, name: &str) -> Qemu {
    Launch {
        program: "/bin/sleep".into(),
        args: vec!["60".into()],
        qmp: dir.join(format!("{name}.sock")),
        log: dir.join(format!("{name}.log")),
    }
    .start()
    .unwrap()
}

fn soon(millis: u64) -> BootMillis {
    boot_now().after(Millis(millis))
}

#[tokio::test]
async fn who_runs_under_the_lease_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let guard = guard(dir.path());
    assert_eq!(guard.check().unwrap_err().code, codes::LEASE_LOST);
    let stop_at = soon(400);
    guard.extend(stop_at).unwrap();
    guard.check().unwrap();
    let (one, free) = (sleeper(dir.path(), "one"), sleeper(dir.path(), "free"));
    guard.watch(one.id()).unwrap();
    guard.watch(one.id()).unwrap();
    assert_eq!(one.clone().ended().await, Ended::Signal(9));
    assert!(boot_now() >= stop_at, "not before its time");
    assert!(boot_now() < stop_at.after(Millis(2_000)), "and soon");
    assert!(guard.has_ended(one.id()) && !guard.has_ended(free.id()));
    assert_eq!(guard.check().unwrap_err().code, codes::LEASE_LOST);
    free.kill();
    assert_eq!(free.ended().await, Ended::Signal(9), "nobody else did");
}

#[tokio::test]
async fn a_renewed_lease_ends_nobody_and_who_comes_late_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let guard = guard(dir.path());
    let first = soon(100);
    guard.extend(first).unwrap();
    guard.extend(soon(600_000)).unwrap();
    let one = sleeper(dir.path(), "one");
    guard.watch(one.id()).unwrap();
    // A later daemon learns of the lease's end.
    assert!(guard.begin().unwrap() > Some(soon(500_000)));
    // Its answer comes behind what the end of the first lease led to.
    tokio::time::sleep(until(first)).await;
    assert!(!guard.has_ended(one.id()));
    assert!(!one.has_ended());
    one.kill();
    one.ended().await;

    let dir = tempfile::tempdir().unwrap();
    let guard = self::guard(dir.path());
    let late = sleeper(dir.path(), "late");
    assert_eq!(guard.watch(late.id()).unwrap_err().code, codes::LEASE_LOST);
    assert_eq!(late.ended().await, Ended::Signal(9));
}

#[test]
fn without_a_guardian_nothing_is_guarded() {
    let dir = tempfile::tempdir().unwrap();
    let guard = Guard::new(dir.path(), "/nonexistent/godwit-node".into(), None);
    assert_eq!(guard.begin().unwrap_err().code, codes::HOST_IO);
    assert_eq!(guard.extend(soon(9)).unwrap_err().code, codes::HOST_IO);
    assert_eq!(Guard::none().check().unwrap_err().code, codes::LEASE_LOST);
}
