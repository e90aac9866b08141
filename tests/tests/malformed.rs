//! Every malformed input gets its error: the code, the field, and what to do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use godwit_shared::model::codes;
use godwit_tests::harness::process::Daemon;
use godwit_tests::harness::{Cluster, ClusterOptions, programs};
use reqwest::Method;

struct Bad {
    method: Method,
    path: &'static str,
    body: Option<&'static str>,
    status: u16,
    code: &'static str,
    field: Option<&'static str>,
}

const fn bad(
    method: Method,
    path: &'static str,
    body: Option<&'static str>,
    status: u16,
    code: &'static str,
    field: Option<&'static str>,
) -> Bad {
    Bad {
        method,
        path,
        body,
        status,
        code,
        field,
    }
}

#[rustfmt::skip]
fn table() -> Vec<Bad> {
    use codes::{
        BODY_INVALID, ID_INVALID, NOT_FOUND, QUERY_INVALID, SPEC_INVALID, SPEC_UNKNOWN_FIELD,
    };
    let (get, post, put, delete) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    let vms = "/api/v1/vms";
    vec![
        bad(post.clone(), vms, Some(""), 400, BODY_INVALID, None),
        bad(post.clone(), vms, Some("{"), 400, BODY_INVALID, None),
        bad(post.clone(), vms, Some("[]"), 400, BODY_INVALID, None),
        bad(post.clone(), vms, Some("null"), 400, BODY_INVALID, None),
        bad(post.clone(), vms, Some("{}"), 400, BODY_INVALID, None),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a","memory":64},"strat":true}"#), 400, BODY_INVALID, None),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a","memory":64},"start":"yes"}"#), 400, BODY_INVALID, Some("start")),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a","memory":64},"node":"Bad_Name"}"#), 400, BODY_INVALID, Some("node")),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a","memroy":64}}"#), 400, SPEC_UNKNOWN_FIELD, Some("memroy")),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a"}}"#), 400, SPEC_INVALID, None),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"A b","memory":64}}"#), 400, SPEC_INVALID, Some("name")),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a","memory":-1}}"#), 400, SPEC_INVALID, Some("memory")),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a","memory":1}}"#), 400, SPEC_INVALID, Some("memory")),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a","memory":"2 parsecs"}}"#), 400, SPEC_INVALID, Some("memory")),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a","memory":64,"cpu":{"count":0}}}"#), 400, SPEC_INVALID, Some("cpu.count")),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a","memory":64,"disks":[{"path":"x"}]}}"#), 400, SPEC_INVALID, Some("disks[0].path")),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a","memory":64,"boot":{"initrd":"/x"}}}"#), 400, SPEC_INVALID, Some("boot.initrd")),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a","memory":64,"machine":"q35,accel=kvm"}}"#), 400, SPEC_INVALID, Some("machine")),
        bad(post.clone(), vms, Some(r#"{"spec":{"name":"a","memory":64,"architecture":"z80"}}"#), 400, SPEC_INVALID, Some("architecture")),
        bad(post.clone(), "/api/v1/place", Some("{"), 400, BODY_INVALID, None),
        bad(post.clone(), "/api/v1/placement/simulate", Some(r#"{"lost":["nobody"]}"#), 404, NOT_FOUND, Some("lost")),
        bad(post.clone(), "/api/v1/placement/simulate", Some(r#"{"lose":["nobody"]}"#), 400, BODY_INVALID, None),
        bad(post.clone(), "/api/v1/placement/simulate", Some(r#"{"vms":[{"name":"a","memory":1}]}"#), 400, SPEC_INVALID, Some("vms[0].memory")),
        bad(post.clone(), "/api/v1/tokens", Some(r#"{"valid":"soon"}"#), 400, BODY_INVALID, Some("valid")),
        bad(post.clone(), "/api/v1/tokens", Some(r#"{"valid":99999999999}"#), 400, BODY_INVALID, Some("valid")),
        bad(post.clone(), "/api/v1/vms/nobody/start", None, 404, NOT_FOUND, None),
        bad(post.clone(), "/api/v1/vms/nobody/start", Some("{\"x\":1}"), 400, BODY_INVALID, None),
        bad(post.clone(), "/api/v1/vms/nobody/dance", None, 404, NOT_FOUND, None),
        bad(post.clone(), "/api/v1/vms/nobody/migrate", Some(r#"{"target":7}"#), 400, BODY_INVALID, Some("target")),
        bad(post.clone(), "/api/v1/vms/nobody/migrate", Some(r#"{"policy":{"channels":-1}}"#), 400, BODY_INVALID, Some("policy.channels")),
        bad(get.clone(), "/api/v1/vms/nobody", None, 404, NOT_FOUND, None),
        bad(delete.clone(), "/api/v1/vms/nobody", None, 404, NOT_FOUND, None),
        bad(get.clone(), "/api/v1/vms/nobody/logs?kind=secret", None, 400, QUERY_INVALID, Some("kind")),
        bad(get.clone(), "/api/v1/vms/nobody/logs?kind=serial&lines=many", None, 400, QUERY_INVALID, Some("lines")),
        bad(get.clone(), "/api/v1/nodes/nobody", None, 404, NOT_FOUND, None),
        bad(post.clone(), "/api/v1/nodes/nobody/cordon", None, 404, NOT_FOUND, None),
        bad(post.clone(), "/api/v1/nodes/nobody/marks", Some(r#"{"taint":[{"key":"a"}]}"#), 404, NOT_FOUND, None),
        bad(post.clone(), "/api/v1/nodes/nobody/marks", Some(r#"{"taint":7}"#), 400, BODY_INVALID, Some("taint")),
        bad(post.clone(), "/api/v1/nodes/nobody/marks", Some(r#"{"taints":[]}"#), 400, BODY_INVALID, None),
        bad(get.clone(), "/api/v1/tasks/not-an-id", None, 400, ID_INVALID, None),
        bad(get.clone(), "/api/v1/tasks/01890000-0000-7000-8000-000000000000", None, 404, NOT_FOUND, None),
        bad(get.clone(), "/api/v1/migrations/not-an-id", None, 400, ID_INVALID, None),
        bad(post.clone(), "/api/v1/migrations/01890000-0000-7000-8000-000000000000/cancel", None, 404, NOT_FOUND, None),
        bad(get.clone(), "/api/v1/events?after=yesterday", None, 400, QUERY_INVALID, Some("after")),
        bad(get.clone(), "/api/v1/nothing", None, 404, NOT_FOUND, None),
        bad(put, "/api/v1/vms", Some("{}"), 405, NOT_FOUND, None),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_get_their_problem() {
    let cluster = Cluster::start(ClusterOptions::nodes(0)).await.unwrap();
    let mut wrong = Vec::new();
    for case in table() {
        let body = case.body.map(str::to_owned);
        let answer = cluster
            .api
            .raw(case.method.clone(), case.path, body)
            .await
            .unwrap();
        let what = format!("{} {} {:?}", case.method, case.path, case.body);
        let Ok(problem) = answer.problem() else {
            wrong.push(format!(
                "{what}: no problem: {} {}",
                answer.status, answer.body
            ));
            continue;
        };
        let code_fits = problem.code == case.code || case.status == 405;
        let field_fits = case.field.is_none_or(|field| {
            // A spec's fields may be told with their place in the body.
            problem
                .field
                .as_deref()
                .is_some_and(|told| told == field || told.strip_prefix("spec.") == Some(field))
        });
        if answer.status.as_u16() != case.status || !code_fits || !field_fits {
            wrong.push(format!(
                "{what}: wanted {} {} {:?}, got {} {problem:?}",
                case.status, case.code, case.field, answer.status
            ));
        } else if problem.message.is_empty() {
            wrong.push(format!("{what}: no message"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_and_the_wrong_credential_are_refused() {
    let cluster = Cluster::start(ClusterOptions::nodes(0)).await.unwrap();
    let long = format!(
        r#"{{"spec":{{"name":"a","memory":64,"labels":{{"a":"{}"}}}}}}"#,
        "x".repeat(8 << 20)
    );
    let answer = cluster
        .api
        .raw(Method::POST, "/api/v1/vms", Some(long))
        .await;
    // The server may hang up while it is still being sent.
    if let Ok(answer) = answer {
        assert_eq!(answer.status.as_u16(), 413, "{}", answer.body);
        assert_eq!(answer.problem().unwrap().code, codes::BODY_INVALID);
    }
    for token in ["", "nonsense", "é"] {
        let answer = cluster
            .api
            .with_token(token)
            .raw(Method::GET, "/api/v1/vms", None)
            .await
            .unwrap();
        assert_eq!(answer.status.as_u16(), 401, "{token:?}");
        assert_eq!(answer.problem().unwrap().code, codes::UNAUTHENTICATED);
    }
    // It is alive, and says so without a credential.
    let health = cluster
        .api
        .with_token("")
        .raw(Method::GET, "/healthz", None)
        .await
        .unwrap();
    assert!(health.status.is_success());
}

/// Starts a daemon with a configuration that it has to refuse.
async fn refused(program: &str, root: &Path, config: &str, wanted: &[&str]) {
    let dir = tempfile::tempdir_in(root).unwrap();
    let file = dir.path().join("bad.toml");
    std::fs::write(&file, config).unwrap();
    let args = ["run", "--config", &file.display().to_string()].map(str::to_owned);
    let program = programs::find(program).unwrap();
    let mut daemon = Daemon::new("refused", program, args.to_vec(), dir.path());
    let (status, log) = daemon.start_refused().await.unwrap();
    assert!(!status.success(), "{config}");
    for word in [codes::CONFIG_INVALID].iter().chain(wanted) {
        assert!(
            log.contains(word),
            "`{word}` is missing for {config:?}: {log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_settings_are_refused_by_name() {
    let root = tempfile::Builder::new().prefix("gw-").tempdir().unwrap();
    let dirs = |rest: &str| {
        let root = root.path().display();
        format!("state_dir = \"{root}/s\"\nrun_dir = \"{root}/r\"\n{rest}")
    };
    let node = "godwit-node";
    for (config, wanted) in [
        (dirs("listen = 7"), "listen"),
        (dirs("listen = \"nowhere\""), "listen"),
        (dirs("lisen = \"127.0.0.1:0\""), "listen"),
        (dirs("address = \"x\""), "address"),
        (dirs("[capacity]\nmemory = \"lots\""), "memory"),
        (dirs("[emulators]\nz80 = \"/bin/true\""), "z80"),
        (dirs("[liveness]\nidle_timeout_ms = 0"), "idle_timeout_ms"),
        (dirs("= = ="), "bad.toml"),
    ] {
        refused(node, root.path(), &config, &[wanted]).await;
    }
    let long = format!(
        "state_dir = \"{}/s\"\nrun_dir = \"/tmp/{}\"\n",
        root.path().display(),
        "x".repeat(100)
    );
    refused(node, root.path(), &long, &["run_dir"]).await;

    let state = format!("state_dir = \"{}/c\"\n", root.path().display());
    for (config, wanted) in [
        ("api = \"nowhere\"", "api"),
        ("lsten = \"127.0.0.1:0\"", "listen"),
        ("[liveness]\nkeep_alive_ms = \"often\"", "keep_alive_ms"),
    ] {
        refused(
            "godwit-coordinator",
            root.path(),
            &format!("{state}{config}"),
            &[wanted],
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_specs_are_refused_before_they_leave_the_terminal() {
    let cluster = Cluster::start(ClusterOptions::nodes(0)).await.unwrap();
    for (spec, wanted) in [
        ("name: a\nmemory: [1", codes::SPEC_SYNTAX),
        ("- 1", codes::SPEC_SYNTAX),
        ("name: a\nmemroy: 64\n", codes::SPEC_UNKNOWN_FIELD),
        (
            "name: a\nmemory: 64\ncpu: {count: 1000}\n",
            codes::SPEC_INVALID,
        ),
        (
            "name: a\nmemory: 99999999999999999999\n",
            codes::SPEC_SYNTAX,
        ),
    ] {
        let output = cluster
            .godwit_typed(&["vm", "create", "-f", "-"], spec)
            .await
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{spec:?}: {error}");
        assert!(error.contains(wanted), "{spec:?}: {error}");
    }
    assert!(cluster.api.vms().await.unwrap().is_empty());
}
