//! What a coordinator's daemon writes down of its steps, and the replay of it.
//!
//! A recording is a text file that common tools can look into (`cut -d' ' -f3-
//! FILE | jq`): one entry a line, as [`line`](mod@line) frames it.
//!
//! ```text
//! godwit-recording 1
//! LENGTH SUM {"began": ...}       settings, and how many steps came before
//! LENGTH SUM {"record": ...}      every record, as the store has it
//! LENGTH SUM {"loaded": ...}      the daemon started here, and what it did first ...
//! LENGTH SUM {"observed": ...}    ... or it ran before, and has observed this
//! LENGTH SUM {"step": ...}        an input, its time, what came of it, its effects
//! ```
//!
//! Each file begins with the whole state, so each can be replayed alone: the
//! production logic is given the same inputs at the same times, and has to
//! decide the same ([`replay`]).
//!
//! Entries are JSON, not the wire's bincode: an input holds specs and requests
//! whose forms (fields that are left out, tagged enums) only a self-describing
//! format can read back, as on the wire, where they travel as documents.
//!
//! No secret comes into a recording. The state machine knows of join tokens
//! only what their secrets hash to (256 bits at random), and of nobody's keys or
//! passwords; what guests print, which may be anything, is left out
//! ([`REDACTED`]). Specs are in it as operators wrote them, as they are in the
//! store: a recording is as confidential as the store.

pub mod line;
pub mod replay;
#[cfg(test)]
mod tests;

use godwit_shared::model::{BootMillis, Problem, UnixMillis};
use godwit_shared::wire::uplink::{NodeMessage, NodeReply};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::{Cluster, Settings};
use crate::effect::{Answer, Effect};
use crate::input::{Input, Output};
use crate::record::Write;

/// Stands where something was left out.
pub const REDACTED: &str = "(not recorded)";

/// One line of a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "entries live for one line")]
pub enum Entry {
    /// The first: what it is a recording of.
    Began(Began),
    /// A record of the state that the steps begin from.
    Record {
        /// Its key.
        key: String,
        /// The record.
        value: Value,
    },
    /// The daemon started from those records, and did this first.
    Loaded {
        /// When.
        now: UnixMillis,
        /// The effects.
        effects: Vec<Value>,
    },
    /// The daemon ran before, and had observed this.
    Observed(Value),
    /// A step.
    Step(Step),
}

/// What a recording is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Began {
    /// The coordinator's settings, its version among them.
    pub settings: Settings,
    /// Steps that the daemon had taken before.
    pub steps: u64,
}

/// What the clocks say of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// Operators' clock.
    pub now: UnixMillis,
    /// The one that leases are counted by.
    pub steady: BootMillis,
}

/// A step as it was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Counts the daemon's steps, from 1.
    pub number: u64,
    /// When.
    pub clocks: Clocks,
    /// The input.
    pub input: Input,
    /// What the input's author was told.
    pub outcome: Value,
    /// What was done.
    pub effects: Vec<Value>,
}

/// A step that was just taken, to be written down elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// When.
    pub clocks: Clocks,
    /// The input.
    pub input: Input,
    /// What the input's author was told.
    pub outcome: Result<Output, Problem>,
    /// What was done.
    pub effects: Vec<Effect>,
}

impl Taken {
    /// The step with that number, without what is not recorded.
    ///
    /// # Errors
    /// When something is not plain data, which is a bug.
    pub fn entry(mut self, number: u64) -> serde_json::Result<Entry> {
        redact_input(&mut self.input);
        Ok(Entry::Step(Step {
            number,
            clocks: self.clocks,
            input: self.input,
            outcome: serde_json::to_value(&self.outcome)?,
            effects: values(self.effects)?,
        }))
    }
}

/// The records as entries.
pub fn records(
    records: impl IntoIterator<Item = (String, Vec<u8>)>,
) -> impl Iterator<Item = serde_json::Result<Entry>> {
    records.into_iter().map(|(key, value)| {
        let value = serde_json::from_slice(&value)?;
        Ok(Entry::Record { key, value })
    })
}

/// What a daemon that has started from its store writes first, behind the
/// records.
///
/// # Errors
/// When something is not plain data, which is a bug.
pub fn loaded(now: UnixMillis, effects: Vec<Effect>) -> serde_json::Result<Entry> {
    let effects = values(effects)?;
    Ok(Entry::Loaded { now, effects })
}

/// What a new file of a daemon that runs begins with.
pub fn frozen(
    cluster: &Cluster,
    steps: u64,
) -> impl Iterator<Item = Result<Entry, Problem>> + use<'_> {
    let began = Entry::Began(Began {
        settings: cluster.settings().clone(),
        steps,
    });
    let records = cluster.frozen_records().filter_map(|write| match write {
        Ok(Write::Put { key, value }) => Some(record(key.to_string(), &value)),
        Ok(Write::Delete { .. }) => None,
        Err(problem) => Some(Err(problem)),
    });
    let observed = std::iter::once_with(|| {
        let observed = cluster.frozen_observed().map_err(Problem::internal)?;
        Ok(Entry::Observed(observed))
    });
    std::iter::once(Ok(began)).chain(records).chain(observed)
}

fn record(key: String, value: &[u8]) -> Result<Entry, Problem> {
    let value = serde_json::from_slice(value).map_err(Problem::internal)?;
    Ok(Entry::Record { key, value })
}

/// Effects as they are written down, and compared.
pub(crate) fn values(effects: Vec<Effect>) -> serde_json::Result<Vec<Value>> {
    let effects = effects.into_iter().map(|mut effect| {
        redact_effect(&mut effect);
        serde_json::to_value(&effect)
    });
    effects.collect()
}

fn redact_input(input: &mut Input) {
    let Input::Message { message, .. } = input else {
        return;
    };
    if let NodeMessage::Reply {
        outcome: Ok(NodeReply::Log(text)),
        ..
    } = message
    {
        REDACTED.clone_into(text);
    }
}

fn redact_effect(effect: &mut Effect) {
    if let Effect::Answer {
        outcome: Ok(Answer::Log(text)),
        ..
    } = effect
    {
        REDACTED.clone_into(text);
    }
}
