//! The cluster's member list on disk: a node that starts while its coordinator
//! is away still knows which peers to let in.

use std::path::Path;

use godwit_shared::model::Problem;
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
