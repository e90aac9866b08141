//! With the test guest of `scripts/guest-image`: console, agent, power.

use std::path::PathBuf;

use bytes::Bytes;
use godwit_shared::model::{AgentState, DomainState, ExitReason, LifecycleCommand as C};

use super::*;
use crate::supervisor::messages::{AttachConsole, Console};

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
    assert!(String::from_utf8_lossy(&console.backlog).contains("count 3 "));
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
