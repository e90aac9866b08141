//! Long actions: waiting, detaching, giving up, and how they end.

use serde_json::{Value, json};

use super::answers::{MIGRATION, TASK, migration, moving, problem, task};
use super::coordinator::{Answer, Call, Coordinator};
use super::process::{Running, command, godwit};

/// Accepts any start; its task is `end` when it is waited for.
fn ends(end: Value) -> impl Fn(&Call) -> Answer + Send + Sync {
    move |call| match call.line.as_str() {
        line if line.starts_with("POST /vms/gone/") => {
            Answer::Json(404, problem("not_found", "there is no VM `gone`"))
        }
        line if line.starts_with("POST /vms") => Answer::Json(202, task("running")),
        _ => Answer::Json(200, end.clone()),
    }
}

#[test]
fn it_waits_for_the_end_and_says_what_was_done() {
    let coordinator = Coordinator::start(ends(task("succeeded")));
    let run = godwit(&coordinator.credential, "vm start web-1 --node node-1");
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(run.out, "web-1 started on node-1\n");
    assert_eq!(run.err, "web-1: starting QEMU\n");
    let calls = coordinator.calls();
    assert_eq!(calls[0].body, json!({ "node": "node-1" }));
    assert!(calls[1].query.starts_with("wait_ms="), "{calls:?}");
    let run = godwit(&coordinator.credential, "vm start web-1 -o json");
    assert_eq!(run.err, "");
    assert_eq!(
        serde_json::from_str::<Value>(&run.out).unwrap(),
        task("succeeded")
    );
}

#[test]
fn detached_it_prints_the_task_and_asks_no_more() {
    let coordinator = Coordinator::start(ends(task("succeeded")));
    let run = godwit(&coordinator.credential, "vm start web-1 --detach");
    assert_eq!((run.code, run.out), (0, format!("{TASK}\n")));
    assert_eq!(coordinator.calls().len(), 1);
}

#[test]
fn a_failed_task_is_told_with_its_problem() {
    let mut failed = task("failed");
    failed["problem"] = problem("qemu_start", "QEMU did not start: no such file");
    let coordinator = Coordinator::start(ends(failed));
    let run = godwit(&coordinator.credential, "vm start web-1");
    assert_eq!((run.code, run.out.as_str()), (1, ""));
    let told =
        "error[qemu_start]: QEMU did not start: no such file\n  remedy: do something about it\n";
    assert!(run.err.ends_with(told), "{}", run.err);
    let run = godwit(&coordinator.credential, "vm start web-1 -o json");
    assert_eq!(run.problem()["code"], "qemu_start");
}

#[test]
fn many_vms_are_asked_at_once_and_each_has_its_end() {
    let coordinator = Coordinator::start(ends(task("succeeded")));
    let run = godwit(&coordinator.credential, "vm stop web-1 gone web-1 -o table");
    assert_eq!(run.code, 4, "{}", run.err);
    assert_eq!(run.out, "web-1 stopped\nweb-1 stopped\n");
    assert!(
        run.err.contains("error[not_found]: there is no VM `gone`"),
        "{}",
        run.err
    );
}

#[test]
fn ctrl_c_ends_the_waiting_and_says_how_to_go_on() {
    let coordinator = Coordinator::start(|call| match call.line.as_str() {
        "POST /vms/web-1/start" => Answer::Json(202, task("running")),
        _ => Answer::Hang,
    });
    let mut run = Running::start(command(&coordinator.credential, "vm start web-1"));
    run.await_err("starting QEMU");
    run.interrupt();
    let run = run.end();
    assert_eq!(run.code, 130);
    assert!(
        run.err.contains(&format!("godwit task watch {TASK}")),
        "{}",
        run.err
    );
    assert!(
        run.err.contains(&format!("godwit task cancel {TASK}")),
        "{}",
        run.err
    );
}

#[test]
fn a_timeout_is_an_end_of_its_own() {
    let coordinator = Coordinator::start(|call| match call.line.as_str() {
        "POST /vms/web-1/shutdown" => Answer::Json(202, task("running")),
        _ => Answer::Hang,
    });
    let run = godwit(
        &coordinator.credential,
        "vm shutdown web-1 --timeout 300ms -o json",
    );
    assert_eq!(run.code, 6);
    assert_eq!(run.problem()["code"], "timeout");
    assert_eq!(run.problem()["value"], TASK);
    assert_eq!(
        serde_json::from_str::<Value>(&run.out).unwrap(),
        task("running")
    );
}

