//! What stands against receiving a guest here.
//!
//! A migration needs the same virtual hardware on both sides: the same
//! versioned machine type, the same accelerator, a CPU model that the target has
//! in full, a QEMU that is not older, and disks that both sides reach; post-copy
//! needs `userfaultfd` on the target. Everything that is missing is found in one look,
//! because an operator who is told one reason at a time has to ask many times.

use std::fmt::Display;

use godwit_shared::model::capacity::qemu_release;
use godwit_shared::model::{Problem, VmSpec, codes};

use crate::qemu::facts::Emulator;

/// How the source runs the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningAs<'a> {
    /// The versioned machine type.
    pub machine: &'a str,
    /// `kvm` or `tcg`.
    pub accelerator: &'a str,
    /// The source's QEMU version.
    pub qemu_version: &'a str,
    /// The CPU model, perhaps with features behind a comma.
    pub cpu_model: &'a str,
    /// Whether it may be switched to post-copy.
    pub postcopy: bool,
    /// Disks that are not shared, and come along.
    pub mirrored: &'a [u16],
}

/// Every reason, in the order in which an operator would look.
pub fn blockers(spec: &VmSpec, source: &RunningAs<'_>, emulators: &[Emulator]) -> Vec<Problem> {
    let mut found = disk_blockers(spec, source.mirrored);
    match emulators
        .iter()
        .find(|e| e.facts.architecture == spec.architecture)
    {
        None => found.push(
            blocked(
                "architecture",
                spec.architecture,
                "the target has no QEMU for it",
            )
            .remedy(format!(
                "install qemu-system-{} on the target",
                spec.architecture
            )),
        ),
        Some(emulator) => emulator_blockers(source, emulator, &mut found),
    }
    found
}

fn disk_blockers(spec: &VmSpec, mirrored: &[u16]) -> Vec<Problem> {
    let local = spec.disks.iter().enumerate().filter(|(index, disk)| {
        let comes = mirrored
            .iter()
            .any(|mirrored| usize::from(*mirrored) == *index);
        !disk.shared && !comes
    });
    local
        .map(|(index, disk)| {
            blocked(
                format!("disks[{index}].shared"),
                &disk.path,
                "the disk is on the source only",
            )
            .remedy("put it on shared storage and set `shared: true`")
        })
        .collect()
}

fn emulator_blockers(source: &RunningAs<'_>, emulator: &Emulator, found: &mut Vec<Problem>) {
    let target = &emulator.facts;
    let known = |machine: &str| {
        target.machines.iter().any(|m| m == machine)
            || target.machine_aliases.values().any(|m| m == machine)
    };
    if !known(source.machine) {
        found.push(
            blocked(
                "machine",
                source.machine,
                "the target's QEMU does not know the machine type",
            )
            .remedy("bring the target's QEMU to the source's version"),
        );
    }
    if !target
        .accelerators
        .iter()
        .any(|a| a.to_string() == source.accelerator)
    {
        found.push(
            blocked(
                "accelerator",
                source.accelerator,
                "it does not work on the target",
            )
            .remedy("choose a target with the same accelerator"),
        );
    }
    found.extend(cpu_blocker(source, emulator));
    if let (Some(ours), Some(theirs)) = (
        qemu_release(&target.version),
        qemu_release(source.qemu_version),
    ) && ours < theirs
    {
        found.push(
            blocked(
                "qemu",
                source.qemu_version,
                format!("the target has QEMU {}", target.version),
            )
            .remedy("QEMU moves guests to the same or a later version only: upgrade the target"),
        );
    }
    if source.postcopy && !emulator.postcopy {
        found.push(
            blocked("postcopy", true, "the target's QEMU refuses post-copy")
                .remedy("let QEMU use `userfaultfd` there (sysctl vm.unprivileged_userfaultfd=1), or move without post-copy"),
        );
    }
}

/// A guest must not find other CPU features after the move than before.
fn cpu_blocker(source: &RunningAs<'_>, emulator: &Emulator) -> Option<Problem> {
    let models = emulator.cpu_models(source.accelerator)?;
    let name = source.cpu_model.split(',').next().unwrap_or_default();
    let remedy = "give the VM a model that all its nodes have (`cpu.model`)";
    match models.get(name) {
        None => {
            let why = "the target's QEMU does not know the CPU model";
            Some(blocked("cpu.model", source.cpu_model, why).remedy(remedy))
        }
        // Emulation leaves out on every host what it cannot do.
        Some(missing) if missing.is_empty() || source.accelerator == "tcg" => None,
        Some(missing) => {
            let why = format!("the target's CPU lacks {}", missing.join(", "));
            Some(blocked("cpu.model", source.cpu_model, why).remedy(remedy))
        }
    }
}

