//! After a restore: nodes of which nothing was heard yet.
//!
//! The records are older than what the nodes run ([`crate::restored`]). A VM
//! that they call stopped may run on any node that has not connected since. So
//! until every one has said what it has, starts and deletions of VMs that are
//! older than that wait: for a while, as for a node that is away. A node that
//! will not come back is declared absent by an operator who has made sure that
//! nothing runs there.

use godwit_shared::model::{LifecycleCommand, NodeId, Problem, codes};

use super::Cluster;
use super::command::conflict;
use super::state::Patience;
use super::turn::{About, Turn};
use crate::input::Output;
use crate::record::{Key, TaskKind, TaskRecord};

impl Cluster {
    /// Whether the task has to wait for a node that was not heard of.
    pub(super) fn waits_for_word(&mut self, turn: &mut Turn, task: &TaskRecord) -> bool {
        use LifecycleCommand::{Delete, Start};
        let rests_on_all = matches!(
            task.kind,
            TaskKind::Failover | TaskKind::Command(Start | Delete)
        );
        // What was given out already is only carried on.
        if !rests_on_all || task.epoch.is_some() {
            return false;
        }
        let Some(node) = self.unheard().next().cloned() else {
            return false;
        };
        let message =
            format!("waiting for {node}, of which nothing was heard since the store was restored");
        self.wait(turn, task.id, Patience::Absence, &message);
        true
    }

    /// Members of which nothing was heard since the store was restored.
    pub(super) fn unheard(&self) -> impl Iterator<Item = &NodeId> {
        let nodes = self.records.nodes.values();
        let unheard = nodes.filter(|node| node.unheard && !node.revoked);
        unheard.map(|node| &node.name)
    }

    /// The node has said what it has, or an operator for it. What waited for
    /// the last one goes on.
    pub(super) fn heard(&mut self, turn: &mut Turn, node: &NodeId) {
        let record = self.records.nodes.get_mut(node);
        let Some(record) = record.filter(|record| record.unheard) else {
            return;
        };
        record.unheard = false;
        turn.touch(Key::Node(node.clone()));
        if self.unheard().next().is_none() {
            let about = About::default();
            let message = "every node was heard of since the store was restored".to_owned();
            self.note(turn, "cluster.heard", about, message);
            let waiting: Vec<_> = self.observed.busy.keys().copied().collect();
            for vm in waiting {
                self.settle(turn, vm);
            }
        }
    }

    /// An operator has made sure that a node which did not come back since the
    /// restore runs none of the cluster's VMs.
    pub(super) fn on_node_absent(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
    ) -> Result<Output, Problem> {
        if !self.member(node)?.unheard {
            return Err(conflict(
                format!("{node} is not waited for"),
                "this is only for a node that did not come back since the store was restored",
            ));
        }
        let message = format!("an operator has said that {node} runs none of the cluster's VMs");
        self.note(turn, "node.absent", About::node(node), message);
        self.heard(turn, node);
        self.node(node).map(Output::Node)
    }
}

/// A node was waited for that did not connect since the restore.
pub(super) fn unheard(node: &NodeId) -> Problem {
    Problem::new(
        codes::NODE_UNREACHABLE,
        format!("{node} has not said since the store was restored what it runs"),
    )
    .field("node")
    .value(node.as_str())
    .remedy(format!(
        "see that godwit-node runs on {node} and reaches the coordinator; if it will not come back, and you have made sure that no VM runs there, `godwit node absent {node}`"
    ))
}
