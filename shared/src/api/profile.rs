//! Placement profiles, as operators see them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What placement weighs for the VMs that name this profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ProfileView {
    /// Its name; none is that of the VMs that name none.
    pub name: Option<String>,
    /// The scorers' weights; 0 is switched off.
    pub weights: BTreeMap<String, u32>,
}
