//! Objects as the coordinator answers them.

use serde_json::{Value, json};

/// The id of a task.
pub(crate) const TASK: &str = "01970000-0000-7000-8000-0000000000aa";

/// The id of a migration.
pub(crate) const MIGRATION: &str = "01970000-0000-7000-8000-0000000000bb";

/// A VM.
pub(crate) fn vm(name: &str, state: &str) -> Value {
    json!({
        "id": "01970000-0000-7000-8000-000000000001",
        "name": name,
        "desired": if state == "stopped" { "stopped" } else { "running" },
        "state": state,
        "since": 1_700_000_000_000_u64,
        "node": "node-1",
        "node_up": true,
        "epoch": 1,
        "spec": { "name": name, "memory": 512, "labels": { "app": name } },
        "machine": "pc-q35-10.0",
        "accelerator": "tcg",
        "agent": "connected",
        "pid": 4711,
        "exit": null,
        "problem": null,
        "migration": null,
        "usage": null,
        "created": 1_700_000_000_000_u64,
        "added_later": { "is": "kept" },
    })
}

/// A task about `web-1`.
pub(crate) fn task(state: &str) -> Value {
    json!({
        "id": TASK,
        "kind": "vm.start",
        "state": state,
        "vm": "01970000-0000-7000-8000-000000000001",
        "name": "web-1",
        "node": "node-1",
        "migration": null,
        "message": "starting QEMU",
        "percent": null,
        "problem": null,
        "created": 1_700_000_000_000_u64,
        "ended": null,
    })
}

/// A task that moves `web-1`.
pub(crate) fn moving(state: &str) -> Value {
    let mut task = task(state);
    task["kind"] = json!("vm.migrate");
    task["migration"] = json!(MIGRATION);
    task
}

/// A migration of `web-1`.
pub(crate) fn calibration() -> Value {
    let none = json!({
        "count": 0, "inside": 0, "below": 0, "above": 0,
        "share_percent": null, "missed_by_percent": null,
    });
    let some = json!({
        "count": 4, "inside": 3, "below": 0, "above": 1,
        "share_percent": 75, "missed_by_percent": 150,
    });
    let kind = |completed, agreement: &Value| {
        json!({
            "completed": completed, "foretold": completed,
            "duration": agreement, "blackout": agreement,
        })
    };
    json!({ "precopy": kind(4, &some), "postcopy": kind(0, &none) })
}

pub(crate) fn migration(phase: &str) -> Value {
    let ended = phase == "completed";
    json!({
        "id": MIGRATION,
        "vm": "01970000-0000-7000-8000-000000000001",
        "name": "web-1",
        "source": "node-1",
        "target": "node-2",
        "phase": phase,
        "since": 1_700_000_000_000_u64,
        "created": 1_700_000_000_000_u64,
        "ended": ended.then_some(1_700_000_003_400_u64),
        "progress": {
            "total": 536_870_912_u64,
            "transferred": 402_653_184_u64,
            "remaining": 268_435_456_u64,
            "rate": 104_857_600_u64,
            "dirty_rate": 1_048_576_u64,
            "iteration": 2,
            "eta": 2560,
            "throttle_percent": 0,
            "elapsed": 1500,
        },
        "blackout": ended.then_some(27),
        "failure": null,
        "policy": { "channels": 2, "bandwidth": null, "downtime": 300, "auto_converge": true },
        "task": TASK,
    })
}

/// The cluster.
pub(crate) fn cluster(last_event: u64) -> Value {
    json!({
        "name": "godwit",
        "software": "0.1.0",
        "ca_fingerprint": "ab".repeat(32),
        "started": 1_700_000_000_000_u64,
        "nodes": { "up": 1 },
        "vms": { "running": 1 },
        "migrations": 0,
        "capacity": { "vcpus": 8, "memory": 4096 },
        "used": { "vcpus": 1, "memory": 512 },
        "last_event": last_event,
    })
}

/// An event, as a frame of the stream.
pub(crate) fn event(seq: u64) -> String {
    let event = json!({
        "seq": seq,
        "at": 1_700_000_000_000_u64,
        "kind": "vm.state",
        "vm": "web-1",
        "node": "node-1",
        "migration": null,
        "task": null,
        "message": format!("event number {seq}"),
    });
    format!("id: {seq}\nevent: vm.state\ndata: {event}\n\n")
}

/// A problem.
pub(crate) fn problem(code: &str, message: &str) -> Value {
    json!({
        "code": code,
        "message": message,
        "field": null,
        "value": null,
        "remedy": "do something about it",
        "also": [],
    })
}
