//! `godwit placement`: the arguments.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use godwit_shared::model::{MiB, NodeId, Usage};

/// `godwit placement`.
#[derive(Debug, Subcommand)]
pub(crate) enum PlacementCommand {
    /// What if: VMs to place, nodes lost, nodes added. Nothing is touched
    #[command(after_help = SIMULATE_EXAMPLES)]
    Simulate(SimulateArgs),
    /// List the placement profiles with what they weigh
    Profiles,
}

const SIMULATE_EXAMPLES: &str = "\
A file has one VM's spec, or a list of them (YAML, JSON), or several as YAML
documents; in TOML, several under [[vms]]. The VMs of lost nodes are placed first.
What does not fit makes the exit code 1.

Examples:
  godwit placement simulate --lose node-2
  godwit placement simulate -f new-vms.yaml --room-for 2,4GiB
  godwit placement simulate -f web.yaml --add-like node-1=3
  godwit placement simulate --lose node-1 --add bigger.json -o json

--add takes a JSON or YAML file with the name and the facts of a node, as
`godwit node show NODE -o json` prints them.";

/// `godwit placement simulate`.
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// Place the VMs of this file; `-` is stdin; may be given several times
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Vec<PathBuf>,
    /// Without this node; may be given several times
    #[arg(long, value_name = "NODE")]
    pub(crate) lose: Vec<NodeId>,
    /// With so many more nodes like this one
    #[arg(long, value_name = "NODE=COUNT")]
    pub(crate) add_like: Vec<AddLike>,
    /// With the node of this file
    #[arg(long, value_name = "FILE")]
    pub(crate) add: Vec<PathBuf>,
    /// Count for how many VMs of this size there is room left
    #[arg(long, value_name = "VCPUS,MEMORY", value_parser = size)]
    pub(crate) room_for: Option<Usage>,
}

/// `node-1=3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddLike {
    /// The node.
    pub(crate) node: NodeId,
    /// How many more.
    pub(crate) count: u32,
}

impl FromStr for AddLike {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (node, count) = text.split_once('=').unwrap_or((text, "1"));
        let node = node.parse().map_err(|problem| format!("{problem}"))?;
        match count.parse() {
            Ok(count @ 1..=10_000) => Ok(Self { node, count }),
            _ => Err("give NODE=COUNT, with a count of 1 to 10000".to_owned()),
        }
    }
}

fn size(text: &str) -> Result<Usage, String> {
    let wrong = || "give vCPUs and memory, such as 2,4GiB".to_owned();
    let (vcpus, memory) = text.split_once(',').ok_or_else(wrong)?;
    let memory: MiB = memory.parse().map_err(|_| wrong())?;
    match vcpus.parse() {
        Ok(vcpus @ 1..) if memory > MiB::ZERO => Ok(Usage { vcpus, memory }),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_and_counts_are_read() {
        let four = Usage {
            vcpus: 2,
            memory: MiB(4096),
        };
        assert_eq!(size("2,4GiB"), Ok(four));
        for wrong in ["2", "0,4GiB", "2,0", "a,b"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!("node-1=3".parse::<AddLike>().unwrap().count, 3);
        assert_eq!("node-1".parse::<AddLike>().unwrap().count, 1);
        assert!("node-1=0".parse::<AddLike>().is_err());
    }
}
