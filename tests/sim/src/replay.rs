//! A recording of a real coordinator, or of a simulated one, through the
//! production logic once more: it has to decide the same, and to keep its rules.
//!
//! What holds of the world (who really runs) is not in a recording; what the
//! coordinator decides is, so these are asked after every step:
//!
//! | | |
//! |---|---|
//! | the same | outcome and effects are those recorded |
//! | one runner | a start goes to one node at each epoch, and never back to an earlier one |
//! | no overcommit | no step gives away more memory of a node than it has |
//! | no lost VM | a VM's record goes only when its deletion was asked for |
//! | epochs grow | the epoch of a VM's record never goes down |

mod rules;

use godwit_coordinator_logic::cluster::Cluster;
use godwit_coordinator_logic::effect::Effect;
use godwit_coordinator_logic::input::{Input, Output};
use godwit_coordinator_logic::recording::Clocks;
use godwit_coordinator_logic::recording::line::{Damage, Lines};
use godwit_coordinator_logic::recording::replay::{Difference, Played, Replay, ReplayError};
use godwit_shared::model::Problem;
use godwit_shared::wire::uplink::NodeRequest;

use rules::Rules;

/// What of a recording is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The first step to show.
    pub from: u64,
    /// The last step to take.
    pub to: u64,
    /// Show the steps.
    pub trace: bool,
    /// A bug to put into the logic.
    pub bug: Option<Bug>,
}

/// A bug that a replay has to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Commands go out at the epoch before theirs.
    StaleEpoch,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            from: 0,
            to: u64::MAX,
            trace: false,
            bug: None,
        }
    }
}

/// What came of a replay.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Steps that were taken again.
    pub steps: u64,
    /// The number of the last one.
    pub last: u64,
    /// Bytes of a last line that was cut off.
    pub cut_off: usize,
    /// What is not as it should be: with the step's number and input.
    pub wrong: Option<String>,
}

/// Why a file cannot be replayed to its end.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The file is damaged.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// It does not hold together.
    #[error(transparent)]
    Replay(#[from] ReplayError),
}

/// Replays a file, up to the first step that is not as it should be; `show` gets
/// each line of the trace.
///
/// # Errors
/// When the file is none, or damaged. A last line that was cut off is none of both.
pub fn replay(file: &[u8], wanted: Wanted, show: &mut dyn FnMut(&str)) -> Result<Outcome, Failed> {
    let mut lines = Lines::of(file)?;
    let (mut replay, mut rules) = (Replay::default(), None);
    let mut outcome = Outcome::default();
    let mut logic = |cluster: &mut Cluster, clocks, input, effects: &mut Vec<Effect>| {
        step(wanted.bug, cluster, clocks, input, effects)
    };
    while replay.steps() < wanted.to && outcome.wrong.is_none() {
        let Some(entry) = lines.next_entry()? else {
            outcome.cut_off = lines.cut_off();
            break;
        };
        let played = replay.feed(entry, &mut logic)?;
        let Some(cluster) = replay.cluster() else {
            continue;
        };
        let rules = rules.get_or_insert_with(|| Rules::of(cluster));
        let Some(played) = played else { continue };
        if wanted.trace && played.number >= wanted.from {
            for line in told(&played) {
                show(&line);
            }
        }
        outcome.steps += u64::from(played.input.is_some());
        outcome.last = played.number;
        outcome.wrong = wrong(rules, cluster, &played);
    }
    Ok(outcome)
}

fn wrong(rules: &mut Rules, cluster: &Cluster, played: &Played) -> Option<String> {
    let broken = rules.broken(cluster, played);
    let other = played.difference.as_ref().map(difference);
    let what = other.or(broken)?;
    Some(format!("{}: {what}", head(played)))
}

/// One step of the production logic, or with a bug.
fn step(
    bug: Option<Bug>,
    cluster: &mut Cluster,
    clocks: Clocks,
    input: Input,
    effects: &mut Vec<Effect>,
) -> Result<Output, Problem> {
    let outcome = cluster.step_at(clocks.now, clocks.steady, input, effects);
    if bug == Some(Bug::StaleEpoch) {
        for effect in effects {
            if let Effect::Request {
                body: NodeRequest::Command { epoch, .. },
                ..
            } = effect
            {
                epoch.0 = epoch.0.saturating_sub(1);
            }
        }
    }
    outcome
}

fn head(played: &Played) -> String {
    match &played.input {
        Some(input) => format!("step {} at {}: {input:?}", played.number, played.now),
        None => format!("the daemon's start at {}", played.now),
    }
}

fn told(played: &Played) -> Vec<String> {
    let effects = played.effects.iter().map(|effect| match effect {
        Effect::Persist(writes) => {
            let keys = writes.iter().map(|write| write.key().to_string());
            format!("    Persist {}", keys.collect::<Vec<_>>().join(" "))
        }
        other => format!("    {other:?}"),
    });
    std::iter::once(head(played)).chain(effects).collect()
}

fn difference(difference: &Difference) -> String {
    let text = |value: &Option<serde_json::Value>| {
        let text = value.as_ref().map(serde_json::Value::to_string);
        text.unwrap_or_else(|| "nothing".into())
    };
    format!(
        "{} is another\n  recorded: {}\n  replayed: {}",
        difference.part,
        text(&difference.recorded),
        text(&difference.replayed)
    )
}
