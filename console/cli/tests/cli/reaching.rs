//! The way to the coordinator, and what keeps one from it.

use std::net::TcpListener;
use std::path::Path;

use serde_json::json;

use super::answers::vm;
use super::coordinator::{Answer, Coordinator};
use super::process::{Running, command, godwit};

fn coordinator() -> Coordinator {
    Coordinator::start(|_| Answer::Json(200, json!([vm("web-1", "running")])))
}

#[test]
fn nobody_there_is_exit_code_3() {
    let coordinator = coordinator();
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let line = format!("vm list -o json --endpoint https://{closed}");
    let run = godwit(&coordinator.credential, &line);
    assert_eq!(run.code, 3, "{}", run.err);
    assert_eq!(run.problem()["code"], "coordinator_unreachable");
    assert!(
        run.problem()["message"]
            .as_str()
            .unwrap()
            .ends_with("connection refused")
    );
    assert!(run.problem()["remedy"].is_string());
}

#[test]
fn somebody_else_there_is_not_trusted() {
    let (ours, other) = (coordinator(), coordinator());
    let line = format!("vm list -o json --endpoint https://{}", other.address);
    let run = godwit(&ours.credential, &line);
    assert_eq!(run.code, 3, "{}", run.err);
    assert_eq!(run.problem()["code"], "ca_mismatch");
    assert!(
        other.calls().is_empty(),
        "the token was shown to a stranger"
    );
    let console = format!(
        "vm console web-1 -o json --endpoint https://{}",
        other.address
    );
    let run = godwit(&ours.credential, &console);
    assert_eq!(
        (run.code, run.problem()["code"].as_str()),
        (3, Some("ca_mismatch"))
    );
    let port = ours.address.port();
    let line = format!("vm list -o json --endpoint https://localhost:{port}");
    let run = godwit(&ours.credential, &line);
    assert_eq!(run.problem()["code"], "ca_mismatch");
    assert!(
        run.problem()["message"]
            .as_str()
            .unwrap()
            .contains("other addresses")
    );
}

#[test]
fn a_credential_is_found_missing_or_damaged() {
    let coordinator = coordinator();
    let dir = tempfile::tempdir().unwrap();
    let run = |credential: &Path| godwit(credential, "vm list -o json");
    let absent = run(&dir.path().join("none.toml"));
    assert_eq!(
        (absent.code, absent.problem()["code"].as_str()),
        (3, Some("unauthenticated"))
    );
    assert!(
        absent.problem()["remedy"]
            .as_str()
            .unwrap()
            .contains("admin.toml")
    );

    let good = std::fs::read_to_string(&coordinator.credential).unwrap();
    let damaged = dir.path().join("damaged.toml");
    for (from, to) in [
        ("endpoint = \"https", "endpoint = \"http"),
        ("BEGIN CERTIFICATE", "BEGIN CERTIFICAT"),
        ("token = \"secret\"", "token = \"a\\u0000b\""),
        ("token =", "tokne ="),
    ] {
        std::fs::write(&damaged, good.replace(from, to)).unwrap();
        let run = run(&damaged);
        assert_eq!(
            (run.code, run.problem()["code"].as_str()),
            (3, Some("unauthenticated")),
            "{to}"
        );
    }

    std::fs::write(&damaged, good.replace("secret", "guess")).unwrap();
    let refused = run(&damaged);
    assert_eq!(
        (refused.code, refused.problem()["code"].as_str()),
        (1, Some("unauthenticated"))
    );
}

#[test]
fn the_operator_s_own_credential_is_found_without_being_named() {
    let coordinator = coordinator();
    let config = coordinator.dir().join("config/godwit");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::copy(&coordinator.credential, config.join("admin.toml")).unwrap();
    for (variable, value) in [
        ("XDG_CONFIG_HOME", coordinator.dir().join("config")),
        ("HOME", coordinator.dir().to_owned()),
    ] {
        if variable == "HOME" {
            std::fs::rename(
                coordinator.dir().join("config"),
                coordinator.dir().join(".config"),
            )
            .unwrap();
        }
        let mut command = command(Path::new(""), "vm list -o name");
        command.env_remove("GODWIT_CREDENTIAL").env(variable, value);
        let run = Running::start(command).end();
        assert_eq!(
            (run.code, run.out.as_str()),
            (0, "web-1\n"),
            "{variable}: {}",
            run.err
        );
    }
}

#[test]
fn proxies_of_the_environment_are_not_used() {
    let coordinator = coordinator();
    let mut command = command(&coordinator.credential, "vm list -o name");
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        command.env(name, "http://127.0.0.1:1");
    }
    assert_eq!(Running::start(command).end().out, "web-1\n");
}

#[test]
fn an_answer_that_is_not_the_api_s_is_told_as_such() {
    let coordinator = Coordinator::start(|call| match call.line.as_str() {
        "GET /vms" => Answer::Json(200, json!({ "not": "a list" })),
        "GET /nodes" => Answer::Text("<html>"),
        _ => Answer::Json(502, json!("bad gateway")),
    });
    for line in ["vm list -o json", "node list -o json", "task list -o json"] {
        let run = godwit(&coordinator.credential, line);
        assert_eq!(
            (run.code, run.problem()["code"].as_str()),
            (1, Some("protocol")),
            "{line}"
        );
    }
}
