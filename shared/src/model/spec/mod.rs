//! What an operator asks for: the description of one VM.
//!
//! A spec is a document (YAML, TOML or JSON). It enters through
//! [`VmSpec::parse`], which reports every problem of the document at once, and
//! from then on it is known to be right. It travels between daemons as JSON, so
//! that a field added later does not change a frame's layout.
//!
//! Absent settings are not filled in when a spec is stored: `machine: null`
//! means "the default of the node that first runs it". What was chosen then is
//! pinned in the domain's record, because a migration needs the same machine
//! on both sides.

mod check;
mod check_placement;
mod parse;
pub mod placement;
mod protection;
pub mod taint;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::id::VmName;
use super::units::{MiB, Millis};

pub use parse::{SpecFormat, json_schema};
pub use placement::{
    AffinityRule, Hugepages, MemoryBacking, NumaFit, PlacementSpec, RuleMode, SpreadRule, Taint,
    TaintEffect, Toleration,
};
pub use protection::Protection;

/// One VM as its operator describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// The VM's name: a DNS label, unique in the cluster.
    pub name: VmName,
    /// Free labels for selection and placement.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The guest's architecture.
    #[serde(default)]
    pub architecture: Architecture,
    /// The QEMU machine type, for example `q35` or `pc-q35-7.2`. Default: `q35`,
    /// `virt` or `pseries`, pinned to a version when the VM is created.
    #[serde(default)]
    pub machine: Option<String>,
    /// How the guest's instructions are run.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// The virtual processors.
    #[serde(default)]
    pub cpu: CpuSpec,
    /// The guest's memory: a number of MiB, or text such as `2GiB`.
    #[serde(with = "mib_text")]
    #[schemars(with = "MemoryText")]
    #[schema(value_type = String, example = "2GiB")]
    pub memory: MiB,
    /// What that memory is made of on the host.
    #[serde(default, skip_serializing_if = "MemoryBacking::is_default")]
    pub memory_backing: MemoryBacking,
    /// What to boot. Without a kernel the firmware boots the first disk.
    #[serde(default)]
    pub boot: BootSpec,
    /// Disks, in the order in which the guest sees them.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Network cards, in the order in which the guest sees them.
    #[serde(default)]
    pub nics: Vec<NicSpec>,
    /// A serial console with scrollback and a log.
    #[serde(default = "yes")]
    pub serial: bool,
    /// A channel for the QEMU guest agent.
    #[serde(default = "yes")]
    pub agent: bool,
    /// Where the VM may run.
    #[serde(default)]
    pub placement: PlacementSpec,
    /// What becomes of it when its node is lost.
    #[serde(default)]
    pub protection: Protection,
    /// Protected VMs of a lost node are started again in the order of their
    /// priorities, the highest first: -1000 to 1000.
    #[serde(default)]
    pub priority: i32,
    /// How long to wait, in milliseconds, before it is started again: a moment
    /// for the node to return, or for what the guest needs to come up first.
    #[serde(default)]
    pub restart_delay: Millis,
}

/// Guest architectures, by QEMU's names.
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
pub enum Architecture {
    /// 64-bit x86.
    #[default]
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    Aarch64,
    /// 64-bit Power, either byte order.
    Ppc64,
}

impl Architecture {
    /// QEMU's name: the suffix of `qemu-system-`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
            Self::Ppc64 => "ppc64",
        }
    }

    /// The machine type that stands where a spec names none.
    pub const fn default_machine(self) -> &'static str {
        match self {
            Self::X86_64 => "q35",
            Self::Aarch64 => "virt",
            Self::Ppc64 => "pseries",
        }
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// How the guest's instructions are run.
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
pub enum Accelerator {
    /// KVM where it really works for this guest, TCG elsewhere.
    #[default]
    Auto,
    /// Hardware virtualization.
    Kvm,
    /// Software translation.
    Tcg,
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// The virtual processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuSpec {
    /// How many, 1 to 512.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 512))]
    pub count: u32,
    /// QEMU's CPU model, for example `EPYC-v4`. Default: the accelerator's
    /// migratable baseline.
    #[serde(default)]
    pub model: Option<String>,
}

impl Default for CpuSpec {
    fn default() -> Self {
        Self {
            count: 1,
            model: None,
        }
    }
}

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSpec {
    /// A kernel image on the node (absolute path), for direct boot.
    #[serde(default)]
    pub kernel: Option<String>,
    /// An initial RAM disk for that kernel.
    #[serde(default)]
    pub initrd: Option<String>,
    /// That kernel's command line.
    #[serde(default)]
    pub cmdline: Option<String>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The image on the node (absolute path).
    pub path: String,
    /// The image's format. Never probed: a guest could forge it.
    #[serde(default)]
    pub format: DiskFormat,
    /// The device that the guest sees.
    #[serde(default)]
    pub interface: DiskInterface,
    /// Refuse the guest's writes.
    #[serde(default)]
    pub read_only: bool,
    /// The same image is at this path on every node that may run the VM.
    #[serde(default)]
    pub shared: bool,
}

/// Image formats.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// QEMU's copy-on-write format.
    #[default]
    Qcow2,
    /// Plain blocks.
    Raw,
}

/// Disk devices.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DiskInterface {
    /// virtio-blk.
    #[default]
    Virtio,
    /// virtio-scsi.
    Scsi,
    /// AHCI, for guests without virtio drivers (x86 only).
    Sata,
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// What it is plugged into.
    #[serde(default)]
    pub network: NicNetwork,
    /// The device that the guest sees.
    #[serde(default)]
    pub model: NicModel,
    /// MAC address. Default: one made from the VM's id, the same on every node.
    #[serde(default)]
    pub mac: Option<String>,
}

/// What a network card is plugged into.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum NicNetwork {
    /// QEMU's user-mode network: outgoing connections only.
    #[default]
    User,
}

impl NicNetwork {
    /// The network's name, as nodes list those that they reach.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
        }
    }
}

/// Network devices.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum NicModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel 82574L, for guests without virtio drivers.
    E1000e,
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

/// The schema of [`VmSpec::memory`].
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum MemoryText {
    /// MiB.
    Number(u64),
    /// A number with M, MiB, G or GiB.
    Text(String),
}

/// Memory as `512` or `2GiB` in a document.
mod mib_text {
    use super::MiB;
    use serde::{Deserializer, Serializer, de};
    use std::fmt;

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(super) fn serialize<S: Serializer>(size: &MiB, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(size.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MiB, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = MiB;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of MiB, or one with M, MiB, G or GiB behind it")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<MiB, E> {
                Ok(MiB(number))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<MiB, E> {
                u64::try_from(number)
                    .map(MiB)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MiB, E> {
                text.parse()
                    .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        from.deserialize_any(Visitor)
    }
}
