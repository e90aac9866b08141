//! A client of the coordinator's REST interface, typed by the shared crate.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use godwit_shared::api::{
    AdminCredential, ClusterStatus, CommandOptions, CreateVm, DryRun, Event, MigrateRequest,
    MigrationView, NodeView, PlacementView, ResolveRequest, TaskState, TaskView, TokenView, VmView,
};
use godwit_shared::model::{
    DoubtDecision, LifecycleCommand, MigrationId, MigrationTuning, NodeId, Problem, TaskId, VmSpec,
};
use reqwest::{Method, StatusCode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_tungstenite::tungstenite::Message;

/// Most that one call may take.
const CALL: Duration = Duration::from_secs(20);
/// How long one long poll of a task asks to wait.
const POLL_MS: u64 = 2_000;

/// A refusal, as the interface gives it.
#[derive(Debug, thiserror::Error)]
#[error("{status}: {problem} ({})", problem.code)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// The problem in the body.
    pub problem: Problem,
}

/// An answer as it came, for cases that look at refusals.
#[derive(Debug)]
pub struct Raw {
    /// The HTTP status.
    pub status: StatusCode,
    /// The value of the `Location` header.
    pub location: Option<String>,
    /// The body.
    pub body: String,
}

impl Raw {
    /// The body as the problem that every refusal is.
    ///
    /// # Errors
    /// When it is not one.
    pub fn problem(&self) -> Result<Problem> {
        serde_json::from_str(&self.body)
            .with_context(|| format!("{} without a problem: {}", self.status, self.body))
    }
}

/// The client.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    token: String,
    ca: String,
    http: reqwest::Client,
}

impl Api {
    /// A client with the operator's credential.
    ///
    /// # Errors
    /// When its CA is not one.
    pub fn new(credential: &AdminCredential) -> Result<Self> {
        let ca = reqwest::Certificate::from_pem(credential.ca.as_bytes())?;
        let http = reqwest::Client::builder().tls_certs_only([ca]).build()?;
        Ok(Self {
            base: credential.endpoint.trim_end_matches('/').to_owned(),
            token: credential.token.clone(),
            ca: credential.ca.clone(),
            http,
        })
    }

