//! The serial console, in pipes and on a terminal.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use super::answers::{problem, vm};
use super::coordinator::{Answer, Coordinator};
use super::process::{Running, command, godwit};
use super::pty::Terminal;

fn echo() -> Coordinator {
    Coordinator::start(|_| Answer::Console(b"login: ", None))
}

#[test]
fn pipes_carry_bytes_both_ways_until_the_escape() {
    let coordinator = echo();
    let mut command = command(&coordinator.credential, "vm console web-1 --scrollback 8");
    command.stdin(Stdio::piped());
    let mut run = Running::start(command);
    run.await_out("login: ");
    run.write(b"root\n");
    run.await_out("root\n");
    run.write(b"\x03\xff\x1dnever sent");
    let run = run.end();
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert!(run.out.starts_with("login: root\n"), "{}", run.out);
    assert!(!run.out.contains("never"), "{}", run.out);
    let calls = coordinator.calls();
    assert_eq!(calls[0].line, "GET /vms/web-1/console");
    assert_eq!(calls[0].query, "scrollback=8192");
}

#[test]
fn the_end_of_stdin_is_not_the_end_of_the_guest() {
    let coordinator = echo();
    let mut run = Running::start(command(&coordinator.credential, "vm console web-1"));
    run.await_out("login: ");
    run.interrupt();
    assert_eq!(run.end().code, 130);
}

#[test]
fn a_console_stays_with_its_vm() {
    let coordinator = Coordinator::start(|call| match (call.line.as_str(), call.before) {
        ("GET /vms/web-1/console", 0) => Answer::Console(b"count 1\r\ncount 2\r\n", Some(1)),
        ("GET /vms/web-1/console", 1) => Answer::Json(503, problem("node_unreachable", "it moves")),
        ("GET /vms/web-1/console", _) => {
            Answer::Console(b"count 1\r\ncount 2\r\nxcount 3\r\n", None)
        }
        _ => Answer::Json(200, vm("web-1", "running")),
    });
    let mut command = command(&coordinator.credential, "vm console web-1");
    command.stdin(Stdio::piped());
    let mut run = Running::start(command);
    run.await_out("count 2");
    run.write(b"x");
    run.await_out("count 3");
    run.write(b"\x1d");
    let run = run.end();
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(run.out, "count 1\r\ncount 2\r\nxcount 3\r\n");
}

#[test]
fn what_stands_against_a_console_is_told() {
    for (status, code, exit) in [(404, "not_found", 4), (409, "state_conflict", 5)] {
        let coordinator = Coordinator::start(move |_| Answer::Json(status, problem(code, "no")));
        let run = godwit(&coordinator.credential, "vm console web-1 -o json");
        assert_eq!(
            (run.code, run.problem()["code"].as_str()),
            (exit, Some(code))
        );
    }
}

/// Reads the screen until it shows `text`; a watchdog closes nothing, the test
/// runner's own limit ends a test that waits in vain.
fn await_screen(terminal: &Terminal, seen: &mut String, text: &str) {
    let mut buffer = [0; 1024];
    while !seen.contains(text) {
        let read = terminal.screen().read(&mut buffer).unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

#[test]
fn the_terminal_is_raw_while_attached_and_as_before_on_every_way_out() {
    let coordinator = echo();
    for leave in ["escape", "signal"] {
        let terminal = Terminal::new(80);
        assert!(!terminal.is_raw());
        let mut command = command(&coordinator.credential, "vm console web-1");
        terminal.lend(&mut command);
        let mut child = command.spawn().unwrap();
        let mut seen = String::new();
        await_screen(&terminal, &mut seen, "login: ");
        assert!(terminal.is_raw(), "{leave}");
        // Ctrl-C is the guest's.
        terminal
            .screen()
            .write_all(b"\x03^C goes to the guest\n")
            .unwrap();
        await_screen(&terminal, &mut seen, "goes to the guest");
        let code = if leave == "escape" {
            terminal.screen().write_all(b"\x1d").unwrap();
            0
        } else {
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            130
        };
        assert_eq!(child.wait().unwrap().code(), Some(code), "{leave}");
        assert!(!terminal.is_raw(), "{leave}");
    }
}
