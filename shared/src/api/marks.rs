//! Labels and taints of nodes that operators set at run time, beside those of
//! the node's own settings.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::spec::{Taint, Toleration};

/// Changes of a node's labels and taints, all at once or none of them. Those of
/// the node's own settings stay: they are changed there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MarkRequest {
    /// Taints that the node gets.
    pub taint: Vec<Taint>,
    /// Taints that it loses: every one that these cover.
    pub untaint: Vec<Toleration>,
    /// Labels that it gets, or that get another value.
    pub label: BTreeMap<String, String>,
    /// Labels that it loses.
    pub unlabel: BTreeSet<String>,
}

/// Labels and taints of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(default)]
pub struct Marks {
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
}

impl Marks {
    /// These, with those of `other` over them.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.labels.extend(other.labels.clone());
        for taint in &other.taints {
            all.taint(taint.clone());
        }
        all
    }

    /// Adds a taint that is not there yet.
    pub fn taint(&mut self, taint: Taint) {
        if !self.taints.contains(&taint) {
            self.taints.push(taint);
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.taints.is_empty()
    }
}