#[test]
fn a_coordinator_that_goes_away_for_a_while_is_waited_for() {
    let coordinator = Coordinator::start(|call| match (call.line.as_str(), call.before) {
        ("POST /vms/web-1/start", _) => Answer::Json(202, task("running")),
        (_, 0) => Answer::Torn("{".to_owned()),
        (_, 1) => Answer::Json(200, task("running")),
        _ => Answer::Json(200, task("succeeded")),
    });
    let run = godwit(&coordinator.credential, "vm start web-1 -o name");
    assert_eq!((run.code, run.out.as_str()), (0, "web-1\n"), "{}", run.err);
}

/// A move whose task ends as `end` once its progress has been looked at.
fn moves(end: Value) -> impl Fn(&Call) -> Answer + Send + Sync {
    let seen = std::sync::atomic::AtomicBool::new(false);
    let last = end["state"] == "succeeded";
    move |call| {
        use std::sync::atomic::Ordering::SeqCst;
        match call.line.as_str() {
            "POST /vms/web-1/migrate" => Answer::Json(202, moving("running")),
            line if line == format!("GET /tasks/{TASK}") && seen.load(SeqCst) => {
                Answer::Json(200, end.clone())
            }
            line if line == format!("GET /tasks/{TASK}") => Answer::Json(200, moving("running")),
            line if line == format!("GET /migrations/{MIGRATION}") => {
                let again = seen.swap(true, SeqCst);
                let phase = if again && last {
                    "completed"
                } else {
                    "precopy"
                };
                Answer::Json(200, migration(phase))
            }
            line => panic!("unexpected: {line}"),
        }
    }
}

#[test]
fn a_move_shows_its_progress_and_its_blackout() {
    let coordinator = Coordinator::start(moves(moving("succeeded")));
    let run = godwit(
        &coordinator.credential,
        "vm migrate web-1 --to node-2 --bandwidth 100MiB/s --downtime 50 --channels 4 --no-auto-converge",
    );
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(
        run.out,
        "web-1 moved from node-1 to node-2 in 3.4 s, blackout 27 ms, 384 MiB sent\n"
    );
    let line = "web-1: 50% precopy  2.5 s left  100 MiB/s  dirties 1 MiB/s  pass 2  to node-2\n";
    assert!(run.err.contains(line), "{}", run.err);
    assert_eq!(
        coordinator.calls()[0].body,
        json!({
            "target": "node-2",
            "policy": {
                "channels": 4, "bandwidth": 104_857_600, "downtime": 50, "auto_converge": false,
                "postcopy": "never", "timeout": null, "timeout_action": "cancel",
                "disks": "full", "keep_source_disks": false, "priority": 50,
            },
            "dry_run": false,
        })
    );
}

#[test]
fn a_move_that_fails_says_why() {
    let mut failed = moving("failed");
    failed["problem"] = problem("connection_lost", "the connection to node-2 was lost");
    let coordinator = Coordinator::start(moves(failed));
    let run = godwit(&coordinator.credential, "vm migrate web-1");
    assert_eq!(run.code, 1);
    assert!(
        run.err.contains("error[connection_lost]: the connection"),
        "{}",
        run.err
    );
}

#[test]
fn a_dry_run_lists_every_blocker() {
    let coordinator = Coordinator::start(|call| {
        let blockers = match call.line.as_str() {
            "POST /vms/db-1/migrate" => vec![],
            _ => vec![problem("insufficient_resources", "node-2 lacks 512 MiB")],
        };
        Answer::Json(200, json!({ "target": "node-2", "blockers": blockers }))
    });
    let run = godwit(&coordinator.credential, "vm migrate web-1 --dry-run");
    assert_eq!((run.code, run.err.as_str()), (1, ""));
    assert!(
        run.out
            .contains("blocker[insufficient_resources]: node-2 lacks"),
        "{}",
        run.out
    );
    let run = godwit(
        &coordinator.credential,
        "vm migrate db-1 --dry-run --to node-2",
    );
    assert_eq!(
        (run.code, run.out.as_str()),
        (0, "nothing stands against moving db-1 to node-2\n")
    );
}

#[test]
fn a_migration_is_watched_through_its_task() {
    let coordinator = Coordinator::start(|call| match (call.line.as_str(), call.before) {
        ("GET /migrations", _) => Answer::Json(200, json!([migration("precopy")])),
        (line, 0) if line.starts_with("GET /tasks/") => Answer::Json(200, moving("running")),
        (line, _) if line.starts_with("GET /tasks/") => Answer::Json(200, moving("succeeded")),
        _ => Answer::Json(200, migration("completed")),
    });
    let run = godwit(&coordinator.credential, "migration watch web-1");
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(
        run.out.starts_with("web-1 moved from node-1 to node-2"),
        "{}",
        run.out
    );
}
