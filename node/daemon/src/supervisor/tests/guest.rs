//! With the test guest of `scripts/guest-image`: console, agent, power.

use std::path::PathBuf;

use bytes::Bytes;
use godwit_shared::model::{AgentState, DomainState, ExitReason, LifecycleCommand as C};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::domain::messages::Subscribe;
use crate::migration::make_sure_it_runs;
use crate::supervisor::messages::{AttachConsole, Console, Lookup};

/// A spec's lines that boot the test guest.
fn guest(options: &str) -> String {
    let image = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.cache/guest/x86_64");
    let image = image
        .canonicalize()
        .expect("the test guest is built by scripts/guest-image");
    let image = image.display();
    format!(
        "memory: 192\nboot: {{kernel: '{image}/vmlinuz', initrd: '{image}/initrd.img', cmdline: 'console=ttyS0 quiet {options}'}}\n"
    )
}

impl Node {
    async fn boot(&self, number: u128, options: &str) -> VmId {
        let vm = VmId::from_u128(number);
        let text = format!("name: vm-{number}\n{}", guest(options));
        let define = Define {
            vm,
            spec: VmSpec::parse(&text, SpecFormat::Yaml).unwrap(),
            epoch: Epoch::FIRST,
            machine: None,
        };
        self.supervisor.send(define).await.unwrap().unwrap();
        self.ask(vm, C::Start).await.unwrap();
        vm
    }

    async fn attach(&self, vm: VmId, scrollback: u32) -> Console {
        let attach = AttachConsole { vm, scrollback };
        self.supervisor.send(attach).await.unwrap().unwrap()
    }
}

/// Reads until `wanted` has been printed.
async fn printed(console: &mut Console, wanted: &str) {
    let mut text = String::from_utf8_lossy(&console.backlog).into_owned();
    let read = async {
        while !text.contains(wanted) {
            let piece = console.output.recv().await.expect("the console goes on");
            text.push_str(&String::from_utf8_lossy(&piece));
        }
    };
    let read = tokio::time::timeout(DEADLINE, read).await;
    assert!(read.is_ok(), "`{wanted}` never came: {text}");
}

/// QEMU logs a byte at each try to send it: a daemon that is slow to read its
/// socket finds some of them twice in the log, which the scrollback begins with.
fn without_repeats(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    bytes.dedup();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[actix::test]
async fn a_guest_is_watched_typed_to_and_shut_down_by_its_agent() {
    let mut node = Node::new().await;
    let vm = node.boot(1, "godwit.count=50ms").await;
    let mut console = node.attach(vm, 65_536).await;
    printed(&mut console, "count 3 ").await;
    node.until(vm, |report| report.agent == AgentState::Connected)
        .await;
    // The next daemon has the scrollback, and knows of the agent.
    node.restart().await;
    while console.output.recv().await.is_some() {}
    let mut console = node.attach(vm, 65_536).await;
    let backlog = String::from_utf8_lossy(&console.backlog);
    assert!(
        without_repeats(&backlog).contains(&without_repeats("count 3 ")),
        "{backlog}"
    );
    printed(&mut console, "count 9").await;
    let report = node
        .until(vm, |report| report.agent == AgentState::Connected)
        .await;
    assert_eq!(report.state, DomainState::Running);
    let report = node.ask(vm, C::Shutdown).await.unwrap();
    assert!(matches!(
        report.state,
        DomainState::ShuttingDown | DomainState::Stopped
    ));
    let report = node.stopped(vm).await;
    assert_eq!(report.exit, Some(ExitReason::GuestShutdown));
    while console.output.recv().await.is_some() {}
}

#[actix::test]
async fn a_guest_powers_off_and_panics_by_itself() {
    let node = Node::new().await;
    let vm = node.boot(1, "godwit.count=50ms").await;
    let mut console = node.attach(vm, 0).await;
    printed(&mut console, "count 3 ").await;
    console
        .input
        .send(Bytes::from_static(b"crash\n"))
        .await
        .unwrap();
    let report = node
        .until(vm, |report| report.state == DomainState::Crashed)
        .await;
    assert!(report.problem.unwrap().message.contains("panicked"));
    node.ask(vm, C::Reset).await.unwrap();
    // The first console goes on over the reset.
    printed(&mut console, "count 3 ").await;
    console
        .input
        .send(Bytes::from_static(b"poweroff\n"))
        .await
        .unwrap();
    let report = node.stopped(vm).await;
    assert_eq!(report.exit, Some(ExitReason::GuestShutdown));
}

/// Slower than QEMU writes: the socket is always full.
async fn read_slowly(mut channel: UnixStream) {
    let mut piece = vec![0; 64 * 1024];
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    while channel.read(&mut piece).await.is_ok_and(|read| read > 0) {
        pace.tick().await;
    }
}

/// Channels that are full when the guest is stopped, and break then: QEMU's
/// migration is `failed` while its thread still waits to be told to go on.
#[actix::test]
async fn a_migration_that_fails_while_it_waits_lets_the_guest_go_on() {
    let node = Node::new().await;
    let vm = node.boot(1, "godwit.count=50ms").await;
    let mut console = node.attach(vm, 0).await;
    printed(&mut console, "count 3 ").await;
    let found = node.supervisor.send(Lookup { vm }).await.unwrap();
    let domain = found.unwrap();
    let mut signals = domain.send(Subscribe).await.unwrap();
    let on = |name: &str| json!({"capability": name, "state": true});
    let capabilities = ["events", "multifd", "pause-before-switchover"].map(on);
    let capabilities = json!({ "capabilities": capabilities });
    execute(&domain, "migrate-set-capabilities", capabilities).await;
    // It switches over with the guest's memory in its channels.
    let parameters = json!({
        "multifd-channels": 2, "downtime-limit": 2_000_000,
        "avail-switchover-bandwidth": 1_u64 << 40, "max-bandwidth": 1,
    });
    execute(&domain, "migrate-set-parameters", parameters).await;
    let socket = node.folder.path().join("m");
    let listener = UnixListener::bind(&socket).unwrap();
    let readers = tokio::spawn(async move {
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..3 {
            readers.spawn(read_slowly(listener.accept().await.unwrap().0));
        }
        readers
    });
    let uri = json!({"uri": format!("unix:{}", socket.display())});
    execute(&domain, "migrate", uri).await;
    let mut readers = readers.await.unwrap();
    migration_is(&mut signals, "pre-switchover").await;
    readers.shutdown().await;
    migration_is(&mut signals, "failed").await;
    make_sure_it_runs(&domain).await.unwrap();
    node.until(vm, |report| report.state == DomainState::Running)
        .await;
    node.ask(vm, C::Stop).await.unwrap();
}
