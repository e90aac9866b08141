//! Exit codes, arguments, and what is refused before anything is sent.

use std::path::Path;
use std::process::Stdio;

use serde_json::json;

use super::answers::{problem, task};
use super::coordinator::{Answer, Coordinator};
use super::process::{Running, command, godwit};

/// A credential that must not be needed.
const NONE: &str = "/nonexistent/admin.toml";

#[test]
fn exit_codes_follow_from_the_problem() {
    for (status, code, exit) in [
        (404, "not_found", 4),
        (409, "already_exists", 5),
        (409, "busy", 5),
        (409, "state_conflict", 5),
        (409, "no_node_fits", 1),
        (504, "timeout", 6),
        (500, "internal", 1),
        (418, "a_code_of_a_newer_version", 1),
    ] {
        let coordinator =
            Coordinator::start(move |_| Answer::Json(status, problem(code, "so it is")));
        let run = godwit(&coordinator.credential, "vm delete web-1");
        assert_eq!(run.code, exit, "{code}");
        let told = format!("error[{code}]: so it is\n  remedy: do something about it\n");
        assert_eq!(run.err, told);
        let node = godwit(&coordinator.credential, "node remove node-1");
        assert_eq!(node.code, exit, "{code}");
    }
}

#[test]
fn wrong_arguments_are_exit_code_2_and_need_no_coordinator() {
    for line in [
        "",
        "vm",
        "vm strat web-1",
        "vm start",
        "vm start Web_1",
        "vm start ../nodes",
        "vm create",
        "vm create --name a",
        "vm create --memory 64",
        "vm create -f a.yaml --name a",
        "vm create --name a --memory lots",
        "vm migrate web-1 --bandwidth 100",
        "vm start web-1 --timeout soon",
        "vm start web-1 --wait --detach",
        "vm list -o xml",
        "events --after 3 -n 4",
    ] {
        let run = godwit(Path::new(NONE), line);
        assert_eq!(run.code, 2, "{line}: {}", run.err);
        assert!(!run.err.is_empty(), "{line}");
    }
    let near = godwit(Path::new(NONE), "vm strat web-1");
    assert!(near.err.contains("'start'"), "{}", near.err);
}

#[test]
fn a_wrong_spec_is_told_with_its_file_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.yaml");
    std::fs::write(&file, "name: a\nmemroy: 64\ncpu: {cuont: 2}\n").unwrap();
    let name = file.display();
    for verb in ["create", "place"] {
        let run = godwit(Path::new(NONE), &format!("vm {verb} -f {name}"));
        assert_eq!(run.code, 1, "{}", run.err);
        let first = format!(
            "error[spec_unknown_field]: {name}: there is no field `memroy`\n  field:  memroy\n  \
             value:  memroy\n  remedy: did you mean `memory`?\n"
        );
        assert!(run.err.starts_with(&first), "{}", run.err);
        assert!(
            run.err.contains("  also[spec_unknown_field]: "),
            "{}",
            run.err
        );
    }
    let run = godwit(Path::new(NONE), "vm create -f /nonexistent/vm.yaml -o json");
    assert_eq!(
        (run.code, run.problem()["code"].as_str()),
        (1, Some("spec_syntax"))
    );
}

#[test]
fn a_spec_comes_from_stdin_or_from_flags() {
    let coordinator = Coordinator::start(|call| match call.line.as_str() {
        "POST /vms" => Answer::Json(202, task("running")),
        _ => Answer::Json(200, task("succeeded")),
    });
    let mut command = command(&coordinator.credential, "vm create -f - --start");
    command.stdin(Stdio::piped());
    let mut run = Running::start(command);
    run.write(b"name: web-1\nmemory: 1GiB\n");
    let run = run.end();
    assert_eq!(
        (run.code, run.out.as_str()),
        (0, "web-1 created and started on node-1\n")
    );
    let run = godwit(
        &coordinator.credential,
        "vm create --name web-1 --memory 1G --kernel /vmlinuz --initrd /initrd",
    );
    assert_eq!(
        (run.code, run.out.as_str()),
        (0, "web-1 created on node-1\n"),
        "{}",
        run.err
    );
    let calls = coordinator.calls();
    let bodies: Vec<_> = calls
        .iter()
        .filter(|call| call.line == "POST /vms")
        .collect();
    assert_eq!(bodies[0].body["spec"]["memory"], 1024);
    assert_eq!(bodies[0].body["start"], true);
    assert_eq!(bodies[1].body["spec"]["boot"]["initrd"], "/initrd");
    assert_eq!(bodies[1].body["start"], false);
}

#[test]
fn placement_is_explained() {
    let coordinator = Coordinator::start(|_| {
        Answer::Json(
            200,
            json!({ "node": null, "nodes": [{
                "node": "node-1",
                "refused": [problem("insufficient_resources", "node-1 lacks 512 MiB")],
                "score": null,
                "scores": [],
            }]}),
        )
    });
    let line = "vm place --name a --memory 64G --explain";
    let run = godwit(&coordinator.credential, line);
    assert_eq!(run.code, 1);
    assert!(run.out.contains("node-1 lacks 512 MiB"), "{}", run.out);
    assert!(
        run.err
            .contains("error[no_node_fits]: the one node does not fit"),
        "{}",
        run.err
    );
}

#[test]
fn a_token_is_alone_on_stdout() {
    let coordinator = Coordinator::start(|call| {
        assert_eq!(call.body, json!({ "valid": 600_000 }));
        Answer::Json(
            200,
            json!({ "token": "gw1.abc", "expires": 1_700_000_000_000_u64 }),
        )
    });
    let run = godwit(&coordinator.credential, "node token --valid 10m");
    assert_eq!(
        (run.code, run.out.as_str()),
        (0, "gw1.abc\n"),
        "{}",
        run.err
    );
    assert!(run.err.contains("godwit-node join"), "{}", run.err);
}

#[test]
fn what_needs_no_cluster_works_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let run = godwit(Path::new(NONE), "schema vm");
    let schema: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(schema["title"], "VmSpec");
    for shell in ["bash", "zsh", "fish"] {
        let run = godwit(Path::new(NONE), &format!("completion {shell}"));
        assert!(run.code == 0 && run.out.contains("uncordon"), "{shell}");
    }
    let run = godwit(Path::new(NONE), &format!("man {}", dir.path().display()));
    assert_eq!(run.code, 0, "{}", run.err);
    let page = std::fs::read_to_string(dir.path().join("godwit-vm-migrate.1")).unwrap();
    assert!(page.contains("blackout"), "{page}");
    let run = godwit(Path::new(NONE), "man /dev/null/x");
    assert_eq!(run.code, 1);
    let mut unread = command(Path::new(NONE), "vm create -f -");
    unread.stdin(Stdio::piped());
    let mut run = Running::start(unread);
    run.write(b"[]");
    assert_eq!(run.end().code, 1);
}
