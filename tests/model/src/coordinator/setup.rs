//! The store that the coordinator begins with: three members, one VM, one
//! migration that was asked for.

use std::collections::{BTreeMap, BTreeSet};

use godwit_coordinator_logic::cluster::{Limits, MigrationLimits, RebalanceSettings, Settings};
use godwit_coordinator_logic::placement::Profiles;
use godwit_coordinator_logic::record::{Key, MigrationRecord, NodeRecord, VmRecord};
use godwit_shared::api::Marks;
use godwit_shared::model::{NodeFacts, RunState, VmSpec};
use serde::Serialize;
use serde_json::json;

use super::node::{FIRST, name};
use crate::world::{HOSTS, Host, NOW, VM, World, id_of};

/// What the cluster is told of itself.
pub(super) fn settings() -> Settings {
    Settings {
        name: String::new(),
        software: String::new(),
        ca_fingerprint: String::new(),
        started: NOW,
        placement: Profiles::default(),
        migrations: MigrationLimits::default(),
        rebalance: RebalanceSettings::default(),
        limits: Limits {
            // The log is part of no state here.
            events: 1,
            ..Limits::default()
        },
        fence_agents: BTreeSet::new(),
    }
}

/// The first records.
pub(super) fn store(world: &World) -> BTreeMap<String, Vec<u8>> {
    let mut store = BTreeMap::new();
    for n in 0..HOSTS {
        put(&mut store, &Key::Node(crate::node_id(n)), &member(n));
    }
    let Ok(spec) = VmSpec::from_value(json!({ "name": "vm", "memory": 64 })) else {
        return store;
    };
    let vm = vm(spec);
    put(&mut store, &Key::Vm(VM), &vm);
    if let Some((from, to)) = world.moves[0].route {
        let (from, to) = (crate::node_id(from), crate::node_id(to));
        let begun = MigrationRecord::queued(id_of(0), &vm, from, to, NOW);
        put(&mut store, &Key::Migration(id_of(0)), &begun);
    }
    store
}

fn put<T: Serialize>(store: &mut BTreeMap<String, Vec<u8>>, key: &Key, record: &T) {
    if let Ok(json) = serde_json::to_vec(record) {
        store.insert(key.to_string(), json);
    }
}

fn member(n: Host) -> NodeRecord {
    NodeRecord {
        name: crate::node_id(n),
        incarnation: 1,
        address: "192.0.2.1:7441".into(),
        cordoned: false,
        revoked: false,
        joined: NOW,
        unheard: false,
        facts: Some(NodeFacts::default()),
        marks: Marks::default(),
        told: Marks::default(),
    }
}

fn vm(spec: VmSpec) -> VmRecord {
    VmRecord {
        id: VM,
        name: name(),
        spec,
        desired: RunState::Running,
        owner: Some(crate::node_id(0)),
        epoch: FIRST,
        machine: None,
        created: NOW,
        deleting: false,
        seen: None,
        decision: None,
        rescue: None,
    }
}
