//! Events and logs: looking back, following, and going on after a loss.

use super::answers::{cluster, event, problem, vm};
use super::coordinator::{Answer, Call, Coordinator};
use super::process::{Running, command, godwit};

/// Five events; the stream is torn after the third, and once more before the
/// last.
fn torn(call: &Call) -> Answer {
    let events = |from: u64, to: u64| (from..=to).map(event).collect::<String>();
    match (call.line.as_str(), call.last_event.as_deref()) {
        ("GET /cluster", _) => Answer::Json(200, cluster(5)),
        ("GET /events", Some("0")) => Answer::Torn(format!(": hello\n\n{}", events(1, 3))),
        ("GET /events", Some("3")) => Answer::Torn(format!("{}id: 5\nda", events(3, 4))),
        ("GET /events", Some("4")) => Answer::Open(events(5, 5)),
        _ => Answer::Json(400, problem("query_invalid", "unexpected")),
    }
}

fn numbers(out: &str) -> Vec<&str> {
    out.lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

#[test]
fn no_event_is_missed_and_none_comes_twice() {
    let coordinator = Coordinator::start(torn);
    let run = godwit(&coordinator.credential, "events");
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(numbers(&run.out), ["1", "2", "3", "4", "5"]);
    let asked: Vec<String> = coordinator
        .calls()
        .iter()
        .map(|c| c.query.clone())
        .collect();
    assert_eq!(asked, ["", "after=0", "after=3", "after=4"]);
    assert!(run.err.contains("connection was lost"), "{}", run.err);
}

#[test]
fn following_goes_on_until_ctrl_c() {
    let coordinator = Coordinator::start(torn);
    let line = "events --follow --after 0 -o json";
    let mut run = Running::start(command(&coordinator.credential, line));
    run.await_out("event number 5");
    run.interrupt();
    let run = run.end();
    assert_eq!((run.code, run.err.as_str()), (130, ""));
    let seen: Vec<u64> = run
        .out
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
}

#[test]
fn a_gap_is_told() {
    let coordinator = Coordinator::start(|call| match call.line.as_str() {
        "GET /cluster" => Answer::Json(200, cluster(12)),
        _ => Answer::Open(format!("event: gap\nid: 11\ndata: {{}}\n\n{}", event(12))),
    });
    let run = godwit(&coordinator.credential, "events --after 2");
    assert_eq!(numbers(&run.out), ["12"]);
    assert!(run.err.contains("not kept any more"), "{}", run.err);
    let none = godwit(&coordinator.credential, "events --after 12");
    assert_eq!((none.code, none.out.as_str()), (0, ""));
    assert_eq!(none.err, "there are no such events\n");
}

#[test]
fn a_guest_s_log_is_followed_through_a_lost_connection() {
    let coordinator = Coordinator::start(|call| match (call.line.as_str(), call.before) {
        ("GET /vms/web-1/logs", _) => Answer::Text("booting the kernel\ncount 1\n"),
        ("GET /vms/web-1/console", 0) => {
            Answer::Console(b"booting the kernel\r\ncount 1\r\ncount 2\r\n", Some(0))
        }
        ("GET /vms/web-1/console", _) => Answer::Console(
            b"booting the kernel\r\ncount 1\r\ncount 2\r\ncount 3\r\n",
            Some(0),
        ),
        ("GET /vms/web-1", 0) => Answer::Json(200, vm("web-1", "running")),
        ("GET /vms/web-1", _) => {
            let mut vm = vm("web-1", "stopped");
            vm["exit"] = serde_json::json!("guest_shutdown");
            Answer::Json(200, vm)
        }
        _ => Answer::Json(404, problem("not_found", "unexpected")),
    });
    let run = godwit(&coordinator.credential, "vm logs web-1 --follow");
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(
        run.out.replace('\r', ""),
        "booting the kernel\ncount 1\ncount 2\ncount 3\n"
    );
    assert_eq!(run.err, "web-1 is stopped: the guest powered off\n");
    let log = godwit(&coordinator.credential, "vm logs web-1 --qemu -n 5");
    assert_eq!(log.out, "booting the kernel\ncount 1\n");
    let last = coordinator.calls().pop().unwrap();
    assert_eq!(last.query, "kind=qemu&lines=5");
}
