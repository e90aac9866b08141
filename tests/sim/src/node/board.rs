//! What a node tells its coordinator.

use std::collections::BTreeMap;

use godwit_shared::model::capacity::EmulatorFacts;
use godwit_shared::model::spec::{Accelerator, Architecture};
use godwit_shared::model::{
    AgentState, Capacity, DomainReport, MiB, MigrationFigures, MigrationId, MigrationPhase,
    MigrationProgress, NodeFacts, Problem, VmId,
};
use godwit_shared::wire::document::Document;
use godwit_shared::wire::uplink::{MigrationReport, NodeHello, NodeMessage};

use crate::agenda::{N, node_id};
use crate::mutant::Mutant;
use crate::sim::{MEMORY, Sim};

fn facts(memory: u64) -> NodeFacts {
    NodeFacts {
        software: "0.1.0".into(),
        capacity: Capacity {
            vcpus: 64,
            memory: MiB(memory),
        },
        emulators: vec![EmulatorFacts {
            architecture: Architecture::X86_64,
            path: "/usr/bin/qemu-system-x86_64".into(),
            version: "10.0.2".into(),
            accelerators: vec![Accelerator::Tcg],
            machines: vec!["pc-q35-10.0".into()],
            machine_aliases: BTreeMap::from([("q35".into(), "pc-q35-10.0".into())]),
            cpus: Vec::new(),
        }],
        address: "192.0.2.1:7441".into(),
        ..NodeFacts::default()
    }
}

impl Sim {
    /// The first message of a session.
    pub(crate) fn hello(&self, n: N) -> Result<NodeHello, Problem> {
        let memory = match self.mutates(Mutant::NoLedger) {
            true => MEMORY * 2,
            false => MEMORY,
        };
        let node = &self.nodes[n];
        let domains = node.domains.keys().filter_map(|vm| self.report_of(n, *vm));
        Ok(NodeHello {
            facts: Document::of(&facts(memory))?,
            domains: domains.collect(),
            migrations: node.reports.values().cloned().collect(),
        })
    }

    /// What a node says of a domain.
    pub(crate) fn report_of(&self, n: N, vm: VmId) -> Option<DomainReport> {
        let actor = self.nodes[n].domains.get(&vm)?;
        let view = actor.machine.view();
        Some(DomainReport {
            vm,
            name: actor.spec.name.clone(),
            epoch: view.epoch,
            owner: view.owner,
            state: view.state,
            since: view.since,
            exit: view.exit,
            problem: view.problem,
            agent: AgentState::Absent,
            pid: view.state.has_process().then_some(1),
            migration: view.migration,
            machine: Some("pc-q35-10.0".into()),
            accelerator: Some("tcg".into()),
            usage: None,
        })
    }

    /// Tells of a domain.
    pub(crate) fn publish(&mut self, n: N, vm: VmId) {
        if let Some(report) = self.report_of(n, vm) {
            self.say_up(n, NodeMessage::Domain(report));
        }
    }

    /// Tells that a domain is gone.
    pub(crate) fn publish_gone(&mut self, n: N, vm: VmId) {
        self.say_up(n, NodeMessage::DomainGone(vm));
    }

    /// Tells of a migration that leaves.
    pub(crate) fn publish_move(&mut self, n: N, m: MigrationId, phase: MigrationPhase) {
        let now = self.clock();
        let Some(outgoing) = self.nodes[n].outgoing.get(&m) else {
            return;
        };
        let report = MigrationReport {
            migration: m,
            vm: outgoing.vm,
            source: node_id(n),
            target: outgoing.record.target.node.clone(),
            phase,
            since: now,
            started: outgoing.record.started,
            progress: MigrationProgress::default(),
            blackout: None,
            figures: MigrationFigures::default(),
            failure: None,
            epoch: outgoing.epoch,
        };
        self.nodes[n].reports.insert(m, report.clone());
        self.say_up(n, NodeMessage::Migration(report));
    }
}
