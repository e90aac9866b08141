//! The API's edge: credentials, wrong paths, methods, bodies and queries.

use godwit_shared::api::{PlacementView, TaskState, VmView};
use godwit_shared::model::{Problem, codes};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::node::Node;
use super::running::{Running, client, spec};

async fn problem(response: Response) -> (u16, Problem) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    (status, response.json().await.unwrap())
}

#[actix::test]
async fn only_the_token_opens_the_api() {
    let cluster = Running::start().await;
    let plain = client(&cluster.credential);
    for (header, path) in [
        (None, "/api/v1/vms"),
        (None, "/api/v1/nowhere"),
        (Some("Bearer"), "/api/v1/vms"),
        (Some("Bearer gwa1_wrong"), "/api/v1/vms"),
        (Some("Basic YTpi"), "/api/v1/vms"),
    ] {
        let request = plain.get(cluster.url(path));
        let request = header
            .into_iter()
            .fold(request, |r, h| r.header("authorization", h));
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        let (status, problem) = problem(response).await;
        assert_eq!(
            (status, problem.code.as_ref()),
            (401, codes::UNAUTHENTICATED),
            "{header:?}"
        );
    }
    for (path, part) in [
        ("/healthz", "ok"),
        ("/", "/api/openapi.json"),
        ("/api/openapi.json", "\"openapi\""),
    ] {
        let response = plain.get(cluster.url(path)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.text().await.unwrap().contains(part), "{path}");
    }
    cluster.stop().await;
}

#[actix::test]
async fn wrong_paths_and_methods_are_problems() {
    let cluster = Running::start().await;
    for (method, path, status, field) in [
        (Method::GET, "/nowhere", 404, "path"),
        (Method::GET, "/api/v1/nowhere", 404, "path"),
        (Method::PUT, "/api/v1/vms", 405, "method"),
        (Method::POST, "/api/v1/cluster", 405, "method"),
        (Method::POST, "/healthz", 405, "method"),
    ] {
        let response = cluster.request(method, path).send().await.unwrap();
        assert_eq!(response.headers().contains_key("allow"), status == 405);
        let (got, problem) = problem(response).await;
        assert_eq!(
            (got, problem.field.as_deref()),
            (status, Some(field)),
            "{path}"
        );
    }
    for path in [
        "/api/v1/nodes/n9",
        "/api/v1/nodes/N_9",
        "/api/v1/vms/none",
        "/api/v1/vms/none/logs",
        "/api/v1/tasks/00000000-0000-0000-0000-000000000001",
        "/api/v1/migrations/00000000-0000-0000-0000-000000000001?watch=true",
    ] {
        let (status, problem) =
            problem(cluster.request(Method::GET, path).send().await.unwrap()).await;
        assert_eq!(
            (status, problem.code.as_ref()),
            (404, codes::NOT_FOUND),
            "{path}"
        );
        assert!(problem.remedy.is_some());
    }
    cluster.stop().await;
}

#[actix::test]
async fn every_malformed_body_is_named() {
    let cluster = Running::start().await;
    let long = format!("\"{}\"", "x".repeat(600 * 1024));
    let deep = "[".repeat(100_000);
    let wrong_spec = json!({"spec": {"name": "a", "memory": "64MB"}}).to_string();
    let many = json!({"spec": {"nme": "a", "memory": "1GiB", "cpu": {"cuont": 2}}}).to_string();
    let table: [(&str, &str, u16, &str, Option<&str>); 19] = [
        ("/vms", "", 400, codes::BODY_INVALID, None),
        ("/vms", "{", 400, codes::BODY_INVALID, None),
        ("/vms", "\u{0}", 400, codes::BODY_INVALID, None),
        ("/vms", &deep, 400, codes::BODY_INVALID, None),
        ("/vms", &long, 413, codes::BODY_INVALID, None),
        ("/vms", "[]", 400, codes::BODY_INVALID, None),
        ("/vms", "{}", 400, codes::BODY_INVALID, Some("spec")),
        (
            "/vms",
            "{\"spec\": null}",
            400,
            codes::SPEC_SYNTAX,
            Some("spec"),
        ),
        (
            "/vms",
            &wrong_spec,
            400,
            codes::SPEC_INVALID,
            Some("spec.memory"),
        ),
        (
            "/vms",
            &many,
            400,
            codes::SPEC_UNKNOWN_FIELD,
            Some("spec.nme"),
        ),
        (
            "/place",
            "{\"spec\": 7}",
            400,
            codes::SPEC_SYNTAX,
            Some("spec"),
        ),
        (
            "/tokens",
            "{\"valid\": -1}",
            400,
            codes::BODY_INVALID,
            Some("valid"),
        ),
        (
            "/tokens",
            "{\"valid\": 0}",
            400,
            codes::BODY_INVALID,
            Some("valid"),
        ),
        (
            "/tokens",
            "{\"vaild\": 1}",
            400,
            codes::BODY_INVALID,
            Some("vaild"),
        ),
        (
            "/vms/a/start",
            "{\"node\": \"A B\"}",
            400,
            codes::BODY_INVALID,
            Some("node"),
        ),
        (
            "/vms/a/migrate",
            "{\"policy\": {\"channels\": \"two\"}}",
            400,
            codes::BODY_INVALID,
            Some("policy.channels"),
        ),
        (
            "/nodes/a/drain",
            "{\"limits\": {\"paralel\": 1}}",
            400,
            codes::BODY_INVALID,
            Some("limits.paralel"),
        ),
        (
            "/rebalance",
            "{\"limits\": {\"parallel\": 0}}",
            400,
            codes::BODY_INVALID,
            Some("limits.parallel"),
        ),
        (
            "/plans/01970000-0000-7000-8000-000000000001/abort",
            "{\"cancel_running\": 1}",
            400,
            codes::BODY_INVALID,
            Some("cancel_running"),
        ),
    ];
    for (path, body, status, code, field) in table {
        let request = cluster.request(Method::POST, &format!("/api/v1{path}"));
        let response = request.body(body.to_owned()).send().await.unwrap();
        let (got, problem) = problem(response).await;
        let shown = &body[..body.len().min(60)];
        assert_eq!(
            (got, problem.code.as_ref()),
            (status, code),
            "{path} {shown}: {problem:?}"
        );
        assert_eq!(
            problem.field.as_deref(),
            field,
            "{path} {shown}: {problem:?}"
        );
        assert!(problem.remedy.is_some(), "{path} {shown}");
    }
    let yaml = cluster
        .request(Method::POST, "/api/v1/vms")
        .header("content-type", "text/yaml");
    let (status, refused) = problem(yaml.body("spec: {}").send().await.unwrap()).await;
    assert_eq!(
        (status, refused.field.as_deref()),
        (415, Some("content-type"))
    );
    assert!(cluster.get::<Vec<Value>>("/api/v1/vms").await.is_empty());
    cluster.stop().await;
}

