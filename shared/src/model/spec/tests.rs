#![allow(clippy::unwrap_used)]
use super::*;
use crate::model::problem::{Problem, codes};

fn refused(text: &str) -> Problem {
    VmSpec::parse(text, SpecFormat::Yaml).unwrap_err()
}

#[test]
fn a_short_spec_gets_the_defaults() {
    let spec = VmSpec::parse("name: web-1\nmemory: 2GiB\n", SpecFormat::Yaml).unwrap();
    assert_eq!(spec.memory, MiB(2048));
    assert_eq!(spec.cpu.count, 1);
    assert_eq!(spec.architecture, Architecture::X86_64);
    assert!(spec.agent && spec.serial);
}

#[test]
fn toml_and_yaml_say_the_same() {
    let yaml = "name: a\nmemory: 64\ndisks:\n- path: /a.qcow2\n  shared: true\n";
    let toml = "name = \"a\"\nmemory = 64\n[[disks]]\npath = \"/a.qcow2\"\nshared = true\n";
    assert_eq!(
        VmSpec::parse(yaml, SpecFormat::Yaml).unwrap(),
        VmSpec::parse(toml, SpecFormat::Toml).unwrap()
    );
}

#[test]
fn a_spec_survives_its_json_form() {
    let spec = VmSpec::parse("name: a\nmemory: 64\nnics: [{}]\n", SpecFormat::Yaml).unwrap();
    assert_eq!(
        VmSpec::from_value(serde_json::to_value(&spec).unwrap()).unwrap(),
        spec
    );
}

#[test]
fn every_unknown_field_is_named_with_its_neighbour() {
    let problem =
        refused("name: a\nmemroy: 64\nmemory: 64\ncpu: {cuont: 2}\ndisks: [{path: /a, qqq: 1}]\n");
    assert_eq!(problem.code, codes::SPEC_UNKNOWN_FIELD);
    assert_eq!(problem.field.as_deref(), Some("memroy"));
    assert_eq!(problem.remedy.as_deref(), Some("did you mean `memory`?"));
    let also: Vec<_> = problem
        .also
        .iter()
        .map(|p| p.field.clone().unwrap())
        .collect();
    assert_eq!(also, ["cpu.cuont", "disks[0].qqq"]);
    assert!(
        problem.also[1]
            .remedy
            .as_deref()
            .unwrap()
            .contains("interface")
    );
}

#[test]
fn wrong_values_name_field_value_and_remedy() {
    let base = "name: a\nmemory: 64\n";
    for (extra, field) in [
        ("cpu: {count: 0}", "cpu.count"),
        ("cpu: {model: 'a,b'}", "cpu.model"),
        ("machine: 'q35,accel=kvm'", "machine"),
        ("boot: {initrd: /i}", "boot.initrd"),
        ("boot: {kernel: vmlinuz}", "boot.kernel"),
        ("disks: [{path: a}]", "disks[0].path"),
        ("disks: [{path: /a}, {path: /a}]", "disks[1].path"),
        ("nics: [{mac: '52:54:00:12:34'}]", "nics[0].mac"),
        ("nics: [{mac: '53:54:00:12:34:56'}]", "nics[0].mac"),
        ("labels: {'a b': c}", "labels"),
        ("memory_backing: {hugepages: 1GiB}", "memory"),
        (
            "placement: {tolerations: [{key: ''}]}",
            "placement.tolerations[0].key",
        ),
        (
            "placement: {cpu_features: ['a,b']}",
            "placement.cpu_features[0]",
        ),
        (
            "placement: {anti_affinity: [{name: a}]}",
            "placement.anti_affinity[0].group",
        ),
        (
            "placement: {affinity: [{name: a, vm: b, group: {c: d}}]}",
            "placement.affinity[0].group",
        ),
        (
            "placement: {affinity: [{name: a, vm: b, topology: 'x y'}]}",
            "placement.affinity[0].topology",
        ),
        (
            "placement: {affinity: [{name: a, vm: b, weight: 0}]}",
            "placement.affinity[0].weight",
        ),
        (
            "placement: {affinity: [{name: a, vm: b}, {name: a, vm: c}]}",
            "placement",
        ),
        (
            "placement: {topology_spread: [{name: a, topology: zone}]}",
            "placement.topology_spread[0].group",
        ),
        (
            "placement: {topology_spread: [{name: a, topology: zone, group: {b: c}, max_skew: 0}]}",
            "placement.topology_spread[0].max_skew",
        ),
        (
            "architecture: aarch64\ndisks: [{path: /a, interface: sata}]",
            "disks[0].interface",
        ),
    ] {
        let problem = refused(&format!("{base}{extra}\n"));
        assert_eq!(problem.code, codes::SPEC_INVALID, "{extra}");
        assert_eq!(problem.field.as_deref(), Some(field), "{extra}");
        assert!(
            problem.value.is_some() && problem.remedy.is_some(),
            "{extra}"
        );
    }
    assert_eq!(
        refused("name: a\nmemory: 1\n").field.as_deref(),
        Some("memory")
    );
    assert_eq!(
        refused("name: a\nmemory: lots\n").field.as_deref(),
        Some("memory")
    );
    assert_eq!(
        refused("name: A\nmemory: 64\n").field.as_deref(),
        Some("name")
    );
}

