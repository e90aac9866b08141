//! The connection to etcd, and the thread that has it.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, KeyValue, TlsOptions};
use godwit_shared::model::{Problem, codes};
use tokio::sync::mpsc;

use super::{Request, Worker, watching};
use crate::config::{EtcdSettings, EtcdTls};
use crate::store::StoreError;
use crate::store::watch::History;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(3);
/// How long etcd may take to answer; an election among its members takes less.
const ANSWER: Duration = Duration::from_secs(5);
/// How soon a member that went away silently is noticed.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(2));
/// Largest answer: [`super::PAGE`] records of the usual size, or a few large ones.
const MESSAGE: usize = 256 << 20;

/// What the store's thread does: connect, tell of it, serve until it is closed.
pub(super) fn run(
    settings: &EtcdSettings,
    queue: mpsc::UnboundedReceiver<Request>,
    started: &Sender<Result<Arc<History>, Problem>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(Problem::internal(error)))),
    };
    runtime.block_on(async {
        match start(settings).await {
            Ok((worker, client, history)) => {
                let _ = started.send(Ok(Arc::clone(&history)));
                let prefix = settings.prefix.clone();
                let watching = tokio::spawn(watching::feed(client, prefix, Arc::clone(&history)));
                let done = worker.run(queue).await;
                watching.abort();
                history.close();
                if let Some(done) = done {
                    let _ = done.send(());
                }
            }
            Err(problem) => drop(started.send(Err(problem))),
        }
    });
}

async fn start(settings: &EtcdSettings) -> Result<(Worker, Client, Arc<History>), Problem> {
    let silent = |error: StoreError| silent(settings, &error);
    let options = options(settings)?;
    let connecting = Client::connect(&settings.endpoints, Some(options));
    let client = within("connect", connecting).await.map_err(silent)?;
    let mut worker = Worker {
        kv: client.kv_client().max_decoding_message_size(MESSAGE),
        lease: client.lease_client(),
        ttl: settings.lease,
        prefix: settings.prefix.clone(),
        room: settings.room,
    };
    let now = worker.scan("coordinator/").await.map_err(silent)?;
    Ok((worker, client, History::after(now.revision)))
}

fn options(settings: &EtcdSettings) -> Result<ConnectOptions, Problem> {
    let options = ConnectOptions::new()
        .with_connect_timeout(CONNECT)
        .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
        .with_keep_alive_while_idle(true)
        // A member that is cut off from the others must not answer for them.
        .with_require_leader(true);
    Ok(match &settings.tls {
        Some(tls) => options.with_tls(tls_options(tls)?),
        None => options,
    })
}

fn tls_options(tls: &EtcdTls) -> Result<TlsOptions, Problem> {
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(read("ca", &tls.ca)?));
    if let Some((cert, key)) = &tls.client {
        options = options.identity(Identity::from_pem(read("cert", cert)?, read("key", key)?));
    }
    Ok(options)
}

fn read(field: &str, path: &Path) -> Result<Vec<u8>, Problem> {
    std::fs::read(path).map_err(|error| {
        let what = format!("cannot read {}: {error}", path.display());
        Problem::new(codes::CONFIG_INVALID, what)
            .field(format!("store.{field}"))
            .value(path.display().to_string())
            .remedy("give the path of a PEM file that the coordinator may read")
    })
}

fn silent(settings: &EtcdSettings, error: &StoreError) -> Problem {
    let endpoints = settings.endpoints.join(", ");
    Problem::new(codes::STORE, format!("etcd at {endpoints}: {error}"))
        .field("store.endpoints")
        .value(endpoints)
        .remedy("see that etcd runs there, has a majority of its members, and accepts this coordinator's certificate; VMs go on running meanwhile")
}

/// The answer, or why there is none in time.
pub(super) async fn within<T>(
    doing: &'static str,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, StoreError> {
    let why = match tokio::time::timeout(ANSWER, answer).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => in_one_line(&error),
        Err(_) => format!("no answer in {} s", ANSWER.as_secs()),
    };
    Err(StoreError::Failed { doing, why })
}

/// The error with its causes.
fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        next = cause.source();
    }
    text
}

/// The record's own key: what comes behind the prefix.
pub(super) fn key_of(prefix: &str, kv: &KeyValue) -> Option<String> {
    let key = std::str::from_utf8(kv.key()).ok()?;
    key.strip_prefix(prefix).map(str::to_owned)
}
