//! What a browser and a load balancer get.

use actix_web::HttpResponse;

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Godwit</title>
<style>
  body { font: 1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem; }
  code { background: #8882; padding: .1rem .3rem; border-radius: .2rem; }
</style>
<h1>Godwit</h1>
<p>This is the coordinator of a Godwit cluster: it knows the cluster's nodes and
virtual machines, places them, and has them moved while they run.</p>
<p>Operate it with <code>godwit cluster status</code>, or over the API that
<a href="/api/openapi.json">this OpenAPI document</a> describes. The local credential
is in the coordinator's <code>admin.toml</code>.</p>
</html>
"#;

/// What this is, for people.
#[utoipa::path(
    get, path = "/", tag = "open",
    responses((status = 200, description = "A page that says what this is", body = String, content_type = "text/html")),
)]
pub(super) async fn index() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((
            "Content-Security-Policy",
            "default-src 'none'; style-src 'unsafe-inline'",
        ))
        .body(PAGE)
}

/// Whether the coordinator serves.
#[utoipa::path(
    get, path = "/healthz", tag = "open",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain")),
)]
pub(super) async fn health() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .body("ok\n")
}
