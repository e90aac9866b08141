//! A VM spec as an operator writes it.
//!
//! The first byte of the input picks how the rest is read: `t` is TOML, `e` is
//! a list of edits to a spec that is right ([`edited`]: bytes alone seldom get
//! past the parser of a language to the checks behind it), anything else YAML.
//! Holds: no panic; a refusal says what is wrong; an accepted spec is written
//! as JSON and accepted again as the same spec; JSON text and JSON value are
//! judged alike.
#![no_main]

use godwit_shared::model::VmSpec;
use godwit_shared::model::spec::SpecFormat;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    if *kind == b'e' {
        return edited(rest);
    }
    let Ok(text) = std::str::from_utf8(rest) else {
        return;
    };
    let format = match kind {
        b't' => SpecFormat::Toml,
        _ => SpecFormat::Yaml,
    };
    judge(VmSpec::parse(text, format));
});

fn judge(outcome: Result<VmSpec, godwit_shared::model::Problem>) -> bool {
    match outcome {
        Ok(spec) => {
            survives_json(&spec);
            true
        }
        Err(problem) => {
            assert!(!problem.message.is_empty(), "a refusal without a word");
            false
        }
    }
}

fn survives_json(spec: &VmSpec) {
    let value = serde_json::to_value(spec).expect("a spec can be written");
    let again = VmSpec::from_value(value).expect("a spec that was accepted is accepted again");
    assert_eq!(&again, spec, "a spec changed on its way through JSON");
}

/// Three bytes an edit: where, what, with which argument.
fn edited(edits: &[u8]) {
    let mut value = template();
    for edit in edits.chunks_exact(3).take(32) {
        let places = places(&value);
        let place = &places[usize::from(edit[0]) % places.len()];
        if let Some(found) = value.pointer_mut(place) {
            change(found, edit[1], edit[2]);
        }
    }
    let text = value.to_string();
    let by_value = judge(VmSpec::from_value(value));
    let by_text = judge(VmSpec::parse(&text, SpecFormat::Yaml));
    assert_eq!(by_value, by_text, "judged differently as text: {text}");
}

fn change(value: &mut Value, what: u8, argument: u8) {
    const WORDS: [&str; 16] = [
        "",
        "auto",
        "kvm",
        "tcg",
        "raw",
        "qcow2",
        "virtio",
        "user",
        "a-1",
        "-a",
        "2GiB",
        "1.5MiB",
        "52:54:00:00:00:01",
        "53:54:00:00:00:01",
        "/x",
        "x,y=\u{1f426}\n",
    ];
    const KEYS: [&str; 8] = [
        "name",
        "naem",
        "cpu",
        "count",
        "path",
        "memory",
        "",
        "spread_by",
    ];
    let index = usize::from(argument);
    match (what % 9, value) {
        (0, value) => *value = json!(argument),
        (1, value) => *value = json!(WORDS[index % WORDS.len()]),
        (2, value) => *value = Value::Null,
        (3, value) => *value = json!(argument % 2 == 0),
        (4, value) => *value = json!(u64::MAX >> (argument % 64)),
        (5, value) => *value = json!(-i64::from(argument)),
        (6, value) => *value = json!(f64::from(argument) * 1e300),
        (_, Value::Array(list)) if !list.is_empty() => {
            let copy = list[index % list.len()].clone();
            list.push(copy);
        }
        (7, Value::Object(fields)) => {
            fields.insert(KEYS[index % KEYS.len()].to_owned(), json!("x"));
        }
        (_, Value::Object(fields)) => {
            let key = fields.keys().nth(index % fields.len().max(1)).cloned();
            key.and_then(|key| fields.remove(&key));
        }
        (_, Value::String(text)) if text.len() < 64 => *text = text.repeat(index),
        _ => {}
    }
}

/// JSON pointers to everything in a value.
fn places(value: &Value) -> Vec<String> {
    let mut found = vec![String::new()];
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(key, child)| (key.replace('~', "~0").replace('/', "~1"), child))
            .collect(),
        Value::Array(list) => (0..).map(|at: usize| at.to_string()).zip(list).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        found.extend(places(child).iter().map(|below| format!("/{key}{below}")));
    }
    found
}

fn template() -> Value {
    json!({
        "name": "web", "labels": {"tier": "front"}, "architecture": "x86_64",
        "machine": "q35", "accelerator": "tcg", "cpu": {"count": 2, "model": "qemu64"},
        "memory": "256MiB",
        "boot": {"kernel": "/k", "initrd": "/i", "cmdline": "quiet"},
        "disks": [{"path": "/d", "format": "raw", "interface": "virtio",
                   "read_only": false, "shared": true}],
        "nics": [{"network": "user", "model": "virtio", "mac": "52:54:00:12:34:56"}],
        "serial": true, "agent": true,
        "placement": {"node_labels": {"zone": "a"}, "spread_by": "tier"},
    })
}
