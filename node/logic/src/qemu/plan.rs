//! How a spec is run on this host: the choices that an operator left open.

use godwit_shared::model::capacity::EmulatorFacts;
use godwit_shared::model::spec::{Accelerator, Architecture};
use godwit_shared::model::{Problem, VmId, VmSpec, codes};

use super::backing::Backing;

/// Everything that QEMU's arguments follow from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchPlan {
    /// The VM: its UUID, and what its MAC addresses are made from.
    pub vm: VmId,
    /// What the operator asked for.
    pub spec: VmSpec,
    /// The versioned machine type.
    pub machine: String,
    /// The accelerator.
    pub accel: Accel,
    /// The CPU model.
    pub cpu_model: String,
    /// What the memory is made of.
    pub backing: Backing,
    /// Wait for a migration instead of booting.
    pub incoming: bool,
    /// Whether this QEMU was built with seccomp (`-sandbox`).
    pub sandbox: bool,
    /// Where its sockets and its serial log are.
    pub sockets: Sockets,
}

/// An accelerator that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accel {
    /// Hardware virtualization.
    Kvm,
    /// Software translation.
    Tcg,
}

impl Accel {
    /// QEMU's name for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// By QEMU's name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Kvm, Self::Tcg]
            .into_iter()
            .find(|accel| accel.as_str() == name)
    }
}

/// Files that QEMU opens for the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sockets {
    /// The serial console.
    pub serial: String,
    /// Where QEMU itself appends what the guest writes there.
    pub serial_log: String,
    /// The guest agent's channel.
    pub agent: String,
}

/// A spec that cannot be run on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is no QEMU for the guest's architecture.
    #[error("this node has no QEMU for {architecture} guests")]
    NoEmulator {
        /// The guest's architecture.
        architecture: Architecture,
    },
    /// The spec asks for KVM, and it does not work here.
    #[error("KVM does not work for {architecture} guests on this node")]
    NoKvm {
        /// The guest's architecture.
        architecture: Architecture,
    },
}

impl PlanError {
    /// The error as an operator sees it.
    pub fn problem(&self) -> Problem {
        let (field, remedy) = match self {
            Self::NoEmulator { architecture } => (
                "architecture",
                format!(
                    "install qemu-system-{architecture} and restart godwit-node, or choose another node"
                ),
            ),
            Self::NoKvm { .. } => (
                "accelerator",
                "use `auto` or `tcg`, or choose a node with working KVM".to_owned(),
            ),
        };
        Problem::new(codes::QEMU_START, self.to_string())
            .field(field)
            .remedy(remedy)
    }
}

/// The QEMU for a guest's architecture.
pub fn emulator_for(
    architecture: Architecture,
    emulators: &[EmulatorFacts],
) -> Result<&EmulatorFacts, PlanError> {
    emulators
        .iter()
        .find(|emulator| emulator.architecture == architecture)
        .ok_or(PlanError::NoEmulator { architecture })
}

/// The accelerator that a spec gets with this QEMU.
pub fn choose_accel(asked: Accelerator, emulator: &EmulatorFacts) -> Result<Accel, PlanError> {
    let kvm = emulator.accelerators.contains(&Accelerator::Kvm);
    match asked {
        Accelerator::Tcg => Ok(Accel::Tcg),
        Accelerator::Auto | Accelerator::Kvm if kvm => Ok(Accel::Kvm),
        Accelerator::Auto => Ok(Accel::Tcg),
        Accelerator::Kvm => Err(PlanError::NoKvm {
            architecture: emulator.architecture,
        }),
    }
}

/// The versioned machine type: what was pinned, else what the spec names, else
/// the architecture's default; aliases resolved, so that a domain keeps its
/// machine when QEMU is upgraded.
pub fn choose_machine(pinned: Option<&str>, spec: &VmSpec, emulator: &EmulatorFacts) -> String {
    let asked = pinned
        .or(spec.machine.as_deref())
        .unwrap_or(spec.architecture.default_machine());
    emulator
        .machine_aliases
        .get(asked)
        .map_or_else(|| asked.to_owned(), Clone::clone)
}

/// The CPU model: the spec's, else a named one that can migrate. KVM on Arm and
/// Power has no named models, so the host's own stands in there.
pub fn choose_cpu_model(spec: &VmSpec, accel: Accel) -> String {
    let default = match (spec.architecture, accel) {
        (Architecture::X86_64, _) => "qemu64",
        (Architecture::Aarch64, Accel::Tcg) => "cortex-a57",
        (Architecture::Ppc64, Accel::Tcg) => "power9_v2.0",
        (Architecture::Aarch64 | Architecture::Ppc64, Accel::Kvm) => "host",
    };
    spec.cpu.model.as_deref().unwrap_or(default).to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use godwit_shared::model::spec::SpecFormat;

    use super::*;

    fn emulator(accelerators: &[Accelerator]) -> EmulatorFacts {
        EmulatorFacts {
            architecture: Architecture::X86_64,
            path: "/usr/bin/qemu-system-x86_64".into(),
            version: "10.0.2".into(),
            accelerators: accelerators.to_vec(),
            machines: vec!["pc-q35-10.0".into()],
            machine_aliases: [("q35".to_owned(), "pc-q35-10.0".to_owned())].into(),
            cpus: Vec::new(),
        }
    }

    #[test]
    fn auto_takes_kvm_only_where_it_works() {
        let (with, without) = (
            emulator(&[Accelerator::Kvm, Accelerator::Tcg]),
            emulator(&[Accelerator::Tcg]),
        );
        assert_eq!(choose_accel(Accelerator::Auto, &with), Ok(Accel::Kvm));
        assert_eq!(choose_accel(Accelerator::Auto, &without), Ok(Accel::Tcg));
        assert_eq!(choose_accel(Accelerator::Tcg, &with), Ok(Accel::Tcg));
        let refused = choose_accel(Accelerator::Kvm, &without).unwrap_err();
        assert_eq!(refused.problem().field.as_deref(), Some("accelerator"));
    }

    #[test]
    fn a_pinned_machine_wins_over_spec_and_default() {
        let mut spec = VmSpec::parse("name: a\nmemory: 64\n", SpecFormat::Yaml).unwrap();
        let emulator = emulator(&[]);
        assert_eq!(choose_machine(None, &spec, &emulator), "pc-q35-10.0");
        spec.machine = Some("pc-q35-7.2".into());
        assert_eq!(choose_machine(None, &spec, &emulator), "pc-q35-7.2");
        assert_eq!(choose_machine(Some("q35"), &spec, &emulator), "pc-q35-10.0");
    }

    #[test]
    fn another_architecture_needs_its_own_emulator() {
        let emulators = [emulator(&[])];
        assert!(emulator_for(Architecture::X86_64, &emulators).is_ok());
        let refused = emulator_for(Architecture::Ppc64, &emulators).unwrap_err();
        assert!(
            refused
                .problem()
                .remedy
                .unwrap()
                .contains("qemu-system-ppc64")
        );
    }
}
