//! The production logic, given what a recording says, has to decide the same.

use godwit_shared::model::{Problem, UnixMillis};
use serde_json::Value;

use super::{Began, Clocks, Entry, Step, values};
use crate::cluster::{Cluster, LoadError};
use crate::effect::Effect;
use crate::input::{Input, Output};

/// What takes a step: [`Cluster::step_at`], or that with a bug.
pub type Logic<'a> =
    &'a mut dyn FnMut(&mut Cluster, Clocks, Input, &mut Vec<Effect>) -> Result<Output, Problem>;

/// Why a recording cannot be replayed on.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It begins with something else than it should, or says it twice.
    #[error("an entry of the recording is not where it belongs")]
    Order,
    /// Steps are missing.
    #[error("step {found} of the recording comes where step {expected} belongs")]
    Missing {
        /// The one that should come.
        expected: u64,
        /// The one that comes.
        found: u64,
    },
    /// The state cannot be taken.
    #[error("the recording's state cannot be taken")]
    State(#[from] LoadError),
    /// Something is not plain data, which is a bug.
    #[error("what came of a step cannot be compared")]
    Data(#[from] serde_json::Error),
}

/// A record's key and its JSON.
type Stored = (String, Vec<u8>);

/// A cluster that goes through a recording again.
#[derive(Debug, Default)]
pub struct Replay {
    began: Option<Began>,
    records: Vec<Stored>,
    cluster: Option<Cluster>,
    steps: u64,
}

/// A step taken again; the first has no input where the recording begins with
/// the daemon's start.
#[derive(Debug)]
pub struct Played {
    /// Its number.
    pub number: u64,
    /// The clock.
    pub now: UnixMillis,
    /// The input.
    pub input: Option<Input>,
    /// What was done.
    pub effects: Vec<Effect>,
    /// Where it went otherwise than recorded.
    pub difference: Option<Difference>,
}

/// Where a step went otherwise than recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Which part of the step.
    pub part: String,
    /// What the recording says; none where there is less in it.
    pub recorded: Option<Value>,
    /// What was decided now; none where there is less of it.
    pub replayed: Option<Value>,
}

impl Replay {
    /// The state after the last step.
    pub const fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// The number of the last step.
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes the next entry; something was played when it was a step, or the
    /// daemon's start.
    ///
    /// # Errors
    /// When the recording does not hold together.
    pub fn feed(&mut self, entry: Entry, logic: Logic<'_>) -> Result<Option<Played>, ReplayError> {
        match entry {
            Entry::Began(began) if self.began.is_none() => {
                self.steps = began.steps;
                self.began = Some(began);
                Ok(None)
            }
            Entry::Record { key, value } if self.cluster.is_none() => {
                self.records.push((key, serde_json::to_vec(&value)?));
                Ok(None)
            }
            Entry::Loaded { now, effects } => self.load(now, &effects).map(Some),
            Entry::Observed(observed) => {
                let (began, records) = self.state()?;
                let thawed = Cluster::thawed(began.settings, records, observed)?;
                self.cluster = Some(thawed);
                Ok(None)
            }
            Entry::Step(step) => self.step(step, logic).map(Some),
            Entry::Began(_) | Entry::Record { .. } => Err(ReplayError::Order),
        }
    }

    fn state(&mut self) -> Result<(Began, Vec<Stored>), ReplayError> {
        let began = self.began.clone().filter(|_| self.cluster.is_none());
        let began = began.ok_or(ReplayError::Order)?;
        Ok((began, std::mem::take(&mut self.records)))
    }

    fn load(&mut self, now: UnixMillis, recorded: &[Value]) -> Result<Played, ReplayError> {
        let (began, records) = self.state()?;
        let mut effects = Vec::new();
        let cluster = Cluster::load(began.settings, now, records, &mut effects)?;
        self.cluster = Some(cluster);
        Ok(Played {
            number: self.steps,
            now,
            input: None,
            difference: first_other(recorded, values(effects.clone())?),
            effects,
        })
    }

    fn step(&mut self, step: Step, logic: Logic<'_>) -> Result<Played, ReplayError> {
        let cluster = self.cluster.as_mut().ok_or(ReplayError::Order)?;
        let (expected, found) = (self.steps + 1, step.number);
        if expected != found {
            return Err(ReplayError::Missing { expected, found });
        }
        self.steps = found;
        let mut effects = Vec::new();
        let outcome = logic(cluster, step.clocks, step.input.clone(), &mut effects);
        let outcome = serde_json::to_value(&outcome)?;
        let told = (outcome != step.outcome).then(|| Difference {
            part: "the outcome".into(),
            recorded: Some(step.outcome),
            replayed: Some(outcome),
        });
        let done = first_other(&step.effects, values(effects.clone())?);
        Ok(Played {
            number: found,
            now: step.clocks.now,
            input: Some(step.input),
            effects,
            difference: done.or(told),
        })
    }
}

fn first_other(recorded: &[Value], replayed: Vec<Value>) -> Option<Difference> {
    let longest = recorded.len().max(replayed.len());
    let at = (0..longest).find(|at| recorded.get(*at) != replayed.get(*at))?;
    Some(Difference {
        part: format!("effect {}", at + 1),
        recorded: recorded.get(at).cloned(),
        replayed: replayed.into_iter().nth(at),
    })
}
