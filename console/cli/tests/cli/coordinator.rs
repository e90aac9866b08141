//! A coordinator that answers by script: HTTPS with a CA of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use actix_web::dev::ServerHandle;
use actix_web::http::StatusCode;
use actix_web::web::{self, Bytes};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use futures_util::stream::{self, StreamExt as _};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;

/// One request, as far as scripts look at it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// For example `POST /vms/web-1/start`; the query is cut off.
    pub(crate) line: String,
    /// The query.
    pub(crate) query: String,
    /// `Last-Event-ID`.
    pub(crate) last_event: Option<String>,
    /// The body.
    pub(crate) body: Value,
    /// How often this line was asked for before.
    pub(crate) before: usize,
}

/// What the script answers.
pub(crate) enum Answer {
    /// JSON with a status.
    Json(u16, Value),
    /// Text.
    Text(&'static str),
    /// A file.
    File(Vec<u8>),
    /// A body that breaks off after this.
    Torn(String),
    /// A stream that says this and then nothing.
    Open(String),
    /// No answer at all.
    Hang,
    /// A console: says the first, then echoes, and closes after so many bytes
    /// from the operator.
    Console(&'static [u8], Option<usize>),
}

type Script = dyn Fn(&Call) -> Answer + Send + Sync;

struct Shared {
    script: Box<Script>,
    calls: Mutex<Vec<Call>>,
}

/// A running coordinator.
pub(crate) struct Coordinator {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its credential.
    pub(crate) credential: PathBuf,
    shared: Arc<Shared>,
    handle: ServerHandle,
    thread: Option<std::thread::JoinHandle<()>>,
    dir: tempfile::TempDir,
}

impl Coordinator {
    /// Starts one that answers as `script` says.
    pub(crate) fn start(script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            script: Box::new(script),
            calls: Mutex::new(Vec::new()),
        });
        let (ca, tls) = identity();
        let state = web::Data::from(shared.clone());
        let (to, from) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    App::new()
                        .app_data(state.clone())
                        .default_service(web::to(answer))
                })
                .workers(1)
                .disable_signals()
                .shutdown_timeout(0)
                .bind_rustls_0_23("127.0.0.1:0", tls)
                .unwrap();
                let address = server.addrs()[0];
                let server = server.run();
                to.send((address, server.handle())).unwrap();
                server.await.unwrap();
            });
        });
        let (address, handle) = from.recv().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let credential = dir.path().join("admin.toml");
        let text =
            format!("endpoint = \"https://{address}\"\ntoken = \"secret\"\nca = '''\n{ca}'''\n");
        std::fs::write(&credential, text).unwrap();
        Self {
            address,
            credential,
            shared,
            handle,
            thread: Some(thread),
            dir,
        }
    }

    /// What was asked so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// A folder that lives as long as this.
    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A CA, and a server's certificate from it for 127.0.0.1.
fn identity() -> (String, ServerConfig) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, &Issuer::new(ca, ca_key))
        .unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (ca_pem, tls)
}

async fn answer(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let path = request.path().trim_start_matches("/api/v1");
    let line = format!("{} {path}", request.method());
    let header = |name: &str| {
        let value = request.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    if header("authorization").as_deref() != Some("Bearer secret") {
        let problem = super::answers::problem("unauthenticated", "the token is wrong");
        return json(401, &problem);
    }
    let is_console = header("upgrade").is_some();
    let (body, payload) = if is_console {
        (Value::Null, Some(payload))
    } else {
        let bytes = payload.to_bytes().await.unwrap();
        (serde_json::from_slice(&bytes).unwrap_or(Value::Null), None)
    };
    let call = {
        let mut calls = shared.calls.lock().unwrap();
        let call = Call {
            before: calls.iter().filter(|call| call.line == line).count(),
            line,
            query: request.query_string().to_owned(),
            last_event: header("last-event-id"),
            body,
        };
        calls.push(call.clone());
        call
    };
    match (shared.script)(&call) {
        Answer::Json(status, value) => json(status, &value),
        Answer::Text(text) => HttpResponse::Ok().content_type("text/plain").body(text),
        Answer::File(bytes) => HttpResponse::Ok().body(bytes),
        Answer::Torn(text) => streaming(text, true),
        Answer::Open(text) => streaming(text, false),
        Answer::Hang => std::future::pending().await,
        Answer::Console(first, limit) => console(&request, payload.unwrap(), first, limit),
    }
}

fn json(status: u16, value: &Value) -> HttpResponse {
    HttpResponse::build(StatusCode::from_u16(status).unwrap()).json(value)
}

fn streaming(text: String, torn: bool) -> HttpResponse {
    let first = stream::iter([Ok(Bytes::from(text))]);
    let body = if torn {
        first
            .chain(stream::once(async {
                // What was said so far is sent before the connection breaks.
                tokio::task::yield_now().await;
                Err(std::io::Error::other("torn"))
            }))
            .boxed_local()
    } else {
        first.chain(stream::pending()).boxed_local()
    };
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .streaming(body)
}

fn console(
    request: &HttpRequest,
    payload: web::Payload,
    first: &'static [u8],
    limit: Option<usize>,
) -> HttpResponse {
    let (response, mut session, mut messages) = actix_ws::handle(request, payload).unwrap();
    actix_web::rt::spawn(async move {
        session.binary(Bytes::from_static(first)).await.unwrap();
        let mut heard = 0;
        while limit.is_none_or(|limit| heard < limit) {
            match messages.recv().await {
                Some(Ok(actix_ws::Message::Binary(bytes))) => {
                    heard += bytes.len();
                    session.binary(bytes).await.unwrap();
                }
                Some(Ok(actix_ws::Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => {}
            }
        }
        let _ = session.close(None).await;
    });
    response
}
