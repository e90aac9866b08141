//! What is wrong, where, and what to do about it.
//!
//! Every refusal that leaves Godwit is a [`Problem`]: a stable code for
//! programs, and a message, the field, the value and a remedy for people. Codes
//! are never renamed and never reused for something else.

use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The stable codes. `docs/errors.md` lists each with its remedy.
pub mod codes {
    macro_rules! codes {
        ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
            $($(#[$doc])* pub const $name: &str = $text;)*
            /// Every code, for the documentation and its test.
            pub const ALL: &[&str] = &[$($text),*];
        };
    }
    codes! {
        /// A name is not a DNS label.
        NAME_INVALID = "name_invalid";
        /// An id is not a UUID.
        ID_INVALID = "id_invalid";
        /// A size is not one.
        SIZE_INVALID = "size_invalid";
        /// A VM spec cannot be read at all.
        SPEC_SYNTAX = "spec_syntax";
        /// A spec has a field that does not exist.
        SPEC_UNKNOWN_FIELD = "spec_unknown_field";
        /// A spec's field has a value that it cannot have.
        SPEC_INVALID = "spec_invalid";
        /// A configuration file cannot be read or has a wrong value.
        CONFIG_INVALID = "config_invalid";
        /// A request's body is not what the call takes.
        BODY_INVALID = "body_invalid";
        /// What is asked for has to be confirmed by typing a name.
        CONFIRMATION_NEEDED = "confirmation_needed";
        /// A request's query has a wrong parameter.
        QUERY_INVALID = "query_invalid";
        /// No such thing.
        NOT_FOUND = "not_found";
        /// The name is taken.
        ALREADY_EXISTS = "already_exists";
        /// Another coordinator leads; ask that one.
        NOT_LEADER = "not_leader";
        /// No coordinator leads: nothing can be changed now.
        NO_LEADER = "no_leader";
        /// The credential is missing or wrong.
        UNAUTHENTICATED = "unauthenticated";
        /// The state does not allow it now.
        STATE_CONFLICT = "state_conflict";
        /// Another action on the same VM is under way.
        BUSY = "busy";
        /// No node can take the VM.
        NO_NODE_FITS = "no_node_fits";
        /// The node cannot be reached.
        NODE_UNREACHABLE = "node_unreachable";
        /// The node holds no lease, and runs no protected VM without one.
        LEASE_LOST = "lease_lost";
        /// A fence agent did not switch its node off.
        FENCE_FAILED = "fence_failed";
        /// The node still has VMs.
        NODE_NOT_EMPTY = "node_not_empty";
        /// The join token is not one.
        TOKEN_MALFORMED = "token_malformed";
        /// The join token is not known to this cluster.
        TOKEN_UNKNOWN = "token_unknown";
        /// The join token was used.
        TOKEN_USED = "token_used";
        /// The join token has expired.
        TOKEN_EXPIRED = "token_expired";
        /// The peer belongs to another cluster.
        CA_MISMATCH = "ca_mismatch";
        /// The node was removed from the cluster.
        NODE_REVOKED = "node_revoked";
        /// The node's name is in use.
        NODE_NAME_TAKEN = "node_name_taken";
        /// The coordinator cannot be reached.
        COORDINATOR_UNREACHABLE = "coordinator_unreachable";
        /// The two sides share no protocol version.
        VERSION_MISMATCH = "version_mismatch";
        /// A message broke the protocol.
        PROTOCOL = "protocol";
        /// QEMU did not start.
        QEMU_START = "qemu_start";
        /// QEMU refused a command.
        QEMU_COMMAND = "qemu_command";
        /// QEMU did not answer in time.
        QEMU_TIMEOUT = "qemu_timeout";
        /// QEMU ended.
        QEMU_GONE = "qemu_gone";
        /// The guest agent is not there, or refused.
        GUEST_AGENT = "guest_agent";
        /// The node lacks memory or CPUs for the VM.
        INSUFFICIENT_RESOURCES = "insufficient_resources";
        /// The migration cannot start: see the blockers.
        MIGRATION_BLOCKED = "migration_blocked";
        /// The migration failed; the guest runs on its source.
        MIGRATION_FAILED = "migration_failed";
        /// The migration was cancelled by an operator.
        MIGRATION_CANCELLED = "migration_cancelled";
        /// The migration's connection was lost.
        CONNECTION_LOST = "connection_lost";
        /// An operation did not end in its time.
        TIMEOUT = "timeout";
        /// The request was cancelled.
        CANCELLED = "cancelled";
        /// The store refused or failed.
        STORE = "store";
        /// The store's file is damaged.
        STORE_DAMAGED = "store_damaged";
        /// A file is not a backup of a cluster, or a damaged one.
        BACKUP_INVALID = "backup_invalid";
        /// A file or a socket of the host refused.
        HOST_IO = "host_io";
        /// Too much at once.
        OVERLOADED = "overloaded";
        /// A fault of Godwit's own.
        INTERNAL = "internal";
    }
}

/// A refusal or a failure, told so that both a program and a person can act on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Problem {
    /// A stable code: one of [`codes`].
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub code: Cow<'static, str>,
    /// One sentence for people.
    pub message: String,
    /// Where: a path such as `disks[0].path`.
    pub field: Option<String>,
    /// The offending value as it was given.
    pub value: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
    /// Further problems found in the same look, or the blockers of an action.
    #[schema(no_recursion)]
    pub also: Vec<Problem>,
}

impl Problem {
    /// A problem with its code (one of [`codes`]) and its sentence.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: Cow::Borrowed(code),
            message: message.into(),
            field: None,
            value: None,
            remedy: None,
            also: Vec::new(),
        }
    }

    /// Names the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Quotes the value.
    #[must_use]
    pub fn value(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Adds further problems.
    #[must_use]
    pub fn and(mut self, also: Vec<Problem>) -> Self {
        self.also = also;
        self
    }

    /// Refuses with the first of them and the rest behind it; fine when there is none.
    pub fn refuse(found: Vec<Self>) -> Result<(), Self> {
        let mut found = found.into_iter();
        match found.next() {
            None => Ok(()),
            Some(first) => Err(first.and(found.collect())),
        }
    }

    /// A fault of Godwit's own; `what` is for the log and the bug report.
    pub fn internal(what: impl fmt::Display) -> Self {
        Self::new(codes::INTERNAL, format!("an internal fault: {what}"))
            .remedy("look at the daemon's log and report it")
    }

    /// There is no `kind` (for example "VM") called `name`.
    pub fn not_found(kind: &str, name: impl fmt::Display) -> Self {
        Self::new(codes::NOT_FOUND, format!("there is no {kind} `{name}`"))
            .value(name.to_string())
            .remedy(format!("list the {kind}s to see their names"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(remedy) = &self.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

/// By the code alone: equal problems have equal codes, and the texts are long
/// and for people. States of the handoff that differ in no more than the wording
/// of a cause are then one to whoever compares them by their hashes.
impl std::hash::Hash for Problem {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.code.hash(state);
    }
}

impl std::error::Error for Problem {}
