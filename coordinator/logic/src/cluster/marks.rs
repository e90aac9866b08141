//! Labels and taints that operators give to nodes at run time.
//!
//! A node tells those of its settings; the record keeps them apart from the
//! operators' own, and what holds is both together: an operator's label wins
//! over the settings' of that name. What holds is put into the facts on record,
//! where placement reads it, so nothing else has to know that there are two
//! sources.

use godwit_shared::api::{MarkRequest, Marks};
use godwit_shared::model::label::{MAX_LABEL_VALUE, label_key, label_value};
use godwit_shared::model::spec::{Taint, Toleration};
use godwit_shared::model::{NodeFacts, NodeId, Problem, codes};

use super::Cluster;
use super::turn::{About, Turn};
use crate::input::Output;
use crate::record::{Key, NodeRecord};

/// Most labels and most taints that operators may give to one node.
const MOST: usize = 64;

impl Cluster {
    pub(super) fn on_mark(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        request: &MarkRequest,
    ) -> Result<Output, Problem> {
        let record = self.member(node)?;
        let marks = marked(record, request)?;
        let changed = marks != record.marks;
        if let Some(record) = self.records.nodes.get_mut(node).filter(|_| changed) {
            record.marks = marks;
            record.apply_marks();
            turn.touch(Key::Node(node.clone()));
            let message = told(node, request);
            self.note(turn, "node.marked", About::node(node), message);
        }
        self.node(node).map(Output::Node)
    }
}

impl NodeRecord {
    /// Takes the node's word: what it tells of labels and taints is kept apart.
    /// Whether anything changed.
    pub(crate) fn take_facts(&mut self, facts: NodeFacts) -> bool {
        let told = Marks {
            labels: facts.labels.clone(),
            taints: facts.taints.clone(),
        };
        let told_before = std::mem::replace(&mut self.told, told);
        let facts_before = self.facts.replace(facts);
        self.apply_marks();
        told_before != self.told || facts_before != self.facts
    }

    fn apply_marks(&mut self) {
        let all = self.told.with(&self.marks);
        if let Some(facts) = &mut self.facts {
            facts.labels = all.labels;
            facts.taints = all.taints;
        }
    }
}

/// The operators' marks after the request.
fn marked(record: &NodeRecord, request: &MarkRequest) -> Result<Marks, Problem> {
    let mut marks = record.marks.clone();
    for toleration in &request.untaint {
        untaint(&mut marks, record, toleration)?;
    }
    for key in &request.unlabel {
        if marks.labels.remove(key).is_none() {
            return Err(not_there(record, "label", key, |told| {
                told.labels.contains_key(key)
            }));
        }
    }
    for taint in &request.taint {
        check_taint(taint)?;
        marks.taint(taint.clone());
    }
    for (key, value) in &request.label {
        check_label(key, value)?;
        marks.labels.insert(key.clone(), value.clone());
    }
    if marks.labels.len() > MOST || marks.taints.len() > MOST {
        let message =
            format!("a node has at most {MOST} labels and {MOST} taints of its operators");
        return Err(wrong("label", "", message));
    }
    Ok(marks)
}

fn untaint(marks: &mut Marks, record: &NodeRecord, which: &Toleration) -> Result<(), Problem> {
    let before = marks.taints.len();
    marks.taints.retain(|taint| !which.covers(taint));
    if marks.taints.len() < before {
        return Ok(());
    }
    Err(not_there(record, "taint", &which.key, |told| {
        told.taints.iter().any(|taint| which.covers(taint))
    }))
}

/// It is the settings' own, or there is none.
fn not_there(
    record: &NodeRecord,
    kind: &str,
    key: &str,
    is_told: impl Fn(&Marks) -> bool,
) -> Problem {
    let node = &record.name;
    if is_told(&record.told) {
        return Problem::new(
            codes::STATE_CONFLICT,
            format!("the {kind} {key} comes from the settings of {node}"),
        )
        .field(kind)
        .value(key)
        .remedy("change its node.toml, and restart its daemon");
    }
    Problem::not_found(kind, key).remedy(format!("`godwit node show {node}` lists what it has"))
}

fn check_taint(taint: &Taint) -> Result<(), Problem> {
    let checked = taint.check();
    checked.map_err(|error| wrong("taint", &taint.to_string(), error.to_string()))
}

fn check_label(key: &str, value: &str) -> Result<(), Problem> {
    if !label_key(key) {
        let message = "a label's key is 1 to 128 letters, digits, `-`, `_`, `.` and `/`";
        return Err(wrong("label", key, message.to_owned()));
    }
    if !label_value(value) {
        let message = format!("a label's value is at most {MAX_LABEL_VALUE} printable bytes");
        return Err(wrong("label", value, message));
    }
    Ok(())
}

fn wrong(field: &str, value: &str, message: String) -> Problem {
    Problem::new(codes::BODY_INVALID, message)
        .field(field)
        .value(value)
        .remedy("`godwit node taint --help` and `godwit node label --help` have examples")
}

/// What an event says of it.
fn told(node: &NodeId, request: &MarkRequest) -> String {
    let labels = request.label.iter().map(|(k, v)| format!("{k}={v}"));
    let parts: Vec<String> = request
        .taint
        .iter()
        .map(|taint| format!("taint {}", taint.text()))
        .chain(
            request
                .untaint
                .iter()
                .map(|t| format!("no taint {}", t.key)),
        )
        .chain(labels.map(|label| format!("label {label}")))
        .chain(request.unlabel.iter().map(|key| format!("no label {key}")))
        .collect();
    format!("{node} is marked: {}", parts.join(", "))
}
