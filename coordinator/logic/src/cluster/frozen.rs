//! The whole state as data, to go on from in a replay.
//!
//! A recording ([`crate::recording`]) that begins in the middle of a
//! coordinator's life needs what was observed beside the records. What follows
//! from both (the ledger) is not written down, but counted anew.

use serde_json::Value;

use super::load::{self, LoadError};
use super::state::{Observed, Records};
use super::{Cluster, Settings};
use crate::record::{Key, Write};
use godwit_shared::model::Problem;

impl Cluster {
    /// What it was told of itself.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Every record, as a store would have it.
    pub fn frozen_records(&self) -> impl Iterator<Item = Result<Write, Problem>> {
        self.keys().map(|key| self.write_of(key))
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        // Whoever adds a kind of records is asked for it here.
        let Records {
            nodes,
            tokens,
            vms,
            migrations,
            tasks,
            plans,
            leases,
            events,
        } = &self.records;
        let things = nodes.keys().cloned().map(Key::Node);
        let things = things.chain(tokens.keys().cloned().map(Key::Token));
        let things = things.chain(vms.keys().copied().map(Key::Vm));
        let things = things.chain(leases.keys().cloned().map(Key::Lease));
        let acts = migrations.keys().copied().map(Key::Migration);
        let acts = acts.chain(tasks.keys().copied().map(Key::Task));
        let acts = acts.chain(plans.keys().copied().map(Key::Plan));
        let acts = acts.chain(events.iter().map(|event| Key::Event(event.seq)));
        things.chain(acts)
    }

    /// What it has observed beside the records.
    ///
    /// # Errors
    /// Never in practice: all of it is plain data.
    pub fn frozen_observed(&self) -> serde_json::Result<Value> {
        serde_json::to_value(&self.observed)
    }

    /// The state that was written down so.
    ///
    /// # Errors
    /// When one of both was written by a release that knew other things.
    pub fn thawed(
        settings: Settings,
        records: impl IntoIterator<Item = (String, Vec<u8>)>,
        observed: Value,
    ) -> Result<Self, LoadError> {
        let observed: Observed = serde_json::from_value(observed).map_err(LoadError::Observed)?;
        let mut cluster = Self {
            settings,
            records: load::read(records)?,
            observed,
        };
        cluster.begin_ledger();
        Ok(cluster)
    }
}

/// Maps whose keys are no text, as lists of pairs.
pub(super) mod pairs {
    use std::collections::HashMap;
    use std::hash::Hash;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in crate::cluster) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &HashMap<K, V>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub(in crate::cluster) fn deserialize<'de, K, V, D>(from: D) -> Result<HashMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Eq + Hash,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
    }
}
