//! One step in the making: what it changed and what is to be done.
//!
//! Handlers mark the keys that they change. At the end the marked records are
//! read from the state as it is then, so what is persisted cannot differ from
//! what is in memory.

use std::collections::BTreeSet;

use godwit_shared::api::Event;
use godwit_shared::model::{
    MigrationId, Millis, NodeId, Problem, TaskId, UnixMillis, VmId, VmName,
};
use godwit_shared::wire::uplink::{CoordinatorMessage, NodeRequest};
use serde::Serialize;

use super::Cluster;
use super::state::{Pending, Purpose};
use crate::effect::{Effect, Timer};
use crate::record::{Key, Write};

/// One step in the making.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) now: UnixMillis,
    dirty: BTreeSet<Key>,
    acts: Vec<Effect>,
    events: Vec<Event>,
    tasks: BTreeSet<TaskId>,
}

/// What an event is about.
#[derive(Debug, Clone, Default)]
pub(super) struct About {
    pub(super) vm: Option<VmName>,
    pub(super) node: Option<NodeId>,
    pub(super) migration: Option<MigrationId>,
    pub(super) task: Option<TaskId>,
}

impl About {
    pub(super) fn node(node: &NodeId) -> Self {
        Self {
            node: Some(node.clone()),
            ..Self::default()
        }
    }

    pub(super) fn vm(name: &VmName, node: Option<&NodeId>) -> Self {
        Self {
            vm: Some(name.clone()),
            node: node.cloned(),
            ..Self::default()
        }
    }
}

impl Turn {
    pub(super) const fn new(now: UnixMillis) -> Self {
        Self {
            now,
            dirty: BTreeSet::new(),
            acts: Vec::new(),
            events: Vec::new(),
            tasks: BTreeSet::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.dirty.is_empty() && self.acts.is_empty() && self.events.is_empty()
    }

    /// The record at that key was changed, made or taken away.
    pub(super) fn touch(&mut self, key: Key) {
        self.dirty.insert(key);
    }

    /// What was touched.
    pub(super) fn touched(&self) -> impl Iterator<Item = &Key> {
        self.dirty.iter()
    }

    pub(super) fn act(&mut self, effect: Effect) {
        self.acts.push(effect);
    }

    pub(super) fn arm(&mut self, task: TaskId, at: UnixMillis) {
        self.acts.push(Effect::Arm {
            timer: Timer::Task(task),
            at,
        });
    }

    /// Those who wait for the task have something new to see.
    pub(super) fn task_changed(&mut self, task: TaskId) {
        self.tasks.insert(task);
    }

    pub(super) fn emit(&mut self, event: Event) {
        self.touch(Key::Event(event.seq));
        self.events.push(event);
    }
}

impl Cluster {
    /// Ends the step: the writes first, then the acts, then the news.
    pub(super) fn finish(&self, turn: Turn, effects: &mut Vec<Effect>) -> Result<(), Problem> {
        let writes = turn
            .dirty
            .into_iter()
            .map(|key| self.write_of(key))
            .collect::<Result<Vec<Write>, Problem>>()?;
        if !writes.is_empty() {
            effects.push(Effect::Persist(writes));
        }
        effects.extend(turn.acts);
        effects.extend(turn.events.into_iter().map(Effect::Emit));
        let views = turn.tasks.into_iter().filter_map(|id| self.task(id).ok());
        effects.extend(views.map(Effect::TaskChanged));
        Ok(())
    }

    pub(super) fn write_of(&self, key: Key) -> Result<Write, Problem> {
        let records = &self.records;
        let value = match &key {
            Key::Node(id) => json(records.nodes.get(id)),
            Key::Token(id) => json(records.tokens.get(id)),
            Key::Vm(id) => json(records.vms.get(id)),
            Key::Migration(id) => json(records.migrations.get(id)),
            Key::Task(id) => json(records.tasks.get(id)),
            Key::Plan(id) => json(records.plans.get(id)),
            Key::Event(seq) => json(self.event(*seq)),
            Key::Lease(node) => json(records.leases.get(node)),
        }?;
        Ok(match value {
            Some(value) => Write::Put { key, value },
            None => Write::Delete { key },
        })
    }

    /// Asks a node, when it is connected. The number of the request.
    pub(super) fn ask(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        purpose: Purpose,
        body: NodeRequest,
        deadline: Millis,
    ) -> Option<u64> {
        let session = self.session(node)?;
        self.observed.last_request += 1;
        let request = self.observed.last_request;
        let pending = Pending {
            node: node.clone(),
            session,
            purpose,
        };
        self.observed.requests.insert(request, pending);
        turn.act(Effect::Request {
            node: node.clone(),
            session,
            request,
            body,
            deadline,
        });
        Some(request)
    }

    /// Tells a node, when it is connected.
    pub(super) fn tell(&self, turn: &mut Turn, node: &NodeId, message: CoordinatorMessage) {
        if let Some(session) = self.session(node) {
            turn.act(Effect::Send {
                node: node.clone(),
                session,
                message,
            });
        }
    }

    /// An event about a VM, wherever it is.
    pub(super) fn about_vm(&self, vm: VmId) -> About {
        About {
            vm: self.records.vms.get(&vm).map(|record| record.name.clone()),
            ..About::default()
        }
    }

    /// The name of a VM for messages; its id where it has none any more.
    pub(super) fn name_of(&self, vm: VmId) -> String {
        self.records
            .vms
            .get(&vm)
            .map_or_else(|| vm.to_string(), |record| record.name.to_string())
    }
}

fn json<T: Serialize>(record: Option<&T>) -> Result<Option<Vec<u8>>, Problem> {
    record
        .map(|record| serde_json::to_vec(record).map_err(Problem::internal))
        .transpose()
}
