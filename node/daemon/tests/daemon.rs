//! The program itself: exit codes, the files that it leaves for others, and its
//! end. Its coordinator is scripted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../src/testing.rs"]
#[allow(dead_code)]
mod testing;

use std::io::Read as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use godwit_shared::model::{NodeFacts, codes};
use godwit_shared::pki::NodeIdentity;
use godwit_shared::wire::uplink::{JoinAnswer, JoinRequest, NodeMessage};
use testing::{PATIENCE, TestCoordinator, soon};

/// A host with its directories; no QEMU is in its path.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("gw-").tempdir().unwrap();
        Self { dir }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-node"));
        command
            .arg(verb)
            .arg("--state-dir")
            .arg(self.state())
            .env("PATH", "/nonexistent")
            .env_remove("GODWIT_LOG")
            .env_remove("NOTIFY_SOCKET");
        command
    }

    fn run(&self) -> Command {
        let mut command = self.command("run");
        command
            .arg("--run-dir")
            .arg(self.dir.path().join("r"))
            .args(["--listen", "127.0.0.1:0"]);
        command
    }

    async fn join(&self, coordinator: &TestCoordinator) -> Output {
        let token = coordinator.token(vec![coordinator.address().to_string()]);
        let mut command = self.command("join");
        command.args(["--name", "n1", &token.to_string()]);
        let joining = tokio::task::spawn_blocking(move || command.output().unwrap());
        let connection = soon(coordinator.endpoint.accept()).await.unwrap();
        let (_, sender, receiver) = soon(connection.accept()).await.unwrap();
        let request = soon(receiver.into_messages::<JoinRequest>().recv()).await;
        let request = request.unwrap().unwrap();
        let me = NodeIdentity {
            node: request.node.clone(),
            incarnation: 1,
        };
        let answer = JoinAnswer::Joined {
            incarnation: 1,
            chain: coordinator.sign(&request.csr, &me),
            cluster: "test".into(),
        };
        let mut sender = sender.into_messages::<JoinAnswer>();
        sender.send(&answer).await.unwrap();
        sender.finish().unwrap();
        soon(joining).await.unwrap()
    }
}

/// A running daemon, ended with the test.
struct Daemon(Child);

impl Daemon {
    fn start(mut command: Command) -> Self {
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the end; gives back the exit code and what it had to say.
    async fn end(mut self) -> (Option<i32>, String) {
        let mut stderr = self.0.stderr.take().unwrap();
        let said = tokio::task::spawn_blocking(move || {
            let mut said = String::new();
            stderr.read_to_string(&mut said).unwrap();
            said
        });
        let said = soon(said).await.unwrap();
        (self.0.wait().unwrap().code(), said)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn endpoints(state: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(state.join("endpoints.json")).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_serves_and_ends() {
    let (coordinator, host) = (TestCoordinator::start(), Host::new());
    let joined = host.join(&coordinator).await;
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    assert!(text(&joined.stdout).contains("`n1` has joined cluster `test`"));

    let socket = host.dir.path().join("notify");
    let notified = UnixDatagram::bind(&socket).unwrap();
    notified.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = host.run();
    command.env("NOTIFY_SOCKET", &socket);
    let daemon = Daemon::start(command);
    let session = coordinator.welcomed().await;
    let facts: NodeFacts = session.hello.facts.read("facts").unwrap();
    let mut word = [0; 64];
    let length = notified.recv(&mut word).unwrap();
    assert_eq!(text(&word[..length]).trim(), "READY=1");
    let endpoints = endpoints(&host.state());
    assert_eq!(endpoints["pid"], daemon.0.id());
    assert_eq!(endpoints["cluster"], facts.address);
    assert!(facts.capacity.vcpus > 0 && facts.emulators.is_empty());

    let (code, said) = Daemon::start(host.run()).end().await;
    assert_eq!(code, Some(1));
    assert!(
        said.contains("error[state_conflict]") && said.contains("help:"),
        "{said}"
    );

    daemon.signal(rustix::process::Signal::TERM);
    let closed = soon(session.connection.closed()).await;
    assert!(closed.to_string().contains("shutting down"), "{closed}");
    let (code, said) = daemon.end().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("every VM runs on"), "{said}");
    assert!(!said.contains("out of touch"), "it went by itself: {said}");
    assert!(!host.state().join("endpoints.json").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_starts_again() {
    let (coordinator, host) = (TestCoordinator::start(), Host::new());
    assert!(host.join(&coordinator).await.status.success());
    let first = Daemon::start(host.run());
    let mut session = coordinator.welcomed().await;
    first.signal(rustix::process::Signal::KILL);
    let gone = tokio::time::timeout(Duration::from_secs(5), session.receiver.recv());
    assert!(!matches!(gone.await, Ok(Ok(Some(NodeMessage::Hello(_))))));
    drop(first);
    let _second = Daemon::start(host.run());
    coordinator.welcomed().await;
}

#[test]
fn wrong_usage_is_2_and_every_refusal_is_1_with_its_remedy() {
    let host = Host::new();
    let run = |command: &mut Command| command.output().unwrap();
    assert_eq!(run(host.command("rum").arg("x")).status.code(), Some(2));
    assert_eq!(
        run(host.command("run").arg("--lsiten")).status.code(),
        Some(2)
    );
    assert_eq!(run(&mut host.command("join")).status.code(), Some(2));

    let file = host.dir.path().join("node.toml");
    std::fs::write(&file, "lisen = \"x\"").unwrap();
    let config = ["--config", file.to_str().unwrap()];
    for (mut command, code, help) in [
        (host.run(), codes::STATE_CONFLICT, "godwit-node join TOKEN"),
        (
            {
                let mut command = host.command("join");
                command.arg("nonsense");
                command
            },
            codes::TOKEN_MALFORMED,
            "godwit node token",
        ),
        (
            {
                let mut command = host.command("run");
                command.args(config);
                command
            },
            codes::CONFIG_INVALID,
            "did you mean `listen`?",
        ),
        (
            {
                let mut command = host.command("run");
                command.args(["--listen", "nowhere", "--log", "a=b=c"]);
                command
            },
            codes::CONFIG_INVALID,
            "give an IP address",
        ),
    ] {
        let output = run(&mut command);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("error[{code}]")), "{said}");
        assert!(said.contains(help), "{said}");
        assert_eq!(
            said.matches("error[").count(),
            said.matches("help:").count(),
            "{said}"
        );
    }
}
