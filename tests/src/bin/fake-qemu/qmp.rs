//! One QMP session: greeting, negotiation, commands.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;

use serde_json::{Value, json};

use crate::machine::{Behaviour, Machine, Run};

/// Small: a session does next to nothing, and there are hundreds of processes.
pub(crate) const STACK: usize = 128 * 1024;
/// Most events of a flood, so that a forgotten process ends its load.
const FLOOD: u32 = 2_000_000;
const HANDLED: [&str; 14] = [
    "qmp_capabilities",
    "query-version",
    "query-machines",
    "query-kvm",
    "query-cpu-definitions",
    "query-command-line-options",
    "query-commands",
    "query-status",
    "query-migrate",
    "cont",
    "stop",
    "quit",
    "system_reset",
    "system_powerdown",
];

/// Serves until the other side leaves. Returns whether QEMU goes on.
pub(crate) fn serve(
    reader: impl Read,
    writer: impl Write + Send + 'static,
    machine: &Arc<Machine>,
) -> Result<bool, String> {
    if machine.behaviour == Behaviour::Hang {
        loop {
            thread::park();
        }
    }
    let lines = machine.monitor_came();
    let written = thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || write_all(writer, &lines))
        .map_err(|e| e.to_string())?;
    machine.send(greeting().to_string());
    for line in BufReader::with_capacity(4096, reader).lines() {
        let Ok(line) = line else { break };
        if line.trim().is_empty() {
            continue;
        }
        if !command(&line, machine) {
            break;
        }
    }
    // The writer ends when everything is out.
    machine.monitor_left();
    let _ = written.join();
    if machine.behaviour == Behaviour::Crash && machine.has_run() {
        std::process::abort();
    }
    Ok(!machine.has_ended())
}

fn write_all(mut writer: impl Write, lines: &Receiver<String>) {
    while let Ok(line) = lines.recv() {
        let sent = writer
            .write_all(line.as_bytes())
            .and_then(|()| writer.write_all(b"\r\n"))
            .and_then(|()| writer.flush());
        if sent.is_err() {
            return;
        }
    }
}

fn greeting() -> Value {
    json!({ "QMP": { "version": version(), "capabilities": ["oob"] } })
}

fn version() -> Value {
    json!({ "qemu": { "major": 10, "minor": 0, "micro": 2 }, "package": "simulated" })
}

/// Answers one command. False when the session is to end.
fn command(line: &str, machine: &Arc<Machine>) -> bool {
    let Ok(request) = serde_json::from_str::<Value>(line) else {
        return fail(machine, &Value::Null, "GenericError", "JSON parse error");
    };
    let id = request.get("id").cloned().unwrap_or(Value::Null);
    let name = request["execute"].as_str().unwrap_or_default();
    let answer = match name {
        "quit" if machine.behaviour != Behaviour::Stubborn => {
            succeed(machine, &id, &json!({}));
            let reason = json!({ "guest": false, "reason": "host-qmp-quit" });
            machine.event("SHUTDOWN", reason);
            machine.end();
            return false;
        }
        // A stubborn one says yes to `quit` and stays.
        "qmp_capabilities" | "query-migrate" | "quit" => json!({}),
        "query-version" => version(),
        "query-machines" => machines(),
        "query-kvm" => json!({ "present": true, "enabled": false }),
        "query-cpu-definitions" => json!([{ "name": "qemu64" }, { "name": "max" }]),
        "query-command-line-options" => {
            json!([{ "option": "sandbox", "parameters": [] }])
        }
        "query-commands" => {
            let names = HANDLED.iter().map(|name| json!({ "name": name }));
            Value::Array(names.collect())
        }
        "query-status" => machine.status(),
        "cont" => return cont(machine, &id),
        "stop" => {
            machine.go(Run::Paused, "STOP");
            json!({})
        }
        "system_reset" => {
            let reason = json!({ "guest": false, "reason": "host-qmp-system-reset" });
            machine.event("RESET", reason);
            json!({})
        }
        "system_powerdown" => {
            if machine.behaviour != Behaviour::Stubborn {
                machine.guest_powered_off();
            }
            json!({})
        }
        _ => {
            let text = format!("The command {name} has not been found");
            return fail(machine, &id, "CommandNotFound", &text);
        }
    };
    succeed(machine, &id, &answer)
}

fn cont(machine: &Arc<Machine>, id: &Value) -> bool {
    machine.go(Run::Running, "RESUME");
    if machine.behaviour == Behaviour::Mute {
        loop {
            thread::park();
        }
    }
    succeed(machine, id, &json!({}));
    match machine.behaviour {
        // After the answer is out: see `serve`.
        Behaviour::Crash => return false,
        Behaviour::Garbage => {
            machine.send("}{ this is no JSON".to_owned());
        }
        Behaviour::Flood => {
            let machine = Arc::clone(machine);
            let _ = thread::Builder::new()
                .stack_size(STACK)
                .spawn(move || flood(&machine));
        }
        _ => {}
    }
    true
}

fn flood(machine: &Machine) {
    for offset in 0..FLOOD {
        let data = json!({ "offset": offset, "qom-path": "/machine/rtc" });
        if !machine.event("RTC_CHANGE", data) {
            return;
        }
        if offset % 64 == 0 {
            thread::yield_now();
        }
    }
}

fn machines() -> Value {
    let machine = |name: &str, alias: Option<&str>| {
        let mut machine = json!({ "name": name, "cpu-max": 288, "deprecated": false });
        if let Some(alias) = alias {
            machine["alias"] = json!(alias);
        }
        machine
    };
    json!([
        machine("pc-q35-10.0", Some("q35")),
        machine("pc-q35-7.2", None),
        machine("pc-i440fx-10.0", Some("pc")),
        machine("none", None),
    ])
}

fn succeed(machine: &Machine, id: &Value, answer: &Value) -> bool {
    machine.send(with_id(json!({ "return": answer }), id))
}

fn fail(machine: &Machine, id: &Value, class: &str, text: &str) -> bool {
    let error = json!({ "error": { "class": class, "desc": text } });
    machine.send(with_id(error, id))
}

fn with_id(mut message: Value, id: &Value) -> String {
    if !id.is_null() {
        message["id"] = id.clone();
    }
    message.to_string()
}
