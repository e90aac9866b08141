//! `godwit node taint`, `untaint` and `label`: the arguments.

use std::str::FromStr;

use clap::Args;
use godwit_shared::model::NodeId;
use godwit_shared::model::spec::{Taint, TaintEffect, Toleration};

use super::parse::Label;

pub(super) const TAINT_EXAMPLES: &str = "\
A taint is KEY, KEY=VALUE, and either with its effect behind it: no_schedule (the
default) keeps VMs away, prefer_no_schedule does as long as there is a better node.
A VM that tolerates it (placement.tolerations) is placed there all the same. VMs
that are there stay.

Examples:
  godwit node taint node-3 gpu=a100
  godwit node taint node-3 old-disks:prefer_no_schedule
  godwit node untaint node-3 gpu             whatever its value";

pub(super) const LABEL_EXAMPLES: &str = "\
KEY- takes a label away. Those of the node's own settings stay, but for their value.

Examples:
  godwit node label node-3 zone=b rack=7
  godwit node label node-3 rack-";

/// `godwit node taint`.
#[derive(Debug, Args)]
pub(crate) struct TaintArgs {
    /// The node
    pub(crate) node: NodeId,
    /// The taints
    #[arg(required = true, value_name = "KEY[=VALUE][:EFFECT]")]
    pub(crate) taints: Vec<Taint>,
}

/// `godwit node untaint`.
#[derive(Debug, Args)]
pub(crate) struct UntaintArgs {
    /// The node
    pub(crate) node: NodeId,
    /// The taints; without a value or an effect, whatever those are
    #[arg(required = true, value_name = "KEY[=VALUE][:EFFECT]", value_parser = covering)]
    pub(crate) taints: Vec<Toleration>,
}

/// `godwit node label`.
#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    /// The node
    pub(crate) node: NodeId,
    /// The labels
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    pub(crate) labels: Vec<LabelChange>,
}

/// One change of a node's labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LabelChange {
    /// `k=v`.
    Set(Label),
    /// `k-`.
    Remove(String),
}

impl FromStr for LabelChange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(label) = text.parse() {
            return Ok(Self::Set(label));
        }
        match text.strip_suffix('-') {
            Some(key) if !key.is_empty() => Ok(Self::Remove(key.to_owned())),
            _ => Err("a label is given as KEY=VALUE, or KEY- to take it away".to_owned()),
        }
    }
}

/// What covers the taints of that text.
fn covering(text: &str) -> Result<Toleration, String> {
    let effect = text.split_once(':').map(|(_, effect)| effect.parse());
    let effect: Option<TaintEffect> = effect.transpose().map_err(told)?;
    let taint: Taint = text.parse().map_err(told)?;
    Ok(Toleration {
        key: taint.key,
        value: taint.value,
        effect,
    })
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn labels_are_set_and_taken_away() {
        let set: LabelChange = "zone=b-".parse().unwrap();
        assert!(matches!(set, LabelChange::Set(label) if label.value == "b-"));
        let gone: LabelChange = "zone-".parse().unwrap();
        assert_eq!(gone, LabelChange::Remove("zone".into()));
        assert!("zone".parse::<LabelChange>().is_err());
        assert!("-".parse::<LabelChange>().is_err());
    }

    #[test]
    fn a_key_alone_covers_every_taint_of_that_key() {
        let all = covering("gpu").unwrap();
        for text in ["gpu", "gpu=a100:prefer_no_schedule"] {
            assert!(all.covers(&text.parse().unwrap()), "{text}");
        }
        let one = covering("gpu=a100:no_schedule").unwrap();
        assert!(!one.covers(&"gpu".parse().unwrap()));
        assert!(covering("gpu:sometimes").is_err());
    }
}
