//! The rules that tie VMs to one another, counted over a snapshot.
//!
//! A rule counts the VMs of its group in each domain of its topology. What the
//! count means is said once, in [`Kind`], for whoever counts: the snapshot here,
//! and the index.

use std::collections::{BTreeMap, BTreeSet};

use godwit_shared::model::spec::placement::HOST;
use godwit_shared::model::spec::{AffinityRule, RuleMode, SpreadRule};
use godwit_shared::model::{VmName, VmSpec};

use super::request::{Candidate, Request};
use super::score::BEST;

/// What a rule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// A domain with VMs of the group.
    Near,
    /// A domain without.
    Apart,
    /// No domain with much more of them than another.
    Even {
        /// By how many it may have more.
        max_skew: u32,
    },
}

/// What is known of the VMs of a rule's group in one domain and elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Count {
    /// In the domain.
    pub(super) here: u32,
    /// In that live domain which has the fewest.
    pub(super) least: u32,
    /// In all.
    pub(super) all: u32,
    /// The VM itself belongs to the group.
    pub(super) own: bool,
}

impl Kind {
    /// Whether a VM placed there would break the rule; none is a node outside
    /// of the topology. The first VM of a group is near to itself.
    pub(super) fn broken(self, count: Option<Count>) -> bool {
        match (self, count) {
            (Self::Apart, None) => false,
            (_, None) => true,
            (Self::Near, Some(count)) => count.here == 0 && !(count.own && count.all == 0),
            (Self::Apart, Some(count)) => count.here > 0,
            (Self::Even { max_skew }, Some(count)) => {
                skew(count).saturating_add(u32::from(count.own)) > max_skew
            }
        }
    }

    /// How well a VM there would keep the rule: 0 to [`BEST`].
    pub(super) fn points(self, count: Option<Count>) -> u32 {
        match (self, count) {
            (Self::Apart, None) => BEST,
            (_, None) => 0,
            (Self::Near, Some(count)) => BEST * u32::from(count.here > 0),
            (Self::Apart, Some(count)) => BEST / count.here.saturating_add(1),
            (Self::Even { max_skew }, Some(count)) => {
                let share = u64::from(BEST) * u64::from(max_skew);
                let of = u64::from(max_skew) + u64::from(skew(count));
                u32::try_from(share.checked_div(of).unwrap_or(0)).unwrap_or(BEST)
            }
        }
    }
}

fn skew(count: Count) -> u32 {
    count.here - count.least.min(count.here)
}

/// The VMs that a rule counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group<'a> {
    /// Those that carry all of these labels.
    Labels(&'a BTreeMap<String, String>),
    /// Those that carry this one.
    Label(&'a str, &'a str),
    /// The one of that name.
    Vm(&'a VmName),
    /// None at all.
    Nobody,
}

impl<'a> Group<'a> {
    pub(super) fn has(self, vm: &VmSpec) -> bool {
        match self {
            Self::Labels(labels) => labels.iter().all(|(k, v)| vm.labels.get(k) == Some(v)),
            Self::Label(key, value) => vm.labels.get(key).is_some_and(|own| own == value),
            Self::Vm(name) => vm.name == *name,
            Self::Nobody => false,
        }
    }

    /// The VMs with the same value of the label that `spread_by` names.
    fn kin(spec: &'a VmSpec) -> Self {
        let key = spec.placement.spread_by.as_deref();
        let own = key.and_then(|key| Some((key, spec.labels.get(key)?)));
        own.map_or(Self::Nobody, |(key, value)| Self::Label(key, value))
    }
}

/// A rule of the VM that is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish<'a> {
    pub(super) kind: Kind,
    /// None for `spread_by`, which is no rule.
    pub(super) name: Option<&'a str>,
    pub(super) topology: &'a str,
    pub(super) group: Group<'a>,
    pub(super) mode: RuleMode,
    pub(super) weight: u32,
}

/// Every rule of that VM.
pub(super) fn wishes(spec: &VmSpec) -> impl Iterator<Item = Wish<'_>> {
    let placement = &spec.placement;
    let spread = placement.spread_by.iter().map(|_| Wish {
        kind: Kind::Apart,
        name: None,
        topology: HOST,
        group: Group::kin(spec),
        mode: RuleMode::Preferred,
        weight: 0,
    });
    let near = placement.affinity.iter().map(|r| affinity(Kind::Near, r));
    let apart = placement
        .anti_affinity
        .iter()
        .map(|r| affinity(Kind::Apart, r));
    let even = placement.topology_spread.iter().map(|r| even(spec, r));
    spread.chain(near).chain(apart).chain(even)
}

