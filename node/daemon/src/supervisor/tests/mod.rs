//! Domains with a real QEMU (TCG): most without a guest, the firmware's loop is
//! enough.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod guest;
mod lifecycle;
mod moving;
mod takeover;

use std::collections::BTreeMap;
use std::time::Duration;

use actix::prelude::*;
use godwit_shared::model::spec::SpecFormat;
use godwit_shared::model::{
    Capacity, DomainReport, DomainState, Epoch, LifecycleCommand, MiB, Problem, VmId, VmSpec,
};
use tokio::sync::OnceCell;
use tokio::sync::mpsc::UnboundedReceiver;

use super::messages::{Command, Define, Restored};
use super::{End, Supervisor, SupervisorContext};
use crate::bus::NodeBus;
use crate::domain::DomainActor;
use crate::domain::messages::{DomainSignal, Execute};
use crate::guard::Guard;
use crate::host::NodePaths;
use crate::journal::Journal;
use crate::qemu::probe::{Emulator, probe_all};
use crate::qemu::process::Qemu;

const DEADLINE: Duration = Duration::from_secs(60);

/// A node's supervisor in folders of its own.
struct Node {
    folder: tempfile::TempDir,
    bus: NodeBus,
    supervisor: Addr<Supervisor>,
}

async fn emulators() -> Vec<Emulator> {
    static FOUND: OnceCell<Vec<Emulator>> = OnceCell::const_new();
    let found = FOUND.get_or_init(|| async { probe_all(&BTreeMap::new()).await });
    found.await.clone()
}

impl Node {
    async fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("gw-")
            .tempdir_in("/tmp")
            .unwrap();
        let bus = NodeBus::new();
        let supervisor = Self::supervisor(&folder, &bus).await;
        Self {
            folder,
            bus,
            supervisor,
        }
    }

    async fn supervisor(folder: &tempfile::TempDir, bus: &NodeBus) -> Addr<Supervisor> {
        let paths = NodePaths {
            state_dir: folder.path().join("s"),
            run_dir: folder.path().join("r"),
        };
        paths.create().unwrap();
        let context = SupervisorContext {
            paths,
            bus: bus.clone(),
            boot_id: crate::host::boot_id().unwrap(),
            emulators: emulators().await,
            capacity: Capacity {
                vcpus: 8,
                memory: MiB(1024),
            },
            guard: Guard::none(),
        };
        Supervisor::new(context).start()
    }

    /// What a daemon's end and a new daemon's start are to the guests.
    async fn restart(&mut self) {
        self.supervisor.send(End).await.unwrap();
        self.bus = NodeBus::new();
        self.supervisor = Self::supervisor(&self.folder, &self.bus).await;
        self.supervisor.send(Restored).await.unwrap();
    }

    async fn define(&self, number: u128, more: &str) -> VmId {
        let vm = VmId::from_u128(number);
        let text = format!("name: vm-{number}\nmemory: 32\n{more}");
        let define = Define {
            vm,
            spec: VmSpec::parse(&text, SpecFormat::Yaml).unwrap(),
            epoch: Epoch::FIRST,
            machine: None,
        };
        self.supervisor.send(define).await.unwrap().unwrap();
        vm
    }

    async fn ask(&self, vm: VmId, command: LifecycleCommand) -> Result<DomainReport, Problem> {
        let epoch = self.bus.domain(vm).map_or(Epoch::FIRST, |r| r.epoch);
        let command = Command { vm, command, epoch };
        let sent = self.supervisor.send(command).timeout(DEADLINE);
        sent.await.expect("an answer in time")
    }

    async fn running(&self, number: u128) -> VmId {
        let vm = self.define(number, "").await;
        let report = self.ask(vm, LifecycleCommand::Start).await.unwrap();
        assert_eq!(report.state, DomainState::Running);
        vm
    }

    /// Waits on the bus until the domain's report is as wanted.
    async fn until(&self, vm: VmId, wanted: impl Fn(&DomainReport) -> bool) -> DomainReport {
        let mut news = self.bus.subscribe();
        let seen = async {
            loop {
                if let Some(report) = self.bus.domain(vm).filter(|report| wanted(report)) {
                    return report;
                }
                news.next().await;
            }
        };
        let last = || format!("{:?}", self.bus.domain(vm));
        tokio::time::timeout(DEADLINE, seen)
            .await
            .unwrap_or_else(|_| panic!("it never came so far: {}", last()))
    }

    async fn stopped(&self, vm: VmId) -> DomainReport {
        self.until(vm, |report| report.state == DomainState::Stopped)
            .await
    }

    fn files(&self, dir: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path().join(dir)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Node {
    /// Ends the QEMUs of a test that did not come to its end.
    fn drop(&mut self) {
        let domains = self.folder.path().join("s/domains");
        for entry in std::fs::read_dir(domains).into_iter().flatten().flatten() {
            let vm = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let record = vm.and_then(|vm| Journal::new(&entry.path()).read(vm).ok());
            let process = record.and_then(|record| record.run?.process);
            if let Some(qemu) = process.and_then(Qemu::adopt) {
                qemu.kill();
            }
        }
    }
}

/// A signal to a QEMU of the test.
/// Kills QEMU and waits until it has ended: a signal takes a moment, and a
/// daemon that comes in that moment still finds the process.
fn kill(report: &DomainReport) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let pid = Pid::from_raw(i32::try_from(report.pid.unwrap()).unwrap()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    signal(report, rustix::process::Signal::KILL);
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    let deadline = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut ended, Some(&deadline)).unwrap(), 1, "it lives on");
}

fn signal(report: &DomainReport, signal: rustix::process::Signal) {
    let pid = i32::try_from(report.pid.unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

async fn execute(domain: &Addr<DomainActor>, command: &'static str, arguments: serde_json::Value) {
    let message = Execute {
        command,
        arguments,
        deadline: DEADLINE,
    };
    domain.send(message).await.unwrap().unwrap();
}

/// Waits for the event that says so.
async fn migration_is(signals: &mut UnboundedReceiver<DomainSignal>, status: &str) {
    let wait = async {
        while let Some(signal) = signals.recv().await {
            if let DomainSignal::Qmp(event) = signal
                && event.text("status") == Some(status)
            {
                return;
            }
        }
        panic!("the signals ended");
    };
    let seen = tokio::time::timeout(DEADLINE, wait).await;
    assert!(seen.is_ok(), "the migration never was {status}");
}
