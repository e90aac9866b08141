//! VMs.

use std::fmt::Write as _;

use godwit_shared::api::{ProtectionView, VmView};
use godwit_shared::model::spec::{DiskFormat, DiskInterface, DiskSpec, NicModel, NicSpec};
use godwit_shared::model::{
    AgentState, DomainState, DomainUsage, Millis, RunState, UnixMillis, VmSpec,
};

use super::{Cell, Column, Listed, Shown, labels, or_dash, problem};
use crate::output::human;
use crate::output::table::{Kind, Tone};

impl Listed for VmView {
    const NOUN: &'static str = "VMs";
    const COLUMNS: &'static [Column] = &[
        Column("NAME", Kind::Whole),
        Column("STATE", Kind::Whole),
        Column("SINCE", Kind::Number),
        Column("NODE", Kind::Whole),
        Column("VCPUS", Kind::Number),
        Column("MEMORY", Kind::Number),
        Column("AGE", Kind::Number),
        Column("NOTE", Kind::Shrinks),
    ];

    fn row(&self, now: UnixMillis) -> Vec<Cell> {
        vec![
            self.name.as_str().into(),
            Cell::toned(self.state.as_str(), tone(self)),
            human::age(self.since, now).into(),
            or_dash(self.node.as_ref()).into(),
            self.spec.cpu.count.to_string().into(),
            self.spec.memory.to_string().into(),
            human::age(self.created, now).into(),
            note(self).into(),
        ]
    }

    fn name(&self) -> String {
        self.name.to_string()
    }
}

fn tone(vm: &VmView) -> Tone {
    if vm.node.is_some() && !vm.node_up {
        return Tone::Bad;
    }
    match vm.state {
        DomainState::Running => Tone::Good,
        DomainState::Stopped if vm.desired == RunState::Running => Tone::Bad,
        DomainState::Stopped => Tone::Faint,
        DomainState::Crashed | DomainState::IoError | DomainState::Unresponsive => Tone::Bad,
        DomainState::Starting
        | DomainState::Paused
        | DomainState::ShuttingDown
        | DomainState::Incoming
        | DomainState::InHandoff => Tone::Busy,
    }
}

/// What an operator should see first of a VM, if anything.
fn note(vm: &VmView) -> String {
    if vm.node.is_some() && !vm.node_up {
        return "its node is not connected".to_owned();
    }
    if let Some(problem) = &vm.problem {
        return format!("{}: {}", problem.code, problem.message);
    }
    if vm.migration.is_some() {
        return "migrating".to_owned();
    }
    match (&vm.exit, vm.state, vm.desired) {
        (Some(exit), DomainState::Stopped, RunState::Running) => exit.to_string(),
        (None, DomainState::Stopped, RunState::Running) => "should be running".to_owned(),
        _ => String::new(),
    }
}

impl Shown for VmView {
    fn sheet(&self, now: UnixMillis) -> Vec<(&'static str, String)> {
        let mut sheet = vec![
            ("Name", self.name.to_string()),
            ("Id", self.id.to_string()),
            ("State", state(self, now)),
            ("Node", node(self)),
        ];
        if let Some(made) = &self.decision {
            sheet.push(("Placed", super::placement::decision(made, now)));
        }
        sheet.push(("Created", human::moment(self.created, now)));
        if let Some(migration) = self.migration {
            sheet.push(("Migration", migration.to_string()));
        }
        if let Some(exit) = &self.exit {
            sheet.push(("Last exit", exit.to_string()));
        }
        if let Some(found) = &self.problem {
            sheet.push(("Problem", problem(found)));
        }
        if let Some(protection) = &self.protection {
            sheet.push(("Protection", self::protection(self, protection)));
        }
        spec(self, &mut sheet);
        if self.state.has_process() {
            sheet.push(("Agent", agent(self.agent).to_owned()));
        }
        if let Some(pid) = self.pid {
            sheet.push(("Process", process(pid, self.usage)));
        }
        sheet
    }
}

/// `restart, priority 5: is started again when its node is lost`.
fn protection(vm: &VmView, view: &ProtectionView) -> String {
    let lost = view.lost.as_ref();
    let lost = lost.map_or_else(String::new, |node| format!("lost with {node}; "));
    let (word, priority) = (vm.spec.protection.as_str(), vm.spec.priority);
    format!("{word}, priority {priority}: {lost}{}", view.next)
}