#[test]
fn what_is_no_document_is_refused() {
    for text in ["", "[]", "a: b: c", "\u{0}", "- 1"] {
        assert_eq!(refused(text).code, codes::SPEC_SYNTAX, "{text:?}");
    }
    assert_eq!(refused("memory: 64\n").code, codes::SPEC_INVALID);
    let long = format!("name: a\nmemory: 64\n#{}", "x".repeat(300_000));
    assert_eq!(refused(&long).code, codes::SPEC_SYNTAX);
}

#[test]
fn wishes_about_placement_are_read_with_their_defaults() {
    let text = "
name: web-1
memory: 2GiB
memory_backing: {hugepages: 2MiB, numa_fit: required}
labels: {app: web}
placement:
  spread_by: app
  profile: packed
  tolerations: [{key: gpu}]
  anti_affinity: [{name: web-apart, group: {app: web}}]
  affinity: [{name: near-db, vm: db-1, topology: rack, mode: preferred, weight: 7}]
  topology_spread: [{name: even, topology: zone}]
";
    let spec = VmSpec::parse(text, SpecFormat::Yaml).unwrap();
    assert_eq!(spec.memory_backing.hugepages.size(), Some(MiB(2)));
    let wish = &spec.placement;
    let apart = &wish.anti_affinity[0];
    assert_eq!(
        (apart.topology.as_str(), apart.mode),
        ("host", RuleMode::Required)
    );
    let near = &wish.affinity[0];
    assert_eq!((near.mode, near.weight), (RuleMode::Preferred, 7));
    assert_eq!(wish.topology_spread[0].max_skew, 1);
    assert_eq!(
        VmSpec::from_value(serde_json::to_value(&spec).unwrap()).unwrap(),
        spec
    );
}

#[test]
fn a_toleration_covers_what_it_names() {
    let taint = |value: Option<&str>, effect| Taint {
        key: "gpu".into(),
        value: value.map(str::to_owned),
        effect,
    };
    let hard = taint(Some("a"), TaintEffect::NoSchedule);
    let covers = |value: Option<&str>, effect, taint: &Taint| {
        let value = value.map(str::to_owned);
        Toleration {
            key: "gpu".into(),
            value,
            effect,
        }
        .covers(taint)
    };
    assert!(covers(None, None, &hard) && covers(Some("a"), None, &hard));
    assert!(!covers(Some("b"), None, &hard));
    assert!(!covers(None, Some(TaintEffect::PreferNoSchedule), &hard));
    assert!(!covers(
        Some("a"),
        None,
        &taint(None, TaintEffect::NoSchedule)
    ));
}
