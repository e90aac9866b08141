//! Whether two sides know the same members, in sixteen bytes.
//!
//! A coordinator that comes back is called by all of its nodes at once, and most
//! of them know every member already. So its welcome carries a mark of the list,
//! and a node whose own list has another one asks for what is different. The mark
//! is FNV-1a with 128 bits (draft-eastlake-fnv) over the members in the order of
//! their names. It finds what was missed, not what was forged: a node that lies
//! about what it knows is told the less for it, and nobody else is concerned.

use serde::{Deserialize, Serialize};

use super::uplink::Member;
use crate::model::NodeId;

const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// The mark of a list of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct RosterMark([u8; 16]);

impl RosterMark {
    /// That of those members, in any order.
    pub fn of(members: &[Member]) -> Self {
        let parts = members.iter();
        Self::of_parts(parts.map(|one| (&one.node, one.incarnation, one.address.as_str())))
    }

    /// The same from names, incarnations and addresses.
    pub fn of_parts<'a>(members: impl IntoIterator<Item = (&'a NodeId, u32, &'a str)>) -> Self {
        let mut all: Vec<_> = members.into_iter().collect();
        all.sort_unstable();
        let hash = all
            .into_iter()
            .fold(OFFSET, |hash, (node, number, address)| {
                let hash = fold(hash, node.as_str().as_bytes());
                let hash = fold(hash, &number.to_le_bytes());
                fold(hash, address.as_bytes())
            });
        Self(hash.to_le_bytes())
    }
}

/// Those bytes and their number, so that no two lists run into the same bytes.
fn fold(hash: u128, bytes: &[u8]) -> u128 {
    let length = (bytes.len() as u64).to_le_bytes();
    let bytes = bytes.iter().chain(&length);
    bytes.fold(hash, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn member(node: &str, incarnation: u32, address: &str) -> Member {
        Member {
            node: node.parse().unwrap(),
            incarnation,
            address: address.into(),
        }
    }

    #[test]
    fn a_mark_goes_by_all_that_is_known_and_by_no_order() {
        let (a, b) = (member("a", 1, "h:1"), member("b", 1, "h:2"));
        let mark = |members: &[&Member]| {
            let members: Vec<Member> = members.iter().map(|one| (*one).clone()).collect();
            RosterMark::of(&members)
        };
        let both = mark(&[&a, &b]);
        assert_eq!(mark(&[&b, &a]), both);
        let others = [
            mark(&[]),
            mark(&[&a]),
            mark(&[&a, &member("b", 2, "h:2")]),
            mark(&[&a, &member("b", 1, "h:3")]),
            mark(&[&member("a", 1, "h:2"), &member("b", 1, "h:1")]),
            mark(&[&a, &b, &member("c", 1, "h:1")]),
        ];
        for (place, other) in others.iter().enumerate() {
            assert_ne!(*other, both);
            assert!(!others[..place].contains(other));
        }
    }
}
