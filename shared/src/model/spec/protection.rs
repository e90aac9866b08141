//! What becomes of a VM when its node is lost.
//!
//! A protected VM runs only while its node holds a lease from the coordinator.
//! A node that cannot renew it stops those VMs before the lease ends, so that
//! the coordinator may start them elsewhere after it. A VM without protection
//! knows no lease: it runs on wherever it is, and nobody starts it elsewhere.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::VmSpec;
use super::check::invalid;
use crate::model::problem::Problem;
use crate::model::units::Millis;

/// How far a priority may be from 0.
const MAX_PRIORITY: i32 = 1000;
/// The longest delay of a restart: whoever waits longer starts it by hand.
const MAX_DELAY: Millis = Millis(3_600_000);

/// What becomes of a VM when its node is lost.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// Nothing: it is left to its node.
    #[default]
    None,
    /// It is started again, elsewhere if need be.
    Restart,
}

impl Protection {
    /// The word in listings and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Restart => "restart",
        }
    }
}

impl VmSpec {
    /// Whether it runs only while its node holds a lease.
    pub fn protected(&self) -> bool {
        self.protection == Protection::Restart
    }

    pub(super) fn check_protection(&self, found: &mut Vec<Problem>) {
        if !(-MAX_PRIORITY..=MAX_PRIORITY).contains(&self.priority) {
            let remedy = format!("give {} to {MAX_PRIORITY}", -MAX_PRIORITY);
            found.push(invalid("priority", self.priority, remedy));
        }
        if self.restart_delay > MAX_DELAY {
            let remedy = format!("give 0 to {} milliseconds: at most an hour", MAX_DELAY.0);
            found.push(invalid("restart_delay", self.restart_delay.0, remedy));
        }
        let unused = self.priority != 0 || self.restart_delay != Millis::ZERO;
        if unused && !self.protected() {
            let remedy = "add `protection: restart`, or leave `priority` and `restart_delay` out";
            found.push(invalid("protection", self.protection.as_str(), remedy));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::model::spec::{Protection, SpecFormat, VmSpec};

    fn read(more: &str) -> Result<VmSpec, Vec<String>> {
        let text = format!("name: a\nmemory: 64\n{more}");
        VmSpec::parse(&text, SpecFormat::Yaml).map_err(|problem| {
            let also = problem.also.iter().map(|p| p.field.clone());
            std::iter::once(problem.field.clone())
                .chain(also)
                .map(Option::unwrap)
                .collect()
        })
    }

    #[test]
    fn nothing_is_protected_unless_it_says_so() {
        assert!(!read("").unwrap().protected());
        let spec = read("protection: restart\npriority: -5\nrestart_delay: 2000\n").unwrap();
        assert_eq!(spec.protection, Protection::Restart);
        assert_eq!((spec.priority, spec.restart_delay.0), (-5, 2000));
    }

    #[test]
    fn what_is_out_of_bounds_or_has_no_effect_is_refused() {
        let far = "protection: restart\npriority: 1001\nrestart_delay: 3600001\n";
        assert_eq!(read(far).unwrap_err(), ["priority", "restart_delay"]);
        assert_eq!(read("priority: 1\n").unwrap_err(), ["protection"]);
        assert_eq!(read("restart_delay: 1\n").unwrap_err(), ["protection"]);
    }
}
