//! Three coordinators on one etcd, as processes: leaders that are killed, that
//! stand still and come back, and an etcd that does not answer.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use godwit_shared::api::{AdminCredential, NodeView, TokenView, VmView};
use godwit_shared::model::{Problem, codes};
use godwit_shared::pki::{Identity, JoinToken};
use godwit_shared::transport::CloseCode;
use godwit_shared::wire::uplink::{CoordinatorMessage, JoinAnswer};
use reqwest::{Method, Response, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::etcd::Etcd;
use super::node::{Node, hello, join_request};
use super::running::PATIENCE;

/// What a new leader may take.
const FAILOVER: Duration = Duration::from_secs(5);

/// A coordinator's process; killed when it is dropped.
struct Member {
    dir: TempDir,
    child: Option<Child>,
    api: String,
    cluster: String,
}

impl Member {
    fn new(etcd: &Etcd) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name| etcd.file(name).display().to_string();
        let settings = format!(
            "state_dir = '{}'\nlisten = '127.0.0.1:0'\napi = '127.0.0.1:0'\n\
             [store]\nkind = 'etcd'\nendpoints = ['{}']\nlease_ms = 2000\n\
             ca = '{}'\ncert = '{}'\nkey = '{}'\n",
            dir.path().join("state").display(),
            etcd.endpoint,
            file("ca.pem"),
            file("client.pem"),
            file("client-key.pem")
        );
        std::fs::write(dir.path().join("coordinator.toml"), settings).unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        Self {
            dir,
            child: None,
            api: String::new(),
            cluster: String::new(),
        }
    }

    fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    /// Starts it and waits until it serves.
    async fn start(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_godwit-coordinator"))
            .args(["run", "--config"])
            .arg(self.dir.path().join("coordinator.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let place = self.state().join("endpoints.json");
        let begun = Instant::now();
        let text = loop {
            if let Ok(text) = std::fs::read_to_string(&place) {
                break text;
            }
            assert!(begun.elapsed() < PATIENCE, "{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let told: Value = serde_json::from_str(&text).unwrap();
        told["api"].as_str().unwrap().clone_into(&mut self.api);
        told["cluster"]
            .as_str()
            .unwrap()
            .clone_into(&mut self.cluster);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The CA and the token of another one's cluster.
    fn take_from(&self, first: &Path) {
        let ca = self.state().join("ca");
        std::fs::create_dir_all(&ca).unwrap();
        for entry in std::fs::read_dir(first.join("ca")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), ca.join(entry.file_name())).unwrap();
        }
        std::fs::copy(first.join("admin.toml"), self.state().join("admin.toml")).unwrap();
    }

    fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_file(self.state().join("endpoints.json"));
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Several {
    members: Vec<Member>,
    client: reqwest::Client,
    token: String,
    etcd: Etcd,
}

impl Several {
    async fn start() -> Self {
        let etcd = Etcd::start();
        let mut members: Vec<Member> = (0..3).map(|_| Member::new(&etcd)).collect();
        members[0].start().await;
        let first = members[0].state();
        for member in &mut members[1..] {
            member.take_from(&first);
            member.start().await;
        }
        let credential: AdminCredential =
            godwit_shared::config::load(&first.join("admin.toml")).unwrap();
        Self {
            members,
            client: client(&credential),
            token: credential.token,
            etcd,
        }
    }

    async fn send(
        &self,
        member: usize,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Option<Response> {
        let url = format!("{}{path}", self.members[member].api);
        let mut request = self.client.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.timeout(Duration::from_secs(15)).send().await.ok()
    }

    /// The member that leads.
    async fn leader(&self) -> usize {
        self.leader_among(&[0, 1, 2]).await
    }

    async fn leader_among(&self, members: &[usize]) -> usize {
        let begun = Instant::now();
        loop {
            for member in members {
                let url = format!("{}/api/v1/cluster", self.members[*member].api);
                let asked = self.client.get(url).bearer_auth(&self.token).send().await;
                if asked.is_ok_and(|a| a.headers().get("godwit-answered-by").is_none()) {
                    return *member;
                }
            }
            assert!(begun.elapsed() < PATIENCE, "{}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes a label of node n1 at that member.
    async fn label(&self, member: usize, value: &str) -> Option<StatusCode> {
        let body = json!({"label": {"last": value}});
        let answer = self.send(member, Method::POST, "/api/v1/nodes/n1/marks", Some(body));
        Some(answer.await?.status())
    }

    /// Writes at any of them until one has done it.
    async fn write(&self, value: &str, among: &[usize]) {
        let begun = Instant::now();
        loop {
            for member in among {
                if self.label(*member, value).await == Some(StatusCode::OK) {
                    return;
                }
            }
            assert!(begun.elapsed() < PATIENCE, "{}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn last(&self, member: usize) -> String {
        let answer = self
            .send(member, Method::GET, "/api/v1/nodes/n1", None)
            .await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let view: NodeView = answer.json().await.unwrap();
        view.marks.labels["last"].clone()
    }

    async fn join(&self, leader: usize) -> (Identity, JoinToken) {
        let answer = self.send(leader, Method::POST, "/api/v1/tokens", Some(json!({})));
        let view: TokenView = answer.await.unwrap().json().await.unwrap();
        let token: JoinToken = view.token.parse().unwrap();
        let (key, answer) = join_request(&token, "n1").await;
        let JoinAnswer::Joined { chain, .. } = answer.unwrap() else {
            panic!("refused")
        };
        let (leaf, ca) = chain.split_at(chain.rfind("-----BEGIN").unwrap());
        (key.into_identity(leaf, ca).unwrap(), token)
    }

    fn logs(&self) -> String {
        self.members.iter().map(Member::log).collect()
    }
}

/// One that does not go where an answer points to.
fn client(credential: &AdminCredential) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(credential.ca.as_bytes()).unwrap();
    reqwest::Client::builder()
        .tls_certs_only([ca])
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap()
}

async fn problem(answer: Response) -> Problem {
    answer.json().await.unwrap()
}

#[actix::test]
async fn followers_answer_reads_and_point_writes_and_nodes_to_the_leader() {
    let cluster = Several::start().await;
    let leader = cluster.leader().await;
    let (identity, token) = cluster.join(leader).await;
    // Whoever joins learns of the coordinators that were there at that time.
    assert_eq!(token.coordinator[0], cluster.members[leader].cluster);
    cluster.write("one", &[leader]).await;
    let follower = (leader + 1) % 3;
    let (there, here) = (&cluster.members[leader], &cluster.members[follower]);

    let begun = Instant::now();
    while cluster
        .send(follower, Method::GET, "/api/v1/nodes/n1", None)
        .await
        .unwrap()
        .status()
        != StatusCode::OK
        || cluster.last(follower).await != "one"
    {
        assert!(begun.elapsed() < PATIENCE, "{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answer = cluster
        .send(follower, Method::GET, "/api/v1/vms", None)
        .await
        .unwrap();
    assert_eq!(answer.headers()["godwit-answered-by"], "follower");
    assert!(answer.json::<Vec<VmView>>().await.unwrap().is_empty());

    for (method, path) in [(Method::POST, "/nodes/n1/cordon"), (Method::GET, "/events")] {
        let url = format!("{}/api/v1{path}", here.api);
        let request = cluster
            .client
            .request(method, url)
            .bearer_auth(&cluster.token);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
        assert_eq!(
            answer.headers()["location"],
            format!("{}/api/v1{path}", there.api)
        );
        assert_eq!(problem(answer).await.code, codes::NOT_LEADER);
    }
    let unknown = cluster
        .client
        .post(format!("{}/api/v1/tokens", here.api))
        .send();
    assert_eq!(unknown.await.unwrap().status(), StatusCode::UNAUTHORIZED);

    let mut node = Node::open(here.cluster.parse().unwrap(), &identity, hello(Vec::new())).await;
    let CoordinatorMessage::Elsewhere { leader: named } = node.next().await else {
        panic!("no word of the leader")
    };
    assert_eq!(named.as_deref(), Some(there.cluster.as_str()));
    let mut node = Node::open(there.cluster.parse().unwrap(), &identity, hello(Vec::new())).await;
    assert!(matches!(
        node.next().await,
        CoordinatorMessage::Welcome { .. }
    ));
    node.connection.close(CloseCode::DONE, "");
    let mut elsewhere = token;
    elsewhere.coordinator = vec![here.cluster.clone()];
    let (_, answer) = join_request(&elsewhere, "n2").await;
    assert!(
        matches!(&answer, Ok(JoinAnswer::Refused(problem)) if problem.code == codes::NOT_LEADER),
        "{answer:?}"
    );
}

#[actix::test]
async fn a_leader_that_dies_or_stands_still_is_followed_and_nothing_is_lost() {
    let mut cluster = Several::start().await;
    let leader = cluster.leader().await;
    let (identity, _) = cluster.join(leader).await;
    for count in 0..20 {
        cluster.write(&format!("before-{count}"), &[leader]).await;
    }
    cluster.members[leader].kill();
    let begun = Instant::now();
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    // What was acknowledged is there before anything else is written.
    let second = cluster.leader_among(&others).await;
    assert_eq!(cluster.last(second).await, "before-19");
    cluster.write("after", &[second]).await;
    let took = begun.elapsed();
    assert!(took < FAILOVER, "{took:?}: {}", cluster.logs());

    // The next one stands still with a write on its way, and is overtaken.
    let third = others.iter().copied().find(|n| *n != second).unwrap();
    cluster.members[second].signal(Signal::STOP);
    let late = cluster.send(
        second,
        Method::POST,
        "/api/v1/nodes/n1/marks",
        Some(json!({"label": {"last": "late"}})),
    );
    let (late, ()) = tokio::join!(late, async {
        cluster.write("by the third", &[third]).await;
        cluster.members[second].signal(Signal::CONT);
    });
    let late = late.unwrap();
    assert_ne!(
        late.status(),
        StatusCode::OK,
        "a deposed leader has written"
    );
    assert_eq!(cluster.last(third).await, "by the third");
    let address = cluster.members[second].cluster.parse().unwrap();
    let begun = Instant::now();
    loop {
        let mut node = Node::open(address, &identity, hello(Vec::new())).await;
        if let CoordinatorMessage::Elsewhere {
            leader: Some(named),
        } = node.next().await
        {
            assert_eq!(named, cluster.members[third].cluster);
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{}", cluster.logs());
    }
}

#[actix::test]
async fn without_etcd_everything_can_be_read_and_it_recovers_by_itself() {
    let mut cluster = Several::start().await;
    let leader = cluster.leader().await;
    cluster.join(leader).await;
    cluster.write("before", &[leader]).await;
    cluster.etcd.freeze();
    let begun = Instant::now();
    for member in 0..3 {
        loop {
            let answer = cluster
                .send(member, Method::POST, "/api/v1/tokens", Some(json!({})))
                .await;
            if let Some(answer) = answer
                && answer.status() == StatusCode::SERVICE_UNAVAILABLE
            {
                assert_eq!(problem(answer).await.code, codes::NO_LEADER);
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{}", cluster.logs());
        }
        assert_eq!(cluster.last(member).await, "before");
    }
    cluster.etcd.thaw();
    cluster.write("after", &[0, 1, 2]).await;
    // The same when its process ends and is started anew.
    cluster.etcd.restart();
    cluster.write("again", &[0, 1, 2]).await;
    let stranger = Member::new(&cluster.etcd);
    let output = Command::new(env!("CARGO_BIN_EXE_godwit-coordinator"))
        .args(["run", "--config"])
        .arg(stranger.dir.path().join("coordinator.toml"))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && told.contains(codes::CA_MISMATCH),
        "{told}"
    );
}
