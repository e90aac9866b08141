//! Ids and epochs as types of their own, so that none is taken for another.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::problem::{Problem, codes};

/// Longest DNS label, in bytes (RFC 1035 2.3.4).
const LABEL_MAX: usize = 63;

/// Checks a DNS label in its lower-case form: 1 to 63 letters, digits and
/// hyphens, no hyphen at either end (RFC 1123 2.1).
fn check_label(field: &str, text: &str) -> Result<(), Problem> {
    let bad = |why: &str| {
        Err(
            Problem::new(codes::NAME_INVALID, format!("{field} `{text}` {why}"))
                .field(field)
                .value(text)
                .remedy("use 1 to 63 of a-z, 0-9 and `-`, with a letter or a digit at both ends"),
        )
    };
    if text.is_empty() {
        return bad("is empty");
    }
    if text.len() > LABEL_MAX {
        return bad("is longer than 63 bytes");
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        return bad("has a character that is not a-z, 0-9 or `-`");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return bad("begins or ends with `-`");
    }
    Ok(())
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema,
        )]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        #[schemars(with = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Problem;

            fn from_str(text: &str) -> Result<Self, Problem> {
                check_label($field, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Problem;

            fn try_from(text: String) -> Result<Self, Problem> {
                check_label($field, &text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

label! {
    /// A node's name in the cluster: a DNS label, unique among the members.
    NodeId, "node"
}
label! {
    /// A VM's name: a DNS label, unique in the cluster.
    VmName, "name"
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema,
        )]
        #[serde(transparent)]
        #[schema(value_type = String)]
        #[schemars(with = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh id, ordered by its time of birth (UUID version 7, RFC 9562 5.7).
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id as a number.
            pub const fn as_u128(self) -> u128 {
                self.0.as_u128()
            }

            /// An id with a chosen value: for tests and simulations.
            pub const fn from_u128(value: u128) -> Self {
                Self(Uuid::from_u128(value))
            }

            /// The id as a UUID.
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Problem;

            fn from_str(text: &str) -> Result<Self, Problem> {
                Uuid::parse_str(text).map(Self).map_err(|_| {
                    Problem::new(codes::ID_INVALID, format!("`{text}` is not an id"))
                        .value(text)
                        .remedy("give a UUID as the list command prints it")
                })
            }
        }
    };
}

uuid_id! {
    /// A VM, for as long as it is defined; its name may be used again, its id never.
    VmId
}
uuid_id! {
    /// One attempt to move one VM.
    MigrationId
}
uuid_id! {
    /// A long action of the coordinator.
    TaskId
}
uuid_id! {
    /// A plan: moves that belong together.
    PlanId
}

/// The right to run a domain. It grows whenever that right passes on; only the
/// holder of the highest epoch may run the domain's CPUs.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
    ToSchema,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of a domain's first run.
    pub const FIRST: Self = Self(1);

    /// The epoch after this one: what a grant passes on.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn labels_are_checked_where_they_enter() {
        for good in ["a", "node-1", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<NodeId>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a b", "ä", &"x".repeat(64)] {
            let problem = bad.parse::<NodeId>().unwrap_err();
            assert_eq!(problem.code, codes::NAME_INVALID, "{bad:?}");
            assert_eq!(problem.field.as_deref(), Some("node"));
            assert!(
                serde_json::from_value::<NodeId>(bad.into()).is_err(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn an_id_that_is_none_is_refused() {
        assert_eq!("web".parse::<VmId>().unwrap_err().code, codes::ID_INVALID);
        let id = VmId::generate();
        assert_eq!(id.to_string().parse::<VmId>().unwrap(), id);
    }

    #[test]
    fn epochs_only_grow() {
        assert!(Epoch::FIRST.next() > Epoch::FIRST);
    }
}
