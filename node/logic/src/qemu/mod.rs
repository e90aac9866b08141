//! QEMU as a program: which one, with what arguments, and what it can do.
//!
//! * [`plan`] decides how a spec is run on this host: [`LaunchPlan`];
//! * [`backing`] chooses what the guest's memory is made of;
//! * [`argv`] spells a plan out;
//! * [`facts`] reads what a probed QEMU says of itself, and decides whether KVM
//!   really works.
//!
//! # Invariants
//! * The same plan gives the same arguments on every node: both sides of a
//!   migration build the same machine, down to the addresses of its devices. Only the NUMA node of its memory may differ.
//! * Paths and names never reach a comma-separated option unescaped.
//! * The CPUs never run by themselves (`-S`): the daemon says `cont`.

pub mod argv;
pub mod backing;
mod devices;
pub mod facts;
mod mac;
pub mod plan;

pub use argv::argv;
pub use backing::{Backing, BackingError};
pub use mac::mac_address;
pub use plan::{Accel, LaunchPlan, PlanError, Sockets};

/// Labels of the character devices.
pub mod chardev {
    /// The QMP session.
    pub const QMP: &str = "qmp";
    /// The one that outlives the daemon: [`rescue`](super::rescue).
    pub const RESCUE: &str = "rescue";
    /// The serial console.
    pub const SERIAL: &str = "serial0";
    /// The guest agent's channel; also the id of its port in `VSERPORT_CHANGE`.
    pub const AGENT: &str = "agent0";
}

/// A second QMP session of a QEMU that receives. QEMU inherits both ends of it:
/// one is a monitor, the other lies idle until a daemon takes it back.
pub mod rescue {
    use super::chardev;

    /// The monitor's end, as QEMU knows it.
    pub const MONITOR: i32 = 3;
    /// The other one.
    pub const IDLE: i32 = 4;

    /// The character device: a QEMU that has it among its arguments has both ends.
    pub fn device() -> String {
        format!("socket,id={},fd={MONITOR}", chardev::RESCUE)
    }
}
