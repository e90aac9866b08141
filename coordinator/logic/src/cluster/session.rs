//! Nodes come, speak and go.

use std::collections::BTreeSet;

use godwit_shared::api::NodeHealth;
use godwit_shared::model::{DomainReport, NodeFacts, NodeId, Problem, VmId, codes};
use godwit_shared::wire::document::Document;
use godwit_shared::wire::uplink::{CoordinatorMessage, NodeHello, NodeMessage};

use super::Cluster;
use super::member::revoked;
use super::turn::{About, Turn};
use crate::effect::Effect;
use crate::input::{Output, SessionId};
use crate::record::Key;

impl Cluster {
    pub(super) fn on_session_opened(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        incarnation: u32,
        session: SessionId,
        hello: NodeHello,
    ) -> Result<Output, Problem> {
        let member = self.records.nodes.get(node);
        if !member.is_some_and(|m| !m.revoked && m.incarnation == incarnation) {
            return Err(revoked(node));
        }
        let facts: NodeFacts = hello.facts.read("list of its facts")?;
        self.replace_session(turn, node, session);
        if self.set_facts(turn, node, facts) {
            self.member_changed(turn, node);
        }
        let welcome = CoordinatorMessage::Welcome {
            cluster: self.settings.name.clone(),
            members: self.observed.roster.mark,
        };
        self.tell(turn, node, welcome);
        for report in &hello.domains {
            self.note_stray(turn, node, report);
        }
        let affected = self.replace_reports(node, hello.domains);
        let known: BTreeSet<_> = hello.migrations.iter().map(|m| m.migration).collect();
        for vm in &affected {
            self.take_reports_of(turn, *vm);
            self.adopt_only_runner(turn, *vm);
        }
        for report in hello.migrations {
            self.on_migration_report(turn, node, report);
        }
        self.find_lost_migrations(turn, node, &known);
        for vm in affected {
            self.settle(turn, vm);
        }
        self.heard(turn, node);
        self.resume_tasks(turn, node);
        self.look_at_lease(node);
        Ok(Output::Done)
    }

    /// Makes `session` the node's, and ends the one before it.
    fn replace_session(&mut self, turn: &mut Turn, node: &NodeId, session: SessionId) {
        if let Some(former) = self.session(node) {
            self.drop_requests(turn, node);
            turn.act(Effect::CloseSession {
                node: node.clone(),
                session: former,
                problem: Problem::new(
                    codes::CONNECTION_LOST,
                    format!("{node} has opened a newer session"),
                ),
            });
        }
        let Some(state) = self.observed.nodes.get_mut(node) else {
            return;
        };
        state.session = Some(session);
        self.observed.live.doubt(node);
        state.cleared.clear();
        state.strays.clear();
        if state.health != NodeHealth::Up {
            state.health = NodeHealth::Up;
            state.since = turn.now;
            state.reason = None;
            self.note(turn, "node.up", About::node(node), format!("{node} is up"));
        }
    }

    /// Whether its peers have to learn a new address.
    fn set_facts(&mut self, turn: &mut Turn, node: &NodeId, facts: NodeFacts) -> bool {
        let Some(record) = self.records.nodes.get_mut(node) else {
            return false;
        };
        let moved = !facts.address.is_empty() && facts.address != record.address;
        if moved {
            record.address.clone_from(&facts.address);
        }
        if record.take_facts(facts) {
            turn.touch(Key::Node(node.clone()));
        }
        moved
    }

    /// Takes the hello's domains for all that the node has. The VMs that this
    /// may make a difference to.
    fn replace_reports(&mut self, node: &NodeId, domains: Vec<DomainReport>) -> BTreeSet<VmId> {
        let Some(state) = self.observed.nodes.get_mut(node) else {
            return BTreeSet::new();
        };
        let former = std::mem::take(&mut state.domains);
        let mut affected: BTreeSet<VmId> = former.keys().copied().collect();
        state.domains = domains
            .into_iter()
            .map(|report| (report.vm, report))
            .collect();
        for vm in state.domains.keys() {
            affected.insert(*vm);
            self.observed
                .copies
                .entry(*vm)
                .or_default()
                .insert(node.clone());
        }
        let gone: Vec<VmId> = former
            .into_keys()
            .filter(|vm| self.report(node, *vm).is_none())
            .collect();
        for vm in gone {
            self.forget_copy(vm, node);
        }
        affected.extend(self.observed.ledger.owned(node));
        for vm in &affected {
            self.observed.ledger.doubt(*vm);
        }
        affected
    }

    /// The node has no such domain any more.
    pub(super) fn forget_copy(&mut self, vm: VmId, node: &NodeId) {
        self.observed.ledger.doubt(vm);
        if let Some(state) = self.observed.nodes.get_mut(node) {
            state.domains.remove(&vm);
        }
        if let Some(nodes) = self.observed.copies.get_mut(&vm) {
            nodes.remove(node);
            if nodes.is_empty() {
                self.observed.copies.remove(&vm);
            }
        }
    }

    pub(super) fn on_session_closed(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        session: SessionId,
        reason: &str,
    ) {
        if self.session(node) != Some(session) {
            return;
        }
        if let Some(state) = self.observed.nodes.get_mut(node) {
            state.session = None;
            state.health = NodeHealth::Down;
            state.since = turn.now;
            state.reason = Some(reason.to_owned());
        }
        self.observed.ledger.doubt_those_of(node);
        self.observed.live.doubt(node);
        self.note(
            turn,
            "node.down",
            About::node(node),
            format!("{node} is down: {reason}"),
        );
        self.drop_requests(turn, node);
        self.look_at_lease(node);
        self.on_node_lost(turn, node);
    }

    pub(super) fn on_message(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        session: SessionId,
        message: NodeMessage,
    ) -> Result<Output, Problem> {
        if self.session(node) != Some(session) {
            return Ok(Output::Done);
        }
        match message {
            NodeMessage::Domain(report) => self.on_domain(turn, node, report),
            NodeMessage::DomainGone(vm) => self.on_domain_gone(turn, node, vm),
            NodeMessage::Migration(report) => {
                self.on_migration_report(turn, node, report);
            }
            NodeMessage::Facts(facts) => self.on_facts(turn, node, &facts)?,
            NodeMessage::Reply { request, outcome } => {
                self.on_reply(turn, node, request, outcome);
            }
            NodeMessage::AskMembers { known } => self.on_ask_members(turn, node, known),
            NodeMessage::AskVerdict(query) => self.on_ask_verdict(turn, node, &query),
            NodeMessage::RenewLease { of, request } => {
                self.on_renew_lease(turn, node, of, &request);
            }
            NodeMessage::Hello(_) => return Err(unexpected(node, "a second hello")),
            NodeMessage::RenewCertificate { .. } => {
                return Err(unexpected(node, "a certificate's renewal"));
            }
        }
        Ok(Output::Done)
    }

    fn on_facts(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        facts: &Document,
    ) -> Result<(), Problem> {
        let facts = facts.read("list of its facts")?;
        if self.set_facts(turn, node, facts) {
            self.member_changed(turn, node);
        }
        Ok(())
    }
}

fn unexpected(node: &NodeId, what: &str) -> Problem {
    Problem::new(
        codes::PROTOCOL,
        format!("{node} sent {what} where none belongs"),
    )
    .remedy("bring both daemons to the same release")
}
