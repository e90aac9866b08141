//! What a node says of itself: detected, and what its settings offer.

use godwit_shared::model::capacity::{Capacity, EmulatorFacts, NodeFacts, Overcommit};
use godwit_shared::model::{MiB, NodeId, Problem};

use crate::config::{CapacityConfig, HostPort, NodeConfig};
use crate::host::HostDescription;
use crate::numa::{self, Roots};
use crate::reach;

/// Memory kept for the host and the daemon.
const HOST_RESERVE: MiB = MiB(512);

/// Puts the facts together; looks at the host's memory and networks. Blocks.
pub fn node_facts(
    host: &HostDescription,
    config: &NodeConfig,
    emulators: Vec<EmulatorFacts>,
    address: &HostPort,
    roots: &Roots,
) -> NodeFacts {
    let placement = &config.placement;
    let networks = placement.networks.clone();
    NodeFacts {
        software: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: host.hostname.clone(),
        boot_id: host.boot_id.clone(),
        kernel: host.kernel.clone(),
        capacity: capacity(config.capacity, placement.overcommit, host),
        physical: Capacity {
            vcpus: host.cores,
            memory: host.memory,
        },
        overcommit: placement.overcommit,
        emulators,
        labels: config.labels.clone(),
        address: address.to_string(),
        taints: placement.taints.clone(),
        numa: numa::read(roots),
        storage: placement.storage.as_deref().map(reach::storage),
        networks: Some(networks.unwrap_or_else(|| reach::networks(&roots.sys))),
        images: reach::images(&placement.images),
    }
}

/// What is offered to guests: the settings' word, or what the host has beside
/// what it needs itself, overcommitted.
pub fn capacity(
    config: CapacityConfig,
    overcommit: Overcommit,
    host: &HostDescription,
) -> Capacity {
    let vcpus = percent(u64::from(host.cores), overcommit.cpu_percent);
    let MiB(spare) = host.memory.saturating_sub(HOST_RESERVE);
    Capacity {
        vcpus: config
            .vcpus
            .unwrap_or_else(|| u32::try_from(vcpus).unwrap_or(u32::MAX)),
        memory: config
            .memory
            .unwrap_or(MiB(percent(spare, overcommit.memory_percent))),
    }
}

fn percent(of: u64, percent: u32) -> u64 {
    of.saturating_mul(u64::from(percent)) / 100
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
    use crate::config::Overrides;

    fn host() -> HostDescription {
        HostDescription {
            hostname: "Web-1.example.org".into(),
            boot_id: "b".into(),
            kernel: "6.1".into(),
            cores: 2,
            memory: MiB(4096),
        }
    }

    fn offered(settings: &str, host: &HostDescription) -> (u32, MiB) {
        let raw = godwit_shared::config::parse(settings, "node.toml").unwrap();
        let config = NodeConfig::check(raw, Overrides::default()).unwrap();
        let offered = capacity(config.capacity, config.placement.overcommit, host);
        (offered.vcpus, offered.memory)
    }

    #[test]
    fn the_host_offers_what_it_has_unless_told_otherwise() {
        assert_eq!(offered("", &host()), (8, MiB(3584)));
        let ratios = "overcommit = { cpu_percent = 250, memory_percent = 150 }\n";
        assert_eq!(offered(ratios, &host()), (5, MiB(5376)));
        let both = format!("{ratios}capacity = {{ vcpus = 1 }}");
        assert_eq!(
            offered(&both, &host()),
            (1, MiB(5376)),
            "what is set outright wins"
        );
        let set = "capacity = { vcpus = 1, memory = 64 }";
        assert_eq!(offered(set, &host()), (1, MiB(64)));
        let small = HostDescription {
            memory: MiB(256),
            ..host()
        };
        assert_eq!(offered("", &small).1, MiB::ZERO);
    }

    #[test]
    fn settings_win_over_what_is_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("class/net/br0/bridge")).unwrap();
        let roots = Roots {
            sys: dir.path().into(),
            proc: dir.path().into(),
        };
        let address = HostPort::check("address", "a:1").unwrap();
        let facts = |settings: &str| {
            let raw = godwit_shared::config::parse(settings, "node.toml").unwrap();
            let config = NodeConfig::check(raw, Overrides::default()).unwrap();
            node_facts(&host(), &config, Vec::new(), &address, &roots)
        };
        let found = facts("");
        assert_eq!(found.networks.unwrap(), ["user", "br0"]);
        assert!(found.storage.is_none() && found.taints.is_empty() && found.numa.is_empty());
        let set = facts("taints = [\"a=b\"]\nnetworks = [\"lan\"]\nstorage = [{ path = \"/\" }]");
        assert_eq!(set.networks.unwrap(), ["lan"]);
        assert_eq!((set.taints.len(), set.storage.unwrap().len()), (1, 1));
    }

    #[test]
    fn a_hosts_name_becomes_a_nodes_name() {
        assert_eq!(default_name("Web-1.example.org").unwrap().as_str(), "web-1");
        let problem = default_name("my_host").unwrap_err();
        assert_eq!(problem.field.as_deref(), Some("name"));
        assert!(problem.remedy.unwrap().contains("--name"));
    }
}
