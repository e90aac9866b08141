//! Where a VM may run, and where it would rather run.
//!
//! A *hard* wish (`mode: required`) keeps nodes out; a *soft* one (`mode:
//! preferred`) only moves their scores, by its weight. A *topology* is `host`,
//! where every node is a domain of its own, or the name of a node label: the
//! nodes that carry the same value of it, such as a rack, are one domain, and
//! those without the label are in none.
//!
//! The rules name VMs by the labels that they carry, or one by its name. They
//! are looked at when a VM is placed, never while it runs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::id::VmName;
use crate::model::units::MiB;

/// The topology in which every node is a domain of its own.
pub const HOST: &str = "host";
/// The weight of a soft rule that names none.
pub const DEFAULT_WEIGHT: u32 = 100;
/// The largest weight of a soft rule.
pub const MAX_WEIGHT: u32 = 1000;

/// Where a VM may run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlacementSpec {
    /// Labels that a node has to carry, with these values.
    #[serde(default)]
    pub node_labels: BTreeMap<String, String>,
    /// Keep apart from VMs that carry the same value of this label of their own.
    #[serde(default)]
    pub spread_by: Option<String>,
    /// CPU features that the host has to offer, by QEMU's names: `avx2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu_features: Vec<String>,
    /// Taints of nodes that do not keep the VM away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// VMs to be near to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<AffinityRule>,
    /// VMs to be away from. A hard rule works both ways: what it keeps away
    /// is not placed beside the VM later either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anti_affinity: Vec<AffinityRule>,
    /// Groups to be spread evenly over the domains of a topology.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topology_spread: Vec<SpreadRule>,
    /// The placement profile of the coordinator's configuration that chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

impl PlacementSpec {
    /// Whether that taint of a node does not keep the VM away.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|one| one.covers(taint))
    }

    /// Every hard and soft rule's name, in the order of the fields.
    pub fn rule_names(&self) -> impl Iterator<Item = &str> {
        let near = self.affinity.iter().map(|rule| rule.name.as_str());
        let apart = self.anti_affinity.iter().map(|rule| rule.name.as_str());
        let even = self.topology_spread.iter().map(|rule| rule.name.as_str());
        near.chain(apart).chain(even)
    }
}

/// What a taint does to VMs that do not tolerate it.
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
#[serde(rename_all = "snake_case")]
pub enum TaintEffect {
    /// They are not placed there.
    #[default]
    NoSchedule,
    /// They are placed there when there is no better node.
    PreferNoSchedule,
}

/// A node's mark that keeps VMs away.
#[derive(
    Debug,
    Clone,
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
#[serde(deny_unknown_fields)]
pub struct Taint {
    /// Its name.
    pub key: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What it does.
    #[serde(default)]
    pub effect: TaintEffect,
}

impl std::fmt::Display for Taint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => f.write_str(&self.key),
        }
    }
}

/// Taints that do not keep the VM away.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// The taint's name.
    pub key: String,
    /// Its value; every value when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Its effect; either when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

impl Toleration {
    /// Whether that taint is tolerated.
    pub fn covers(&self, taint: &Taint) -> bool {
        let value = self.value.is_none() || self.value == taint.value;
        self.key == taint.key && value && self.effect.is_none_or(|e| e == taint.effect)
    }
}

/// Whether a rule has to be kept.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum RuleMode {
    /// A node that breaks it is no choice.
    #[default]
    Required,
    /// A node that keeps it scores higher.
    Preferred,
}

/// Being near to other VMs, or away from them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AffinityRule {
    /// What the rule is called in explanations: unique among the VM's rules.
    pub name: String,
    /// The other VMs, by the labels that each of them carries.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub group: BTreeMap<String, String>,
    /// The other VM, by its name, instead of a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmName>,
    /// In what to be together or apart: `host`, or a node label such as `zone`.
    #[serde(default = "host")]
    pub topology: String,
    /// Whether the rule has to be kept.
    #[serde(default)]
    pub mode: RuleMode,
    /// What a preferred rule weighs beside the scorers, 1 to 1000.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: u32,
}

/// Spreading a group evenly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SpreadRule {
    /// What the rule is called in explanations: unique among the VM's rules.
    pub name: String,
    /// Over what: `host`, or a node label such as `zone`.
    pub topology: String,
    /// By how many the fullest domain may exceed the emptiest, at least 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub max_skew: u32,
    /// The VMs that are counted, by their labels. Default: those with the same
    /// value of the label that `spread_by` names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub group: BTreeMap<String, String>,
    /// Whether the rule has to be kept.
    #[serde(default)]
    pub mode: RuleMode,
    /// What a preferred rule weighs beside the scorers, 1 to 1000.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: u32,
}

/// What the guest's memory is made of.
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
#[serde(deny_unknown_fields)]
pub struct MemoryBacking {
    /// The size of the host's pages that hold it.
    #[serde(default)]
    pub hugepages: Hugepages,
    /// Whether memory and vCPUs should fit into one NUMA node of the host.
    #[serde(default)]
    pub numa_fit: NumaFit,
}

impl MemoryBacking {
    /// Whether nothing was asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Sizes of the host's pages.
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
pub enum Hugepages {
    /// Ordinary pages.
    #[default]
    #[serde(rename = "none")]
    None,
    /// 2 MiB.
    #[serde(rename = "2MiB")]
    Mib2,
    /// 1 GiB.
    #[serde(rename = "1GiB")]
    Gib1,
}

impl Hugepages {
    /// One page; none for ordinary pages.
    pub const fn size(self) -> Option<MiB> {
        match self {
            Self::None => None,
            Self::Mib2 => Some(MiB(2)),
            Self::Gib1 => Some(MiB(1024)),
        }
    }
}

impl std::fmt::Display for Hugepages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Mib2 => "2MiB",
            Self::Gib1 => "1GiB",
        })
    }
}

/// Whether one NUMA node has to hold the whole VM.
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
#[serde(rename_all = "snake_case")]
pub enum NumaFit {
    /// It does not matter.
    #[default]
    None,
    /// Nodes where it does score higher.
    Preferred,
    /// Other nodes are no choice.
    Required,
}

fn host() -> String {
    HOST.to_owned()
}

const fn one() -> u32 {
    1
}

const fn default_weight() -> u32 {
    DEFAULT_WEIGHT
}