fn blocked(field: impl Into<String>, value: impl Display, why: impl Display) -> Problem {
    let (field, value) = (field.into(), format!("{value}"));
    Problem::new(
        codes::MIGRATION_BLOCKED,
        format!("`{field}` is `{value}`: {why}"),
    )
    .field(field)
    .value(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use godwit_shared::model::capacity::EmulatorFacts;
    use godwit_shared::model::spec::{Accelerator, Architecture, SpecFormat};

    fn emulator(version: &str) -> Emulator {
        let models = [
            ("qemu64".to_owned(), Vec::new()),
            ("EPYC-v4".to_owned(), vec!["ibpb".to_owned()]),
        ];
        Emulator {
            facts: facts(version),
            sandbox: true,
            postcopy: true,
            cpus: vec![
                (Accelerator::Tcg, models.clone().into()),
                (Accelerator::Kvm, models.into()),
            ],
        }
    }

    fn facts(version: &str) -> EmulatorFacts {
        EmulatorFacts {
            architecture: Architecture::X86_64,
            path: "/usr/bin/qemu-system-x86_64".into(),
            version: version.into(),
            accelerators: vec![Accelerator::Tcg],
            machines: vec!["pc-q35-7.2".into(), "pc-q35-10.0".into()],
            machine_aliases: [("q35".to_owned(), "pc-q35-10.0".to_owned())].into(),
            cpus: Vec::new(),
        }
    }

    const SOURCE: RunningAs<'static> = RunningAs {
        machine: "pc-q35-7.2",
        accelerator: "tcg",
        qemu_version: "10.0.2",
        cpu_model: "qemu64",
        postcopy: false,
        mirrored: &[],
    };

    fn spec(extra: &str) -> VmSpec {
        VmSpec::parse(&format!("name: a\nmemory: 64\n{extra}"), SpecFormat::Yaml).unwrap()
    }

    fn fields(found: &[Problem]) -> Vec<&str> {
        found.iter().map(|p| p.field.as_deref().unwrap()).collect()
    }

    #[test]
    fn nothing_stands_against_a_twin() {
        let shared = spec("disks: [{path: /a, shared: true}]");
        assert_eq!(blockers(&shared, &SOURCE, &[emulator("10.0.2")]), []);
        assert_eq!(blockers(&shared, &SOURCE, &[emulator("10.1")]), []);
        let own = spec("disks: [{path: /a}, {path: /b, read_only: true}]");
        let source = RunningAs {
            mirrored: &[0],
            ..SOURCE
        };
        let found = blockers(&own, &source, &[emulator("10.0.2")]);
        assert_eq!(fields(&found), ["disks[1].shared"]);
    }

    #[test]
    fn every_reason_is_found_in_one_look() {
        let source = RunningAs {
            machine: "pc-q35-11.0",
            accelerator: "kvm",
            qemu_version: "11.0.0",
            cpu_model: "SierraForest-v9",
            postcopy: true,
            mirrored: &[],
        };
        let mut target = emulator("10.0.2");
        target.postcopy = false;
        let found = blockers(&spec("disks: [{path: /a}]"), &source, &[target]);
        assert_eq!(
            fields(&found),
            [
                "disks[0].shared",
                "machine",
                "accelerator",
                "cpu.model",
                "qemu",
                "postcopy"
            ]
        );
        assert!(found.iter().all(|p| p.remedy.is_some()));
        assert_eq!(fields(&blockers(&spec(""), &SOURCE, &[])), ["architecture"]);
    }

    #[test]
    fn a_cpu_must_have_what_the_model_says() {
        let source = |cpu_model, accelerator| RunningAs {
            accelerator,
            cpu_model,
            ..SOURCE
        };
        let mut target = emulator("10.0.2");
        target.facts.accelerators.push(Accelerator::Kvm);
        let found = |cpu, accelerator| {
            blockers(
                &spec(""),
                &source(cpu, accelerator),
                std::slice::from_ref(&target),
            )
        };
        assert_eq!(found("qemu64,+aes", "kvm"), []);
        assert_eq!(found("EPYC-v4", "tcg"), [], "emulated alike everywhere");
        let lacking = found("EPYC-v4", "kvm");
        assert_eq!(fields(&lacking), ["cpu.model"]);
        assert!(lacking[0].to_string().contains("ibpb"), "{}", lacking[0]);
        target.cpus.clear();
        let found = blockers(&spec(""), &source("anything", "kvm"), &[target]);
        assert_eq!(found, [], "nothing is made up of an answer that is missing");
    }
}
