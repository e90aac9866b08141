//! The cluster's member list on disk: a node that starts while its coordinator
//! is away still knows which peers to let in.

use std::collections::BTreeMap;
use std::path::Path;

use godwit_shared::model::{NodeId, Problem};
use godwit_shared::wire::uplink::Member;

use crate::host;

/// Keeps the list.
pub fn save(path: &Path, members: &[Member]) -> Result<(), Problem> {
    let text = serde_json::to_vec(members).map_err(Problem::internal)?;
    host::write_file(path, &text)
}

/// The list as it was last kept; empty when there is none that can be read,
/// since the coordinator sends it anew.
pub fn load(path: &Path) -> Vec<Member> {
    let Ok(text) = std::fs::read(path) else {
        return Vec::new();
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "the member list cannot be read");
        Vec::new()
    })
}

/// Changes a list: those that are set take the place of their names, or come
/// anew; those that are gone leave.
pub fn change(list: &mut Vec<Member>, set: Vec<Member>, gone: &[NodeId]) {
    let by_name = |member: Member| (member.node.clone(), member);
    let before = std::mem::take(list).into_iter();
    let mut all: BTreeMap<NodeId, Member> = before.chain(set).map(by_name).collect();
    all.retain(|name, _| !gone.contains(name));
    list.extend(all.into_values());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn member(name: &str, incarnation: u32) -> Member {
        Member {
            node: name.parse().unwrap(),
            incarnation,
            address: "h:1".into(),
        }
    }

    #[test]
    fn a_list_changes_by_name() {
        let mut list = vec![member("a", 1), member("b", 1), member("c", 1)];
        let set = vec![member("b", 2), member("d", 1)];
        change(&mut list, set, &["c".parse().unwrap()]);
        assert_eq!(list, [member("a", 1), member("b", 2), member("d", 1)]);
        // Told again, nothing is different.
        let again = list.clone();
        change(&mut list, vec![member("b", 2)], &["c".parse().unwrap()]);
        assert_eq!(list, again);
    }
}
