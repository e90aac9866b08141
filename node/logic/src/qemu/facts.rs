//! What a probed QEMU can do, and whether KVM really works.
//!
//! A probe runs QEMU without a machine and asks `query-version`,
//! `query-machines`, `query-kvm`, `query-command-line-options` and
//! `query-cpu-definitions`, and tries whether post-copy can be switched on. The
//! answers are read leniently: what is missing counts as not there.

use std::collections::BTreeMap;

use godwit_shared::model::capacity::EmulatorFacts;
use godwit_shared::model::spec::{Accelerator, Architecture};
use serde_json::Value;

/// Oldest QEMU that is supported.
pub const OLDEST: (u64, u64) = (7, 2);

/// One QEMU of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emulator {
    /// What other parts of the cluster are told of it.
    pub facts: EmulatorFacts,
    /// Whether it was built with seccomp.
    pub sandbox: bool,
    /// Whether it can receive a guest in post-copy here: QEMU refuses where the
    /// host has no `userfaultfd` for it.
    pub postcopy: bool,
    /// The CPU models that it knows for each accelerator that works.
    pub cpus: Vec<(Accelerator, CpuModels)>,
}

/// CPU models by name, each with the features that the host lacks for it.
pub type CpuModels = BTreeMap<String, Vec<String>>;

/// A program that cannot be used as QEMU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// It tells no version.
    #[error("it does not tell its version: {answer}")]
    NoVersion {
        /// What it answered to `query-version`.
        answer: String,
    },
    /// It is older than what is supported.
    #[error("it is QEMU {major}.{minor}, and 7.2 is the oldest that is supported")]
    TooOld {
        /// Its major release.
        major: u64,
        /// Its minor release.
        minor: u64,
    },
}

/// The answers of one probe; null where a command was refused.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answers {
    /// `query-version`.
    pub version: Value,
    /// `query-machines`.
    pub machines: Value,
    /// `query-command-line-options` for `sandbox`.
    pub sandbox: Value,
    /// `query-cpu-definitions` with emulation.
    pub cpus: Value,
    /// The same with KVM; null where KVM does not work.
    pub kvm_cpus: Value,
    /// `migrate-set-capabilities` with `postcopy-ram`: an empty object when taken.
    pub postcopy: Value,
}

/// Reads a probe's answers.
pub fn read(
    architecture: Architecture,
    path: &str,
    answers: &Answers,
    kvm: bool,
) -> Result<Emulator, ProbeError> {
    let (machines, machine_aliases) = read_machines(&answers.machines);
    let mut accelerators = vec![Accelerator::Tcg];
    let mut cpus = vec![(Accelerator::Tcg, read_cpus(&answers.cpus))];
    if kvm {
        accelerators.insert(0, Accelerator::Kvm);
        cpus.push((Accelerator::Kvm, read_cpus(&answers.kvm_cpus)));
    }
    Ok(Emulator {
        facts: EmulatorFacts {
            architecture,
            path: path.to_owned(),
            version: read_version(&answers.version)?,
            accelerators,
            machines,
            machine_aliases,
            cpus: Vec::new(),
        },
        sandbox: has_option(&answers.sandbox, "sandbox"),
        postcopy: answers.postcopy.is_object(),
        cpus,
    })
}

impl Emulator {
    /// The CPU models with that accelerator; none when they are not known.
    pub fn cpu_models(&self, accelerator: &str) -> Option<&CpuModels> {
        let mut lists = self.cpus.iter();
        let (_, models) = lists.find(|(a, _)| a.to_string() == accelerator)?;
        (!models.is_empty()).then_some(models)
    }
}

/// CPU models, and what the host lacks for each (`unavailable-features`).
fn read_cpus(answer: &Value) -> CpuModels {
    let models = answer.as_array().into_iter().flatten();
    models
        .filter_map(|model| {
            let name = model.get("name")?.as_str()?.to_owned();
            let missing = model.get("unavailable-features").and_then(Value::as_array);
            let missing = missing.into_iter().flatten().filter_map(Value::as_str);
            Some((name, missing.map(str::to_owned).collect()))
        })
        .collect()
}

fn read_version(answer: &Value) -> Result<String, ProbeError> {
    let number = |field: &str| answer.get("qemu")?.get(field)?.as_u64();
    let (Some(major), Some(minor), Some(micro)) =
        (number("major"), number("minor"), number("micro"))
    else {
        return Err(ProbeError::NoVersion {
            answer: answer.to_string(),
        });
    };
    if (major, minor) < OLDEST {
        return Err(ProbeError::TooOld { major, minor });
    }
    Ok(format!("{major}.{minor}.{micro}"))
}

/// Machine types without the deprecated ones, and what the aliases stand for.
fn read_machines(answer: &Value) -> (Vec<String>, BTreeMap<String, String>) {
    let (mut names, mut aliases) = (Vec::new(), BTreeMap::new());
    for machine in answer.as_array().into_iter().flatten() {
        let text = |field: &str| machine.get(field).and_then(Value::as_str);
        let Some(name) = text("name").filter(|name| *name != "none") else {
            continue;
        };
        if let Some(alias) = text("alias") {
            aliases.insert(alias.to_owned(), name.to_owned());
        }
        if machine.get("deprecated").and_then(Value::as_bool) != Some(true) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    (names, aliases)
}

fn has_option(answer: &Value, name: &str) -> bool {
    answer.as_array().is_some_and(|options| {
        options
            .iter()
            .any(|option| option.get("option").and_then(Value::as_str) == Some(name))
    })
}

/// What speaks for and against KVM on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvmEvidence {
    /// The host's own architecture, where Godwit knows it.
    pub host: Option<Architecture>,
    /// Whether /dev/kvm opens for reading and writing.
    pub opens: bool,
    /// Whether /proc/cpuinfo lists `vmx` or `svm`. Only asked of x86: there, a
    /// paravirtual KVM offers the device and hangs ordinary guests.
    pub cpu_flag: bool,
}

