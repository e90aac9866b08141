//! Where devices sit on the guest's buses.
//!
//! Addresses are fixed by class and index, never left to QEMU: adding a disk
//! does not move a network card, and both sides of a migration agree.
//!
//! ```text
//! pcie.0 (q35, virt)                       pci.0 (pseries)
//!   01    virtio-scsi                        01    virtio-scsi
//!   02    virtio-serial (agent)              02    virtio-serial (agent)
//!   03    virtio-rng                         03    virtio-rng
//!   04-05 root ports of network cards        04-13 network cards
//!   06-09 root ports of virtio disks         14-17 virtio disks, eight a slot
//!   0a    root ports kept for hotplug        18-1f kept for hotplug
//!   0b    pvpanic-pci (virt)
//!   0c-11 AHCI beyond the built-in one (q35)
//! ```

use godwit_shared::model::spec::Architecture;
use serde_json::{Map, Value, json};

/// Root ports without a device, for hotplug.
pub(super) const SPARE_PORTS: usize = 4;
/// Functions of one PCI slot.
const FUNCTIONS: usize = 8;
/// Ports of one AHCI controller.
pub(super) const AHCI_PORTS: usize = 6;

/// Devices that stand on the root bus itself.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fixed {
    Scsi,
    Serial,
    Rng,
    Pvpanic,
    Ahci(usize),
}

/// What a device is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) bus: String,
    pub(super) address: String,
    /// Function 0 of a slot that has more of them.
    pub(super) multifunction: bool,
}

/// Classes of devices that get a place of their own by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Nic,
    Disk,
    Spare,
}

impl Class {
    fn first_slot(self) -> usize {
        match self {
            Self::Nic => 0x04,
            Self::Disk => 0x06,
            Self::Spare => 0x0a,
        }
    }

    /// Chassis numbers have to be unique among all root ports.
    fn first_chassis(self) -> usize {
        match self {
            Self::Nic => 1,
            Self::Disk => 17,
            Self::Spare => 49,
        }
    }

    fn port(self, index: usize) -> String {
        let name = match self {
            Self::Nic => "nic",
            Self::Disk => "disk",
            Self::Spare => "spare",
        };
        format!("port-{name}{index}")
    }
}

/// Whether the architecture's machine has PCI Express with root ports.
pub(super) const fn has_root_ports(architecture: Architecture) -> bool {
    matches!(architecture, Architecture::X86_64 | Architecture::Aarch64)
}

/// The machine's root bus.
const fn root_bus(architecture: Architecture) -> &'static str {
    if has_root_ports(architecture) {
        "pcie.0"
    } else {
        "pci.0"
    }
}

/// Where a device on the root bus stands.
pub(super) fn fixed(architecture: Architecture, device: Fixed) -> Place {
    let slot = match device {
        Fixed::Scsi => 0x01,
        Fixed::Serial => 0x02,
        Fixed::Rng => 0x03,
        Fixed::Pvpanic => 0x0b,
        Fixed::Ahci(index) => 0x0c + index,
    };
    place(root_bus(architecture), slot, 0, false)
}

/// Where the device of that class and index stands: behind its root port, or
/// on the root bus where there are none.
pub(super) fn indexed(architecture: Architecture, class: Class, index: usize) -> Place {
    if has_root_ports(architecture) {
        return place(&class.port(index), 0, 0, false);
    }
    let bus = root_bus(architecture);
    match class {
        Class::Disk => place(
            bus,
            0x14 + index / FUNCTIONS,
            index % FUNCTIONS,
            index.is_multiple_of(FUNCTIONS),
        ),
        Class::Nic | Class::Spare => place(bus, 0x04 + index, 0, false),
    }
}

/// The root port for that class and index.
pub(super) fn root_port(class: Class, index: usize) -> Value {
    let (slot, function) = (class.first_slot() + index / FUNCTIONS, index % FUNCTIONS);
    let chassis = class.first_chassis() + index;
    let at = place("pcie.0", slot, function, function == 0);
    at.plug(json!({
        "driver": "pcie-root-port",
        "id": class.port(index),
        "chassis": chassis,
        "port": chassis,
    }))
}

fn place(bus: &str, slot: usize, function: usize, multifunction: bool) -> Place {
    let address = if function == 0 {
        format!("{slot:#x}")
    } else {
        format!("{slot:#x}.{function:#x}")
    };
    Place {
        bus: bus.to_owned(),
        address,
        multifunction,
    }
}

impl Place {
    /// The device with its bus and address.
    pub(super) fn plug(self, device: Value) -> Value {
        let mut device: Map<String, Value> = match device {
            Value::Object(device) => device,
            _ => Map::new(),
        };
        device.insert("bus".into(), self.bus.into());
        device.insert("addr".into(), self.address.into());
        if self.multifunction {
            device.insert("multifunction".into(), true.into());
        }
        Value::Object(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_devices_share_a_place() {
        for architecture in [Architecture::X86_64, Architecture::Ppc64] {
            let mut seen = HashSet::new();
            let mut take = |place: Place| {
                let key = format!("{} {}", place.bus, place.address);
                assert!(seen.insert(key.clone()), "{architecture}: {key}");
            };
            for device in [Fixed::Scsi, Fixed::Serial, Fixed::Rng, Fixed::Pvpanic] {
                // pvpanic-pci is for `virt` only; on pseries the slot is a card's.
                if has_root_ports(architecture) || !matches!(device, Fixed::Pvpanic) {
                    take(fixed(architecture, device));
                }
            }
            (0..16).for_each(|i| take(indexed(architecture, Class::Nic, i)));
            (0..32).for_each(|i| take(indexed(architecture, Class::Disk, i)));
        }
    }

    #[test]
    fn root_ports_have_addresses_and_chassis_of_their_own() {
        let mut seen = HashSet::new();
        for (class, count) in [
            (Class::Nic, 16),
            (Class::Disk, 32),
            (Class::Spare, SPARE_PORTS),
        ] {
            for index in 0..count {
                let port = root_port(class, index);
                assert!(seen.insert(port["addr"].to_string()));
                assert!(seen.insert(format!("chassis {}", port["chassis"])));
            }
        }
    }
}