#[actix::test]
async fn every_malformed_query_is_named() {
    let cluster = Running::start().await;
    for (path, code, field) in [
        ("/vms?limit=1", codes::QUERY_INVALID, Some("limit")),
        ("/vms/a/logs?kind=both", codes::QUERY_INVALID, Some("kind")),
        (
            "/vms/a/logs?lines=many",
            codes::QUERY_INVALID,
            Some("lines"),
        ),
        (
            "/vms/a/console?scrollback=99999999",
            codes::QUERY_INVALID,
            Some("scrollback"),
        ),
        ("/events?after=-1", codes::QUERY_INVALID, Some("after")),
        ("/tasks/x", codes::ID_INVALID, None),
        ("/migrations/x", codes::ID_INVALID, None),
        (
            "/tasks/00000000-0000-0000-0000-000000000001?wait_ms=1e9",
            codes::QUERY_INVALID,
            Some("wait_ms"),
        ),
    ] {
        let response = cluster
            .request(Method::GET, &format!("/api/v1{path}"))
            .send()
            .await
            .unwrap();
        let (status, problem) = problem(response).await;
        assert_eq!((status, problem.code.as_ref()), (400, code), "{path}");
        assert_eq!(problem.field.as_deref(), field, "{path}");
    }
    let bad = cluster
        .request(Method::GET, "/api/v1/events")
        .header("Last-Event-ID", "abc");
    let (status, refused) = problem(bad.send().await.unwrap()).await;
    assert_eq!(
        (status, refused.field.as_deref()),
        (400, Some("Last-Event-ID"))
    );
    cluster.stop().await;
}

#[actix::test]
async fn lists_conflicts_and_placement() {
    let cluster = Running::start().await;
    let (mut node, _) = Node::join(&cluster, "n1").await;
    let response = cluster
        .request(Method::POST, "/api/v1/vms")
        .json(&json!({"spec": spec("web")}))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let place = response.headers()["location"].to_str().unwrap().to_owned();
    let task: godwit_shared::api::TaskView = response.json().await.unwrap();
    assert_eq!(place, format!("/api/v1/tasks/{}", task.id));
    if !task.state.is_final() {
        node.define_one().await;
    }
    assert_eq!(cluster.ended(&task).await.state, TaskState::Succeeded);
    let (status, taken) = cluster
        .refused("/api/v1/vms", json!({"spec": spec("web")}))
        .await;
    assert_eq!(
        (status, taken.code.as_ref()),
        (StatusCode::CONFLICT, codes::ALREADY_EXISTS)
    );
    let (status, none) = cluster.refused("/api/v1/vms/web/fly", json!({})).await;
    assert_eq!(
        (status, none.field.as_deref()),
        (StatusCode::NOT_FOUND, Some("command"))
    );
    let (status, off) = cluster.refused("/api/v1/vms/web/pause", json!({})).await;
    assert_eq!(
        (status, off.code.as_ref()),
        (StatusCode::CONFLICT, codes::STATE_CONFLICT)
    );
    let (status, choice) = cluster
        .post("/api/v1/place", json!({"spec": spec("other")}))
        .await;
    assert_eq!(status, StatusCode::OK);
    let choice: PlacementView = serde_json::from_value(choice).unwrap();
    assert_eq!(choice.nodes.len(), 1);
    let vms: Vec<VmView> = cluster.get("/api/v1/vms").await;
    assert_eq!(vms.len(), 1);
    let schema: Value = cluster.get("/api/v1/schema/vm").await;
    assert!(schema["properties"]["memory"].is_object());
    cluster.stop().await;
}
