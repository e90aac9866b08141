//! What a node says of itself: detected, and what its settings offer.

use godwit_shared::model::capacity::{Capacity, EmulatorFacts, NodeFacts};
use godwit_shared::model::{MiB, NodeId, Problem};

use crate::config::{CapacityConfig, HostPort, NodeConfig};
use crate::host::HostDescription;

/// vCPUs offered for each core of the host, where the settings say nothing.
const VCPUS_PER_CORE: u32 = 4;
/// Memory kept for the host and the daemon.
const HOST_RESERVE: MiB = MiB(512);

/// Puts the facts together.
pub fn node_facts(
    host: &HostDescription,
    config: &NodeConfig,
    emulators: Vec<EmulatorFacts>,
    address: &HostPort,
) -> NodeFacts {
    NodeFacts {
        software: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: host.hostname.clone(),
        boot_id: host.boot_id.clone(),
        kernel: host.kernel.clone(),
        capacity: capacity(config.capacity, host),
        physical: Capacity {
            vcpus: host.cores,
            memory: host.memory,
        },
        emulators,
        labels: config.labels.clone(),
        address: address.to_string(),
        ..NodeFacts::default()
    }
}

/// What is offered to guests: the settings' word, or what follows from the host.
pub fn capacity(config: CapacityConfig, host: &HostDescription) -> Capacity {
    let vcpus = host.cores.saturating_mul(VCPUS_PER_CORE);
    let memory = host.memory.saturating_sub(HOST_RESERVE);
    Capacity {
        vcpus: config.vcpus.unwrap_or(vcpus),
        memory: config.memory.unwrap_or(memory),
    }
}

/// The name under which a host joins when it is given none: the first part of
/// the host's name, in lower case.
pub fn default_name(hostname: &str) -> Result<NodeId, Problem> {
    let label = hostname.split('.').next().unwrap_or_default();
    label
        .to_ascii_lowercase()
        .parse()
        .map_err(|problem: Problem| {
            problem
                .field("name")
                .remedy("this host's name cannot be a node's name: give one with --name")
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn host() -> HostDescription {
        HostDescription {
            hostname: "Web-1.example.org".into(),
            boot_id: "b".into(),
            kernel: "6.1".into(),
            cores: 2,
            memory: MiB(4096),
        }
    }

    #[test]
    fn the_host_offers_what_it_has_unless_told_otherwise() {
        let offered = capacity(CapacityConfig::default(), &host());
        assert_eq!((offered.vcpus, offered.memory), (8, MiB(3584)));
        let set = CapacityConfig {
            vcpus: Some(1),
            memory: Some(MiB(64)),
        };
        let offered = capacity(set, &host());
        assert_eq!((offered.vcpus, offered.memory), (1, MiB(64)));
        let small = HostDescription {
            memory: MiB(256),
            ..host()
        };
        assert_eq!(
            capacity(CapacityConfig::default(), &small).memory,
            MiB::ZERO
        );
    }

    #[test]
    fn a_hosts_name_becomes_a_nodes_name() {
        assert_eq!(default_name("Web-1.example.org").unwrap().as_str(), "web-1");
        let problem = default_name("my_host").unwrap_err();
        assert_eq!(problem.field.as_deref(), Some("name"));
        assert!(problem.remedy.unwrap().contains("--name"));
    }
}
