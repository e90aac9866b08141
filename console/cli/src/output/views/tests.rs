//! What lists, objects and problems look like, at fixed widths and a fixed time.
#![allow(clippy::unwrap_used)]

use godwit_shared::api::{
    Calibrations, ClusterStatus, DryRun, Event, MigrationView, NodeView, PlacementView,
    ProfileView, SimulationView, TaskView, VmView,
};
use godwit_shared::model::{Problem, UnixMillis, codes};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Shown, calibrations, event_line, explain, list, rehearsal, simulation};
use crate::args::Format;
use crate::output::Ui;
use crate::output::problem::render;
use crate::output::table::sheet;

pub(super) const NOW: u64 = 1_700_000_000_000;

pub(super) fn ui(width: Option<u16>) -> Ui {
    Ui {
        format: Format::Table,
        colour: false,
        colour_err: false,
        width,
        live: false,
        now: UnixMillis(NOW),
    }
}

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// `base` with some fields changed.
fn with(mut base: Value, changes: Value) -> Value {
    if let Value::Object(changes) = changes {
        for (key, value) in changes {
            base[key] = value;
        }
    }
    base
}

fn vm(name: &str, changes: Value) -> VmView {
    let vm = json!({
        "id": "01970000-0000-7000-8000-000000000001",
        "name": name, "desired": "running", "state": "running", "since": NOW - 200_000,
        "node": "node-1", "node_up": true, "epoch": 3,
        "spec": {
            "name": name, "memory": 2048, "cpu": { "count": 2, "model": "EPYC-v4" },
            "labels": { "app": "web", "tier": "front" },
            "boot": { "kernel": "/srv/vmlinuz", "initrd": "/srv/initrd", "cmdline": "console=ttyS0" },
            "disks": [
                { "path": "/srv/a.qcow2", "shared": true },
                { "path": "/srv/b.raw", "format": "raw", "interface": "sata", "read_only": true },
            ],
            "nics": [{ "mac": "52:54:00:12:34:56" }],
            "placement": { "node_labels": { "zone": "a" }, "spread_by": "app" },
        },
        "machine": "pc-q35-10.0", "accelerator": "tcg", "agent": "connected", "pid": 4711,
        "exit": null, "problem": null, "migration": null,
        "usage": { "cpu_ms": 61_000, "resident": 310, "read": 1024, "written": 4096, "at": NOW },
        "created": NOW - 86_400_000 * 3,
    });
    read(with(vm, changes))
}

fn vms() -> Vec<VmView> {
    vec![
        vm(
            "db-1",
            json!({ "state": "stopped", "desired": "stopped", "node": null }),
        ),
        vm(
            "guest-with-a-rather-long-name",
            json!({ "state": "shutting_down" }),
        ),
        vm("lost", json!({ "node_up": false })),
        vm(
            "moving",
            json!({ "migration": "01970000-0000-7000-8000-0000000000bb" }),
        ),
        vm(
            "sick",
            json!({
                "state": "io_error",
                "problem": { "code": "qemu_command", "message": "the disk /srv/images/sick.qcow2 cannot be written: no space left", "also": [] },
            }),
        ),
        vm(
            "unlucky",
            json!({ "state": "stopped", "exit": { "crashed": { "detail": "signal 11" } } }),
        ),
        vm("web-1", json!({})),
    ]
}

fn node(name: &str, changes: Value) -> NodeView {
    let capacity = json!({ "vcpus": 32, "memory": 65_536 });
    let node = json!({
        "name": name, "health": "up", "since": NOW - 3_600_000, "reason": null, "cordoned": false,
        "incarnation": 1, "joined": NOW - 86_400_000,
        "facts": {
            "software": "0.1.0", "hostname": "host-1", "boot_id": "6d9c", "kernel": "6.1.0-18-amd64",
            "capacity": capacity, "labels": {}, "address": "10.0.0.1:7441",
            "emulators": [{
                "architecture": "x86_64", "path": "/usr/bin/qemu-system-x86_64", "version": "10.0.2",
                "accelerators": ["kvm", "tcg"], "machines": ["pc-q35-10.0"], "machine_aliases": {},
            }],
        },
        "labels": { "zone": "a" }, "capacity": capacity,
        "used": { "vcpus": 6, "memory": 6144 }, "vms": 3,
    });
    read(with(node, changes))
}

