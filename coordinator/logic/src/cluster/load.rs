//! From the store's records to a [`Cluster`].

use godwit_shared::api::NodeHealth;
use godwit_shared::model::UnixMillis;

use super::state::{Move, NodeState, Observed, Patience, Records, Work};
use super::{Cluster, Settings};
use crate::effect::{Effect, Timer};
use crate::record::{Key, Record, TaskKind, UnknownKey};

/// Why the records of a store cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A key of a later release, or of something else.
    #[error(
        "the store holds something that this release does not know; use the release that wrote it"
    )]
    Key(#[from] UnknownKey),
    /// A record that cannot be read.
    #[error("the record at `{key}` cannot be read; restore the store from a backup")]
    Record {
        /// Where it is.
        key: Key,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// What was observed in a recording cannot be read.
    #[error("what the recording says was observed cannot be read; use the release that wrote it")]
    Observed(#[source] serde_json::Error),
}

impl Cluster {
    /// Takes every `(key, value)` that the store has under [`Key::PREFIX`], in
    /// any order. An empty store gives an empty cluster. The effects are
    /// timers: tasks that were under way wait for their nodes' hellos, but not
    /// for ever.
    pub fn load(
        settings: Settings,
        now: UnixMillis,
        records: impl IntoIterator<Item = (String, Vec<u8>)>,
        effects: &mut Vec<Effect>,
    ) -> Result<Self, LoadError> {
        let mut cluster = Self {
            settings,
            records: read(records)?,
            observed: Observed::default(),
        };
        cluster.index_members(now);
        cluster.index_vms();
        cluster.index_migrations();
        cluster.index_tasks(now, effects);
        cluster.index_plans(effects);
        cluster.begin_ledger();
        cluster.observed.roster.mark = cluster.count_mark();
        cluster.arm_rebalance(now, &mut |effect| effects.push(effect));
        Ok(cluster)
    }

    fn index_members(&mut self, now: UnixMillis) {
        for record in self.records.nodes.values().filter(|node| !node.revoked) {
            let since = if record.unheard {
                "the store was restored"
            } else {
                "the coordinator was started"
            };
            let state = match record.facts {
                Some(_) => NodeState {
                    reason: Some(format!("it has not connected since {since}")),
                    ..NodeState::new(NodeHealth::Down, now)
                },
                None => NodeState::new(NodeHealth::New, record.joined),
            };
            self.observed.nodes.insert(record.name.clone(), state);
        }
    }

    fn index_vms(&mut self) {
        let names = self.records.vms.values().map(|vm| (vm.name.clone(), vm.id));
        self.observed.names = names.collect();
    }

    fn index_migrations(&mut self) {
        let observed = &mut self.observed;
        let mut ended = Vec::new();
        for record in self.records.migrations.values() {
            if record.phase.is_final() {
                ended.push((record.ended, record.id));
                continue;
            }
            observed.moving.insert(record.vm, record.id);
            if record.waiting {
                let reason = record.waits_for.clone().unwrap_or_default();
                observed.waiting.insert(record.id, reason);
            }
            let known = Move {
                progress: record.progress,
                ..Move::default()
            };
            observed.moves.insert(record.id, known);
        }
        ended.sort_unstable();
        observed.ended_migrations = ended.into_iter().map(|(_, id)| id).collect();
    }

    /// They go on with the nodes' hellos; a node that has not come back after a
    /// while is not waited for.
    fn index_plans(&mut self, effects: &mut Vec<Effect>) {
        let plans = self.records.plans.values();
        let running = plans.filter(|plan| !plan.view.state.is_final());
        self.observed.plans = running.map(|plan| plan.view.id).collect();
        if !self.observed.plans.is_empty() {
            let at = self.settings.started.after(self.settings.limits.absence);
            self.observed.plans_at = Some(at);
            let timer = Timer::Plans;
            effects.push(Effect::Arm { timer, at });
        }
    }

    fn index_tasks(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        let observed = &mut self.observed;
        let until = now.after(self.settings.limits.absence);
        let mut ended = Vec::new();
        for record in self.records.tasks.values() {
            if record.state.is_final() {
                ended.push((record.ended, record.id));
                continue;
            }
            observed.busy.insert(record.vm, record.id);
            let mut work = Work {
                message: "taken up after a restart of the coordinator".into(),
                sent: true,
                ..Work::default()
            };
            // A migration goes on without the coordinator; its end is awaited.
            if record.kind != TaskKind::Migrate {
                work.patience = Some((Patience::Absence, until));
                effects.push(Effect::Arm {
                    timer: Timer::Task(record.id),
                    at: until,
                });
            }
            observed.work.insert(record.id, work);
        }
        ended.sort_unstable();
        observed.ended_tasks = ended.into_iter().map(|(_, id)| id).collect();
    }
}

pub(super) fn read(
    records: impl IntoIterator<Item = (String, Vec<u8>)>,
) -> Result<Records, LoadError> {
    let mut all = Records::default();
    let mut events = std::collections::BTreeMap::new();
    for (key, value) in records {
        let key: Key = key.parse()?;
        let record = match Record::read(&key, &value) {
            Ok(record) => record,
            Err(source) => return Err(LoadError::Record { key, source }),
        };
        match record {
            Record::Node(node) => drop(all.nodes.insert(node.name.clone(), node)),
            Record::Token(token) => drop(all.tokens.insert(token.id.clone(), token)),
            Record::Vm(vm) => drop(all.vms.insert(vm.id, vm)),
            Record::Migration(migration) => {
                all.migrations.insert(migration.id, migration);
            }
            Record::Task(task) => drop(all.tasks.insert(task.id, task)),
            Record::Plan(plan) => drop(all.plans.insert(plan.view.id, plan)),
            Record::Lease(lease) => drop(all.leases.insert(lease.node.clone(), lease)),
            Record::Event(event) => drop(events.insert(event.seq, event)),
        }
    }
    all.events = events.into_values().collect();
    Ok(all)
}
