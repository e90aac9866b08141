#![allow(clippy::unwrap_used, clippy::expect_used)]
use godwit_shared::model::spec::SpecFormat;
use godwit_shared::model::{VmId, VmSpec};

use super::super::backing::Backing;
use super::super::plan::Sockets;
use super::*;

fn plan(spec: &str, machine: &str, cpu_model: &str) -> LaunchPlan {
    LaunchPlan {
        vm: VmId::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001),
        spec: VmSpec::parse(spec, SpecFormat::Yaml).unwrap(),
        machine: machine.into(),
        accel: Accel::Tcg,
        cpu_model: cpu_model.into(),
        backing: Backing::default(),
        incoming: false,
        sandbox: true,
        sockets: Sockets {
            serial: "/run/gw/serial.sock".into(),
            serial_log: "/var/gw/serial.log".into(),
            agent: "/run/gw/agent.sock".into(),
        },
    }
}

/// One argument per line, options with their values.
fn lines(plan: &LaunchPlan) -> String {
    argv(plan).into_iter().fold(String::new(), |text, arg| {
        let separator = match (text.is_empty(), arg.starts_with('-')) {
            (true, _) => "",
            (_, true) => "\n",
            (_, false) => " ",
        };
        text + separator + &arg
    })
}

const SMALL: &str = "name: small\nmemory: 64\nserial: false\nagent: false\n";

const FULL: &str = "
name: full
memory: 2GiB
cpu: {count: 4}
boot: {kernel: /boot/vmlinuz, initrd: /boot/initrd, cmdline: 'console=ttyS0 quiet'}
disks:
- path: '/images/a,b.qcow2'
- {path: /images/c.raw, format: raw, shared: true}
- {path: /images/d.qcow2, interface: scsi, read_only: true}
nics: [{}, {model: e1000e, mac: '52:54:00:12:34:56'}]
";

#[test]
fn x86_small() {
    insta::assert_snapshot!(lines(&plan(SMALL, "pc-q35-10.0", "qemu64")));
}

#[test]
fn x86_full() {
    insta::assert_snapshot!(lines(&plan(FULL, "pc-q35-10.0", "qemu64")));
}

#[test]
fn x86_kvm_without_sandbox_boots_its_disks() {
    let spec = "name: k\nmemory: 64\ncpu: {model: host}\ndisks: [{path: /a}, {path: /b, interface: sata}]\n";
    let mut plan = plan(spec, "pc-q35-7.2", "host");
    plan.accel = Accel::Kvm;
    plan.sandbox = false;
    insta::assert_snapshot!(lines(&plan));
}

#[test]
fn aarch64_virt() {
    let spec = format!("{FULL}architecture: aarch64\n");
    insta::assert_snapshot!(lines(&plan(&spec, "virt-10.0", "cortex-a57")));
}

#[test]
fn ppc64_pseries() {
    let spec = format!("{FULL}architecture: ppc64\n");
    insta::assert_snapshot!(lines(&plan(&spec, "pseries-10.0", "power9_v2.0")));
}

#[test]
fn the_receiving_side_differs_in_how_it_waits() {
    let outgoing = plan(FULL, "pc-q35-10.0", "qemu64");
    let incoming = LaunchPlan {
        incoming: true,
        ..outgoing.clone()
    };
    let mut expected = argv(&outgoing);
    let more = "-chardev socket,id=rescue,fd=3 -mon chardev=rescue,mode=control -incoming defer";
    expected.extend(more.split(' ').map(str::to_owned));
    assert_eq!(argv(&incoming), expected);
}

#[test]
fn paths_with_commas_stay_whole() {
    let mut plan = plan(SMALL, "q35", "qemu64");
    plan.spec.serial = true;
    plan.sockets.serial = "/run/a,b".into();
    assert!(lines(&plan).contains("path=/run/a,,b,server=on"));
}

#[test]
fn many_disks_find_a_place_each() {
    let disks: String = (0..32)
        .map(|i| {
            format!(
                "- {{path: /d{i}, interface: {}}}\n",
                if i % 2 == 0 { "virtio" } else { "sata" }
            )
        })
        .collect();
    let spec = format!("name: many\nmemory: 64\ndisks:\n{disks}");
    let text = lines(&plan(&spec, "q35", "qemu64"));
    assert!(text.contains("\"bus\":\"sata2.3\""), "{text}");
    assert!(text.contains("\"bus\":\"port-disk15\""), "{text}");
}

#[test]
fn huge_pages_of_one_numa_node() {
    let mut plan = plan(SMALL, "pc-q35-10.0", "qemu64");
    plan.backing = Backing {
        pages: godwit_shared::model::spec::Hugepages::Mib2,
        node: Some(1),
    };
    let text = lines(&plan);
    let object = text.lines().find(|line| line.contains("mem0\"")).unwrap();
    insta::assert_snapshot!(object, @r#"-object {"qom-type":"memory-backend-memfd","id":"mem0","size":67108864,"hugetlb":true,"hugetlbsize":2097152,"prealloc":true,"host-nodes":[1],"policy":"bind"}"#);
}