fn migration(changes: Value) -> MigrationView {
    let migration = json!({
        "id": "01970000-0000-7000-8000-0000000000bb",
        "vm": "01970000-0000-7000-8000-000000000001",
        "name": "web-1", "source": "node-1", "target": "node-2", "phase": "precopy",
        "since": NOW - 1500, "created": NOW - 2000, "ended": null,
        "progress": {
            "total": 536_870_912, "transferred": 402_653_184, "remaining": 134_217_728,
            "rate": 104_857_600, "dirty_rate": 1_048_576, "iteration": 2, "eta": 1280,
            "throttle_percent": 20, "elapsed": 1500,
        },
        "blackout": null, "failure": null,
        "policy": { "channels": 2, "bandwidth": 209_715_200, "downtime": 300, "auto_converge": true },
        "task": "01970000-0000-7000-8000-0000000000aa",
    });
    read(with(migration, changes))
}

fn failed() -> MigrationView {
    migration(json!({
        "phase": "failed", "ended": NOW,
        "failure": {
            "phase": "precopy", "recovered_in": 640,
            "problem": {
                "code": "connection_lost", "message": "the connection to node-2 was lost",
                "remedy": "see that node-2 can be reached, then migrate again", "also": [],
            },
        },
    }))
}

fn task(changes: Value) -> TaskView {
    let task = json!({
        "id": "01970000-0000-7000-8000-0000000000aa", "kind": "vm.migrate", "state": "running",
        "vm": "01970000-0000-7000-8000-000000000001", "name": "web-1", "node": "node-1",
        "migration": "01970000-0000-7000-8000-0000000000bb", "message": "sending memory",
        "percent": 75, "problem": null, "created": NOW - 90_000, "ended": null,
    });
    read(with(task, changes))
}

#[test]
fn lists_of_vms() {
    insta::assert_snapshot!("vms-80", list(vms().iter(), &ui(Some(80))));
    insta::assert_snapshot!("vms-120", list(vms().iter(), &ui(Some(120))));
    insta::assert_snapshot!("vms-pipe", list(vms().iter(), &ui(None)));
    for width in 1..200 {
        let text = list(vms().iter(), &ui(Some(width)));
        assert_eq!(text.lines().count(), vms().len() + 1, "{text}");
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(
            width < 90 || widest <= usize::from(width),
            "{width}:\n{text}"
        );
    }
}

#[test]
fn lists_of_the_rest() {
    let nodes = [
        node("node-1", json!({})),
        node(
            "node-2",
            json!({ "health": "down", "cordoned": true, "reason": "no word for 1.0 s", "facts": null }),
        ),
        node("node-3", json!({ "health": "new" })),
    ];
    insta::assert_snapshot!("nodes", list(nodes.iter(), &ui(Some(100))));
    let migrations = [
        migration(json!({})),
        migration(json!({ "phase": "completed", "ended": NOW, "blackout": 27 })),
        failed(),
    ];
    insta::assert_snapshot!("migrations", list(migrations.iter(), &ui(Some(110))));
    let tasks = [
        task(json!({})),
        task(
            json!({ "kind": "vm.start", "state": "succeeded", "percent": null, "ended": NOW, "message": "" }),
        ),
        task(
            json!({ "state": "failed", "ended": NOW, "problem": failed().failure.unwrap().problem }),
        ),
    ];
    insta::assert_snapshot!("tasks", list(tasks.iter(), &ui(Some(110))));
}

