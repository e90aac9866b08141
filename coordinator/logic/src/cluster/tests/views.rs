//! What operators see, and that it is seen quickly.

use super::*;
use std::time::{Duration, Instant};

#[test]
fn the_cluster_in_a_few_numbers() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    bench.join("node-3").unwrap();
    bench.running("web", "node-1");
    bench.create(spec("db", 256), false, None).unwrap();
    bench.disconnect("node-2");
    let mut status = bench.cluster.status();
    status.ca_fingerprint.truncate(4);
    insta::assert_json_snapshot!(status, @r#"
    {
      "name": "godwit",
      "software": "0.1.0",
      "ca_fingerprint": "abab",
      "started": 1000,
      "nodes": {
        "down": 1,
        "new": 1,
        "up": 1
      },
      "vms": {
        "running": 1,
        "stopped": 1
      },
      "migrations": 0,
      "capacity": {
        "vcpus": 16,
        "memory": 1024
      },
      "used": {
        "vcpus": 1,
        "memory": 256
      },
      "last_event": 13,
      "unheard": []
    }
    "#);
}

#[test]
fn a_vm_is_found_by_name_or_id() {
    let mut bench = Bench::of(&["node-1"]);
    let vm = bench.running("web", "node-1");
    assert_eq!(bench.cluster.find_vm("web"), Ok(vm));
    assert_eq!(bench.cluster.find_vm(&vm.to_string()), Ok(vm));
    for missing in ["db", "Not A Name", "00000000-0000-0000-0000-0000000000ff"] {
        let problem = bench.cluster.find_vm(missing).unwrap_err();
        assert_eq!(problem.value.as_deref(), Some(missing));
    }
}

#[test]
fn lists_are_sorted() {
    let mut bench = Bench::of(&["node-2", "node-1"]);
    for name in ["web", "db", "cache"] {
        bench.create(spec(name, 256), false, None).unwrap();
        bench.now = bench.now.after(Millis(1));
    }
    let names = |views: Vec<VmView>| -> Vec<String> {
        views
            .into_iter()
            .map(|view| view.name.to_string())
            .collect()
    };
    assert_eq!(names(bench.cluster.vms()), ["cache", "db", "web"]);
    let nodes = bench.cluster.nodes();
    assert_eq!(nodes[0].name, node("node-1"));
    let tasks = bench.cluster.tasks();
    assert!(tasks.is_sorted_by_key(|task| task.created));
}

#[test]
fn a_node_says_why_it_is_down_and_what_it_holds() {
    let mut bench = Bench::of(&["node-1"]);
    bench.running("web", "node-1");
    bench.now = UnixMillis(9_000);
    bench.disconnect("node-1");
    let view = bench.cluster.node(&node("node-1")).unwrap();
    assert_eq!(view.reason.as_deref(), Some("silent for 600 ms"));
    assert_eq!(
        (view.since, view.vms, view.used.memory),
        (UnixMillis(9_000), 1, MiB(256))
    );
    assert_eq!(view.health.as_str(), "down");
}

#[test]
fn placement_is_explained_without_placing_anything() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    bench.running("web", "node-1");
    let before = bench.cluster.records.clone();
    let request = CreateVm {
        spec: spec("db", 900),
        start: true,
        node: None,
    };
    let view = bench.cluster.place(&request);
    assert_eq!(view.node, Some(node("node-2")));
    assert_eq!(view.nodes[1].refused[0].field.as_deref(), Some("memory"));
    assert_eq!(bench.cluster.records, before);
}

/// The bound is far above what it takes (a few milliseconds here without
/// optimisation) and far below anything that grows with the square of the VMs.
#[test]
fn thousands_of_vms_are_listed_at_once() {
    let mut bench = Bench::of(&["node-1"]);
    bench.running("web", "node-1");
    let (id, record) = bench.cluster.records.vms.first_key_value().unwrap();
    let (_, mut record) = (*id, record.clone());
    for number in 0..5_000 {
        record.id = VmId::from_u128(1_000_000 + number);
        record.name = format!("vm-{number}").parse().unwrap();
        bench
            .cluster
            .observed
            .names
            .insert(record.name.clone(), record.id);
        bench.cluster.records.vms.insert(record.id, record.clone());
    }
    bench.cluster.begin_ledger();
    let begin = Instant::now();
    let vms = bench.cluster.vms();
    assert_eq!(vms.len(), 5_001);
    assert_eq!(bench.cluster.nodes()[0].vms, 5_001);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}
