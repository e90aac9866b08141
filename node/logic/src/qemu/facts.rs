//! What a probed QEMU can do, and whether KVM really works.
//!
//! A probe runs QEMU without a machine and asks `query-version`,
//! `query-machines`, `query-kvm`, `query-command-line-options` and
//! `query-cpu-definitions` and `query-cpu-model-expansion`, and tries whether post-copy can be switched on. The
//! answers are read leniently: what is missing counts as not there.

use std::collections::BTreeMap;

use godwit_shared::model::capacity::{CpuFacts, EmulatorFacts};
use godwit_shared::model::spec::{Accelerator, Architecture};
use serde_json::Value;

/// Oldest QEMU that is supported.
pub const OLDEST: (u64, u64) = (7, 2);

/// So many lacking features are told of a model: a hundred models with all of
/// theirs would be most of what a coordinator remembers of a node.
const LACKING_TOLD: usize = 8;

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
    /// `query-cpu-model-expansion` of `max` with emulation.
    pub features: Value,
    /// The models with KVM; null where KVM does not work.
    pub kvm_cpus: Value,
    /// The features of `max` with KVM.
    pub kvm_features: Value,
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
    let mut told = vec![cpu_facts(&cpus[0], &answers.features)];
    if kvm {
        accelerators.insert(0, Accelerator::Kvm);
        let models = (Accelerator::Kvm, read_cpus(&answers.kvm_cpus));
        told.insert(0, cpu_facts(&models, &answers.kvm_features));
        cpus.push(models);
    }
    told.retain(|facts| !facts.models.is_empty());
    Ok(Emulator {
        facts: EmulatorFacts {
            architecture,
            path: path.to_owned(),
            version: read_version(&answers.version)?,
            accelerators,
            machines,
            machine_aliases,
            cpus: told,
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

/// The same as other parts of the cluster are told of it.
fn cpu_facts((accelerator, known): &(Accelerator, CpuModels), expansion: &Value) -> CpuFacts {
    let (full, mut lacking): (CpuModels, CpuModels) = known
        .clone()
        .into_iter()
        .partition(|(_, missing)| missing.is_empty());
    for missing in lacking.values_mut() {
        missing.truncate(LACKING_TOLD);
    }
    CpuFacts {
        accelerator: *accelerator,
        models: full.into_keys().collect(),
        lacking,
        features: read_features(expansion),
    }
}

/// What is switched on in the model that has all there is.
fn read_features(expansion: &Value) -> Vec<String> {
    let props = expansion.pointer("/model/props").and_then(Value::as_object);
    let on = props.into_iter().flatten().filter(|(_, on)| **on == true);
    let mut features: Vec<String> = on.map(|(name, _)| name.clone()).collect();
    features.sort();
    features
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
            features: json!({"model": {"name": "base", "props": {
                "avx2": true, "aes": true, "avx512f": false, "level": 13,
            }}}),
            kvm_cpus: json!([{"name": "host"}]),
            kvm_features: Value::Null,
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
    fn others_are_told_of_models_and_features_by_accelerator() {
        let probed = |kvm| read(Architecture::X86_64, "/q", &answers(), kvm).unwrap();
        let [tcg] = &probed(false).facts.cpus[..] else {
            unreachable!("one accelerator, one list");
        };
        assert_eq!(tcg.accelerator, Accelerator::Tcg);
        assert_eq!(tcg.models, ["qemu64"]);
        assert_eq!(tcg.lacking["EPYC-v4"], ["osvw", "ibpb"]);
        assert_eq!(tcg.features, ["aes", "avx2"]);
        let many: Vec<String> = (0..20).map(|n| format!("f{n}")).collect();
        let model = json!([{"name": "a"}, {"name": "b", "unavailable-features": many}]);
        let known = (Accelerator::Tcg, read_cpus(&model));
        let told = cpu_facts(&known, &Value::Null);
        assert_eq!(told.lacking["b"].len(), LACKING_TOLD);
        let both = probed(true).facts.cpus;
        assert_eq!(
            both[0].accelerator,
            Accelerator::Kvm,
            "best first, as accelerators are"
        );
        assert!(both[0].features.is_empty() && both.len() == 2);
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