fn affinity(kind: Kind, rule: &AffinityRule) -> Wish<'_> {
    Wish {
        kind,
        name: Some(&rule.name),
        topology: &rule.topology,
        group: match &rule.vm {
            Some(name) => Group::Vm(name),
            None => Group::Labels(&rule.group),
        },
        mode: rule.mode,
        weight: rule.weight,
    }
}

fn even<'a>(spec: &'a VmSpec, rule: &'a SpreadRule) -> Wish<'a> {
    Wish {
        kind: Kind::Even {
            max_skew: rule.max_skew,
        },
        name: Some(&rule.name),
        topology: &rule.topology,
        group: if rule.group.is_empty() {
            Group::kin(spec)
        } else {
            Group::Labels(&rule.group)
        },
        mode: rule.mode,
        weight: rule.weight,
    }
}

/// A rule with its counts.
#[derive(Debug, Clone)]
pub(super) struct Rule<'a> {
    pub(super) wish: Wish<'a>,
    counts: BTreeMap<&'a str, u32>,
    /// In that live domain which has the fewest; none when none is live.
    least: Option<u32>,
    all: u32,
    own: bool,
}

impl Rule<'_> {
    /// What the rule counts where that node is.
    pub(super) fn count(&self, candidate: &Candidate<'_>) -> Option<Count> {
        let domain = candidate.domain(self.wish.topology)?;
        Some(Count {
            here: self.counts.get(domain).copied().unwrap_or_default(),
            least: self.least.unwrap_or_default(),
            all: self.all,
            own: self.own,
        })
    }
}

/// A hard rule of another VM that keeps the VM out of a domain.
#[derive(Debug, Clone)]
pub(super) struct Foreign<'a> {
    pub(super) vm: &'a VmName,
    pub(super) name: &'a str,
    pub(super) topology: &'a str,
    pub(super) domain: &'a str,
}

/// Every rule that has a say in one decision.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules<'a> {
    pub(super) own: Vec<Rule<'a>>,
    pub(super) foreign: Vec<Foreign<'a>>,
    /// Some node has a taint that VMs had better avoid.
    pub(super) soft_taints: bool,
}

impl<'a> Rules<'a> {
    /// Counts over those nodes.
    pub(super) fn of(nodes: &[Candidate<'a>], request: &Request<'a>) -> Self {
        let own = wishes(request.spec).map(|wish| counted(nodes, request, wish));
        let soft = |node: &Candidate<'_>| {
            let taints = node.facts.into_iter().flat_map(|facts| &facts.taints);
            taints.into_iter().any(super::score::soft)
        };
        Self {
            own: own.collect(),
            foreign: foreign(nodes, request),
            soft_taints: nodes.iter().any(soft),
        }
    }

    /// A node that was out of the count is in it now.
    pub(super) fn join(&mut self, node: &Candidate<'_>) {
        for rule in &mut self.own {
            if let Some(domain) = node.domain(rule.wish.topology) {
                let here = rule.counts.get(domain).copied().unwrap_or_default();
                rule.least = Some(rule.least.map_or(here, |least| least.min(here)));
            }
        }
    }
}

fn counted<'a>(nodes: &[Candidate<'a>], request: &Request<'a>, wish: Wish<'a>) -> Rule<'a> {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut live: BTreeSet<&str> = BTreeSet::new();
    let mut all = 0;
    for node in nodes {
        let members = node.vms.iter().filter(|vm| wish.group.has(vm)).count();
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        all += members;
        if let Some(domain) = node.domain(wish.topology) {
            *counts.entry(domain).or_default() += members;
            if node.live() {
                live.insert(domain);
            }
        }
    }
    let least = live.iter().filter_map(|domain| counts.get(domain)).min();
    Rule {
        least: least.copied(),
        own: wish.group.has(request.spec),
        all,
        counts,
        wish,
    }
}

/// Whom the VM would disturb.
fn foreign<'a>(nodes: &[Candidate<'a>], request: &Request<'a>) -> Vec<Foreign<'a>> {
    let mut found = Vec::new();
    for node in nodes {
        for vm in &node.vms {
            let hard = hard_apart(vm).filter(|(_, wish)| wish.group.has(request.spec));
            for (name, wish) in hard {
                if let Some(domain) = node.domain(wish.topology) {
                    let (vm, topology) = (&vm.name, wish.topology);
                    found.push(Foreign {
                        vm,
                        name,
                        topology,
                        domain,
                    });
                }
            }
        }
    }
    found
}

/// The rules of a VM that keep others away from it.
pub(super) fn hard_apart(vm: &VmSpec) -> impl Iterator<Item = (&str, Wish<'_>)> {
    let rules = vm.placement.anti_affinity.iter();
    let hard = rules.filter(|rule| rule.mode == RuleMode::Required);
    hard.map(|rule| (rule.name.as_str(), affinity(Kind::Apart, rule)))
}
