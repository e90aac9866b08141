//! Clusters as Ganeti's `htools` write them (`hbal -t FILE`, `hspace -S FILE`).
//!
//! Five parts with empty lines between them: groups, nodes, instances, cluster
//! tags, instance policies; a line for each, fields between bars (htools 3.0,
//! `Ganeti.HTools.Backend.Text`):
//!
//! ```text
//! node:     name|memory|of the host|free|disk|free|CPUs|N, M, or Y when offline|group|spindles|tags|...|...|CPUs of the host|speed
//! instance: name|memory|disk|vCPUs|status|balanced|node|secondary|template|tags|...
//! policy:   group|standard|bounds|templates|vCPU ratio|spindle ratio
//! ```
//!
//! Only what the balancing of VMs with one node each needs is read; the rest of
//! the lines is kept and written back. Memory and disk are in MiB. Disks of the
//! templates `ext`, `sharedfile`, `rbd` and the like are not a node's, so a move
//! leaves the free disk of the nodes alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Guest, Host, Model, Move, Room};

/// A file that is not one of htools'.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the htools text: {why}")]
pub struct TextError {
    /// Which line, from 1; 0 for the whole.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

/// A cluster, with the lines that it was read from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HbalCluster {
    /// What Godwit sees of it.
    pub model: Model,
    groups: Vec<String>,
    nodes: Vec<Vec<String>>,
    instances: Vec<Vec<String>>,
    tail: Vec<String>,
}

/// Where the fields of a node are.
mod node {
    pub(super) const NAME: usize = 0;
    pub(super) const MEMORY: usize = 1;
    pub(super) const OWN: usize = 2;
    pub(super) const FREE: usize = 3;
    pub(super) const CPUS: usize = 6;
    pub(super) const ROLE: usize = 7;
    pub(super) const OWN_CPUS: usize = 13;
}

/// Where the fields of an instance are.
mod instance {
    pub(super) const NAME: usize = 0;
    pub(super) const MEMORY: usize = 1;
    pub(super) const VCPUS: usize = 3;
    pub(super) const BALANCED: usize = 5;
    pub(super) const NODE: usize = 6;
    pub(super) const SECONDARY: usize = 7;
}

