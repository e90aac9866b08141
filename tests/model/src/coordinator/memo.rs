//! Steps of the production state machine that were taken before.
//!
//! A step costs some tens of microseconds (the cluster is copied, its records
//! become JSON), and the same ones come up in a great many states. What a step
//! leads to is a function of the [`Digest`](super::Digest) and the input.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use godwit_coordinator_logic::effect::Effect;
use godwit_coordinator_logic::input::Input;
use godwit_coordinator_logic::record::{Key, Write};
use godwit_shared::model::{MigrationId, NodeId};
use godwit_shared::wire::uplink::{CoordinatorMessage, NodeMessage, NodeRequest, Verdict};

use super::{Coordinator, Order};
use crate::world::{HOSTS, Host, MOVES, Move, NOW, id_of};

/// What the state machine wants done, as far as it makes a difference.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wish {
    /// A source hears a word, or that there is none.
    Tell {
        /// On which host.
        n: Host,
        /// Of which migration.
        m: Move,
        /// The word.
        word: Option<Verdict>,
    },
    /// A target is asked.
    Ask {
        /// About which migration.
        m: Move,
        /// By this request.
        request: u64,
    },
    /// A node is told to do something.
    Order(Order),
}

/// The steps that were taken before.
#[derive(Default, Clone)]
pub struct Memo(Arc<Mutex<Taken>>);

type Taken = HashMap<(Coordinator, Move, String), After>;

type After = (Coordinator, Vec<Wish>);

impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memo")
    }
}

impl Memo {
    pub(super) fn step(&self, before: &Coordinator, input: Input, about: Move) -> After {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (before.clone(), about, name_of(&input));
        if let Some(after) = taken.get(&key) {
            return after.clone();
        }
        let after = step(before.clone(), input);
        taken.insert(key, after.clone());
        after
    }
}

/// The input without its numbers: they follow from the way, and the digest does
/// not have them either.
fn name_of(input: &Input) -> String {
    match input {
        Input::SessionOpened { node, .. } => format!("hello {node}"),
        Input::SessionClosed { node, .. } => format!("end {node}"),
        Input::Message { node, message, .. } => match message {
            NodeMessage::Domain(_) | NodeMessage::DomainGone(_) => format!("domain {node}"),
            NodeMessage::Migration(report) => format!("move {node} {}", report.migration),
            NodeMessage::AskVerdict(query) => format!("ask {node} {query:?}"),
            NodeMessage::Reply { outcome, .. } => format!("reply {node} {outcome:?}"),
            other => format!("{node} {other:?}"),
        },
        other => format!("{other:?}"),
    }
}

fn step(mut coordinator: Coordinator, input: Input) -> After {
    let Some(cluster) = &mut coordinator.cluster else {
        return (coordinator, Vec::new());
    };
    let mut effects = Vec::new();
    let _ = Arc::make_mut(cluster).step(NOW, input, &mut effects);
    let mut wishes = Vec::new();
    for effect in effects {
        match effect {
            Effect::Persist(writes) => persist(Arc::make_mut(&mut coordinator.store), writes),
            Effect::Send { node, message, .. } => wishes.extend(told(&node, &message)),
            Effect::Request {
                node,
                request,
                body,
                ..
            } => {
                wishes.extend(asked(&node, request, &body));
            }
            Effect::CloseSession { .. }
            | Effect::Emit(_)
            | Effect::TaskChanged(_)
            | Effect::Answer { .. }
            | Effect::Fence(_)
            | Effect::Arm { .. } => {}
        }
    }
    coordinator.read_records();
    (coordinator, wishes)
}

/// The log is left out: nothing is decided on it.
fn persist(store: &mut BTreeMap<String, Vec<u8>>, writes: Vec<Write>) {
    for write in writes {
        match write {
            Write::Put {
                key: Key::Event(_), ..
            }
            | Write::Delete { key: Key::Event(_) } => {}
            Write::Put { key, value } => drop(store.insert(key.to_string(), value)),
            Write::Delete { key } => drop(store.remove(&key.to_string())),
        }
    }
}

fn told(node: &NodeId, message: &CoordinatorMessage) -> Option<Wish> {
    let CoordinatorMessage::Verdict { migration, verdict } = message else {
        return None;
    };
    Some(Wish::Tell {
        n: host_of(node)?,
        m: move_of(*migration)?,
        word: *verdict,
    })
}

fn asked(node: &NodeId, request: u64, body: &NodeRequest) -> Option<Wish> {
    match body {
        NodeRequest::Verdict(query) => Some(Wish::Ask {
            m: move_of(query.migration)?,
            request,
        }),
        NodeRequest::Command { command, epoch, .. } => Some(Wish::Order(Order {
            n: host_of(node)?,
            command: *command,
            epoch: *epoch,
        })),
        _ => None,
    }
}

fn host_of(node: &NodeId) -> Option<Host> {
    (0..HOSTS).find(|n| crate::node_id(*n) == *node)
}

fn move_of(migration: MigrationId) -> Option<Move> {
    (0..MOVES).find(|m| id_of(*m) == migration)
}
