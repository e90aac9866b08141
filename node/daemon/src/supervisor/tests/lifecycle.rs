//! One daemon, one domain or two.

use std::time::Instant;

use godwit_shared::model::{DomainState, ExitReason, LifecycleCommand as C, codes};
use rustix::process::Signal;

use super::*;
use crate::supervisor::messages::{AttachConsole, ReadLog};
use godwit_shared::wire::uplink::LogKind;

#[actix::test]
async fn a_domain_lives_its_life() {
    let node = Node::new().await;
    let vm = node.define(1, "").await;
    assert_eq!(node.bus.domain(vm).unwrap().state, DomainState::Stopped);
    let report = node.ask(vm, C::Start).await.unwrap();
    assert_eq!(report.state, DomainState::Running);
    assert!(report.owner && report.pid.is_some());
    assert!(report.machine.unwrap().starts_with("pc-q35-"));
    assert_eq!(report.accelerator.as_deref(), Some("tcg"));
    for (command, state) in [
        (C::Start, DomainState::Running),
        (C::Pause, DomainState::Paused),
        (C::Reset, DomainState::Paused),
        (C::Resume, DomainState::Running),
        (C::Reset, DomainState::Running),
        (C::Reboot, DomainState::Running),
    ] {
        assert_eq!(
            node.ask(vm, command).await.unwrap().state,
            state,
            "{command}"
        );
    }
    assert_eq!(
        node.ask(vm, C::Delete).await.unwrap_err().code,
        codes::STATE_CONFLICT
    );
    let report = node.ask(vm, C::Stop).await.unwrap();
    assert_eq!(
        (report.state, report.exit),
        (DomainState::Stopped, Some(ExitReason::Stopped))
    );
    assert_eq!(report.pid, None);
    assert!(node.files("r").is_empty(), "{:?}", node.files("r"));
    node.ask(vm, C::Delete).await.unwrap();
    assert_eq!(node.bus.domain(vm), None);
    assert!(node.files("s/domains").is_empty());
    assert_eq!(
        node.ask(vm, C::Start).await.unwrap_err().code,
        codes::NOT_FOUND
    );
}

#[actix::test]
async fn a_killed_qemu_is_a_crash_and_can_be_started_again() {
    let node = Node::new().await;
    let vm = node.running(1).await;
    signal(&node.bus.domain(vm).unwrap(), Signal::KILL);
    let report = node.stopped(vm).await;
    let detail = "killed by signal 9".to_owned();
    assert_eq!(report.exit, Some(ExitReason::Crashed { detail }));
    assert!(node.files("r").is_empty());
    let report = node.ask(vm, C::Start).await.unwrap();
    assert_eq!((report.state, &report.exit), (DomainState::Running, &None));
    // Somebody on the host ends it in a friendlier way.
    signal(&report, Signal::TERM);
    let Some(ExitReason::Crashed { detail }) = node.stopped(vm).await.exit else {
        panic!();
    };
    assert!(detail.contains("host-signal"), "{detail}");
}

#[actix::test]
async fn a_wrong_machine_fails_with_qemus_words() {
    let node = Node::new().await;
    let vm = node.define(1, "machine: pc-q35-99.9\n").await;
    let problem = node.ask(vm, C::Start).await.unwrap_err();
    assert_eq!(problem.code, codes::QEMU_START);
    assert!(
        problem.message.contains("unsupported machine type"),
        "{problem}"
    );
    let report = node.stopped(vm).await;
    let Some(ExitReason::FailedToStart { error }) = report.exit else {
        panic!("{report:?}");
    };
    assert!(error.contains("unsupported machine type"), "{error}");
    let log = ReadLog {
        vm,
        kind: LogKind::Qemu,
        lines: 10,
    };
    let log = node.supervisor.send(log).await.unwrap().unwrap();
    assert!(log.contains("unsupported machine type"), "{log}");
}