#[test]
fn things_in_full() {
    let ui = ui(None);
    let show = |thing: &dyn Shown| sheet(&thing.sheet(ui.now), &ui);
    insta::assert_snapshot!(
        "vm",
        show(&vm(
            "web-1",
            json!({
                "migration": "01970000-0000-7000-8000-0000000000bb",
                "decision": {
                    "at": NOW - 86_400_000 * 3, "node": "node-1", "reason": "best", "score": 812,
                    "scores": [{ "name": "memory", "points": 800, "weight": 2 }, { "name": "spread", "points": 836, "weight": 1 }],
                    "fitting": 2, "refused": 1, "refusals": { "insufficient_resources": 1 }, "runner_up": "node-3", "runner_up_score": 100, "profile": "pack",
                },
                "problem": { "code": "guest_agent", "message": "the agent does not answer", "remedy": "see that it runs in the guest", "also": [] },
            })
        ))
    );
    insta::assert_snapshot!(
        "vm-lost",
        show(&vm("lost", json!({ "node_up": false, "usage": null })))
    );
    insta::assert_snapshot!(
        "node",
        show(&node("node-1", json!({ "reason": "it was restarted" })))
    );
    let mut told = node("node-1", json!({}));
    let facts = told.facts.as_mut().unwrap();
    facts.taints = vec![
        "gpu=a100".parse().unwrap(),
        "old:prefer_no_schedule".parse().unwrap(),
    ];
    facts.numa = read(json!([
        { "id": 0, "cpus": [0, 1], "memory": 32_768, "hugepages": { "2MiB": 512, "1GiB": 0 } },
        { "id": 1, "cpus": [2, 3], "memory": 32_768 },
    ]));
    facts.storage =
        read(json!([{ "path": "/srv/vms", "shared": true }, { "path": "/data", "shared": false }]));
    facts.networks = Some(vec!["user".to_owned(), "br0".to_owned()]);
    facts.images = vec!["/srv/images/a.qcow2".to_owned()];
    insta::assert_snapshot!("node-told", show(&told));
    insta::assert_snapshot!("migration", show(&migration(json!({}))));
    insta::assert_snapshot!("migration-failed", show(&failed()));
    insta::assert_snapshot!("task", show(&task(json!({}))));
    let cluster: ClusterStatus = read(json!({
        "name": "godwit", "software": "0.1.0", "ca_fingerprint": "abcd", "started": NOW - 200_000,
        "nodes": { "up": 2, "down": 1, "new": 0 }, "vms": { "running": 7, "shutting_down": 1 },
        "migrations": 1, "capacity": { "vcpus": 64, "memory": 131_072 },
        "used": { "vcpus": 16, "memory": 16_384 }, "last_event": 1234,
    }));
    insta::assert_snapshot!("cluster", show(&cluster));
}

#[test]
fn explanations() {
    let lack = json!({
        "code": "insufficient_resources", "message": "node-2 lacks 512 MiB", "field": "memory",
        "value": "2 GiB", "remedy": "ask for 1.5 GiB, or move a VM away from node-2", "also": [],
    });
    let cordoned = json!({ "code": "state_conflict", "message": "node-2 is cordoned", "remedy": "godwit node uncordon node-2", "also": [] });
    let placement: PlacementView = read(json!({ "node": "node-1", "nodes": [
        { "node": "node-1", "refused": [], "score": 812, "scores": [
            { "name": "balance", "points": 800, "weight": 2 }, { "name": "spread", "points": 836, "weight": 1 },
        ]},
        { "node": "node-3", "refused": [], "score": 100, "scores": [] },
        { "node": "node-2", "refused": [lack.clone(), cordoned], "score": null, "scores": [],
          "changes": [{ "change": "less_memory", "by": 512 }, { "change": "uncordon" }] },
    ]}));
    insta::assert_snapshot!("placement", explain(&placement, &ui(Some(80))));
    let dry_run: DryRun = read(json!({ "target": "node-2", "blockers": [lack] }));
    insta::assert_snapshot!("blockers", rehearsal("web-1", &dry_run, &ui(None)));
    let dry_run: DryRun = read(json!({
        "target": "node-2", "blockers": [], "forecast": forecast(false),
    }));
    insta::assert_snapshot!("rehearsal", rehearsal("web-1", &dry_run, &ui(None)));
}

