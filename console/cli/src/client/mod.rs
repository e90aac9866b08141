//! The REST interface, seen from the command line.
//!
//! Every call goes to the coordinator that leads ([`ways`]) over TLS that trusts exactly the CA in
//! the credential ([`tls`]), with the bearer token, directly: proxies of the
//! environment are not used. An answer that is a refusal becomes its
//! [`Problem`]; what keeps a call from being answered becomes one in
//! [`trouble`].

pub(crate) mod console;
pub(crate) mod events;
pub(crate) mod sse;
mod tls;
mod trouble;
mod ways;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use godwit_shared::api::{ANSWERED_BY, AdminCredential, WANTS};
use godwit_shared::model::{Problem, codes};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header};
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failure::{Exit, Failure};
use crate::output::{Item, not_understood};
use ways::Ways;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// How long an ordinary call may take: longer than the coordinator itself waits
/// for its turn and its store (40 s), so that its own word on that comes first.
const CALL: Duration = Duration::from_secs(50);

/// How long a file may take.
const FILE: Duration = Duration::from_secs(600);

/// How long the coordinator is asked to hold a call for the end of a task.
const LONG_POLL: Duration = Duration::from_secs(20);

/// How often a call follows from one coordinator to another.
const HOPS: u32 = 4;

/// What it means that a call was not answered in time.
type Late = fn(&Url) -> Failure;

/// A way to the coordinator.
pub(crate) struct Client {
    http: reqwest::Client,
    ways: Ways,
    authorization: header::HeaderValue,
    tls: Arc<ClientConfig>,
    /// Set when something that was told is from a coordinator that does not lead.
    from_a_copy: Arc<AtomicBool>,
}

impl Client {
    /// Prepares the way; nothing is sent yet. `from_a_copy` is set when nobody
    /// leads and another coordinator answers.
    pub(crate) fn new(
        credential: &AdminCredential,
        from_a_copy: Arc<AtomicBool>,
    ) -> Result<Self, Failure> {
        let (first, more) = endpoints(&credential.endpoint)?;
        let ways = Ways::new(first, more);
        let tls = tls::config(&credential.ca)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("godwit/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .tcp_keepalive(Duration::from_secs(10))
            .build()
            .map_err(|e| Failure::from(Problem::internal(trouble::chain(&e))))?;
        let mut authorization =
            header::HeaderValue::from_str(&format!("Bearer {}", credential.token)).map_err(
                |_| {
                    bad_credential(
                        "its token has a character that a token cannot have",
                        "token",
                    )
                },
            )?;
        authorization.set_sensitive(true);
        Ok(Self {
            http,
            ways,
            authorization,
            tls: Arc::new(tls),
            from_a_copy,
        })
    }

    /// `GET` of an object or a list.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        let request = self.request(Method::GET, path).timeout(CALL);
        self.json(request, trouble::no_answer).await
    }

    /// `GET` of one object.
    pub(crate) async fn one<T: DeserializeOwned>(&self, path: &str) -> Result<Item<T>, Failure> {
        Item::read(self.get(path).await?)
    }

    /// `GET` of a list.
    pub(crate) async fn all<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Vec<Item<T>>, Failure> {
        Item::read_all(self.get(path).await?)
    }

    /// `GET` of one object that the coordinator answers when it is final, or
    /// after [`LONG_POLL`].
    pub(crate) async fn poll<T: DeserializeOwned>(&self, path: &str) -> Result<Item<T>, Failure> {
        let more = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{more}wait_ms={}", LONG_POLL.as_millis());
        let request = self.request(Method::GET, &path).timeout(LONG_POLL + CALL);
        Item::read(self.json(request, trouble::no_answer).await?)
    }

    /// `POST` with a JSON body.
    pub(crate) async fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, Failure> {
        let request = self.request(Method::POST, path).timeout(CALL).json(body);
        self.json(request, trouble::unsure).await
    }