#[actix::test]
async fn what_does_not_fit_is_refused_before_qemu_starts() {
    let node = Node::new().await;
    let vm = node.define(1, "cpu: {count: 9}\n").await;
    let problem = node.ask(vm, C::Start).await.unwrap_err();
    assert_eq!(problem.code, codes::INSUFFICIENT_RESOURCES);
    let arm = node
        .define(2, "architecture: ppc64\naccelerator: kvm\n")
        .await;
    assert_eq!(
        node.ask(arm, C::Start).await.unwrap_err().code,
        codes::QEMU_START
    );
    assert_eq!(node.stopped(vm).await.exit, None);
    // What it would have taken is free.
    let small = node.define(3, "cpu: {count: 8}\n").await;
    node.ask(small, C::Start).await.unwrap();
    node.ask(small, C::Stop).await.unwrap();
}

#[actix::test]
async fn definitions_change_while_stopped_only() {
    let node = Node::new().await;
    let vm = node.running(1).await;
    let define = |count: u32| {
        let text = format!("name: vm-1\nmemory: 32\ncpu: {{count: {count}}}\n");
        Define {
            vm,
            spec: VmSpec::parse(&text, SpecFormat::Yaml).unwrap(),
            epoch: Epoch::FIRST,
            machine: None,
        }
    };
    node.supervisor.send(define(1)).await.unwrap().unwrap();
    let refused = node.supervisor.send(define(2)).await.unwrap().unwrap_err();
    assert_eq!(refused.code, codes::STATE_CONFLICT);
    node.ask(vm, C::Stop).await.unwrap();
    node.supervisor.send(define(2)).await.unwrap().unwrap();
    node.ask(vm, C::Start).await.unwrap();
    node.ask(vm, C::Stop).await.unwrap();
}

#[actix::test]
async fn a_stopped_process_is_seen_and_holds_up_nobody_else() {
    let node = Node::new().await;
    let (hung, other) = (node.running(1).await, node.running(2).await);
    let report = node.bus.domain(hung).unwrap();
    signal(&report, Signal::STOP);
    let asked = node.supervisor.send(Command {
        vm: hung,
        command: C::Pause,
        epoch: Epoch::FIRST,
    });
    let before = Instant::now();
    node.ask(other, C::Pause).await.unwrap();
    node.ask(other, C::Resume).await.unwrap();
    assert!(
        before.elapsed() < Duration::from_secs(3),
        "{:?}",
        before.elapsed()
    );
    let silent = node
        .until(hung, |report| report.state == DomainState::Unresponsive)
        .await;
    assert_eq!(silent.problem.unwrap().code, codes::QEMU_TIMEOUT);
    assert_eq!(asked.await.unwrap().unwrap_err().code, codes::QEMU_TIMEOUT);
    signal(&report, Signal::CONT);
    // The pause that was given up is carried out late, and is seen.
    let report = node
        .until(hung, |report| report.state == DomainState::Paused)
        .await;
    assert_eq!(report.problem, None);
    node.ask(hung, C::Stop).await.unwrap();
    node.ask(other, C::Stop).await.unwrap();
}

#[actix::test]
async fn a_hung_qemu_can_be_stopped() {
    let node = Node::new().await;
    let vm = node.running(1).await;
    signal(&node.bus.domain(vm).unwrap(), Signal::STOP);
    let report = node.ask(vm, C::Stop).await.unwrap();
    assert_eq!(report.exit, Some(ExitReason::Stopped));
}

#[actix::test]
async fn consoles_and_logs_of_what_is_not_there_are_refused() {
    let node = Node::new().await;
    let vm = node.define(1, "serial: false\n").await;
    let attach = AttachConsole { vm, scrollback: 0 };
    let refused = node.supervisor.send(attach).await.unwrap().unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("serial"));
    let vm = VmId::from_u128(9);
    let attach = AttachConsole { vm, scrollback: 0 };
    let refused = node.supervisor.send(attach).await.unwrap().unwrap_err();
    assert_eq!(refused.code, codes::NOT_FOUND);
}