    /// The same interface with another bearer token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: token.to_owned(),
            ..self.clone()
        }
    }

    /// Any call, as it comes back.
    ///
    /// # Errors
    /// When the coordinator cannot be reached.
    pub async fn raw(&self, method: Method, path: &str, body: Option<String>) -> Result<Raw> {
        let url = format!("{}{path}", self.base);
        let mut request = self.http.request(method, &url).timeout(CALL);
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if let Some(body) = body {
            let json = reqwest::header::HeaderValue::from_static("application/json");
            request = request
                .header(reqwest::header::CONTENT_TYPE, json)
                .body(body);
        }
        let answer = request.send().await.with_context(|| url.clone())?;
        let location = answer.headers().get(reqwest::header::LOCATION);
        Ok(Raw {
            status: answer.status(),
            location: location.and_then(|value| Some(value.to_str().ok()?.to_owned())),
            body: answer.text().await.with_context(|| url)?,
        })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<T> {
        let answer = self.raw(method, path, body).await?;
        if !answer.status.is_success() {
            let problem = answer.problem().context(path.to_owned())?;
            let status = answer.status;
            return Err(Refusal { status, problem }.into());
        }
        let body = if answer.body.is_empty() {
            "null"
        } else {
            &answer.body
        };
        serde_json::from_str(body).with_context(|| format!("{path}: {body}"))
    }

    /// `GET` of a path below `/api/v1`.
    ///
    /// # Errors
    /// A [`Refusal`], or what kept the call from being made.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, &format!("/api/v1{path}"), None)
            .await
    }

    /// `POST` to a path below `/api/v1`.
    ///
    /// # Errors
    /// A [`Refusal`], or what kept the call from being made.
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T> {
        let body = serde_json::to_string(body)?;
        self.call(Method::POST, &format!("/api/v1{path}"), Some(body))
            .await
    }

    /// The cluster in a few numbers.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn cluster(&self) -> Result<ClusterStatus> {
        self.get("/cluster").await
    }

    /// Every node.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn nodes(&self) -> Result<Vec<NodeView>> {
        self.get("/nodes").await
    }

    /// One node.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn node(&self, node: &NodeId) -> Result<NodeView> {
        self.get(&format!("/nodes/{node}")).await
    }

    /// A new join token.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub async fn token(&self) -> Result<String> {
        let view: TokenView = self.post("/tokens", &serde_json::json!({})).await?;
        Ok(view.token)
    }

    /// Every VM.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn vms(&self) -> Result<Vec<VmView>> {
        self.get("/vms").await
    }

    /// One VM.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn vm(&self, name: &str) -> Result<VmView> {
        self.get(&format!("/vms/{name}")).await
    }

    /// Defines a VM, and starts it when asked.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub async fn create(
        &self,
        spec: VmSpec,
        start: bool,
        node: Option<NodeId>,
    ) -> Result<TaskView> {
        self.post("/vms", &CreateVm { spec, start, node }).await
    }

    /// Where that VM would go.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub async fn place(&self, spec: VmSpec) -> Result<PlacementView> {
        let asked = CreateVm {
            spec,
            start: true,
            node: None,
        };
        self.post("/place", &asked).await
    }

    /// A lifecycle command.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub async fn command(&self, vm: &str, command: LifecycleCommand) -> Result<TaskView> {
        let path = format!("/vms/{vm}");
        if command == LifecycleCommand::Delete {
            let path = format!("/api/v1{path}");
            return self.call(Method::DELETE, &path, None).await;
        }
        self.post(&format!("{path}/{command}"), &CommandOptions::default())
            .await
    }

    /// A lifecycle command and its success.
    ///
    /// # Errors
    /// As [`Api::succeed`].
    pub async fn done(
        &self,
        vm: &str,
        command: LifecycleCommand,
        limit: Duration,
    ) -> Result<TaskView> {
        let task = self.command(vm, command).await?;
        self.succeed(task.id, limit).await
    }

    /// Asks for a migration.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub async fn migrate(&self, vm: &str, request: &MigrateRequest) -> Result<TaskView> {
        self.post(&format!("/vms/{vm}/migrate"), request).await
    }

    /// What stands against a migration.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub async fn dry_run(&self, vm: &str, request: &MigrateRequest) -> Result<DryRun> {
        let request = MigrateRequest {
            dry_run: true,
            ..request.clone()
        };
        self.post(&format!("/vms/{vm}/migrate"), &request).await
    }

    /// One migration.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn migration(&self, id: MigrationId) -> Result<MigrationView> {
        self.get(&format!("/migrations/{id}")).await
    }

    /// Calls a migration off.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub async fn cancel_migration(&self, id: MigrationId) -> Result<MigrationView> {
        let empty = serde_json::json!({});
        self.post(&format!("/migrations/{id}/cancel"), &empty).await
    }

    /// Changes a migration while it runs.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub async fn tune(&self, id: MigrationId, tuning: &MigrationTuning) -> Result<MigrationView> {
        self.post(&format!("/migrations/{id}/tune"), tuning).await
    }

    /// Ends a source's doubt.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub async fn resolve(
        &self,
        id: MigrationId,
        decision: DoubtDecision,
        confirm: &str,
    ) -> Result<MigrationView> {
        let request = ResolveRequest {
            decision,
            confirm: confirm.to_owned(),
        };
        self.post(&format!("/migrations/{id}/resolve"), &request)
            .await
    }

    /// One task.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn task(&self, id: TaskId) -> Result<TaskView> {
        self.get(&format!("/tasks/{id}")).await
    }

    /// Waits until a task has ended, whichever way. A coordinator that is away
    /// for a moment does not end the waiting.
    ///
    /// # Errors
    /// When it has not ended within `limit`.
    pub async fn ended(&self, id: TaskId, limit: Duration) -> Result<TaskView> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait_ms = POLL_MS.min(u64::try_from(left.as_millis())?);
            let seen = self
                .get::<TaskView>(&format!("/tasks/{id}?wait_ms={wait_ms}"))
                .await;
            match &seen {
                Ok(task) if task.state.is_final() => return seen,
                _ if Instant::now() >= deadline => {
                    bail!("task {id} did not end within {limit:?}: {seen:?}")
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(crate::wait::STEP).await,
            }
        }
    }

    /// Waits until a task has succeeded.
    ///
    /// # Errors
    /// When it ended in another way, with its problem; or did not end.
    pub async fn succeed(&self, id: TaskId, limit: Duration) -> Result<TaskView> {
        let task = self.ended(id, limit).await?;
        if task.state != TaskState::Succeeded {
            bail!(
                "task {} {}: {}: {:?}",
                task.kind,
                task.state.as_str(),
                task.message,
                task.problem
            );
        }
        Ok(task)
    }

    /// The end of a VM's serial log.
    ///
    /// # Errors
    /// A [`Refusal`], or what kept the call from being made.
    pub async fn serial_log(&self, vm: &str, lines: u32) -> Result<String> {
        let path = format!("/api/v1/vms/{vm}/logs?kind=serial&lines={lines}");
        let answer = self.raw(Method::GET, &path, None).await?;
        if !answer.status.is_success() {
            let (status, problem) = (answer.status, answer.problem()?);
            return Err(Refusal { status, problem }.into());
        }
        Ok(answer.body)
    }

    /// The stream of events after number `after`, as server-sent text.
    ///
    /// # Errors
    /// When the coordinator cannot be reached or refuses.
    pub async fn event_stream(&self, after: u64) -> Result<reqwest::Response> {
        let url = format!("{}/api/v1/events?after={after}", self.base);
        let request = self.http.get(url).bearer_auth(&self.token);
        Ok(request.send().await?.error_for_status()?)
    }

    /// Types a line on a VM's serial console and reads on until `until` has
    /// been seen; returns what came from then on.
    ///
    /// # Errors
    /// When the console is refused, ends, or `until` does not come in time.
    pub async fn type_line(
        &self,
        vm: &str,
        line: &str,
        until: &str,
        limit: Duration,
    ) -> Result<String> {
        let mut console = self.console(vm).await?;
        let bytes = Message::binary(format!("{line}\n").into_bytes());
        console.send(bytes).await?;
        let mut seen = Vec::new();
        let read = async {
            while let Some(message) = console.next().await {
                match message? {
                    Message::Binary(bytes) => seen.extend_from_slice(&bytes),
                    Message::Text(text) => seen.extend_from_slice(text.as_bytes()),
                    Message::Close(why) => bail!("the console was closed: {why:?}"),
                    _ => {}
                }
                let text = String::from_utf8_lossy(&seen);
                if let Some(at) = text.find(until)
                    && text[at..].contains('\n')
                {
                    return Ok(text[at..].to_owned());
                }
            }
            bail!("the console ended")
        };
        match tokio::time::timeout(limit, read).await {
            Ok(text) => text,
            Err(_) => bail!(
                "no `{until}` on {vm}'s console within {limit:?}: {}",
                String::from_utf8_lossy(&seen)
            ),
        }
    }

    async fn console(
        &self,
        vm: &str,
    ) -> Result<
        tokio_tungstenite::WebSocketStream<
            tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>,
        >,
    > {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
        let url = format!("{}/api/v1/vms/{vm}/console", self.base);
        let mut request = url.replacen("https", "wss", 1).into_client_request()?;
        let bearer = format!("Bearer {}", self.token).parse()?;
        request.headers_mut().insert("Authorization", bearer);
        let tls = tokio_tungstenite::Connector::Rustls(std::sync::Arc::new(self.tls()?));
        let (socket, _) =
            tokio_tungstenite::connect_async_tls_with_config(request, None, true, Some(tls))
                .await?;
        Ok(socket)
    }

    fn tls(&self) -> Result<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.ca.as_bytes()) {
            roots.add(certificate?)?;
        }
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(config)
    }
}

/// One server-sent event's `data:` as an [`Event`]; none for comments,
/// heartbeats and kinds of another shape.
pub fn parse_event(block: &str) -> Option<Event> {
    let data: Vec<&str> = block
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|text| text.strip_prefix(' ').unwrap_or(text))
        .collect();
    if data.is_empty() {
        return None;
    }
    serde_json::from_str(&data.join("\n")).ok()
}
