//! What if: nodes lost or added, VMs to place. Nothing is touched.

use std::collections::{BTreeMap, BTreeSet};

use godwit_shared::api::{AddedNode, ProfileView, SimulateRequest, SimulationView};
use godwit_shared::model::{NodeFacts, NodeId, Problem, VmName, VmSpec, codes};

use super::Cluster;
use crate::placement::{What, simulate};

/// Most VMs, and most nodes, that one question may add.
const MOST: usize = 10_000;

impl Cluster {
    /// Where everything would go, what would not fit, and how much room is left.
    pub fn simulate(&self, request: &SimulateRequest) -> Result<SimulationView, Problem> {
        let mut found = Vec::new();
        few("vms", request.vms.len(), &mut found);
        few("added", request.added.len(), &mut found);
        self.check_vms(&request.vms, &mut found);
        let lost = self.check_lost(&request.lost, &mut found);
        let added = self.check_added(&request.added, &mut found);
        Problem::refuse(found)?;
        let what = What {
            vms: &request.vms,
            lost: &lost,
            added: &added,
            room_for: request.room_for,
            profiles: &self.settings.placement,
        };
        Ok(simulate(&self.snapshot(None), &what))
    }

    /// What each profile weighs, the one of VMs that name none first.
    pub fn profiles(&self) -> Vec<ProfileView> {
        let profiles = &self.settings.placement;
        let default = std::iter::once((None, &profiles.default));
        let named = profiles
            .profiles
            .iter()
            .map(|(name, w)| (Some(name.clone()), w));
        default
            .chain(named)
            .map(|(name, weights)| ProfileView {
                name,
                weights: weights
                    .named()
                    .into_iter()
                    .map(|(scorer, weight)| (scorer.to_owned(), weight))
                    .collect(),
            })
            .collect()
    }

    fn check_vms(&self, vms: &[VmSpec], found: &mut Vec<Problem>) {
        let mut names: BTreeSet<&VmName> = BTreeSet::new();
        for (index, spec) in vms.iter().enumerate() {
            let problems = spec.problems().into_iter();
            found.extend(problems.map(|problem| under(&format!("vms[{index}]"), problem)));
            let taken = self.observed.names.contains_key(&spec.name);
            if taken || !names.insert(&spec.name) {
                let text = format!("there is a VM `{}` already", spec.name);
                let remedy = "give every VM a name of its own";
                found.push(Problem::new(codes::ALREADY_EXISTS, text).remedy(remedy));
            }
        }
    }

    fn check_lost(&self, lost: &[NodeId], found: &mut Vec<Problem>) -> BTreeSet<NodeId> {
        let unknown = lost.iter().filter_map(|node| self.member(node).err());
        found.extend(unknown.map(|problem| problem.field("lost")));
        lost.iter().cloned().collect()
    }

    fn check_added(
        &self,
        added: &[AddedNode],
        found: &mut Vec<Problem>,
    ) -> BTreeMap<NodeId, NodeFacts> {
        let mut nodes = BTreeMap::new();
        for one in added {
            let taken = self.member(&one.name).is_ok() || nodes.contains_key(&one.name);
            if taken {
                let text = format!("there is a node `{}` already", one.name);
                let remedy = "give every added node a name of its own";
                found.push(Problem::new(codes::NODE_NAME_TAKEN, text).remedy(remedy));
            }
            match self.facts_of(one) {
                Ok(facts) => drop(nodes.insert(one.name.clone(), facts)),
                Err(problem) => found.push(problem),
            }
        }
        nodes
    }

    /// What the added node would say of itself.
    fn facts_of(&self, added: &AddedNode) -> Result<NodeFacts, Problem> {
        if let Some(facts) = &added.facts {
            return Ok(facts.clone());
        }
        let Some(like) = &added.like else {
            let text = format!("nothing is said of the added node `{}`", added.name);
            let remedy = "name a node that it is like, or give its facts";
            return Err(Problem::new(codes::BODY_INVALID, text)
                .field("added")
                .remedy(remedy));
        };
        let record = self
            .member(like)
            .map_err(|problem| problem.field("added"))?;
        record.facts.clone().ok_or_else(|| {
            let text = format!("{like} has never connected, so nothing is known of it");
            let remedy = "name another node, or give the facts";
            Problem::new(codes::STATE_CONFLICT, text)
                .field("added")
                .remedy(remedy)
        })
    }
}

fn few(field: &str, count: usize, found: &mut Vec<Problem>) {
    if count > MOST {
        let text = format!("{count} are more than one question may have");
        let remedy = format!("give at most {MOST}");
        found.push(
            Problem::new(codes::BODY_INVALID, text)
                .field(field)
                .remedy(remedy),
        );
    }
}

fn under(place: &str, problem: Problem) -> Problem {
    let field = problem.field.clone().unwrap_or_default();
    problem.field(format!("{place}.{field}"))
}
