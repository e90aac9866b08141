//! Who belongs to the cluster: tokens, joining, cordons, removal.

use godwit_shared::model::{Millis, NodeId, Problem, UnixMillis, codes};
use godwit_shared::wire::uplink::Member;

use super::Cluster;
use super::state::NodeState;
use super::turn::{About, Turn};
use crate::effect::Effect;
use crate::input::Output;
use crate::record::{Key, NodeRecord, SecretDigest, TokenRecord};
use godwit_shared::api::{Marks, NodeHealth};

/// How long a token is good for when nobody says.
const TOKEN_DEFAULT: Millis = Millis(3_600_000);
/// The longest that a token may be good for.
const TOKEN_MAX: Millis = Millis(7 * 24 * 3_600_000);
/// How long an expired token is remembered, so that it is refused by its right name.
const TOKEN_MEMORY: Millis = Millis(7 * 24 * 3_600_000);

/// What can be done about the VMs of a node that is not connected.
pub(super) const LOST_NODE: &str =
    "bring the node back; VMs with `protection: restart` are started elsewhere by themselves";

impl Cluster {
    pub(super) fn on_create_token(
        &mut self,
        turn: &mut Turn,
        id: String,
        digest: SecretDigest,
        valid: Option<Millis>,
    ) -> Result<Output, Problem> {
        let valid = valid.unwrap_or(TOKEN_DEFAULT);
        if valid == Millis::ZERO || valid > TOKEN_MAX {
            return Err(
                Problem::new(codes::BODY_INVALID, "a token is good for at most a week")
                    .field("valid")
                    .value(valid.0.to_string())
                    .remedy(format!("give 1 to {} milliseconds", TOKEN_MAX.0)),
            );
        }
        if self.records.tokens.contains_key(&id) {
            return Err(Problem::internal("the fresh id of a token is not fresh"));
        }
        self.forget_old_tokens(turn);
        let token = TokenRecord {
            id,
            digest,
            created: turn.now,
            expires: turn.now.after(valid),
            used_by: None,
        };
        let expires = token.expires;
        turn.touch(Key::Token(token.id.clone()));
        self.records.tokens.insert(token.id.clone(), token);
        Ok(Output::Token { expires })
    }

    fn forget_old_tokens(&mut self, turn: &mut Turn) {
        let now = turn.now;
        self.records.tokens.retain(|id, token| {
            let keep = token.expires.after(TOKEN_MEMORY) > now;
            if !keep {
                turn.touch(Key::Token(id.clone()));
            }
            keep
        });
    }

    pub(super) fn on_join(
        &mut self,
        turn: &mut Turn,
        token: &str,
        digest: SecretDigest,
        node: &NodeId,
        address: String,
    ) -> Result<Output, Problem> {
        self.check_token(turn.now, token, digest)?;
        check_address(&address)?;
        let former = self.records.nodes.get(node);
        if let Some(member) = former.filter(|record| !record.revoked) {
            return Err(Problem::new(
                codes::NODE_NAME_TAKEN,
                format!(
                    "the cluster has a node `{node}` already, at {}",
                    member.address
                ),
            )
            .field("node")
            .value(node.as_str())
            .remedy(format!(
                "join under another name, or take the old one out with `godwit node remove {node}`"
            )));
        }
        let incarnation = former.map_or(1, |record| record.incarnation.saturating_add(1));
        if let Some(token) = self.records.tokens.get_mut(token) {
            token.used_by = Some(node.clone());
            turn.touch(Key::Token(token.id.clone()));
        }
        let record = NodeRecord {
            name: node.clone(),
            incarnation,
            address,
            cordoned: false,
            revoked: false,
            joined: turn.now,
            facts: None,
            marks: Marks::default(),
            told: Marks::default(),
            unheard: false,
        };
        self.records.nodes.insert(node.clone(), record);
        turn.touch(Key::Node(node.clone()));
        let state = NodeState::new(NodeHealth::New, turn.now);
        self.observed.nodes.insert(node.clone(), state);
        self.note(
            turn,
            "node.joined",
            About::node(node),
            format!("{node} joined"),
        );
        self.member_changed(turn, node);
        Ok(Output::Joined { incarnation })
    }

    /// A wrong secret is told apart from an unknown token for nobody.
    fn check_token(&self, now: UnixMillis, id: &str, digest: SecretDigest) -> Result<(), Problem> {
        const NEW: &str = "make a new one with `godwit node token`";
        let token = self
            .records
            .tokens
            .get(id)
            .filter(|token| token.digest == digest)
            .ok_or_else(|| {
                Problem::new(
                    codes::TOKEN_UNKNOWN,
                    "this cluster did not make that join token",
                )
                .remedy(NEW)
            })?;
        if let Some(node) = &token.used_by {
            return Err(Problem::new(
                codes::TOKEN_USED,
                format!("{node} has joined with that token"),
            )
            .remedy(NEW));
        }
        if token.expires <= now {
            return Err(Problem::new(
                codes::TOKEN_EXPIRED,
                format!("the join token expired at {}", token.expires),
            )
            .remedy(NEW));
        }
        Ok(())
    }

