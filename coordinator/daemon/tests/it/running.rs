//! A coordinator on a directory of its own, and a client of its API.

use std::path::Path;
use std::time::Duration;

use godwit_coordinator::app::Coordinator;
use godwit_coordinator::config::{Config, Overrides, RawConfig};
use godwit_shared::api::{AdminCredential, TaskView, TokenView};
use godwit_shared::model::Problem;
use godwit_shared::pki::JoinToken;
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest that anything in these tests may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running coordinator.
pub struct Running {
    pub dir: TempDir,
    pub coordinator: Option<Coordinator>,
    pub credential: AdminCredential,
    pub client: reqwest::Client,
    listen: String,
}

pub fn config(dir: &Path, listen: &str) -> Config {
    let flags = Overrides {
        state_dir: Some(dir.to_owned()),
        listen: Some(listen.to_owned()),
        api: Some("127.0.0.1:0".to_owned()),
        ..Overrides::default()
    };
    Config::check(RawConfig::default(), flags).unwrap()
}

impl Running {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let coordinator = Coordinator::start(config(dir.path(), "127.0.0.1:0"))
            .await
            .unwrap();
        let listen = coordinator.cluster.to_string();
        let credential = credential(dir.path());
        let client = client(&credential);
        Self {
            dir,
            coordinator: Some(coordinator),
            credential,
            client,
            listen,
        }
    }

    /// Ends it and starts it again on the same directory and port.
    pub async fn restart(&mut self) {
        self.coordinator.take().unwrap().stop().await;
        let config = config(self.dir.path(), &self.listen);
        self.coordinator = Some(Coordinator::start(config).await.unwrap());
        self.reread();
    }

    /// Takes the credential that is there now.
    pub fn reread(&mut self) {
        self.credential = credential(self.dir.path());
        self.client = client(&self.credential);
    }

    pub async fn stop(mut self) {
        self.coordinator.take().unwrap().stop().await;
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.credential.endpoint)
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client
            .request(method, self.url(path))
            .bearer_auth(&self.credential.token)
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let response = self.request(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.json().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let response = self
            .request(Method::POST, path)
            .json(&body)
            .send()
            .await
            .unwrap();
        let status = response.status();
        (status, response.json().await.unwrap())
    }

    /// Asks for a long action and gives its task.
    pub async fn begin(&self, path: &str, body: Value) -> TaskView {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{path}: {answer}");
        serde_json::from_value(answer).unwrap()
    }

    pub async fn refused(&self, path: &str, body: Value) -> (StatusCode, Problem) {
        let (status, answer) = self.post(path, body).await;
        (status, serde_json::from_value(answer).unwrap())
    }

    /// Waits for a task's end.
    pub async fn ended(&self, task: &TaskView) -> TaskView {
        let path = format!("/api/v1/tasks/{}?wait_ms=20000", task.id);
        let task: TaskView = self.get(&path).await;
        assert!(task.state.is_final(), "{task:?}");
        task
    }

    /// A join token.
    pub async fn token(&self) -> JoinToken {
        self.token_with(json!({})).await
    }

    pub async fn token_with(&self, body: Value) -> JoinToken {
        let (status, answer) = self.post("/api/v1/tokens", body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        serde_json::from_value::<TokenView>(answer)
            .unwrap()
            .token
            .parse()
            .unwrap()
    }
}

fn credential(dir: &Path) -> AdminCredential {
    let path = dir.join("admin.toml");
    godwit_shared::config::load(&path).unwrap()
}

pub fn client(credential: &AdminCredential) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(credential.ca.as_bytes()).unwrap();
    reqwest::Client::builder()
        .tls_certs_only([ca])
        .timeout(Duration::from_secs(30))
        .build()
        .unwrap()
}

/// A spec of a small VM.
pub fn spec(name: &str) -> Value {
    json!({"name": name, "memory": "64MiB"})
}