    /// `DELETE`.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        let request = self.request(Method::DELETE, path).timeout(CALL);
        self.json(request, trouble::unsure).await
    }

    /// `GET` of text.
    pub(crate) async fn text(&self, path: &str) -> Result<String, Failure> {
        let response = self
            .send(
                self.request(Method::GET, path).timeout(CALL),
                trouble::no_answer,
            )
            .await?;
        let text = response.text().await;
        text.map_err(|e| self.trouble(&e, trouble::no_answer))
    }

    /// `GET` of a file.
    pub(crate) async fn bytes(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let request = self.request(Method::GET, path).timeout(FILE);
        let response = self.send(request, trouble::no_answer).await?;
        let bytes = response.bytes().await;
        let bytes = bytes.map_err(|e| self.trouble(&e, trouble::no_answer))?;
        Ok(bytes.into())
    }

    /// `GET` of a stream of server-sent events, after the event `after`.
    pub(crate) async fn stream(&self, path: &str, after: u64) -> Result<Response, Failure> {
        let path = format!("{path}?after={after}");
        let request = self
            .request(Method::GET, &path)
            .header(header::ACCEPT, "text/event-stream")
            .header("Last-Event-ID", after.to_string());
        self.send(request, trouble::no_answer).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.ways.now();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        url.set_path(&format!("/api/v1{path}"));
        url.set_query(Some(query).filter(|query| !query.is_empty()));
        self.http
            .request(method, url)
            .header(header::AUTHORIZATION, self.authorization.clone())
            .header(WANTS, "leader")
    }

    /// `late` words what it means that no answer came in time.
    async fn send(&self, request: RequestBuilder, late: Late) -> Result<Response, Failure> {
        let response = self.reach(request, late).await?;
        if response.status().is_success() {
            let copy = response.headers().contains_key(ANSWERED_BY);
            self.from_a_copy.fetch_or(copy, Ordering::Relaxed);
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await.map_err(|e| self.trouble(&e, late))?;
        Err(refusal(status, &body))
    }

    /// Goes where the leader is: past coordinators that are away, and where the
    /// others point to.
    async fn reach(&self, request: RequestBuilder, late: Late) -> Result<Response, Failure> {
        let request = request.build().map_err(|e| self.trouble(&e, late))?;
        let mut others = self.ways.others();
        let mut hops = HOPS;
        loop {
            let Some(attempt) = ways::towards(&request, &self.ways.now()) else {
                return Err(Problem::internal("a request that cannot be sent twice").into());
            };
            match self.http.execute(attempt).await {
                Ok(response) if hops > 0 && self.ways.follow(&response) => hops -= 1,
                Ok(response) => return Ok(response),
                Err(error) if error.is_connect() => match others.pop() {
                    Some(next) => self.ways.go(next),
                    None => return Err(self.trouble(&error, late)),
                },
                Err(error) => return Err(self.trouble(&error, late)),
            }
        }
    }

    async fn json(&self, request: RequestBuilder, late: Late) -> Result<Value, Failure> {
        let response = self.send(request, late).await?;
        let body = response.bytes().await.map_err(|e| self.trouble(&e, late))?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|e| not_understood(&e))
    }

    fn trouble(&self, error: &reqwest::Error, late: Late) -> Failure {
        if error.is_timeout() && !error.is_connect() {
            return late(&self.ways.now());
        }
        trouble::of(error, &self.ways.now())
    }
}

/// The coordinators' addresses, with commas between them.
fn endpoints(text: &str) -> Result<(Url, Vec<Url>), Failure> {
    let (first, more) = match text.split_once(',') {
        Some((first, more)) => (first, more.split(',').collect::<Vec<_>>()),
        None => (text, Vec::new()),
    };
    let more: Result<_, _> = more.into_iter().map(|one| endpoint(one.trim())).collect();
    Ok((endpoint(first.trim())?, more?))
}

/// A coordinator's address: HTTPS, a host, nothing behind it.
fn endpoint(text: &str) -> Result<Url, Failure> {
    let url = Url::parse(text).ok();
    match url.filter(|url| url.scheme() == "https" && url.has_host()) {
        Some(url) => Ok(url),
        None => Err(bad_credential(
            &format!("its endpoint `{text}` is not an https:// URL"),
            "endpoint",
        )),
    }
}

fn bad_credential(why: &str, field: &str) -> Failure {
    Failure::with_exit(
        Problem::new(
            codes::UNAUTHENTICATED,
            format!("the credential is damaged: {why}"),
        )
        .field(field)
        .remedy("copy admin.toml from the coordinator's state directory anew"),
        Exit::Unreachable,
    )
}

/// A refusal's problem; what is not one was not answered by a coordinator.
fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    if let Ok(problem) = serde_json::from_slice::<Problem>(body) {
        return problem.into();
    }
    Problem::new(
        codes::PROTOCOL,
        format!("the answer is HTTP {status}, not one of a coordinator"),
    )
    .remedy("look at what listens at the credential's endpoint: a proxy, another service?")
    .into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_endpoint_is_https_with_a_host() {
        assert!(endpoint("https://127.0.0.1:7443").is_ok());
        assert!(endpoint("https://[::1]:7443/").is_ok());
        let several = endpoints("https://a:1, https://b:1").unwrap();
        assert_eq!(several.1.len(), 1);
        assert!(endpoints("https://a:1,").is_err());
        for bad in ["", "127.0.0.1:7443", "http://a", "https://"] {
            assert_eq!(
                endpoint(bad).unwrap_err().exit(),
                Exit::Unreachable,
                "{bad}"
            );
        }
    }

    #[test]
    fn a_refusal_without_a_problem_is_told_as_such() {
        let failure = refusal(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(failure.code(), Some(codes::PROTOCOL));
        let body = serde_json::to_vec(&Problem::not_found("VM", "x")).unwrap();
        let failure = refusal(StatusCode::NOT_FOUND, &body);
        assert_eq!(failure.exit(), Exit::NotFound);
    }
}