    pub(super) fn on_cordon(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        cordoned: bool,
    ) -> Result<Output, Problem> {
        self.member(node)?;
        if self.set_cordoned(turn, node, cordoned) && !cordoned {
            self.return_after(turn, node);
        }
        self.node(node).map(Output::Node)
    }

    /// Whether that is a change.
    pub(super) fn set_cordoned(&mut self, turn: &mut Turn, node: &NodeId, cordoned: bool) -> bool {
        let record = self.records.nodes.get_mut(node);
        let Some(record) = record.filter(|record| record.cordoned != cordoned) else {
            return false;
        };
        record.cordoned = cordoned;
        turn.touch(Key::Node(node.clone()));
        let (kind, message) = if cordoned {
            ("node.cordoned", format!("{node} takes no new VMs"))
        } else {
            ("node.uncordoned", format!("{node} takes new VMs again"))
        };
        self.note(turn, kind, About::node(node), message);
        true
    }

    pub(super) fn on_remove_node(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
    ) -> Result<Output, Problem> {
        self.member(node)?;
        self.check_empty(node)?;
        if let Some(record) = self.records.nodes.get_mut(node) {
            record.revoked = true;
            turn.touch(Key::Node(node.clone()));
        }
        if let Some(session) = self.session(node) {
            self.drop_requests(turn, node);
            turn.act(Effect::CloseSession {
                node: node.clone(),
                session,
                problem: revoked(node),
            });
        }
        if let Some(state) = self.observed.nodes.remove(node) {
            for vm in state.domains.keys() {
                self.forget_copy(*vm, node);
            }
        }
        self.note(
            turn,
            "node.removed",
            About::node(node),
            format!("{node} was removed from the cluster"),
        );
        self.forget_lease(turn, node);
        self.member_gone(turn, node);
        Ok(Output::Done)
    }

    /// Refuses while a VM is on the node, or on its way to it or from it.
    fn check_empty(&self, node: &NodeId) -> Result<(), Problem> {
        let owned = self
            .records
            .vms
            .values()
            .filter(|vm| vm.owner.as_ref() == Some(node));
        let mut names: Vec<String> = owned.map(|vm| vm.name.to_string()).collect();
        if let Some(state) = self.observed.nodes.get(node) {
            let running = state
                .domains
                .values()
                .filter(|report| report.state.has_process());
            names.extend(running.map(|report| report.name.to_string()));
        }
        let moving = self
            .observed
            .moving
            .values()
            .filter_map(|id| self.records.migrations.get(id));
        let moving = moving.filter(|m| m.source == *node || m.target == *node);
        names.extend(moving.map(|migration| migration.name.to_string()));
        let coming = self
            .observed
            .busy
            .values()
            .filter_map(|id| self.records.tasks.get(id));
        let coming = coming.filter(|task| task.node.as_ref() == Some(node));
        names.extend(coming.map(|task| task.name.to_string()));
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Ok(());
        }
        let count = names.len();
        names.truncate(5);
        Err(Problem::new(
            codes::NODE_NOT_EMPTY,
            format!(
                "{node} still has {count} VM{}: {}{}",
                if count == 1 { "" } else { "s" },
                names.join(", "),
                if count > names.len() { ", ..." } else { "" }
            ),
        )
        .field("node")
        .value(node.as_str())
        .remedy(if self.is_up(node) {
            "move those that run away with `godwit vm migrate`; start the others on another node, or delete them".to_owned()
        } else {
            LOST_NODE.to_owned()
        }))
    }
}

impl NodeRecord {
    /// The node as its peers need to know it.
    pub fn member(&self) -> Member {
        Member {
            node: self.name.clone(),
            incarnation: self.incarnation,
            address: self.address.clone(),
        }
    }
}

/// An address that peers can be told: `host:port`.
fn check_address(address: &str) -> Result<(), Problem> {
    let fine = address.rsplit_once(':').is_some_and(|(host, port)| {
        let plain = |c: char| !c.is_control() && !c.is_whitespace();
        !host.is_empty() && host.chars().all(plain) && port.parse::<u16>().is_ok_and(|p| p > 0)
    });
    if fine && address.len() <= 261 {
        return Ok(());
    }
    Err(Problem::new(
        codes::CONFIG_INVALID,
        format!("`{address}` is not an address that peers can reach"),
    )
    .field("address")
    .value(address)
    .remedy("give the node's `host:port`, for example 192.0.2.1:7441"))
}

/// What a node that is no member any more is told.
pub(super) fn revoked(node: &NodeId) -> Problem {
    Problem::new(
        codes::NODE_REVOKED,
        format!("{node} is not, or no longer, a member of this cluster"),
    )
    .field("node")
    .value(node.as_str())
    .remedy("join again with a new token: `godwit-node join TOKEN --force`")
}
