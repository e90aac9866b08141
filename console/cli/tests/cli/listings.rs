//! What lists and objects look like in each format.

use serde_json::{Value, json};

use super::answers::{calibration, cluster, migration, problem, task, vm};
use super::coordinator::{Answer, Call, Coordinator};
use super::process::{Running, command, godwit};
use super::pty::Terminal;

fn two_vms(call: &Call) -> Answer {
    match call.line.as_str() {
        "GET /vms" => Answer::Json(200, json!([vm("db-1", "stopped"), vm("web-1", "running")])),
        "GET /vms/web-1" => Answer::Json(200, vm("web-1", "running")),
        "GET /nodes" => Answer::Json(200, json!([])),
        "GET /cluster" => Answer::Json(200, cluster(7)),
        "GET /tasks" => Answer::Json(200, json!([task("running")])),
        "GET /migrations/calibration" => Answer::Json(200, calibration()),
        "GET /migrations" => Answer::Json(200, json!([migration("precopy")])),
        _ => Answer::Json(404, problem("not_found", "no such thing")),
    }
}

#[test]
fn json_and_yaml_are_the_api_s_objects_unchanged() {
    let coordinator = Coordinator::start(two_vms);
    let run = godwit(&coordinator.credential, "vm list -o json");
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    let printed: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(
        printed,
        json!([vm("db-1", "stopped"), vm("web-1", "running")])
    );
    let run = godwit(&coordinator.credential, "vm show web-1 -o yaml");
    let printed: Value = serde_norway::from_str(&run.out).unwrap();
    assert_eq!(printed, vm("web-1", "running"));
}

#[test]
fn names_are_one_a_line_and_selectors_select() {
    let coordinator = Coordinator::start(two_vms);
    let names = |line: &str| godwit(&coordinator.credential, line).out;
    assert_eq!(names("vm list -o name"), "db-1\nweb-1\n");
    assert_eq!(names("vm list -o name -l app=web-1"), "web-1\n");
    assert_eq!(names("vm list -o name -l app!=web-1,app"), "db-1\n");
    let none = godwit(&coordinator.credential, "vm list -l app=none");
    assert_eq!((none.code, none.out.as_str()), (0, ""));
    assert_eq!(none.err, "there are no VMs\n");
    let none = godwit(&coordinator.credential, "node list -o json");
    assert_eq!((none.out.as_str(), none.err.as_str()), ("[]\n", ""));
}

#[test]
fn a_pipe_gets_whole_plain_lines() {
    let coordinator = Coordinator::start(two_vms);
    let table = godwit(&coordinator.credential, "vm list").out;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].starts_with("NAME   STATE"), "{table}");
    assert!(!table.contains('\x1b'), "{table}");
    let forced = godwit(&coordinator.credential, "vm list --color always").out;
    assert!(forced.contains('\x1b'), "{forced}");
}

#[test]
fn a_terminal_gets_what_fits_and_no_color_is_heeded() {
    let coordinator = Coordinator::start(|_| {
        let mut vm = vm("web-1", "running");
        vm["problem"] = problem("qemu_command", &"very long ".repeat(40));
        Answer::Json(200, json!([vm]))
    });
    for (no_color, coloured) in [(None, true), (Some("1"), false), (Some(""), true)] {
        let terminal = Terminal::new(70);
        let mut command = command(&coordinator.credential, "vm list");
        terminal.lend(&mut command);
        if let Some(value) = no_color {
            command.env("NO_COLOR", value);
        }
        let mut child = command.spawn().unwrap();
        assert!(child.wait().unwrap().success());
        drop(command);
        let mut buffer = vec![0; 8192];
        let read = rustix::io::read(&terminal.ours, &mut buffer).unwrap();
        let screen = String::from_utf8_lossy(&buffer[..read]).into_owned();
        assert_eq!(screen.contains('\x1b'), coloured, "{screen:?}");
        if !coloured {
            assert!(
                screen
                    .lines()
                    .all(|line| line.trim_end().chars().count() <= 70),
                "{screen}"
            );
            assert!(screen.contains('…'), "{screen}");
        }
    }
}

#[test]
fn ids_may_be_given_by_their_end_and_migrations_by_their_vm() {
    let coordinator = Coordinator::start(two_vms);
    let show = |line: &str| godwit(&coordinator.credential, line);
    assert!(show("task show 00aa").out.contains("vm.start"));
    assert!(show("migration show web-1").out.contains("node-2"));
    assert!(show("migration show 00bb -o name").out.ends_with("00bb\n"));
    assert_eq!(show("task show ffff").code, 4);
    assert_eq!(show("task show aa").code, 4);
}

#[test]
fn the_calibration_comes_in_every_format() {
    let coordinator = Coordinator::start(two_vms);
    let run = |line: &str| godwit(&coordinator.credential, line);
    let table = run("migration calibration");
    assert_eq!((table.code, table.err.as_str()), (0, ""));
    assert!(table.out.contains("75%"), "{}", table.out);
    assert!(table.out.contains("1.50×"), "{}", table.out);
    let json: Value = serde_json::from_str(&run("migration calibration -o json").out).unwrap();
    assert_eq!(json, calibration());
    let yaml: Value = serde_norway::from_str(&run("migration calibration -o yaml").out).unwrap();
    assert_eq!(yaml, calibration());
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let coordinator = Coordinator::start(two_vms);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = command(&coordinator.credential, "vm list");
    command.stdout(writer);
    let run = Running::start(command).end();
    assert_eq!((run.code, run.err.as_str()), (0, ""));
}

#[test]
fn the_cluster_is_told_in_a_few_lines() {
    let coordinator = Coordinator::start(two_vms);
    let run = godwit(&coordinator.credential, "cluster status");
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(
        run.out.contains("Memory:          512 MiB of 4 GiB (12%)"),
        "{}",
        run.out
    );
}
