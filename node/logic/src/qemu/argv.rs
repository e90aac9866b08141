//! QEMU's arguments from a plan.
//!
//! Reference: `qemu-system-x86_64(1)`; JSON forms of `-object` (6.0), `-device`
//! (6.2) and `-blockdev` are used wherever a value could hold a comma.
//!
//! The QMP socket is made by the daemon and handed over as QEMU's standard
//! input (`fd=0`): the daemon can connect before QEMU has started, and is
//! greeted the moment that QEMU is ready, without looking for a file to appear.

use godwit_shared::model::spec::{Architecture, DiskFormat, DiskInterface, DiskSpec, NicModel};
use serde_json::{Value, json};

use super::chardev;
use super::devices::{
    AHCI_PORTS, Class, Fixed, SPARE_PORTS, fixed, has_root_ports, indexed, root_port,
};
use super::mac::mac_address;
use super::plan::{Accel, LaunchPlan};
use super::rescue;

/// QEMU's arguments, without the program itself.
pub fn argv(plan: &LaunchPlan) -> Vec<String> {
    let mut args = Args::default();
    args.basics(plan);
    args.machine(plan);
    args.monitor();
    args.ports(plan);
    args.console(plan);
    args.agent(plan);
    args.disks(plan);
    args.nics(plan);
    args.small_devices(plan);
    args.boot(plan);
    args.0
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }

    fn option(&mut self, flag: &str, value: impl Into<String>) {
        self.flag(flag);
        self.0.push(value.into());
    }

    fn json(&mut self, flag: &str, value: &Value) {
        self.option(flag, value.to_string());
    }

    fn device(&mut self, value: &Value) {
        self.json("-device", value);
    }

    fn basics(&mut self, plan: &LaunchPlan) {
        self.option(
            "-name",
            format!("guest={},debug-threads=on", plan.spec.name),
        );
        self.option("-uuid", plan.vm.to_string());
        for flag in ["-no-user-config", "-nodefaults", "-no-shutdown", "-S"] {
            self.flag(flag);
        }
        self.option("-action", "panic=pause");
        self.option("-display", "none");
        self.option("-msg", "timestamp=on");
        if plan.sandbox {
            let rules = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
            self.option("-sandbox", rules);
        }
    }

    fn machine(&mut self, plan: &LaunchPlan) {
        let mut machine = format!("{},memory-backend=mem0", plan.machine);
        if plan.spec.architecture == Architecture::Aarch64 {
            // Version 2 of the interrupt controller ends at 8 vCPUs.
            machine.push_str(match plan.accel {
                Accel::Kvm => ",gic-version=host",
                Accel::Tcg => ",gic-version=3",
            });
        }
        self.option("-machine", machine);
        self.option("-accel", plan.accel.as_str());
        self.option("-cpu", &plan.cpu_model);
        let cpus = plan.spec.cpu.count;
        self.option(
            "-smp",
            format!("cpus={cpus},sockets=1,cores={cpus},threads=1"),
        );
        self.option("-m", format!("size={}M", plan.spec.memory.0));
        self.json("-object", &plan.backing.object("mem0", plan.spec.memory));
        self.option("-rtc", "base=utc");
    }

    fn monitor(&mut self) {
        let id = chardev::QMP;
        self.option(
            "-chardev",
            format!("socket,id={id},fd=0,server=on,wait=off"),
        );
        self.option("-mon", format!("chardev={id},mode=control"));
    }

    /// Root ports come before what is plugged into them.
    fn ports(&mut self, plan: &LaunchPlan) {
        if !has_root_ports(plan.spec.architecture) {
            return;
        }
        let disks = virtio_disks(plan).count();
        for (class, count) in [
            (Class::Nic, plan.spec.nics.len()),
            (Class::Disk, disks),
            (Class::Spare, SPARE_PORTS),
        ] {
            for index in 0..count {
                self.device(&root_port(class, index));
            }
        }
    }

    fn console(&mut self, plan: &LaunchPlan) {
        if !plan.spec.serial {
            return;
        }
        let id = chardev::SERIAL;
        let (path, log) = (&plan.sockets.serial, &plan.sockets.serial_log);
        self.option(
            "-chardev",
            format!(
                "socket,id={id},path={},server=on,wait=off,logfile={},logappend=on",
                escaped(path),
                escaped(log)
            ),
        );
        match plan.spec.architecture {
            Architecture::X86_64 => self.device(
                &json!({"driver": "isa-serial", "id": "console0", "chardev": id, "index": 0}),
            ),
            Architecture::Aarch64 => self.option("-serial", format!("chardev:{id}")),
            Architecture::Ppc64 => self.device(
                &json!({"driver": "spapr-vty", "id": "console0", "chardev": id, "reg": 0x3000_0000}),
            ),
        }
    }

    fn agent(&mut self, plan: &LaunchPlan) {
        if !plan.spec.agent {
            return;
        }
        let id = chardev::AGENT;
        let path = escaped(&plan.sockets.agent);
        self.option(
            "-chardev",
            format!("socket,id={id},path={path},server=on,wait=off"),
        );
        let bus = json!({"driver": "virtio-serial-pci", "id": "vserial0"});
        self.device(&fixed(plan.spec.architecture, Fixed::Serial).plug(bus));
        self.device(&json!({
            "driver": "virtserialport",
            "id": id,
            "bus": "vserial0.0",
            "nr": 1,
            "chardev": id,
            "name": "org.qemu.guest_agent.0",
        }));
    }

    fn disks(&mut self, plan: &LaunchPlan) {
        let disks = &plan.spec.disks;
        if disks.iter().any(|d| d.interface == DiskInterface::Scsi) {
            let controller = json!({"driver": "virtio-scsi-pci", "id": "scsi0"});
            self.device(&fixed(plan.spec.architecture, Fixed::Scsi).plug(controller));
        }
        let mut indices = [0; 3];
        for (number, disk) in disks.iter().enumerate() {
            let index = &mut indices[disk.interface as usize];
            self.blockdev(number, disk);
            self.disk_device(plan, number, disk, *index);
            *index += 1;
        }
    }

    fn blockdev(&mut self, number: usize, disk: &DiskSpec) {
        // A shared image may be open on two hosts around a migration: their page
        // caches must not come between.
        let cache = json!({"direct": disk.shared, "no-flush": false});
        self.json(
            "-blockdev",
            &json!({
                "driver": "file",
                "node-name": format!("disk{number}-file"),
                "filename": disk.path,
                "read-only": disk.read_only,
                "discard": "unmap",
                "cache": cache,
            }),
        );
        let driver = match disk.format {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
        };
        self.json(
            "-blockdev",
            &json!({
                "driver": driver,
                "node-name": format!("disk{number}"),
                "file": format!("disk{number}-file"),
                "read-only": disk.read_only,
                "discard": "unmap",
                "cache": cache,
            }),
        );
    }

    /// `index` counts the disks of that interface.
    fn disk_device(&mut self, plan: &LaunchPlan, number: usize, disk: &DiskSpec, index: usize) {
        let architecture = plan.spec.architecture;
        let mut device = json!({
            "driver": match disk.interface {
                DiskInterface::Virtio => "virtio-blk-pci",
                DiskInterface::Scsi => "scsi-hd",
                DiskInterface::Sata => "ide-hd",
            },
            "id": format!("disk{number}-device"),
            "drive": format!("disk{number}"),
            "werror": "stop",
            "rerror": "stop",
        });
        if plan.spec.boot.kernel.is_none() {
            device["bootindex"] = json!(number + 1);
        }
        let device = match disk.interface {
            DiskInterface::Virtio => indexed(architecture, Class::Disk, index).plug(device),
            DiskInterface::Scsi => {
                device["bus"] = json!("scsi0.0");
                device["scsi-id"] = json!(index);
                device
            }
            DiskInterface::Sata => {
                device["bus"] = json!(self.sata_port(architecture, index));
                device
            }
        };
        self.device(&device);
    }

    /// The built-in controller has six ports; further disks get another one.
    fn sata_port(&mut self, architecture: Architecture, index: usize) -> String {
        let (controller, port) = (index / AHCI_PORTS, index % AHCI_PORTS);
        if controller == 0 {
            return format!("ide.{port}");
        }
        let id = format!("sata{controller}");
        if port == 0 {
            let device = json!({"driver": "ich9-ahci", "id": id});
            self.device(&fixed(architecture, Fixed::Ahci(controller)).plug(device));
        }
        format!("{id}.{port}")
    }

    fn nics(&mut self, plan: &LaunchPlan) {
        for (index, nic) in plan.spec.nics.iter().enumerate() {
            self.option("-netdev", format!("user,id=net{index}"));
            let mac = nic
                .mac
                .clone()
                .unwrap_or_else(|| mac_address(plan.vm, index));
            // Without an option ROM: nothing boots from the network yet, and
            // distributions ship those ROMs apart from QEMU.
            let device = json!({
                "driver": match nic.model {
                    NicModel::Virtio => "virtio-net-pci",
                    NicModel::E1000e => "e1000e",
                },
                "id": format!("nic{index}"),
                "netdev": format!("net{index}"),
                "mac": mac,
                "romfile": "",
            });
            self.device(&indexed(plan.spec.architecture, Class::Nic, index).plug(device));
        }
    }

    fn small_devices(&mut self, plan: &LaunchPlan) {
        let architecture = plan.spec.architecture;
        self.json(
            "-object",
            &json!({"qom-type": "rng-random", "id": "entropy0", "filename": "/dev/urandom"}),
        );
        let rng = json!({"driver": "virtio-rng-pci", "id": "rng0", "rng": "entropy0"});
        self.device(&fixed(architecture, Fixed::Rng).plug(rng));
        match architecture {
            Architecture::X86_64 => {
                self.device(&json!({"driver": "pvpanic", "id": "panic0", "ioport": 0x505}));
            }
            Architecture::Aarch64 => {
                let panic = json!({"driver": "pvpanic-pci", "id": "panic0"});
                self.device(&fixed(architecture, Fixed::Pvpanic).plug(panic));
            }
            // Panics reach QEMU through the hypervisor call `os-term`.
            Architecture::Ppc64 => {}
        }
    }

    fn boot(&mut self, plan: &LaunchPlan) {
        let boot = &plan.spec.boot;
        for (flag, value) in [
            ("-kernel", &boot.kernel),
            ("-initrd", &boot.initrd),
            ("-append", &boot.cmdline),
        ] {
            if let Some(value) = value {
                self.option(flag, value);
            }
        }
        if plan.incoming {
            self.option("-chardev", rescue::device());
            self.option("-mon", format!("chardev={},mode=control", chardev::RESCUE));
            self.option("-incoming", "defer");
        }
    }
}

fn virtio_disks(plan: &LaunchPlan) -> impl Iterator<Item = &DiskSpec> {
    plan.spec
        .disks
        .iter()
        .filter(|disk| disk.interface == DiskInterface::Virtio)
}

/// A value inside of a comma-separated option: QEMU reads `,,` as a comma.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
#[path = "argv_tests.rs"]
mod tests;