impl HbalCluster {
    /// Reads a file.
    ///
    /// # Errors
    /// With the first line that cannot be read; instances with a secondary node
    /// are refused, since moving them means copying disks.
    pub fn read(text: &str) -> Result<Self, TextError> {
        let mut cluster = Self::default();
        let mut part = 0;
        let mut names = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let at = |why: String| TextError {
                line: index + 1,
                why,
            };
            if line.is_empty() && part < 3 {
                part += 1;
                continue;
            }
            match part {
                0 => cluster.groups.push(line.to_owned()),
                1 => cluster.add_node(line, &mut names).map_err(at)?,
                2 => cluster.add_instance(line, &names).map_err(at)?,
                _ => cluster.tail.push(line.to_owned()),
            }
        }
        cluster.set_limits();
        Ok(cluster)
    }

    fn add_node(&mut self, line: &str, names: &mut BTreeMap<String, usize>) -> Result<(), String> {
        let fields: Vec<String> = line.split('|').map(str::to_owned).collect();
        let memory = number(&fields, node::MEMORY)?;
        let cpus = number(&fields, node::CPUS)?;
        let own = number(&fields, node::OWN)?;
        let own_cpus = number(&fields, node::OWN_CPUS).unwrap_or(0);
        let name = text(&fields, node::NAME)?;
        names.insert(name.clone(), self.model.hosts.len());
        let open = text(&fields, node::ROLE)? != "Y";
        self.model.hosts.push(Host {
            name,
            // The count of VMs is a load as it is.
            capacity: [memory, cpus, 0, 1],
            limit: [memory, cpus, u64::MAX, u64::MAX],
            used: [own, own_cpus, 0, 0],
            open,
        });
        self.nodes.push(fields);
        Ok(())
    }

    fn add_instance(&mut self, line: &str, names: &BTreeMap<String, usize>) -> Result<(), String> {
        let fields: Vec<String> = line.split('|').map(str::to_owned).collect();
        if !text(&fields, instance::SECONDARY)?.is_empty() {
            return Err("the instance has a secondary node".into());
        }
        let on = text(&fields, instance::NODE)?;
        let host = *names.get(&on).ok_or(format!("there is no node {on}"))?;
        let takes: Room = [
            number(&fields, instance::MEMORY)?,
            number(&fields, instance::VCPUS)?,
            0,
            1,
        ];
        super::add(&mut self.model.hosts[host].used, &takes);
        self.model.guests.push(Guest {
            name: text(&fields, instance::NAME)?,
            host,
            takes,
            movable: text(&fields, instance::BALANCED)? == "Y",
            hosts: None,
        });
        self.instances.push(fields);
        Ok(())
    }

    /// The vCPU ratio of the cluster's own policy, the first in the file.
    fn set_limits(&mut self) {
        let policy = self.tail.iter().find(|line| line.contains('|'));
        let ratio = policy.and_then(|line| line.split('|').nth(4)?.parse::<f64>().ok());
        for host in &mut self.model.hosts {
            host.limit[1] = times(host.capacity[1], ratio.unwrap_or(4.0));
        }
    }

    /// The file, with the VMs where they are after those moves.
    pub fn write(&self, moves: &[Move]) -> String {
        let mut places: Vec<usize> = self.model.guests.iter().map(|guest| guest.host).collect();
        for one in moves {
            places[one.guest] = one.to;
        }
        let mut taken = vec![0; self.model.hosts.len()];
        for (guest, place) in self.model.guests.iter().zip(&places) {
            taken[*place] += guest.takes[0];
        }
        let mut text = String::new();
        self.groups.iter().for_each(|line| push(&mut text, line));
        push(&mut text, "");
        for (fields, taken) in self.nodes.iter().zip(taken) {
            let own = number(fields, node::OWN).unwrap_or(0);
            let all = number(fields, node::MEMORY).unwrap_or(0);
            let mut fields = fields.clone();
            fields[node::FREE] = all.saturating_sub(own + taken).to_string();
            push(&mut text, &fields.join("|"));
        }
        push(&mut text, "");
        for (fields, place) in self.instances.iter().zip(places) {
            let mut fields = fields.clone();
            fields[instance::NODE].clone_from(&self.model.hosts[place].name);
            push(&mut text, &fields.join("|"));
        }
        push(&mut text, "");
        self.tail.iter().for_each(|line| push(&mut text, line));
        text
    }

    /// The moves that lead from this cluster to the other, which has the same VMs.
    pub fn moves_to(&self, other: &Self) -> Vec<Move> {
        let there = other.model.guests.iter();
        let there: BTreeMap<&str, &str> = there
            .map(|guest| {
                let host = &other.model.hosts[guest.host];
                (guest.name.as_str(), host.name.as_str())
            })
            .collect();
        let hosts = self.model.hosts.iter().enumerate();
        let hosts: BTreeMap<&str, usize> = hosts
            .map(|(index, host)| (host.name.as_str(), index))
            .collect();
        let guests = self.model.guests.iter().enumerate();
        let moves = guests.filter_map(|(guest, was)| {
            let to = *hosts.get(*there.get(was.name.as_str())?)?;
            (to != was.host).then_some(Move {
                guest,
                from: was.host,
                to,
            })
        });
        moves.collect()
    }
}

fn push(text: &mut String, line: &str) {
    // A `String` takes all that is written.
    let _ = writeln!(text, "{line}");
}

fn text(fields: &[String], at: usize) -> Result<String, String> {
    let field = fields.get(at).cloned();
    field.ok_or(format!("field {} is missing", at + 1))
}

fn number(fields: &[String], at: usize) -> Result<u64, String> {
    let field = text(fields, at)?;
    let whole = field.split('.').next().unwrap_or_default();
    let wrong = || format!("field {} is `{field}`, not a number", at + 1);
    whole.parse().map_err(|_| wrong())
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of CPUs times a small ratio"
)]
fn times(cpus: u64, ratio: f64) -> u64 {
    (cpus as f64 * ratio.max(0.0)) as u64
}