fn state(vm: &VmView, now: UnixMillis) -> String {
    let since = human::age(vm.since, now);
    let wanted = match vm.desired {
        RunState::Running => "running",
        RunState::Stopped => "stopped",
    };
    let stale = if vm.node.is_some() && !vm.node_up {
        "; the node is not connected, this is its last word"
    } else {
        ""
    };
    format!("{} for {since}, wanted {wanted}{stale}", vm.state)
}

fn node(vm: &VmView) -> String {
    match &vm.node {
        Some(node) => format!("{node} (epoch {})", vm.epoch),
        None => "-".to_owned(),
    }
}

fn agent(state: AgentState) -> &'static str {
    match state {
        AgentState::Absent => "no channel",
        AgentState::Disconnected => "not connected",
        AgentState::Connected => "connected",
    }
}

fn process(pid: u32, usage: Option<DomainUsage>) -> String {
    let Some(usage) = usage else {
        return format!("pid {pid}");
    };
    format!(
        "pid {pid}, CPU time {}, {} resident, {} read, {} written",
        Millis(usage.cpu_ms),
        usage.resident,
        usage.read,
        usage.written
    )
}

fn spec(vm: &VmView, sheet: &mut Vec<(&'static str, String)>) {
    let spec = &vm.spec;
    let model = spec.cpu.model.as_deref();
    let model = model.map_or_else(String::new, |model| format!(" ({model})"));
    sheet.push(("vCPUs", format!("{}{model}", spec.cpu.count)));
    sheet.push(("Memory", spec.memory.to_string()));
    sheet.push(("Machine", machine(vm)));
    if let Some(boot) = boot(spec) {
        sheet.push(("Boot", boot));
    }
    let disks: Vec<String> = spec.disks.iter().map(disk).collect();
    if !disks.is_empty() {
        sheet.push(("Disks", disks.join("\n")));
    }
    let nics: Vec<String> = spec.nics.iter().map(nic).collect();
    if !nics.is_empty() {
        sheet.push(("Network", nics.join("\n")));
    }
    if !spec.labels.is_empty() {
        sheet.push(("Labels", labels(&spec.labels)));
    }
    if !spec.placement.node_labels.is_empty() {
        sheet.push(("Needs node", labels(&spec.placement.node_labels)));
    }
    if let Some(label) = &spec.placement.spread_by {
        sheet.push(("Spread by", label.clone()));
    }
}

fn machine(vm: &VmView) -> String {
    let asked = vm.spec.machine.as_deref();
    let machine = vm.machine.as_deref().or(asked).unwrap_or("default");
    let accelerator = vm
        .accelerator
        .clone()
        .unwrap_or_else(|| vm.spec.accelerator.to_string());
    format!("{machine}, {}, {accelerator}", vm.spec.architecture)
}

fn boot(spec: &VmSpec) -> Option<String> {
    let mut text = spec.boot.kernel.clone()?;
    for (name, part) in [
        ("initrd", &spec.boot.initrd),
        ("command line", &spec.boot.cmdline),
    ] {
        if let Some(part) = part {
            let _ = write!(text, "\n{name} {part}");
        }
    }
    Some(text)
}

fn disk(disk: &DiskSpec) -> String {
    let format = match disk.format {
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Raw => "raw",
    };
    let interface = match disk.interface {
        DiskInterface::Virtio => "virtio",
        DiskInterface::Scsi => "scsi",
        DiskInterface::Sata => "sata",
    };
    let read_only = if disk.read_only { ", read-only" } else { "" };
    let shared = if disk.shared { ", shared" } else { "" };
    format!("{} ({format}, {interface}{read_only}{shared})", disk.path)
}

fn nic(nic: &NicSpec) -> String {
    let model = match nic.model {
        NicModel::Virtio => "virtio",
        NicModel::E1000e => "e1000e",
    };
    let mac = nic.mac.as_deref();
    let mac = mac.map_or_else(String::new, |mac| format!(", {mac}"));
    format!("user mode, {model}{mac}")
}
