//! The terms of the last grant on disk: a daemon that is restarted while the
//! coordinator is away still knows who may vouch for it.

use std::path::Path;

use godwit_node_logic::lease::SavedLease;
use godwit_shared::model::Problem;

use crate::host;

/// Keeps the terms.
pub(super) fn save(path: &Path, terms: &SavedLease) -> Result<(), Problem> {
    let text = serde_json::to_vec(terms).map_err(Problem::internal)?;
    host::write_file(path, &text)
}

/// The terms as they were last kept; the coordinator sends them anew.
pub(super) fn load(path: &Path) -> Option<SavedLease> {
    let text = std::fs::read(path).ok()?;
    serde_json::from_slice(&text)
        .inspect_err(|error| {
            tracing::warn!(%error, path = %path.display(), "the lease's terms cannot be read");
        })
        .ok()
}