impl KvmEvidence {
    /// Whether it is worth asking QEMU (started with `-accel kvm`) at all.
    pub fn worth_asking(self, guest: Architecture) -> bool {
        let cpu = guest != Architecture::X86_64 || self.cpu_flag;
        self.opens && self.host == Some(guest) && cpu
    }

    /// Whether KVM works: the host says so and QEMU does (`query-kvm`).
    pub fn works(self, guest: Architecture, answer: &Value) -> bool {
        let says = |field: &str| answer.get(field).and_then(Value::as_bool) == Some(true);
        self.worth_asking(guest) && says("present") && says("enabled")
    }
}

/// Whether the text of /proc/cpuinfo lists hardware virtualization.
pub fn cpu_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|f| f == "vmx" || f == "svm"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn answers() -> Answers {
        Answers {
            version: json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "x"}),
            machines: json!([
                {"name": "none", "deprecated": false},
                {"name": "pc-q35-10.0", "alias": "q35", "deprecated": false, "new-field": 1},
                {"name": "pc-q35-2.4", "deprecated": true},
                {"name": "microvm"},
                {"surprise": true},
            ]),
            sandbox: json!([{"option": "sandbox", "parameters": []}]),
            cpus: json!([
                {"name": "qemu64", "unavailable-features": []},
                {"name": "EPYC-v4", "unavailable-features": ["osvw", "ibpb"]},
                {"unnamed": 1},
            ]),
            kvm_cpus: json!([{"name": "host"}]),
            postcopy: json!({}),
        }
    }

    #[test]
    fn a_probe_is_read() {
        let emulator = read(Architecture::X86_64, "/usr/bin/q", &answers(), false).unwrap();
        assert_eq!(emulator.facts.version, "10.0.2");
        assert_eq!(emulator.facts.machines, ["microvm", "pc-q35-10.0"]);
        assert_eq!(emulator.facts.machine_aliases["q35"], "pc-q35-10.0");
        assert_eq!(emulator.facts.accelerators, [Accelerator::Tcg]);
        assert!(emulator.sandbox && emulator.postcopy);
        let models = emulator.cpu_models("tcg").unwrap();
        assert_eq!((models.len(), models["EPYC-v4"].len()), (2, 2));
        assert_eq!(emulator.cpu_models("kvm"), None);
        let with = read(Architecture::X86_64, "/usr/bin/q", &answers(), true).unwrap();
        assert_eq!(
            with.facts.accelerators,
            [Accelerator::Kvm, Accelerator::Tcg]
        );
        assert!(with.cpu_models("kvm").unwrap()["host"].is_empty());
    }

    #[test]
    fn missing_answers_cost_their_feature_only() {
        let answers = Answers {
            version: answers().version,
            ..Answers::default()
        };
        let emulator = read(Architecture::X86_64, "/q", &answers, false).unwrap();
        assert!(emulator.facts.machines.is_empty() && !emulator.sandbox);
        assert!(!emulator.postcopy && emulator.cpu_models("tcg").is_none());
    }

    #[test]
    fn old_and_foreign_programs_are_refused() {
        let mut old = answers();
        old.version = json!({"qemu": {"major": 7, "minor": 1, "micro": 0}});
        assert_eq!(
            read(Architecture::X86_64, "/q", &old, false),
            Err(ProbeError::TooOld { major: 7, minor: 1 })
        );
        old.version = json!("hello");
        assert!(matches!(
            read(Architecture::X86_64, "/q", &old, false),
            Err(ProbeError::NoVersion { .. })
        ));
    }

    #[test]
    fn kvm_needs_the_device_the_cpu_and_qemus_word() {
        let good = KvmEvidence {
            host: Some(Architecture::X86_64),
            opens: true,
            cpu_flag: true,
        };
        let yes = json!({"present": true, "enabled": true});
        assert!(good.works(Architecture::X86_64, &yes));
        assert!(!good.works(
            Architecture::X86_64,
            &json!({"present": true, "enabled": false})
        ));
        assert!(!good.works(Architecture::X86_64, &Value::Null));
        assert!(!good.works(Architecture::Aarch64, &yes), "a foreign guest");
        for bad in [
            KvmEvidence {
                opens: false,
                ..good
            },
            KvmEvidence {
                cpu_flag: false,
                ..good
            },
            KvmEvidence { host: None, ..good },
        ] {
            assert!(!bad.works(Architecture::X86_64, &yes), "{bad:?}");
        }
        let arm = KvmEvidence {
            host: Some(Architecture::Aarch64),
            opens: true,
            cpu_flag: false,
        };
        assert!(
            arm.works(Architecture::Aarch64, &yes),
            "no such flag on Arm"
        );
    }

    #[test]
    fn the_flag_is_a_whole_word() {
        assert!(cpu_flag("model: x\nflags\t\t: fpu vmx sse\n"));
        assert!(cpu_flag("flags : svm\n"));
        assert!(!cpu_flag("flags : fpu vmx_hint\nbugs : vmx\n"));
    }
}