#[test]
fn what_if() {
    let view: SimulationView = read(json!({
        "placed": [
            { "vm": "db-1", "from": "node-2", "node": "node-1", "score": 700 },
            { "vm": "web-9", "from": null, "node": "node-3", "score": 512 },
        ],
        "unplaced": [{
            "vm": "huge", "from": null, "nearest": "node-3",
            "problem": { "code": "no_node_fits", "message": "no node can take huge", "also": [{ "code": "insufficient_resources", "message": "node-3 lacks 2 GiB", "also": [] }] },
            "changes": [{ "change": "less_memory", "by": 2048 }, { "change": "without_rule", "name": "web-apart" }],
        }],
        "room": [
            { "node": "node-1", "capacity": { "vcpus": 8, "memory": 8192 }, "used": { "vcpus": 6, "memory": 4096 }, "more": 1 },
            { "node": "node-3", "capacity": { "vcpus": 8, "memory": 8192 }, "used": { "vcpus": 0, "memory": 1024 }, "more": 4 },
        ],
        "left": { "vcpus": 10, "memory": 11_264 }, "more": 5,
    }));
    insta::assert_snapshot!("simulation", simulation(&view, &ui(Some(80))));
    let profiles: Vec<ProfileView> = read(json!([
        { "name": null, "weights": { "memory": 2, "cpu": 1, "pack": 0 } },
        { "name": "pack", "weights": { "memory": 0, "cpu": 0, "pack": 5 } },
    ]));
    insta::assert_snapshot!("profiles", list(profiles.iter(), &ui(None)));
}

fn forecast(converges: bool) -> Value {
    json!({
        "duration": { "low": 900, "high": 12_000 }, "blackout": { "low": 2, "high": 250 },
        "converges": converges, "memory": 1 << 29, "dirty_rate": 1 << 26, "link_rate": 1 << 25,
    })
}

#[test]
fn forecasts_stand_beside_their_outcomes() {
    let show = |changes| sheet(&migration(changes).sheet(UnixMillis(NOW)), &ui(None));
    let under_way = show(json!({ "figures": { "forecast": forecast(true) } }));
    assert!(
        under_way.contains("duration 900 ms to 12.0 s\n"),
        "{under_way}"
    );
    insta::assert_snapshot!(
        "migration-foretold",
        show(json!({
            "phase": "completed", "ended": NOW, "blackout": 300,
            "figures": { "forecast": forecast(true), "duration": 3_400, "qemu_downtime": 280 },
            "met": { "duration": "inside", "blackout": "above" },
        }))
    );
    let found: Calibrations = read(json!({
        "precopy": {
            "completed": 22, "foretold": 20,
            "duration": { "count": 20, "inside": 18, "below": 1, "above": 1, "share_percent": 90, "missed_by_percent": 115 },
            "blackout": { "count": 20, "inside": 20, "below": 0, "above": 0, "share_percent": 100, "missed_by_percent": null },
        },
        "postcopy": {
            "completed": 0, "foretold": 0,
            "duration": { "count": 0, "inside": 0, "below": 0, "above": 0, "share_percent": null, "missed_by_percent": null },
            "blackout": { "count": 0, "inside": 0, "below": 0, "above": 0, "share_percent": null, "missed_by_percent": null },
        },
    }));
    insta::assert_snapshot!("calibration", calibrations(&found, &ui(Some(100))));
}

#[test]
fn events_are_one_line_each() {
    let event: Event = read(json!({
        "seq": 42, "at": NOW, "kind": "migration.phase", "vm": "web-1", "node": "node-1",
        "migration": null, "task": null, "message": "web-1 is\u{1b}[31m in precopy\nto node-2",
    }));
    assert_eq!(
        event_line(&event, &ui(None)),
        "    42  2023-11-14T22:13:20.000Z  migration.phase   web-1             \
         web-1 is\u{fffd}[31m in precopy to node-2"
    );
    let short = event_line(&event, &ui(Some(60)));
    assert!(
        short.chars().count() <= 60 && short.ends_with('…'),
        "{short}"
    );
}

#[test]
fn problems_for_people_and_for_programs() {
    let problem = Problem::new(
        codes::SPEC_INVALID,
        "vm.yaml: `cpu.count` is 0\nand that is too few",
    )
    .field("cpu.count")
    .value("0\u{7}")
    .remedy("give 1 to 512")
    .and(vec![
        Problem::new(codes::SPEC_INVALID, "`memory` is too small").field("memory"),
    ]);
    insta::assert_snapshot!("problem", render(&problem, &ui(None)));
    let json = Ui {
        format: Format::Json,
        ..ui(None)
    };
    let back: Problem = serde_json::from_str(&render(&problem, &json)).unwrap();
    assert_eq!(back, problem);
    let coloured = Ui {
        colour_err: true,
        ..ui(None)
    };
    assert!(render(&problem, &coloured).starts_with("\u{1b}[1;31merror[spec_invalid]\u{1b}[0m: "));
}
