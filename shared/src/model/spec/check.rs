//! What a spec's values have to satisfy, alone and together.

use super::{Architecture, DiskInterface, DiskSpec, NicSpec, VmSpec};
use crate::model::label::{MAX_LABEL_VALUE, label_key, label_value, token};
use crate::model::problem::{Problem, codes};
use crate::model::units::MiB;

/// Least memory with which any supported guest firmware starts.
const MIN_MEMORY: MiB = MiB(16);
/// Most memory, the bound of QEMU's `pc` machines with 46 address bits.
const MAX_MEMORY: MiB = MiB(64 << 20);
const MAX_VCPUS: u32 = 512;
const MAX_DISKS: usize = 32;
const MAX_NICS: usize = 16;
const MAX_LABELS: usize = 64;
/// Linux' own bound of a kernel command line on the supported architectures.
const MAX_CMDLINE: usize = 2048;

impl VmSpec {
    /// Everything that is wrong with the values, in the order of the fields.
    pub fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        check_labels("labels", &self.labels, &mut found);
        if let Some(machine) = &self.machine {
            check_token("machine", machine, &mut found);
        }
        self.check_cpu(&mut found);
        self.check_memory(&mut found);
        self.check_backing(&mut found);
        self.check_boot(&mut found);
        self.check_disks(&mut found);
        self.check_nics(&mut found);
        self.check_placement(&mut found);
        self.check_protection(&mut found);
        found
    }

    fn check_cpu(&self, found: &mut Vec<Problem>) {
        let count = self.cpu.count;
        if !(1..=MAX_VCPUS).contains(&count) {
            found.push(invalid(
                "cpu.count",
                count,
                format!("give 1 to {MAX_VCPUS} vCPUs"),
            ));
        }
        if let Some(model) = &self.cpu.model {
            check_token("cpu.model", model, found);
        }
    }

    fn check_memory(&self, found: &mut Vec<Problem>) {
        if self.memory < MIN_MEMORY || self.memory > MAX_MEMORY {
            let remedy = format!("give {MIN_MEMORY} to {MAX_MEMORY}");
            found.push(invalid("memory", self.memory, remedy));
        }
    }

    fn check_boot(&self, found: &mut Vec<Problem>) {
        let boot = &self.boot;
        for (field, path) in [("boot.kernel", &boot.kernel), ("boot.initrd", &boot.initrd)] {
            if let Some(path) = path {
                check_path(field, path, found);
            }
        }
        for (field, value) in [
            ("boot.initrd", &boot.initrd),
            ("boot.cmdline", &boot.cmdline),
        ] {
            if let (Some(value), None) = (value, &boot.kernel) {
                found.push(invalid(field, value, "it needs `boot.kernel` beside it"));
            }
        }
        if let Some(line) = &boot.cmdline
            && (line.len() > MAX_CMDLINE || line.chars().any(char::is_control))
        {
            let remedy = format!("give at most {MAX_CMDLINE} printable bytes");
            found.push(invalid("boot.cmdline", line, remedy));
        }
    }

    fn check_disks(&self, found: &mut Vec<Problem>) {
        if self.disks.len() > MAX_DISKS {
            found.push(invalid(
                "disks",
                self.disks.len(),
                format!("give at most {MAX_DISKS}"),
            ));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            self.check_disk(index, disk, found);
        }
    }

    fn check_disk(&self, index: usize, disk: &DiskSpec, found: &mut Vec<Problem>) {
        let field = format!("disks[{index}].path");
        check_path(&field, &disk.path, found);
        if self
            .disks
            .iter()
            .take(index)
            .any(|earlier| earlier.path == disk.path)
        {
            found.push(invalid(
                field,
                &disk.path,
                "every disk needs an image of its own",
            ));
        }
        if disk.interface == DiskInterface::Sata && self.architecture != Architecture::X86_64 {
            let field = format!("disks[{index}].interface");
            found.push(invalid(
                field,
                "sata",
                "only x86_64 machines have it; use `virtio` or `scsi`",
            ));
        }
    }

    fn check_nics(&self, found: &mut Vec<Problem>) {
        if self.nics.len() > MAX_NICS {
            found.push(invalid(
                "nics",
                self.nics.len(),
                format!("give at most {MAX_NICS}"),
            ));
        }
        for (index, nic) in self.nics.iter().enumerate() {
            self.check_mac(index, nic, found);
        }
    }

    fn check_mac(&self, index: usize, nic: &NicSpec, found: &mut Vec<Problem>) {
        let Some(mac) = &nic.mac else { return };
        let field = format!("nics[{index}].mac");
        match mac_octets(mac) {
            None => found.push(invalid(
                field,
                mac,
                "give six hexadecimal octets such as 52:54:00:12:34:56",
            )),
            Some([first, ..]) if first & 1 == 1 => {
                found.push(invalid(
                    field,
                    mac,
                    "it is a multicast address; clear the lowest bit of its first octet",
                ));
            }
            Some(_)
                if self
                    .nics
                    .iter()
                    .take(index)
                    .any(|n| n.mac.as_ref() == Some(mac)) =>
            {
                found.push(invalid(
                    field,
                    mac,
                    "every network card needs an address of its own",
                ));
            }
            Some(_) => {}
        }
    }
}

/// The octets of a MAC address in its colon form.
fn mac_octets(text: &str) -> Option<[u8; 6]> {
    let mut octets = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(octets)
}

pub(super) fn invalid(
    field: impl Into<String>,
    value: impl std::fmt::Display,
    remedy: impl Into<String>,
) -> Problem {
    let (field, value) = (field.into(), value.to_string());
    Problem::new(
        codes::SPEC_INVALID,
        format!("`{field}` cannot be `{value}`"),
    )
    .field(field)
    .value(value)
    .remedy(remedy)
}

/// An absolute path without control characters. Commas are fine: paths reach
/// QEMU as JSON, never as a comma-separated option.
fn check_path(field: &str, path: &str, found: &mut Vec<Problem>) {
    if !path.starts_with('/') || path.chars().any(char::is_control) || path.len() > 4095 {
        found.push(invalid(field, path, "give an absolute path on the node"));
    }
}

/// A name that QEMU takes: letters, digits, `-`, `_`, `.`.
pub(super) fn check_token(field: &str, text: &str, found: &mut Vec<Problem>) {
    if !token(text, 64) {
        found.push(invalid(
            field,
            text,
            "use letters, digits, `-`, `_` and `.`, as QEMU lists them",
        ));
    }
}

pub(super) fn check_labels(
    field: &str,
    labels: &std::collections::BTreeMap<String, String>,
    found: &mut Vec<Problem>,
) {
    if labels.len() > MAX_LABELS {
        found.push(invalid(
            field,
            labels.len(),
            format!("give at most {MAX_LABELS}"),
        ));
    }
    for (key, value) in labels {
        if !label_key(key) {
            found.push(invalid(
                field,
                key,
                "a label's key is letters, digits, `-`, `_`, `.` and `/`",
            ));
        }
        if !label_value(value) {
            found.push(invalid(
                format!("{field}.{key}"),
                value,
                format!("give at most {MAX_LABEL_VALUE} printable bytes"),
            ));
        }
    }
}
