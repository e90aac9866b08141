//! What placement prefers: the scorers' weights, and named sets of them.
//!
//! The settings' `[placement]` are the weights of every VM that names no
//! profile; `[placement.profiles.NAME]` are those of the VMs whose spec says
//! `placement.profile: NAME`. What a set does not mention weighs what it weighs
//! by default.

use std::collections::BTreeMap;

use godwit_shared::model::VmSpec;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};

/// What the scorers weigh. A weight of 0 switches a scorer off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Weights {
    /// Prefer nodes with much memory left, by share.
    pub memory: u32,
    /// Prefer nodes with many vCPUs left, by share.
    pub cpu: u32,
    /// Keep VMs of the same group (`placement.spread_by`) apart.
    pub spread: u32,
    /// Prefer nodes with little left, so that others stay empty.
    pub pack: u32,
    /// Prefer nodes where memory and vCPUs are taken in equal shares.
    pub balance: u32,
    /// Prefer nodes that stay under four fifths of what they offer, so that
    /// nothing has to be moved away again soon.
    pub headroom: u32,
    /// Prefer nodes that hold the VM's images already.
    pub images: u32,
    /// The VM's own preferred rules: that of a rule with the weight 100.
    pub rules: u32,
    /// Avoid nodes with `prefer_no_schedule` taints.
    pub taints: u32,
    /// Prefer one NUMA node for a VM with `numa_fit: preferred`.
    pub numa: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            memory: 2,
            cpu: 1,
            spread: 6,
            pack: 0,
            balance: 0,
            headroom: 0,
            images: 0,
            rules: 6,
            taints: 6,
            numa: 6,
        }
    }
}

impl Weights {
    /// Every weight with its name.
    pub const fn named(&self) -> [(&'static str, u32); 10] {
        [
            ("memory", self.memory),
            ("cpu", self.cpu),
            ("spread", self.spread),
            ("pack", self.pack),
            ("balance", self.balance),
            ("headroom", self.headroom),
            ("images", self.images),
            ("rules", self.rules),
            ("taints", self.taints),
            ("numa", self.numa),
        ]
    }

    /// What a preferred rule of that weight has to say.
    pub(super) fn of_rule(&self, weight: u32) -> u32 {
        let share = u64::from(self.rules) * u64::from(weight);
        u32::try_from(share.div_ceil(100)).unwrap_or(u32::MAX)
    }
}

/// The weights of VMs that name no profile, and the profiles.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Profiles {
    /// Of VMs that name none.
    #[serde(flatten)]
    pub default: Weights,
    /// By name.
    pub profiles: BTreeMap<String, Weights>,
}

impl From<Weights> for Profiles {
    fn from(default: Weights) -> Self {
        Self {
            default,
            profiles: BTreeMap::new(),
        }
    }
}

impl Profiles {
    /// The weights of a VM that names that profile; none when there is no such.
    pub fn of(&self, name: Option<&str>) -> Option<&Weights> {
        match name {
            None => Some(&self.default),
            Some(name) => self.profiles.get(name),
        }
    }

    /// The weights for that VM: of the profile that it names, the default ones
    /// when the settings no longer have it.
    pub fn weights_for(&self, spec: &VmSpec) -> Weights {
        let named = self.of(spec.placement.profile.as_deref());
        *named.unwrap_or(&self.default)
    }
}

/// The weights lie beside `profiles` in one table, and an unknown one among
/// them is refused, which serde's own flattening cannot do.
impl<'de> Deserialize<'de> for Profiles {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut table = Map::deserialize(from)?;
        let profiles = match table.remove("profiles") {
            None => BTreeMap::new(),
            Some(profiles) => BTreeMap::deserialize(profiles).map_err(de::Error::custom)?,
        };
        let default = Weights::deserialize(Value::Object(table)).map_err(de::Error::custom)?;
        Ok(Self { default, profiles })
    }
}
